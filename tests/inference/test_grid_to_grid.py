"""Networks that see the low-resolution grid: patches, whole scans and evaluation lie where they should."""

import itertools
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from srlib import data, metrics, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.data.manifest import Subject, load_mask
from srlib.evaluation import quality
from srlib.models.srgan3d import SRGAN3D
from srlib.models.weights import load_weights
from srlib.scans import intensity, volume
from srlib.scans.volume import Volume, fine_grid, reorient, save_scan
from srlib.systems import training
from srlib.systems.trained import Model, load_model, super_resolve

SMOKE = systems.get("srgan3d_res_subpixel", "smoke")
FACTORS = {"gaussian_x2": (2, 2, 2), "gaussian_x4": (4, 4, 4), "gaussian_1x1x4": (1, 1, 4)}


def make(task: str, **settings) -> Model:
    """A new residual network for a task: it gives the interpolation of its input."""
    network = SRGAN3D(4, 1, FACTORS[task], residual=True, **settings).eval().requires_grad_(False)
    args = {**SMOKE.network.model_args, "factor": FACTORS[task]}
    return Model(network, SMOKE.changed(task=task, model_args=args))


@pytest.mark.parametrize("task", FACTORS)
def test_a_scan_stays_where_it_lay(task, affine, blob, centre_of_mass, to_world):
    factor = FACTORS[task]
    scan = blob((17, 16, 19), affine, sigma=2.2)
    sr = super_resolve(scan, make(task))
    assert sr.shape == tuple(n * f for n, f in zip(scan.shape, factor, strict=True))
    np.testing.assert_allclose(sr.spacing_mm, np.divide(scan.spacing_mm, factor))
    np.testing.assert_allclose(
        to_world(sr.affine, (-0.5,) * 3), to_world(affine, (-0.5,) * 3), atol=1e-9
    )
    moved = np.linalg.solve(affine[:3, :3], centre_of_mass(sr) - centre_of_mass(scan))
    assert np.abs(moved).max() < 0.05


@pytest.mark.parametrize("task", FACTORS)
@pytest.mark.parametrize("shape", [(24, 24, 24), (25, 22, 27)])
def test_an_estimate_lies_on_the_grid_of_the_truth(task, shape, oblique, blob):
    model, hr = make(task), blob(shape, oblique, sigma=6)
    pair = model.experiment.pairs.degrade(hr)
    sr = model.predict_pair(pair)
    assert sr.shape == hr.shape and np.array_equal(sr.affine, hr.affine)
    inside = (
        slice(8, -8),
    ) * 3  # beyond the faces a spline is mirrored, the network's interpolation is not
    assert (
        np.abs(sr.data - pair.on_grid.data)[inside].max() < 0.03
    )  # cubic interpolation, as the spline's
    low = model.predict_pair(pair, max_memory_gb=1e-4 * np.prod(FACTORS[task]) * 4)  # in tiles
    np.testing.assert_allclose(low.data, sr.data, atol=1e-4)


def test_another_factor_or_a_reference_is_refused(blob):
    with pytest.raises(InputError, match=r"makes scans \(2\.0, 2\.0, 2\.0\) times"):
        super_resolve(blob(), make("gaussian_x2"), factor=(3, 3, 3))
    with pytest.raises(InputError, match="takes no reference"):
        super_resolve(blob(), make("gaussian_x2"), reference=blob())


@pytest.fixture
def ramp(tmp_path) -> Subject:
    """A scan of odd sizes whose intensity tells the place."""
    grid = np.meshgrid(*(np.arange(n, dtype=float) for n in (31, 26, 29)), indexing="ij")
    file = save_scan(
        Volume(grid[0] + 40 * grid[1] + 1600 * grid[2], np.eye(4)), tmp_path / "ramp.nii.gz"
    )
    return Subject("ramp", "train", {"t1": file})


