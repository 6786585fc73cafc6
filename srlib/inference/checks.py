"""What looks wrong in a scan, and in what was made of it: headers, thick slices, clipping, intensities."""

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
CLIPPED = 1e-4  # share of voxels at the very maximum that is let pass
FLOOR = 0.01  # and at a minimum above 0
BEYOND = (0.25, 0.1)  # of the range before, by which after may fall below it, and exceed it
THIN = 5  # voxels: with fewer along an axis that is to become finer, there is little to go by
SMOOTH = 3.45  # by how much the squared difference of voxels grows from neighbours to the next but one; 4 is a ramp


def header(volume: Volume, which: str = "the scan") -> list[str]:
    """Spacings and fields of view that no scan of a head has, a line each."""
    found = []
    for axis, n, mm in zip(axcodes(volume), volume.shape, volume.spacing_mm, strict=True):
        if not SPACING_MM[0] <= mm <= SPACING_MM[1]:
            found.append(f"{which} has a spacing of {mm:.4g} mm along {axis}; check its header")
        elif not FIELD_MM[0] <= n * mm <= FIELD_MM[1]:
            found.append(
                f"{which} covers {n * mm:.4g} mm along {axis} ({n} x {mm:.4g} mm); check its header"
            )
    return found


def content(
    before: Volume, finer: Sequence[float], resolved: Sequence[float] = (1, 1, 1)
) -> list[str]:
    """What in a scan is unlike all that blind models are trained on, along the axes that become ``finer``; a line each.

    These are few slices, and content that is smooth over its own voxels, as after a blur of a voxel or more: from blur,
    which is to be undone, borders that are soft by themselves cannot be told. ``resolved``: how many of its voxels one
    measured voxel takes, where k-space was zero-filled.
    """
    found, axes, resolved = [], axcodes(before), np.asarray(resolved)
    asked = np.flatnonzero(np.multiply(finer, resolved) > 1.05)
    for axis in asked:
        if before.shape[axis] < THIN:
            found.append(
                f"{before.shape[axis]} slices along {axes[axis]} are too few to show what they resolve; compare with "
                "interpolation"
            )
    data = np.clip(before.data, *usual_range(before.data))
    if (
        max((_smoothness(np.moveaxis(data, a, 2), round(resolved[a])) for a in asked), default=0)
        > SMOOTH
    ):
        found.append(
            "the scan is smooth over its own voxels: if that is no blur but its content (PET, perfusion or field maps), it "
            "is sharpened too much; compare with interpolation"
        )
    return found


def _smoothness(data: np.ndarray, lag: int) -> float:
    """Mean squared difference of voxels along the last axis, at twice a distance over that at the distance; 0 if short."""
    lines = data[::2, ::2]
    if lines.shape[2] <= 2 * lag:
        return 0.0
    near, far = (
        np.square(lines[..., d:] - lines[..., :-d]).mean(dtype=np.float64) for d in (lag, 2 * lag)
    )
    return far / near if near else 0.0


def gaps(volume: Volume, thickness_mm: float | None) -> list[str]:
    """A line if slices along the last axis are thinner than their distance (``SourceHeader.thickness``); NIfTI says not."""
    spacing = volume.spacing_mm[2]
    if thickness_mm is None or volume.shape[2] == 1 or thickness_mm >= 0.98 * spacing:
        return []
    return [
        f"slices are {thickness_mm:.4g} mm thick and {spacing:.4g} mm apart along {axcodes(volume)[2]}: nothing was "
        "measured in the gaps between them"
    ]


def findings(
    before: Volume, after: Volume | None = None, finer: Sequence[float] = (np.inf,) * 3
) -> list[str]:
    """What to mind in intensities and slices before trusting an enhanced scan, a line each (ours).

    ``finer`` says which axes have become so, by how much; only there slices are thick.
    """
    found, spacing = [], before.spacing_mm
    pixel, thick = sorted(spacing)[1:]
    axis = int(np.argmax(spacing))
    if thick >= max(STACK[0], STACK[1] * pixel) and 1 not in before.shape and finer[axis] > 1.05:
        found.append(
            f"the scan is a stack of {before.shape[axis]} slices, {thick:.4g} mm apart along {axcodes(before)[axis]}: "
            "what lies between them is the model's guess"
        )
    low, high = float(before.data.min()), float(before.data.max())
    top, bottom = (np.count_nonzero(before.data == end) / before.data.size for end in (high, low))
    if top > CLIPPED and top * before.data.size >= 20:
        found.append(
            f"{100 * top:.2g} % of the voxels lie at the very maximum, {high:.4g}: bright tissue may be clipped"
        )
    if low > 0 and bottom > FLOOR:
        found.append(
            f"{100 * bottom:.2g} % of the voxels lie at the very minimum, {low:.4g}: dark tissue may be clipped"
        )
    if after is not None:
        below, above = ((high - low) * share for share in BEYOND)
        far = np.count_nonzero((after.data < low - below) | (after.data > high + above))
        if far:
            found.append(
                f"{100 * far / after.data.size:.2g} % of the voxels after lie far outside the intensities before "
                f"({low:.4g} to {high:.4g}), from {after.data.min():.4g} to {after.data.max():.4g}: the model has units of its "
                "own, or invents"
            )
    return found


def warn(lines: Sequence[str], name: str = "") -> None:
    """Warn once (``ScanWarning``), each line headed by ``name``, at the line that called our caller.

    Python shows the same words at the same place only once; here every scan's are shown, unless a filter says otherwise.
    """
    if lines:
        user = sys._getframe(2)
        text = "\n".join(name + line for line in lines)
        warnings.warn_explicit(
            text,
            ScanWarning,
            user.f_code.co_filename,
            user.f_lineno,
            user.f_globals.get("__name__"),
        )
