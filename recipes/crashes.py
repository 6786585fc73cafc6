"""Kill, starve and lock out the commands that write, and look at what they leave.

    python recipes/crashes.py [--count 20] [--seed 0] [--only train store] [--write]

A trial is a command on a few small scans, disturbed once. Then every file under a final name must
open, the same command must go on without help, and its files must be those of an undisturbed run,
with no temporary file beside them. Commands run in forks of this process, which has imported what
they need: all moments fall into their own work. ``--write`` puts the table of what was right, of so
many, into docs/reliability.md. The exit code is 1 when something was wrong.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lightning_fabric  # noqa: F401 - so that forks need not import it
import numpy as np
import pages
import papermill  # noqa: F401
import torch

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import unspoilt
from srlib.core.tables import read_table
from srlib.evaluation import results, runs  # noqa: F401
from srlib.models.weights import load_weights, save_weights
from srlib.scans.formats import load_scan
from srlib.scans.volume import Volume, save_scan
from srlib.systems import trained  # noqa: F401
from srlib.training import store

TRIES = 30  # to hit a command before it ends


class Operation(NamedTuple):
    """A command; ``same`` are the patterns of files whose content no disturbance may change."""

    words: list[str | Path]
    same: tuple[str, ...]


class Ended(NamedTuple):
    """The end of a command: its exit code, or the negative signal, and what it printed."""

    code: int
    said: str


def prepare(folder: Path) -> dict[str, Operation]:
    """Make small inputs in a folder; the operations on them, which write into ``OUT``."""
    rng, rows = np.random.default_rng(0), ["subject,split,t1"]
    for n, split in enumerate(("train", "train", "val", "test")):
        scan = Volume(rng.random((34, 33, 32)) * 900, np.eye(4))
        rows.append(f"s{n},{split},{save_scan(scan, folder / f's{n}.nii.gz')}")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "scans").mkdir()
    for n in range(3):
        shutil.copy(folder / f"s{n}.nii.gz", folder / "scans")
    small = {"blocks": 1, "units": 1, "residual": True}
    experiment = systems.get("mdcsrn_res", "smoke").changed(model_args=small)
    state, weights = experiment.network.build().state_dict(), folder / "model.safetensors"
    save_weights(state, weights, {"experiment": experiment.to_json()})
    one, cohort = folder / "s0.nii.gz", ["--cohort", folder / "mine.csv", "--profile", "smoke"]
    enhance, out = ["--weights", weights, "--device", "cpu", "--precision", "32"], "OUT"
    train = ["--set", "network.blocks=1", "--set", "network.units=1", "--device", "cpu"]
    return {
        "enhance a scan": Operation(["enhance", one, f"{out}/sr.nii.gz", *enhance], ("*.nii.gz",)),
        "enhance a folder": Operation(
            ["enhance", folder / "scans", out, *enhance], ("*_sr.nii.gz",)
        ),
        "evaluate": Operation(["evaluate", one, one, "--out", f"{out}/m.csv"], ("m.csv",)),
        "train": Operation(
            ["train", "mdcsrn_res", *cohort, "--out", out, *train], ("model.safetensors",)
        ),
        "store": Operation(["store", "recnn_x2", *cohort, "--out", f"{out}/p.h5"], ("p*",)),
        "degrade": Operation(["degrade", one, f"{out}/lr.nii.gz"], ("lr.nii.gz",)),
        "run": Operation(["run", "01", *cohort], ("*/notebooks/*.ipynb",)),
    }


def start(operation: Operation, out: Path, most: int | None = None) -> tuple[int, int]:
    """Start a command in a fork: its process and where it can be heard; no file over ``most``."""
    ours, theirs = os.pipe()
    words = [str(word).replace("OUT", str(out)) for word in operation.words]
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    code = 70
    try:
        for number in (1, 2):
            os.dup2(theirs, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        os.environ["SRLIB_RESULTS"] = str(out)
        if most is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        main(words)
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, heard: int) -> Ended:
    """Wait for a command."""
    with os.fdopen(heard, errors="replace") as pipe:
        said = pipe.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def opened(path: Path) -> None:
    """Read a file as what it is; any exception for one that is not whole."""
    name = path.name
    if name.endswith(".nii.gz"):
        load_scan(path)
    elif path.suffix == ".safetensors":
        load_weights(path)
    elif path.suffix == ".pt":
        torch.load(unspoilt(path), weights_only=True)
    elif path.suffix == ".h5":
        patches = store.PatchStore(path)
        patches.read(0, patches.shapes[0][0] - 1)
        patches.close()
    elif path.suffix == ".csv":
        read_table(path)
    elif path.suffix in (".json", ".ipynb"):
        json.loads(path.read_text(encoding="utf-8"))
    elif not path.read_text(encoding="utf-8").endswith("\n"):
        raise ValueError("it does not end with a line")


def content(path: Path) -> object:
    """What must be the same: a file's bytes, of a notebook its cells and what they showed."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["source"], cell.get("outputs")) for cell in cells]


def made(operation: Operation, out: Path) -> dict[str, object]:
    """The files of a finished operation whose content counts."""
    found = (path for pattern in operation.same for path in out.glob(pattern))
    return {str(p.relative_to(out)): content(p) for p in found if p.name[0] != "."}


