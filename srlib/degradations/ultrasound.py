"""Scan conversion: turn an ultrasound probe's beams into an image in mm."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from srlib.core.paths import InputError
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume

REPEATED = 3  # samples of the frame's edge that polarTransform repeats beyond the sector


def scan_convert(
    polar: np.ndarray,
    *,
    initial_radius: float,
    final_radius: float,
    initial_angle: float,
    final_angle: float,
    shape: Sequence[int] | None = None,
) -> Volume:
    """Convert a frame (beams, depth) to a Cartesian image (X, Y, 1) of ``shape`` (X, Y).

    Radii in mm and angles in radians from straight ahead are those of the first and last sample.
    x lies across the probe, positive for positive angles; y is the depth; the affine's zero is
    where the beams meet. Pixels are square and just large enough for the sector, which lies in the
    middle; pixels outside it are 0. Interpolation is bilinear, as in the sisr_medical code.

    Without a shape the image is that code's, by polarTransform: pixels of 1 unit, as many as the
    sector needs, from the first sample's depth on. Final radius and angle lie one step behind the
    last sample, so a pixel is a depth sample where radii are counted in samples. Raises InputError
    for other frames, shapes, radii and angles.
    """
    if polar.ndim != 2 or min(polar.shape) < 2:
        raise InputError(
            f"expected a frame (beams, depth) of 2 samples or more a side, got shape {polar.shape}"
        )
    if not 0 <= initial_radius < final_radius < np.inf:
        raise InputError(
            f"expected radii 0 <= initial < final in mm, got {initial_radius} and {final_radius}"
        )
    if not -np.pi <= initial_angle < final_angle <= np.pi:
        raise InputError(
            f"expected angles -pi <= initial < final <= pi, got {initial_angle} and {final_angle}"
        )
    widest = np.clip(np.arange(-2, 3) * np.pi / 2, initial_angle, final_angle)
    reach = np.multiply.outer([initial_radius, final_radius], [np.sin(widest), np.cos(widest)])
    low, high = reach.min(axis=(0, 2)), reach.max(axis=(0, 2))
    repeated, last = REPEATED, np.subtract(polar.shape, 1)
    steps = polar.shape  # from the first to the final radius or angle
    if shape is None:
        low[1] = int(initial_radius)
        shape, spacing, origin = np.ceil(high - low).astype(int), 1.0, np.floor(low)
    else:
        repeated, steps, shape = 0, last, per_axis(shape, "shape", 2, least=2)
        spacing = ((high - low) / np.subtract(shape, 1)).max()
        origin = (low + high - spacing * np.subtract(shape, 1)) / 2
    x, y = (o + spacing * np.arange(n) for o, n in zip(origin, shape, strict=True))
    beam = (np.arctan2(x[:, None], y) - initial_angle) / (final_angle - initial_angle) * steps[0]
    depth = (np.hypot(x[:, None], y) - initial_radius) / (final_radius - initial_radius) * steps[1]
    image = ndimage.map_coordinates(polar, [beam, depth], np.float32, order=1, mode="nearest")
    for at, end, before in ((beam, last[0], 0), (depth, last[1], repeated)):
        image[(at < -before - 1e-6) | (at > end + repeated + 1e-6)] = 0
    affine = np.diag([spacing, spacing, 1.0, 1.0])
    affine[:2, 3] = origin
    return Volume(image[..., None], affine)
