"""Trained weights and checkpoints as files, with the experiment and the run that they belong to."""

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from srlib.data import Subject
from srlib.experiments import Experiment, from_json
from srlib.inputs import fingerprint
from srlib.models import MODELS
from srlib.paths import InputError, atomic, choose, first_line, sha256, source_hash, unspoilt

SHOWN = 4  # differences between two runs, at most, in one line


def save_weights(state: dict[str, torch.Tensor], path: str | Path, metadata: Mapping[str, object]) -> None:
    """Write a state dict as safetensors; equal weights and metadata give equal bytes. InputError as ``atomic``."""
    # in one entry, since the library writes several in random order
    content = save(state, metadata={"srlib": json.dumps(metadata, sort_keys=True)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a safetensors file; InputError when it is not one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({first_line(err)})") from err


def save_mean(first: str | Path, second: str | Path, path: str | Path, share: float = 0.5) -> None:
    """Write the mean of two trainings of one network, of which the second, with its ``share``, went on from the first.

    The metadata are those of the second. Wortsman et al., CVPR 2022: it keeps what the first learned and most of what
    the second added. Raises InputError as ``load_weights``, and when their tensors differ in name or shape.
    """
    one, other = load_weights(first), load_weights(second)
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in other.items()}:
        raise InputError(f"{first} and {second} hold weights of two different networks; give two stages of one")
    save_weights({k: v.lerp(other[k], share) for k, v in one.items()}, path, read_metadata(Path(second)))


def start_from(network: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load weights into a network; output channels of its layer ``last`` that they lack begin at zero.

    Raises InputError, with the network's ``name``, when they do not fit.
    """
    state, own = load_weights(path), network.state_dict()
    for part in {"last.weight", "last.bias"} & state.keys() & own.keys():
        missing = len(own[part]) - len(state[part])
        if missing > 0:
            state[part] = torch.cat([state[part], state[part].new_zeros(missing, *state[part].shape[1:])])
    try:
        network.load_state_dict(state)
    except RuntimeError as err:
        raise InputError(f"{path}: does not fit {name} ({first_line(err)})") from err


def read_metadata(path: str | Path) -> dict[str, object]:
    """The metadata that ``save_weights`` wrote, empty for a foreign file; InputError when it is not safetensors."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("srlib", "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({err})") from err


def load_network(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """The trained network of a file that training wrote, and its experiment.

    Raises InputError when the file is missing, damaged or of another kind.
    """
    metadata = read_metadata(path)
    if "experiment" not in metadata:
        raise InputError(f"{path}: no experiment is written in it; expected weights made by 'srlib train'")
    experiment = from_json(metadata["experiment"])
    make = choose(MODELS, experiment.model, f"model in {path}:")
    try:
        network = make(width=experiment.width, **experiment.model_args)
        network.load_state_dict(load_weights(path))
    except (RuntimeError, TypeError) as err:
        raise InputError(f"{path}: its weights do not fit {experiment.model} ({first_line(err)})") from err
    return network, experiment


def weights_hash(path: str | Path) -> str:
    """SHA-256 of the tensors of a safetensors file, whatever is written beside them; InputError as ``load_weights``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_weights(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def contents(subjects: Sequence[Subject], experiment: Experiment) -> dict[str, dict[str, str]]:
    """SHA-256 of every file that training an experiment reads of subjects, by their names and its columns.

    Raises InputError for a file that cannot be read or is missing, and for two subjects of one name.
    """
    found: dict[str, dict[str, str]] = {}
    for subject in subjects:
        if subject.name in found:
            raise InputError(f"two subjects are called {subject.name}; give each a name of its own")
        given = ("lr",) if experiment.given and "lr" in subject.files else ()
        found[subject.name] = {column: fingerprint(subject.file(column)) for column in (*experiment.columns, *given)}
    return found


def difference(found: Mapping[str, object], run: Mapping[str, object]) -> str:
    """What tells the run that a file was found to belong to from another one, in one line; empty when they are the same.

    The hash of the source, which also a comment changes, is left out. A number that experiments did not have when the
    file was written counts as its default.
    """
    if "results_version" not in found:
        return "it is of an earlier srlib, which knew scans by their size and not by their content"
    old, new = dict(_leaves(found)), dict(_leaves(run))
    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name, ...) != new.get(name, ...)]
    told = [f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in names[:SHOWN]]
    return ", ".join(told) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if name == "experiment" and isinstance(value, str):
        with suppress(InputError):
            value, name = json.loads(from_json(value).to_json()), ""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, part in value.items():
        if name or key != "source":
            yield from _leaves(part, f"{name} {key}".strip())


def _short(value: object) -> str:
    text = "none" if value in (None, "") else str(value)
    return text[:8] if len(text) == 64 else text[:60]


def set_aside(path: Path, key: str = "") -> Path:
    """Rename a file beside itself, with a hash of its content in its name when no ``key`` is given; its new path."""
    kept = path.with_stem(f"{path.stem}-{key or sha256(path)[:12]}")
    try:
        return path.replace(kept)
    except OSError as err:
        raise InputError(f"{path} cannot be renamed to {kept.name}: {err.strerror}") from err


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes whenever ``save_checkpoint`` writes a file anew; None where there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def save_checkpoint(
    path: Path, progress: Mapping[str, object], phase: object, seen: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Write a training's progress and a phase's states in place of the file with the stamp ``seen``; its new stamp.

    Raises InputError, and leaves what is there, when another run wrote it meanwhile or the system refuses.
    """
    if stamp(path) not in (None, seen):
        read_checkpoint(path, progress["identity"])
    content = io.BytesIO()  # in memory first, since torch makes other errors of a full disk
    torch.save({**progress, **states(phase), "source": source_hash()}, content)
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return stamp(path)


def read_checkpoint(path: Path, identity: Mapping[str, object], restart: bool = False) -> dict[str, object] | None:
    """What ``save_checkpoint`` wrote for this very run; None when there is none. Nothing in it is run.

    With ``restart`` it is set aside, whatever it is. Raises InputError, and leaves the file as it is, when it is damaged
    or another run's.
    """
    if not path.is_file():
        return None
    if restart:
        print(f"{path} is set aside as {set_aside(path).name}", file=sys.stderr)
        return None
    try:
        state = torch.load(unspoilt(path), map_location="cpu", weights_only=True)
        other = difference(state["identity"], identity)
    except Exception as err:  # whatever comes of a damaged file
        raise InputError(
            f"{path}: damaged checkpoint ({first_line(err)}); delete it to start again, or set it aside by --restart"
        ) from err
    if other:
        raise InputError(
            f"{path} is another run's: {other}; train in another folder, or set it aside by --restart (restart=True)"
        )
    return state


def remove_checkpoint(path: Path, identity: Mapping[str, object]) -> None:
    """Delete the checkpoint of a run that is finished; another run's stays."""
    with suppress(InputError):
        if read_checkpoint(path, identity):
            path.unlink()


def states(phase: object) -> dict[str, dict[str, dict]]:
    """The state dicts of a phase's networks and optimisers, by name, as a checkpoint holds them."""
    parts = {"networks": phase.networks, "optimizers": phase.optimizers}
    return {kind: {name: part.state_dict() for name, part in held.items()} for kind, held in parts.items()}


def resume(state: Mapping[str, object], phase: object, device: torch.device, path: Path) -> tuple[int, list, list]:
    """Load what ``read_checkpoint`` gave into a phase: (step, history, losses since its last row).

    Raises InputError when its networks are of other shapes.
    """
    if state["source"] != source_hash():
        print(f"{path} was written by other source code; going on from it", file=sys.stderr)
    try:
        for kind, held in states(phase).items():
            for name in held:
                getattr(phase, kind)[name].load_state_dict(state[kind][name])
        pending = [{name: loss.to(device) for name, loss in losses.items()} for losses in state["pending"]]
        return state["step"], state["history"], pending
    except (RuntimeError, ValueError, KeyError, AttributeError) as err:
        raise InputError(
            f"{path}: does not fit this version's networks ({first_line(err)}); set it aside by --restart"
        ) from err


def require_finite(phase: object, pending: Sequence[Mapping[str, torch.Tensor]], step: int, checkpoint: Path) -> None:
    """Raise InputError when a loss since the last row, a weight, a statistic or an optimiser's state is inf or nan."""
    found, held = states(phase), {}
    for losses in pending:
        for name, loss in losses.items():
            held.setdefault(name, []).append(loss)
    for name, state in found["optimizers"].items():
        held[name] = list(found["networks"][name].values())
        held[f"{name}'s optimizer"] = [v for part in state["state"].values() for v in part.values()]
    tensors = [(name, value) for name, values in held.items() for value in values if torch.is_tensor(value)]
    device = next(phase.networks["generator"].parameters()).device
    finite = torch.stack([value.isfinite().all().to(device) for _, value in tensors]).tolist()  # the one wait for a GPU
    wrong = dict.fromkeys(name for (name, _), fine in zip(tensors, finite, strict=True) if not fine)
    if wrong:
        kept = f"; {checkpoint} holds the last good step" if checkpoint.is_file() else ""
        raise InputError(
            f"training diverged at step {step} (not finite: {', '.join(wrong)}); lower the learning rate{kept}"
        )


def finish(folder: Path, identity: Mapping[str, object], phase: object, history: Sequence[Mapping[str, float]]) -> None:
    """Write ``history.csv`` and a phase's weights; another run's get names of their own, with a hash in them, before."""
    final = folder / "model.safetensors"
    if final.is_file() and (other := difference(read_metadata(final), identity)):
        key = sha256(final)[:12]
        for path in (folder / "history.csv", folder / "critic.safetensors", final):
            kept = set_aside(path, key) if path.is_file() else path
        print(f"{final}: another run's weights were there and are kept as {kept.name}; {other}", file=sys.stderr)
    names = list(dict.fromkeys(name for row in history for name in row))
    with atomic(folder / "history.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history)
    for name, network in reversed(phase.networks.items()):  # the generator last: its file says that all is done
        state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        path = final if name == "generator" else folder / f"{name}.safetensors"
        save_weights(state, path, {**identity, "source": source_hash()})
