"""Whole scans through a trained network: tiles cut from a memory budget, placed by the affine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from srlib.data import Pair, bring, degradation_of, network_input
from srlib.device import choose_device, layout, return_freed_memory
from srlib.experiments import TASKS, Experiment
from srlib.patches import extract, grid_locations, stitch, tiles
from srlib.paths import InputError, published_file, results_root
from srlib.published import PUBLISHED, load_published
from srlib.volume import Volume, fine_grid, fit_scaling, resample
from srlib.weights import load_network

MAX_MEMORY_GB = 3.0
WORKING_COPIES = 3  # float32 copies of the whole scan that live beside the tiles


@dataclass(frozen=True, eq=False)
class Model:
    """A network in evaluation mode with the experiment that it was trained for."""

    network: torch.nn.Module
    experiment: Experiment

    @property
    def factor(self) -> tuple[float, float, float]:
        """How much finer the output grid is than the input's; 1 where the task stays on its grid."""
        return degradation_of(self.experiment.task).coarser


def find_weights(name: str | Path) -> Path:
    """A weights file by its path, a published one by its name, or an experiment's newest run under ``results/``.

    Raises InputError when there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if published := published_file(Path(name).name):
        return published
    runs = results_root().glob(f"*/checkpoints/{Path(name).name}-*/model.safetensors")
    newest = max(runs, key=lambda p: p.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(
            f"{name}: no such weights; give a .safetensors file, a published one, or an experiment that was trained here"
        )
    return newest


def load_model(weights: str | Path, device: str = "auto") -> Model:
    """A model from our ``.safetensors`` or from a file the original authors published; nothing in it is run.

    ``weights`` is a path or a name, as in ``find_weights``. Raises InputError when the file is missing,
    damaged or of another kind.
    """
    path = find_weights(weights)
    if path.name in PUBLISHED or path.suffix == ".caffemodel":
        network, experiment = load_published(path)
    else:
        network, experiment = load_network(path)
    network = network.to(choose_device(device), memory_format=layout(network))
    return Model(network.eval().requires_grad_(False), experiment)


def run_tiled(
    network: torch.nn.Module, data: np.ndarray, max_memory_gb: float = MAX_MEMORY_GB, progress: bool = False
) -> np.ndarray:
    """A network over a whole array, float32 (X, Y, Z) or (C, X, Y, Z), tile by tile, to (X, Y, Z) of its output grid.

    The output grid is ``network.factor`` times finer, or the same. Each tile carries a halo as wide as the network
    sees (``network.halo``), on inner faces only, so that the result is that of the whole array at once. Tiles are cut
    so that the network's ``live_channels`` feature maps and the scan itself stay within the budget. Raises InputError
    when the budget is too small.
    """
    return_freed_memory()
    device = next(network.parameters()).device
    factor = getattr(network, "factor", (1, 1, 1))
    channels = data if data.ndim == 4 else data[None]
    shape = channels.shape[1:]
    budget = max_memory_gb * 1e9 - WORKING_COPIES * channels.nbytes * math.prod(factor)
    if budget <= 0:
        raise InputError(f"{max_memory_gb} GB do not hold a scan of shape {shape}; allow more memory")
    voxels = int(budget / (4 * network.live_channels))
    todo = tiles(shape, network.halo, voxels, getattr(network, "multiple", 1))
    out = np.empty([n * f for n, f in zip(shape, factor, strict=True)], np.float32)
    with torch.inference_mode():
        for tile in tqdm(todo, desc="tiles", disable=not progress or len(todo) == 1):
            part = torch.from_numpy(extract(channels, tile.outer).copy())[None].to(device)
            inside = tile.inner.scaled(factor).slices
            # in one line, or the last tile's output would stay in memory beside the next one's feature maps
            out[tile.core.scaled(factor).slices] = network(part)[0, 0][inside].cpu().numpy()
    return out


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


def enhance_on_grid(
    on_grid: Volume,
    model: Model,
    reference: Volume | None = None,
    max_memory_gb: float = MAX_MEMORY_GB,
    progress: bool = False,
) -> Volume:
    """Run a model on a scan that already lies on the output grid, in the scan's own units.

    A model with two input channels needs the other contrast as ``reference``, on any grid in the same world: it is
    brought by its affine, and nothing is registered. Raises InputError when it is missing or not wanted.
    """
    if bool(model.experiment.reference) != (reference is not None):
        wanted = f"a reference ({model.experiment.reference})" if model.experiment.reference else "no reference"
        raise InputError(f"{model.experiment.name} takes {wanted}, got {'none' if reference is None else 'one'}")
    brought = None if reference is None else bring(reference, on_grid)
    given = network_input(on_grid, brought, model.experiment.intensity)
    sr = run_tiled(model.network, given, max_memory_gb, progress)
    return on_grid.with_data(fit_scaling(on_grid.data, model.experiment.intensity).invert(sr))


def enhance_pair(pair: Pair, model: Model, max_memory_gb: float = MAX_MEMORY_GB) -> Volume:
    """What a model makes of a degraded scan, on the grid of the truth and in the scan's own units."""
    if not model.experiment.lr_grid:
        return enhance_on_grid(pair.on_grid, model, pair.reference, max_memory_gb)
    sr = _from_grid_to_grid(pair.lr, model, max_memory_gb, progress=False)
    return pair.hr.with_data(sr[tuple(slice(n) for n in pair.hr.shape)])


