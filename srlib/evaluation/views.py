"""Sample planes of scans at one place of the world and turn them into pictures."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from srlib.core.paths import InputError
from srlib.scans.intensity import sample
from srlib.scans.volume import Volume, axcodes, crop_or_pad, fine_grid, reorient, resample

PLANES = (2, 1, 0)  # axes across axial, coronal and sagittal planes
OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))
MARGIN = 8  # voxels around a plane, by which a cubic spline equals that of the whole scan to 1e-4
REACH = 3  # times the range of nearly all voxels, the limit of how far a window goes beyond it
WIDEST = 4096  # pixels in a row


def filled(volume: Volume) -> list[int]:
    """Axes across the planes that have at least 2 x 2 voxels; the axial plane's if none has."""
    return [a for a in PLANES if min(np.delete(volume.shape, a)) > 1] or [2]


def upright(volume: Volume) -> Volume:
    """The scan with its voxel axes along R, A and S; a single slice keeps its axes, y downwards.

    Raises InputError for a scan without voxels.
    """
    if not volume.data.size:
        raise InputError(f"expected a scan with voxels, got shape {volume.shape}; check the file")
    if volume.shape[2] > 1:
        return reorient(volume)
    x, y, z = axcodes(volume)
    return reorient(volume, x + OPPOSITE[y] + z)


def letters(grid: Volume, axis: int) -> tuple[str, ...]:
    """World directions at the left, right, top and bottom of a plane across an axis of a grid.

    A single slice has none: images other than scans have no such directions.
    """
    if grid.shape[2] == 1:
        return ()
    right, up = np.delete(list(axcodes(grid)), axis)
    return OPPOSITE[right], right, up, OPPOSITE[up]


def window(volume: Volume) -> tuple[float, float]:
    """Intensities to show as black and as white, insensitive to wild voxels (ours).

    The percentiles 0.5 and 99.8, but at most three times the distance between the percentiles 2 and
    98 away from these, and 6 % beyond each, so that neither air nor the brightest tissue is cut.
    Where nearly all voxels are equal they are grey. The window follows the units: that of
    ``a * scan + b`` is the scan's, times a, plus b.
    """
    data = sample(volume.data)
    data = data[np.isfinite(data)].astype(np.float64)
    if not data.size:
        return 0.0, 1.0
    low, dark = np.percentile(data, (0.5, 2), method="higher")  # leave out the extremes of a few
    bright, high = np.percentile(data, (98, 99.8), method="lower")
    if not low < high:
        half = abs(low) / 2 or float(np.abs(data).max()) or 1.0
        return float(low - half), float(low + half)
    if dark < bright:
        reach = REACH * (bright - dark)
        low, high = max(low, dark - reach), min(high, bright + reach)
    margin = 0.06 * (high - low)
    return float(low - margin), float(high + margin)


def windows(before: Volume, after: Volume) -> tuple[tuple[float, float], tuple[float, float]]:
    """The window of ``before`` for both scans, or one for each where their units plainly differ."""
    first, second = window(before), window(after)
    span = first[1] - first[0]
    alike = 0.5 < (second[1] - second[0]) / span < 2 and abs(second[0] - first[0]) < 0.5 * span
    return first, first if alike else second


def middle(volume: Volume) -> tuple[int, ...]:
    """The voxel in the middle of what is brighter than the mean."""
    seen = sample(volume.data)
    shown = grey(seen, window(volume)).astype(np.float64)
    weights = np.maximum(shown - shown.mean(), 0) + 1e-6  # a flat scan has its middle, too
    place = np.array(ndimage.center_of_mass(weights)) * volume.shape / seen.shape
    return tuple(np.rint(place).astype(int).tolist())


def pixel_mm(grid: Volume) -> float:
    """Width of a grid's pixels: its finest spacing, but at most ``WIDEST`` pixels in a row."""
    axes = [a for a in range(3) if grid.shape[a] > 1] or [0, 1]
    spacing, shape = np.array(grid.spacing_mm)[axes], np.array(grid.shape)[axes]
    return float(max(spacing.min(), (spacing * shape).max() / WIDEST))


def pixels(
    grid: Volume, axis: int, voxel: Sequence[int], size_mm: float = np.inf, finer: int = 1
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Square pixels of a plane across a grid's axis, through a voxel: (shape (U, V, 1), affine).

    They are ``pixel_mm`` wide, divided by ``finer``. They cover, from voxel edges on, the field of
    view or the square of ``size_mm`` around the voxel, moved to lie in the field of view.
    """
    spacing, shape = np.array(grid.spacing_mm), np.array(grid.shape)
    box = np.clip(np.rint(np.minimum(size_mm / spacing, shape)), 1, shape).astype(int)
    first = np.clip(np.rint(np.subtract(voxel, (box - 1) / 2)), 0, shape - box).astype(int)
    factor = finer * spacing / pixel_mm(grid)
    first[axis], box[axis], factor[axis] = voxel[axis], 1, 1
    count, affine = fine_grid(crop_or_pad(grid, first, box), factor)
    u, v = np.delete(range(3), axis)
    return (count[u], count[v], 1), affine[:, [u, v, axis, 3]]


def section(
    volume: Volume, shape: tuple[int, int, int], affine: np.ndarray, order: int
) -> np.ndarray:
    """A scan in a plane by spline interpolation, (V, U) as seen: the first axis to the right, the
    second one up.

    NaN stands beyond the scan's field of view and for infinity. Only the slab around the plane is
    read.
    """
    u, v, _ = np.array(shape) - 1
    corners = [[0, u, 0, u], [0, 0, v, v], [0] * 4, [1] * 4]
    places = (np.linalg.inv(volume.affine) @ affine @ corners)[:3]
    low, high = places.min(1) - MARGIN, places.max(1) + MARGIN + 1
    low = np.clip(np.floor(low), 0, np.array(volume.shape) - 1).astype(int)
    high = np.clip(np.ceil(high), low + 1, volume.shape).astype(int)
    slab = crop_or_pad(volume, low, high - low)
    finite = np.isfinite(slab.data)
    if not finite.all():
        slab = slab.with_data(np.where(finite, slab.data, np.nan))
        order = min(order, 1)  # a cubic spline would spread NaN
    return np.rot90(resample(slab, shape, affine, order=order, outside=np.nan).data[:, :, 0])


def grey(image: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Intensities as 8 bits, black to white between the limits; NaN is black."""
    low, high = limits
    shown = np.clip((np.nan_to_num(image, nan=low) - low) / (high - low), 0, 1)
    return np.rint(shown * 255).astype(np.uint8)


def png(picture: np.ndarray, directions: Sequence[str]) -> bytes:
    """A PNG of 8-bit greys with ``letters`` at its sides."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    w, h = image.size
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(12, max(w, h) // 26))
    places = ((4, h / 2), "lm"), ((w - 4, h / 2), "rm"), ((w / 2, 4), "ma"), ((w / 2, h - 4), "md")
    for letter, (place, anchor) in zip(directions, places, strict=False):
        draw.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
