"""The degradations do what their papers write, and their images stay in place."""

import functools

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import iradon, radon

from srlib import systems
from srlib.core.paths import InputError
from srlib.data.phantoms import ct_slice
from srlib.degradations.resolution import (
    BlockAverage,
    GaussianDownsample,
    KSpaceTruncation,
    ScanlineDecimation,
    SparseView,
    rician,
)
from srlib.degradations.tasks import degradation_of
from srlib.evaluation.benchmark import BENCHMARK
from srlib.scans.volume import Volume


def half_up(x):
    return int(np.floor(x + 0.5))


@pytest.mark.parametrize("shape", [(16, 20, 24), (15, 21, 25), (10, 18, 22), (7, 1, 320)])
@pytest.mark.parametrize(("factor", "divisor"), [(2, 4), (5, 2.5)])
def test_kspace_truncation_is_that_of_the_truncation_script(shape, factor, divisor, noise):
    hr = Volume(noise(shape), np.eye(4))
    spectrum = np.fft.fftshift(np.fft.fft2(hr.data.astype(np.float64), axes=(1, 2)), axes=(1, 2))
    for axis in (1, 2):
        n, line = shape[axis], np.moveaxis(spectrum, axis, 0)
        z = half_up(n / divisor)
        if 2 * z < n:
            line[:z] = line[n - z :] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2)), axes=(1, 2)))
    np.testing.assert_allclose(KSpaceTruncation((1, factor, factor))(hr).data, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 20, 24), (15, 21, 25), (10, 18, 9)])
@pytest.mark.parametrize("factor", [(1, 2, 2), (5, 1, 2), (1.5, 3, 2.5)])
def test_kspace_truncation_keeps_the_promised_samples(shape, factor):
    """On a constant background the magnitude is linear, and a point's height is the share of samples kept."""
    degradation = KSpaceTruncation(factor)
    point = np.ones(shape)
    point[3, 4, 5] += 0.01
    out = degradation(Volume(point, np.eye(4))).data.astype(np.float64)
    share = (out[3, 4, 5] - 1) / 0.01
    assert share * np.prod(shape) == pytest.approx(np.prod(degradation.kept(shape)), rel=1e-3)
    for n, f, kept in zip(shape, factor, degradation.kept(shape), strict=True):
        assert abs(kept - n / f) <= 1
        assert kept == n or f > 1


def test_kspace_truncation_counts_lines_as_the_page_does():
    assert KSpaceTruncation((1, 2, 2)).kept((256, 320, 320)) == (256, 160, 160)
    assert KSpaceTruncation((1, 5, 5)).kept((256, 320, 320)) == (256, 64, 64)
    assert KSpaceTruncation(2).kept((10, 11, 13)) == (4, 5, 7)  # 2.5 lines at an end round up


def test_kspace_truncation_does_not_mix_slices_of_an_untouched_axis(noise):
    hr = Volume(noise((6, 12, 14)), np.eye(4))
    whole = KSpaceTruncation((1, 2, 2))(hr).data
    for i in range(6):
        alone = KSpaceTruncation((1, 2, 2))(Volume(hr.data[i : i + 1], np.eye(4))).data
        np.testing.assert_allclose(whole[i : i + 1], alone, atol=1e-6)
    np.testing.assert_allclose(KSpaceTruncation(1)(hr).data, hr.data, atol=1e-6)


def test_kspace_truncation_that_leaves_nothing_is_refused(noise):
    with pytest.raises(InputError, match="no k-space"):
        KSpaceTruncation(100)(Volume(noise((4, 4, 4)), np.eye(4)))


