"""Random degradations for the training of `robust`, and the synthetic scans that they are applied to."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from srlib.core.parts import Number, Part
from srlib.degradations.resolution import BlockAverage, GaussianDownsample, KSpaceTruncation, rician
from srlib.scans.volume import Volume
from srlib.synthesis.priors import Prior
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.simulation import LabelMap, apply, draw

ANY = (
    (125.0, 70.0),
    (12.0, 8.0),
)  # mean and std of the class means, and of the class stds, of the contrast "any"


@dataclass(frozen=True)
class Mixture(Part):
    """Degradations of which each synthetic scan gets one at random; bounds of uniform draws, if not said otherwise."""

    contrasts: tuple[str, ...] = (
        "t1_hr",
        "t2",
        "any",
    )  # of the priors; "any" has every class of any brightness
    texture: Number = 1.0  # most std of the voxels of a class, as a multiple of the priors'
    mottle: Number = 0.1  # most std of a smooth relative variation, correlated over 1 to 4 voxels
    soft: Number = 0.6  # most sigma of a further blur of the truth, voxels; more, and kernel and truth look alike
    isotropic: Number = 4.0  # greatest factor of all axes, or of two
    thick: Number = 6.0  # greatest factor of a single axis
    sigma: tuple[Number, Number] = (
        0.2,
        1.05,
    )  # of a Gaussian kernel per factor; their logarithm is uniform
    noise: tuple[Number, Number] = (
        0.002,
        0.03,
    )  # Rician, of the brightest voxel; their logarithm is uniform
    noisy: Number = 0.4  # share of scans with noise
    kernels: tuple[str, ...] = ("gaussian", "gaussian", "box", "kspace", "sinc")  # each as likely
    jitter: tuple[Number, ...] = (
        0.0,
        0.0,
        0.0,
        0.0,
    )  # std of noise on the description of a scan's own differences


def synthesize(
    rng: np.random.Generator,
    label_map: LabelMap,
    generation: Generation,
    mixture: Mixture,
    priors: Mapping[str, Prior],
    shape: list[int],
) -> Volume:
    """A synthetic scan of ``shape`` voxels in a random contrast, with texture and softness drawn from the mixture.

    Contrasts without priors are left out.
    """
    classes = int(label_map.class_of.max()) + 1
    anything = tuple(np.repeat(np.array(part)[:, None], classes, axis=1) for part in ANY)
    tables = {**priors, "any": anything}
    contrasts = [
        name for name in mixture.contrasts if {name, name.partition("_")[0]} & tables.keys()
    ]
    contrast = contrasts[rng.integers(len(contrasts))]
    generation = dataclasses.replace(generation, inputs=(Acquisition(contrast),))
    parameters = draw(rng, label_map, generation, priors=tables, patch_size=shape)
    parameters = dataclasses.replace(
        parameters, stds=parameters.stds * rng.uniform(0, mixture.texture)
    )
    data = apply(label_map, parameters, generation).target[0].numpy()
    mottle = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), rng.uniform(1, 4))
    data *= np.exp(rng.uniform(0, mixture.mottle) / mottle.std() * mottle)
    return Volume(ndimage.gaussian_filter(data, rng.uniform(0, mixture.soft)), np.eye(4))


def degrade(
    rng: np.random.Generator, hr: Volume, mixture: Mixture
) -> tuple[Volume, tuple[float, float, float]]:
    """A scan degraded in a way drawn from the mixture, on its own grid, and the factor per axis."""
    kernel = mixture.kernels[rng.integers(len(mixture.kernels))]
    factor = _factor(rng, mixture, whole=kernel == "box")
    noise = np.exp(rng.uniform(*np.log(mixture.noise))) if rng.random() < mixture.noisy else 0.0
    if (
        kernel == "kspace"
    ):  # noise is measured in k-space, so what is zeroed takes its part of it along
        return KSpaceTruncation(factor)(
            rician(hr, noise, rng, signed=False) if noise else hr
        ), factor
    if kernel == "box":
        degradation = BlockAverage(factor)
    else:
        sigma = tuple(f * np.exp(rng.uniform(*np.log(mixture.sigma))) for f in factor)
        degradation = GaussianDownsample(factor, 0.0 if kernel == "sinc" else sigma)
    lr = degradation(KSpaceTruncation(factor)(hr) if kernel == "sinc" else hr)
    return degradation.to_grid(
        rician(lr, noise, rng, signed=False) if noise else lr, hr.shape
    ), factor


def _factor(rng: np.random.Generator, mixture: Mixture, whole: bool) -> tuple[float, float, float]:
    """All axes, one or two of them are coarser; half of all factors are 2 where it is not one axis."""
    axes = rng.permutation(3)[: rng.choice((1, 2, 3), p=(0.3, 0.2, 0.5))]
    value = (
        rng.uniform(1.5, mixture.thick) if len(axes) == 1 else rng.uniform(1.5, mixture.isotropic)
    )
    if len(axes) > 1 and rng.random() < 0.5:
        value = 2.0
    value = max(round(value), 2) if whole else value
    return tuple(float(value) if axis in axes else 1.0 for axis in range(3))
