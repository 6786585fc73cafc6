"""Place patches and tiles in a volume, cut them out and put them back."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from srlib.core.paths import InputError


@dataclass(frozen=True)
class PatchLocation:
    """A box of ``size`` voxels beginning at voxel ``start``; 2-D is a size of 1 along one axis."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    def scaled(self, factor: Sequence[int]) -> "PatchLocation":
        """The same box on a grid that is ``factor`` times finer per axis."""
        start, size = np.multiply((self.start, self.size), factor).tolist()
        return PatchLocation(tuple(start), tuple(size))


@dataclass(frozen=True)
class Tile:
    """A part of a volume: ``outer`` is read, ``core`` is written; both in voxels of the volume."""

    outer: PatchLocation
    core: PatchLocation

    @property
    def inner(self) -> PatchLocation:
        """Where the core lies inside the outer box."""
        start = np.subtract(self.core.start, self.outer.start).tolist()
        return PatchLocation(tuple(start), self.core.size)


def per_axis(
    value: float | Sequence[float],
    name: str = "patch_size",
    dims: int = 3,
    *,
    least: float = 1,
    kind: type = int,
) -> tuple:
    """One number for every axis, or one per axis, as a tuple of ``dims`` numbers of a kind.

    Raises InputError, which begins with ``name``, for another count, a number below ``least`` or
    not finite, and a fraction where the kind is int.
    """
    values = (value,) * dims if np.isscalar(value) else tuple(value)
    valid = all(np.isfinite(v) and v >= least and kind(v) == v for v in values)
    if len(values) != dims or not valid:
        number = "whole number" if kind is int else "number"
        raise InputError(
            f"{name}: expected one {number} >= {least}, or one per axis ({dims}), got {value}"
        )
    return tuple(map(kind, values))


def grid_locations(
    shape: Sequence[int],
    patch_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    border: Sequence[int] | None = None,
) -> list[PatchLocation]:
    """Locations on a regular grid that cover the volume; the last ones are moved back inside.

    A volume smaller than a patch gets one location that begins at 0 and reaches beyond it (see
    ``extract``). By default the stride is the patch size (no overlap). ``border`` voxels at the
    faces of each axis are left out where a patch still fits. Raises InputError for invalid sizes
    and a stride above the patch size.
    """
    size = per_axis(patch_size, "patch_size", len(shape))
    step = per_axis(size if stride is None else stride, "stride", len(shape))
    if any(s > p for s, p in zip(step, size, strict=True)):
        raise InputError(
            f"a stride of {step} leaves gaps between patches of {size}; use at most the patch size"
        )
    axes = []
    for n, p, s, b in zip(shape, size, step, border or [0] * len(shape), strict=True):
        first = min(b, max(n - p, 0) // 2)
        last = max(n - first - p, first)
        axes.append([*range(first, last, s), last])
    return [PatchLocation(start, size) for start in itertools.product(*axes)]


def random_locations(
    shape: Sequence[int], patch_size: int | Sequence[int], count: int, rng: np.random.Generator
) -> list[PatchLocation]:
    """``count`` locations drawn uniformly inside the volume."""
    size = per_axis(patch_size, "patch_size", len(shape))
    room = np.maximum(np.subtract(shape, size), 0)
    starts = rng.integers(0, room + 1, size=(count, len(shape)))
    return [PatchLocation(tuple(start), size) for start in starts.tolist()]


def extract(array: np.ndarray, location: PatchLocation) -> np.ndarray:
    """The patch at a location of the last axes of ``array``; beyond the volume it is zero."""
    start, size = np.array(location.start), np.array(location.size)
    before = np.clip(-start, 0, size)
    patch = array[(..., *map(slice, start + before, np.maximum(start + size, 0)))]
    missing = np.zeros((patch.ndim, 2), int)
    missing[-len(size) :] = np.transpose(
        [before, size - before - patch.shape[patch.ndim - len(size) :]]
    )
    return np.pad(patch, missing) if missing.any() else patch


def stitch(
    patches: Iterable[np.ndarray],
    locations: Iterable[PatchLocation],
    shape: Sequence[int],
    *,
    margin: int = 0,
) -> np.ndarray:
    """Put patches back into a volume of the given shape (last axes), without averaging.

    ``margin`` voxels are left out at each face of a patch, except at the volume's own faces. Raises
    InputError when the patches leave a hole.
    """
    out, holes = None, np.ones(tuple(shape), dtype=bool)
    for patch, location in zip(patches, locations, strict=True):
        if out is None:
            out = np.zeros((*patch.shape[: -len(shape)], *shape), dtype=patch.dtype)
        start = np.add(location.start, margin * (np.array(location.start) > 0))
        stop = np.add(location.start, location.size)
        stop = np.maximum(np.where(stop < shape, stop - margin, shape), start)
        core = PatchLocation(tuple(start), tuple(stop - start))
        out[(..., *core.slices)] = patch[(..., *Tile(location, core).inner.slices)]
        holes[core.slices] = False
    if holes.any():
        raise InputError(
            f"{holes.sum()} voxels lie in no patch; use a stride of at most patch_size - 2 * margin"
        )
    return out


def tiles(
    shape: Sequence[int],
    halo: int | Sequence[int],
    max_voxels: float,
    *,
    multiple: int | Sequence[int] = 1,
) -> tuple[list[Tile], int]:
    """Divide a volume into tiles: (tiles, voxels of the largest one with its halo).

    The longest axis is halved until no tile exceeds ``max_voxels``, so a volume that fits is one
    tile. Halos lie on inner faces only, and all boxes begin at multiples of ``multiple`` (for
    networks that pool). Halo and multiple are one number, or one per axis. Where even the smallest
    tiles are too large, the list is empty.
    """
    halo, multiple, core = (
        np.broadcast_to(v, len(shape)).tolist() for v in (halo, multiple, shape)
    )
    while True:
        axes = [_cut(*axis) for axis in zip(shape, core, halo, multiple, strict=True)]
        largest = math.prod(max(outer for *_, outer in axis) for axis in axes)
        if largest <= max_voxels:
            break
        divisible = [axis for axis, n in enumerate(core) if n > multiple[axis]]
        if not divisible:
            return [], largest
        longest = max(divisible, key=core.__getitem__)
        units = math.ceil(core[longest] / multiple[longest] / 2)
        core[longest] = units * multiple[longest]
    todo = []
    for parts in itertools.product(*axes):
        start, size, outer_start, outer_size = zip(*parts, strict=True)
        todo.append(Tile(PatchLocation(outer_start, outer_size), PatchLocation(start, size)))
    return todo, largest


def _cut(n, core, halo, multiple):
    """Parts of one axis: (core start, core size, outer start, outer size)."""
    parts = []
    for start in range(0, n, core):
        stop, low = min(start + core, n), max(start - halo, 0)
        low -= low % multiple
        parts.append((start, stop - start, low, min(stop + halo, n) - low))
    return parts
