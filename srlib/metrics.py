"""Image quality, equal to scikit-image's figures, at a fraction of its memory; the data range is always given."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from skimage import metrics as reference

from srlib.paths import InputError

SLAB = 24  # slices per call of scikit-image: its memory grows with the slab, its halo's overhead shrinks
WINDOWS = {
    "uniform": {"win_size": 7},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}
ORDINARY = 2  # data ranges from zero, up to which scikit-image may compute in float32; farther off it gets float64
RADIUS = {"uniform": 3, "gaussian": 5}  # of each window, in voxels


def _pair(hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if hr.shape != sr.shape:
        raise InputError(f"the scans differ in shape: {hr.shape} and {sr.shape}; resample one onto the other's grid")
    if not hr.size:
        raise InputError(f"the scans have no voxels, their shape is {hr.shape}")
    if mask is not None:
        if mask.dtype != bool:
            raise InputError(f"expected a boolean mask, got {mask.dtype}; give e.g. mask > 0")
        if mask.shape != hr.shape:
            raise InputError(f"the mask has shape {mask.shape}, the scans {hr.shape}")
        if not mask.any():
            raise InputError("the mask is empty")
        hr, sr = hr[mask], sr[mask]
    hr, sr = _real(hr), _real(sr)
    for name, values in (("truth", hr), ("estimate", sr)):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise InputError(f"{bad} voxels of the {name} are NaN or infinite; there is nothing to measure")
    return hr, sr


def _real(data: np.ndarray) -> np.ndarray:
    """Numbers that differences and squares can be taken of: float32 at least, float64 where its squares would be none."""
    usual = 1e-12 < max(abs(float(end)) for end in (data.min(), data.max())) < 1e12
    return data.astype(np.result_type(data, np.float32 if usual else np.float64), copy=False)


def _check_range(data_range: float) -> None:
    if not 0 < data_range < math.inf:
        raise InputError(f"data_range must be positive and finite, got {data_range}")


def psnr(hr: np.ndarray, sr: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, over all voxels or those of a boolean mask; infinite for equal scans.

    Raises InputError when shapes differ, a voxel that counts is not finite, the mask is empty or not boolean, or the
    range is not positive.
    """
    hr, sr = _pair(hr, sr, mask)
    _check_range(data_range)
    with np.errstate(divide="ignore"):
        return float(reference.peak_signal_noise_ratio(hr, sr, data_range=data_range))


