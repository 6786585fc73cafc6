"""Fit what `robust` estimates a scan's kernel by: srlib/shipped/kernel.csv (a quarter of an hour).

    python recipes/kernel.py MANIFEST CLASSES PRIORS OUT.csv

The tables are those of label maps (csv/README.md). Scans of 80 voxels per axis are synthesized from
label maps, as for `robust`, and from random shapes; each is degraded at random, and the logarithm of
its kernel's width over the factor is regressed on ``kernel_features``.
"""

import sys

import numpy as np
from scipy import ndimage

from srlib import data, systems
from srlib.degradations.resolution import (
    BlockAverage,
    GaussianDownsample,
    KSpaceTruncation,
    rician,
)
from srlib.inference.consistency import WIDTHS, kernel_features
from srlib.scans.formats import load_scan
from srlib.scans.volume import Volume
from srlib.synthesis.priors import read_classes, read_priors
from srlib.synthesis.simulation import encode, regular
from srlib.training.mixture import _factor, synthesize

SIZE = 80
BRAINS, SHAPES = (1, 500), (100, 900)  # seed and number of scans
KERNELS = ("gaussian", "gaussian", "box", "kspace", "sinc")
RIDGE = 3.0
WEIGHT = 4
OTHERS = {"box": 0.289, "sinc": 0.2}  # width over the factor


def smooth_noise(rng, scale):
    """Gaussian noise correlated over about ``scale`` voxels, of variance 1."""
    near = [np.fft.fftfreq(SIZE)] * 2 + [np.fft.rfftfreq(SIZE)]
    x, y, z = (np.exp(-2 * (np.pi * scale / 2 * f) ** 2) for f in near)
    spectrum = np.fft.rfftn(rng.standard_normal((SIZE,) * 3)) * x[:, None, None] * y[:, None] * z
    field = np.fft.irfftn(spectrum, s=(SIZE,) * 3)
    return (field / field.std()).astype(np.float32)


def shapes(rng):
    """Regions where one of a few smooth noises is greatest (Hoffmann et al., IEEE TMI 2022), each
    of one brightness, perhaps within a ball, with texture, noise and soft borders; or a smooth map.
    """
    if rng.random() < 0.1:
        field = rng.uniform(0.3, 3) * smooth_noise(rng, np.exp(rng.uniform(np.log(4), np.log(16))))
        return Volume(500 + 300 * np.tanh(field), np.eye(4))
    count = rng.integers(2, 9)
    scales = np.exp(rng.uniform(np.log(2.5), np.log(16), count))
    region = np.argmax([smooth_noise(rng, scale) for scale in scales], axis=0)
    image = rng.uniform(0, 1000, count).astype(np.float32)[region]
    if rng.random() < 0.6:
        places = np.indices((SIZE,) * 3) - SIZE / 2
        radius = np.sqrt(sum((p / rng.uniform(0.3, 0.6) / SIZE) ** 2 for p in places))
        image = np.where(radius < 1, image, 0).astype(np.float32)
    if rng.random() < 0.6:
        image = image * np.exp(rng.uniform(0, 0.1) * smooth_noise(rng, rng.uniform(1, 4)))
    if rng.random() < 0.5:
        level = rng.uniform(0, 40)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + level * noise * (image > 0)
    soft = rng.uniform(0.2, 0.8) if rng.random() < 0.7 else rng.uniform(0.8, 2.5)
    return Volume(ndimage.gaussian_filter(image, soft), np.eye(4))


def degraded(rng, hr, mixture):
    """A coarse scan, its factor and width over the factor per axis; None on the fine grid."""
    kernel = KERNELS[rng.integers(5)]
    factor = _factor(rng, mixture, whole=kernel == "box")
    level = np.exp(rng.uniform(*np.log(mixture.noise))) if rng.random() < mixture.noisy else 0.0
    if kernel == "kspace":
        return None
    width = [OTHERS.get(kernel, 0.0)] * 3
    if kernel == "gaussian":
        sigma = [f * np.exp(rng.uniform(*np.log(WIDTHS))) for f in factor]
        if rng.random() < 0.5:
            sigma = [f * sigma[0] / factor[0] for f in factor]
        width = np.divide(sigma, factor).tolist()
    if kernel == "box":
        lr = BlockAverage(factor)(hr)
    else:
        sharp = KSpaceTruncation(factor)(hr) if kernel == "sinc" else hr
        sigma = tuple(np.multiply(width, factor)) if kernel == "gaussian" else 0.0
        lr = GaussianDownsample(factor, sigma)(sharp)
    return rician(lr, level, rng), factor, width


def examples(kind, make, mixture):
    """Features and the logarithm of the width, of each coarse axis of each scan."""
    seed, count = kind
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        found = degraded(rng, make(rng), mixture)
        if found is None:
            continue
        lr, factor, width = found
        features = kernel_features(lr.data, factor)
        for axis in np.flatnonzero(np.greater(factor, 1)):
            if not np.isnan(features[axis]).any():
                yield features[axis], np.log(max(width[axis], WIDTHS[0]))


def fit(features, target):
    """Rows of kernel.csv: means, standard deviations, and the symmetric form."""
    mean, std = features.mean(0), features.std(0)
    given = np.column_stack([np.ones(len(features)), (features - mean) / std])
    rows, columns = np.triu_indices(given.shape[1])
    terms = given[:, rows] * given[:, columns]
    weights = np.linalg.solve(terms.T @ terms + RIDGE * np.eye(len(rows)), terms.T @ target)
    form = np.zeros((given.shape[1],) * 2)
    form[rows, columns] = weights / 2
    return np.vstack([[0, *mean], [1, *std], form + form.T])


def main(manifest, classes, priors, out):
    experiment = systems.get("robust")
    mixture, generation = experiment.examples.mixture, experiment.examples.generation
    table, tables = read_classes(classes), read_priors(priors)
    subjects = [s for s in data.read_manifest(manifest) if "labels" in s.files][:3]
    maps = [encode(regular(load_scan(subject.file("labels"))), table) for subject in subjects]

    def brain(rng):
        chosen = maps[rng.integers(3)]
        return synthesize(rng, chosen, generation, mixture, tables, [SIZE] * 3)

    # scans of heads are what is mostly asked for, so they count more
    found = [*examples(BRAINS, brain, mixture)] * WEIGHT + [*examples(SHAPES, shapes, mixture)]
    features, target = map(np.array, zip(*found, strict=True))
    np.savetxt(out, fit(features, target), delimiter=",", fmt="%.8g")
    print(
        f"{len(target)} axes of {BRAINS[1] + SHAPES[1]} scans; standard deviation {target.std():.3f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
