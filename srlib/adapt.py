"""A model trained further on the scan at hand: across its thick slices it learns from what they show in their plane."""

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from srlib.checks import usual_range
from srlib.degrade import GaussianDownsample
from srlib.device import keep_freed_memory
from srlib.infer import Model
from srlib.losses import log_mse
from srlib.mixture import told
from srlib.patches import extract, random_locations
from srlib.paths import InputError
from srlib.volume import Volume, central, fine_grid, fit_scaling, resample

SIGMAS = (0.2, 0.3, 0.42, 0.6, 0.85, 1.05)  # of the slice profile per slice distance, tried; those of the training
HELD_OUT = 0.2  # share of the scan that judges
STEPS, BATCH, PATCH, RATE = 200, 8, 32, 1e-4
LOOK = 128  # voxels per axis, in the middle, that the slice profile is found in

Example = tuple[np.ndarray, np.ndarray]  # degraded and true part of a scan, both (X, Y, Z), slice axis in its place


def adapt(scan: Volume, model: Model, factor: Sequence[float], seed: int = 0, steps: int = STEPS) -> tuple[Model, str]:
    """Train a model for every factor some steps on a scan with thick slices; the model, and a line on what was gained.

    As SMORE (Zhao et al., TMI 2021) and ECLARE (Remedios et al., 2024): the interpolated scan is degraded once more along
    an axis in the plane of its slices, as the slices degrade their own axis, and the network learns to undo that, the two
    axes exchanged. The width of the slice profile is the one that makes both look alike (``mixture.told``). The part of
    the scan that was held out decides: when its PSNR does not rise, the given model comes back. ``factor`` is above 1 along
    one axis. Deviation: one network of three dimensions, trained before, in place of new two-dimensional ones.
    Raises InputError for another factor, another kind of model and a scan that is too small.
    """
    if not model.experiment.mixture:
        raise InputError(f"{model.experiment.name} is not trained further on single scans; use the model robust")
    coarse = [axis for axis, f in enumerate(factor) if f > 1.05]
    if len(coarse) != 1:
        raise InputError(
            f"adapting needs thick slices, coarser along one axis than along the others, got a factor of {tuple(factor)}"
        )
    scan = scan.with_data(np.clip(scan.data, *usual_range(scan.data)))
    on_grid = resample(scan, *fine_grid(scan, factor))
    on_grid = on_grid.with_data(fit_scaling(on_grid.data).apply(on_grid.data))
    if min(on_grid.shape) < PATCH or min(np.delete(on_grid.shape, coarse)) * HELD_OUT < 8:
        raise InputError(f"adapting needs scans of {8 / HELD_OUT:g} voxels per axis or more, got {on_grid.shape}")
    sigma = _profile(on_grid, coarse[0], factor[coarse[0]])
    seen, kept_out = _pairs(on_grid, coarse[0], factor[coarse[0]], sigma)
    network = copy.deepcopy(model.network).requires_grad_(True)
    device = next(network.parameters()).device
    facts = [torch.from_numpy(told(degraded, factor)).to(device) for degraded, _ in seen]
    before = _psnr(network, kept_out, facts)
    _train(network, seen, facts, np.random.default_rng(seed), steps)
    network.eval().requires_grad_(False)
    after = _psnr(network, kept_out, facts)
    line = f"slice profile of sigma {sigma:g} slices; held-out part {before:.2f} dB before, {after:.2f} dB after {steps} steps"
    return (Model(network, model.experiment), f"adapted: {line}") if after > before else (model, f"not adapted: {line}")


def _along(axis: int, value: float, other: float) -> tuple[float, float, float]:
    return tuple(value if k == axis else other for k in range(3))


def _degraded(on_grid: Volume, axis: int, factor: float, sigma: float) -> np.ndarray:
    degradation = GaussianDownsample(_along(axis, factor, 1.0), _along(axis, sigma * factor, 0.0))
    return degradation.to_grid(degradation(on_grid), on_grid.shape).data


def _profile(on_grid: Volume, slices: int, factor: float) -> float:
    """The sigma, of those tried, that makes the axes in the plane look most as the slices' axis does."""
    part = central(on_grid, LOOK)
    wanted = told(part.data, (1, 1, 1)).reshape(3, -1)[slices]

    def distance(sigma: float) -> float:
        looks = (told(_degraded(part, a, factor, sigma), (1, 1, 1)).reshape(3, -1)[a] for a in range(3) if a != slices)
        return sum(float(np.square(look - wanted).sum()) for look in looks)

    return min(SIGMAS, key=distance)


def _pairs(on_grid: Volume, slices: int, factor: float, sigma: float) -> tuple[list[Example], list[Example]]:
    """Pairs to learn from, and those held out: the far end of the third axis."""
    seen, kept_out = [], []
    for axis in (a for a in range(3) if a != slices):
        degraded, third = _degraded(on_grid, axis, factor, sigma), 3 - axis - slices
        cut = round(on_grid.shape[third] * (1 - HELD_OUT))
        for part, box in ((seen, slice(None, cut)), (kept_out, slice(cut, None))):
            inside = tuple(box if k == third else slice(None) for k in range(3))
            part.append(tuple(np.swapaxes(data[inside], axis, slices) for data in (degraded, on_grid.data)))
    return seen, kept_out


def _batches(pairs: Sequence[Example], rng: np.random.Generator) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Endless batches of patches of one pair, by its number: those with the most structure of four times as many."""
    while True:
        number = int(rng.integers(len(pairs)))
        places = random_locations(pairs[number][1].shape, PATCH, 4 * BATCH, rng)
        places = sorted(places, key=lambda p: -extract(pairs[number][1], p).std())[:BATCH]
        yield number, *(torch.from_numpy(np.stack([extract(a, p) for p in places]))[:, None] for a in pairs[number])


def _train(
    network: torch.nn.Module,
    pairs: Sequence[Example],
    facts: Sequence[torch.Tensor],
    rng: np.random.Generator,
    steps: int,
) -> None:
    device, optimizer = facts[0].device, torch.optim.Adam(network.parameters(), RATE)
    with keep_freed_memory():
        for step, (number, lr, hr) in zip(range(steps), _batches(pairs, rng), strict=False):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            sr = network.resolve(lr.to(device), facts[number].expand(BATCH, -1))
            log_mse(sr, hr.to(device)).backward()
            optimizer.step()


@torch.no_grad()
def _psnr(network: torch.nn.Module, pairs: Sequence[Example], facts: Sequence[torch.Tensor]) -> float:
    """PSNR in dB over all pairs, data range 1."""
    error, count = 0.0, 0
    for (lr, hr), fact in zip(pairs, facts, strict=True):
        x, y = (torch.from_numpy(np.ascontiguousarray(a))[None, None].to(fact.device) for a in (lr, hr))
        error += float((network.resolve(x, fact[None]) - y).square().sum(dtype=torch.float64))
        count += y.numel()
    return -10 * math.log10(error / count)
