"""Where scans meet: one on the grid of another, by the affines of both."""

import numpy as np

from srlib.paths import InputError
from srlib.volume import Volume, crop_or_pad, resample

SAME = 0.01  # voxels by which two grids may differ anywhere and still be one: headers round


def covered(scan: Volume, grid: Volume) -> float:
    """Share of a grid's voxel centres in a scan's field of view, which ends half a voxel beyond its outermost centres."""
    mapping, count = np.linalg.inv(scan.affine) @ grid.affine, 0
    y, z = np.ogrid[: grid.shape[1], : grid.shape[2]]
    for x in range(grid.shape[0]):  # a plane at a time, for the memory
        places = [a * x + b * y + c * z + first for a, b, c, first in mapping[:3]]
        inside = [abs(p - (n - 1) / 2) <= n / 2 + SAME for p, n in zip(places, scan.shape, strict=True)]
        count += np.count_nonzero(np.logical_and.reduce(np.broadcast_arrays(*inside)))
    return count / grid.data.size


def _steps(scan: Volume, grid: Volume) -> np.ndarray | None:
    """The voxel of a scan by that of a grid, as a 4x4 matrix of whole numbers; None where they share no lattice."""
    mapping = np.linalg.inv(scan.affine) @ grid.affine
    steps = np.rint(mapping)
    corners = np.stack([*np.meshgrid(*((0, n - 1) for n in grid.shape)), np.ones((2, 2, 2))]).reshape(4, -1)
    whole = (np.abs(steps[:3, :3]).sum(0) == 1).all() and abs(np.linalg.det(steps)) == 1
    return steps if whole and np.abs((mapping - steps) @ corners).max() < SAME else None


def same_lattice(scan: Volume, grid: Volume) -> bool:
    """Whether two grids are one but for the order and direction of their axes and whole voxels between their faces."""
    return _steps(scan, grid) is not None


def resample_to(
    scan: Volume, grid: Volume, order: int = 3, outside: float | None = None, least: float = 0.0, what: str = "the scan"
) -> Volume:
    """A scan on another grid of its world, placed by both affines; nothing is registered.

    On its own grid it is the scan itself; on its own lattice (``same_lattice``) its voxels, not interpolated; else a
    spline of the given order. For what lies beyond its field of view see ``resample``. Raises InputError, which calls
    the scan ``what``, when it covers less than the share ``least`` of the grid, or nothing of it.
    """
    steps = _steps(scan, grid)
    if scan.shape == grid.shape and np.array_equal(steps, np.eye(4)):
        return scan
    share = covered(scan, grid)
    if not share or share < least:
        seen = f"covers {int(1000 * share) / 10:g} % of" if share else "shows nothing in"
        raise InputError(
            f"{what} {seen} the scan's field of view; look at both headers, or crop the scan to what both show"
        )
    if steps is None or (share < 1 and outside is None):
        return resample(scan, grid.shape, grid.affine, order, outside)
    axes = np.abs(steps[:3, :3]).argmax(0)  # the scan's along each of the grid's
    signs, first = steps[axes, range(3)], steps[axes, 3]
    turned = scan.data.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
    start = np.where(signs > 0, first, np.subtract(turned.shape, 1) - first).astype(int)
    return grid.with_data(crop_or_pad(Volume(turned, np.eye(4)), start, grid.shape, outside or 0.0).data)
