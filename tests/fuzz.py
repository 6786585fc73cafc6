"""Read damaged files by every reader of the package.

    python -m tests.fuzz --count 10000              # so many files, shared by all readers
    python -m tests.fuzz --reader png --seed 17 --count 1   # one file again
    python -m tests.fuzz --write                    # and put the table into docs/reliability.md

A file is read, or refused by an InputError of one line that names it, within SECONDS of a core and
with MB more than the scan that is returned takes. The exit code is 1 when one was not.
"""

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import h5py
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.io import savemat

from srlib import systems
from srlib.core import isolated
from srlib.core.paths import InputError, sha256
from srlib.data import convert, layouts, manifest
from srlib.enhance import jobs
from srlib.evaluation import certificate, claims, results
from srlib.models import foreign
from srlib.models.weights import save_weights
from srlib.scans import formats, headers
from srlib.scans.matlab import read_matlab
from srlib.scans.volume import Volume, save_scan
from srlib.synthesis import priors
from srlib.systems.published import load_published
from srlib.systems.trained import load_network
from srlib.training import checkpoints
from srlib.training.store import PatchStore
from tests import mutations as m
from tests.models import test_foreign as foreign_files

SECONDS, MB, CHARACTERS = 2, 1000, 1000
HANG = 60  # seconds after which a reader is stopped
ODD_NAME = "a\n\"'<>&"  # of a folder
ROOT = Path(__file__).parents[1]
MR = get_testdata_file("MR_small.dcm")


