"""Patch stores: the stream that was written, files of others, and refusal of what is damaged or cut off."""

import itertools
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file

from srlib import data, systems
from srlib.core.paths import InputError
from srlib.systems import training
from srlib.training.examples import PatchDataset
from srlib.training.store import PatchStore, write_store

SMOKE = systems.get("recnn_x2x3", "smoke").changed(
    patch_size=9, stride=7, border=(2, 3, 0), samples=20, n_train=3
)


@pytest.fixture
def dataset(cohort) -> PatchDataset:
    return SMOKE.examples.open(data.read_manifest(cohort, "train"), SMOKE.pairs)


@pytest.fixture
def store(dataset, tmp_path) -> Path:
    return write_store(dataset, tmp_path / "new" / "patches.h5", progress=False)


def take(source, seed, start, count):
    source.seed = seed
    with closing(iter(source.stream(start))) as stream:
        return list(itertools.islice(stream, count))


def test_a_store_gives_the_patches_that_memory_gives(dataset, store):
    assert len(dataset.items) == len(PatchStore(store).items) == 6  # three subjects, two factors
    for start in (0, 5, 130):
        for one, other in zip(
            take(dataset, 3, start, 40), take(PatchStore(store), 3, start, 40), strict=True
        ):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_others_can_read_it(dataset, store):
    with h5py.File(store) as file:
        assert set(file) == {"data", "label"}
        assert file["data"].shape == file["label"].shape == (120, 1, 9, 9, 9)
        assert file["data"].dtype == np.float32 and file["data"].chunks[0] == 16
        given, truth = dataset.read(0, dataset.grid(0)[7])
        assert np.array_equal(file["data"][7], given) and np.array_equal(file["label"][7], truth)


@pytest.mark.parametrize("mixed", [True, False])
def test_training_from_a_store_gives_the_same_weights(cohort, dataset, store, tmp_path, mixed):
    subjects, smoke = data.read_manifest(cohort, "train"), SMOKE.changed(mixed=mixed)
    options = {"device": "cpu", "progress": False}
    direct = training.train(smoke, subjects, [], tmp_path / "direct", **options)
    stored = training.train(smoke, [], [], tmp_path / "stored", store=store, **options)
    one, other = load_file(direct), load_file(stored)
    assert all(np.array_equal(one[k], other[k]) for k in one)
    with pytest.raises(
        InputError, match=r"expects patches \(C, x, y, z\) of \(2, 9, 9, 9\), got \(1, 9, 9, 9\)"
    ):
        multi = systems.get("recnn_multi", "smoke").changed(patch_size=9)
        training.train(multi, [], [], tmp_path / "multi", store=store, **options)


