"""Simulated images look like what they claim: HU in their ranges, Rayleigh speckle, never the same twice."""

import numpy as np
import pytest
from scipy import ndimage

from srlib.data.phantoms import bmode, ct_slice, echoes


def envelope(image):
    """Undo the log compression."""
    return 10 ** ((image.astype(float) - 1) * 60 / 20)


@pytest.mark.parametrize("size", [64, 127])
def test_a_ct_slice_is_air_around_a_skull_around_a_brain(size):
    image = ct_slice(np.random.default_rng(0), size)
    assert image.shape == (size, size) and image.dtype == np.float32
    middle = slice(size // 2 - size // 8, size // 2 + size // 8)
    assert np.median(image[middle, middle]) == pytest.approx(28, abs=15)  # white matter
    for corner in (image[:6, :6], image[:6, -6:], image[-6:, :6], image[-6:, -6:]):
        assert corner.mean() == pytest.approx(-1000, abs=5)
    for line in (image[size // 2], image[:, size // 2]):
        bone = np.flatnonzero(line > 600)
        assert bone[0] < size / 3 and bone[-1] > 2 * size / 3  # it closes around
        assert (line[bone[0] + 4 : bone[-1] - 3] < 600).mean() > 0.9
    assert ndimage.label(image < -500)[1] == 1  # air outside alone


def test_slices_follow_the_generator():
    one, again, other = (ct_slice(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_speckle_in_even_tissue_is_rayleigh_distributed(seed):
    image = echoes(np.random.default_rng(seed).standard_normal((128, 512)))
    inner = envelope(image)[8:-8, 40:-40]
    assert inner.mean() / inner.std() == pytest.approx(1.91, rel=0.05)
    columns = inner.mean(axis=0).reshape(-1, 72).mean(axis=1)
    assert columns.max() / columns.min() < 1.2  # as bright near as far


def test_echoes_follow_the_echogenicity_and_widen_with_depth():
    scene = np.ones((96, 400))
    scene[30:60, 150:250], scene[30:60, 300:350] = 0, 4
    noise = np.random.default_rng(0).standard_normal((96, 400))
    image = echoes(scene * noise)
    level = envelope(image)
    tissue = level[70:, 150:250].mean()
    assert level[38:52, 165:235].max() == pytest.approx(0.001)  # the floor of 60 dB
    assert tissue > 0.05
    assert level[35:55, 305:345].mean() / tissue == pytest.approx(4, rel=0.25)
    points = np.zeros((96, 400))
    points[48, [60, 340]] = 1
    level = envelope(echoes(points * noise))
    near, far = (np.count_nonzero(level[:, d] > level[48, d] / 2) for d in (60, 340))
    assert near < far


def test_frames_come_with_their_geometry_and_differ():
    one, radii, angles = bmode(np.random.default_rng(1), 64, 200)
    other = bmode(np.random.default_rng(2), 64, 200)[0]
    assert one.shape == (64, 200) == (len(angles), len(radii)) and one.dtype == np.float32
    assert (np.diff(radii) > 0).all() and (np.diff(angles) > 0).all() and angles[0] == -angles[-1]
    assert one.min() >= 0 and one.max() == 1 and (one < 0.1).mean() > 0.001  # a cyst's floor
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.3
    np.testing.assert_array_equal(one, bmode(np.random.default_rng(1), 64, 200)[0])