class Reader(NamedTuple):
    """``make`` fills a folder and returns what ``read`` takes; the files of ``damage`` change."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    ways: tuple[Callable[[Path, random.Random], None], ...]
    damage: str = "*"


class Ended(NamedTuple):
    """How the reading of a file ended; ``wrong`` says how it broke the rule."""

    read: bool
    seconds: float
    mb: float
    wrong: str = ""


def _image(folder: Path, name: str = "s.nii.gz") -> Path:
    rng = np.random.default_rng(0)
    return save_scan(Volume(rng.random((6, 5, 4)) * 900, np.eye(4)), folder / name)


def _record(folder: Path) -> Path:
    old = headers.read_header(_image(folder))
    header = old.derive(np.eye(4), (6, 5, 4), description="d", record={"srlib": "1", "a": [1, 2]})
    return save_scan(Volume(np.ones((6, 5, 4)), np.eye(4)), folder / "s.nii", header=header)


def _png(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 65535, (20, 30), dtype=np.uint16)
    Image.fromarray(pixels).save(folder / "s.png")
    return folder / "s.png"


def _npy(folder: Path) -> Path:
    np.save(folder / "prior_means_t1.npy", np.ones((2, 5)))
    np.save(folder / "prior_stds_t1.npy", np.ones((2, 5)))
    return folder / "prior_means_t1.npy"


def _matlab(folder: Path) -> Path:
    array = np.random.default_rng(0).random((6, 5, 4))
    savemat(folder / "s.mat", {"out_final": array}, do_compression=True)
    return folder / "s.mat"


def _dicom(folder: Path) -> Path:
    shutil.copy(MR, folder / "s.dcm")
    return folder / "s.dcm"


def _series(folder: Path) -> Path:
    image = pydicom.dcmread(MR)
    image.Rows, image.Columns, image.PixelData = 8, 8, image.PixelData[:128]
    for n in range(3):
        image.ImagePositionPatient = [0, 0, n]
        image.save_as(folder / f"{n}.dcm")
    return folder


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def _beside(text: str) -> Callable[[Path], Path]:
    """A table that names the scan beside it."""

    def make(folder: Path) -> Path:
        _image(folder)
        return _text("table.csv", text)(folder)

    return make


def _tracked(name: str, lines: int) -> Callable[[Path], Path]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return _text("table.csv", "".join(text.splitlines(True)[:lines]))


def _metrics(folder: Path) -> Path:
    key = dict.fromkeys(results.METRIC_KEY, "a")
    results.record_metrics(folder, [{**key, "subject": n, "value": 1} for n in "bc"])
    return folder


def _runs(folder: Path) -> Path:
    row = ",".join("a" for _ in results.RUN_COLUMNS)
    _text("runs.csv", f"{','.join(results.RUN_COLUMNS)}\n{row}\n")(folder)
    return folder


def _deeplesion(folder: Path) -> Path:
    row = '000001_01_01_109.png,1,"0.8, 0.8, 5","512, 512",0\n'
    head = "File_name,Train_Val_Test,Spacing_mm_px_,Image_size,Possibly_noisy\n"
    _text("DL_info.csv", head + row)(folder)
    return folder


TINY = systems.get("mdcsrn_res", "smoke").changed(
    model_args={"blocks": 1, "units": 1, "residual": True}
)


def _weights(folder: Path) -> Path:
    state = TINY.network.build().state_dict()
    save_weights(state, folder / "model.safetensors", {"experiment": TINY.to_json(), "seed": 0})
    return folder / "model.safetensors"


def _players() -> SimpleNamespace:
    network = TINY.network.build()
    return SimpleNamespace(
        networks={"generator": network},
        optimizers={"generator": torch.optim.Adam(network.parameters())},
    )


IDENTITY = checkpoints.Identity({"experiment": TINY.to_json(), "seed": 0})


def _checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    checkpoints.save(path, IDENTITY, {"step": 1, "history": [], "pending": []}, _players())
    return path


def _resume(path: Path) -> None:
    state = checkpoints.read(path, IDENTITY)
    checkpoints.resume(state, _players(), torch.device("cpu"), path)


def _keras(folder: Path) -> Path:
    return foreign_files.make(folder / "SynthSR.h5", foreign_files.theirs(1, 2))


def _caffe(folder: Path) -> Path:
    shapes = [(2, 1, 3, 3, 3), (1, 2, 3, 3, 3)]
    layers = (
        foreign_files.layer(f"conv{n}", *map(foreign_files.blob, (np.ones(s), np.ones(s[0]))))
        for n, s in enumerate(shapes, 1)
    )
    (folder / "net.caffemodel").write_bytes(foreign_files.message(1, b"net") + b"".join(layers))
    return folder / "net.caffemodel"


def _pytorch(folder: Path) -> Path:
    torch.save({"conv0.weight": torch.ones(2, 1, 3, 3, 3)}, folder / "net.pth")
    return folder / "net.pth"


def _store(folder: Path) -> Path:
    with h5py.File(folder / "patches.h5", "w") as file:
        for name in ("data", "label"):
            file.create_dataset(
                name, data=np.ones((4, 1, 6, 6, 6), "f4"), chunks=(2, 1, 6, 6, 6), maxshape=(None, 1, 6, 6, 6)
            )  # fmt: skip
        file.attrs["items"] = [2, 2]
    return folder / "patches.h5"


def _patches(path: Path) -> None:
    store = PatchStore(path)
    try:
        for row in range(min(store.shapes[0][0], 4)):
            store.read(0, row)
    finally:
        store.close()


def _certificate(folder: Path) -> Path:
    _text("metrics.csv", "a\n")(folder)
    listed = [{"file": "metrics.csv", "comment": "rows", "sha256": sha256(folder / "metrics.csv")}]
    facts = {"commit": "a", "processor": "b", "threads": 1, "manifest": listed}
    _text("certificate.json", json.dumps(facts))(folder)
    return folder


def _odd(kind: str) -> Reader:
    """Each scan of its own: another type of voxels, shape, affine, header."""

    def change(path: Path, rng: random.Random) -> None:
        path.unlink()
        m.odd_scan(path.parent, rng.getrandbits(31), kind)

    def read(path: Path) -> Volume:
        (scan,) = (p for p in path.iterdir() if p.suffix not in (".img", ".mat"))
        return formats.load_scan(scan)

    return Reader(lambda folder: _image(folder).parent, read, (change,))


RECORDS = "subject,split,t1,mask\n" + "".join(f"s{n},train,s.nii.gz,\n" for n in range(3))
SUMMARY = f"{','.join(jobs.COLUMNS)}\na.nii,enhanced,1,1 1 1,1 1 1,\nb.nii,failed,1,,,no\n"
CLASSES = "label,class,name,side\n0,0,,\n2,1,,left\n41,1,,right\n"
PRIORS = "modality,class,quantity,mean,std\nt1,0,mean,1,1\nt1,0,std,1,1\n"
READERS = {
    **{f"{kind} scan": _odd(kind) for kind in m.TYPES},
    "npz parts": Reader(
        lambda f: np.savez(f / "s.npz", np.ones((4, 3, 2))) or f / "s.npz",
        formats.load_scan,
        (m.archive,),
    ),
    "npy priors": Reader(_npy, priors.read_priors, (m.raw,)),
    "png": Reader(_png, formats.load_scan, (m.raw, m.chunks, m.chunks)),
    "matlab": Reader(_matlab, lambda p: read_matlab(p, "out_final", 3), (m.raw, m.matlab)),
    "dicom file": Reader(_dicom, formats.load_scan, (m.raw, m.tags, m.tags)),
    "dicom series": Reader(_series, formats.load_scan, (m.raw, m.tags, m.tags)),
    "record in a scan": Reader(_record, headers.read_record, (m.raw,), "s.nii"),
    "manifest": Reader(_beside(RECORDS), manifest.read_manifest, (m.cells, m.raw), "table.csv"),
    "scans of a manifest": Reader(_beside(RECORDS), manifest.read_manifest, (m.raw,), "s.nii.gz"),
    "table of cohorts": Reader(
        _beside("system,cohort\nrecnn,s.nii.gz\n"), manifest.read_cohorts, (m.cells,), "table.csv"
    ),
    "list of subjects": Reader(
        _beside("id,person,split\ns,s,train\n"),
        lambda p: layouts.write_manifest("flat", p.parent, p.with_name("o.csv"), subjects=p),
        (m.cells, m.raw),
        "table.csv",
    ),
    "classes": Reader(_text("c.csv", CLASSES), priors.read_classes, (m.cells, m.raw)),
    "priors": Reader(_text("p.csv", PRIORS), priors.read_priors, (m.cells, m.raw)),
    "summary.csv": Reader(
        lambda f: _text("summary.csv", SUMMARY)(f).parent, jobs.read_summary, (m.cells, m.raw)
    ),
    "metrics.csv": Reader(_metrics, results.read_metrics, (m.cells, m.raw), "**/*.csv"),
    "runs.csv": Reader(_runs, results.read_runs, (m.cells, m.raw)),
    "claims": Reader(_tracked("csv/claims.csv", 4), claims.ledger, (m.cells, m.raw)),
    "networks": Reader(_tracked("csv/study.csv", 4), claims.networks, (m.cells, m.raw)),
    "evidence": Reader(
        _tracked("results/study/evidence.csv", 9), claims.read_evidence, (m.cells, m.raw)
    ),
    "deeplesion's table": Reader(_deeplesion, lambda p: [*convert.deeplesion(p)], (m.cells, m.raw)),
    "safetensors": Reader(_weights, load_network, (m.raw, m.settings, m.settings)),
    "checkpoint.pt": Reader(_checkpoint, _resume, (m.raw, m.archive)),
    "keras hdf5": Reader(_keras, load_published, (m.raw, m.hdf5, m.hdf5)),
    "caffemodel": Reader(_caffe, load_published, (m.raw,)),
    "pytorch pth": Reader(_pytorch, foreign.read_foreign, (m.raw, m.archive)),
    "patch store": Reader(_store, _patches, (m.raw, m.hdf5, m.hdf5)),
    "certificate.json": Reader(_certificate, certificate.check, (m.raw, m.values), "*.json"),
}


def _memory(what: str) -> float:
    """MB of this process: ``VmRSS`` now, or ``VmHWM``, the most since it was reset; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.search(rf"{what}:\s*(\d+)", status)[1]) / 1000


