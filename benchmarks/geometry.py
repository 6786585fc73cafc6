"""Where the content of an estimate lies in the world, by the best shift and stretch."""

import itertools

import numpy as np
from nibabel.affines import apply_affine, from_matvec

from srlib.scans.separable import blur
from srlib.scans.volume import Volume, central, resample

ROUNDS = 12  # of Gauss and Newton
INNER = 0.75  # share of each axis that is compared: beyond it networks lack context
SMOOTH = 2  # voxels, sigma of a Gaussian: both sides lose it, so that they differ less in sharpness


def displacement(estimate: Volume, truth: Volume) -> np.ndarray:
    """The affine D, in the truth's voxels, by which the estimate's content is displaced.

    What lies at voxel x of the truth is found at D x in the estimate. D shifts and stretches each
    axis; the estimate may also be blurred, and its intensities may differ by a factor and a
    constant. Gauss-Newton steps on the squared difference in the inner three quarters of each axis
    find it.
    """
    estimate, truth = (v.with_data(blur(v.data, [SMOOTH] * 3)) for v in (estimate, truth))
    inner = central(truth, round(INNER * max(truth.shape)))
    middle = (np.array(inner.shape) - 1) / 2
    places = np.indices(inner.shape) - middle[:, None, None, None]
    shift, stretch = np.zeros(3), np.zeros(3)
    for _ in range(ROUNDS):
        mapping = from_matvec(np.diag(1 + stretch), shift - stretch * middle)
        seen = resample(estimate, inner.shape, inner.affine @ mapping).data.astype(float)
        slopes = np.stack(np.gradient(seen))
        bends = [np.gradient(slopes[axis], axis=axis) for axis in range(3)]  # blur changes these
        columns = np.stack([*slopes, *(slopes * places), seen, np.ones_like(seen), *bends])
        columns = columns.reshape(len(columns), -1)
        sizes = np.linalg.norm(columns, axis=1, keepdims=True) + 1e-30
        solved = np.linalg.lstsq((columns / sizes).T, inner.data.ravel().astype(float), rcond=None)
        found = solved[0] / sizes[:, 0]
        step = found[:6] / (found[6] or 1)  # of an image that is the truth over this factor
        shift, stretch = shift + step[:3], stretch + step[3:]
    start = (np.array(truth.shape) - inner.shape) // 2  # of the inner part in the truth
    return from_matvec(np.diag(1 + stretch), shift - stretch * (middle + start))


def error_mm(estimate: Volume, truth: Volume, claimed: np.ndarray | None = None) -> float:
    """The greatest error of place, in mm, over the corners of the truth's grid.

    ``estimate`` lies within a few voxels of the truth. ``claimed`` is another affine for its
    voxels, perhaps far away, whose error is asked for.
    """
    found = truth.affine @ displacement(estimate, truth)
    moved = np.eye(4) if claimed is None else claimed @ np.linalg.inv(estimate.affine)
    corners = list(itertools.product(*((0, n - 1) for n in truth.shape)))
    away = apply_affine(moved @ found, corners) - apply_affine(truth.affine, corners)
    return float(np.linalg.norm(away, axis=1).max())