SHAPE = (25, 24, 31)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 3), (2.5, 2.5, 2.5), (1, 1, 1.7)])
@pytest.mark.parametrize("sigma", [1.0, (0.5, 1.0, 1.5)])
def test_corner_alignment_is_blur_and_scipy_zoom(factor, sigma, noise, oblique):
    hr = Volume(noise(SHAPE), oblique)
    degradation = GaussianDownsample(factor, sigma, align="corners")
    lr = degradation(hr)
    wide = np.broadcast_to(sigma, 3) * (np.array(factor) > 1)
    blurred = ndimage.gaussian_filter(hr.data.astype(np.float64), wide, mode="reflect")
    expected = ndimage.zoom(blurred, 1 / np.array(factor), order=3)
    np.testing.assert_allclose(lr.data, expected, atol=1e-5)
    back = ndimage.zoom(expected, np.divide(SHAPE, lr.shape), order=3)
    np.testing.assert_allclose(degradation.to_grid(lr, SHAPE).data, back, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_evaluation_of_3d_srgan_samples_by_a_smoothing_spline(factor, noise):
    hr = noise((24, 16, 20))  # no size at which SciPy rounds beyond the face
    blurred = ndimage.gaussian_filter(hr[..., np.newaxis].astype(np.float64), sigma=1)
    res = 1 / factor
    expected = ndimage.zoom(blurred, [res, res, res, 1], prefilter=False)[..., 0]
    lr = degradation_of(f"gaussian_x{factor}_smoothed")(Volume(hr, np.eye(4))).data
    np.testing.assert_allclose(lr, expected, atol=1e-6)
    sharp = degradation_of("gaussian_x4_corners")(Volume(hr, np.eye(4))).data
    assert factor == 2 or np.abs(lr - sharp).max() > 0.05


def test_an_axis_of_factor_one_is_left_alone(noise):
    hr = Volume(noise(SHAPE), np.eye(4))
    np.testing.assert_allclose(GaussianDownsample(1)(hr).data, hr.data, atol=1e-5)
    slab = GaussianDownsample((1, 2, 2))
    alone = slab(hr.with_data(hr.data[7:8])).data
    np.testing.assert_allclose(slab(hr).data[7:8], alone, atol=1e-5)


@pytest.mark.parametrize("factor", [2, (1, 2, 4), (2.5, 1.3, 1)])
def test_center_alignment_keeps_the_field_of_view(factor, noise, affine, to_world):
    lr = GaussianDownsample(factor)(Volume(noise(SHAPE), affine))
    factor = np.broadcast_to(factor, 3)
    assert lr.shape == tuple(np.ceil(np.divide(SHAPE, factor)).astype(int))
    np.testing.assert_allclose(
        to_world(lr.affine, (-0.5,) * 3), to_world(affine, (-0.5,) * 3), atol=1e-9
    )
    np.testing.assert_allclose(lr.affine[:3, :3], affine[:3, :3] * factor)


DEGRADATIONS = {
    "kspace": KSpaceTruncation((1, 2, 2)),
    "kspace odd": KSpaceTruncation((5, 1, 2.5)),
    "center": GaussianDownsample(2),
    "center fractional": GaussianDownsample((2.5, 1.5, 1)),
    "center linear": GaussianDownsample((1, 2, 3), order=1),
    "corners": GaussianDownsample(2, align="corners"),
    "corners fractional": GaussianDownsample((2.5, 1.5, 1), align="corners"),
    "scanline": ScanlineDecimation(3),
    "sparse view": SparseView(2, views=120),
}


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(25, 31, 27), (24, 30, 32), (33, 26, 29)])
def test_down_and_back_leaves_a_blob_in_place(name, shape, affine, blob, centre_of_mass):
    degradation, hr = DEGRADATIONS[name], blob(shape, affine, sigma=3.0)
    lr = degradation(hr)
    back = degradation.to_grid(lr, shape)
    assert back.shape == shape
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)
    for image in (back, *([] if name.startswith("kspace") else [lr])):
        inner = Volume(
            np.where(image.data > 0.02, image.data, 0), image.affine
        )  # ringing has no centre
        moved = np.linalg.solve(affine[:3, :3], centre_of_mass(inner) - centre_of_mass(hr))
        assert np.abs(moved).max() < 0.05


@pytest.mark.parametrize("order", [0, 1, 3])
def test_to_grid_interpolates_at_the_given_order(order, noise):
    lr = Volume(noise((9, 8, 7)), np.eye(4))
    out = GaussianDownsample(2).to_grid(lr, (18, 16, 14), order=order).data
    at = np.indices((18, 16, 14)) / 2 - 0.25
    np.testing.assert_allclose(
        out, ndimage.map_coordinates(lr.data, at, order=order, mode="mirror"), atol=1e-5
    )


