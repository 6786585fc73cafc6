"""Runs of training as files: what tells one from another, checkpoints that they go on from, and what they leave."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from srlib.core.paths import InputError, atomic, first_line, sha256, source_hash, unspoilt
from srlib.data.manifest import Subject
from srlib.models.weights import read_metadata, save_weights
from srlib.scans.formats import fingerprint

SHOWN = 4  # differences between two runs, at most, in one line


def contents(
    subjects: Sequence[Subject], columns: Callable[[Subject], Sequence[str]]
) -> dict[str, dict[str, str]]:
    """SHA-256 of every file that training reads of subjects, by their names and ``columns``.

    Raises InputError for a file that cannot be read or is missing, and for two subjects of one name.
    """
    found: dict[str, dict[str, str]] = {}
    for subject in subjects:
        if subject.name in found:
            raise InputError(f"two subjects are called {subject.name}; give each a name of its own")
        found[subject.name] = {
            column: fingerprint(subject.file(column)) for column in columns(subject)
        }
    return found


@dataclass(frozen=True)
class Identity:
    """What a run is known by; ``renew`` gives what an earlier version wrote of an experiment as this one writes it."""

    facts: Mapping[str, object]
    renew: Callable[[str], str] = str

    def difference(self, found: Mapping[str, object]) -> str:
        """What tells it from the run that a file was found to belong to, in one line; empty when they are the same.

        The hash of the source, which also a comment changes, is left out. A number that experiments did not have when
        the file was written counts as its default.
        """
        if "results_version" not in found:
            return (
                "it is of an earlier srlib, which knew scans by their size and not by their content"
            )
        old, new = dict(self._leaves(found)), dict(self._leaves(self.facts))
        names = [
            name for name in dict.fromkeys([*new, *old]) if old.get(name, ...) != new.get(name, ...)
        ]
        shown = [
            f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in names[:SHOWN]
        ]
        return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

    def _leaves(self, value: object, name: str = "") -> Iterator[tuple[str, object]]:
        if name == "experiment" and isinstance(value, str):
            with suppress(InputError):
                value, name = json.loads(self.renew(value)), ""
        if not isinstance(value, Mapping):
            yield name, value
            return
        for key, part in value.items():
            if name or key != "source":
                yield from self._leaves(part, f"{name} {key}".strip())


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
    """What changes whenever ``save`` writes a file anew; None where there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def save(
    path: Path,
    identity: Identity,
    progress: Mapping[str, object],
    players: object,
    seen: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """Write a training's progress and the players' states in place of the file with the stamp ``seen``; its new stamp.

    Raises InputError, and leaves what is there, when another run wrote it meanwhile or the system refuses.
    """
    if stamp(path) not in (None, seen):
        read(path, identity)
    content = io.BytesIO()  # in memory first, since torch makes other errors of a full disk
    torch.save(
        {"identity": identity.facts, **progress, **states(players), "source": source_hash()},
        content,
    )
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return stamp(path)


def read(path: Path, identity: Identity, restart: bool = False) -> dict[str, object] | None:
    """What ``save`` wrote for this very run; None when there is none. Nothing in it is run.

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
        other = identity.difference(state["identity"])
    except Exception as err:  # whatever comes of a damaged file
        raise InputError(
            f"{path}: damaged checkpoint ({first_line(err)}); delete it to start again, or set it aside by --restart"
        ) from err
    if other:
        raise InputError(
            f"{path} is another run's: {other}; train in another folder, or set it aside by --restart (restart=True)"
        )
    return state


def remove(path: Path, identity: Identity) -> None:
    """Delete the checkpoint of a run that is finished; another run's stays."""
    with suppress(InputError):
        if read(path, identity):
            path.unlink()


def states(players: object) -> dict[str, dict[str, dict]]:
    """The state dicts of the players' networks and optimisers, by name, as a checkpoint holds them."""
    parts = {"networks": players.networks, "optimizers": players.optimizers}
    return {
        kind: {name: part.state_dict() for name, part in held.items()}
        for kind, held in parts.items()
    }


def resume(
    state: Mapping[str, object], players: object, device: torch.device, path: Path
) -> tuple[int, list, list]:
    """Load what ``read`` gave into players: (step, history, losses since its last row).

    Raises InputError when its networks are of other shapes.
    """
    if state["source"] != source_hash():
        print(f"{path} was written by other source code; going on from it", file=sys.stderr)
    try:
        for kind, held in states(players).items():
            for name in held:
                getattr(players, kind)[name].load_state_dict(state[kind][name])
        pending = [
            {name: loss.to(device) for name, loss in losses.items()} for losses in state["pending"]
        ]
        return state["step"], state["history"], pending
    except (RuntimeError, ValueError, KeyError, AttributeError) as err:
        raise InputError(
            f"{path}: does not fit this version's networks ({first_line(err)}); set it aside by --restart"
        ) from err


def require_finite(
    players: object, pending: Sequence[Mapping[str, torch.Tensor]], step: int, checkpoint: Path
) -> None:
    """Raise InputError when a loss since the last row, a weight, a statistic or an optimiser's state is inf or nan."""
    found, held = states(players), {}
    for losses in pending:
        for name, loss in losses.items():
            held.setdefault(name, []).append(loss)
    for name, state in found["optimizers"].items():
        held[name] = list(found["networks"][name].values())
        held[f"{name}'s optimizer"] = [v for part in state["state"].values() for v in part.values()]
    tensors = [
        (name, value) for name, values in held.items() for value in values if torch.is_tensor(value)
    ]
    device = next(players.networks["generator"].parameters()).device
    finite = torch.stack(
        [value.isfinite().all().to(device) for _, value in tensors]
    ).tolist()  # the one wait for a GPU
    wrong = dict.fromkeys(name for (name, _), fine in zip(tensors, finite, strict=True) if not fine)
    if wrong:
        kept = f"; {checkpoint} holds the last good step" if checkpoint.is_file() else ""
        raise InputError(
            f"training diverged at step {step} (not finite: {', '.join(wrong)}); lower the learning rate{kept}"
        )


def finish(
    folder: Path, identity: Identity, players: object, history: Sequence[Mapping[str, float]]
) -> None:
    """Write ``history.csv`` and the players' weights; another run's get names of their own, with a hash in them, before."""
    final = folder / "model.safetensors"
    if final.is_file() and (other := identity.difference(read_metadata(final))):
        key = sha256(final)[:12]
        for path in (folder / "history.csv", folder / "critic.safetensors", final):
            kept = set_aside(path, key) if path.is_file() else path
        print(
            f"{final}: another run's weights were there and are kept as {kept.name}; {other}",
            file=sys.stderr,
        )
    names = list(dict.fromkeys(name for row in history for name in row))
    with (
        atomic(folder / "history.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history
        )
    for name, network in reversed(
        players.networks.items()
    ):  # the generator last: its file says that all is done
        state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        path = final if name == "generator" else folder / f"{name}.safetensors"
        save_weights(state, path, {**identity.facts, "source": source_hash()})
