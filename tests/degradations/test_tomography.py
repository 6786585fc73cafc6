"""Projections and reconstructions are scikit-image's, and lie where the line integrals lie."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import iradon
from skimage.transform import radon as skimage_radon

from srlib.data.phantoms import ct_slice
from srlib.degradations.tomography import detectors, fbp, radon


def half_turn(views):
    return np.linspace(0, 180, views, endpoint=False)


def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def ellipse(size, a, b, x, y, phi):
    """An ellipse about (x, y) from the axis, x along columns and y up, and its exact sinogram at 90 angles."""
    fine = (np.arange(size * 8) + 0.5) / 8 - 0.5 - size // 2
    u, v = fine - x, -fine[:, None] - y
    inside = ((u * np.cos(phi) + v * np.sin(phi)) / a) ** 2 + (
        (v * np.cos(phi) - u * np.sin(phi)) / b
    ) ** 2 <= 1
    t, theta = np.arange(detectors(size)) - detectors(size) // 2, np.deg2rad(half_turn(90))[:, None]
    width = a**2 * np.cos(theta - phi) ** 2 + b**2 * np.sin(theta - phi) ** 2
    chord = np.clip(width - (t - x * np.cos(theta) - y * np.sin(theta)) ** 2, 0, None)
    return inside.reshape(size, 8, size, 8).mean(
        (1, 3), dtype=np.float32
    ), 2 * a * b / width * np.sqrt(chord)


@pytest.mark.parametrize(("size", "step"), [(128, 8), (97, 8), (64, 8)])
def test_agrees_with_scikit_image(size, step):
    image, angles = ct_slice(np.random.default_rng(size), size) + 1000, half_turn(256)
    theirs, ours = skimage_radon(image, angles, circle=False), radon(image, angles)
    assert ours.shape == (256, detectors(size)) == theirs.T.shape
    assert error(ours, theirs.T) < 0.003
    full = iradon(theirs, angles, size, circle=False)
    sparse = iradon(theirs[:, ::step], angles[::step], size, circle=False)
    assert error(fbp(ours, angles, size), full) < 0.01
    difference = error(fbp(ours[::step], angles[::step], size), sparse)
    assert difference < 0.03
    assert difference < 0.5 * error(sparse, full)  # small beside what views leave out


@pytest.mark.parametrize("size", [128, 95])
@pytest.mark.parametrize("shape", [(0.3, 0.2, 0.06, -0.04, 0.4), (0.1, 0.06, 0.2, 0.1, 1.0)])
def test_an_ellipse_has_its_exact_sinogram(size, shape):
    image, exact = ellipse(size, *(size * s for s in shape[:4]), shape[4])
    ours = error(radon(image, half_turn(90)), exact)
    assert ours < 1.005 * error(skimage_radon(image, half_turn(90), circle=False).T, exact)
    assert ours < 4 / size


@pytest.mark.parametrize("size", [64, 65])
def test_a_blob_stays_where_it_is(size):
    row, column = 5.3, -11.6  # from the axis of rotation
    at = np.arange(size) - size // 2
    blob = np.exp(-((at[:, None] - row) ** 2 + (at - column) ** 2) / 18)
    angles = half_turn(60)
    sinogram = radon(blob, angles)
    t = np.arange(detectors(size)) - detectors(size) // 2
    expected = column * np.cos(np.deg2rad(angles)) - row * np.sin(np.deg2rad(angles))
    np.testing.assert_allclose(sinogram @ t / sinogram.sum(1), expected, atol=0.01)
    np.testing.assert_allclose(sinogram.sum(1), blob.sum(), rtol=1e-3)
    back = fbp(sinogram, angles, size)
    back = np.where(back > 0.05, back, 0)
    centre = [(back.sum(1) @ at) / back.sum(), (back.sum(0) @ at) / back.sum()]
    np.testing.assert_allclose(centre, (row, column), atol=0.05)


def test_a_full_frame_comes_back_without_offset_or_cut():
    image, angles = np.full((64, 64), 3.0), half_turn(200)
    back = fbp(radon(image, angles), angles, 64)
    np.testing.assert_allclose(back[16:48, 16:48].mean(), 3, rtol=0.005)
    for corner in (back[2:6, 2:6], back[2:6, -6:-2], back[-6:-2, 2:6], back[-6:-2, -6:-2]):
        assert corner.mean() == pytest.approx(3, rel=0.05)


def test_a_full_frame_is_scikit_images_but_for_its_border():
    """A jump along an axis lies beyond the frequencies that are kept, so the outermost pixels differ."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 3) + 0.2
    angles = half_turn(200)
    theirs = skimage_radon(image, angles, circle=False)
    for step in (1, 8):
        back = fbp(radon(image, angles)[::step], angles[::step], 64)[4:-4, 4:-4]
        assert (
            error(back, iradon(theirs[:, ::step], angles[::step], 64, circle=False)[4:-4, 4:-4])
            < 0.01
        )


def test_projections_are_linear(noise):
    a, b = noise((2, 33, 33))
    angles = half_turn(20)
    sinograms = [radon(image, angles) for image in (a, b)]
    assert sinograms[0].shape == (20, 47)
    np.testing.assert_allclose(
        radon(2 * a - 3 * b, angles), 2 * sinograms[0] - 3 * sinograms[1], atol=1e-3
    )
    assert sinograms[0].dtype == fbp(sinograms[0], angles, 33).dtype == np.float32
