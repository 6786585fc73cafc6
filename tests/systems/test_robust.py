"""The network for every factor: what conditions it, what it does not depend on, what it was trained on, and its weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, ScanWarning, shipped_file
from srlib.data.cohorts import read_template
from srlib.degradations.resolution import BlockAverage, GaussianDownsample
from srlib.evaluation.benchmark import BENCHMARK
from srlib.inference.any_factor import without_wild
from srlib.inference.checks import content
from srlib.inference.tiles import run_tiled
from srlib.metrics import psnr
from srlib.models.conditioning import describe_degradation
from srlib.models.robust import Conditioned, RobustSR, pack
from srlib.models.weights import read_metadata
from srlib.scans import formats
from srlib.scans.intensity import fit_scaling
from srlib.scans.volume import Volume, central, crop_or_pad, load_nifti, resample, save_scan
from srlib.synthesis.priors import Label
from srlib.synthesis.simulation import encode
from srlib.systems.published import PUBLISHED
from srlib.systems.trained import load_model, super_resolve
from srlib.training import mixture

SMOKE = systems.get("robust", "smoke")
TABLE = [Label(0, 0), *(Label(k, k) for k in (1, 2, 3))]
PRIORS = {
    "t1": (
        np.array([[0, 80, 140, 220], [0, 8, 8, 8.0]]),
        np.array([[0, 8, 14, 22], [0, 2, 2, 2.0]]),
    )
}
PRIORS["t2"] = PRIORS["t1"]


@pytest.fixture(scope="module")
def network():
    """One with random weights wherever training would have put some."""
    torch.manual_seed(0)
    network = RobustSR(width=8, blocks=2)
    for layer, std in (
        (network.last, 0.05),
        (network.filters[-1], 0.02),
        (network.gains[-1], 0.05),
    ):
        torch.nn.init.normal_(layer.weight, 0, std)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def balls():
    """A label map of nested balls, in RAS axes of 1 mm."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 56, 58)), indexing="ij")
    radius = sum((g / 0.9) ** 2 for g in grid) ** 0.5 + 0.1 * np.sin(9 * grid[0])
    return encode(
        Volume(np.select([radius < 0.4, radius < 0.7, radius < 1], [1, 2, 3], 0), np.eye(4)), TABLE
    )


def conditioned(network, data, factor=(2, 2, 2)):
    return Conditioned(network, torch.from_numpy(describe_degradation(data, factor)))


def test_packed_voxels_come_back():
    x = torch.arange(4 * 6 * 2.0).reshape(1, 1, 4, 6, 2)
    assert torch.equal(pack(x)[0, :, 0, 0, 0], x[0, 0, :2, :2, :2].flatten())
    assert torch.equal(RobustSR(4, 1).unpack(pack(x)), x)


def test_before_training_the_scan_comes_out_as_it_went_in(noise):
    data = noise((12, 13, 15))
    assert np.array_equal(run_tiled(conditioned(RobustSR(width=4).eval(), data), data), data)


@pytest.mark.parametrize("shape", [(20, 22, 24), (17, 21, 9), (16, 18, 1)])
def test_units_and_window_of_a_scan_do_not_matter(network, noise, shape):
    data = noise(shape)
    sr = run_tiled(conditioned(network, data), data)
    assert np.abs(sr - data).max() > 0.01
    other = (300 * data - 50).astype(np.float32)
    np.testing.assert_allclose(
        run_tiled(conditioned(network, other), other), 300 * sr - 50, atol=0.05
    )


@pytest.mark.parametrize("shape", [(90, 41, 44), (83, 75, 9)])
def test_tiles_give_what_the_whole_scan_gives(network, noise, shape):
    data = noise(shape)
    made = conditioned(network, data)
    whole = made(torch.from_numpy(data)[None, None])[0, 0].numpy()
    assert np.abs(run_tiled(made, data, 0.02) - whole).max() < 1e-5 * np.abs(whole).max()


