"""Apply linear operators that are separable (splines, blurs) as one small matrix per axis (ours)."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

BLOCK = 64  # output voxels that are computed at once, from the input voxels that they see
SEEN = 1e-9  # least weight with which an output voxel sees an input voxel


def response(operator: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """The matrix (outputs, size) of a linear operator on lines of ``size`` voxels."""
    return np.stack([operator(unit) for unit in np.eye(size)], axis=1)


@functools.lru_cache(maxsize=64)
def spline(
    size: int,
    count: int,
    step: float,
    first: float,
    *,
    order: int = 3,
    mode: str = "mirror",
    prefilter: bool = True,
) -> np.ndarray | None:
    """The matrix (count, size) of SciPy's spline interpolation at ``first + step * i``.

    Order, mode and prefilter are SciPy's. None where every voxel stays as it is.
    """

    def along(line: np.ndarray) -> np.ndarray:
        return ndimage.affine_transform(
            line, [step], first, (count,), order=order, mode=mode, prefilter=prefilter
        )

    stays = count == size and step == 1 and first == 0 and (prefilter or order < 2)
    return None if stays else response(along, size)


@functools.lru_cache(maxsize=64)
def gaussian(size: int, sigma: float) -> np.ndarray | None:
    """The matrix (size, size) of SciPy's Gaussian filter with mirrored edges; None for sigma 0."""
    if not sigma:
        return None
    return response(lambda line: ndimage.gaussian_filter1d(line, sigma, mode="reflect"), size)


def along_axes(data: np.ndarray, matrices: Sequence[np.ndarray | None]) -> np.ndarray:
    """Multiply the lines of each axis of a floating-point array by a matrix (outputs, inputs).

    None leaves an axis as it is. All cores work; the type of the array stays.
    """
    for matrix in matrices:  # the first axis becomes the last, so after all they are in order
        if matrix is None:
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
