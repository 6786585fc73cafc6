"""Warn of scans and results that look wrong: headers, thick slices, clipping, intensities."""

import sys
import warnings
from collections.abc import Sequence

import numpy as np

from srlib.core.paths import ScanWarning
from srlib.scans.intensity import usual_range
from srlib.scans.volume import Volume, axcodes

# A head with its neck takes less than 400 mm; 60 mm hold a brain from about the 26th week on.
FIELD_MM = (60.0, 400.0)
SPACING_MM = (0.2, 12.0)  # of scans of living heads
STACK = (4.0, 3.0)  # slices are thick from so many mm on, and from so many times the pixels in them
CLIPPED = 1e-4  # tolerated share of voxels at the maximum
FLOOR = 0.01  # and at a minimum above 0
BEYOND = (0.25, 0.1)  # tolerated excess of the result below and above the scan's range
THIN = 5  # voxels: fewer along an axis that becomes finer show too little
# growth of the squared difference of voxels from neighbours to the next but one; 4 is a ramp
SMOOTH = 3.45
NOISE = 1.1  # of that growth, which is 1 in white noise
NEGATIVE = 0.01  # tolerated share of voxels below 0, by as much of the range
AIR_HU = -900.0  # of a CT, its lowest values


def header(volume: Volume, which: str = "the scan") -> list[str]:
    """Spacings and fields of view that no scan of a head has, a line each."""
    found = []
    for axis, n, mm in zip(axcodes(volume), volume.shape, volume.spacing_mm, strict=True):
        if not SPACING_MM[0] <= mm <= SPACING_MM[1]:
            found.append(f"{which} has a spacing of {mm:.4g} mm along {axis}; check its header")
        elif not FIELD_MM[0] <= n * mm <= FIELD_MM[1]:
            field = f"{n * mm:.4g} mm along {axis} ({n} x {mm:.4g} mm)"
            found.append(f"{which} covers {field}; check its header")
    return found


def unlike(scan: Volume) -> list[str]:
    """What shows that a scan is no magnitude image of tissue, as all models of MR know, a line each.

    Heads of another species show by their size (``header``).
    """
    usual = usual_range(scan.data)
    below = scan.data < -NEGATIVE * np.ptp(usual)  # farther than splines overshoot in air
    found, negative = [], np.count_nonzero(below) / scan.data.size
    if negative > NEGATIVE:
        kind = "a CT" if scan.data.min() < AIR_HU else "a statistical or difference map"
        found.append(
            f"{100 * negative:.3g} % of the voxels are below 0, as in {kind}: this model was trained "
            "on MR intensities"
        )
    data = np.clip(scan.data, *usual)
    growths = [_smoothness(np.moveaxis(data, axis, 2), 1) for axis in range(3)]
    if 0 < max(growths) < NOISE:
        found.append(
            "voxels are as unlike their neighbours as others farther away: this is noise, or a scan "
            "under it, and the result invents what it shows"
        )
    return found


def content(
    before: Volume, finer: Sequence[float], resolved: Sequence[float] = (1, 1, 1)
) -> list[str]:
    """What in a scan is unlike the training of blind models, along axes that become ``finer``.

    A line each for few slices, and for content that is smooth over its own voxels, as after a blur
    of a voxel or more: soft borders look like blur, which is to be undone. ``resolved``: how many
    voxels a measured voxel takes, where k-space was zero-filled.
    """
    found, axes = [], axcodes(before)
    data, smoothest = np.clip(before.data, *usual_range(before.data)), 0.0
    for axis in np.flatnonzero(np.multiply(finer, resolved) > 1.05):
        if before.shape[axis] < THIN:
            found.append(
                f"{before.shape[axis]} slices along {axes[axis]} are too few to show what they "
                "resolve; compare with interpolation"
            )
        lines = np.moveaxis(data, axis, 2)
        smoothest = max(smoothest, _smoothness(lines, round(resolved[axis])))
    if smoothest > SMOOTH:
        found.append(
            "the scan is smooth over its own voxels: its content may be so (PET, perfusion or field "
            "maps) or its kernel wide, so little is sharpened; --kernel says what a voxel measured"
        )
    return found


def _smoothness(data, lag):
    """Growth of the mean squared difference along the last axis from a distance to twice it.

    0 for axes too short to show it.
    """
    lines = data[::2, ::2]
    if lines.shape[2] <= 2 * lag:
        return 0.0
    near, far = (
        np.square(lines[..., d:] - lines[..., :-d]).mean(dtype=np.float64) for d in (lag, 2 * lag)
    )
    return far / near if near else 0.0


def gaps(volume: Volume, thickness_mm: float | None) -> list[str]:
    """A line if slices along the last axis are thinner than their distance.

    ``thickness_mm`` comes from ``SourceHeader.thickness``; NIfTI does not hold it.
    """
    spacing = volume.spacing_mm[2]
    if thickness_mm is None or volume.shape[2] == 1 or thickness_mm >= 0.98 * spacing:
        return []
    return [
        f"slices are {thickness_mm:.4g} mm thick and {spacing:.4g} mm apart along "
        f"{axcodes(volume)[2]}: nothing was measured in the gaps between them"
    ]


def findings(before: Volume, after: Volume, finer: Sequence[float]) -> list[str]:
    """What to mind in intensities and slices before trusting a result, a line each (ours).

    ``finer``: how much finer each axis became; a stack of slices counts only along such axes.
    """
    found, spacing = [], before.spacing_mm
    pixel, thick = sorted(spacing)[1:]
    axis = np.argmax(spacing)
    if thick >= max(STACK[0], STACK[1] * pixel) and 1 not in before.shape and finer[axis] > 1.05:
        found.append(
            f"the scan is a stack of {before.shape[axis]} slices, {thick:.4g} mm apart along "
            f"{axcodes(before)[axis]}: what lies between them is the model's guess"
        )
    low, high = float(before.data.min()), float(before.data.max())
    top, bottom = (np.count_nonzero(before.data == end) / before.data.size for end in (high, low))
    line = "{:.3g} % of the voxels lie at the very {}, {:.4g}: {} tissue may be clipped"
    if top > CLIPPED and top * before.data.size >= 20:
        found.append(line.format(100 * top, "maximum", high, "bright"))
    if low > 0 and bottom > FLOOR:
        found.append(line.format(100 * bottom, "minimum", low, "dark"))
    below, above = ((high - low) * share for share in BEYOND)
    far = np.count_nonzero((after.data < low - below) | (after.data > high + above))
    if far:
        found.append(
            f"{100 * far / after.data.size:.3g} % of the voxels after lie far outside the "
            f"intensities before ({low:.4g} to {high:.4g}), from {after.data.min():.4g} to "
            f"{after.data.max():.4g}: the model has other units, or invents"
        )
    return found


def warn(lines: Sequence[str], name: str) -> None:
    """Warn once (``ScanWarning``) at the line that called our caller; ``name`` heads each line.

    Python shows equal warnings of one line once; here each scan's are shown, unless filtered.
    """
    if lines:
        user = sys._getframe(2)
        text = "\n".join(name + line for line in lines)
        warnings.warn_explicit(text, ScanWarning, user.f_code.co_filename, user.f_lineno)
