"""Make an estimate consistent with the scan: what its voxels measured is told or estimated."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from srlib.core.paths import InputError, choose
from srlib.degradations.resolution import KSpaceTruncation
from srlib.scans.intensity import usual_range
from srlib.scans.separable import blur
from srlib.scans.volume import Volume, resample

Factor = tuple[float, float, float]
STEPS = 5  # at most
OVERSHOOT = 0.1
NARROWED = 8  # times, at most
LARGEST = 2.0  # multiple of the network's change
TRUST = 0.05  # weight of the change as it is, against what the scan says of its scale
SEEN = 0.7  # share of a change's energy from which on k-space truncation shows enough of it
FAR = 5.0  # standard deviations
WIDTHS = (0.2, 1.2)  # of a Gaussian over the factor, in the synthetic scans
LEAST = 8  # voxels along an axis that shows its kernel
KINDS = {"gaussian": True, "box": False, "kspace": False}  # of kernels, and whether with a width


@dataclass(frozen=True)
class Kernel:
    """What a scan's voxels measured: the mean under a Gaussian, or the middle of k-space.

    ``coarser``: how much coarser than the output's grid the scan resolves, per axis. ``sigma``: of
    the Gaussian, in voxels of the output; None for k-space truncation. ``sure``: it was told.
    """

    coarser: Factor
    sigma: Factor | None = None
    sure: bool = True

    def __call__(self, estimate: Volume, scan: Volume) -> Volume:
        """The scan that an estimate would have given, on the scan's grid."""
        if self.sigma is None:
            low = KSpaceTruncation(self.coarser)(estimate)
        else:
            low = estimate.with_data(blur(estimate.data, self.sigma))
        return resample(low, scan.shape, scan.affine)

    def __str__(self) -> str:
        widths = [f"{s:.2g}" for s in self.sigma or ()]
        kind = f"gaussian of {' '.join(widths)} voxels" if widths else "kspace"
        return kind if self.sure else f"{kind} (estimated)"


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


def estimated(scan: np.ndarray, coarser: Factor) -> Kernel | None:
    """The Gaussian that the voxels of a scan (X, Y, Z) most likely measured; None of few slices.

    A quadratic form of ``kernel_features``, fitted to synthetic scans (``shipped/kernel.csv``, see
    the model card of `robust`), gives the logarithm of each axis' width over the factor. Axes that
    are as coarse as each other get their mean. A scan unlike those synthetic ones, beyond FAR
    standard deviations in any feature, is taken for one whose voxels measured just themselves
    (``box``), as that sharpens least.
    """
    mean, std, form = _fitted()
    axes = [axis for axis in range(3) if coarser[axis] > 1]
    features = (kernel_features(scan, coarser)[axes] - mean) / std
    if not axes or np.isnan(features).any():
        return None
    if np.abs(features).max() > FAR:
        return replace(told("box", coarser), sure=False)
    given = np.column_stack([np.ones(len(axes)), features])
    widths = np.exp(((given @ form) * given).sum(1)).clip(*WIDTHS)
    sigma = np.zeros(3)
    for factor in {coarser[axis] for axis in axes}:
        alike = [coarser[axis] == factor for axis in axes]
        sigma[np.equal(coarser, factor)] = factor * np.exp(np.log(widths[alike]).mean())
    return Kernel(coarser, tuple(sigma.tolist()), sure=False)


def kernel_features(scan: np.ndarray, coarser: Factor) -> np.ndarray:
    """What shows the kernel in a scan: (3, 12), for each axis five numbers of its own.

    They are logarithms of ratios of energies, each of the next: of the fourth, third, second and
    first differences (as for white noise), and of the differences of voxels 2 and 4 apart. Five
    more are their means over the other axes; then the logarithm of the axis' factor, and how many
    other axes are coarser, too. nan where an axis is too short.
    """
    held = np.clip(scan, *usual_range(scan)).astype(np.float64)
    own = np.array([_energies(np.moveaxis(held, axis, -1)) for axis in range(3)])
    coarse = np.greater(coarser, 1)
    rows = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        seen = own[others][~np.isnan(own[others]).any(1)]
        mean = seen.mean(0) if len(seen) else own[axis]
        rows.append([*own[axis], *mean, np.log(coarser[axis]), coarse[others].sum()])
    return np.array(rows)


def _energies(lines: np.ndarray) -> np.ndarray:
    """The five logarithms along the last axis."""
    if lines.shape[-1] < LEAST:
        return np.full(5, np.nan)
    norms = {4: 70, 3: 20, 2: 6, 1: 2}  # of white noise of variance 1
    energy = [np.square(np.diff(lines, order)).mean() / norm for order, norm in norms.items()]
    for lag in (2, 4):
        energy.append(np.square(lines[..., lag:] - lines[..., :-lag]).mean() / 2)
    energy = np.array(energy) + 1e-9 * max(energy) + 1e-30
    return np.log(energy[:-1] / energy[1:])


@cache
def _fitted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of the features (12,), and the symmetric form (13, 13)."""
    rows = np.loadtxt(Path(__file__).parents[1] / "shipped" / "kernel.csv", delimiter=",")
    return rows[0, 1:], rows[1, 1:], rows[2:]


def consistent(estimate: Volume, on_grid: Volume, scan: Volume, kernel: Kernel) -> Volume:
    """An estimate that gives the scan when it is degraded again, but for noise (ours).

    ``on_grid`` is the scan interpolated on the estimate's grid. A network that does not know the
    kernel changes it by too little or too much, so the change is scaled first (``_scale``).
    ``back_project`` then corrects the rest. A kernel that was not told, and with which the result
    leaves the range of ``on_grid`` by more than OVERSHOOT of it, is taken to be narrower.
    """
    change, low, high = estimate.data - on_grid.data, on_grid.data.min(), on_grid.data.max()
    for _ in range(NARROWED):
        scale = _scale(estimate, on_grid, scan, kernel)
        made = back_project(on_grid.with_data(on_grid.data + scale * change), scan, kernel)
        beyond = max(low - made.data.min(), made.data.max() - high)
        if kernel.sure or not kernel.sigma or beyond <= OVERSHOOT * (high - low):
            break
        kernel = replace(kernel, sigma=tuple(0.8 * s for s in kernel.sigma))
    return made


def _scale(estimate: Volume, on_grid: Volume, scan: Volume, kernel: Kernel) -> float:
    """By how much to multiply what a network changed, 0 to LARGEST.

    Its degraded form is to explain best what the scan has and the degraded ``on_grid`` lacks.
    K-space truncation leaves nothing to explain, and the scale is 1, unless the change lies among
    the frequencies that were measured.
    """
    before = kernel(on_grid, scan).data
    shown, lacking = kernel(estimate, scan).data - before, scan.data - before
    energy = float(np.square(estimate.data - on_grid.data).mean(dtype=np.float64))
    shown_energy = float(np.square(shown).mean(dtype=np.float64))
    if not kernel.sigma and shown_energy <= SEEN * energy:
        return 1.0
    wanted = float((shown * lacking).mean(dtype=np.float64)) + TRUST * energy
    return float(np.clip(wanted / (shown_energy + TRUST * energy or 1.0), 0, LARGEST))


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