@pytest.mark.parametrize("make", [KSpaceTruncation, GaussianDownsample])
@pytest.mark.parametrize(
    "factor", [0.5, 0, -2, np.nan, np.inf, (2, 2), (2, 2, 2, 2), (1, 2, 0.9), ()]
)
def test_bad_factors_are_refused(make, factor):
    with pytest.raises(InputError, match="factor"):
        make(factor)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigma", -1), ("sigma", (1, 1)), ("sigma", np.nan), ("sigma", (1, np.inf, 1)), ("order", 6), ("order", -1),
     ("order", 1.5), ("order_up", 6), ("align", "edges")],
)  # fmt: skip
def test_bad_settings_are_refused(name, value, noise):
    with pytest.raises(InputError, match=name):
        GaussianDownsample(2, **{name: value})(Volume(noise((4, 4, 4)), np.eye(4)))


@pytest.mark.parametrize("width", [24, 25, 27])
def test_scanline_decimation_keeps_columns_and_interpolates_between_them(
    width, noise, affine, to_world
):
    hr = Volume(noise((width, 10, 5)), affine)
    degradation = ScanlineDecimation(4)
    lr = degradation(hr)
    np.testing.assert_array_equal(lr.data, hr.data[::4])
    for column in range(len(lr.data)):
        np.testing.assert_allclose(
            to_world(lr.affine, (column, 3, 2)), to_world(affine, (4 * column, 3, 2))
        )
    last = 4 * (len(lr.data) - 1)
    for order in (1, 3):
        back = degradation.to_grid(lr, hr.shape, order=order)
        assert back.shape == hr.shape
        np.testing.assert_allclose(back.affine, affine, atol=1e-9)
        np.testing.assert_allclose(back.data[::4], hr.data[::4], atol=1e-4)
        alone = degradation.to_grid(
            Volume(lr.data[:, 3:4, 1:2], lr.affine), (width, 1, 1), order=order
        ).data
        np.testing.assert_allclose(back.data[:, 3:4, 1:2], alone, atol=1e-4)
    linear = degradation.to_grid(lr, hr.shape, order=1).data[: last + 1, 3, 2]
    np.testing.assert_allclose(
        linear, np.interp(np.arange(last + 1), np.arange(0, width, 4), lr.data[:, 3, 2]), atol=1e-5
    )


def published_pair(image, views, factor):
    """The published pair of one slice of pixels [y, x], from its own least value."""
    theta, low, size = np.linspace(0, 180, views, endpoint=False), image.min(), len(image)
    sinogram = radon(image - low, theta, circle=False)
    sparse = iradon(sinogram[:, ::factor], theta[::factor], size, circle=False)
    return sparse + low, iradon(sinogram, theta, size, circle=False) + low


def test_sparse_view_is_the_published_pair():
    data = np.stack(
        [ct_slice(np.random.default_rng(seed), 64) + 100 * seed for seed in range(3)], axis=-1
    )
    hr, degradation = Volume(data, np.eye(4)), SparseView(8, views=200)
    lr, truth = degradation.pair(hr)
    for k in range(3):
        sparse, full = published_pair(hr.data[..., k].T, 200, 8)
        low = hr.data[..., k].min()
        assert np.linalg.norm(lr.data[..., k].T - sparse) < 0.03 * np.linalg.norm(sparse - low)
        assert np.linalg.norm(truth.data[..., k].T - full) < 0.015 * np.linalg.norm(full - low)
        alone = Volume(hr.data[..., k : k + 1], np.eye(4))
        np.testing.assert_allclose(degradation(alone).data[..., 0], lr.data[..., k], atol=0.01)
        np.testing.assert_allclose(
            degradation.pair(alone)[1].data[..., 0], truth.data[..., k], atol=0.01
        )
    assert degradation.to_grid(lr, hr.shape) is lr


def test_sparse_view_follows_the_background_and_the_scale(noise):
    hr, degradation = Volume(noise((32, 32, 2)), np.eye(4)), SparseView(4, views=60)
    scaled = degradation(hr.with_data(hr.data * 1000 - 900))
    np.testing.assert_allclose(scaled.data, degradation(hr).data * 1000 - 900, atol=0.5)
    flat = hr.with_data(np.full(hr.shape, -1000.0))
    np.testing.assert_allclose(degradation(flat).data, -1000)


