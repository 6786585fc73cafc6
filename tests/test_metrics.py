"""Metrics equal scikit-image's, whatever the slabs, and refuse what has no answer."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import metrics as reference

from srlib.core.paths import InputError
from srlib.metrics import (
    as_tensorflow,
    centre,
    evaluate,
    haarpsi,
    hfen,
    nrmse,
    psnr,
    resolution,
    sharpness,
    ssim,
)
from srlib.scans.volume import Volume

METRICS = {
    "psnr": psnr,
    "ssim3d": ssim,
    "ssim2d": partial(ssim, kind="2d"),
    "nrmse": lambda hr, sr, data_range, mask=None: nrmse(hr, sr, mask=mask),
    "sharpness": lambda hr, sr, data_range, mask=None: sharpness(hr, sr, mask=mask),
}


@pytest.fixture
def pair():
    """Maker of a smooth scan, a disturbed copy and a mask that touches the faces."""

    def make(shape):
        rng = np.random.default_rng(0)
        hr = np.cumsum(rng.standard_normal(shape), axis=0).astype(np.float32)
        sr = (hr + 0.5 * rng.standard_normal(shape)).astype(np.float32)
        return hr, sr, np.cumsum(rng.standard_normal(shape), axis=2) > 0

    return make


def per_slice(hr, sr, data_range):
    maps = [
        reference.structural_similarity(hr[..., k], sr[..., k], data_range=data_range, full=True)
        for k in range(hr.shape[2])
    ]
    return np.mean([m[0] for m in maps]), np.stack([m[1] for m in maps], axis=-1)


@pytest.mark.parametrize(
    "shape", [(13, 15, 11), (21, 12, 23), (12, 17, 24), (15, 13, 25), (11, 14, 27), (13, 12, 53)]
)
def test_ssim_is_that_of_scikit_image(pair, shape):
    hr, sr, mask = pair(shape)
    mean, local = reference.structural_similarity(hr, sr, data_range=9.0, full=True)
    assert ssim(hr, sr, 9.0) == pytest.approx(mean, abs=1e-5)
    assert ssim(hr, sr, 9.0, mask=mask) == pytest.approx(local[mask].mean(), abs=1e-5)
    mean, local = per_slice(hr, sr, 9.0)
    assert ssim(hr, sr, 9.0, kind="2d") == pytest.approx(mean, abs=1e-5)
    assert ssim(hr, sr, 9.0, mask=mask, kind="2d") == pytest.approx(local[mask].mean(), abs=1e-5)


@pytest.mark.parametrize("n", [7, 8, 23, 24, 25, 26, 29, 30, 31, 47, 48, 49, 51, 72, 73])
def test_ssim_does_not_depend_on_where_slabs_end(pair, n):
    hr, sr, mask = pair((11, 12, n))
    mean, local = reference.structural_similarity(hr, sr, data_range=9.0, full=True)
    assert ssim(hr, sr, 9.0) == pytest.approx(mean, abs=1e-5)
    assert ssim(hr, sr, 9.0, mask=mask) == pytest.approx(local[mask].mean(), abs=1e-5)


@pytest.mark.parametrize("shape", [(13, 15, 11), (8, 7, 25)])
def test_psnr_and_nrmse_are_those_of_scikit_image(pair, shape):
    hr, sr, mask = pair(shape)
    assert psnr(hr, sr, 9.0) == pytest.approx(
        reference.peak_signal_noise_ratio(hr, sr, data_range=9.0), rel=1e-5
    )
    assert nrmse(hr, sr) == pytest.approx(reference.normalized_root_mse(hr, sr), rel=1e-5)
    error = np.mean((hr[mask].astype(float) - sr[mask]) ** 2)
    assert psnr(hr, sr, 9.0, mask=mask) == pytest.approx(10 * np.log10(81 / error), rel=1e-5)
    energy = np.mean(hr[mask].astype(float) ** 2)
    assert nrmse(hr, sr, mask=mask) == pytest.approx(np.sqrt(error / energy), rel=1e-5)


def test_what_lies_outside_the_mask_does_not_change_psnr_and_nrmse(pair):
    hr, sr, mask = pair((9, 10, 11))
    other = np.where(mask, sr, sr + 100)
    assert psnr(hr, sr, 9.0, mask=mask) == psnr(hr, other, 9.0, mask=mask)
    assert nrmse(hr, sr, mask=mask) == nrmse(hr, other, mask=mask)


def test_identical_scans_are_perfect(pair):
    hr, _, mask = pair((13, 12, 25))
    for scores in evaluate(hr, hr, 9.0, mask=mask).values():
        assert scores["psnr"] == np.inf
        assert scores["nrmse"] == 0
        assert scores["ssim3d"] == scores["ssim2d"] == pytest.approx(1, abs=1e-6)


def test_evaluate_gives_every_metric_its_own_figure_in_every_region(pair):
    hr, sr, mask = pair((13, 12, 55))
    for region, inside in (("volume", None), ("mask", mask)):
        expected = {
            name: metric(hr, sr, data_range=9.0, mask=inside) for name, metric in METRICS.items()
        }
        assert evaluate(hr, sr, 9.0, mask=mask)[region] == pytest.approx(expected, rel=1e-12)
        assert len(set(expected.values())) == len(METRICS)
    assert list(evaluate(hr, sr, 9.0)) == ["volume"]


@pytest.mark.parametrize("name", METRICS)
def test_pairs_that_cannot_be_compared_are_refused(pair, name):
    hr, sr, mask = pair((13, 12, 11))
    with pytest.raises(InputError, match="shape"):
        METRICS[name](hr, sr[1:], data_range=1.0)
    with pytest.raises(InputError, match="mask"):
        METRICS[name](hr, sr, data_range=1.0, mask=mask[1:])
    with pytest.raises(InputError, match="empty"):
        METRICS[name](hr, sr, data_range=1.0, mask=np.zeros(hr.shape, dtype=bool))
    with pytest.raises(InputError, match="boolean"):
        METRICS[name](hr, sr, data_range=1.0, mask=mask.astype(np.uint8))


@pytest.mark.parametrize("name", ["psnr", "ssim3d", "ssim2d"])
@pytest.mark.parametrize("data_range", [0, -1, np.nan, np.inf])
def test_a_data_range_that_is_none_is_refused(pair, name, data_range):
    hr, sr, _ = pair((13, 12, 11))
    with pytest.raises(InputError, match="data_range"):
        METRICS[name](hr, sr, data_range=data_range)


@pytest.mark.parametrize(
    ("shape", "kind", "fits"),
    [
        ((7, 7, 7), "3d", True),
        ((7, 7, 6), "3d", False),
        ((6, 9, 9), "3d", False),
        ((7, 7, 1), "2d", True),
        ((7, 6, 9), "2d", False),
    ],
)
def test_volumes_below_the_window_are_refused(pair, shape, kind, fits):
    hr, sr, _ = pair(shape)
    if fits:
        assert -1 <= ssim(hr, sr, 9.0, kind=kind) <= 1
    else:
        with pytest.raises(InputError, match="at least 7 voxels"):
            ssim(hr, sr, 9.0, kind=kind)


def test_an_unknown_kind_is_refused(pair):
    hr, sr, _ = pair((13, 12, 11))
    with pytest.raises(InputError, match="4d"):
        ssim(hr, sr, 9.0, kind="4d")


def test_sharpness_is_the_ratio_of_gradient_energies(pair):
    hr, _, mask = pair((13, 12, 25))
    assert sharpness(hr, hr) == sharpness(hr, hr, mask=mask) == 1
    assert sharpness(hr, 2 * hr) == pytest.approx(4)
    assert sharpness(hr, ndimage.uniform_filter(hr, 3)) < 0.5
    inside = np.zeros((5, 5, 5), dtype=bool)
    inside[1:3, 1, 1] = True
    ramp = np.arange(5.0)[:, None, None] * np.ones((5, 5, 5))
    assert sharpness(ramp, np.where(inside, 3 * ramp, 100), mask=inside) == pytest.approx(9)
    assert np.isnan(sharpness(np.ones((4, 4, 4)), np.zeros((4, 4, 4))))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float16, bool])
def test_figures_do_not_hang_on_the_type_of_the_numbers(kind):
    rng = np.random.default_rng(0)
    hr = np.cumsum(rng.integers(-200, 250, (13, 12, 14)), axis=0)
    sr = hr + rng.integers(-60, 60, hr.shape)
    top = {
        np.uint8: 255,
        np.int16: 30_000,
        np.uint16: 60_000,
        np.int32: 2**30,
        np.float16: 60_000,
        bool: 1.49,
    }[kind]
    low = {np.int16: -30_000, np.int32: -(2**30)}.get(kind, 0)
    hr, sr = (
        np.rint((v - hr.min() + 60) / (np.ptp(hr) + 120) * (top - low) + low).astype(kind)
        for v in (hr, sr)
    )
    expected = evaluate(hr.astype(float), sr.astype(float), float(top - low))["volume"]
    assert evaluate(hr, sr, float(top - low))["volume"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("offset", "span"),
    [(0, 1000), (-1024, 3000), (4000, 20), (10_000, 50), (32_768, 300), (32_768, 100), (-3e5, 900)],
)
def test_ssim_is_that_of_double_precision_however_far_from_zero(offset, span):
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((18, 19, 53)), 1)
    hr = (offset + span * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    sr = (hr + 0.02 * span * rng.standard_normal(hr.shape)).astype(np.float32)
    peak = float(np.ptp(hr))
    double = hr.astype(float), sr.astype(float)
    expected = reference.structural_similarity(*double, data_range=peak)
    assert ssim(hr, sr, peak) == pytest.approx(expected, abs=1e-5)
    expected, _ = per_slice(*double, peak)
    assert ssim(hr, sr, peak, kind="2d") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e34])
def test_figures_do_not_hang_on_the_unit(pair, scale):
    hr, sr, mask = pair((13, 12, 11))
    expected = evaluate(hr, sr, 9.0, mask=mask)
    found = evaluate(hr * np.float32(scale), sr * np.float32(scale), 9.0 * scale, mask=mask)
    for region, values in expected.items():
        assert found[region] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "without"),
    [
        ((32, 32, 5), {"ssim3d"}),
        ((5, 32, 32), {"ssim3d", "ssim2d"}),
        ((32, 6, 32), {"ssim3d", "ssim2d"}),
        ((64, 48, 1), {"ssim3d"}),
        ((1, 30, 31), {"ssim3d", "ssim2d"}),
        ((3, 3, 3), {"ssim3d", "ssim2d"}),
        ((1, 1, 2), {"ssim3d", "ssim2d"}),
    ],
)
def test_what_is_too_small_for_a_window_has_all_other_figures(pair, shape, without):
    hr, sr, _ = pair(shape)
    mask = np.ones(shape, dtype=bool)
    for found in evaluate(hr, sr, 1.0, mask=mask).values():
        assert {name for name, value in found.items() if np.isnan(value)} == without
        assert found["psnr"] == pytest.approx(psnr(hr, sr, 1.0))


@pytest.mark.filterwarnings("error")
def test_a_mask_of_one_voxel_and_a_truth_of_zeros(pair):
    hr, sr, mask = pair((9, 9, 9))
    mask[:] = False
    mask[4, 4, 4] = True
    found = evaluate(hr, sr, 9.0, mask=mask)["mask"]
    assert found["psnr"] == pytest.approx(
        10 * np.log10(81 / (hr[4, 4, 4] - sr[4, 4, 4]) ** 2), rel=1e-5
    )
    assert np.isnan(found["sharpness"]) and np.isfinite(found["ssim3d"])
    assert nrmse(hr * 0, sr) == np.inf and np.isnan(nrmse(hr * 0, sr * 0))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_in_one_line(pair, name, value):
    hr, sr, mask = pair((13, 12, 11))
    mask[6, 6, 6] = True
    sr[6, 6, 6] = value
    for inside in (None, mask):
        with pytest.raises(InputError, match="NaN or infinite") as error:
            METRICS[name](hr, sr, data_range=9.0, mask=inside)
        assert "\n" not in str(error.value)
    if name in ("psnr", "nrmse", "sharpness"):
        mask[6, 6, 6] = False  # which does not count
        assert np.isfinite(METRICS[name](hr, sr, data_range=9.0, mask=mask))


def test_arrays_that_are_no_scans_are_refused(pair):
    hr, sr, _ = pair((13, 12, 11))
    with pytest.raises(InputError, match=r"X, Y, Z"):
        evaluate(hr[0], sr[0], 1.0)
    with pytest.raises(InputError, match="no voxels"):
        evaluate(hr[:0], sr[:0], 1.0)


def test_the_ssim_of_tensorflow_is_its_formula():
    """11 x 11 windows that lie inside, Gaussian of sigma 1.5, constants of range 1, biased moments."""
    rng = np.random.default_rng(0)
    hr = ndimage.gaussian_filter(rng.random((40, 37, 2)), (1, 1, 0))
    sr = hr + 0.05 * rng.standard_normal(hr.shape)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(hr.T, sr.T, strict=True):
        x, y = (np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y))
        a, b = ((v * window).sum((2, 3)) for v in (x, y))
        moments = [(p * q * window).sum((2, 3)) for p, q in ((x, x), (y, y), (x, y))]
        xx, yy, xy = moments[0] - a * a, moments[1] - b * b, moments[2] - a * b
        top, bottom = (
            (2 * a * b + 1e-4) * (2 * xy + 9e-4),
            (a * a + b * b + 1e-4) * (xx + yy + 9e-4),
        )
        values.append((top / bottom).mean())
    assert as_tensorflow(hr, sr)["ssim2d"] == pytest.approx(np.mean(values), abs=1e-6)
    assert abs(as_tensorflow(hr, sr)["ssim2d"] - ssim(hr, sr, 1, kind="2d")) > 0.002


@pytest.mark.parametrize(("n", "left"), [(512, 462), (20, 18), (10, 10), (39, 37), (40, 36)])
def test_the_centre_of_an_image(n, left):
    image = np.arange(n)[:, None, None] + np.zeros((n, 30, 3))
    inner = centre(image)
    assert inner.shape == (left, 28, 3)
    assert inner[0, 0, 0] == n - 1 - inner[-1, 0, 0] == (n - left) / 2
    assert inner.base is not None


def textured(shape, seed=0):
    """Noise that is a little smooth, in [0, 1]."""
    data = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 0.6)
    return (data - data.min()) / np.ptp(data)


@pytest.mark.parametrize("name", [*METRICS, "hfen", "haarpsi", "resolution"])
def test_tensors_and_volumes_are_measured_as_their_arrays(name):
    extended = {
        "hfen": lambda hr, sr, data_range, mask=None: hfen(hr, sr, mask=mask),
        "haarpsi": haarpsi,
        "resolution": lambda hr, sr, data_range, mask=None: resolution(hr, sr, (1, 1, 2)),
    }
    metric = (METRICS | extended)[name]
    hr, sr = (textured((17, 16, 15), seed).astype(np.float32) for seed in (0, 1))
    mask = hr > 0.4
    expected = metric(hr, sr, data_range=1.0, mask=mask)
    tensors = torch.tensor(hr), torch.tensor(sr, requires_grad=True)
    assert metric(*tensors, data_range=1.0, mask=torch.tensor(mask)) == expected
    assert metric(Volume(hr, np.eye(4)), tensors[1], data_range=1.0, mask=mask) == expected
    half = [t.bfloat16() for t in tensors]
    same = [t.detach().float().numpy() for t in half]
    assert metric(*half, data_range=1.0) == metric(*same, data_range=1.0)
    with pytest.raises(InputError, match="real numbers"):
        metric(hr + 1j, sr, data_range=1.0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, bool])
def test_differences_and_ranges_of_integers_do_not_wrap(kind):
    low, high = (0, 1) if kind is bool else (np.iinfo(kind).min, np.iinfo(kind).max)
    hr, sr = (np.where(textured((16, 17, 18), s) > 0.5, high, low).astype(kind) for s in (0, 1))
    found = evaluate(hr, sr, spacing_mm=(1, 1, 1))["volume"]
    hr, sr = hr.astype(float), sr.astype(float)
    expected = evaluate(hr, sr, float(high - low), spacing_mm=(1, 1, 1))["volume"]
    assert found == pytest.approx(expected, rel=1e-4)


HAAR = {  # piq 0.8.0, piq.haarpsi(truth, estimate, data_range=255), float64
    "blur": 0.8053269525788173,
    "shift": 0.7741386546983834,
    "dark": 0.8976868911980922,
    "flat": 0.0737692573718496,
    "coarse": 0.6374022807321105,
}


def test_haarpsi_is_that_of_piq():
    x, y = np.mgrid[:37, :52]
    hr = np.clip(np.rint(127.5 * (1 + np.sin(x * x / 60) * np.cos(y / 4))), 0, 255)
    hr[10:20, 15:30], hr[25:30, 35:45] = 0, 255
    estimates = {
        "blur": ndimage.uniform_filter(hr, 3),
        "shift": np.roll(hr, 1, 1),
        "dark": np.rint(hr * 0.7),
        "flat": hr * 0 + 100,
        "coarse": np.floor(hr / 64) * 64,
    }
    stacks = {name: np.rint(e)[..., None] for name, e in estimates.items()}
    for name, sr in stacks.items():
        assert haarpsi(hr[..., None], sr, 255) == pytest.approx(HAAR[name], abs=1e-5)
    empty = hr[..., None] * 0  # a slice that does not count
    stack = np.concatenate([stacks["blur"], stacks["dark"], empty], 2)
    truth = np.concatenate([hr[..., None]] * 2 + [empty], 2)
    mean = (HAAR["blur"] + HAAR["dark"]) / 2
    assert haarpsi(truth, stack, 255) == pytest.approx(mean, abs=1e-5)
    assert haarpsi(truth / 100 - 3, stack / 100 - 3, 2.55) == pytest.approx(mean, abs=1e-4)
    rows = np.arange(37)[:, None, None] + np.zeros(truth.shape)
    cut = np.where(rows < 20, truth, 0)
    assert haarpsi(truth, cut, 255) < 0.9
    assert haarpsi(truth, cut, 255, mask=rows < 10) == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match="X, Y, Z"):
        haarpsi(hr, hr, 255)
    assert np.isnan(haarpsi(empty, empty, 255))


@pytest.mark.parametrize("shape", [(21, 20, 19), (21, 20, 1), (21, 20)])
def test_hfen_is_the_ratio_of_norms_under_the_laplacian_of_gaussian(shape):
    """Of 15 voxels, sigma 1.5, as MATLAB's fspecial('log') makes it, here for as many axes."""
    axes = sum(n > 1 for n in shape)
    grid = np.meshgrid(*[np.arange(-7, 8)] * axes, indexing="ij")
    square = sum(g**2 for g in grid)
    kernel = np.exp(-square / 4.5)
    kernel *= (square - axes * 1.5**2) / kernel.sum()
    kernel = (kernel - kernel.mean()).reshape([15 if n > 1 else 1 for n in shape])
    hr, sr = textured(shape), textured(shape, 1)
    edges, error = (ndimage.convolve(v, kernel) for v in (hr, sr - hr))
    expected = np.linalg.norm(error) / np.linalg.norm(edges)
    assert hfen(hr, sr) == pytest.approx(expected, rel=1e-4)
    assert hfen(hr + 50, sr + 50) == pytest.approx(expected, rel=1e-4)
    inside = hr > 0.5
    expected = np.linalg.norm(error[inside]) / np.linalg.norm(edges[inside])
    assert hfen(hr, sr, mask=inside) == pytest.approx(expected, rel=1e-4)
    assert hfen(hr, hr) == 0 and np.isnan(hfen(hr * 0, sr))


