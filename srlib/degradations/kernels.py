"""What a scan's voxels measured: a kernel that is told, or estimated from the scan."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, choose
from srlib.degradations.resolution import KSpaceTruncation
from srlib.scans.intensity import usual_range
from srlib.scans.separable import blur
from srlib.scans.volume import Volume, resample

Factor = tuple[float, float, float]
FAR = 5.0  # standard deviations
WIDTHS = (0.2, 1.2)  # of a Gaussian over the factor, in the synthetic scans
LEAST = 16  # voxels along an axis that shows its kernel
KINDS = {"gaussian": True, "box": False, "kspace": False}  # of kernels, and whether with a width


@dataclass(frozen=True)
class Kernel:
    """What a scan's voxels measured: the mean under a Gaussian, or the middle of k-space.

    ``coarser``: how much coarser than the output's grid the scan resolves, per axis. ``sigma``: of
    the Gaussian, in voxels of the output; None for k-space truncation. ``told``: it was not
    estimated. ``least``: the share of ``sigma`` that it has at least, where it was estimated.
    """

    coarser: Factor
    sigma: Factor | None = None
    told: bool = True
    least: float = 1.0

    def __call__(self, estimate: Volume, scan: Volume) -> Volume:
        """The scan that an estimate would have given, on the scan's grid."""
        if self.sigma is None:
            low = KSpaceTruncation(self.coarser)(estimate)
        else:
            low = estimate.with_data(blur(estimate.data, self.sigma))
        return resample(low, scan.shape, scan.affine)

    def __str__(self) -> str:
        if self.sigma is None:
            return "kspace"
        widths = " ".join(f"{s:.2g}" for s in self.sigma)
        doubt = "" if self.told else f" (estimated, at least {self.least:.0%} of it)"
        return f"gaussian of {widths} voxels{doubt}"


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


def estimated(scan: np.ndarray, coarser: Factor) -> Kernel:
    """The Gaussian that the voxels of a scan (X, Y, Z) most likely measured.

    Two quadratic forms of ``kernel_features``, fitted to synthetic scans (``shipped/kernel.csv``,
    see the model card of `robust`), give the logarithm of each axis' width over the factor, and of
    what it is at least. Axes that are as coarse as each other get their mean. A scan unlike those
    synthetic ones, beyond FAR standard deviations in any feature, or of few slices, is taken for
    one whose voxels measured just themselves (``box``), as that sharpens least.
    """
    mean, std, *forms = _fitted()
    axes = np.flatnonzero(np.greater(coarser, 1))
    features = (kernel_features(scan, coarser) - mean) / std
    if np.isnan(features).any() or np.abs(features[axes]).max(initial=0) > FAR:
        return replace(told("box", coarser), told=False)
    given = np.column_stack([np.ones(len(axes)), features[axes]])
    width, least = (((given @ form) * given).sum(1) for form in forms)
    width, sigma, factor = width.clip(*np.log(WIDTHS)), np.zeros(3), np.array(coarser)[axes]
    alike = np.equal.outer(factor, factor)
    sigma[axes] = factor * np.exp(alike @ width / alike.sum(1))
    share = np.exp(min((least - width).mean(), 0))
    return Kernel(coarser, tuple(sigma.tolist()), told=False, least=share)


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
def _fitted() -> tuple[np.ndarray, ...]:
    """Mean and standard deviation of the features (12,), and two symmetric forms (13, 13)."""
    rows = np.loadtxt(Path(__file__).parents[1] / "shipped" / "kernel.csv", delimiter=",")
    return rows[0, 1:], rows[1, 1:], *np.split(rows[2:], 2)