@contextmanager
def _measured() -> Iterator[SimpleNamespace]:
    found = SimpleNamespace(seconds=0.0, mb=0.0)
    CHILD.clear()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, began = _memory("VmRSS"), time.process_time()
    try:
        yield found
    finally:
        child = CHILD[0] if CHILD else None
        found.seconds = time.process_time() - began
        found.mb = max(_memory("VmHWM") - before, 0)
        if child:
            found.seconds += child.ru_utime + child.ru_stime
            found.mb = max(found.mb, child.ru_maxrss / 1000 - before)


CHILD: list = []  # the costs of the last forked reader


def _fork(command: list, *, timeout: float, **_: object) -> SimpleNamespace:
    """``subprocess.run`` for readers of foreign files, without the start of Python."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _be_reader(command, out.fileno(), err.fileno())
        _, status, costs = os.wait4(child, 0)
        CHILD[:] = [costs]
        for file in (out, err):
            file.seek(0)
        if status:
            raise subprocess.CalledProcessError(status, command, out.read(), err.read())
        return SimpleNamespace(stdout=out.read())


def _be_reader(command: list, out: int, err: int) -> None:
    faulthandler.disable()  # a library's crash is an end like others here
    os.dup2(out, 1)
    os.dup2(err, 2)
    try:
        sys.argv, sys.stdout = [*map(str, command[2:])], os.fdopen(1, "w", closefd=False)
        importlib.import_module(command[2]).main()
        sys.stdout.flush()
        os._exit(0)
    except SystemExit as end:
        os.write(2, str(end.code).encode(errors="replace"))
    finally:
        os._exit(1)


def attempt(name: str, valid: Path, given: Path, seed: int) -> Ended:
    """Damage a copy of a valid folder by a seed, and read it."""
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / (ODD_NAME if rng.random() < 0.05 else "case")
        shutil.copytree(valid, folder)
        target = rng.choice(sorted(p for p in folder.glob(reader.damage) if p.is_file()))
        try:
            rng.choice(reader.ways)(target, rng)
        except Exception:  # a library that does not write such a thing
            m.raw(target, rng) if target.exists() else target.write_bytes(rng.randbytes(300))
        return _judged(reader, folder / given)


def _judged(reader: Reader, path: Path) -> Ended:
    wrong, result = "", None
    with _measured() as costs, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = reader.read(path)
            refused = False
        except InputError as err:
            refused, line = True, str(err)
            names = " ".join(path.name.split())
            if "\n" in line or len(line) > CHARACTERS or names not in line:
                wrong = f"not a line of {CHARACTERS} characters that names the file: {line[:300]!r}"
        except BaseException as err:
            refused, wrong = True, f"{type(err).__name__}: {str(err)[:300]!r}"
    needs = 2 * result.data.nbytes / 1e6 if isinstance(result, Volume) else 0
    if costs.seconds > SECONDS or costs.mb > MB + needs:
        wrong = wrong or f"{costs.seconds:.1f} s, {costs.mb:.0f} MB"
    return Ended(not refused, costs.seconds, costs.mb, wrong)


def _work(name: str, valid: Path, given: Path, seeds: list[int], pipe) -> None:
    with open(os.devnull, "w") as nowhere:  # what C libraries say
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # so that no file takes the machine down
    isolated.subprocess = SimpleNamespace(**vars(subprocess) | {"run": _fork})
    for seed in seeds:
        pipe.send(attempt(name, valid, given, seed))


def read_many(name: str, seeds: list[int]) -> dict[int, Ended]:
    """How a reader ended by seed, in a process of its own: what crashes or hangs is seen."""
    context, found = multiprocessing.get_context("fork"), {}
    with tempfile.TemporaryDirectory() as place:
        valid = Path(place) / "valid"
        valid.mkdir()
        given = READERS[name].make(valid).relative_to(valid)
        while left := seeds[len(found) :]:
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(name, valid, given, left, theirs))
            worker.start()
            theirs.close()
            for seed in left:
                try:
                    found[seed] = ours.recv() if ours.poll(HANG) else Ended(False, HANG, 0, "hangs")
                except EOFError:
                    worker.join()
                    found[seed] = Ended(False, 0, 0, f"crashed, exit code {worker.exitcode}")
                if found[seed].wrong.startswith(("hangs", "crashed")):
                    break
            worker.kill()
            worker.join()
    return found


def fuzz(names: list[str], count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Rows of the table, one for each reader, and a line for each file that broke the rule."""
    rows, broken = [], []
    for name in names:
        share = max(count // len(names), 1)
        ended = read_many(name, [*range(seed, seed + share)])
        read = sum(e.read for e in ended.values())
        slowest, most = (
            max(getattr(e, what) for e in ended.values()) for what in ("seconds", "mb")
        )
        rows.append(f"| {name} | {read} | {share - read} | {slowest:.2f} | {most:.0f} |")
        print(rows[-1], flush=True)
        lines = [
            f"--reader '{name}' --seed {s} --count 1: {e.wrong}"
            for s, e in ended.items()
            if e.wrong
        ]
        print(*lines[:20], sep="\n", end="\n" * bool(lines), flush=True)
        broken += lines
    return rows, broken


HEAD = "| reader | read | refused | slowest, s | most memory, MB |\n| --- | --: | --: | --: | --: |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", nargs="+", choices=[*READERS], default=[*READERS])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    print(HEAD)
    rows, broken = fuzz(given.reader, given.count, given.seed)
    if given.write and not broken:
        from recipes.pages import put

        put("docs/reliability.md", "fuzz", "\n".join([HEAD, *rows]))
    print(f"{len(broken)} files broke the rule")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
