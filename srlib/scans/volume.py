"""Hold, load, save, resample and crop a scan: float32 voxels with an affine in mm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, to_matvec, voxel_sizes
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from srlib.core.paths import InputError, StrPath, atomic, choose, explained
from srlib.scans.headers import append_to_mgh, check_sums, comment, limits, open_image
from srlib.scans.intensity import HU_WINDOW, STREAKS, background, finite
from srlib.scans.separable import along_axes, spline

Grid = tuple[tuple[int, int, int], np.ndarray]  # shape, affine
SAME = 0.01  # voxels by which two grids may differ anywhere and still be one: headers round


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A 3-D scan: ``data`` float32 (X, Y, Z) in nibabel voxel order, ``affine`` 4x4 voxel -> mm.

    The centre of voxel (0, 0, 0) lies at the affine's origin. Raises InputError for other arrays.
    """

    data: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or np.iscomplexobj(self.data):
            raise InputError(
                f"a volume has 3 axes of real numbers, got {self.data.dtype} {self.data.shape}"
            )
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not 0 < abs(np.linalg.det(affine[:3, :3])) < np.inf:
            raise InputError(f"an affine is 4x4 and can be inverted, got {affine.tolist()}")
        object.__setattr__(self, "data", np.asarray(self.data, dtype=np.float32))
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        return tuple(voxel_sizes(self.affine).tolist())

    def __repr__(self) -> str:
        """Geometry and intensities in a line."""
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        voxels = self.data if self.data.size else np.zeros(1)
        intensities = f"{voxels.min():.4g} to {voxels.max():.4g}"
        return f"{shape} voxels of {spacing} mm, axes {axcodes(self)}, intensities {intensities}"

    def with_data(self, data: np.ndarray) -> "Volume":
        """Other voxels on the same grid."""
        return Volume(data, self.affine)


def load_nifti(path: StrPath) -> Volume:
    """Read a NIfTI, MGH or Analyze scan; slope and intercept are applied, and an image (X, Y) has
    one slice.

    Raises InputError, naming the file, for anything but one finite, real scan of positive spacing,
    and for a compressed file that differs from its checksum.
    """
    image, shape = open_image(path)
    with explained(path, "unreadable or truncated scan"):
        check_sums(image)
        data = finite(np.asarray(image.dataobj, dtype=np.float32)).reshape(shape)
    return Volume(data, image.affine)


def save_scan(
    volume: Volume,
    path: StrPath,
    *,
    dtype: type = np.float32,
    header: nib.Nifti1Header | None = None,
) -> Path:
    """Write NIfTI (``.nii``, ``.nii.gz``), ``.mgz`` or a slice as ``.png``, atomically.

    Integers are rounded and clipped to their range. A NIfTI ``header`` from
    ``SourceHeader.derive`` adds what an affine does not say: codes, slope, intercept, and the
    record, which is written to files of every kind. Raises InputError for any other suffix, voxels
    that are not finite, several slices in a PNG, and a type or slope that the file cannot hold.
    """
    path, dtype = Path(path), np.dtype(dtype)
    with explained(path, "cannot be written"):
        finite(volume.data)
    if path.suffix.lower() == ".png":
        return _save_png(volume, path, header)
    with explained(path, f"cannot hold {dtype}", "choose another type, such as float32"):
        if not path.name.endswith((".nii", ".nii.gz", ".mgz")):
            raise InputError("expected a name ending in .nii, .nii.gz or .mgz")
        slope, inter = header.get_slope_inter() if header is not None else (1.0, 0.0)
        data = stored(volume.data, dtype, header)
        if path.suffix == ".mgz":
            if (slope, inter) != (1, 0) or dtype not in (np.uint8, np.int16, np.int32, np.float32):
                raise InputError(f"an .mgz holds no {dtype}, or no slope; choose .nii.gz")
            image = nib.MGHImage(data, volume.affine)
        elif header is None:
            image = nib.Nifti1Image(data, volume.affine, dtype=dtype)
            image.header.set_xyzt_units("mm")
        else:
            image_type = (
                nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
            )
            # given an affine, nibabel sets codes of its own
            image = image_type(data, None, header, dtype=dtype)
            image.header.set_slope_inter(slope, inter)
    with atomic(path) as temporary:
        nib.save(image, temporary)
        if path.suffix == ".mgz":
            append_to_mgh(temporary, comment(header))
    return path


