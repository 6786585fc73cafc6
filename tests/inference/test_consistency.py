"""A told kernel: the result gives the scan when it is degraded again, in its place, and is better for it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import srlib
from srlib.core.paths import InputError
from srlib.degradations.kernels import Kernel, estimated, told
from srlib.degradations.resolution import BlockAverage, GaussianDownsample
from srlib.inference.consistency import consistent, noise_of
from srlib.scans.volume import Volume, resample


@pytest.fixture
def head(oblique):
    """Blobs of many sizes within a ball, on an oblique grid."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 44, 40)), indexing="ij")
    texture = sum(
        ndimage.gaussian_filter(rng.standard_normal((48, 44, 40)), s) * s**1.5 for s in (1, 2, 4)
    )
    inside = sum((g / 0.85) ** 2 for g in grid) < 1
    data = ndimage.gaussian_filter(inside * (600 + 150 * np.sign(texture)), 0.6)
    return Volume(data, oblique)


def psnr(truth, estimate):
    return srlib.measure(truth, estimate)["volume"]["psnr"]


@pytest.mark.parametrize(
    ("task", "kernel", "factor"),
    [
        ("gaussian_x2", "gaussian:1.0", (2, 2, 2)),
        ("block_x2", "box", (2, 2, 2)),
        ("thick_1x1x3", "gaussian:1.26", (1, 1, 3)),
    ],
)
def test_a_told_kernel_gains_and_the_grid_stays(head, task, kernel, factor):
    lr = srlib.degrade(head, task)
    told, blind = (srlib.super_resolve(lr, factor=factor, kernel=k) for k in (kernel, None))
    assert np.allclose(told.affine, blind.affine) and told.shape == blind.shape
    assert psnr(head, told) > psnr(head, resample(lr, head.shape, head.affine)) + 1.5
    rest = [np.std(srlib.degrade(made, task).data - lr.data) for made in (told, blind)]
    assert rest[0] < rest[1] * (1.0 if kernel == "box" else 0.5)  # a Gaussian stands for the box


def test_a_zero_filled_scan_is_truncated_again(head):
    lr = srlib.degrade(head, "kspace_x2_3d")
    told, first = (
        srlib.super_resolve(lr, zero_filled=(2, 2, 2), kernel=k) for k in ("kspace", None)
    )
    np.testing.assert_array_equal(told.data, first.data)  # what zero-filling means
    assert psnr(head, told) > psnr(head, lr) + 0.3


def smooth_map(seed):
    """A map that varies over 8 voxels, as in PET or perfusion."""
    z = ndimage.zoom(np.random.default_rng(seed).standard_normal((8, 8, 8)), 8, order=3)
    return 500 + 300 * np.tanh(2 * z)


def phantom(seed, border):
    """Balls in a body, as in CT, in HU, with borders of a Gaussian of ``border`` voxels."""
    rng, grid = np.random.default_rng(seed), np.indices((64, 64, 64)) / 32 - 1
    data = np.where((grid**2).sum(0) < 0.75, 40.0, -1000.0)
    for _ in range(8):
        ball = sum((g - c) ** 2 for g, c in zip(grid, rng.uniform(-0.5, 0.5, 3), strict=True))
        data[ball < rng.uniform(0.06, 0.3) ** 2] = rng.choice([-800, -100, 80, 150, 400, 1000])
    return ndimage.gaussian_filter(data, border)


