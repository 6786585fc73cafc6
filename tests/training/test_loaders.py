"""The datasets in PyTorch's own loader: whatever its workers, every patch once."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import srlib
from srlib.core.paths import InputError
from srlib.data.manifest import Subject
from srlib.data.pairs import ObservationModel
from srlib.degradations.resolution import GaussianDownsample
from srlib.scans.volume import Volume, save_scan
from srlib.training.streams import Own

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
WORKERS = (0, 1, 2, 4)
SHAPES = [(12, 13, 9), (8, 8, 8), (9, 12, 16)]  # of scans of 8, 1 and 8 patches


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Three small subjects of noise, each with a label map."""
    folder, found = tmp_path_factory.mktemp("scans"), []
    for seed, shape in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        files = {"t1": rng.random(shape), "labels": np.floor(3 * rng.random((24, 24, 24)))}
        files = {
            name: save_scan(Volume(data, np.eye(4)), folder / f"{name}{seed}.nii.gz")
            for name, data in files.items()
        }
        found.append(Subject(f"s{seed}", "train", files))
    (folder / "classes.csv").write_text("label,class\n0,0\n1,1\n2,2\n")
    return found


@pytest.fixture(scope="module")
def classes(subjects):
    return subjects[0].file("labels").parent / "classes.csv"


def bytes_of(batches, count=None):
    """Each example of a loader as bytes, sorted."""
    batches = itertools.islice(batches, count)
    return sorted(
        given.numpy().tobytes() + truth.numpy().tobytes()
        for batch in batches
        for given, truth in zip(*batch, strict=True)
    )


def test_patches_of_a_task_are_a_dataset(subjects):
    dataset = srlib.PatchDataset(subjects, "gaussian_x2", 8)
    assert isinstance(dataset, torch.utils.data.Dataset) and len(dataset) == len([*dataset]) == 17
    given, truth = dataset[16]
    assert given.shape == truth.shape == (1, 8, 8, 8) and given.dtype == truth.dtype == np.float32
    pair = ObservationModel("gaussian_x2").make(subjects[0])
    seen, hr = pair.for_training()
    np.testing.assert_array_equal(dataset[0][0], seen[:, :8, :8, :8])
    np.testing.assert_array_equal(dataset[0][1], hr[None, :8, :8, :8])
    given *= 0  # the caller's own
    assert dataset[16][0].any() and np.array_equal(dataset[-1][1], truth)
    with pytest.raises(IndexError):
        dataset[17]
    with pytest.raises(InputError, match="n_train must be int of at least 1, got 0"):
        srlib.PatchDataset([], "gaussian_x2")
    with pytest.raises(InputError, match="unknown task 'gauss'"):
        srlib.PatchDataset(subjects, "gauss")


def test_a_degradation_of_ones_own_and_a_coarse_input(subjects):
    blur = GaussianDownsample((2, 2, 2), 1.0)
    named, own = (srlib.PatchDataset(subjects, task, 8)[5] for task in ("gaussian_x2", blur))
    assert all(map(np.array_equal, named, own))
    pairs = ObservationModel(blur, coarse=True)
    given, truth = srlib.PatchDataset(subjects[1:2], pairs, 8, stride=4)[0]
    assert given.shape == (1, 4, 4, 4) and truth.shape == (1, 8, 8, 8)
    scan = Volume(np.random.default_rng(0).random((8, 8, 8)), np.eye(4))
    assert np.array_equal(srlib.degrade(scan, blur).data, srlib.degrade(scan, "gaussian_x2").data)


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_workers_deliver_every_patch_once(subjects, sampling):
    """Of the indexed dataset and of an epoch of its stream, also with more workers than scans."""
    settings = {"sampling": sampling, "min_foreground": 0.1, "seed": 3}
    dataset = srlib.PatchDataset(subjects, "gaussian_x2", 8, **settings)
    whole = bytes_of(DataLoader(dataset, batch_size=5))
    epoch = bytes_of(DataLoader(dataset.stream(epochs=1), batch_size=5))
    assert len(whole) == len(epoch) == 17
    assert sampling == "random" or len(set(whole)) == 17  # random places may fall together
    assert (whole == epoch) == (sampling == "grid")
    for workers in WORKERS[1:]:
        loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers)
        assert bytes_of(loader) == whole
        stream = DataLoader(dataset.stream(epochs=1), batch_size=3, num_workers=workers)
        assert bytes_of(stream) == epoch
    later = dataset.stream(19, epochs=1)  # what is left of the second epoch
    assert len(bytes_of(DataLoader(later, num_workers=2))) == 15