def wrong(operation: Operation, out: Path, reference: dict[str, object]) -> str:
    """What is wrong after a disturbance; empty when all is as it should be."""
    for path in out.rglob("[!.]*"):
        if path.is_file():
            try:
                opened(path)
            except Exception as err:
                return f"{path.name} is not whole: {err}"
    if made(operation, out) != reference:
        again = ended(*start(operation, out))
        if again.code:
            return f"the next start ends with {again.code}: {again.said[-300:]}"
    if (left := made(operation, out)) != reference:
        return (
            f"other files than undisturbed: {[n for n in reference if left.get(n) != reference[n]]}"
        )
    hidden = [path.name for path in out.rglob(".*-*.*")]
    return f"left behind: {hidden}" if hidden else ""


def stopped(number: int) -> Callable:
    """A signal at a random moment: of all, of the second half, or while a file is written."""

    def fault(operation: Operation, out: Path, rng: random.Random, undisturbed: dict) -> str:
        for _ in range(TRIES):
            shutil.rmtree(out)
            out.mkdir()
            child, heard = start(operation, out)
            moment, how = undisturbed["seconds"] * rng.random(), rng.randrange(3)
            until = time.monotonic() + (
                moment if how != 1 else (moment + undisturbed["seconds"]) / 2
            )
            while time.monotonic() < until and not (how == 2 and any(out.rglob(".*-*.*"))):
                time.sleep(0.001)
            time.sleep(rng.random() / 100)
            os.kill(child, number)
            if ended(child, heard).code in (-number, 130):
                return ""
        return "it ended before it was stopped"

    return fault


def full(operation: Operation, out: Path, rng: random.Random, undisturbed: dict) -> str:
    """No file may grow beyond a part of the largest that the command writes."""
    most = int(undisturbed["largest"] * rng.uniform(0.02, 0.95))
    return _refused(ended(*start(operation, out, most)))


def locked(operation: Operation, out: Path, rng: random.Random, undisturbed: dict) -> str:
    """The folder may be read only: for root by a mount, for others by its permissions."""
    with read_only(out):
        said = _refused(ended(*start(operation, out)))
        return said or ("something was written" if any(out.iterdir()) else "")


def _refused(end: Ended) -> str:
    line = end.said.strip().rpartition("\n")[2]
    if end.code != 1 or "Traceback" in end.said:
        return f"no line, but exit code {end.code}: {end.said[-300:]}"
    return "" if line.startswith(("error: ", "0 enhanced", "1 enhanced", "2 enhanced")) else line


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Keep everybody from writing into a folder."""
    if os.geteuid():
        folder.chmod(0o555)
    else:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        folder.chmod(0o755) if os.geteuid() else subprocess.run(["umount", folder], check=True)


FAULTS = {
    "kill -9": stopped(signal.SIGKILL),
    "SIGTERM": stopped(signal.SIGTERM),
    "disk full": full,
    "read-only folder": locked,
}


def undisturbed_run(operation: Operation, out: Path) -> tuple[dict[str, object], dict]:
    """The files of a run that nothing disturbs, its seconds and its largest file."""
    began = time.monotonic()
    end = ended(*start(operation, out))
    if end.code:
        raise RuntimeError(end.said)
    seconds = time.monotonic() - began
    sizes = [p.stat().st_size for p in out.rglob("[!.]*") if p.is_file()]
    return made(operation, out), {"seconds": seconds, "largest": max(sizes)}


def trials(
    name: str,
    operation: Operation,
    faults: dict[str, int],
    seed: int,
    place: Path,
) -> dict[str, int]:
    """How many trials of each fault were right, of so many; a line for each of the others."""
    reference, undisturbed = undisturbed_run(operation, _fresh(place))
    right = dict.fromkeys(faults, 0)
    for fault, number in ((f, n) for f, count in faults.items() for n in range(count)):
        rng = random.Random(f"{name} {fault} {seed + number}")
        out = _fresh(place)
        said = FAULTS[fault](operation, out, rng, undisturbed) or wrong(operation, out, reference)
        right[fault] += not said
        if said:
            print(f"{name}, {fault}, seed {seed + number}: {said}", file=sys.stderr, flush=True)
    return right


def counts(count: int) -> dict[str, int]:
    """The trials of an operation by fault: fewer of what is alike each time."""
    rarely = max(count // 4, 1)
    return {"kill -9": count, "SIGTERM": rarely, "disk full": rarely, "read-only folder": 1}


def _fresh(place: Path) -> Path:
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


def command() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows = [f"| operation | {' | '.join(FAULTS)} |", "| --- |" + " --- |" * len(FAULTS)]
    print(*rows, sep="\n", flush=True)
    fine = True
    with tempfile.TemporaryDirectory() as place:
        operations = prepare(Path(place))
        for name in given.only or operations:
            of = counts(given.count)
            right = trials(name, operations[name], of, given.seed, Path(place))
            cells = [f"{right[fault]}/{of[fault]}" for fault in FAULTS]
            fine &= right == of
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    if given.write:
        pages.put("docs/reliability.md", "crashes", "\n".join(rows))
    sys.exit(not fine)


if __name__ == "__main__":
    command()
