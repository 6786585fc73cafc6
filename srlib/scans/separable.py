"""Apply linear operators that are separable (splines, blurs) as one small matrix per axis (ours)."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from srlib.core.paths import InputError

BLOCK = 64  # output voxels that are computed at once, from the input voxels that they see
WIDEST = 10  # standard deviations of a blur, in lengths of the array
SEEN = 1e-9  # least weight with which an output voxel sees an input voxel


def spline(size: int, places: np.ndarray, **how: object) -> np.ndarray:
    """The matrix (m, size) of SciPy's spline interpolation at places (m,), in voxels.

    ``how``: its order, mode and prefilter.
    """
    units = np.eye(size)  # what becomes of a unit is a column
    return np.stack([ndimage.map_coordinates(unit, [places], **how) for unit in units], axis=1)


def blur(data: np.ndarray, sigma: Sequence[float]) -> np.ndarray:
    """SciPy's Gaussian filter of a 3-D array with mirrored edges, ``sigma`` per axis.

    Raises InputError for one that is more than WIDEST times as long as the array.
    """
    if np.greater(sigma, WIDEST * np.array(data.shape)).any():
        raise InputError(
            f"a blur of {max(sigma):g} voxels is too wide for {data.shape} voxels; choose a "
            "smaller sigma"
        )
    matrices = [
        ndimage.gaussian_filter1d(np.eye(n), s, axis=0) if s else None
        for n, s in zip(data.shape, sigma, strict=True)
    ]
    base = data.flat[0]  # so that what is constant stays so, to the bit
    return base + along_axes(data - base, matrices)


def along_axes(data: np.ndarray, matrices: Sequence[np.ndarray | None]) -> np.ndarray:
    """Multiply the lines of each axis of a floating-point array by a matrix (outputs, inputs).

    None leaves an axis as it is. All cores work; the array's type stays.
    """
    for matrix in matrices:  # the first axis becomes the last, so after all they are in order
        if matrix is None or np.array_equal(matrix.round(9), np.eye(len(data))):
            data = np.moveaxis(data, 0, -1)
            continue
        lines = data.reshape(len(data), -1)
        out = np.empty((lines.shape[1], len(matrix)), data.dtype)
        for start in range(0, len(matrix), BLOCK):
            rows = slice(start, start + BLOCK)
            seen = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > SEEN)
            columns = slice(seen[0], seen[-1] + 1) if seen.size else slice(0)
            part = matrix[rows, columns].astype(data.dtype)
            np.matmul(lines[columns].T, part.T, out=out[:, rows])
        data = out.reshape(*data.shape[1:], len(matrix))
    return np.ascontiguousarray(data)
