"""Measure image quality: scikit-image's metrics in less memory, resolution, HFEN and HaarPSI.

A scan is an array of any real type, a tensor on any device, or a ``Volume``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import fft, ndimage, special
from skimage import metrics as reference
from skimage.measure import block_reduce

from srlib.core.paths import InputError

Scan = Any  # what ``as_array`` takes
RADIUS = 3  # voxels, of the windows of SSIM
SLAB = 24  # slices per call of scikit-image, whose memory grows with the slab
ORDINARY = 2  # data ranges from zero, up to which scikit-image may compute in float32
CORRELATION = 0.5  # of estimate and truth, where the resolution ends
CONE = math.cos(math.radians(20))  # of half its angle
SIGMA, REACH = 1.5, 7  # voxels, of the Laplacian of Gaussian of HFEN
C, ALPHA = 30, 4.2  # of HaarPSI, for grey levels from 0 to 255


def as_array(scan: Scan) -> np.ndarray:
    """The voxels of a scan as an array; InputError where they are no real numbers."""
    data = scan.data if hasattr(scan, "spacing_mm") else scan
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        if str(data.dtype) == "torch.bfloat16":  # which NumPy lacks
            data = data.float()
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise InputError(f"expected real numbers, got {array.dtype}; take their magnitude first")
    return array


def _checked(hr, sr, mask, data_range=1):
    """Two scans in a type that holds their squares, and the index of the voxels that count.

    Raises InputError as ``psnr``.
    """
    if not 0 < data_range < math.inf:
        raise InputError(f"data_range must be positive and finite, got {data_range}")
    hr, sr = as_array(hr), as_array(sr)
    if hr.shape != sr.shape:
        raise InputError(
            f"the scans differ in shape: {hr.shape} and {sr.shape}; resample one onto the other's "
            "grid"
        )
    if not hr.size:
        raise InputError(f"the scans have no voxels, their shape is {hr.shape}")
    inside = ...
    if mask is not None:
        inside = as_array(mask)
        if inside.dtype != bool or inside.shape != hr.shape or not inside.any():
            raise InputError(
                f"expected a boolean mask of shape {hr.shape} that is not empty, e.g. brain > 0; "
                f"got {inside.dtype} of {inside.shape} with {np.count_nonzero(inside)} voxels"
            )
    hr, sr = _real(hr), _real(sr)
    for name, values in (("truth", hr[inside]), ("estimate", sr[inside])):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise InputError(
                f"{bad} voxels of the {name} are NaN or infinite; there is nothing to measure"
            )
    return hr, sr, inside


def _largest(data):
    """Largest absolute value."""
    return max(-float(data.min()), float(data.max()))


def _real(data):
    """Convert to float32, or to float64 where float32 does not hold the squares."""
    kind = np.float32 if 1e-12 < _largest(data) < 1e12 else np.float64
    return data.astype(np.result_type(data, kind), copy=False)


def psnr(hr: Scan, sr: Scan, data_range: float, *, mask: Scan | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all voxels or a boolean mask; infinite for equal scans.

    Raises InputError when shapes differ, a voxel that counts is not finite, the mask is empty or
    not boolean, or the range is not positive.
    """
    hr, sr, inside = _checked(hr, sr, mask, data_range)
    with np.errstate(divide="ignore"):
        return float(
            reference.peak_signal_noise_ratio(hr[inside], sr[inside], data_range=data_range)
        )


