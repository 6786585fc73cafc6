"""What looks wrong in a scan, and in what was made of it: headers, thick slices, clipping, intensities."""

import numpy as np

from srlib.volume import Volume, axcodes

# A head with its neck takes less than 400 mm; 60 mm hold a brain from about the 26th week on.
FIELD_MM = (60.0, 400.0)
SPACING_MM = (0.2, 12.0)  # of scans of living heads
STACK = (4.0, 3.0)  # slices are thick from so many mm on, and from so many times the pixels in them
CLIPPED = 1e-4  # share of voxels at the very maximum that is let pass
FLOOR = 0.01  # and at a minimum above 0
BEYOND = (0.1, 1e-4)  # of the range before, by which after may exceed it, and the share of voxels that may do so


def header(volume: Volume, which: str = "the scan") -> list[str]:
    """Spacings and fields of view that no scan of a head has, a line each."""
    found = []
    for axis, n, mm in zip(axcodes(volume), volume.shape, volume.spacing_mm, strict=True):
        if not SPACING_MM[0] <= mm <= SPACING_MM[1]:
            found.append(f"{which} has a spacing of {mm:.4g} mm along {axis}; check its header")
        elif not FIELD_MM[0] <= n * mm <= FIELD_MM[1]:
            found.append(f"{which} covers {n * mm:.4g} mm along {axis} ({n} x {mm:.4g} mm); check its header")
    return found


def findings(before: Volume, after: Volume | None = None, thickness_mm: float | None = None) -> list[str]:
    """What to mind before trusting an enhanced scan, a line each (ours).

    ``thickness_mm`` of the slices along the last voxel axis tells of gaps (``images.read_thickness``): NIfTI does not
    know it. The header of a single slice is not judged.
    """
    found, spacing, axes = [] if 1 in before.shape else header(before), before.spacing_mm, axcodes(before)
    pixel, thick = sorted(spacing)[1:]
    if thick >= max(STACK[0], STACK[1] * pixel) and 1 not in before.shape:
        axis = int(np.argmax(spacing))
        found.append(
            f"the scan is a stack of {before.shape[axis]} slices, {thick:.4g} mm apart along {axes[axis]}: "
            "what lies between them is the model's guess"
        )
    if thickness_mm is not None and before.shape[2] > 1 and thickness_mm < 0.98 * spacing[2]:
        found.append(
            f"slices are {thickness_mm:.4g} mm thick and {spacing[2]:.4g} mm apart along {axes[2]}: nothing was "
            "measured in the gaps between them"
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
        slack = BEYOND[0] * (high - low)
        share = np.count_nonzero((after.data < low - slack) | (after.data > high + slack)) / after.data.size
        if share > BEYOND[1]:
            found.append(
                f"{100 * share:.2g} % of the voxels after lie far outside the intensities before ({low:.4g} to {high:.4g}): "
                "the model has units of its own, or invents"
            )
    return found
