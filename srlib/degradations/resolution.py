"""Degradations: make the low-resolution scan that a scanner would have given of a scan."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from scipy import fft
from skimage.measure import block_reduce

from srlib.core.parts import Count, Part, Share
from srlib.core.paths import InputError
from srlib.degradations.tomography import fbp, radon
from srlib.scans.patches import per_axis
from srlib.scans.separable import blur
from srlib.scans.volume import Volume, coarse_grid, crop_or_pad, resample, stepped_grid

Order = Annotated[int, 0, 5]  # of a spline


class Degradation(Part, ABC):
    """What degradations share: ``degradation(hr)`` gives the low-resolution scan.

    ``factor`` is one number or one per axis. InputError for settings out of their range.
    """

    factor: object
    align = "center"  # how the coarse grid lies in the fine one, see ``stepped_grid``
    order_up = 3  # of the spline that brings its scans on the fine grid
    kernel = ""  # in the words of ``--kernel``, where it has one
    baseline = "zero_filled"  # name of the degraded scan itself, where it stays on the fine grid

    def _per_axis(self, name: str, least: float = 1, kind: type = float) -> None:
        value = per_axis(getattr(self, name), name, least=least, kind=kind)
        object.__setattr__(self, name, value)

    @abstractmethod
    def __call__(self, hr: Volume) -> Volume:
        """The low-resolution scan."""

    @property
    def coarser(self) -> tuple[float, float, float]:
        """How much coarser the low-resolution grid is, per axis."""
        return self.factor

    def usable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the part of a scan, from voxel 0 on, that is degraded."""
        return tuple(shape)

    def cut(self, hr: Volume) -> Volume:
        """The part of a scan that is degraded, see ``usable``."""
        shape = self.usable(hr.shape)
        return hr if shape == hr.shape else crop_or_pad(hr, (0, 0, 0), shape)

    def pair(self, hr: Volume) -> tuple[Volume, Volume]:
        """The low-resolution scan and its ground truth, cut to what is usable."""
        return self(hr), self.cut(hr)

    def to_grid(self, lr: Volume, shape: Sequence[int], *, order: int | None = None) -> Volume:
        """Interpolate the low-resolution scan on the fine grid of the given shape.

        Order 1 is trilinear, 3 cubic; by default it is ``order_up``.
        """
        grid = stepped_grid(lr, shape, np.divide(1, self.coarser), self.align)
        return resample(lr, *grid, order=self.order_up if order is None else order)

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise InputError where a factor exceeds an axis of more than one voxel."""
        if any(f > n > 1 for f, n in zip(self.coarser, shape, strict=True)):
            raise InputError(
                f"a factor of {self.coarser} leaves nothing of a scan of {tuple(shape)} voxels; "
                "choose a smaller one"
            )


class _OnFineGrid(Degradation):
    """A degradation whose image stays on the fine grid."""

    coarser = (1.0, 1.0, 1.0)

    def to_grid(self, lr: Volume, shape: Sequence[int], *, order: int | None = None) -> Volume:
        """The image itself."""
        return lr


@dataclass(frozen=True)
class KSpaceTruncation(_OnFineGrid):
    """Zero the outer k-space of each axis and keep the magnitude; the image stays on its grid.

    Scans with negative values (HU, mean 0) keep the real part instead, and so sign and mean (ours).

    Chen et al., MICCAI 2018. ``factor`` 2 keeps half of an axis's lines (the paper's task is
    (1, 2, 2) with the slice axis first), 5 keeps a fifth (the replicated code's). A factor f zeroes
    round(N (f - 1) / (2 f)) lines at each end, which is the truncation script's round(N / F) with
    F = 2 f / (f - 1). ``stored_12bit`` then divides by the maximum and rounds to 0..4095, as that
    script does before it stores the image; InputError for negative values.
    """

    kernel = "kspace"

    factor: tuple[float, float, float]
    stored_12bit: bool = False

    def __post_init__(self) -> None:
        self._per_axis("factor")
        super().__post_init__()

    def kept(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lines kept along each axis; as many are zeroed at one end as at the other."""
        sizes = zip(shape, self.factor, strict=True)
        return tuple(n - 2 * int(n * (f - 1) / (2 * f) + 0.5) for n, f in sizes)

    def __call__(self, hr: Volume) -> Volume:
        kept, signed = self.kept(hr.shape), is_signed(hr)
        if 0 in kept:
            raise InputError(
                f"factor {self.factor} leaves no k-space line of a scan of {hr.shape} voxels; "
                "choose a smaller one"
            )
        data = hr.data
        if self.stored_12bit:
            if signed:
                raise InputError(
                    f"12-bit images hold 0 to 4095, got {data.min():g} to {data.max():g}; "
                    "shift it to begin at 0"
                )
            data = data.astype(np.float64)  # rounding must not hang on float32
        axes = np.flatnonzero(np.not_equal(kept, hr.shape)).tolist()
        spectrum = fft.fftn(data, axes=axes)
        for axis in axes:
            # frequencies from -kept // 2 on stay; FFTs give the negative ones last
            last = (kept[axis] - 1) // 2
            np.moveaxis(spectrum, axis, 0)[last + 1 : last + 1 + hr.shape[axis] - kept[axis]] = 0
        image = fft.ifftn(spectrum, axes=axes, overwrite_x=True)
        image = image.real if signed else np.abs(image)
        if self.stored_12bit and image.any():
            image = np.rint(image / image.max() * 4095)
        return hr.with_data(image)


@dataclass(frozen=True)
class GaussianDownsample(Degradation):
    """Blur by a Gaussian of ``sigma`` HR voxels, then sample the coarse grid by a spline.

    Pham et al., CMIG 2019, observation model (sigma 1 for every factor, cubic spline). Factors may
    be fractional and differ per axis; ``sigma`` is one number or one per axis, and an axis of
    factor 1 is not blurred. ``order`` is that of the spline, ``order_up`` that of the one back.
    Without ``prefilter`` the spline smooths, as in the evaluation of the 3D-SRGAN code.
    ``align='center'`` keeps the field of view (ours); ``align='corners'`` is SciPy's ``zoom``, as
    the published code uses it: a named deviation, but one that its weights need. ``whole`` cuts
    scans to a whole multiple of the factor first (``usable``). ``blur_first`` blurs all axes, also
    those of factor 1, before that cut, as the published code does. ``noise`` adds noise to the
    coarse scan, see ``rician``, always the same (ours).
    """

    choices: ClassVar = {"align": ("center", "corners")}

    factor: tuple[float, float, float]
    sigma: tuple[float, float, float] = 1.0
    order: Order = 3
    align: str = "center"
    whole: bool = False
    noise: Share = 0.0
    prefilter: bool = True
    blur_first: bool = False
    order_up: Order = 3

    def __post_init__(self) -> None:
        self._per_axis("factor")
        self._per_axis("sigma", least=0)
        super().__post_init__()

    @property
    def kernel(self) -> str:
        """In the words of ``--kernel``, which has one width for all axes."""
        return f"gaussian:{max(self.sigma):g}"

    def usable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the part of a scan, from voxel 0 on, that is degraded: all unless ``whole``."""
        if not self.whole:
            return tuple(shape)
        return tuple(int(n - n % f) for n, f in zip(shape, self.factor, strict=True))

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        blurred = self.cut(self._blur(hr)) if self.blur_first else self._blur(self.cut(hr))
        grid = coarse_grid(blurred, self.factor, align=self.align)
        lr = resample(blurred, *grid, order=self.order, prefilter=self.prefilter)
        return rician(lr, self.noise, np.random.default_rng(0), signed=is_signed(hr))

    def _blur(self, hr: Volume) -> Volume:
        sigma = np.where(np.greater(self.factor, 1) | self.blur_first, self.sigma, 0.0)
        return hr.with_data(blur(hr.data, sigma))


@dataclass(frozen=True)
class BlockAverage(Degradation):
    """The mean of each block of ``factor`` voxels (whole numbers); the field of view is kept.

    The slice profile is a box. The last block of an axis that the factor does not divide repeats
    the scan's last voxel. Ours; average pooling is the degradation of much of the literature.
    """

    kernel = "box"

    factor: tuple[int, int, int]

    def __post_init__(self) -> None:
        self._per_axis("factor", kind=int)
        super().__post_init__()

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        shape, affine = coarse_grid(hr, self.factor)
        missing = np.multiply(shape, self.factor) - hr.shape
        padded = np.pad(hr.data, [(0, n) for n in missing], mode="edge")
        return Volume(block_reduce(padded, self.factor, np.mean), affine)


@dataclass(frozen=True)
class ScanlineDecimation(Degradation):
    """Keep every ``factor``-th column along x, the first voxel axis: an ultrasound probe with
    fewer beams.

    The ultrasound pairs of the sisr_medical code. Column 0 stays in its place and the spacing
    grows. That code never keeps an image's last column; ours does when its turn comes (no
    difference for widths that the factor divides).
    """

    align = "first"

    factor: Count

    @property
    def coarser(self) -> tuple[float, float, float]:
        """How much coarser the low-resolution grid is, per axis."""
        return (float(self.factor), 1.0, 1.0)

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        return Volume(hr.data[:: self.factor], hr.affine @ np.diag([self.factor, 1.0, 1.0, 1.0]))


@dataclass(frozen=True)
class SparseView(_OnFineGrid):
    """CT from every ``factor``-th of ``views`` projections over [0, 180) degrees, by filtered
    back-projection.

    The CT pairs of the sisr_medical code (factor 16 of 1,000 views, so 63). Slices across the last
    axis are independent; y counts rows and x columns. The whole square is projected and
    reconstructed, not its inscribed circle, as in that code. What lies beyond it is taken as the
    slice's minimum (air), which is subtracted before and added after; a slice that is not square is
    padded with it about its middle and cropped back.
    """

    baseline = "sparse_fbp"

    factor: Count
    views: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor > self.views:
            raise InputError(f"factor: expected at most the {self.views} views, got {self.factor}")

    def __call__(self, hr: Volume) -> Volume:
        return self._reconstruct(hr, self.factor)

    def pair(self, hr: Volume) -> tuple[Volume, Volume]:
        """The degraded scan and its ground truth: the reconstruction from all views (code)."""
        return self(hr), self._reconstruct(hr, 1)

    def _reconstruct(self, hr: Volume, step: int) -> Volume:
        """The reconstruction of each slice from every step-th view."""
        angles, size = np.linspace(0, 180, self.views, endpoint=False)[::step], max(hr.shape[:2])
        box = tuple(slice(size // 2 - n // 2, size // 2 - n // 2 + n) for n in hr.shape[1::-1])
        data = np.empty_like(hr.data)
        for k in range(hr.shape[2]):
            low, square = hr.data[..., k].min(), np.zeros((size, size), dtype=np.float32)
            square[box] = hr.data[..., k].T - low
            data[..., k] = fbp(radon(square, angles), angles, size)[box].T + low
        return hr.with_data(data)


def is_signed(scan: Volume) -> bool:
    """Whether a scan has negative values: it is CT in HU, or normalised, and no magnitude image."""
    return float(scan.data.min()) < 0


def rician(scan: Volume, level: float, rng: np.random.Generator, *, signed: bool = False) -> Volume:
    """A magnitude image of a scan with Gaussian noise in its real and imaginary parts.

    The std is ``level`` times the brightest voxel; level 0 returns the scan. Gudbjartsson & Patz,
    MRM 1995. A ``signed`` scan gets noise in its real part alone, so Gaussian noise, the limit of a
    high signal, of std ``level`` times the range. The caller must say so: splines bring magnitudes
    below 0, too.
    """
    if not level:
        return scan
    sigma = level * float(np.ptp(scan.data) if signed else scan.data.max())
    real, imaginary = (sigma * rng.standard_normal(scan.shape, np.float32) for _ in range(2))
    return scan.with_data(scan.data + real if signed else np.hypot(scan.data + real, imaginary))


DEGRADATIONS = {
    "kspace": KSpaceTruncation,
    "gaussian": GaussianDownsample,
    "block": BlockAverage,
    "scanline": ScanlineDecimation,
    "sparse_view": SparseView,
}
