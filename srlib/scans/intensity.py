"""Scale the intensities of scans for networks, and find background and outliers."""

from dataclasses import dataclass

import numpy as np

from srlib.core.paths import InputError, choose

HU_WINDOW = (-1024.0, 200.0)  # of CT, as in the SRResNet code
STREAKS = 0.25  # of that window, by which a reconstruction from few views may exceed it
INTENSITIES = ("minmax", "max", "12bit", "halfmax", "hu", "hu_minmax")  # rules of ``fit_scaling``
SAMPLE = 2_000_000  # voxels from which statistics are computed
SIGNED = 0.25  # of the maximum, by which a scan that begins at 0 may fall below it; splines do

# A voxel is wild (a spike, a hot line, a slice many times as bright as the others) when it lies
# beyond the middle 96 % of the voxels by more than 3 times their range, or beyond the middle 80 %
# by more than 20 times theirs.
WILD = ((2, 3.0), (10, 20.0))


@dataclass(frozen=True)
class Scaling:
    """Invertible intensity scaling: network units = (scan units - offset) / scale."""

    offset: float
    scale: float

    def apply(self, data: np.ndarray) -> np.ndarray:
        scaled = (data - np.float32(self.offset)) / np.float32(self.scale)
        return scaled.astype(np.float32, copy=False)

    def invert(self, data: np.ndarray) -> np.ndarray:
        units = data * np.float32(self.scale) + np.float32(self.offset)
        return units.astype(np.float32, copy=False)


def finite(data: np.ndarray) -> np.ndarray:
    """The voxels themselves; InputError where some are not finite."""
    if bad := data.size - np.count_nonzero(np.isfinite(data)):
        raise InputError(f"{bad} voxels are NaN or infinite; replace them (e.g. by 0) first")
    return data


def fit_scaling(data: np.ndarray, rule: str = "minmax") -> Scaling:
    """Scaling by a named rule.

    ``minmax``: to [0, 1]; ``max``: divide by the maximum; ``12bit``: divide by 4095; ``halfmax``:
    divide by half the maximum and subtract 1, [-1, 1] for scans that begin at 0; ``hu``: HU_WINDOW
    to [0, 1]; ``hu_minmax``: as ``minmax``, for scans that are clipped to HU_WINDOW. Raises
    InputError for a constant scan, an unknown rule, and, by ``max``, ``12bit`` and ``halfmax``, for
    a scan that does not begin at about 0, such as CT in HU.
    """
    low, high = float(data.min()), float(data.max())
    if not high > low:
        raise InputError(
            f"the scan is constant (every voxel is {low:g}): nothing to enhance; check the file"
        )
    rules = {
        "minmax": (low, high - low),
        "hu_minmax": (low, high - low),
        "max": (0.0, high),
        "12bit": (0.0, 4095.0),
        "halfmax": (high / 2, high / 2),
        "hu": (HU_WINDOW[0], HU_WINDOW[1] - HU_WINDOW[0]),
    }
    scaling = Scaling(*choose(rules, rule, "intensity rule"))
    if rule in ("max", "12bit", "halfmax") and low < -SIGNED * high:
        raise InputError(
            f"the rule {rule} is for scans that begin at 0, got {low:g} to {high:g}; "
            "shift it to begin at 0, or choose a model of the rule minmax"
        )
    if rule == "12bit" and not 255 < high <= 4095:
        raise InputError(
            f"the rule 12bit is for scans of 0 to 4095, got one to {high:g}; use the rule minmax"
        )
    return scaling


def sample(data: np.ndarray) -> np.ndarray:
    """A regular sample of about SAMPLE voxels, for statistics."""
    every = int(np.ceil((data.size / SAMPLE) ** (1 / data.ndim)))
    return data[(slice(None, None, every),) * data.ndim]


def plateau(data: np.ndarray) -> float | None:
    """The lowest value that more than a quarter of the voxels share, usually the background."""
    values, counts = np.unique(sample(data), return_counts=True)
    common = values[counts > counts.sum() / 4]
    return float(common[0]) if common.size else None


def background(data: np.ndarray) -> float:
    """Value of the background: 0 if no voxel is below, else the ``plateau``, or the minimum."""
    low = float(data.min())
    level = plateau(data) if low < 0 else 0.0
    return low if level is None else level


def usual_range(data: np.ndarray) -> tuple[float, float]:
    """Bounds beyond which voxels are wild, see WILD (ours); most scans lie within them.

    Voxels that equal the median, which may be all of the background, count as one.
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
    """A warning if a few voxels lie so far beyond all others that they take most of the range."""
    low, high = usual_range(data)
    beyond = data[(data < low) | (data > high)]
    if not beyond.size:
        return []
    worst = float(beyond[np.abs(beyond - (low + high) / 2).argmax()])
    return [
        f"few voxels take most of the range: {beyond.size} of {data.size} lie below {low:.4g} or "
        f"above {high:.4g}, the farthest {worst:.4g}; clip them, as models scale scans by the "
        "extremes"
    ]
