"""Measure the image quality of arrays, with the numbers of scikit-image in less memory."""

import math
from collections.abc import Sequence

import numpy as np
from skimage import metrics as reference

from srlib.core.paths import InputError

RADIUS = 3  # voxels, of the windows of SSIM
SLAB = 24  # slices per call of scikit-image, whose memory grows with the slab
ORDINARY = 2  # data ranges from zero, up to which scikit-image may compute in float32


def _pair(
    hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None, data_range: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of two scans that count, in a type that holds their squares; InputError as
    ``psnr``.
    """
    if not 0 < data_range < math.inf:
        raise InputError(f"data_range must be positive and finite, got {data_range}")
    if hr.shape != sr.shape:
        raise InputError(
            f"the scans differ in shape: {hr.shape} and {sr.shape}; resample one onto the other's "
            "grid"
        )
    if not hr.size:
        raise InputError(f"the scans have no voxels, their shape is {hr.shape}")
    if mask is not None:
        if mask.dtype != bool or mask.shape != hr.shape or not mask.any():
            raise InputError(
                f"expected a boolean mask of shape {hr.shape} that is not empty, e.g. brain > 0; "
                f"got {mask.dtype} of {mask.shape} with {np.count_nonzero(mask)} voxels"
            )
        hr, sr = hr[mask], sr[mask]
    hr, sr = _real(hr), _real(sr)
    for name, values in (("truth", hr), ("estimate", sr)):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise InputError(
                f"{bad} voxels of the {name} are NaN or infinite; there is nothing to measure"
            )
    return hr, sr


def _largest(data: np.ndarray) -> float:
    """Largest absolute value."""
    return max(-float(data.min()), float(data.max()))


def _real(data: np.ndarray) -> np.ndarray:
    """Convert to float32, or to float64 where float32 does not hold the squares."""
    kind = np.float32 if 1e-12 < _largest(data) < 1e12 else np.float64
    return data.astype(np.result_type(data, kind), copy=False)


def psnr(
    hr: np.ndarray, sr: np.ndarray, data_range: float, *, mask: np.ndarray | None = None
) -> float:
    """Peak signal-to-noise ratio in dB over all voxels or a boolean mask; infinite for equal scans.

    Raises InputError when shapes differ, a voxel that counts is not finite, the mask is empty or
    not boolean, or the range is not positive.
    """
    hr, sr = _pair(hr, sr, mask, data_range)
    with np.errstate(divide="ignore"):
        return float(reference.peak_signal_noise_ratio(hr, sr, data_range=data_range))


def nrmse(hr: np.ndarray, sr: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Root of the squared error over the squared ``hr`` (scikit-image's Euclidean normalisation).

    It is infinite where only ``hr`` is zero, nan where both are. Raises InputError as ``psnr``.
    """
    hr, sr = _pair(hr, sr, mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(reference.normalized_root_mse(hr, sr))


def sharpness(hr: np.ndarray, sr: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Gradient energy of ``sr`` over that of ``hr`` (ours): below 1 is blurred, above 1 is noisy.

    The energy is the sum of squared differences of neighbouring voxels along all axes, both of them
    inside the boolean mask if there is one. Raises InputError as ``psnr``; nan when ``hr`` is
    constant.
    """
    _pair(hr, sr, mask)
    return float(np.divide(_gradient_energy(sr, mask), _gradient_energy(hr, mask) or np.nan))


def _gradient_energy(data: np.ndarray, mask: np.ndarray | None) -> float:
    energy, data = 0.0, _real(data)
    for axis in range(data.ndim):
        step = np.diff(data, axis=axis)
        if mask is not None:
            inside = np.moveaxis(mask, axis, 0)
            step = step[np.moveaxis(inside[1:] & inside[:-1], 0, axis)]
        energy += float(np.square(step).sum(dtype=np.float64))
    return energy


def ssim(
    hr: np.ndarray,
    sr: np.ndarray,
    data_range: float,
    *,
    mask: np.ndarray | None = None,
    kind: str = "3d",
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
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim2d = reference.structural_similarity(hr, sr, data_range=1, channel_axis=2, **window)
    return {"psnr": psnr(hr, sr, 1), "ssim2d": float(ssim2d)}


def _ssim(
    hr: np.ndarray, sr: np.ndarray, data_range: float, masks: Sequence[np.ndarray | None], kind: str
) -> list[float]:
    """SSIM over several regions of one pair, from one pass over its slabs."""
    for mask in masks:
        _pair(hr, sr, mask, data_range)
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
    regions = [interior if mask is None else np.moveaxis(mask, 2, 0) for mask in masks]
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


def _fits(shape: Sequence[int], kind: str) -> bool:
    """Whether a window fits into a scan (X, Y, Z)."""
    return len(shape) == 3 and min(shape if kind == "3d" else shape[:2]) > 2 * RADIUS


def centre(array: np.ndarray) -> np.ndarray:
    """View of the middle 90 % of the first two axes, the crop that the SRResNet code defines."""
    return array[tuple(slice(n // 20, n - n // 20) for n in array.shape[:2])]


def evaluate(
    hr: np.ndarray, sr: np.ndarray, data_range: float, *, mask: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """All metrics by region: ``volume`` (every voxel) and, for a boolean mask, ``mask``.

    They equal those of the single functions. ``data_range`` is in the scans' own units. Scans
    (X, Y, Z) smaller than the windows of ``ssim3d``, as 2-D images, or of ``ssim2d`` get nan.
    Raises InputError as ``psnr``.
    """
    masks = [None] if mask is None else [None, mask]
    ssims = []
    for kind in ("3d", "2d"):
        small = hr.ndim == 3 and not _fits(hr.shape, kind)
        ssims.append([math.nan] * len(masks) if small else _ssim(hr, sr, data_range, masks, kind))
    found = {}
    for name, region, ssim3d, ssim2d in zip(("volume", "mask"), masks, *ssims, strict=False):
        found[name] = {
            "psnr": psnr(hr, sr, data_range, mask=region),
            "ssim3d": ssim3d,
            "ssim2d": ssim2d,
            "nrmse": nrmse(hr, sr, mask=region),
            "sharpness": sharpness(hr, sr, mask=region),
        }
    return found
