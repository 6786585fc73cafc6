"""Acquire slices along an axis, interpolate them, and mark the voxels that they measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from srlib.synthesis.fields import blur_matrix, kernel_reach, linear_matrix, spline_matrix

ISOTROPIC = 0.01  # relative difference of spacings that still counts as none


@dataclass(frozen=True)
class Axis:
    """An axis of ``n`` voxels of a label map and ``size`` of the output, about one middle."""

    n: int
    size: int
    voxel: float  # mm
    spacing: float  # mm, of the output

    @property
    def places(self) -> np.ndarray:
        """Output voxels in voxels of the label map, (size,)."""
        from_middle = np.arange(self.size) - (self.size - 1) / 2
        return from_middle * (self.spacing / self.voxel) + (self.n - 1) / 2

    def acquire(
        self, slices_mm: float, sigma_mm: float, order: int, reach: int | None
    ) -> np.ndarray:
        """Acquisition as a matrix (size, n).

        It blurs by the slice profile, samples the slices linearly and brings them on the output's
        voxels by a spline. ``reach`` as in ``blur_matrix``.
        """
        step = slices_mm / self.voxel
        first, count = (step - 1) / 2, int(np.ceil(self.n / step - 1e-9))
        matrix = linear_matrix(self.n, first + step * np.arange(count))
        matrix = spline_matrix(count, (self.places - first) / step, order) @ matrix
        blur = blur_matrix(self.n, sigma_mm / self.voxel, reach)
        return matrix if blur is None else matrix @ blur

    def gap(self, slices_mm: float) -> np.ndarray:
        """Distance to the nearest slice's centre in output voxels, (size,).

        All zeros where the slices are no farther apart than the voxels (code).
        """
        step = slices_mm / self.spacing
        if step <= 1 + ISOTROPIC:
            return np.zeros(self.size)
        first = ((slices_mm / self.voxel - 1) / 2 - self.places[0]) * self.voxel / self.spacing
        slices = first + step * np.arange(int(np.ceil(self.size / step)) + 1)
        return np.abs(np.arange(self.size)[:, None] - slices).min(1)

    def shrink(self, cut: bool) -> np.ndarray | None:
        """Matrix (size, n) that brings a crisp image on the output; None where the grids are one.

        It blurs by 0.75 of the spacings' ratio, then interpolates (code). ``cut``: with the code's
        short kernel.
        """
        ratio = self.spacing / self.voxel
        if abs(ratio - 1) < ISOTROPIC and self.n == self.size:
            return None
        sigma = 0.75 * ratio if ratio > 1 else 0.5
        blur = blur_matrix(self.n, sigma, kernel_reach(sigma) if cut else None)
        return linear_matrix(self.n, self.places) @ blur


def measured(gaps: Iterable[np.ndarray], spacing_mm: float, kind: str) -> np.ndarray:
    """Where voxels were measured, float32: a map from their distances to slices along each axis.

    The distances are in voxels of the spacing, and are broadcast. ``kind``: "reliability", 1 in a
    slice, falling to 0 within a voxel, the product over the axes; or "distance" in mm.
    """
    if kind == "distance":
        return (spacing_mm * np.sqrt(sum(gap**2 for gap in gaps))).astype(np.float32)
    return reduce(np.multiply, (np.maximum(1 - gap, 0).astype(np.float32) for gap in gaps))
