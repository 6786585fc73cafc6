"""Acquire slices along an axis, interpolate them, and mark the voxels that they measured."""

from dataclasses import dataclass

import numpy as np

from srlib.synthesis.fields import blur_matrix, linear_matrix, spline_matrix

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

    def acquire(self, slices_mm: float, sigma_mm: float, order: int = 1) -> np.ndarray:
        """Acquisition as a matrix (size, n).

        It blurs by the slice profile, samples the slices linearly and brings them on the output's
        voxels by a spline.
        """
        step = slices_mm / self.voxel
        first, count = (step - 1) / 2, int(np.ceil(self.n / step - 1e-9))
        matrix = linear_matrix(self.n, first + step * np.arange(count))
        matrix = spline_matrix(count, (self.places - first) / step, order) @ matrix
        blur = blur_matrix(self.n, sigma_mm / self.voxel)
        return matrix if blur is None else matrix @ blur

    def reliability(self, slices_mm: float) -> np.ndarray:
        """1 at the slices' centres, fading to 0 within an output voxel, float32 (size,).

        All ones where the slices are no farther apart than the voxels (code).
        """
        step = slices_mm / self.spacing
        if step <= 1 + ISOTROPIC:
            return np.ones(self.size, np.float32)
        first = ((slices_mm / self.voxel - 1) / 2 - self.places[0]) * self.voxel / self.spacing
        slices = first + step * np.arange(int(np.ceil(self.size / step)) + 1)
        distance = np.abs(np.arange(self.size)[:, None] - slices).min(1)
        return np.maximum(1 - distance, 0).astype(np.float32)

    def shrink(self) -> np.ndarray | None:
        """Matrix (size, n) that brings a crisp image on the output; None where the grids are one.

        It blurs by 0.75 of the spacings' ratio, then interpolates (code).
        """
        ratio = self.spacing / self.voxel
        if abs(ratio - 1) < ISOTROPIC and self.n == self.size:
            return None
        sigma = 0.75 * ratio if ratio > 1 else 0.5
        return linear_matrix(self.n, self.places) @ blur_matrix(self.n, sigma)
