"""SRReCNN3D, mono- and multimodal, and SRCNN3D: Pham et al., CMIG 2019 and ISBI 2017."""

import dataclasses

from srlib.experiments.base import Experiment

RECNN = Experiment(
    name="recnn",
    paper="Pham et al., CMIG 2019 (HAL hal-01635455)",
    task="gaussian_x2_corners",
    model="recnn",
    width=64,
    model_args={"layers": 10, "kernel": 3, "in_channels": 1, "residual": True},
    max_steps=20_000,
    n_train=10,
    batch_size=64,
    patch_size=21,
    learning_rate=1e-3,
    loss="l2",
    schedule="cosine",
    sampling="random",
    sources={
        "task": "code: Gaussian blur of 1 voxel, cubic-spline zoom that keeps the corner voxels in place",
        "width": "code: 64 filters (its examples use 32)",
        "max_steps": "code: 20,000",
        "n_train": "ours: as SRCNN3D; the code's examples name KKI2009-33 and 34",
        "batch_size": "code: 64",
        "patch_size": "code: 21x21x21",
        "learning_rate": "code: Adam, 1e-3 in the solver generator's default (1e-4 in its template)",
        "loss": "code: squared error",
        "min_foreground": "code: patches of air are kept",
    },
    deviations=(
        "patches are drawn at random, where the code cuts them once at a stride of 10 voxels, 10 voxels off the "
        "faces of the first two axes",
        "the learning rate falls to zero by a cosine, where the code's falls to a tenth at step 10,000",
        "biases learn as fast as weights, where the code's learn at a tenth of the rate",
        "intensities are scaled by minimum and maximum of the network's input, where the code trains on those of "
        "the full-resolution scan and, at test time, divides by the maximum and clips below at the minimum",
        "odd sizes are not cut to a multiple of the factor before degrading",
    ),
)

RECNN_MULTI = dataclasses.replace(
    RECNN,
    name="recnn_multi",
    model_args={**RECNN.model_args, "in_channels": 2},
    patch_size=25,
    sources={**RECNN.sources, "patch_size": "code: 25x25x25 in the deployed network (21 in the generator's default)"},
)

SRCNN3D = dataclasses.replace(
    RECNN,
    name="srcnn3d",
    paper="Pham et al., ISBI 2017",
    model="srcnn3d",
    model_args={"kernels": (9, 1, 5)},
    max_steps=470_000,
    batch_size=256,
    patch_size=33,
    learning_rate=1e-4,
    schedule="constant",
    sources={
        **RECNN.sources,
        "width": "code: 64, 32 and 1 filters of 9, 1 and 5 voxels",
        "max_steps": "the published weights' file name (the code allows 1,500,000)",
        "n_train": "the file list stored in the published weights is named train10",
        "batch_size": "code",
        "patch_size": "code: 33x33x33",
        "learning_rate": "code: 1e-4",
    },
    deviations=(
        RECNN.deviations[0],
        *RECNN.deviations[2:],
        "Adam, which the code's instructions propose; its solver's default is SGD with momentum 0.9",
        "the loss covers the whole patch, where the code compares the inner 21x21x21 voxels only",
    ),
)

EXPERIMENTS = (RECNN, RECNN_MULTI, SRCNN3D)

_SMALL = {"width": 8, "n_train": 5, "max_steps": 200}
QUICK = {
    "recnn": {**_SMALL, "patch_size": 21, "batch_size": 8},
    "recnn_multi": {**_SMALL, "patch_size": 25, "batch_size": 4},
    "srcnn3d": {**_SMALL, "patch_size": 32, "batch_size": 2},
}
