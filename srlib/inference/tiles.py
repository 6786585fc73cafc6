"""Run networks over whole arrays: in tiles that fit a memory budget, or in stitched patches."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from tqdm import tqdm

from srlib.core.device import autocast, evaluating, keep_freed_memory, return_freed_memory
from srlib.core.paths import InputError
from srlib.scans.patches import PatchLocation, extract, grid_locations, stitch, tiles

MAX_MEMORY_GB = 3.0
WORKING_COPIES = 3  # float32 copies of the whole scan that live beside the tiles
LIVE_CHANNELS = 256  # feature maps alive at once in a network that does not say how many
PROBE = 96  # voxels per axis of a random array that shows how far a network sees
EDGE = 16  # voxels of it, at each face, that are replaced
SAME = 1e-7  # of the greatest output: a difference that float32 does not hold
Callee = Callable[[torch.Tensor], torch.Tensor]


def run_tiled(
    network: Callee,
    data: np.ndarray,
    max_memory_gb: float | None = None,
    progress: bool = False,
    precision: str = "32",
    *,
    halo: int | Sequence[int] | None = None,
) -> np.ndarray:
    """The network's output for a whole array (X, Y, Z) or (C, X, Y, Z), float32, tile by tile.

    ``network`` is any callable from tensors (1, C, X, Y, Z) to (1, K, X', Y', Z') whose grid is the
    same or a whole factor finer; a module computes in evaluation mode. The result has the shape
    (X', Y', Z'), or (K, X', Y', Z') for K > 1. Each tile carries a ``halo`` as wide as the network
    sees, in voxels, of all axes or of each, on inner faces only, so that the result is that of the
    whole array at once. By default it is the attribute ``network.halo``, or is measured when it is
    needed (``sight``). Tiles are cut so that the network's ``live_channels`` feature maps, by
    default LIVE_CHANNELS, and the scan itself stay within the budget, MAX_MEMORY_GB when it is
    None. A network that is found to see more than 31 voxels runs in one piece. ``precision``:
    ``32`` or ``bf16``.
    Raises InputError for a budget that is too small, and for an output of another form.
    """
    return_freed_memory()
    allowed = 1e9 * (MAX_MEMORY_GB if max_memory_gb is None else max_memory_gb)
    channels = np.asarray(data if data.ndim == 4 else data[None], np.float32)
    shape = channels.shape[1:]
    factor = getattr(network, "factor", (1, 1, 1))
    copies = WORKING_COPIES * channels.nbytes * math.prod(factor)
    voxel = 4 * getattr(network, "live_channels", LIVE_CHANNELS)
    room = (allowed - copies) / voxel
    halo = getattr(network, "halo", None) if halo is None else halo
    multiple = getattr(network, "multiple", 1)
    if halo is None and math.prod(shape) > room:
        halo, multiple = sight(network, len(channels))
    todo, largest = tiles(shape, halo or 0, room, multiple=multiple)
    if not todo:
        least, whole = (
            math.ceil((copies + voxel * n) / 1e7) / 100 for n in (largest, math.prod(shape))
        )
        raise InputError(
            f"a scan of shape {shape} needs {least:g} GB of memory for its smallest tile and "
            f"{whole:g} GB in one piece, {allowed / 1e9:g} GB are allowed; allow more "
            "(--max-memory)"
        )
    out = None
    with keep_freed_memory() if 2 * largest < room else nullcontext():  # there is memory to spare
        for tile in tqdm(todo, desc="tiles", disable=not progress or len(todo) == 1):
            part = _run(network, extract(channels, tile.outer), precision)
            if out is None:
                factor, rest = np.divmod(part.shape[-3:], tile.outer.size)
                if rest.any() or part.ndim != 4:
                    raise InputError(
                        f"the network makes {part.shape} of {tile.outer.size} voxels; expected a "
                        "whole multiple along each axis"
                    )
                out = np.empty((len(part), *np.multiply(shape, factor)), np.float32)
            core, inner = (place.scaled(factor).slices for place in (tile.core, tile.inner))
            out[(..., *core)] = part[(..., *inner)]
            del part  # or it would stay in memory beside the next tile's feature maps
    return out[0] if len(out) == 1 else out


def run_patches(
    network: Callee,
    data: np.ndarray,
    patch_size: int = 64,
    margin: int = 3,
    frame: bool = False,
) -> np.ndarray:
    """The output of a same-grid network for an array (X, Y, Z), in overlapping patches.

    ``margin`` voxels are cut from each patch (mDCSRN's evaluation: Chen et al., MICCAI 2018).
    Unlike ``run_tiled`` the result depends on the patches where the network sees farther. The last
    patches are moved back inside; with a ``frame`` of zeros around the array, as in the replicated
    code, none is, and the margin is cut at the array's faces too.
    """
    stride = patch_size - 2 * margin
    spare = [frame * (-n % stride + 2 * margin) for n in data.shape]
    framed = np.pad(data, [(n // 2, n - n // 2) for n in spare])
    places = grid_locations(framed.shape, patch_size, stride=stride)
    parts = (_run(network, extract(framed[None], place))[0] for place in places)
    out = stitch(parts, places, framed.shape, margin=margin)
    return out[PatchLocation(tuple(n // 2 for n in spare), data.shape).slices]


def sight(network: Callee, channels: int) -> tuple[int, int]:
    """How many voxels a network sees beyond each, and of what number tiles begin at multiples.

    The middle of a random array is moved by a few voxels, and all else is replaced: the network
    sees as far as its output changes from the faces of that middle inwards. Where all of it changes
    the move is doubled, as a network that pools repeats itself after 2, 4 or more voxels. One that
    sees everything, or where a voxel lies, has a halo of more voxels than any scan.
    """
    first, other = np.random.default_rng(0).random((2, channels, *[PROBE] * 3), np.float32)
    before, axes, inner = _run(network, first), (1, 2, 3), (..., *[slice(EDGE, -EDGE)] * 3)
    factor = np.floor_divide(before.shape[1:], PROBE)
    for step in (1, 2, 4, 8, EDGE):
        other[inner] = np.roll(first, [step] * 3, axes)[inner]
        change = _run(network, other) - np.roll(before, factor * step, axes)
        wrong = np.argwhere(np.abs(change) > SAME * np.abs(before).max())[:, 1:] // factor
        halo = int(np.minimum(wrong, PROBE - 1 - wrong).min(1).max(initial=EDGE - 1)) + 1 - EDGE
        if halo < PROBE // 2 - EDGE:
            return -(-halo // step) * step, step
    return 2**31, 1


@torch.inference_mode()
def _run(network, part, precision="32"):
    """The network's output (K, ...) of an array (C, X, Y, Z), on the device of its weights."""
    weights = getattr(network, "parameters", tuple)()
    device = next(iter(weights), torch.empty(0)).device
    with evaluating(network), autocast(device, precision):
        return network(torch.from_numpy(part.copy())[None].to(device))[0].float().cpu().numpy()
