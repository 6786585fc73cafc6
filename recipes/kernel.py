"""Fit what `robust` estimates a scan's kernel by: srlib/shipped/kernel.csv (minutes).

    python recipes/kernel.py OUT.csv

Half of the scans are those of `robust`'s training, from the label maps that ``label_maps.find``
finds, the others are of random shapes. The logarithm of a kernel's width over the factor is
regressed on ``kernel_features`` by two quadratic forms: its mean, where brains count more, and a low
expectile, where all count alike.
"""

import dataclasses
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy import ndimage

from srlib import data, systems
from srlib.data import label_maps
from srlib.degradations.kernels import WIDTHS, kernel_features
from srlib.scans.separable import along_axes, spline
from srlib.scans.volume import Volume
from srlib.training.mixture import degrade, synthesize
from srlib.training.synthetic import SyntheticDataset

SHAPE = [96, 96, 96]
SCANS = 2600
SHARPER = 0.2  # width over the factor that stands for k-space truncation on the coarse grid
SOFTER = (0.1, 2.0)  # share of brains that are blurred, as if interpolated before; most sigma
RIDGE = 10.0
LOW = 0.03  # the expectile
WEIGHT = 4  # scans of heads are what is mostly asked for, so they count more
# random shapes
SCALES = (2.5, 24.0)  # voxels over which regions vary; the logarithm is uniform
SMOOTH = (4.0, 16.0)  # the same of maps without borders
BORDERS = (0.8, 2.5)  # sigma of a border, voxels: the least and the most of soft ones
SOFT, MAPS, THIN, ROUND, TEXTURED, GRAINY = 0.3, 0.15, 0.3, 0.5, 0.5, 0.4  # shares of scans


def smooth_noise(rng, shape, scale):
    """Normal noise of variance 1 that varies over about ``scale`` voxels, (X, Y, Z) float32.

    It is a cubic B-spline with random coefficients ``scale`` voxels apart.
    """
    places = [rng.uniform(1, 2) + np.arange(n) / scale for n in shape]
    points = [int(place[-1]) + 3 for place in places]
    matrices = [
        spline(n, place, order=3, mode="mirror", prefilter=False)
        for n, place in zip(points, places, strict=True)
    ]
    field = along_axes(rng.standard_normal(points, np.float32), matrices)
    return field / (field.std() + 1e-6)


def random_shapes(rng, shape):
    """A scan of ``shape`` voxels of 1 mm in [0, 1]: regions of any form, or a smooth map.

    A region is where one of a few smooth noises is greatest (Hoffmann et al., SynthMorph, IEEE TMI
    2022), and has one brightness. Some scans have thin sheets and vessels, texture, grain, soft
    borders, or darkness around a ball.
    """

    def noise(low, high):
        return smooth_noise(rng, shape, np.exp(rng.uniform(np.log(low), np.log(high))))

    if rng.random() < MAPS:
        image = 0.5 + 0.5 * np.tanh(rng.uniform(0.3, 2) * noise(*SMOOTH))
    else:
        fields = [noise(*SCALES) for _ in range(rng.integers(2, 7))]
        image = rng.uniform(0, 1, len(fields)).astype(np.float32)[np.argmax(fields, axis=0)]
    if rng.random() < THIN:
        width = rng.uniform(0.05, 0.3)
        near = [np.abs(noise(6, 24)) < width for _ in range(rng.integers(1, 3))]
        image = np.where(np.all(near, axis=0), np.float32(rng.uniform(0, 2)), image)
    if rng.random() < TEXTURED:
        image = image * np.exp(rng.uniform(0, 0.1) * noise(1, 4))
    if rng.random() < ROUND:
        middle = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
        radius = sum((place / rng.uniform(0.5, 1.2)) ** 2 for place in middle)
        image = np.where(radius < 1, image, 0)
    if rng.random() < GRAINY:
        grain = rng.standard_normal(shape, np.float32)
        image = image + rng.uniform(0, 0.04) * grain * (image > 0)
    soft = rng.uniform(*BORDERS) if rng.random() < SOFT else rng.uniform(0.2, BORDERS[0])
    image = ndimage.gaussian_filter(image, soft)
    low, high = float(image.min()), float(image.max())
    return Volume((image - low) / (high - low + 1e-6), np.eye(4))