CONTENT = {
    "map": smooth_map,
    "soft borders": lambda seed: phantom(seed, 1.5),
    "hard borders": lambda seed: phantom(seed, 0.4),
}


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize(
    "task",
    ["block_x2", "gaussian_x2", "thick_1x1x3", "kspace_x2_inplane", BlockAverage((3, 3, 1))],
    ids=str,
)
def test_whatever_the_content_the_result_is_not_below_the_spline(content, task):
    """By default it stays above the spline and near the scan's range; told, it gains more."""
    truth = Volume(CONTENT[content](7), np.eye(4))
    pair = srlib.load_model().pairs.degrade(truth, task)
    spline, kernel = pair.on_grid, srlib.degradations.degradation_of(task).kernel
    made, told = (srlib.load_model().predict_pair(pair, kernel=k) for k in (None, kernel))
    assert psnr(truth, made) > psnr(truth, spline) - 0.05
    assert np.ptp(made.data) < 1.2 * np.ptp(pair.lr.data) + 1e-3
    if kernel != "kspace":
        assert psnr(truth, made) > psnr(truth, spline) + 0.3
        assert psnr(truth, told) > psnr(truth, spline) + 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["block_x2", "gaussian_x2", "thick_1x1x3"])
def test_what_is_smooth_stays_smooth(task, seed):
    """Content that is smoother than its grid is not sharpened beyond its range, told or not."""
    truth = Volume(smooth_map(seed), np.eye(4))
    lr = srlib.degrade(truth, task)
    spline = resample(lr, truth.shape, truth.affine)
    factor = (1, 1, 3) if "thick" in task else (2, 2, 2)
    for kernel in (None, srlib.degradations.degradation_of(task).kernel):
        made = srlib.super_resolve(lr, factor=factor, kernel=kernel)
        assert psnr(truth, made) > psnr(truth, spline) + 0.5, kernel
        assert np.ptp(made.data) < 1.25 * np.ptp(lr.data), kernel


def test_the_width_is_estimated(head):
    """Kernels are found at about their width with the content's own; a few slices show nothing."""
    found = []
    for sigma in (0.5, 1.0, 1.6):
        lr = GaussianDownsample((2, 2, 2), sigma)(head)
        kernel = estimated(lr.data, (2.0, 2.0, 2.0))
        assert not kernel.told and kernel.least < 0.9 and len(set(kernel.sigma)) == 1
        found.append(kernel.sigma[0])
    assert np.allclose(found, np.hypot((0.5, 1.0, 1.6), 0.6), rtol=0.25)
    few = estimated(head.data[..., :5], (1.0, 1.0, 3.0))
    assert few == replace(told("box", (1.0, 1.0, 3.0)), told=False)


def test_noise_is_measured_and_not_sharpened(head):
    degradation = GaussianDownsample((2, 2, 2), 1.0)
    rng, clean = np.random.default_rng(1), degradation(head)
    noisy = clean.with_data(clean.data + rng.normal(0, 30, clean.shape))
    assert noise_of(noisy.data) == pytest.approx(30, rel=0.3)
    assert noise_of(np.ones((8, 8, 8))) == 0.0
    start = resample(noisy, head.shape, head.affine)
    made = consistent(start, start, noisy, Kernel((2, 2, 2), (1, 1, 1)))
    assert psnr(head, made) > psnr(head, start) - 0.1


def test_a_constant_scan_and_one_slice_are_taken():
    flat = Volume(np.full((9, 8, 7), 3.0), np.eye(4))
    coarse = GaussianDownsample((2, 2, 2), 1.0)(flat)
    made = consistent(flat, flat, coarse, Kernel((2, 2, 2), (1, 1, 1)))
    assert np.allclose(made.data, 3.0)
    image = Volume(np.random.default_rng(0).random((24, 24, 1)), np.eye(4))
    assert srlib.super_resolve(image, factor=(2, 2, 1), kernel="box").shape == (48, 48, 1)


@pytest.mark.parametrize("text", ["gaussian", "gaussian:", "gaussian:a", "gaussian:-1", "box:2"])
def test_a_wrong_kernel_is_one_line(text):
    with pytest.raises(InputError, match="kernel"):
        told(text, (2.0, 2.0, 2.0))


def test_a_misspelt_kernel_is_named():
    with pytest.raises(InputError, match=r"unknown kernel 'gauss'.*did you mean 'gaussian'"):
        told("gauss:1", (2.0, 2.0, 2.0))
