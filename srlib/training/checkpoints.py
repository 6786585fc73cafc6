"""Identify runs of training; write and read their checkpoints and results."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from srlib.core.paths import InputError, digest, explained, sha256, unspoilt, write_file
from srlib.data.manifest import Subject
from srlib.models.weights import read_metadata, save_weights
from srlib.scans.formats import fingerprint
from srlib.training.games import Players

SHOWN = 4  # differences between two runs, at most, in one line


def contents(
    subjects: Sequence[Subject], columns: Callable[[Subject], Sequence[str]]
) -> dict[str, dict[str, str]]:
    """Fingerprints of all files that training reads of subjects, by their names and ``columns``.

    Raises InputError for a file that is missing or cannot be read, and for two subjects of one
    name.
    """
    found = {}
    for subject in subjects:
        if subject.name in found:
            raise InputError(f"two subjects are called {subject.name}; give each a name of its own")
        files = {column: subject.file(column) for column in columns(subject)}
        found[subject.name] = {column: fingerprint(file) for column, file in files.items()}
    return found


@dataclass(frozen=True)
class Identity:
    """The facts that identify a run; ``renew`` adds later numbers to an experiment's JSON."""

    facts: Mapping[str, object]
    renew: Callable[[str], str] = str
    wrote: set[str] = field(default_factory=set)  # hashes of its own checkpoints

    def difference(self, found: Mapping[str, object]) -> str:
        """The differences from the run with the facts ``found``; empty when there are none.

        A number that experiments did not have when the file was written counts as its default.
        """
        old, new = (dict(self._leaves(facts)) for facts in (found, self.facts))
        names = [name for name in {**new, **old} if old.get(name, ...) != new.get(name, ...)]
        said = [f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in names]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(said[:SHOWN]) + more

    def _leaves(self, value, name=""):
        """Each fact with its whole name; those of the experiment's JSON stand beside the others."""
        if name == "experiment" and isinstance(value, str):
            with suppress(InputError):
                value, name = json.loads(self.renew(value)), ""
        if not isinstance(value, Mapping):
            yield name, value
            return
        for key, part in value.items():
            yield from self._leaves(part, f"{name} {key}".strip())


def _short(value):
    """A fact in few letters; a hash has eight."""
    text = "none" if value in (None, "") else str(value)
    return text[:8] if len(text) == 64 else text[:60]


def set_aside(path: Path, key: str = "") -> Path:
    """Add ``key``, by default a hash of the content, to a file's name; return its new path."""
    kept = path.with_stem(f"{path.stem}-{key or sha256(path)[:12]}")
    with explained(path, f"cannot be renamed to {kept.name}", "rename or remove it"):
        return path.replace(kept)


def save(path: Path, identity: Identity, progress: Mapping[str, object], players: Players) -> None:
    """Replace the run's checkpoint by its progress and the players' states.

    Raises InputError, and leaves what is there, when another run wrote it meanwhile or the system
    refuses.
    """
    if path.is_file() and sha256(path) not in identity.wrote:
        read(path, identity)
    content = io.BytesIO()  # in memory first, since torch makes other errors of a full disk
    torch.save({"identity": identity.facts, **progress, **states(players)}, content)
    write_file(path, content.getbuffer())
    identity.wrote.add(digest(content.getvalue()))


def read(path: Path, identity: Identity, restart: bool = False) -> dict | None:
    """What ``save`` wrote for this run; None when there is no file. No code in it is run.

    With ``restart`` any file is set aside. Raises InputError, and leaves the file as it is, when it
    is damaged or another run's.
    """
    if not path.is_file():
        return None
    if restart:
        print(f"{path} is set aside as {set_aside(path).name}", file=sys.stderr)
        return None
    advice = "delete it to start again, or set it aside by --restart"
    with explained(path, "damaged checkpoint", advice):
        state = torch.load(unspoilt(path), map_location="cpu", weights_only=True)
        other = identity.difference(state["identity"])
    if other:
        raise InputError(
            f"{path} is another run's: {other}; "
            "train in another folder, or set it aside by --restart (restart=True)"
        )
    return state


def remove(path: Path, identity: Identity) -> None:
    """Delete the checkpoint of a run that is finished; another run's stays."""
    with suppress(InputError):
        if read(path, identity):
            path.unlink()


def states(players: Players) -> dict[str, dict[str, dict]]:
    """The state dicts of the players' networks and optimisers, by kind and name."""
    return {
        kind: {name: part.state_dict() for name, part in getattr(players, kind).items()}
        for kind in ("networks", "optimizers")
    }


def resume(
    state: dict | None, players: Players, device: torch.device, path: Path
) -> tuple[int, list, list]:
    """Load what ``read`` returned into players: (step, history, losses since its last row).

    A new run begins with nothing: (0, [], []). Raises InputError when its networks have other
    shapes.
    """
    if not state:
        return 0, [], []
    with explained(path, "does not fit this version's networks", "set it aside by --restart"):
        for kind, held in states(players).items():
            for name in held:
                getattr(players, kind)[name].load_state_dict(state[kind][name])
        pending = [
            {name: loss.to(device) for name, loss in losses.items()} for losses in state["pending"]
        ]
        return state["step"], state["history"], pending


def require_finite(
    players: Players, pending: Sequence[Mapping[str, torch.Tensor]], step: int, checkpoint: Path
) -> None:
    """Raise InputError when a pending loss, a weight or an optimiser's state is not finite."""
    found = states(players)
    held = [(name, loss) for losses in pending for name, loss in losses.items()]
    for name, state in found["optimizers"].items():
        held += [(name, value) for value in found["networks"][name].values()]
        for part in state["state"].values():
            held += [(f"{name}'s optimizer", value) for value in part.values()]
    names, values = zip(*((name, v) for name, v in held if torch.is_tensor(v)), strict=True)
    device = next(players.networks["generator"].parameters()).device
    finite = torch.stack([value.isfinite().all().to(device) for value in values])
    fine = finite.tolist()  # the one wait for a GPU
    if wrong := dict.fromkeys(name for name, good in zip(names, fine, strict=True) if not good):
        kept = f"; {checkpoint} holds the last good step" if checkpoint.is_file() else ""
        raise InputError(
            f"training diverged at step {step} (not finite: {', '.join(wrong)}); "
            f"lower the learning rate{kept}"
        )


def finish(
    folder: Path, identity: Identity, players: Players, history: Sequence[Mapping[str, float]]
) -> None:
    """Write ``history.csv`` and the players' weights; first rename another run's, by a hash."""
    final = folder / "model.safetensors"
    if final.is_file() and (other := identity.difference(read_metadata(final))):
        key = sha256(final)[:12]
        for path in (folder / "history.csv", folder / "critic.safetensors", final):
            kept = set_aside(path, key) if path.is_file() else path
        print(
            f"{final}: another run's weights were there and are kept as {kept.name}; {other}",
            file=sys.stderr,
        )
    rows = [{k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history]
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n")
    write_file(folder / "history.csv", text)
    # the generator last: its file says that all is done
    for name, network in reversed(players.networks.items()):
        path = final if name == "generator" else folder / f"{name}.safetensors"
        save_weights(network.state_dict(), path, identity.facts)