def _from_grid_to_grid(scan: Volume, model: Model, max_memory_gb: float, progress: bool) -> np.ndarray:
    scaling = fit_scaling(scan.data, model.experiment.intensity)
    return scaling.invert(run_tiled(model.network, scaling.apply(scan.data), max_memory_gb, progress))


def super_resolve(
    volume: Volume,
    model: Model,
    factor: Sequence[float] | None = None,
    spacing_mm: Sequence[float] | None = None,
    reference: Volume | None = None,
    align: str = "center",
    max_memory_gb: float = MAX_MEMORY_GB,
    progress: bool = False,
) -> Volume:
    """Super-resolve a scan from its own grid: cubic-spline interpolation, then the network, or the network alone.

    ``factor`` per axis (default: the one the model was trained for) or a target ``spacing_mm`` per axis; the
    field of view stays, and the affine says where the finer voxels lie. With ``align='corners'`` the outermost voxel
    centres stay instead, as in the published SRReCNN3D; also then the affine is the true one. ``reference``: see
    ``enhance_on_grid``. Raises InputError for a constant scan, a factor below 1 or not finite, or factor and spacing
    at once.
    """
    if factor is not None and spacing_mm is not None:
        raise InputError("give a factor or a spacing, not both")
    if spacing_mm is not None:
        if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
            raise InputError(f"spacing: expected three positive numbers of mm, got {tuple(spacing_mm)}")
        factor = tuple(old / new for old, new in zip(volume.spacing_mm, spacing_mm, strict=True))
    factor = tuple(float(f) for f in (factor if factor is not None else model.factor))
    if len(factor) != 3 or not all(np.isfinite(f) and f >= 0.999 for f in factor):
        raise InputError(
            f"factor per axis must be at least 1, got {factor}; the scan's spacing is {volume.spacing_mm} mm"
        )
    if model.experiment.lr_grid:
        if not np.allclose(factor, model.network.factor, rtol=1e-3) or reference is not None:
            raise InputError(
                f"{model.experiment.name} makes scans {model.network.factor} times finer and takes no reference; "
                f"got a factor of {factor}"
            )
        sr = _from_grid_to_grid(volume, model, max_memory_gb, progress)
        align = "first" if TASKS[model.experiment.task][0] == "scanline" else align
        return Volume(sr, fine_grid(volume, model.network.factor, align)[1])
    on_grid = volume if np.allclose(factor, 1) else resample(volume, *fine_grid(volume, factor, align))
    return enhance_on_grid(on_grid, model, reference, max_memory_gb, progress)
