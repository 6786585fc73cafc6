"""Run networks over whole arrays: in tiles that fit a memory budget, or in stitched patches."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from tqdm import tqdm

from srlib.core.device import autocast, keep_freed_memory, return_freed_memory
from srlib.core.paths import InputError
from srlib.scans.patches import PatchLocation, extract, grid_locations, stitch, tiles

MAX_MEMORY_GB = 3.0
WORKING_COPIES = 3  # float32 copies of the whole scan that live beside the tiles


def run_tiled(
    network: torch.nn.Module,
    data: np.ndarray,
    max_memory_gb: float | None = None,
    progress: bool = False,
    precision: str = "32",
) -> np.ndarray:
    """The network's output for a whole array, float32 (X, Y, Z) or (C, X, Y, Z), tile by tile.

    Its shape is (X, Y, Z), or (K, X, Y, Z) for K > 1 output channels. Its grid is the same, or
    ``network.factor`` times finer. Each tile carries a halo as wide as the network sees
    (``network.halo``), on inner faces only, so that the result is that of the whole array at once.
    Tiles are cut so that the network's ``live_channels`` feature maps and the scan itself stay
    within the budget, MAX_MEMORY_GB when it is None. ``precision``: ``32`` or ``bf16``. Raises
    InputError for a budget that is too small.
    """
    return_freed_memory()
    allowed = 1e9 * (MAX_MEMORY_GB if max_memory_gb is None else max_memory_gb)
    factor = getattr(network, "factor", (1, 1, 1))
    channels = data if data.ndim == 4 else data[None]
    shape = channels.shape[1:]
    copies, voxel = WORKING_COPIES * channels.nbytes * math.prod(factor), 4 * network.live_channels
    room = (allowed - copies) / voxel
    todo, largest = tiles(shape, network.halo, room, multiple=getattr(network, "multiple", 1))
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
            part = _run(network, channels, tile.outer, precision)
            if out is None:
                out = np.empty((len(part), *np.multiply(shape, factor)), np.float32)
            core, inner = (place.scaled(factor).slices for place in (tile.core, tile.inner))
            out[(..., *core)] = part[(..., *inner)]
            del part  # or it would stay in memory beside the next tile's feature maps
    return out[0] if len(out) == 1 else out


def run_patches(
    network: torch.nn.Module,
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
    parts = (_run(network, framed[None], place)[0] for place in places)
    out = stitch(parts, places, framed.shape, margin=margin)
    return out[PatchLocation(tuple(n // 2 for n in spare), data.shape).slices]


@torch.inference_mode()
def _run(
    network: torch.nn.Module, channels: np.ndarray, place: PatchLocation, precision: str = "32"
) -> np.ndarray:
    """The network's output (K, ...) of the part of an array (C, X, Y, Z) at a place."""
    device = next(network.parameters()).device
    part = torch.from_numpy(extract(channels, place).copy())
    with autocast(device, precision):
        return network(part[None].to(device))[0].float().cpu().numpy()
