"""Painted scans, each degraded in a way drawn at random, of which the network is told the factor alone."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from srlib.checks import usual_range
from srlib.degrade import BlockAverage, GaussianDownsample, KSpaceTruncation, rician
from srlib.experiments import Acquisition, Experiment, Mixture
from srlib.generator import LabelMap, apply, draw
from srlib.models.robust import TOLD
from srlib.patches import extract, grid_locations, per_axis
from srlib.paths import InputError
from srlib.priors import Prior
from srlib.volume import Volume, resample

LAGS = (1, 2, 4, 8)  # voxels
LOOK = 112  # voxels per axis
MARGIN = 8  # voxels about the patches of a painted scan, which the borders of kernels and of k-space may spoil
ANY = ((125.0, 70.0), (12.0, 8.0))  # mean and std of the class means, and of the class stds, of the contrast "any"


def paint_patches(
    rng: np.random.Generator, label_map: LabelMap, experiment: Experiment, priors: Mapping[str, Prior]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The patches of one painted scan as (input (16, X, Y, Z), truth (1, X, Y, Z)), float32, about [0, 1].

    ``experiment.samples`` of them, the cube of a whole number; the input is the degraded scan interpolated on the
    truth's grid and what the network is ``told`` of it, as constant maps. Raises InputError as ``generator.draw``.
    """
    mixture, size = experiment.mixture, per_axis(experiment.patch_size)
    count = round(experiment.samples ** (1 / 3))
    if count**3 != experiment.samples:
        raise InputError(f"samples: expected the cube of a whole number, got {experiment.samples}")
    hr = paint(rng, label_map, experiment, priors, [count * n + 2 * MARGIN for n in size])
    on_grid, factor = degrade(rng, hr, mixture)
    facts = told(on_grid.data, factor).reshape(3, TOLD)
    facts[:, 1:] += rng.normal(0, mixture.jitter, (3, TOLD - 1))
    maps = np.broadcast_to(facts.reshape(-1, 1, 1, 1), (3 * TOLD, *size))
    places = grid_locations(hr.shape, size, border=(MARGIN,) * 3)
    return [(np.concatenate([extract(on_grid.data[None], p), maps]), extract(hr.data[None], p)) for p in places]


