"""Where patches and tiles lie in a volume, and how they are cut out and put back."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from srlib.paths import InputError


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
        return PatchLocation(
            tuple(a * f for a, f in zip(self.start, factor, strict=True)),
            tuple(n * f for n, f in zip(self.size, factor, strict=True)),
        )


def per_axis(value: int | Sequence[int], name: str = "patch_size", dims: int = 3) -> tuple[int, ...]:
    """One number for every axis, or one per axis, as a tuple of positive integers; InputError otherwise."""
    values = (value,) * dims if np.isscalar(value) else tuple(value)
    if len(values) != dims or any(int(v) != v or v < 1 for v in values):
        raise InputError(f"{name}: expected one positive whole number or {dims} of them, got {value}")
    return tuple(int(v) for v in values)


def grid_locations(
    shape: Sequence[int],
    patch_size: int | Sequence[int] = 64,
    stride: int | Sequence[int] | None = None,
    border: Sequence[int] | None = None,
) -> list[PatchLocation]:
    """Locations on a regular grid that cover the volume; the last one per axis is moved back inside.

    A volume smaller than a patch gets one location that begins at 0 and reaches beyond it (see ``extract``).
    The stride is the patch size when not given (no overlap); ``border`` voxels at the faces of each axis are left out,
    as far as a patch still fits.
    """
    size = per_axis(patch_size, "patch_size", len(shape))
    step = per_axis(size if stride is None else stride, "stride", len(shape))
    if any(s > p for s, p in zip(step, size, strict=True)):
        raise InputError(f"a stride of {step} leaves gaps between patches of {size}; use at most the patch size")
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
    high = [max(n - p, 0) + 1 for n, p in zip(shape, size, strict=True)]
    starts = rng.integers(0, high, size=(count, len(shape)))
    return [PatchLocation(tuple(int(a) for a in start), size) for start in starts]


def extract(array: np.ndarray, location: PatchLocation) -> np.ndarray:
    """The patch at a location of the last axes of ``array``; where it reaches beyond the volume it is zero."""
    patch = array[(..., *location.slices)]
    missing = [n - m for n, m in zip(location.size, patch.shape[-len(location.size) :], strict=True)]
    if not any(missing):
        return patch
    return np.pad(patch, [(0, 0)] * (array.ndim - len(missing)) + [(0, m) for m in missing])


def stitch(
    patches: Iterable[np.ndarray], locations: Iterable[PatchLocation], shape: Sequence[int], margin: int = 0
) -> np.ndarray:
    """Put patches back into a volume of the given shape (last axes); voxels are written, never averaged.

    ``margin`` voxels are left out at each face of a patch, except where the patch touches the volume's
    own face. Raises InputError when the patches leave a hole.
    """
    out, covered = None, np.zeros(tuple(shape), dtype=bool)
    for patch, location in zip(patches, locations, strict=True):
        if out is None:
            out = np.zeros((*patch.shape[: patch.ndim - len(shape)], *shape), dtype=patch.dtype)
        inside, target = [], []
        for a, p, n in zip(location.start, location.size, shape, strict=True):
            low = 0 if a == 0 else margin
            high = n - a if a + p >= n else p - margin
            inside.append(slice(low, high))
            target.append(slice(a + low, a + high))
        out[(..., *target)] = patch[(..., *inside)]
        covered[tuple(target)] = True
    if out is None or not covered.all():
        raise InputError(
            f"{covered.size - covered.sum()} voxels lie in no patch; use a stride of at most patch_size - 2 * margin"
        )
    return out


@dataclass(frozen=True)
class Tile:
    """A part of a volume to compute: ``outer`` is read, ``core`` is written; both in voxels of the volume."""

    outer: PatchLocation
    core: PatchLocation

    @property
    def inner(self) -> PatchLocation:
        """Where the core lies inside the outer box."""
        start = tuple(c - o for c, o in zip(self.core.start, self.outer.start, strict=True))
        return PatchLocation(start, self.core.size)


def tiles(
    shape: Sequence[int], halo: int | Sequence[int], max_voxels: int, multiple: int | Sequence[int] = 1
) -> list[Tile]:
    """Fewest computed voxels that keep every tile, its halo included, within ``max_voxels``.

    Halos lie on inner faces only, so a volume that fits is one tile without any. Cores begin at multiples
    of ``multiple`` (for networks that pool). Halo and multiple: one number, or one per axis. Raises InputError when not even the smallest tile fits.
    """
    best, best_cost = None, np.inf
    for choice in itertools.product(*_cuts_per_axis(shape, halo, multiple)):
        longest = np.prod([max(o for _, _, _, o in axis) for axis in choice], dtype=float)
        cost = np.prod([sum(o for _, _, _, o in axis) for axis in choice], dtype=float)
        if longest <= max_voxels and cost < best_cost:
            best, best_cost = choice, cost
    if best is None:
        raise InputError(
            f"a tile with its halo of {halo} voxels does not fit into {max_voxels:,} voxels; allow more memory"
        )
    return [
        Tile(
            PatchLocation(tuple(p[2] for p in parts), tuple(p[3] for p in parts)),
            PatchLocation(tuple(p[0] for p in parts), tuple(p[1] for p in parts)),
        )
        for parts in itertools.product(*best)
    ]


def smallest_tile(shape: Sequence[int], halo: int | Sequence[int], multiple: int | Sequence[int] = 1) -> int:
    """Voxels of the smallest tile, its halo included, into which ``tiles`` can cut."""
    return math.prod(min(max(o for *_, o in cut) for cut in axis) for axis in _cuts_per_axis(shape, halo, multiple))


def _cuts_per_axis(shape, halo, multiple) -> list[list[list[tuple[int, int, int, int]]]]:
    halos, multiples = ([v] * len(shape) if np.isscalar(v) else v for v in (halo, multiple))
    return [_cuts(*axis) for axis in zip(shape, halos, multiples, strict=True)]


def _cuts(n: int, halo: int, multiple: int) -> list[list[tuple[int, int, int, int]]]:
    """Ways to cut one axis into equal parts: lists of (core start, core size, outer start, outer size)."""
    units = -(-n // multiple)
    cuts = []
    for count in sorted({-(-units // k) for k in range(1, units + 1)}):
        if count > 64:
            break
        edges = [min(round(i * units / count) * multiple, n) for i in range(count + 1)]
        axis = []
        for a, b in itertools.pairwise(edges):
            low, high = max(a - halo, 0), min(b + halo, n)
            low -= low % multiple
            axis.append((a, b - a, low, high - low))
        cuts.append(axis)
    return cuts
