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