def stored(data: np.ndarray, dtype: type, header: nib.Nifti1Header | None) -> np.ndarray:
    """Voxels as a file of that type and header holds them; integers are rounded and clipped."""
    if np.issubdtype(dtype, np.integer):
        slope, inter = header.get_slope_inter() if header is not None else (1.0, 0.0)
        data = np.rint(np.clip((data.astype(np.float64) - inter) / slope, *limits(dtype)))
    return data.astype(dtype, copy=False)


def _save_png(volume, path, header):
    """Write a slice for display, x along the columns: 16 bits from the minimum to the maximum."""
    if volume.shape[2] != 1:
        raise InputError(
            f"{path}: a PNG holds one slice, got {volume.shape[2]}; give a name ending in .nii.gz"
        )
    low, high = float(volume.data.min()), float(volume.data.max())
    grey = np.rint((volume.data[..., 0].T - low) / ((high - low) or 1.0) * 65535).astype(np.uint16)
    notes = PngInfo()
    notes.add_text("Comment", comment(header))
    with atomic(path) as temporary:
        Image.fromarray(grey).save(temporary, pnginfo=notes)
    return path


def coarse_grid(volume: Volume, factor: Sequence[float], *, align: str = "center") -> Grid:
    """Grid that is ``factor`` times coarser per axis over the same field of view: (shape, affine).

    ``center``: spacing grows by the factor, the first voxel centre moves by (factor - 1) / 2 fine
    voxels, and ceil(N / factor) voxels cover the field, with 1e-4 of a voxel to spare, since
    headers round. ``corners``: first and last voxel centres coincide on both grids, as in SciPy's
    ``zoom``; the spacing then grows by (N - 1) / (n - 1).
    """
    exact = np.divide(volume.shape, factor)
    count = np.ceil(exact - 1e-4) if align == "center" else np.round(exact)
    return stepped_grid(volume, count, np.asarray(factor, dtype=float), align)


def fine_grid(volume: Volume, factor: Sequence[float], *, align: str = "center") -> Grid:
    """Grid that is ``factor`` times finer per axis over the same field of view: (shape, affine).

    ``center`` and ``corners`` as in ``coarse_grid``; with ``first`` voxel 0 keeps its place, as
    where scan lines were left out.
    """
    count = np.round(np.multiply(volume.shape, factor))
    return stepped_grid(volume, count, np.divide(1, factor), align)


def stepped_grid(volume: Volume, count: Sequence[float], step: np.ndarray, align: str) -> Grid:
    """Grid of ``count`` voxels per axis, each as long as ``step`` voxels of the volume.

    ``center``, ``corners`` and ``first`` as in ``fine_grid``; by ``corners`` the step follows from
    the count.
    """
    count = np.maximum(count, 1).astype(int)
    shifts = {"center": (step - 1) / 2, "corners": 0 * step, "first": 0 * step}
    shift = choose(shifts, align, "alignment")
    if align == "corners":
        last = np.subtract(volume.shape, 1)
        step = np.where(count == volume.shape, 1.0, last / np.maximum(count - 1, 1))
    return tuple(count.tolist()), volume.affine @ from_matvec(np.diag(step), shift)


