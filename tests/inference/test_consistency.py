"""A told kernel: the result gives the scan when it is degraded again, in its place, and is better for it."""

import numpy as np
import pytest
from scipy import ndimage

import srlib
from srlib.core.paths import InputError
from srlib.degradations.resolution import GaussianDownsample
from srlib.inference.consistency import consistent, kernel_of, noise_of
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
    assert psnr(head, told) > psnr(head, blind) + 0.3
    rest = [np.std(srlib.degrade(made, task).data - lr.data) for made in (told, blind)]
    assert rest[0] < 0.5 * rest[1]


def test_a_zero_filled_scan_is_truncated_again(head):
    lr = srlib.degrade(head, "kspace_x2_3d")
    told = srlib.super_resolve(lr, zero_filled=(2, 2, 2), kernel="kspace")
    blind = srlib.super_resolve(lr, zero_filled=(2, 2, 2))
    assert psnr(head, told) > psnr(head, blind) + 0.2
    with pytest.raises(InputError, match="zero-filled scan has the kernel kspace"):
        srlib.super_resolve(lr, zero_filled=(2, 2, 2), kernel="box")


def test_what_is_smooth_stays_smooth():
    """Content that is smoother than its grid is not sharpened beyond what the kernel took."""
    z = ndimage.zoom(np.random.default_rng(0).standard_normal((8, 8, 8)), 8, order=3)
    truth = Volume(500 + 300 * np.tanh(2 * z), np.eye(4))
    lr = srlib.degrade(truth, "block_x2")
    spline = resample(lr, truth.shape, truth.affine)
    assert psnr(truth, srlib.super_resolve(lr)) < psnr(truth, spline) - 3  # the fault
    assert psnr(truth, srlib.super_resolve(lr, kernel="box")) > psnr(truth, spline) + 2


def test_noise_is_measured_and_not_sharpened(head):
    degradation = GaussianDownsample((2, 2, 2), 1.0)
    rng, clean = np.random.default_rng(1), degradation(head)
    noisy = clean.with_data(clean.data + rng.normal(0, 30, clean.shape))
    assert noise_of(noisy.data) == pytest.approx(30, rel=0.25)
    assert noise_of(np.ones((8, 8, 8))) == 0.0
    start = resample(noisy, head.shape, head.affine)
    made = consistent(start, start, noisy, degradation, "gaussian")
    assert psnr(head, made) > psnr(head, start)


def test_a_constant_scan_and_one_slice_are_taken():
    flat = Volume(np.full((9, 8, 7), 3.0), np.eye(4))
    coarse = GaussianDownsample((2, 2, 2), 1.0)(flat)
    made = consistent(flat, flat, coarse, GaussianDownsample((2, 2, 2), 1.0), "gaussian")
    assert np.allclose(made.data, 3.0)
    image = Volume(np.random.default_rng(0).random((24, 24, 1)), np.eye(4))
    assert srlib.super_resolve(image, factor=(2, 2, 1), kernel="box").shape == (48, 48, 1)


@pytest.mark.parametrize("text", ["gaussian", "gaussian:", "gaussian:a", "gaussian:-1", "box:2"])
def test_a_wrong_kernel_is_one_line(text):
    with pytest.raises(InputError, match="kernel"):
        kernel_of(text, (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))


def test_kernels_that_factors_do_not_allow(head):
    with pytest.raises(InputError, match="unknown kernel 'gauss'; did you mean 'gaussian'"):
        kernel_of("gauss:1", (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))
    with pytest.raises(InputError, match="whole factors"):
        kernel_of("box", (1.5, 1.5, 1.0), (1.5, 1.5, 1.0))