def nrmse(hr: Scan, sr: Scan, *, mask: Scan | None = None) -> float:
    """Root of the squared error over the squared ``hr`` (scikit-image's Euclidean normalisation).

    It is infinite where only ``hr`` is zero, nan where both are. Raises InputError as ``psnr``.
    """
    hr, sr, inside = _checked(hr, sr, mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(reference.normalized_root_mse(hr[inside], sr[inside]))


def sharpness(hr: Scan, sr: Scan, *, mask: Scan | None = None) -> float:
    """Gradient energy of ``sr`` over that of ``hr`` (ours): below 1 is blurred, above 1 is noisy.

    The energy is the sum of squared differences of neighbouring voxels along all axes, both of them
    inside the boolean mask if there is one. Raises InputError as ``psnr``; nan when ``hr`` is
    constant.
    """
    hr, sr, inside = _checked(hr, sr, mask)
    return _gradient_energy(sr, inside) / (_gradient_energy(hr, inside) or math.nan)


def _gradient_energy(data, inside):
    """Sum of squared differences of neighbouring voxels, both of them inside."""
    energy = 0.0
    for axis in range(data.ndim):
        step = np.diff(data, axis=axis)
        if inside is not ...:
            along = np.moveaxis(inside, axis, 0)
            step = step[np.moveaxis(along[1:] & along[:-1], 0, axis)]
        energy += float(np.square(step).sum(dtype=np.float64))
    return energy


def resolution(hr: Scan, sr: Scan, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Resolution along each voxel axis in mm, by the Fourier correlation of estimate and truth.

    It is the period (1 / frequency) at which the correlation over shells first falls below 0.5, and
    at best two voxels. Only frequencies within 20 degrees of the axis count, in shells as thick as
    its lowest frequency. Both scans, less their means, are first faded out by a Hann window.
    Sources: shells, van Heel & Schatz, J. Struct. Biol. 2005; sections of them, Koho et al., Nat.
    Commun. 2019; 0.5 is the threshold against a perfect map, as 1/7 is that between two noisy
    halves (Rosenthal & Henderson, J. Mol. Biol. 2003); the cone is ours. Correlation ignores
    amplitude: a blur alone does not count. Raises InputError as ``psnr``; nan along an axis of one
    voxel.
    """
    hr, sr, _ = _checked(hr, sr, None)
    windows = [np.hanning(n + 2)[1:-1].astype(hr.dtype) for n in hr.shape]
    window = functools.reduce(np.multiply.outer, windows)
    f, g = (fft.fftn((v - v.mean()) * window) for v in (hr, sr))
    products = (f * g.conj()).real, np.abs(f) ** 2, np.abs(g) ** 2
    frequencies = np.ix_(*map(fft.fftfreq, hr.shape, spacing_mm))
    radius = np.sqrt(sum(k * k for k in frequencies))
    lengths = []
    for k, n, mm in zip(frequencies, hr.shape, spacing_mm, strict=True):
        cone = np.abs(k) >= CONE * radius
        shell = np.rint(radius[cone] * n * mm).astype(int)
        both, *powers = (np.bincount(shell, v[cone])[: n // 2 + 1] for v in products)
        curve = np.append(both / (np.sqrt(np.prod(powers, axis=0)) + 1e-99), 0)
        curve[0] = 1  # the means
        low = np.argmax(curve < CORRELATION)
        above, below = curve[low - 1 : low + 1]
        periods = low - 1 + (above - CORRELATION) / (above - below)
        lengths.append(float(max(n * mm / periods, 2 * mm)) if n > 1 else math.nan)
    return tuple(lengths)


def hfen(hr: Scan, sr: Scan, *, mask: Scan | None = None) -> float:
    """High-frequency error norm: the Laplacian of Gaussian of the error over that of ``hr``.

    Ratio of Euclidean norms; Ravishankar & Bresler, IEEE TMI 2011, whose filter of 15 x 15 pixels,
    sigma 1.5, is here 15 voxels along every axis. A scan of one slice has the 2-D value. Faces
    mirror; the mask chooses among the filtered voxels. Raises InputError as ``psnr``; nan when
    ``hr`` is constant.
    """
    hr, sr, inside = _checked(hr, sr, mask)
    error, truth = (
        np.linalg.norm(ndimage.gaussian_laplace(v, SIGMA, truncate=REACH / SIGMA)[inside].ravel())
        for v in (sr - hr, hr - hr.flat[0])
    )
    return float(error / (truth or math.nan))


def haarpsi(hr: Scan, sr: Scan, data_range: float, *, mask: Scan | None = None) -> float:
    """Haar wavelet perceptual similarity index, mean over the slices of the last axis; 1 is equal.

    Reisenhofer et al., Signal Process. Image Commun. 2018, of grey images, with C = 30 and alpha =
    4.2. ``data_range`` becomes 255 grey levels, the truth's minimum 0, which also lies beyond the
    faces. Only a mask's voxels have weight. Slices without structure do not count. Raises
    InputError as ``psnr``, and for scans other than (X, Y, Z); nan without any structure.
    """
    hr, sr, inside = _checked(hr, sr, mask, data_range)
    if hr.ndim != 3:
        raise InputError(f"HaarPSI needs scans (X, Y, Z), got shape {hr.shape}; an image has Z = 1")
    halves = functools.partial(block_reduce, block_size=(2, 2, 1), func=np.mean)
    hr, sr = (halves((v - hr.min()) * (255 / data_range)) for v in (hr, sr))
    counts = 1 if mask is None else halves(inside)
    total = weight = 0
    for axis in (0, 1):
        pairs = [[_haar(v, axis, size) for v in (hr, sr)] for size in (2, 4, 8)]
        alike = sum((2 * a * b + C) / (a * a + b * b + C) for a, b in pairs[:2])
        weights = np.maximum(*pairs[2]) * counts
        total = total + (special.expit(ALPHA / 2 * alike) * weights).sum((0, 1))
        weight = weight + weights.sum((0, 1))
    shown = weight > 0
    scores = special.logit(total[shown] / weight[shown]) / ALPHA
    return float(np.mean(scores**2)) if shown.any() else math.nan


def _haar(data, axis, size):
    """Absolute coefficients of a Haar wavelet of size x size pixels at every pixel of each slice."""
    step = np.repeat((1 / size, -1 / size), size // 2)
    for weights, along in ((step, axis), (np.ones(size), 1 - axis)):
        data = ndimage.correlate1d(data, weights, along, mode="constant", origin=-1)
    return np.abs(data)


def ssim(
    hr: Scan, sr: Scan, data_range: float, *, mask: Scan | None = None, kind: str = "3d"
) -> float:
    """Structural similarity: mean of the local map over the interior, or over a boolean mask.

    Windows are uniform, 7 voxels wide. ``kind`` '3d' uses cubes; '2d' is the mean over the slices
    of the last axis, which is another number. Windows that reach over the volume's face are left
    out, as in scikit-image; with a mask every voxel of the mask counts. Raises InputError as
    ``psnr``, and for volumes smaller than a window.
    """
    return _ssim(hr, sr, data_range, [mask], kind)[0]


def as_tensorflow(hr: np.ndarray, sr: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of ``tf.image`` at its defaults, of images (X, Y, N) in [0, 1].

    The range is 1. SSIM is the mean over slices; windows are Gaussian (sigma 1.5, 11 pixels wide;
    Wang et al., IEEE TIP 2004).
    """
    ssim2d = reference.structural_similarity(
        hr,
        sr,
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return {"psnr": psnr(hr, sr, 1), "ssim2d": float(ssim2d)}


def _ssim(hr, sr, data_range, masks, kind):
    """SSIM over several regions of one pair, from one pass over its slabs."""
    insides = []
    for mask in masks:
        hr, sr, inside = _checked(hr, sr, mask, data_range)
        insides.append(inside)
    if kind not in ("3d", "2d"):
        raise InputError(f"expected kind 3d or 2d, got {kind!r}")
    if not _fits(hr.shape, kind):
        raise InputError(
            f"{kind} SSIM needs scans (X, Y, Z) of at least {2 * RADIUS + 1} voxels per axis, got "
            f"shape {hr.shape}; an image has one slice, (X, Y, 1), and 2d SSIM alone"
        )
    hr, sr = np.moveaxis(hr, 2, 0), np.moveaxis(sr, 2, 0)
    # without a mask the interior counts: scikit-image's own rule
    interior = np.zeros(hr.shape, dtype=bool)
    halo = RADIUS if kind == "3d" else 0
    interior[halo : len(hr) - halo, RADIUS:-RADIUS, RADIUS:-RADIUS] = True
    regions = [interior if inside is ... else np.moveaxis(inside, 2, 0) for inside in insides]
    # float32 holds the variances, differences of squares, to five digits of the squared range
    largest = max(_largest(hr), _largest(sr))
    ordinary = largest <= ORDINARY * data_range and 1e-12 < data_range < 1e12
    slab = SLAB if ordinary else SLAB // 2
    totals = np.zeros(len(regions))
    step, channels = (slab, None) if kind == "3d" else (1, 0)
    for start in range(0, len(hr), step):
        # with its halo a slab is no thinner than a window, also at the volume's last rows
        low = max(min(start - halo, len(hr) - 2 * halo - 1), 0)
        high = min(start + step + halo, len(hr))
        pair = [v[low:high] if ordinary else v[low:high].astype(np.float64) for v in (hr, sr)]
        _, local = reference.structural_similarity(
            *pair, win_size=2 * RADIUS + 1, data_range=data_range, channel_axis=channels, full=True
        )
        for index, region in enumerate(regions):
            part = region[start : start + step]
            totals[index] += local[start - low :][: len(part)][part].sum(dtype=np.float64)
    if not np.isfinite(totals).all():
        raise InputError(
            "voxels are NaN or infinite within the windows of SSIM; replace them first"
        )
    return [float(t / np.count_nonzero(r)) for t, r in zip(totals, regions, strict=True)]


def _fits(shape, kind):
    """Whether a window fits into a scan (X, Y, Z)."""
    return len(shape) == 3 and min(shape if kind == "3d" else shape[:2]) > 2 * RADIUS


def centre(array: np.ndarray) -> np.ndarray:
    """View of the middle 90 % of the first two axes, the crop that the SRResNet code defines."""
    return array[tuple(slice(n // 20, n - n // 20) for n in array.shape[:2])]


def evaluate(
    hr: Scan,
    sr: Scan,
    data_range: float | None = None,
    *,
    mask: Scan | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics by region: ``volume`` (every voxel) and, for a boolean mask, ``mask``.

    They equal those of the single functions. ``data_range`` is in the scans' own units, by default
    the truth's maximum - minimum. With ``spacing_mm`` there are ``hfen``, ``haarpsi`` and, of
    the whole volume also for ``mask``, ``resolution_{x,y,z}``. Scans (X, Y, Z) smaller than the
    windows of ``ssim3d``, as 2-D images, or of ``ssim2d`` get nan. Raises InputError as ``psnr``.
    """
    hr, sr = as_array(hr), as_array(sr)
    if data_range is None:
        data_range = float(hr.max()) - float(hr.min())
    masks = [None] if mask is None else [None, as_array(mask)]
    ssims = []
    for kind in ("3d", "2d"):
        small = hr.ndim == 3 and not _fits(hr.shape, kind)
        ssims.append([math.nan] * len(masks) if small else _ssim(hr, sr, data_range, masks, kind))
    found, lengths = {}, {}
    if spacing_mm is not None:
        periods = zip("xyz", resolution(hr, sr, spacing_mm), strict=True)
        lengths = {f"resolution_{axis}": mm for axis, mm in periods}
    for name, region, ssim3d, ssim2d in zip(("volume", "mask"), masks, *ssims, strict=False):
        found[name] = {
            "psnr": psnr(hr, sr, data_range, mask=region),
            "ssim3d": ssim3d,
            "ssim2d": ssim2d,
            "nrmse": nrmse(hr, sr, mask=region),
            "sharpness": sharpness(hr, sr, mask=region),
        }
        if lengths:
            found[name] |= lengths
            found[name]["hfen"] = hfen(hr, sr, mask=region)
            found[name]["haarpsi"] = haarpsi(hr, sr, data_range, mask=region)
    return found