def test_files_of_others_are_read(tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        for name, values in (("data", np.arange(40 * 2 * 27.0)), ("label", np.arange(40 * 27.0))):
            shape = (40, -1, 3, 3, 3)
            file.create_dataset(
                name, data=values.reshape(shape), maxshape=(None, *values.reshape(shape).shape[1:])
            )
    store = PatchStore(tmp_path / "theirs.h5")
    assert len(store.items) == 1 and len(store.grid(0)) == 40
    given, truth = store.read(0, 39)
    assert given.shape == (2, 3, 3, 3) and truth.shape == (1, 3, 3, 3) and given.dtype == np.float32
    assert given[0, 0, 0, 0] == 39 * 54 and truth[0, 2, 2, 2] == 40 * 27 - 1


def test_random_patches_are_not_stored(cohort, tmp_path):
    experiment = systems.get("mdcsrn_res", "smoke")
    dataset = experiment.examples.open(data.read_manifest(cohort, "train"), experiment.pairs)
    with pytest.raises(InputError, match="examples are new ones all the time"):
        write_store(dataset, tmp_path / "p.h5")


def test_an_interrupted_write_leaves_nothing(dataset, tmp_path, monkeypatch):
    reads = itertools.count()
    read = PatchDataset.read

    def stop(self, index, place):
        if next(reads) == 50:
            raise KeyboardInterrupt
        return read(self, index, place)

    monkeypatch.setattr(PatchDataset, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        write_store(dataset, tmp_path / "patches.h5", progress=False)
    assert not list(tmp_path.iterdir())


LIMITS = (0, 1000, 100_000, 380_000)  # bytes


def test_a_full_disk_is_one_line(cohort, tmp_path):
    """Without a crash of HDF5, which cannot close what it could not write; a process for each limit."""
    code = (
        "import os, resource, sys; import srlib.systems.training, torch._dynamo; from srlib.cli.commands import main\n"
        "sys.argv = sys.argv[1:]\n"
        f"for limit in {LIMITS}:\n"
        "    if not (child := os.fork()):\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); main()\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    (tmp_path / "out").mkdir()
    words = ["store", "recnn_x2", "--profile", "smoke", "--cohort", cohort, "--out"]
    words.append(tmp_path / "out" / "p.h5")
    done = subprocess.run(
        [sys.executable, "-c", code, "srlib", *map(str, words)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["1"] * len(LIMITS) and "Traceback" not in done.stderr
    said = re.findall(r"^error: cannot write ", done.stderr.replace("\r", "\n"), re.MULTILINE)
    assert len(said) == len(LIMITS)
    assert not list((tmp_path / "out").iterdir())


def test_nothing_that_is_there_is_replaced(dataset, tmp_path):
    for path in (tmp_path / "mine.csv", tmp_path):
        (tmp_path / "mine.csv").write_text("mine")
        with pytest.raises(InputError, match="exists; --force replaces it"):
            write_store(dataset, path, progress=False)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
    assert (
        len(
            PatchStore(
                write_store(dataset, tmp_path / "mine.csv", progress=False, force=True)
            ).items
        )
        == 6
    )


def make(
    path, data=(8, 1, 3, 3, 3), label=(8, 1, 3, 3, 3), written=8, dtype=np.float32, **attributes
):
    with h5py.File(path, "w") as file:
        for name, shape in (("data", data), ("label", label)):
            part = file.create_dataset(name, shape, dtype, chunks=(2, *shape[1:]))
            part[:written] = 1
        file.attrs.update(attributes)


BAD = {
    "nothing in it": lambda p: h5py.File(p, "w").close(),
    "not HDF5": lambda p: p.write_bytes(b"\x89HDF" + bytes(1000)),
    "pairs that do not match": lambda p: make(p, label=(7, 1, 3, 3, 3)),
    "other patch sizes": lambda p: make(p, label=(8, 1, 4, 3, 3)),
    "two labels": lambda p: make(p, label=(8, 2, 3, 3, 3)),
    "four axes": lambda p: make(p, data=(8, 3, 3, 3), label=(8, 3, 3, 3)),
    "whole numbers": lambda p: make(p, dtype=np.int16),
    "half written": lambda p: make(p, written=4),
    "items beyond its rows": lambda p: make(p, items=[8, 1]),
    "items that are text": lambda p: make(p, items="many"),
    "negative items": lambda p: make(p, items=[9, -1]),
    "cut off": lambda p: (make(p), p.write_bytes(p.read_bytes()[:-500])),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_stores_are_refused_in_one_line(tmp_path, case):
    BAD[case](tmp_path / "bad.h5")
    with pytest.raises(InputError, match=r"bad\.h5") as error:
        PatchStore(tmp_path / "bad.h5")
    assert "\n" not in str(error.value)


def test_data_in_other_files_are_refused(tmp_path):
    make(tmp_path / "whole.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["data"] = h5py.ExternalLink("whole.h5", "/data")
        file["label"] = h5py.SoftLink("/data")
    layout = h5py.VirtualLayout((8, 1, 3, 3, 3), np.float32)
    layout[:] = h5py.VirtualSource(tmp_path / "whole.h5", "data", (8, 1, 3, 3, 3))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        for name in ("data", "label"):
            file.create_virtual_dataset(name, layout)
    (tmp_path / "raw").write_bytes(bytes(8 * 27 * 4))
    with h5py.File(tmp_path / "external.h5", "w") as file:
        for name in ("data", "label"):
            file.create_dataset(
                name, (8, 1, 3, 3, 3), np.float32, external=[(str(tmp_path / "raw"), 0, 8 * 27 * 4)]
            )
    for name in ("link", "virtual", "external"):
        with pytest.raises(InputError, match=r"other files|elsewhere"):
            PatchStore(tmp_path / f"{name}.h5")


def test_a_store_of_another_task_is_refused(dataset, tmp_path):
    path = write_store(dataset, tmp_path / "p.h5", progress=False)
    other = SMOKE.changed(task="gaussian_x3")
    with pytest.raises(InputError, match=r"its patches were made by .*gaussian_x2"):
        training.train(other, [], [], tmp_path / "out", store=path, progress=False)


def test_a_store_of_the_coarse_grid_trains(cohort, tmp_path):
    experiment = systems.get("srgan3d", "smoke")
    subjects = experiment.examples.select(data.read_manifest(cohort, "train"))
    path = write_store(
        experiment.examples.open(subjects, experiment.pairs), tmp_path / "p.h5", progress=False
    )
    made = training.train(experiment, [], [], tmp_path / "out", store=path, progress=False)
    assert made.is_file()
