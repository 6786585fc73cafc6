"""From a high-resolution scan to the low-resolution one that a scanner would have given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage
from skimage.measure import block_reduce

from srlib.core.paths import InputError, choose
from srlib.degradations.tomography import fbp, radon
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume, coarse_grid, fine_grid, resample


class Degradation:
    """What degradations share, where they do not say otherwise. ``factor``: one number or one per axis."""

    align = "center"  # how the coarse grid lies in the fine one

    @property
    def coarser(self) -> tuple[float, float, float]:
        """How much coarser the low-resolution grid is, per axis."""
        return tuple(map(float, self.factor))

    def usable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The part of a scan, from voxel 0 on, that is degraded."""
        return tuple(shape)

    def to_grid(self, lr: Volume, shape: Sequence[int], order: int = 3) -> Volume:
        """Interpolate the low-resolution scan on the HR grid of the given shape (order 1: trilinear, 3: cubic)."""
        return resample(lr, shape, fine_grid(lr, self.coarser, align=self.align)[1], order=order)

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise InputError where a factor is larger than an axis; single slices are left as they are."""
        if any(f > n > 1 for f, n in zip(self.coarser, shape, strict=True)):
            raise InputError(
                f"a factor of {self.coarser} leaves nothing of a scan of {tuple(shape)} voxels; choose a smaller one"
            )

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


class SameGrid(Degradation):
    """A degradation whose image stays on the high-resolution grid."""

    coarser = (1.0, 1.0, 1.0)

    def to_grid(self, lr: Volume, shape: Sequence[int], order: int = 3) -> Volume:
        """The image itself."""
        return lr


@dataclass(frozen=True)
class KSpaceTruncation(SameGrid):
    """Zero the outer k-space of each axis and keep the magnitude; the image stays on its grid.

    Of scans with negative values (HU, mean 0) the real part is kept, and so are sign and mean (ours).

    Chen et al., MICCAI 2018. ``factor`` 2 keeps half of an axis's lines (the paper's task is
    (1, 2, 2) with the slice axis first), 5 keeps a fifth (the replicated code's). A factor f zeroes
    round(N (f - 1) / (2 f)) lines at each end, which is the truncation script's round(N / F) with
    F = 2 f / (f - 1). ``stored_12bit`` then divides by the maximum and rounds to 0..4095, as that script does
    before it stores the image; InputError for negative values.
    """

    factor: tuple[float, float, float]
    stored_12bit: bool = False

    def __post_init__(self) -> None:
        self._set(factor=per_axis(self.factor, "factor", kind=float))

    def zeroed(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lines zeroed at each end of each axis."""
        return tuple(
            int(n * (f - 1) / (2 * f) + 0.5) for n, f in zip(shape, self.factor, strict=True)
        )

    def kept(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lines kept along each axis."""
        return tuple(n - 2 * z for n, z in zip(shape, self.zeroed(shape), strict=True))

    def __call__(self, hr: Volume) -> Volume:
        if 0 in self.kept(hr.shape):
            raise InputError(
                f"factor {self.factor} leaves no k-space line of a volume of shape {hr.shape}"
            )
        if is_signed(hr) and self.stored_12bit:
            raise InputError(
                f"12-bit images hold 0 to 4095, and this scan goes from {hr.data.min():g} to {hr.data.max():g}; "
                "shift it to begin at 0"
            )
        data = (
            hr.data.astype(np.float64) if self.stored_12bit else hr.data
        )  # rounding must not hang on float32
        zeroed = self.zeroed(hr.shape)
        axes = np.flatnonzero(zeroed).tolist()
        spectrum = fft.fftshift(fft.fftn(data, axes=axes, workers=-1), axes)
        middle = tuple(slice(z, n - z) for z, n in zip(zeroed, hr.shape, strict=True))
        kept = np.zeros_like(spectrum)
        kept[middle] = spectrum[middle]
        image = fft.ifftn(fft.ifftshift(kept, axes), axes=axes, workers=-1)
        image = image.real if is_signed(hr) else np.abs(image)
        return hr.with_data(
            np.rint(image / image.max() * 4095) if self.stored_12bit and image.any() else image
        )


@dataclass(frozen=True)
class GaussianDownsample(Degradation):
    """Blur by a Gaussian of ``sigma`` HR voxels, then sample the coarse grid by a spline of ``order``.

    Pham et al., CMIG 2019, observation model (sigma 1 for every factor, cubic spline). Factors may be
    fractional and differ per axis; ``sigma`` is one number or one per axis, and an axis of factor 1 is
    not blurred. ``align='center'`` keeps the field of view (ours); ``align='corners'`` is SciPy's ``zoom``,
    as the published code uses it: a named deviation, but one that its weights need. ``whole`` says that scans are
    cut to a whole multiple of the factor first (``usable``), as that code does. ``noise`` adds noise to the coarse
    scan, see ``rician``, always the same (ours).
    """

    factor: tuple[float, float, float]
    sigma: float | tuple[float, float, float] = 1.0
    order: int = 3
    align: str = "center"
    whole: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        self._set(
            factor=per_axis(self.factor, "factor", kind=float),
            sigma=per_axis(self.sigma, "sigma", least=0, kind=float),
        )
        if self.order not in range(6):
            raise InputError(f"order: expected a spline order from 0 to 5, got {self.order}")
        if not 0 <= self.noise < 1:
            raise InputError(
                f"noise: expected a share of the brightest voxel from 0 to 1, got {self.noise}"
            )

    def usable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The part of a scan, from voxel 0 on, that is degraded; all of it unless ``whole``."""
        return tuple(
            int(n - n % f) if self.whole else n for n, f in zip(shape, self.factor, strict=True)
        )

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        sigma = [s if f > 1 else 0.0 for s, f in zip(self.sigma, self.factor, strict=True)]
        blurred = hr.with_data(ndimage.gaussian_filter(hr.data, sigma, mode="reflect"))
        lr = resample(
            blurred, *coarse_grid(hr, self.factor, align=self.align), order=self.order
        )
        return rician(lr, self.noise, np.random.default_rng(0), is_signed(hr)) if self.noise else lr

    def to_grid(self, lr: Volume, shape: Sequence[int], order: int = 3) -> Volume:
        """Interpolate the low-resolution scan on the HR grid of the given shape (order 1: trilinear, 3: cubic)."""
        if self.align == "center":
            return super().to_grid(lr, shape, order)
        # the factor is (n - 1) / (N - 1), which only the two shapes tell
        step = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(lr.shape, shape, strict=True)]
        return resample(lr, shape, lr.affine @ np.diag([*step, 1.0]), order=order)


@dataclass(frozen=True)
class BlockAverage(Degradation):
    """The mean of each block of ``factor`` voxels, whole numbers: a box for a slice profile, and the field of view kept.

    The last block of an axis that the factor does not divide repeats the scan's last voxel. Ours; average pooling is the
    degradation of much of the literature.
    """

    factor: tuple[int, int, int]

    def __post_init__(self) -> None:
        self._set(factor=per_axis(self.factor, "factor"))

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        shape, affine = coarse_grid(hr, self.factor)
        missing = np.multiply(shape, self.factor) - hr.shape
        padded = np.pad(hr.data, [(0, n) for n in missing], mode="edge")
        return Volume(block_reduce(padded, self.factor, np.mean), affine)


@dataclass(frozen=True)
class ScanlineDecimation(Degradation):
    """Keep every ``factor``-th column along x, the first voxel axis, as an ultrasound probe with fewer beams would.

    The ultrasound pairs of the sisr_medical code. Column 0 stays in its place and the spacing grows. That code never
    keeps an image's last column; ours does when its turn comes (no difference for widths that the factor divides).
    """

    factor: int
    align = "first"

    def __post_init__(self) -> None:
        self._set(factor=per_axis(self.factor, "factor", 1)[0])

    @property
    def coarser(self) -> tuple[float, float, float]:
        """How much coarser the low-resolution grid is, per axis."""
        return (float(self.factor), 1.0, 1.0)

    def __call__(self, hr: Volume) -> Volume:
        self.check_fits(hr.shape)
        return Volume(hr.data[:: self.factor], hr.affine @ np.diag([self.factor, 1.0, 1.0, 1.0]))


@dataclass(frozen=True)
class SparseView(SameGrid):
    """CT from fewer projections: filtered back-projection of every ``factor``-th of ``views`` over [0, 180) degrees.

    The CT pairs of the sisr_medical code (factor 16 of 1,000 views, so 63). Slices across the last
    axis are independent; y counts rows and x columns. The whole square is projected and
    reconstructed, not its inscribed circle, as in that code. What lies beyond it is taken as the
    slice's minimum (air), which is subtracted before and added after; a slice that is not square is
    padded with it about its middle and cropped back.
    """

    factor: int
    views: int = 1000

    def __post_init__(self) -> None:
        self._set(
            factor=per_axis(self.factor, "factor", 1)[0], views=per_axis(self.views, "views", 1)[0]
        )
        if self.factor > self.views:
            raise InputError(f"factor: expected at most the {self.views} views, got {self.factor}")

    def __call__(self, hr: Volume) -> Volume:
        return self._from_views(hr, self.factor)

    def pair(self, hr: Volume) -> tuple[Volume, Volume]:
        """The degraded volume and its truth, the reconstruction from all views, as published."""
        return self(hr), self._from_views(hr, 1)

    def _from_views(self, hr: Volume, step: int) -> Volume:
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
    """Whether a scan has negative values, so that it is no magnitude image: CT in HU, or normalised to mean 0."""
    return float(scan.data.min()) < 0


def rician(scan: Volume, level: float, rng: np.random.Generator, signed: bool = False) -> Volume:
    """A magnitude image of a scan with Gaussian noise in both of its parts; std ``level`` times its brightest voxel.

    Gudbjartsson & Patz, MRM 1995. Of a ``signed`` scan the real part alone, so Gaussian noise, the
    limit of a high signal; std ``level`` times the range. Splines bring magnitudes below 0, too, so
    values alone do not tell.
    """
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


def make_degradation(name: str, **settings: object) -> Degradation:
    """A degradation by its name in ``DEGRADATIONS``; InputError for an unknown one."""
    return choose(DEGRADATIONS, name, "degradation")(**settings)