def resample(
    volume: Volume,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    order: int = 3,
    outside: float | None = None,
    mode: str = "mirror",
    prefilter: bool = True,
) -> Volume:
    """Interpolate a scan on another grid by splines of the given order.

    Without SciPy's ``prefilter`` they smooth. Beyond the outermost centres the scan is continued by
    SciPy's ``mode``, mirror or nearest; beyond the field of view (``seen``) it is ``outside`` where
    that is given.
    """
    if not order:  # a voxel between two is the same one, however the scan is stored
        volume = reorient(volume)
    matrix, offset = to_matvec(np.linalg.inv(volume.affine) @ affine)
    # voxel centres that coincide up to rounding must not be read from beyond the edge
    steps, offset = np.round(np.diag(matrix), 12), np.round(offset, 9)
    same_axes = np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-6

    base = volume.data.flat[0] if order else 0  # so that what is constant stays so, to the bit
    data, how = volume.data - base, {"order": order, "mode": mode, "prefilter": prefilter}
    if same_axes:
        axes = zip(data.shape, offset, steps, shape, strict=True)
        data = base + along_axes(
            data, [spline(n, o + s * np.arange(m), **how) for n, o, s, m in axes]
        )
    else:
        how |= {"output_shape": tuple(shape), "output": np.float32}
        data = base + ndimage.affine_transform(data, matrix, offset, **how)
    if outside is not None:
        data[~seen(volume, shape, affine)] = outside
    return Volume(data, affine)


def seen(volume: Volume, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Which voxel centres of a grid, boolean (X, Y, Z), lie in a scan's field of view.

    That ends half a voxel beyond the outermost voxel centres, or SAME farther.
    """
    mapping = np.linalg.inv(volume.affine) @ affine
    x, y, z = np.ogrid[tuple(map(slice, shape))]
    inside = np.True_
    for (a, b, c, first), n in zip(mapping[:3], volume.shape, strict=True):
        from_middle = a * x + b * y + (c * z + first - (n - 1) / 2)
        inside = inside & (np.abs(from_middle) <= n / 2 + SAME)
    return inside


def axcodes(volume: Volume) -> str:
    """World directions of the voxel axes, such as RAS; the nearest ones where they are oblique."""
    return "".join(nib.aff2axcodes(volume.affine))


def reorient(volume: Volume, axes: str = "RAS") -> Volume:
    """Permute and flip the voxel axes to the given world directions; nothing is interpolated."""
    current = nib.io_orientation(volume.affine)
    change = nib.orientations.ornt_transform(current, nib.orientations.axcodes2ornt(axes))
    data = nib.apply_orientation(volume.data, change)
    return Volume(data, volume.affine @ nib.orientations.inv_ornt_aff(change, volume.shape))


def crop_or_pad(
    volume: Volume, start: Sequence[int], shape: Sequence[int], *, outside: float | None = None
) -> Volume:
    """The box of ``shape`` voxels that begins at voxel ``start``, which may be negative.

    Beyond the scan it is ``outside``, by default the scan's ``background``.
    """
    start, shape = np.asarray(start), np.asarray(shape)
    low, high = (np.clip(edge, 0, volume.shape) for edge in (start, start + shape))
    before = np.clip(-start, 0, shape)
    missing = np.stack([before, shape - (high - low) - before], axis=1)
    if outside is None:
        outside = background(volume.data) if missing.any() else 0
    inside = volume.data[tuple(map(slice, low, high))]
    data = np.pad(inside, missing, constant_values=outside)
    return Volume(data, volume.affine @ from_matvec(np.eye(3), start))


def central(volume: Volume, size: int) -> Volume:
    """The middle ``size`` voxels of each axis, or all of them where there are fewer."""
    return framed(volume, np.minimum(volume.shape, size))


def framed(volume: Volume, shape: Sequence[int]) -> Volume:
    """The middle ``shape`` voxels; beyond the scan its ``background``."""
    return crop_or_pad(volume, np.subtract(volume.shape, shape) // 2, shape)


def to_window(volume: Volume, rule: str, *, reconstructed: bool = False) -> Volume:
    """Clip a scan to the range of an intensity rule: HU_WINDOW for ``hu*``, for others none.

    Streaks put a scan that was ``reconstructed`` from few views of a clipped scan beyond the
    window, also in training: up to STREAKS times the window it is left as it is.
    """
    if not rule.startswith("hu"):
        return volume
    low, high = HU_WINDOW
    streaks = STREAKS * (high - low)
    if reconstructed and low - streaks <= volume.data.min() and volume.data.max() <= high + streaks:
        return volume
    return volume.with_data(np.clip(volume.data, low, high))
