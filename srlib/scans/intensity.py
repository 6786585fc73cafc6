"""Intensities of scans: what a network sees of them, what is background, and what is wild."""

from dataclasses import dataclass

import numpy as np

from srlib.core.paths import InputError, choose

HU_WINDOW = (-1024.0, 200.0)  # of CT, as the SRResNet code takes it
STREAKS = 0.25  # of that window, by which a reconstruction from few views may exceed it
INTENSITIES = ("minmax", "max", "12bit", "halfmax", "hu")  # rules of ``fit_scaling``
SAMPLE = 2_000_000  # voxels that statistics are taken of
SIGNED = 0.25  # of the maximum, by which a scan that begins at 0 may fall below it; splines do

# A voxel is wild when it lies farther beyond the middle 96 % of the voxels than 3 times their range, or 20 times that of
# the middle 80 %: a spike, a hot line, or slices that are many times as bright as the others
WILD = ((2, 3.0), (10, 20.0))


@dataclass(frozen=True)
class Scaling:
    """Invertible intensity scaling: network units = (scan units - offset) / scale."""

    offset: float
    scale: float

    def apply(self, data: np.ndarray) -> np.ndarray:
        return ((data - np.float32(self.offset)) / np.float32(self.scale)).astype(
            np.float32, copy=False
        )

    def invert(self, data: np.ndarray) -> np.ndarray:
        return (data * np.float32(self.scale) + np.float32(self.offset)).astype(
            np.float32, copy=False
        )


def fit_scaling(data: np.ndarray, rule: str = "minmax") -> Scaling:
    """Scaling by a named rule: ``minmax`` to [0, 1], ``max`` (divide by the maximum), ``12bit``
    (divide by 4095), ``halfmax`` (by half the maximum, minus 1: [-1, 1] for scans that begin at 0),
    ``hu`` (HU_WINDOW to [0, 1]).

    Raises InputError for a constant scan, an unknown rule, and by ``max``, ``12bit`` and
    ``halfmax`` for a scan that does not begin at about 0, such as CT in HU or one of mean 0: these
    rules have no meaning there.
    """
    low, high = float(data.min()), float(data.max())
    if not high > low:
        raise InputError(
            f"the scan is constant (every voxel is {low:g}): nothing to enhance; check the file"
        )
    if rule in ("max", "12bit", "halfmax") and low < -SIGNED * high:
        raise InputError(
            f"the rule {rule} is for scans that begin at 0, got {low:g} to {high:g}; "
            "shift it to begin at 0, or choose a model of the rule minmax"
        )
    if rule == "12bit" and not 255 < high <= 4095:
        raise InputError(
            f"the rule 12bit is for scans of 0 to 4095, got one to {high:g}; use the rule minmax"
        )
    window = HU_WINDOW[1] - HU_WINDOW[0]
    rules = {
        "minmax": (low, high - low),
        "max": (0.0, high),
        "12bit": (0.0, 4095.0),
        "halfmax": (high / 2, high / 2),
        "hu": (HU_WINDOW[0], window),
    }
    return Scaling(*choose(rules, rule, "intensity rule"))


def sample(data: np.ndarray) -> np.ndarray:
    """Every so many voxels of a scan, for statistics."""
    every = int(np.ceil((data.size / SAMPLE) ** (1 / data.ndim)))
    return data[(slice(None, None, every),) * data.ndim]


def plateau(data: np.ndarray) -> float | None:
    """The lowest value that a quarter of a scan's voxels have, if any: as a rule, its
    background.
    """
    values, counts = np.unique(sample(data), return_counts=True)
    common = values[counts > counts.sum() / 4]
    return float(common[0]) if common.size else None


def background(data: np.ndarray) -> float:
    """What a scan shows where nothing is: 0 where none is below; else its ``plateau``, or the
    minimum.
    """
    low = float(data.min())
    level = plateau(data) if low < 0 else 0.0
    return low if level is None else level


def usual_range(data: np.ndarray) -> tuple[float, float]:
    """Bounds that all but wild voxels keep, see WILD; generous, so that most scans keep them whole (ours).

    Voxels of the median's very value, which may be all of the background, count as one.
    """
    seen = sample(data)
    middle = float(np.median(seen))
    seen, bounds = seen[seen != middle], []
    for percent, slack in WILD if seen.size else ():
        low, high = np.percentile(seen, (percent, 100 - percent))
        low, high = min(low, middle), max(high, middle)
        bounds.append((low - slack * (high - low), high + slack * (high - low)))
    low, high = np.transpose(bounds) if bounds else ([-np.inf], [np.inf])
    return float(max(low)), float(min(high))


def wild(data: np.ndarray) -> list[str]:
    """A line if a few voxels lie so far beyond all others that they take most of the range (``usual_range``)."""
    low, high = usual_range(data)
    beyond = data[(data < low) | (data > high)]
    if not beyond.size:
        return []
    worst = float(beyond[np.abs(beyond - (low + high) / 2).argmax()])
    return [
        f"few voxels take most of the range: {beyond.size} of {data.size} lie below {low:.4g} or above {high:.4g}, the "
        f"farthest {worst:.4g}; clip them, as models scale scans by the extremes"
    ]
