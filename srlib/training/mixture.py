"""Make synthetic scans and degrade them at random, to train `robust`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from srlib.core.parts import Number, Part, Share
from srlib.degradations.kernels import Kernel, told
from srlib.degradations.resolution import BlockAverage, GaussianDownsample, KSpaceTruncation, rician
from srlib.scans.volume import Volume
from srlib.synthesis.priors import Prior
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.simulation import LabelMap, apply, draw

# of the contrast "any": mean and std of the class means, and of the class stds
ANY = ((125.0, 70.0), (12.0, 8.0))


@dataclass(frozen=True)
class Mixture(Part):
    """The distribution of random degradations; numbers are bounds of uniform draws by default."""

    # of the priors; "any" has every class of any brightness
    contrasts: tuple[str, ...] = ("t1_hr", "t2", "any")
    texture: Number = 1.0  # most std of the voxels of a class, as a multiple of the priors'
    mottle: Number = 0.1  # most std of a smooth relative variation, correlated over 1 to 4 voxels
    # most sigma of a further blur of the truth, voxels; above it kernel and truth look alike
    soft: Number = 0.6
    isotropic: Number = 4.0  # greatest factor of all axes, or of two
    thick: Number = 6.0  # greatest factor of a single axis
    # of a Gaussian kernel, per factor; the logarithm is uniform
    sigma: tuple[Number, Number] = (0.2, 1.05)
    alike: Share = 0.0  # share of Gaussians whose widths are in proportion to the factors
    # Rician, as a share of the brightest voxel; the logarithm is uniform
    noise: tuple[Number, Number] = (0.002, 0.03)
    noisy: Number = 0.4  # share of scans with noise
    kernels: tuple[str, ...] = ("gaussian", "gaussian", "box", "kspace", "sinc")  # each as likely
    # std of noise on what ``describe_degradation`` measures of a scan
    jitter: tuple[Number, ...] = (0.0, 0.0, 0.0, 0.0)


def synthesize(
    rng: Generator,
    label_map: LabelMap,
    generation: Generation,
    mixture: Mixture,
    priors: Mapping[str, Prior],
    shape: list[int],
) -> Volume:
    """A synthetic scan of ``shape`` voxels; contrast, texture and softness are random.

    Contrasts without priors are left out. Raises InputError as ``simulation.draw``.
    """
    classes = label_map.class_of.max() + 1
    means, stds = (np.repeat(np.array(part)[:, None], classes, axis=1) for part in ANY)
    tables = {**priors, "any": (means, stds)}
    contrasts = [
        name for name in mixture.contrasts if {name, name.partition("_")[0]} & tables.keys()
    ]
    contrast = contrasts[rng.integers(len(contrasts))]
    generation = dataclasses.replace(generation, inputs=(Acquisition(contrast),))
    parameters = draw(rng, label_map, generation, priors=tables, patch_size=shape)
    stds = parameters.stds * rng.uniform(0, mixture.texture)
    parameters = dataclasses.replace(parameters, stds=stds)
    data = apply(label_map, parameters, generation).target[0].numpy()
    mottle = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), rng.uniform(1, 4))
    data *= np.exp(rng.uniform(0, mixture.mottle) / mottle.std() * mottle)
    return Volume(ndimage.gaussian_filter(data, rng.uniform(0, mixture.soft)), np.eye(4))


def degrade(rng: Generator, hr: Volume, mixture: Mixture) -> tuple[Volume, Volume, Kernel]:
    """A scan with a random degradation, the same on the scan's own grid, and its kernel."""
    kind = mixture.kernels[rng.integers(len(mixture.kernels))]
    factor = _factor(rng, mixture, whole=kind == "box")
    noise = np.exp(rng.uniform(*np.log(mixture.noise))) if rng.random() < mixture.noisy else 0.0
    if kind == "kspace":  # noise comes first: it is measured in k-space, and zeroed with it
        lr = KSpaceTruncation(factor)(rician(hr, noise, rng))
        return lr, lr, Kernel(factor)
    if kind == "box":
        kernel, degradation = told("box", factor), BlockAverage(factor)
    elif kind == "gaussian":
        widths = np.exp(rng.uniform(*np.log(mixture.sigma), 3))
        if mixture.alike and rng.random() < mixture.alike:
            widths[:] = widths[0]
        sigma = tuple((np.greater(factor, 1) * factor * widths).tolist())
        kernel, degradation = Kernel(factor, sigma), GaussianDownsample(factor, sigma)
    else:
        kernel, degradation = Kernel(factor), GaussianDownsample(factor, 0.0)
        hr = KSpaceTruncation(factor)(hr)
    lr = rician(degradation(hr), noise, rng)
    return lr, degradation.to_grid(lr, hr.shape), kernel


def _factor(rng, mixture, whole):
    """One, two or all axes are coarser; of factors along more than one axis, half are 2."""
    axes = rng.permutation(3)[: rng.choice((1, 2, 3), p=(0.3, 0.2, 0.5))]
    value = rng.uniform(1.5, mixture.thick if len(axes) == 1 else mixture.isotropic)
    if len(axes) > 1 and rng.random() < 0.5:
        value = 2.0
    value = max(round(value), 2) if whole else value
    return tuple(float(value) if axis in axes else 1.0 for axis in range(3))