def dataset() -> SyntheticDataset:
    """The label maps of `robust`'s training."""
    files, experiment = label_maps.find(), systems.get("robust")
    subjects = experiment.examples.select(data.read_manifest(files.manifest, "train"))
    return experiment.examples.open(
        subjects,
        experiment.pairs,
        seed=1,
        tables=experiment.examples.read_tables(files.classes, files.priors),
    )


def examples(start: int, step: int) -> list[tuple[np.ndarray, float, int]]:
    """Of every ``step``-th scan's coarse axes: features, logarithm of the width, weight."""
    made, found = dataset(), []
    generation, mixture = made.part.generation, made.part.mixture
    kernels = ("gaussian", "gaussian", "box", "sinc")
    mixture = dataclasses.replace(mixture, kernels=kernels, sigma=(0.15, 1.1), alike=0.5)
    for number in range(start, SCANS, step):
        rng, label_map, priors, _ = made.source(number)
        if shapes := rng.random() < 0.5:
            hr = random_shapes(rng, SHAPE)
        else:
            hr = synthesize(rng, label_map, generation, mixture, priors, SHAPE)
            sigma = rng.uniform(0, SOFTER[1]) if rng.random() < SOFTER[0] else 0.0
            hr = hr.with_data(ndimage.gaussian_filter(hr.data, sigma))
        lr, _, kernel = degrade(rng, hr, mixture)
        features = kernel_features(lr.data, kernel.coarser)
        sigma = kernel.sigma or np.multiply(SHARPER, kernel.coarser)
        for axis in np.flatnonzero(np.greater(kernel.coarser, 1)):
            if not np.isnan(features[axis]).any():
                width = max(sigma[axis] / kernel.coarser[axis], WIDTHS[0])
                found.append((features[axis], np.log(width), 1 if shapes else WEIGHT))
    return found


def form(terms, target, weight, low=0.5):
    """The symmetric matrix of an expectile of ``target``, by least squares again and again."""
    weights, above = np.zeros(terms.shape[1]), np.ones(len(target), bool)
    for _ in range(20):
        given = terms.T * (weight * np.where(above, 1 - low, low) * 2)
        weights = np.linalg.solve(given @ terms + RIDGE * np.eye(len(weights)), given @ target)
        above = terms @ weights > target
    size = int(np.sqrt(2 * len(weights)))
    made = np.zeros((size, size))
    made[np.triu_indices(size)] = weights / 2
    return made + made.T


def fit(features, target, weight):
    """Rows of kernel.csv: means, standard deviations, the forms of the mean and of the expectile."""
    mean, std = features.mean(0), features.std(0)
    given = np.column_stack([np.ones(len(features)), (features - mean) / std])
    rows, columns = np.triu_indices(given.shape[1])
    terms = given[:, rows] * given[:, columns]
    forms = form(terms, target, weight), form(terms, target, np.ones(len(target)), LOW)
    for name, chosen in (("brains", weight == WEIGHT), ("shapes", weight == 1)):
        likely, least = (((given[chosen] @ part) * given[chosen]).sum(1) for part in forms)
        error = np.sqrt(np.square(likely - target[chosen]).mean())
        print(
            f"{name}: {chosen.sum()} axes, standard deviation of the logarithm "
            f"{target[chosen].std():.2f}, error {error:.2f}, "
            f"{(target[chosen] < least).mean():.0%} below the least width"
        )
    return np.vstack([[0, *mean], [1, *std], *forms])


def main(out):
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        parts = pool.map(examples, range(workers), [workers] * workers)
        found = [axis for part in parts for axis in part]
    made = fit(*map(np.array, zip(*found, strict=True)))
    np.savetxt(out, made, delimiter=",", fmt="%.8g")


if __name__ == "__main__":
    main(*sys.argv[1:])
