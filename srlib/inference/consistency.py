"""Make an estimate consistent with the scan: what its voxels measured is told or estimated."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from srlib.core.paths import InputError, choose
from srlib.degradations.resolution import KSpaceTruncation
from srlib.scans.separable import blur
from srlib.scans.volume import Volume, resample

Factor = tuple[float, float, float]
STEPS = 8  # at most
LARGEST = 2.0  # multiple of the network's change
TRUST = 0.05  # weight of the change as it is, against what the scan says of its scale
SEEN = 0.7  # share of a change's energy from which on k-space truncation shows enough of it
KINDS = {"gaussian": True, "box": False, "kspace": False}  # of kernels, and whether with a width


@dataclass(frozen=True)
class Kernel:
    """What a scan's voxels measured: the mean under a Gaussian, or the middle of k-space.

    ``coarser``: how much coarser than the output's grid the scan resolves, per axis. ``sigma``: of
    the Gaussian, in voxels of the output; None for k-space truncation.
    """

    coarser: Factor
    sigma: Factor | None = None

    def __call__(self, estimate: Volume, scan: Volume) -> Volume:
        """The scan that an estimate would have given, on the scan's grid."""
        if self.sigma is None:
            low = KSpaceTruncation(self.coarser)(estimate)
        else:
            low = estimate.with_data(blur(estimate.data, self.sigma))
        return resample(low, scan.shape, scan.affine)

    def __str__(self) -> str:
        return "kspace" if self.sigma is None else "gaussian:" + ",".join(f"{s:.2g}" for s in self.sigma)


def told(text: str, coarser: Factor) -> Kernel:
    """The kernel of a user's words: ``gaussian:SIGMA`` (output voxels), ``box`` or ``kspace``.

    A box is as long as a voxel of the scan; a Gaussian of the same variance stands for it. Axes of
    factor 1 are not blurred. Raises InputError for other words.
    """
    kind, _, width = text.partition(":")
    if choose(KINDS, kind, "kernel") != bool(width):
        raise InputError(f"kernel {text!r}: expected gaussian:SIGMA, box or kspace")
    if kind == "kspace":
        return Kernel(coarser)
    if kind == "box":
        return Kernel(coarser, tuple(float(np.sqrt((f**2 - 1) / 12)) for f in coarser))
    try:
        sigma = float(width)
    except ValueError:
        sigma = np.nan
    if not 0 <= sigma < np.inf:
        raise InputError(f"kernel {text!r}: expected a width of 0 or more, in output voxels")
    return Kernel(coarser, tuple(sigma * (f > 1) for f in coarser))


def consistent(estimate: Volume, on_grid: Volume, scan: Volume, kernel: Kernel) -> Volume:
    """An estimate that gives the scan when it is degraded again, but for noise (ours).

    A network that does not know the kernel changes the interpolated scan (``on_grid``) by too
    little or too much. The change is scaled first, by 0 to LARGEST, so that its degraded form
    explains best what the scan has and the degraded ``on_grid`` lacks. K-space truncation leaves
    nothing to explain, and the scale is 1, unless the change lies among the frequencies that were
    measured. ``back_project`` then corrects the rest.
    """
    change = estimate.data - on_grid.data
    before = kernel(on_grid, scan).data
    shown, lacking = kernel(estimate, scan).data - before, scan.data - before
    energy, shown_energy = (float(np.square(v).mean(dtype=np.float64)) for v in (change, shown))
    if kernel.sigma or shown_energy > SEEN * energy:
        wanted = float((shown * lacking).mean(dtype=np.float64)) + TRUST * energy
        scale = np.clip(wanted / (shown_energy + TRUST * energy or 1.0), 0, LARGEST)
        estimate = on_grid.with_data(on_grid.data + scale * change)
    return back_project(estimate, scan, kernel)


def back_project(estimate: Volume, scan: Volume, kernel: Kernel) -> Volume:
    """Correct an estimate until it gives the scan when it is degraded again, but for noise.

    Iterative back-projection (Irani & Peleg, CVGIP 1991): what the scan has and the degraded
    estimate lacks is interpolated by cubic splines and added. It ends when the rest is no more than
    the scan's noise (``noise_of``), since further steps would sharpen that, or after STEPS.
    """
    noise = noise_of(scan.data)
    for _ in range(STEPS):
        rest = scan.with_data(scan.data - kernel(estimate, scan).data)
        if np.sqrt(np.square(rest.data).mean(dtype=np.float64)) <= noise:
            break
        if kernel.sigma is None and rest.shape == estimate.shape:
            rest = kernel(rest, rest)  # what magnitudes have beyond the measured lines stays out
        missing = resample(rest, estimate.shape, estimate.affine)
        estimate = estimate.with_data(estimate.data + missing.data)
    return estimate


def noise_of(data: np.ndarray) -> float:
    """Standard deviation of white noise in a scan (X, Y, Z), in its units (ours).

    It is measured where the second differences along all axes are least: the 5th percentile of
    their local root mean square, without places where nothing varies.
    """
    for axis in np.flatnonzero(np.greater(data.shape, 4)):
        data = ndimage.correlate1d(data, [1, -2, 1], axis=axis) / np.sqrt(6)
    local = np.sqrt(ndimage.uniform_filter(np.square(data, dtype=np.float64), 9).clip(0))
    varied = local[local > 1e-6 * local.max()]
    return float(np.quantile(varied, 0.05)) if varied.size else 0.0
