"""Describe the degradation of a scan, as the conditioning input of a network."""

from collections.abc import Sequence

import numpy as np

LAGS = (1, 2, 4, 8)  # voxels
MIDDLE = 112  # voxels per axis


def describe_degradation(scan: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """The description of a scan (X, Y, Z) on the fine grid, float32 (15,): five numbers per axis.

    The first is 1 / factor. The others are logarithms of ratios of energies. An energy is the mean
    square of the second differences (over 3, as for white noise), or of the differences of voxels
    1, 2, 4 and 8 apart; each is divided by the next. They show kernel and noise, and do not change
    with a scan's units. Only the middle of the scan is read, the size of training scans, and every
    other line of it. An axis of fewer than 9 voxels takes the mean of the other axes for what it
    cannot show. Ours.
    """
    starts = [max(n - MIDDLE, 0) // 2 for n in scan.shape]
    scan = scan[tuple(slice(start, start + MIDDLE) for start in starts)]
    growth = np.array(
        [_growth(np.moveaxis(scan, axis, -1)[::2, ::2], f > 1) for axis, f in enumerate(factor)]
    )
    unseen = np.isnan(growth)
    seen = np.where(unseen, 0, growth).sum(0) / np.maximum(3 - unseen.sum(0), 1)
    growth = np.where(unseen, seen, growth)
    return np.column_stack([1 / np.array(factor), growth]).ravel().astype(np.float32)


def _growth(lines: np.ndarray, interpolated: bool) -> np.ndarray:
    """The four logarithms along the last axis; nan where it is too short for the distance."""
    # a few slices, and only the spline between them
    if interpolated and lines.shape[-1] <= LAGS[-1]:
        return np.full(len(LAGS), np.nan)
    steps = [np.diff(lines, 2), *(lines[..., lag:] - lines[..., :-lag] for lag in LAGS)]
    energy = np.array(
        [np.square(step).mean(dtype=np.float64) if step.size else np.nan for step in steps]
    )
    energy[0] /= 3  # of white noise
    energy += 1e-6 * np.max(energy, initial=0, where=~np.isnan(energy)) + 1e-20
    return np.log(energy[:-1] / energy[1:])