@pytest.mark.parametrize("task", FACTORS)
@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_patches_of_both_grids_show_the_same_place(ramp, task, sampling):
    factor = FACTORS[task]
    args = {**SMOKE.network.model_args, "factor": factor}
    experiment = SMOKE.changed(task=task, model_args=args, sampling=sampling, patch_size=8)
    dataset = experiment.examples.open([ramp], experiment.pairs)
    stream, count = dataset.stream(0, 0), len(dataset.grid(0))
    assert count > 8
    for given, truth in itertools.islice(stream, count):
        assert given.shape == (1, *(8 // f for f in factor)) and truth.shape == (1, 8, 8, 8)
        assert abs(given.mean() - truth.mean()) < 0.02  # of the whole range; padding would show


def test_patches_that_the_factor_does_not_divide_are_refused(ramp):
    experiment = SMOKE.changed(patch_size=9)
    dataset = experiment.examples.open([ramp], experiment.pairs)
    with pytest.raises(
        InputError, match=r"\(9, 9, 9\) voxels are no multiple of the factor \(2, 2, 2\)"
    ):
        dataset.grid(0)


def published(scan: np.ndarray, folder):
    """The published form's dataset of one scan of 224 x 224 x 152 voxels."""
    experiment, file = systems.get("srgan3d"), save_scan(Volume(scan, np.eye(4)), folder / "s.nii")
    return experiment.examples.open([Subject("s", "train", {"t1": file})], experiment.pairs)


def test_the_published_patches(tmp_path):
    """Cut, scaled, blurred and sampled one by one, as the authors' code does it."""
    scan = np.random.default_rng(0).uniform(0, 900, (224, 224, 152)).astype(np.float32)
    dataset = published(scan, tmp_path)
    places = dataset.grid(0)
    starts = list(product((0, 96), (0, 96), (0, 60)))  # 128 + 96 = 224; 92 + 60 = 152
    assert [p.scaled((4, 4, 4)).start for p in places] == starts
    for place, start in zip(places, starts, strict=True):
        given, truth = dataset.read(0, place)
        cut = scan[tuple(slice(a, a + n) for a, n in zip(start, (128, 128, 92), strict=True))]
        half = cut.max() / 2
        scaled = (cut.astype(float) - half) / half
        sampled = ndimage.zoom(ndimage.gaussian_filter(scaled, 1), 0.25, order=0, prefilter=False)
        assert sampled.shape == (32, 32, 23)
        np.testing.assert_allclose(given[0], sampled, atol=1e-6)
        np.testing.assert_allclose(truth[0], scaled, atol=1e-6)


@pytest.mark.parametrize("axis", range(3))
def test_low_resolution_patches_show_their_own_place(axis, tmp_path):
    """Voxel k of n shows voxel k (N - 1) / (n - 1) of the patch, rounded, wherever the patch lies."""
    ramp = np.arange(1.0, (224, 224, 152)[axis] + 1)
    shape = [-1 if a == axis else 1 for a in range(3)]
    dataset = published(np.broadcast_to(ramp.reshape(shape), (224, 224, 152)), tmp_path)
    inner = slice(1, -1)  # at its faces a blurred ramp bends
    for place in dataset.grid(0):
        given, _ = dataset.read(0, place)
        at = place.scaled((4, 4, 4))
        half = (at.start[axis] + at.size[axis]) / 2
        shown = (np.moveaxis(given[0], axis, 0)[:, 5, 5] + 1) * half - 1
        n, size = place.size[axis], at.size[axis]
        expected = [at.start[axis] + math.floor(k * (size - 1) / (n - 1) + 0.5) for k in range(n)]
        np.testing.assert_allclose(shown[inner], expected[inner], atol=1e-3)


def test_a_second_scan_or_a_given_one_is_refused_where_patches_are_degraded_alone(ramp):
    for changes in ({"given": True}, {"reference": "t2"}):
        experiment = systems.get("srgan3d").changed(**changes)
        with pytest.raises(InputError, match="per_patch"):
            experiment.examples.open([ramp], experiment.pairs)


def test_a_frame_pads_and_cuts_about_the_middle(tmp_path, oblique, blob, centre_of_mass):
    scan = blob((25, 24, 30), oblique)
    subject = Subject(
        "s",
        "train",
        {"t1": save_scan(scan, tmp_path / "s.nii"), "mask": save_scan(scan, tmp_path / "m.nii")},
    )
    pair = SMOKE.changed(frame=(32, 20, 28)).pairs.make(subject)
    assert pair.hr.shape == (32, 20, 28)
    assert np.linalg.norm(centre_of_mass(pair.hr) - centre_of_mass(scan)) < 0.01
    mask = load_mask(subject, pair.hr)
    assert mask.shape == (32, 20, 28) and (mask == (pair.hr.data != 0)).all()


@pytest.fixture
def trained(cohort, tmp_path):
    """Weights of two steps, with snapshots; and the cohort with a mask column."""
    subjects = data.read_manifest(cohort)
    split = {part: [s for s in subjects if s.split == part] for part in ("train", "val")}
    options = {"device": "cpu", "progress": False, "snapshots": True}
    return training.train(SMOKE, split["train"], split["val"], tmp_path / "run", **options)


def test_snapshots_lie_in_their_place(cohort, trained):
    folder = trained.parent / "snapshots"
    hr, given = (volume.load_nifti(folder / f"{name}.nii.gz") for name in ("hr", "input"))
    (scan,) = (volume.load_nifti(s.file("t1")) for s in data.read_manifest(cohort, "val"))
    shown = sorted(folder.glob("*_sr.nii.gz"))
    assert len(shown) == SMOKE.training.max_steps
    sr = volume.load_nifti(shown[0])
    assert sr.shape == hr.shape == (16, 16, 16) and given.shape == (8, 8, 8)
    every, last = sorted(folder.glob("*.safetensors")), load_weights(trained)
    assert len(every) == len(shown)
    assert load_model(every[-1]).experiment == SMOKE
    assert all(torch.equal(v, last[k]) for k, v in load_weights(every[-1]).items())
    np.testing.assert_allclose(sr.affine, hr.affine, atol=1e-5)
    start = np.rint(np.linalg.solve(scan.affine, hr.affine)[:3, 3]).astype(int)
    part = scan.data[tuple(slice(a, a + 16) for a in start)]
    np.testing.assert_allclose(part, hr.data, atol=1e-3)  # that very part of the scan
    assert np.corrcoef(sr.data.ravel(), hr.data.ravel())[0, 1] > 0.5


def test_evaluation_writes_volumes_and_statistics(cohort, trained, tmp_path):
    out = tmp_path / "volumes"
    words = ["evaluate", "--weights", trained, "--cohort", cohort, "--out", out]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    assert all(
        word in done.output for word in ("psnr", "ssim3d", "mean", "var", "median", "min", "max")
    )
    for subject in data.read_manifest(cohort, "test"):
        scan = volume.load_nifti(subject.file("t1"))
        sr, lr = (volume.load_nifti(out / f"{subject.name}_{kind}.nii.gz") for kind in ("sr", "lr"))
        np.testing.assert_allclose(sr.affine, scan.affine, atol=1e-4)
        np.testing.assert_allclose(fine_grid(lr, (2, 2, 2))[1], scan.affine, atol=1e-4)
        table = pd.read_csv(out / "metrics.csv").set_index(["subject", "region"])
        expected = metrics.psnr(scan.data, sr.data, float(np.ptp(scan.data)))
        assert table.loc[(subject.name, "volume"), "psnr"] == pytest.approx(expected, abs=1e-3)
    for words in (
        ["evaluate", trained],
        ["evaluate", "--weights", trained],
    ):
        done = CliRunner().invoke(main, [str(w) for w in words])
        assert done.exit_code == 1 and "expected two scans" in done.stderr


def test_the_masked_convention_and_the_population_variance(tmp_path, blob):
    rows = []
    for name, offset in (("a", 0.0), ("b", 1.5)):
        scan = blob((24, 24, 24), sigma=3, offset=(offset, 0, 0))
        scan = scan.with_data(scan.data * 100)
        mask = save_scan(scan.with_data(scan.data > 20), tmp_path / f"{name}_m.nii", dtype=np.uint8)
        rows.append(
            Subject(name, "test", {"t1": save_scan(scan, tmp_path / f"{name}.nii"), "mask": mask})
        )
    model = make("gaussian_x2")
    table = quality.evaluate(model, rows, tmp_path / "out")
    pair = model.experiment.pairs.make(rows[0])
    sr, inside = model.predict_pair(pair).data, volume.load_nifti(rows[0].file("mask")).data
    joint = max(pair.hr.data.max(), sr.max()) - min(pair.hr.data.min(), sr.min())
    expected = metrics.psnr(pair.hr.data * inside, sr * inside, float(joint))
    psnr = table[table["region"] == "masked"]["psnr"]
    assert psnr.iloc[0] == pytest.approx(expected)
    found = quality.statistics(table).loc[("masked", "psnr")]
    assert found.tolist() == pytest.approx(
        [np.mean(psnr), np.var(psnr), np.median(psnr), psnr.min(), psnr.max()]
    )
    quality.evaluate(model, rows, tmp_path / "two", workers=2)
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    other = quality.evaluate(model, rows, tmp_path / "out", task="gaussian_x2_corners")
    assert not np.allclose(other["psnr"], table["psnr"], atol=0.01)
    with pytest.raises(InputError, match="unknown task 'x9'"):
        quality.evaluate(model, rows, tmp_path / "none", task="x9")


def test_an_evaluation_writes_in_its_folder_and_over_no_scan(tmp_path, blob):
    scan = save_scan(blob((16, 16, 16), sigma=3), tmp_path / "a_hr.nii.gz")
    before, model = scan.read_bytes(), make("gaussian_x2")
    with pytest.raises(InputError, match="different files"):
        quality.evaluate(model, [Subject("a", "test", {"t1": scan})], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a_hr.nii.gz"] and scan.read_bytes() == before


def test_a_mask_of_an_evaluation_goes_by_its_affine(tmp_path, blob):
    scan, model = blob((16, 18, 20), sigma=3), make("gaussian_x2")
    mask = scan.with_data(scan.data > 0.2)
    tables = []
    for number, stored in enumerate((mask, reorient(mask, "LPS"), reorient(mask, "SAR"))):
        files = {
            "t1": tmp_path / "a.nii",
            "mask": save_scan(stored, tmp_path / f"{number}.nii", dtype=np.uint8),
        }
        save_scan(scan, files["t1"])
        tables.append(quality.evaluate(model, [Subject("a", "test", files)], tmp_path / "out"))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def test_the_halfmax_rule_gives_minus_one_to_one():
    scan = torch.rand(5, 5, 5).numpy() * 700
    scan[0, 0, 0] = 0
    scaled = intensity.fit_scaling(scan, "halfmax")
    assert scaled.apply(scan).min() == -1 and scaled.apply(scan).max() == pytest.approx(1)
    np.testing.assert_allclose(scaled.invert(scaled.apply(scan)), scan, atol=1e-3)
