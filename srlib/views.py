"""Planes of scans at one place of the world, as pictures with their directions named."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.filters import threshold_otsu

from srlib.volume import Volume, axcodes, crop_or_pad, reorient, resample

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # and the axis across them
OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))
MARGIN = 8  # voxels that a cubic spline needs around a plane to be that of the whole scan, to 1e-4
SAMPLE = 2_000_000  # voxels that intensities are judged by


def upright(volume: Volume) -> Volume:
    """The scan with its voxel axes to R, A and S; of a single slice, its own with y downwards, as images are shown."""
    if volume.shape[2] > 1:
        return reorient(volume)
    x, y, z = axcodes(volume)
    return reorient(volume, x + OPPOSITE[y] + z)


def _sample(volume: Volume) -> tuple[np.ndarray, int]:
    every = int(np.ceil((volume.data.size / SAMPLE) ** (1 / 3)))
    return volume.data[::every, ::every, ::every], every


def window(volume: Volume) -> tuple[float, float]:
    """Intensities to show as black and as white: the percentiles 0.5 and 99.8, and 5 % above for what overshoots."""
    low, high = (float(v) for v in np.percentile(_sample(volume)[0], (0.5, 99.8)))
    return low, high + 0.05 * (high - low) if high > low else low + 1


def windows(before: Volume, after: Volume) -> tuple[tuple[float, float], tuple[float, float]]:
    """The window of ``before`` for both scans, or each its own where their units plainly differ."""
    first, second = window(before), window(after)
    span = first[1] - first[0]
    alike = 0.5 < (second[1] - second[0]) / span < 2 and abs(second[0] - first[0]) < 0.5 * span
    return first, first if alike else second


def middle(volume: Volume) -> tuple[int, int, int]:
    """The voxel in the middle of the foreground, which is what Otsu's threshold finds."""
    data, every = _sample(volume)
    if data.min() == data.max():
        return tuple(n // 2 for n in volume.shape)
    places = np.nonzero(data > threshold_otsu(np.clip(data, *window(volume)).ravel()))
    return tuple(min(int(np.median(p)) * every, n - 1) for p, n in zip(places, volume.shape, strict=True))


def pixels(
    grid: Volume, axis: int, voxel: tuple[float, ...], size_mm: float = np.inf, finer: int = 1
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Square pixels of a plane across an axis of a grid, through a voxel: (shape (U, V, 1), affine).

    They are as wide as the grid's finest spacing, or ``finer`` times finer. They cover the field of view, or a square
    of ``size_mm`` around the voxel that is moved to lie in it, from voxel edges on.
    """
    spacing, shape = np.array(grid.spacing_mm), np.array(grid.shape)
    box = np.minimum(np.maximum(np.rint(np.minimum(size_mm / spacing, shape)), 1), shape)
    first = np.clip(np.rint(voxel - (box - 1) / 2), 0, shape - box)
    step = spacing.min() / spacing
    count = np.maximum(np.rint(box / step), 1).astype(int) * finer
    step = step / finer
    plane = np.zeros((4, 4))
    across = [a for a in range(3) if a != axis]
    plane[across, (0, 1)], plane[axis, 2], plane[3, 3] = step[across], 1, 1
    plane[across, 3], plane[axis, 3] = (first - 0.5 + step / 2)[across], voxel[axis]
    return (int(count[across[0]]), int(count[across[1]]), 1), grid.affine @ plane


def section(
    volume: Volume, shape: tuple[int, int, int], affine: np.ndarray, order: int = 0, outside: float = 0.0
) -> np.ndarray:
    """A scan in a plane by spline interpolation, (V, U) as seen: the first axis to the right, the second one up.

    Only what lies about the plane is read. ``outside`` is what stands beyond the scan's field of view.
    """
    u, v, _ = np.array(shape) - 1
    to_voxels = np.linalg.inv(volume.affine) @ affine
    corners = (to_voxels @ [[0, u, 0, u], [0, 0, v, v], [0, 0, 0, 0], [1, 1, 1, 1]])[:3]
    low = np.clip(np.floor(corners.min(1)) - MARGIN, 0, np.array(volume.shape) - 1).astype(int)
    high = np.clip(np.ceil(corners.max(1)) + MARGIN + 1, low + 1, volume.shape).astype(int)
    slab = crop_or_pad(volume, low, high - low)
    return np.rot90(resample(slab, shape, affine, order, outside).data[:, :, 0])


def grey(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Intensities as 8 bits, black to white between the limits."""
    return np.rint(np.clip((image - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255).astype(np.uint8)


def png(picture: np.ndarray, grid: Volume, axis: int, level: int = 6) -> bytes:
    """A PNG of 8-bit greys or colours in a plane across an axis of the grid, with a letter for each of its directions.

    A single slice gets none: images other than scans of patients have no such directions.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    if grid.shape[2] > 1:
        right, up = (c for a, c in enumerate(axcodes(grid)) if a != axis)
        w, h = image.size
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(12, max(w, h) // 26))
        for letter, place, anchor in (
            (OPPOSITE[right], (4, h / 2), "lm"),
            (right, (w - 4, h / 2), "rm"),
            (up, (w / 2, 4), "ma"),
            (OPPOSITE[up], (w / 2, h - 4), "md"),
        ):
            draw.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=level)
    return buffer.getvalue()
