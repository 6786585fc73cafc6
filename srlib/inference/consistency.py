"""Make an estimate consistent with the scan: what its voxels measured is told or estimated."""

from dataclasses import replace

import numpy as np
from scipy import fft, ndimage

from srlib.degradations.kernels import Factor, Kernel
from srlib.scans.volume import Volume, resample

STEPS = 5  # at most
OVERSHOOT = 0.1  # of the scan's range, beyond it
FINEST = 0.8  # share of the highest frequency
CAUTION = 0.75  # share of the way to the least width, in full doubt
KNOWN = 34.0  # novelty, times the squared factor, up to which a scan is like those of training
LARGEST = 2.0  # multiple of the network's change
TRUST = 0.05  # weight of the change as it is, against what the scan says of its scale
SEEN = 0.7  # share of a change's energy from which on k-space truncation shows enough of it


def consistent(estimate: Volume, on_grid: Volume, scan: Volume, kernel: Kernel) -> Volume:
    """An estimate that gives the scan when it is degraded again, but for noise (ours).

    ``on_grid`` is the scan interpolated on the estimate's grid. A network that does not know the
    kernel changes it by too little or too much, so the change is scaled first (``_scale``).
    ``back_project`` then corrects the rest. An estimated width is in doubt where the network adds
    much more than the scan shows (``novelty``), as in content that is smooth by itself. There it is
    taken to be narrower, down to the ``least``, since too wide a kernel spoils a scan and too
    narrow a one improves it less; and the result stays within OVERSHOOT of the scan's range. After
    k-space truncation the change itself is in doubt there.
    """
    change, doubt = estimate.data - on_grid.data, 0.0
    if not (kernel.told and kernel.sigma):
        known = KNOWN / max(kernel.coarser) ** 2 if kernel.sigma else 1
        doubt = np.clip(np.log2(novelty(change, scan, kernel.coarser) / known), 0, 1)
    if doubt and kernel.sigma:
        width = kernel.least ** (CAUTION * doubt)
        kernel = replace(kernel, sigma=tuple(width * s for s in kernel.sigma))
    scale = _scale(change, on_grid, scan, kernel)
    if doubt and not kernel.sigma:  # no measurement says anything about what is added
        return on_grid.with_data(on_grid.data + (1 - doubt) * scale * change)
    made = back_project(on_grid.with_data(on_grid.data + scale * change), scan, kernel)
    if kernel.told:
        return made
    margin = OVERSHOOT * np.ptp(scan.data)
    return made.with_data(made.data.clip(scan.data.min() - margin, scan.data.max() + margin))


def novelty(change: np.ndarray, scan: Volume, coarser: Factor) -> float:
    """Energy of what a network adds to a scan over that of the finest details there (ours).

    These are the cosines of more than FINEST of the highest frequency that was measured, of the
    axes that are ``coarser``. Spectra fall, so there cannot be much beyond what shows hardly
    anything there. What a scan holds on a finer grid (``change``) has the same energy per voxel.
    """
    coarse = np.greater(coarser, 1)
    spectrum = fft.dctn(scan.data.astype(float), axes=np.flatnonzero(coarse), norm="ortho") ** 2
    kept = np.array(scan.shape)
    if change.shape == scan.shape:
        kept = np.round(kept / coarser).astype(int)
    inner = np.where(coarse, FINEST * kept, kept).astype(int)
    whole, middle = (spectrum[tuple(map(slice, size))].sum() for size in (kept, inner))
    finest = max(whole - middle, 1e-15 * whole) / scan.data.size + 1e-30
    return np.square(change).mean(dtype=np.float64) / finest + 1e-9


def _scale(change, on_grid, scan, kernel):
    """By how much to multiply what a network changed, 0 to LARGEST.

    Its degraded form is to explain best what the scan has and the degraded ``on_grid`` lacks.
    K-space truncation leaves nothing to explain, and the scale is 1, unless the change lies among
    the frequencies that were measured.
    """
    before = kernel(on_grid, scan).data
    shown = kernel(on_grid.with_data(on_grid.data + change), scan).data - before
    energy, lacking = np.square(change).mean(dtype=np.float64), scan.data - before
    shown_energy = np.square(shown).mean(dtype=np.float64)
    if not kernel.sigma and shown_energy <= SEEN * energy:
        return 1.0
    wanted = (shown * lacking).mean(dtype=np.float64) + TRUST * energy
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