@pytest.mark.parametrize("shape", [(40, 31, 1), (24, 33, 2)])
def test_sparse_view_pads_slices_that_are_not_square(shape, noise):
    hr, degradation, size = Volume(noise(shape), np.eye(4)), SparseView(4, views=100), max(shape)
    x, y = (size // 2 - n // 2 for n in shape[:2])
    square = np.zeros((size, size, shape[2]))
    square[x : x + shape[0], y : y + shape[1]] = hr.data - hr.data.min(axis=(0, 1))
    whole = degradation(Volume(square, np.eye(4))).data[x : x + shape[0], y : y + shape[1]]
    np.testing.assert_allclose(degradation(hr).data, whole + hr.data.min(axis=(0, 1)), atol=1e-4)


@pytest.mark.parametrize("make", [ScanlineDecimation, SparseView])
@pytest.mark.parametrize("factor", [0, 1.5, -2, np.nan, np.inf, (2, 2)])
def test_factors_of_columns_and_views_are_whole(make, factor):
    with pytest.raises(InputError, match="factor"):
        make(factor)


@pytest.mark.parametrize(("name", "value"), [("views", 0), ("views", 2.5)])
def test_bad_settings_of_sparse_view_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        SparseView(2, **{name: value})


def test_tasks_of_unknown_degradations_are_refused():
    with pytest.raises(InputError, match="blurring"):
        degradation_of("mine", {"mine": ("blurring", {"factor": 2})})


@pytest.mark.parametrize(
    ("factor", "expected"), [((2, 2, 2), (24, 18, 30)), ((3, 1, 2.5), (24, 19, 30))]
)
def test_the_published_model_cuts_to_a_multiple_of_the_factor(factor, expected):
    assert GaussianDownsample(factor, whole=True).usable((25, 19, 31)) == expected
    assert GaussianDownsample(factor).usable((25, 19, 31)) == (25, 19, 31)


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3), (1, 1, 3), (2, 1, 2.5)])
def test_the_published_model_is_the_codes_own_order(factor, affine):
    """gaussian_filter of the whole scan along all axes, modcrop, zoom down, zoom up.

    In zoom's own mode, constant, the last row of some sizes is 0: rounding puts it beyond the edge.
    """
    zoom = functools.partial(ndimage.zoom, order=3, mode="mirror")
    hr = Volume(np.random.default_rng(0).random((53, 56, 45)), affine)
    scale, data = np.array(factor, float), hr.data.astype(np.float64)
    sides = tuple(slice(0, int(n - np.fmod(n, f))) for n, f in zip(hr.shape, scale, strict=True))
    down = zoom(ndimage.gaussian_filter(data, 1)[sides], 1 / scale)
    up = zoom(down, scale)
    settings = "degradation.factor=" + ",".join(map(str, factor))
    pair = systems.get("recnn", "paper", [settings]).pairs.degrade(hr)
    np.testing.assert_allclose(pair.lr.data, down, atol=1e-5)
    np.testing.assert_array_equal(pair.hr.data, hr.data[sides])
    if up.shape == pair.hr.shape:
        np.testing.assert_allclose(pair.on_grid.data, up, atol=1e-5)
    # a record of before keeps its own order: the cut first, and no blur along axes of factor 1
    old = GaussianDownsample(factor, align="corners", whole=True)
    blurred = ndimage.gaussian_filter(data[sides], np.greater(scale, 1))
    np.testing.assert_allclose(old(hr).data, zoom(blurred, 1 / scale), atol=1e-5)
    last = np.abs(old(hr).data - down).max()
    assert last > 0.02 or factor == (3, 3, 3)  # 54 and 45 are cut little


@pytest.mark.parametrize("order", [1, 2])
def test_the_spline_back_has_an_order_of_its_own(order, noise):
    hr = Volume(noise((12, 14, 16)), np.eye(4))
    degradation = GaussianDownsample(2, align="corners", order=order, order_up=order)
    down = ndimage.zoom(ndimage.gaussian_filter(hr.data.astype(np.float64), 1), 0.5, order=order)
    back = degradation.to_grid(degradation(hr), hr.shape)
    np.testing.assert_allclose(back.data, ndimage.zoom(down, 2, order=order), atol=1e-5)


