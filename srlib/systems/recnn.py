"""SRReCNN3D, mono- and multimodal, and SRCNN3D: Pham et al., CMIG 2019 and ISBI 2017."""

from srlib.inference.prediction import SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import Training

RECNN = Experiment(
    name="recnn",
    paper="Pham et al., CMIG 2019 (HAL hal-01635455)",
    task="gaussian_x2_corners",
    network=Network("recnn", 64, {"layers": 10, "kernel": 3, "in_channels": 1, "residual": True}),
    examples=ScanPatches(patch_size=21, n_train=10, stride=10, border=(10, 10, 0)),
    training=Training(
        max_steps=20_000,
        batch_size=64,
        learning_rate=1e-3,
        loss="l2",
        bias_rate=0.1,
        schedule="step",
        schedule_args={"at": 0.5, "factor": 0.1},
    ),
    prediction=SameGrid(),
    sources={
        "task": "code: Gaussian blur of 1 voxel, cubic-spline zoom that keeps the corner voxels in "
        "place",
        "width": "code: 64 filters (its examples use 32)",
        "max_steps": "code: 20,000",
        "n_train": "ours: as SRCNN3D; the code's examples name KKI2009-33 and 34",
        "batch_size": "code: 64",
        "patch_size": "code: 21x21x21",
        "stride": "code: 10",
        "border": "code: 10, 10 and 0 voxels",
        "learning_rate": "code: Adam, 1e-3 in the solver generator's default (1e-4 in its "
        "template)",
        "bias_rate": "code: a tenth of the weights' rate",
        "schedule_args": "code: a tenth from step 10,000 of 20,000 on",
        "samples": "code: no limit by default",
        "loss": "code: squared error",
    },
    deviations=(
        "the last patch of each axis is moved back inside the scan, where the code leaves a rest "
        "at "
        "the far faces",
        "intensities are scaled by minimum and maximum of the network's input, where the code "
        "trains "
        "on those of the full-resolution scan and, at test time, divides by the maximum and clips "
        "below at the minimum",
    ),
)

RECNN_FREE = RECNN.variant("recnn_free", given=True)

RECNN_20 = RECNN.variant(
    "recnn_20",
    "each factor degrades the whole scan, where the code's second factor gets the scan that was "
    "cut for the first",
    more_tasks=("gaussian_x3_corners",),
    model_args={"layers": 20},
)

RECNN_MULTI = RECNN.variant(
    "recnn_multi",
    reference="t2",
    model_args={"in_channels": 2},
    patch_size=25,
    sources={
        "patch_size": "code: 25x25x25 in the deployed network (21 in the generator's default)",
    },
)

_GRID = (
    "the low-resolution grid keeps the field of view, where the code's keeps the corner voxels",
    "odd sizes are not cut to a multiple of the factor before degrading",
)
_ZERO = "the last layer starts at zero, so that training starts from the interpolated scan"
_COMMON = {"task": "gaussian_x2", "sources": {"task": "ours: common to all systems here"}}

# the same systems on the tasks common to all systems here
RECNN_X2, RECNN_X2_T2 = (
    published.variant(name, *_GRID, _ZERO, model_args={"zero_last": True}, **_COMMON)
    for published, name in ((RECNN, "recnn_x2"), (RECNN_MULTI, "recnn_x2_t2"))
)
# 20 layers do not leave the interpolated scan when they start from it
RECNN_X2X3 = RECNN_20.variant(
    "recnn_x2x3",
    *_GRID,
    more_tasks=("gaussian_x3",),
    model_args={"zero_last": False},
    **_COMMON,
)
RECNN_1X1X3 = RECNN_X2.variant("recnn_1x1x3", task="gaussian_1x1x3")
RECNN_X25 = RECNN_X2.variant("recnn_x2.5", task="gaussian_x2.5")

SRCNN3D = RECNN.variant(
    "srcnn3d",
    "Adam, which the code's instructions propose; its solver's default is SGD with momentum 0.9",
    "the loss covers the whole patch, where the code compares the inner 21x21x21 voxels only",
    paper="Pham et al., ISBI 2017",
    network=Network("srcnn3d", 64, {"kernels": (9, 1, 5)}),
    max_steps=470_000,
    batch_size=256,
    patch_size=33,
    learning_rate=1e-4,
    schedule="constant",
    schedule_args={},
    sources={
        "width": "code: 64, 32 and 1 filters of 9, 1 and 5 voxels",
        "max_steps": "the published weights' file name (the code allows 1,500,000)",
        "n_train": "the file list stored in the published weights is named train10",
        "batch_size": "code",
        "patch_size": "code: 33x33x33",
        "learning_rate": "code: 1e-4",
    },
)

EXPERIMENTS = (
    RECNN,
    RECNN_FREE,
    RECNN_20,
    RECNN_MULTI,
    RECNN_X2,
    RECNN_X2X3,
    RECNN_X2_T2,
    RECNN_1X1X3,
    RECNN_X25,
    SRCNN3D,
)

_SMALL = {
    "width": 16,
    "n_train": 5,
    "max_steps": 600,
    "samples": 200,
    "patch_size": 21,
    "batch_size": 2,
}
QUICK = {e.name: _SMALL for e in EXPERIMENTS}
# what the notebooks train, in this order
RUNS = {
    "paper": ("recnn", "recnn_20", "recnn_multi", "srcnn3d", "recnn_x2"),
    "quick": ("recnn_x2", "recnn_x2x3", "recnn_x2_t2"),
}