def told(scan: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """What a network is told of a scan (X, Y, Z) on the fine grid: (15,), five numbers per axis.

    The first is 1 / factor. The others are logarithms of how the mean squared difference of voxels grows with their
    distance of 1 to 8 voxels, each over the next one's, after the differences of neighbouring differences over those of
    neighbours: they show kernel and noise, and do not change with a scan's units. The middle of the scan is read, as
    much as is painted in training, and of it every other line of the other axes. What an axis of fewer than 9 voxels
    cannot show is the mean of what the other axes show.
    """
    scan = scan[tuple(slice(max(n - LOOK, 0) // 2, max(n - LOOK, 0) // 2 + LOOK) for n in scan.shape)]
    growth = np.array([_growth(np.moveaxis(scan, axis, -1)[::2, ::2], f > 1) for axis, f in enumerate(factor)])
    unseen = np.isnan(growth)
    seen = np.where(unseen, 0, growth).sum(0) / np.maximum(3 - unseen.sum(0), 1)
    growth = np.where(unseen, seen, growth)
    return np.concatenate([[1 / f, *row] for f, row in zip(factor, growth, strict=True)]).astype(np.float32)


def _growth(lines: np.ndarray, interpolated: bool) -> np.ndarray:
    """The four logarithms of ``told`` along the last axis, nan where it is too short for the distance."""
    if interpolated and lines.shape[-1] <= LAGS[-1]:  # a few slices between which there is nothing but the spline
        return np.full(len(LAGS), np.nan)
    steps = [np.diff(lines, 2), *(lines[..., lag:] - lines[..., :-lag] for lag in LAGS)]
    energy = np.array([np.square(step).mean(dtype=np.float64) if step.size else np.nan for step in steps])
    energy[0] /= 3  # of white noise
    energy += 1e-6 * np.max(energy, initial=0, where=~np.isnan(energy)) + 1e-20
    return np.log(energy[:-1] / energy[1:])


def without_wild(on_grid: Volume, lr: Volume) -> Volume:
    """A scan on the output grid as a network may see it: the median in place of wild voxels and their neighbours.

    They (``usual_range``) are looked for in ``lr``, the scan before it was interpolated. Without any it is ``on_grid`` itself.
    """
    data = lr.data
    for _ in range(4):  # without the wildest, others of a hot slice are found wild
        held = np.clip(data, *usual_range(data))
        if np.array_equal(held, data):
            break
        near = ndimage.maximum_filter(held != data, 3)  # the dark end of a hot line is as wrong
        data = np.where(near, ndimage.median_filter(held, 3), data)
    if data is lr.data:
        return on_grid
    calm = lr.with_data(data)
    same = lr.shape == on_grid.shape and np.allclose(lr.affine, on_grid.affine)
    return calm if same else resample(calm, on_grid.shape, on_grid.affine)


def paint(
    rng: np.random.Generator, label_map: LabelMap, experiment: Experiment, priors: Mapping[str, Prior], shape: list[int]
) -> Volume:
    """A painted scan of ``shape`` voxels in a contrast, with texture and softness, drawn from the experiment's mixture.

    Contrasts without priors are left out.
    """
    mixture, classes = experiment.mixture, int(label_map.class_of.max()) + 1
    anything = tuple(np.repeat(np.array(part)[:, None], classes, axis=1) for part in ANY)
    tables = {**priors, "any": anything}
    contrasts = [name for name in mixture.contrasts if {name, name.partition("_")[0]} & tables.keys()]
    contrast = contrasts[rng.integers(len(contrasts))]
    generation = dataclasses.replace(experiment.generation, inputs=(Acquisition(contrast),))
    parameters = draw(rng, label_map, generation, tables, shape)
    parameters = dataclasses.replace(parameters, stds=parameters.stds * rng.uniform(0, mixture.texture))
    data = apply(label_map, parameters, generation).target[0].numpy()
    mottle = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), rng.uniform(1, 4))
    data *= np.exp(rng.uniform(0, mixture.mottle) / mottle.std() * mottle)
    return Volume(ndimage.gaussian_filter(data, rng.uniform(0, mixture.soft)), np.eye(4))


def degrade(rng: np.random.Generator, hr: Volume, mixture: Mixture) -> tuple[Volume, tuple[float, float, float]]:
    """A scan degraded in a way drawn from the mixture, on its own grid, and the factor per axis."""
    kernel = mixture.kernels[rng.integers(len(mixture.kernels))]
    factor = _factor(rng, mixture, whole=kernel == "box")
    noise = np.exp(rng.uniform(*np.log(mixture.noise))) if rng.random() < mixture.noisy else 0.0
    if kernel == "kspace":  # noise is measured in k-space, so what is zeroed takes its part of it along
        return KSpaceTruncation(factor)(rician(hr, noise, rng, signed=False) if noise else hr), factor
    if kernel == "box":
        degradation = BlockAverage(factor)
    else:
        sigma = tuple(f * np.exp(rng.uniform(*np.log(mixture.sigma))) for f in factor)
        degradation = GaussianDownsample(factor, 0.0 if kernel == "sinc" else sigma)
    lr = degradation(KSpaceTruncation(factor)(hr) if kernel == "sinc" else hr)
    return degradation.to_grid(rician(lr, noise, rng, signed=False) if noise else lr, hr.shape), factor


def _factor(rng: np.random.Generator, mixture: Mixture, whole: bool) -> tuple[float, float, float]:
    """All axes, one or two of them are coarser; half of all factors are 2 where it is not one axis."""
    axes = rng.permutation(3)[: rng.choice((1, 2, 3), p=(0.3, 0.2, 0.5))]
    value = rng.uniform(1.5, mixture.thick) if len(axes) == 1 else rng.uniform(1.5, mixture.isotropic)
    if len(axes) > 1 and rng.random() < 0.5:
        value = 2.0
    value = max(round(value), 2) if whole else value
    return tuple(float(value) if axis in axes else 1.0 for axis in range(3))