def nrmse(hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the squared error over the squared ``hr`` (scikit-image's Euclidean normalisation); infinite for no truth.

    Raises InputError as ``psnr``; nan where both scans are zero.
    """
    hr, sr = _pair(hr, sr, mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(reference.normalized_root_mse(hr, sr))


def sharpness(hr: np.ndarray, sr: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Gradient energy of ``sr`` over that of ``hr``: 1 is as sharp as the truth, below is blurred, above is noisy (ours).

    The energy is the sum of squared differences of neighbouring voxels along the three axes, both of them inside
    the boolean mask where there is one. Raises InputError as ``psnr``; nan when ``hr`` is constant.
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
    return _ssim(hr, sr, data_range, [mask], kind, window, axis)[0]


def _ssim(
    hr: np.ndarray,
    sr: np.ndarray,
    data_range: float,
    masks: list[np.ndarray | None],
    kind: str = "3d",
    window: str = "uniform",
    axis: int = 2,
) -> list[float]:
    """SSIM over several regions of one pair, from one pass over its slabs."""
    for mask in masks:
        _pair(hr, sr, mask)
    _check_range(data_range)
    if kind not in ("3d", "2d") or window not in WINDOWS:
        raise InputError(f"expected kind 3d or 2d and window {' or '.join(WINDOWS)}, got {kind!r} and {window!r}")
    if hr.ndim != 3:
        raise InputError(f"SSIM needs scans (X, Y, Z), got shape {hr.shape}; an image has one slice, (X, Y, 1)")
    hr, sr = np.moveaxis(hr, axis, 0), np.moveaxis(sr, axis, 0)
    radius, n = RADIUS[window], len(hr)
    if not _fits(hr.shape, kind, window):
        raise InputError(
            f"{kind} SSIM with a {window} window needs at least {2 * radius + 1} voxels per axis, got shape {hr.shape}"
        )
    # without a mask the interior counts: scikit-image's own rule
    interior = np.zeros(hr.shape, dtype=bool)
    interior[(slice(radius, n - radius) if kind == "3d" else slice(None), *(slice(radius, -radius),) * 2)] = True
    regions = [interior if mask is None else np.moveaxis(mask, axis, 0) for mask in masks]
    ordinary = _ordinary(hr, sr, data_range)
    totals, step = np.zeros(len(regions)), (SLAB if ordinary else SLAB // 2) if kind == "3d" else 1
    for start in range(0, n, step):
        stop = min(start + step, n)
        low, high = _slab(start, stop, radius, n) if kind == "3d" else (start, stop)
        pair = (hr[low:high], sr[low:high]) if kind == "3d" else (hr[start], sr[start])
        pair = pair if ordinary else [v.astype(np.float64) for v in pair]
        local = reference.structural_similarity(*pair, data_range=data_range, full=True, **WINDOWS[window])[1]
        local = local.reshape(high - low, *hr.shape[1:])[start - low : stop - low]
        totals += [local[region[start:stop]].sum(dtype=np.float64) for region in regions]
    if not np.isfinite(totals).all():
        raise InputError("voxels are NaN or infinite within the windows of SSIM; replace them first")
    return [float(total / np.count_nonzero(region)) for total, region in zip(totals, regions, strict=True)]


def _fits(shape: Sequence[int], kind: str, window: str = "uniform") -> bool:
    """Whether a window fits into a scan whose slices lie along its first axis."""
    return min(shape if kind == "3d" else shape[1:]) > 2 * RADIUS[window]


def _ordinary(hr: np.ndarray, sr: np.ndarray, data_range: float) -> bool:
    """Whether float32 holds the windows' variances, differences of squares, to five digits of the squared range."""
    largest = max(abs(float(end)) for v in (hr, sr) for end in (v.min(), v.max()))
    return largest <= ORDINARY * data_range and 1e-12 < data_range < 1e12


def _slab(start: int, stop: int, halo: int, n: int) -> tuple[int, int]:
    """The rows and their halo, within 0..n but never thinner than a window (at the last rows of a volume)."""
    low, high = max(start - halo, 0), min(stop + halo, n)
    return max(min(low, high - 2 * halo - 1), 0), max(high, min(low + 2 * halo + 1, n))


def centre(array: np.ndarray, share: float = 0.9) -> np.ndarray:
    """View of the middle ``share`` of the first two axes, for metrics away from the borders (the SRResNet code's 90 %).

    floor(n (1 - share) / 2) rows are left out at each end. Raises InputError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"share: expected a number above 0 and up to 1, got {share}")
    cut = [int(n * (1 - share) / 2 + 1e-9) for n in array.shape[:2]]
    return array[tuple(slice(c, n - c) for c, n in zip(cut, array.shape[:2], strict=True))]


METRICS = {
    "psnr": psnr,
    "ssim3d": ssim,
    "ssim2d": partial(ssim, kind="2d"),
    "nrmse": lambda hr, sr, data_range, mask=None: nrmse(hr, sr, mask),
    "sharpness": lambda hr, sr, data_range, mask=None: sharpness(hr, sr, mask),
}


def evaluate(
    hr: np.ndarray, sr: np.ndarray, data_range: float, mask: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """All of ``METRICS`` by region: ``volume`` (every voxel) and, where a boolean mask is given, ``mask``.

    Equal to calling each metric by itself, in one pass. ``data_range`` in the scans' own units. Scans (X, Y, Z) below
    the windows of ``ssim3d``, as 2-D images, or of ``ssim2d`` have none: nan. Raises InputError as ``psnr``.
    """
    regions = {"volume": None} if mask is None else {"volume": None, "mask": mask}
    ssims = {kind: [math.nan] * len(regions) for kind in ("3d", "2d")}
    for kind in ssims:
        if hr.ndim != 3 or _fits(hr.shape[::-1], kind):
            ssims[kind] = _ssim(hr, sr, data_range, list(regions.values()), kind)
    return {
        name: {
            "psnr": psnr(hr, sr, data_range, region),
            "ssim3d": ssims["3d"][i],
            "ssim2d": ssims["2d"][i],
            "nrmse": nrmse(hr, sr, region),
            "sharpness": sharpness(hr, sr, region),
        }
        for i, (name, region) in enumerate(regions.items())
    }