def test_the_description_shows_factor_and_kernel(noise):
    scan = Volume(noise((48, 48, 48)), np.eye(4))
    sharp, blurred = (GaussianDownsample((2, 2, 2), s) for s in (0.5, 2.0))
    looks = [d.to_grid(d(scan), scan.shape).data for d in (sharp, blurred)]
    facts = [describe_degradation(look, (2, 1, 1)).reshape(3, -1) for look in looks]
    assert [list(f[:, 0]) for f in facts] == [[0.5, 1, 1]] * 2
    assert (facts[0][:, 1] > facts[1][:, 1] + 0.5).all()
    white = describe_degradation(
        np.random.default_rng(0).standard_normal((64, 64, 64)).astype(np.float32), (1, 1, 1)
    )
    assert np.abs(white.reshape(3, -1)[:, 1:]).max() < 0.05
    np.testing.assert_allclose(
        describe_degradation(7 * looks[0] + 3, (2, 1, 1)), facts[0].ravel(), atol=1e-3
    )
    assert np.isfinite(describe_degradation(np.zeros((20, 20, 3), np.float32), (1, 1, 1))).all()


def test_patches_are_those_of_one_degraded_scan(balls):
    patches = SMOKE.examples.draw(np.random.default_rng(3), balls, PRIORS)
    assert len(patches) == SMOKE.examples.samples == 8
    for given, truth in patches:
        assert given.shape == (16, 16, 16, 16) and truth.shape == (1, 16, 16, 16)
        assert given.dtype == truth.dtype == np.float32
        assert (np.ptp(given[1:], axis=(1, 2, 3)) == 0).all()
        assert np.array_equal(given[1:, 0, 0, 0], patches[0][0][1:, 0, 0, 0])
    again = SMOKE.examples.draw(np.random.default_rng(3), balls, PRIORS)
    assert all(
        np.array_equal(a, b)
        for one, other in zip(patches, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    with pytest.raises(InputError, match="cube"):
        SMOKE.changed(samples=9)


def test_what_is_drawn_covers_the_mixture(balls):
    rng, factors = np.random.default_rng(0), []
    hr = mixture.synthesize(
        rng, balls, SMOKE.examples.generation, SMOKE.examples.mixture, PRIORS, [32] * 3
    )
    assert hr.shape == (32, 32, 32) and 0 <= hr.data.min() < hr.data.max() < 2
    for _ in range(60):
        lr, on_grid, kernel = mixture.degrade(rng, hr, SMOKE.examples.mixture)
        assert on_grid.shape == hr.shape and np.isfinite(on_grid.data).all()
        assert lr is on_grid or np.allclose(np.divide(hr.shape, lr.shape), kernel.coarser, atol=0.4)
        assert 12 < psnr(hr.data, on_grid.data, float(np.ptp(hr.data))) < 80
        factors.append(kernel.coarser)
    coarse = np.sum(np.array(factors) > 1, axis=1)
    assert {1, 2, 3} == set(coarse)
    assert {(2.0, 2.0, 2.0)} <= set(factors) and max(map(max, factors)) > 4


def gains(scan, task):
    """PSNR in dB of the spline and of the shipped weights, data range 1, 8 voxels off each face."""
    pair = load_model().experiment.pairs.degrade(scan, task)
    inner = [
        v.data[8:-8, 8:-8, 8:-8] for v in (pair.hr, pair.on_grid, load_model().predict_pair(pair))
    ]
    return psnr(inner[0], inner[1], 1.0), psnr(inner[0], inner[2], 1.0)


@pytest.fixture(scope="module")
def template():
    """The MNI152 T1 that nilearn ships, the average of 152 real scans; nothing of it was trained on."""
    scan = central(read_template()[0], 112)
    return scan.with_data(fit_scaling(scan.data).apply(scan.data))


def test_shipped_weights_are_those_of_the_recipe():
    path = shipped_file("robust")
    assert path.stat().st_size <= 2e6
    written = read_metadata(path)["experiment"]
    assert systems.from_json(written) == systems.get("robust")


def test_shipped_weights_gain_at_the_page_s_protocol(template):
    spline, ours = gains(template, "gaussian_x2")
    assert spline == pytest.approx(28.87, abs=0.5)  # the page's grid is corner-aligned
    assert ours > spline + 3.5


@pytest.mark.parametrize("task", BENCHMARK)
def test_shipped_weights_are_above_the_spline_under_every_degradation(template, task):
    spline, ours = gains(central(template, 80), task)
    assert ours > spline + (0.3 if task == "gaussian_x2_sigma2" else 0.5)  # which content may be


def test_shipped_weights_on_a_single_real_scan():
    file = Path("/usr/share/mricron/templates/ch2.nii.gz")
    if not file.is_file():
        pytest.skip("Debian's mricron-data is not installed, so its scan ch2.nii.gz is not at hand")
    scan = central(load_nifti(file), 80)
    scan = scan.with_data(fit_scaling(scan.data).apply(scan.data))
    for task in BENCHMARK:
        spline, ours = gains(scan, task)
        assert ours > spline + 0.3, task


def enhance(*words):
    result = CliRunner().invoke(main, ["enhance", "--precision", "32", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_enhance_needs_no_more_than_in_and_out(tmp_path, template):
    lr = GaussianDownsample((1, 1, 3), 1.26)(central(template, 48))
    save_scan(lr, tmp_path / "thick.nii.gz")
    result = enhance(
        tmp_path / "thick.nii.gz", tmp_path / "sr.nii.gz", "--report", tmp_path / "pages"
    )
    assert result.exit_code == 0 and "model robust, x1 1 3" in result.stderr
    sr = load_nifti(tmp_path / "sr.nii.gz")
    assert sr.shape == (48, 48, 48) and sr.spacing_mm == pytest.approx((1, 1, 1))
    np.testing.assert_allclose(sr.data, super_resolve(tmp_path / "thick.nii.gz").data, atol=1e-6)
    page = (tmp_path / "pages" / "sr.html").read_text()
    assert "thick.nii.gz, enhanced" in page and "robust, x1 1 3" in page


def test_a_scan_that_a_scanner_interpolated_gets_a_warning(tmp_path, template):
    hr = central(template, 64)
    pair = systems.get("robust").pairs.degrade(hr, "kspace_x2_3d")
    save_scan(pair.lr, tmp_path / "filled.nii.gz")
    result = enhance(tmp_path / "filled.nii.gz", tmp_path / "sr.nii.gz", "--zero-filled", 2, 2, 2)
    assert result.exit_code == 0 and "x1 1 1" in result.stderr
    sr = formats.load_scan(tmp_path / "sr.nii.gz")
    assert sr.shape == hr.shape
    np.testing.assert_allclose(sr.data, load_model().predict_pair(pair).data, atol=1e-5)
    wrong = enhance(tmp_path / "filled.nii.gz", tmp_path / "b.nii.gz", "--zero-filled", 0.5, 2, 2)
    assert (
        wrong.exit_code == 1
        and "1 or more" in wrong.stderr
        and not (tmp_path / "b.nii.gz").exists()
    )


def test_factors_beyond_the_training_are_warned_of(tmp_path, noise):
    save_scan(Volume(noise((40, 40, 9)), np.diag([1, 1, 8.0, 1])), tmp_path / "far.nii.gz")
    result = enhance(tmp_path / "far.nii.gz", tmp_path / "sr.nii.gz")
    assert result.exit_code == 0 and "factor of 8" in result.stderr


@pytest.mark.parametrize("name", ["robust", *(n for n in PUBLISHED if n.endswith("caffemodel"))])
def test_a_blob_stays_in_place_in_every_world(name, affine):
    try:
        model = load_model(name)
    except InputError:
        pytest.skip(f"{name} is not at hand")
    scan = Volume(blob_data(), affine)
    reference = scan if model.experiment.reference else None
    sr = super_resolve(scan, model, factor=(2, 2, 2), reference=reference)
    assert np.linalg.norm(middle_of_mass(sr) - middle_of_mass(scan)) < 0.05


def blob_data():
    grid = np.meshgrid(*map(np.arange, (25, 22, 24)), indexing="ij")
    return 100 * np.exp(
        -sum((g - c) ** 2 for g, c in zip(grid, (11.3, 10.6, 12.2), strict=True)) / 18
    )


def middle_of_mass(volume):
    """In mm, of what exceeds half of the maximum."""
    voxel = ndimage.center_of_mass(np.clip(volume.data - volume.data.max() / 2, 0, None))
    return volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]


@pytest.fixture(scope="module")
def chequered():
    """A ball that is textured in all directions, on a fine grid, and its coarse scan."""
    grid = np.indices((64, 64, 64)) - 32.0
    texture = np.sign(np.sin(grid[0] / 2.5) * np.sin(grid[1] / 3) * np.sin(grid[2] / 2))
    ball = np.where((grid**2).sum(0) < 28**2, 600 + 300 * texture, 0)
    hr = Volume(ndimage.gaussian_filter(ball, 0.7), np.eye(4))
    return hr, GaussianDownsample((2, 2, 2))(hr)


WILD = {  # what is changed in the coarse scan, to what, and the fine voxels near it
    "spike": (np.s_[16, 16, 16], lambda v: 1000 * v, np.s_[16:48, 16:48, 16:48]),
    "ten times": (np.s_[16, 16, 16], lambda v: 10 * v, np.s_[16:48, 16:48, 16:48]),
    "negative": (np.s_[16, 16, 16], lambda v: -1e6, np.s_[16:48, 16:48, 16:48]),
    "column": (np.s_[16, 16, :], lambda v: 1000 * v, np.s_[12:52, 12:52, :]),
    "slice": (np.s_[:, :, 16], lambda v: 1000 * v, np.s_[:, :, 12:52]),
}


@pytest.mark.parametrize("kind", WILD)
def test_wild_voxels_do_not_change_the_scan_far_from_them(chequered, kind):
    (hr, lr), (place, change, near) = chequered, WILD[kind]
    data, far = lr.data.copy(), np.ones(hr.shape, bool)
    data[place], far[near] = change(data[place]), False
    with pytest.warns(ScanWarning, match="few voxels take most of the range"):
        hot = super_resolve(lr.with_data(data), load_model(), factor=(2, 2, 2))
    cold, peak = super_resolve(lr, load_model(), factor=(2, 2, 2)), float(np.ptp(hr.data))
    spline = resample(lr, cold.shape, cold.affine)
    gain, whole = (
        psnr(hr.data, v.data, peak, mask=far) - psnr(hr.data, spline.data, peak, mask=far)
        for v in (hot, cold)
    )
    assert gain > (
        whole / 2 if kind == "slice" else whole - 0.5
    )  # what a slice hid is gone, and with it some of the description
    assert abs(hot.data[~far] - cold.data[~far]).max() > peak  # it is not hidden either


def test_ordinary_scans_are_not_touched(template, chequered):
    for scan in (template, chequered[0], template.with_data(3000 * template.data - 1000)):
        assert all(same is scan for same in without_wild(scan, scan))


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_a_few_slices_are_sharpened_as_many_are(template, slices):
    hr = central(template, 64)
    lr = GaussianDownsample((2, 2, 2))(hr)
    thin = crop_or_pad(lr, (0, 0, 14), (32, 32, slices))
    with pytest.warns(ScanWarning, match=f"{slices} slices along S are too few"):
        sr = super_resolve(thin, load_model(), factor=(2, 2, 2))
    truth = hr.data[:, :, 28 : 28 + 2 * slices]
    assert psnr(truth, sr.data, 1.0) > psnr(truth, resample(thin, sr.shape, sr.affine).data, 1.0)


def test_content_that_is_smooth_by_itself_is_warned_of(template):
    blobs = ndimage.zoom(np.random.default_rng(0).standard_normal((6, 6, 6)), 8, order=3)
    maps = Volume(500 + 300 * np.tanh(2 * blobs), np.eye(4))
    lr = BlockAverage((2, 2, 2))(maps)
    assert [line for line in content(lr, (2, 2, 2)) if line.startswith("the scan is smooth")]
    assert not content(lr, (1, 1, 1))
    for task in BENCHMARK:
        pair = systems.get("robust").pairs.degrade(template, task)
        filled = pair.factor if pair.lr.shape == pair.hr.shape else (1, 1, 1)
        finer = np.divide(pair.hr.shape, pair.lr.shape)
        assert bool(content(pair.lr, finer, filled)) == (task == "gaussian_x2_sigma2"), (
            task
        )  # looks just like it
