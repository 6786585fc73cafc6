"""Image quality, equal to scikit-image's figures, at a fraction of its memory; the data range is always given."""

from functools import partial

import numpy as np
from skimage import metrics as reference

from srlib.paths import InputError

SLAB = 24  # slices per call of scikit-image: its memory grows with the slab, its halo's overhead shrinks
WINDOWS = {
    "uniform": {"win_size": 7},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}
RADIUS = {"uniform": 3, "gaussian": 5}  # of each window, in voxels


def _pair(hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if hr.shape != sr.shape:
        raise InputError(f"the scans differ in shape: {hr.shape} and {sr.shape}; resample one onto the other's grid")
    if mask is None:
        return hr, sr
    if mask.dtype != bool:
        raise InputError(f"expected a boolean mask, got {mask.dtype}; give e.g. mask > 0")
    if mask.shape != hr.shape:
        raise InputError(f"the mask has shape {mask.shape}, the scans {hr.shape}")
    if not mask.any():
        raise InputError("the mask is empty")
    return hr[mask], sr[mask]


def _check_range(data_range: float) -> None:
    if not data_range > 0:
        raise InputError(f"data_range must be positive, got {data_range}")


def psnr(hr: np.ndarray, sr: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, over all voxels or those of a boolean mask; infinite for equal scans.

    Raises InputError when shapes differ, the mask is empty or not boolean, or the range is not positive.
    """
    hr, sr = _pair(hr, sr, mask)
    _check_range(data_range)
    with np.errstate(divide="ignore"):
        return float(reference.peak_signal_noise_ratio(hr, sr, data_range=data_range))


def nrmse(hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the squared error over the squared ``hr`` (scikit-image's Euclidean normalisation)."""
    return float(reference.normalized_root_mse(*_pair(hr, sr, mask)))


def ssim(
    hr: np.ndarray,
    sr: np.ndarray,
    data_range: float,
    mask: np.ndarray | None = None,
    kind: str = "3d",
    window: str = "uniform",
    axis: int = 2,
) -> float:
    """Structural similarity: mean of the local map over the interior, or over a boolean mask.

    ``kind`` '3d' uses cubic windows; '2d' is the mean over the slices of ``axis``, which is another number.
    ``window``: 'uniform' 7 voxels wide, or 'gaussian' with sigma 1.5 (11 wide, population covariance, as in
    Wang et al., 2004). Windows that reach over the volume's face are left out, as in scikit-image; with
    a mask every voxel of the mask counts. Raises InputError as ``psnr``, and for volumes below the window.
    """
    _pair(hr, sr, mask)
    _check_range(data_range)
    if kind not in ("3d", "2d") or window not in WINDOWS:
        raise InputError(f"expected kind 3d or 2d and window {' or '.join(WINDOWS)}, got {kind!r} and {window!r}")
    hr, sr = np.moveaxis(hr, axis, 0), np.moveaxis(sr, axis, 0)
    mask = None if mask is None else np.moveaxis(mask, axis, 0)
    radius, n = RADIUS[window], len(hr)
    if min(hr.shape if kind == "3d" else hr.shape[1:]) <= 2 * radius:
        raise InputError(
            f"{kind} SSIM with a {window} window needs at least {2 * radius + 1} voxels per axis, got shape {hr.shape}"
        )
    halo, step, inside = (radius, SLAB, slice(radius, n - radius)) if kind == "3d" else (0, 1, slice(0, n))
    total, count, face = 0.0, 0, (slice(radius, -radius),) * 2
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        low, high = _slab(rows, halo, n)
        pair = (hr[low:high], sr[low:high]) if kind == "3d" else (hr[start], sr[start])
        local = reference.structural_similarity(*pair, data_range=data_range, full=True, **WINDOWS[window])[1]
        local = local[rows.start - low : rows.stop - low] if kind == "3d" else local[None]
        if mask is not None:
            values = local[mask[rows]]
        else:
            a, b = max(rows.start, inside.start), min(rows.stop, inside.stop)
            values = local[(slice(a - rows.start, max(b, a) - rows.start), *face)]
        total, count = total + float(values.sum(dtype=np.float64)), count + values.size
    return total / count


def _slab(rows: slice, halo: int, n: int) -> tuple[int, int]:
    """The rows and their halo, within 0..n but never thinner than a window (at the last rows of a volume)."""
    low, high = max(rows.start - halo, 0), min(rows.stop + halo, n)
    return (max(min(low, high - 2 * halo - 1), 0), max(high, min(low + 2 * halo + 1, n)))


METRICS = {
    "psnr": psnr,
    "ssim3d": ssim,
    "ssim2d": partial(ssim, kind="2d"),
    "nrmse": lambda hr, sr, data_range, mask=None: nrmse(hr, sr, mask),
}


def evaluate(hr: np.ndarray, sr: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> dict[str, float]:
    """Every metric of ``METRICS`` for one pair; ``data_range`` in the scans' own units."""
    return {name: metric(hr, sr, data_range=data_range, mask=mask) for name, metric in METRICS.items()}
