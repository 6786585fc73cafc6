"""Bring a scan onto the grid of another one by the affines of both."""

import numpy as np

from srlib.core.paths import InputError
from srlib.scans.volume import SAME, Volume, crop_or_pad, reorient, resample, seen


def covered(scan: Volume, grid: Volume) -> float:
    """Share of a grid's voxel centres in a scan's field of view (``volume.seen``)."""
    return np.mean(seen(scan, grid.shape, grid.affine))


def _differ(one, other, shape):
    """Whether two matrices place a voxel within ``shape`` more than SAME apart."""
    return (np.abs(one - other) @ [*shape, 1]).max() >= SAME


def _turned(scan, grid):
    """A scan with its axes turned to those of a grid, its affine a shift by whole voxels of it.

    None where they share no lattice.
    """
    turned = reorient(Volume(scan.data, np.linalg.inv(grid.affine) @ scan.affine))
    shift = np.eye(4)
    shift[:3, 3] = np.rint(turned.affine[:3, 3])
    return None if _differ(turned.affine, shift, turned.shape) else Volume(turned.data, shift)


def same_lattice(scan: Volume, grid: Volume) -> bool:
    """Whether the voxel centres of two grids coincide: only the order and direction of the axes and
    the extent may differ.
    """
    return _turned(scan, grid) is not None


def resample_to(
    scan: Volume,
    grid: Volume,
    *,
    order: int = 3,
    outside: float | None = None,
    least: float = 0.0,
    what: str = "the scan",
) -> Volume:
    """Resample a scan on another grid of its world by both affines; nothing is registered.

    A scan on the grid itself is returned as it is; one on its lattice (``same_lattice``) keeps its
    voxel values; any other is interpolated by splines of the given order. ``outside`` as in
    ``resample``. Raises InputError, which calls the scan ``what``, when it covers less than the
    share ``least`` of the grid, or nothing of it.
    """
    if scan.shape == grid.shape and not _differ(
        np.linalg.inv(scan.affine) @ grid.affine, np.eye(4), grid.shape
    ):
        return scan
    share = covered(scan, grid)
    if not share or share < least:
        part = f"covers {int(1000 * share) / 10:g} % of" if share else "shows nothing in"
        raise InputError(
            f"{what} {part} the scan's field of view; check both headers, or crop the scan"
        )
    turned = _turned(scan, grid)
    if turned is None or (share < 1 and outside is None):
        return resample(scan, grid.shape, grid.affine, order=order, outside=outside)
    start = -turned.affine[:3, 3].astype(int)
    return grid.with_data(crop_or_pad(turned, start, grid.shape, outside=outside or 0.0).data)
