"""Scan conversion puts every beam and depth at its place in mm."""

import numpy as np
import pytest
from scipy import ndimage

from srlib.core.paths import InputError
from srlib.degradations.ultrasound import scan_convert

SECTOR = (40.0, 100.0, -0.5, 0.4)  # mm, mm, rad, rad
NAMES = ("initial_radius", "final_radius", "initial_angle", "final_angle")


def converted(frame, sector, shape):
    return scan_convert(frame, **dict(zip(NAMES, sector, strict=True)), shape=shape)


def position(beam, depth, shape):
    """x and y in mm of a place in the frame."""
    radius = SECTOR[0] + depth / (shape[1] - 1) * (SECTOR[1] - SECTOR[0])
    angle = SECTOR[2] + beam / (shape[0] - 1) * (SECTOR[3] - SECTOR[2])
    return radius * np.sin(angle), radius * np.cos(angle)


@pytest.mark.parametrize(("beam", "depth"), [(20, 50), (45, 30.4), (10.5, 99)])
def test_a_point_lands_at_its_place(beam, depth):
    shape = (61, 121)
    frame = np.exp(-((np.arange(61)[:, None] - beam) ** 2 / 8 + (np.arange(121) - depth) ** 2 / 18))
    image = converted(frame, SECTOR, (201, 181))
    weight = image.data[..., 0].astype(float)
    index = np.array([(g * weight).sum() for g in np.indices(weight.shape)]) / weight.sum()
    placed = image.affine @ [*index, 0, 1]
    np.testing.assert_allclose(placed[:2], position(beam, depth, shape), atol=0.15)
    assert image.spacing_mm[0] == image.spacing_mm[1] < 0.5


def test_there_and_back(noise):
    frame = ndimage.gaussian_filter(noise((50, 80)), 3)
    image = converted(frame, SECTOR, (400, 400))
    beam, depth = np.meshgrid(np.arange(3, 47), np.arange(3, 77), indexing="ij")
    x, y = position(beam, depth, frame.shape)
    index = [
        (x - image.affine[0, 3]) / image.affine[0, 0],
        (y - image.affine[1, 3]) / image.affine[1, 1],
    ]
    back = ndimage.map_coordinates(image.data[..., 0], index, order=3)
    np.testing.assert_allclose(back, frame[3:47, 3:77], atol=0.01 * np.ptp(frame))


def test_the_sector_fits_and_nothing_lies_outside():
    image = converted(np.ones((9, 11)), SECTOR, (150, 130))
    inside = image.data[..., 0]
    spacing, x0, y0 = image.affine[0, 0], *image.affine[:2, 3]
    area = inside.sum() * spacing**2
    assert set(np.unique(inside)) == {0, 1}
    assert area == pytest.approx((SECTOR[3] - SECTOR[2]) * (100**2 - 40**2) / 2, rel=0.02)
    column, row = np.nonzero(inside)
    radius = np.hypot(x0 + spacing * column, y0 + spacing * row)
    assert radius.min() > 39.99 and radius.max() < 100.01 and radius.max() > 99.5
    assert row.max() - row.min() > 100 or column.max() - column.min() > 147


def test_without_a_shape_a_pixel_is_a_depth_sample():
    """polarTransform's rule: sample k of n at initial + k (final - initial) / n, pixels of 1."""
    frame = np.zeros((40, 300), np.float32)
    frame[20, 150] = frame[10, 250] = 1
    image = scan_convert(frame, **dict(zip(NAMES, (100.7, 400.7, -0.5, 0.5), strict=True)))
    assert image.shape == (385, 301, 1)  # 2 x 400.7 sin 0.5 = 384.2; from 100 to 400.7
    np.testing.assert_allclose(np.diag(image.affine), 1)
    np.testing.assert_allclose(image.affine[:2, 3], (-193, 100))  # -192.1, and whole pixels
    for angle, radius in ((0.0, 250.7), (-0.25, 350.7)):
        x, y = radius * np.sin(angle) + 193, radius * np.cos(angle) - 100
        around = image.data[round(x) - 2 : round(x) + 3, round(y) - 2 : round(y) + 3, 0]
        index = np.array([(g * around).sum() for g in np.indices(around.shape)]) / around.sum()
        np.testing.assert_allclose(np.add(index, (round(x) - 2, round(y) - 2)), (x, y), atol=0.3)
    row = scan_convert(np.ones((40, 300)), **dict(zip(NAMES, (100, 400, -0.5, 0.5), strict=True)))
    assert row.data[192, :, 0].all()  # straight ahead: 300 samples, 300 pixels


@pytest.mark.parametrize(
    ("frame", "sector", "shape", "word"),
    [
        ((9,), SECTOR, (8, 8), "beams"),
        ((9, 1), SECTOR, (8, 8), "beams"),
        ((9, 9), (40, 30, -0.5, 0.5), (8, 8), "radii"),
        ((9, 9), (-1, 30, -0.5, 0.5), (8, 8), "radii"),
        ((9, 9), (1, np.nan, -0.5, 0.5), (8, 8), "radii"),
        ((9, 9), (1, 30, 0.5, 0.5), (8, 8), "angles"),
        ((9, 9), (1, 30, -30, 30), (8, 8), "angles"),
        ((9, 9), SECTOR, (8,), "shape"),
        ((9, 9), SECTOR, (8, 1.5), "shape"),
    ],
)
def test_bad_input_is_refused(frame, sector, shape, word):
    with pytest.raises(InputError, match=word):
        converted(np.zeros(frame), sector, shape)
