"""Networks over whole arrays: tiles cut from a memory budget, which change nothing, or stitched patches."""

import math

import numpy as np
import torch
from tqdm import tqdm

from srlib.device import return_freed_memory
from srlib.patches import extract, grid_locations, smallest_tile, stitch, tiles
from srlib.paths import InputError

MAX_MEMORY_GB = 3.0
WORKING_COPIES = 3  # float32 copies of the whole scan that live beside the tiles


def run_tiled(
    network: torch.nn.Module, data: np.ndarray, max_memory_gb: float | None = None, progress: bool = False
) -> np.ndarray:
    """A network over a whole array, float32 (X, Y, Z) or (C, X, Y, Z), tile by tile, to (X, Y, Z) of its output grid.

    Of a network with K > 1 output channels: (K, X, Y, Z). The output grid is ``network.factor`` times finer, or the
    same. Each tile carries a halo as wide as the network sees (``network.halo``), on inner faces only, so that the
    result is that of the whole array at once. Tiles are cut so that the network's ``live_channels`` feature maps and
    the scan itself stay within the budget, MAX_MEMORY_GB when it is None. Raises InputError, which says what a tile needs, when it is too small.
    """
    return_freed_memory()
    max_memory_gb = MAX_MEMORY_GB if max_memory_gb is None else max_memory_gb
    device = next(network.parameters()).device
    factor, multiple = getattr(network, "factor", (1, 1, 1)), getattr(network, "multiple", 1)
    channels = data if data.ndim == 4 else data[None]
    shape = channels.shape[1:]
    copies, voxel = WORKING_COPIES * channels.nbytes * math.prod(factor), 4 * network.live_channels
    least = copies + voxel * smallest_tile(shape, network.halo, multiple)
    if not max_memory_gb * 1e9 >= least:
        least, whole = (math.ceil(need / 1e7) / 100 for need in (least, copies + voxel * math.prod(shape)))
        raise InputError(
            f"a scan of shape {shape} needs {least:g} GB of memory for its smallest tile and {whole:g} GB in one piece, "
            f"{max_memory_gb:g} GB are allowed; allow more (--max-memory)"
        )
    todo = tiles(shape, network.halo, int((max_memory_gb * 1e9 - copies) / voxel), multiple)
    out: np.ndarray | None = None
    with torch.inference_mode():
        for tile in tqdm(todo, desc="tiles", disable=not progress or len(todo) == 1):
            part = torch.from_numpy(extract(channels, tile.outer).copy())[None].to(device)
            inside = (slice(None), *tile.inner.scaled(factor).slices)
            part = network(part)[0][inside].cpu().numpy()
            if out is None:
                out = np.empty((len(part), *(n * f for n, f in zip(shape, factor, strict=True))), np.float32)
            out[(slice(None), *tile.core.scaled(factor).slices)] = part
            del part  # or it would stay in memory beside the next tile's feature maps
    return out[0] if len(out) == 1 else out


def run_patches(network: torch.nn.Module, data: np.ndarray, patch_size: int = 64, margin: int = 3) -> np.ndarray:
    """A same-grid network over overlapping patches, ``margin`` voxels cut from each, stitched: mDCSRN's evaluation.

    Chen et al., MICCAI 2018. Unlike ``run_tiled`` the result depends on the patches, wherever the network
    sees farther than the margin.
    """
    device = next(network.parameters()).device
    places = grid_locations(data.shape, patch_size, patch_size - 2 * margin)
    with torch.inference_mode():
        parts = (network(torch.from_numpy(extract(data, p).copy())[None, None].to(device))[0, 0] for p in places)
        return stitch((part.cpu().numpy() for part in parts), places, data.shape, margin)