@pytest.mark.parametrize("shape", [(48, 48, 48), (49, 44, 31)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resolution_is_the_period_where_frequencies_end_on_their_axis_alone(shape, axis):
    spacing = (0.7, 1.0, 2.5)
    hr = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spectrum = np.fft.fftn(hr)
    kept = np.abs(np.fft.fftfreq(shape[axis])) <= 1 / 5  # periods of five voxels and more
    sr = np.fft.ifftn(spectrum * np.expand_dims(kept, [a for a in range(3) if a != axis])).real
    found = resolution(hr, sr, spacing)
    periods = np.array([2.0, 2.0, 2.0])
    periods[axis] = 5
    shells = [np.multiply(shape, spacing) / found, shape / periods]
    np.testing.assert_allclose(*shells, atol=1.2)
    np.testing.assert_allclose(resolution(hr, 3 * sr + 5, spacing), found, rtol=1e-4)


def test_resolution_of_equal_scans_of_images_and_of_nothing_in_common():
    hr = textured((40, 41, 42))
    assert resolution(hr, hr, (1, 2, 3)) == pytest.approx((2, 4, 6))
    other = np.random.default_rng(5).standard_normal(hr.shape)
    assert min(resolution(hr, other, (1, 1, 1))) > 15
    *in_plane, across = resolution(hr[..., :1], hr[..., :1], (1, 1, 5))
    assert in_plane == pytest.approx([2, 2]) and np.isnan(across)