def test_synthetic_examples_have_a_length_and_workers_share_them(subjects, classes):
    dataset = srlib.SyntheticDataset(subjects, classes, patch_size=16, length=12, seed=2)
    given, target = dataset[11]
    assert given.shape == (2, 16, 16, 16) and target.shape == (1, 16, 16, 16)
    with pytest.raises(IndexError):
        dataset[12]
    whole = bytes_of(DataLoader(dataset, batch_size=3))
    assert len(set(whole)) == 12
    for workers in WORKERS[1:]:
        assert bytes_of(DataLoader(dataset, batch_size=3, num_workers=workers)) == whole
        stream = DataLoader(dataset.stream(), batch_size=3, num_workers=workers)
        assert bytes_of(stream, 4) == whole
    with pytest.raises(InputError, match="no subject with a label map"):
        srlib.SyntheticDataset([Subject("s", "train", {})], classes)


def test_datasets_and_streams_are_pickled(subjects, classes):
    patches = srlib.PatchDataset(subjects, "gaussian_x2", 8, stride=4, seed=5)
    synthetic = srlib.SyntheticDataset(subjects, classes, patch_size=16, length=3, seed=5)
    for dataset in (patches, synthetic):
        again, stream = pickle.loads(pickle.dumps((dataset, dataset.stream(2))))
        assert len(again) == len(dataset)
        for ours, theirs in (
            (dataset[2], again[2]),
            (next(iter(dataset.stream(2))), next(iter(stream))),
        ):
            assert all(map(np.array_equal, ours, theirs))


@pytest.mark.parametrize(
    "settings",
    [{}, {"per_patch": True}, {"sampling": "random", "min_foreground": 0.5}, {"mixed": False}],
    ids=str,
)
def test_the_patches_of_all_processes_are_those_of_one(subjects, settings, monkeypatch):
    """From the start and from later on; patches that are degraded by themselves are only the process's own."""
    alone, calls = ObservationModel.degrade_alone, []
    monkeypatch.setattr(
        ObservationModel, "degrade_alone", lambda *args: calls.append(1) or alone(*args)
    )
    dataset = srlib.PatchDataset(subjects, "gaussian_x2", 8, seed=3, **settings)
    for start in (0, 8):
        whole = [*dataset.stream(start, 0, epochs=1)]
        calls.clear()
        parts = [[*dataset.stream(start, 0, epochs=1, own=Own(4, n, 2))] for n in (0, 2)]
        assert len(calls) == len(whole) * ("per_patch" in settings)
        for place, patch in enumerate(whole):
            own = parts[place % 4 // 2][place // 4 * 2 + place % 2]
            assert all(map(np.array_equal, own, patch))
        assert sum(map(len, parts)) == len(whole)


def test_a_process_draws_no_synthetic_scan_of_another(subjects, classes):
    dataset = srlib.SyntheticDataset(subjects, classes, patch_size=16, seed=2)
    whole = [*itertools.islice(dataset.stream(4, 0), 8)]
    drawn, draw = [], dataset._draw
    dataset._draw = lambda index: drawn.append(index) or draw(index)
    own = [*itertools.islice(dataset.stream(4, 0, own=Own(4, 2, 2)), 4)]
    for ours, theirs in zip(own, [*whole[2:4], *whole[6:]], strict=True):
        assert all(map(np.array_equal, ours, theirs))
    assert {index % 4 for index in drawn} == {2, 3}