def test_blocks_are_averaged_and_stay_in_place(noise, oblique, to_world):
    hr = Volume(noise((6, 8, 9)), oblique)
    lr = BlockAverage((2, 1, 3))(hr)
    assert lr.shape == (3, 8, 3)
    np.testing.assert_allclose(lr.data[1, 5, 2], hr.data[2:4, 5, 6:9].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        to_world(lr.affine, (0, 0, 0)), to_world(hr.affine, (0.5, 0, 1)), atol=1e-9
    )
    assert BlockAverage(2)(Volume(np.full((5, 5, 5), 3.0), np.eye(4))).data == pytest.approx(3.0)
    ramp = Volume(np.fromfunction(lambda x, y, z: 2 * x - y + 3 * z, (24, 22, 26)), oblique)
    back = BlockAverage((2, 2, 2))
    inside = (slice(9, -9),) * 3
    np.testing.assert_allclose(
        back.to_grid(back(ramp), ramp.shape).data[inside], ramp.data[inside], atol=0.05
    )
    with pytest.raises(InputError, match="whole number"):
        BlockAverage((2.5, 1, 1))


def test_noise_is_that_of_magnitude_images_and_always_the_same():
    flat = np.zeros((40, 40, 40))
    flat[20:] = 100
    scan = Volume(flat, np.eye(4))
    noisy = rician(scan, 0.05, np.random.default_rng(1)).data
    assert noisy[20:].std() == pytest.approx(5, rel=0.05) and noisy.min() >= 0
    assert noisy[:20].mean() == pytest.approx(
        5 * np.sqrt(np.pi / 2), rel=0.02
    )  # Rayleigh where nothing is
    degradation = GaussianDownsample(2, noise=0.02)
    assert np.array_equal(degradation(scan).data, degradation(scan).data)
    clean = GaussianDownsample(2)(scan).data
    assert np.std(degradation(scan).data[12:] - clean[12:]) == pytest.approx(
        0.02 * clean.max(), rel=0.1
    )
    with pytest.raises(InputError, match="noise"):
        GaussianDownsample(2, noise=-0.1)


SIGNED = {  # a scan normalised to mean 0 and std 1, CT in HU, and one all below 0
    "normalised": lambda smooth: smooth / smooth.std(),
    "hu": lambda smooth: -1000 + 1050 * (smooth > 0),
    "below": lambda smooth: smooth / smooth.std() - 10,
}


@pytest.mark.parametrize("kind", SIGNED)
@pytest.mark.parametrize("task", BENCHMARK)
def test_sign_and_mean_of_a_scan_are_kept(kind, task):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((32, 32, 24)), 2)
    hr = Volume(SIGNED[kind](smooth - smooth.mean()), np.eye(4))
    degradation = degradation_of(task)
    lr = degradation.to_grid(degradation(hr), hr.shape)
    assert np.corrcoef(hr.data.ravel(), lr.data.ravel())[0, 1] > 0.75
    assert abs(lr.data.mean() - hr.data.mean()) < 0.03 * np.ptp(hr.data)
    assert lr.data.min() < hr.data.min() + 0.45 * np.ptp(hr.data)


def test_noise_of_signed_scans_is_gaussian():
    scan = Volume(np.where(np.indices((40, 40, 40))[0] < 20, -1000.0, 0.0), np.eye(4))
    noise = rician(scan, 0.02, np.random.default_rng(1), signed=True).data - scan.data
    assert noise.std() == pytest.approx(20, rel=0.02) and abs(noise.mean()) < 0.5
    folded = rician(scan.with_data(scan.data + 1000), 0.02, np.random.default_rng(1)).data
    assert folded.min() >= 0 and folded[:20].mean() == pytest.approx(
        20 * np.sqrt(np.pi / 2), rel=0.02
    )


def test_twelve_bits_hold_no_negative_values(noise):
    with pytest.raises(InputError, match="shift it to begin at 0"):
        KSpaceTruncation((1, 5, 5), stored_12bit=True)(Volume(noise((8, 10, 12)) - 0.5, np.eye(4)))
