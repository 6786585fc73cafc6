"""What a network for any degradation is given beside a scan: the factor, and what the scan shows of blur and noise."""

from collections.abc import Sequence

import numpy as np

LAGS = (1, 2, 4, 8)  # voxels
LOOK = 112  # voxels per axis


def describe_degradation(scan: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """What a network is told of a scan (X, Y, Z) on the fine grid: (15,), five numbers per axis.

    The first is 1 / factor. The others are logarithms of how the mean squared difference of voxels grows with their
    distance of 1 to 8 voxels, each over the next one's, after the differences of neighbouring differences over those of
    neighbours: they show kernel and noise, and do not change with a scan's units. The middle of the scan is read, as
    much as is painted in training, and of it every other line of the other axes. What an axis of fewer than 9 voxels
    cannot show is the mean of what the other axes show.
    """
    scan = scan[
        tuple(slice(max(n - LOOK, 0) // 2, max(n - LOOK, 0) // 2 + LOOK) for n in scan.shape)
    ]
    growth = np.array(
        [_growth(np.moveaxis(scan, axis, -1)[::2, ::2], f > 1) for axis, f in enumerate(factor)]
    )
    unseen = np.isnan(growth)
    seen = np.where(unseen, 0, growth).sum(0) / np.maximum(3 - unseen.sum(0), 1)
    growth = np.where(unseen, seen, growth)
    return np.concatenate([[1 / f, *row] for f, row in zip(factor, growth, strict=True)]).astype(
        np.float32
    )


def _growth(lines: np.ndarray, interpolated: bool) -> np.ndarray:
    """The four logarithms of ``describe_degradation`` along the last axis, nan where it is too short for the distance."""
    if (
        interpolated and lines.shape[-1] <= LAGS[-1]
    ):  # a few slices between which there is nothing but the spline
        return np.full(len(LAGS), np.nan)
    steps = [np.diff(lines, 2), *(lines[..., lag:] - lines[..., :-lag] for lag in LAGS)]
    energy = np.array(
        [np.square(step).mean(dtype=np.float64) if step.size else np.nan for step in steps]
    )
    energy[0] /= 3  # of white noise
    energy += 1e-6 * np.max(energy, initial=0, where=~np.isnan(energy)) + 1e-20
    return np.log(energy[:-1] / energy[1:])
