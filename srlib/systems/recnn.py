"""SRReCNN3D, mono- and multimodal, and SRCNN3D: Pham et al., CMIG 2019 and ISBI 2017."""

from srlib.inference.prediction import AboveMinimum, SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import Training

_SOURCES = {
    "task": "code, generate_training.py: the whole scan is blurred by 1 voxel, cut to a multiple "
    "of the factor, and zoomed down and up by a cubic spline that keeps the corner voxels in place",
    "intensity": "code, utils/utils3d.py, imadjust3D: minimum and maximum to 0 and 1",
    "fitted_on": "code, generate_training.py: those of the full-resolution scan",
    "loss": "code, model/SRReCNN3D_net.py, SRReCNN3D_net: Caffe's EuclideanLoss",
    "n_train": "ours: as SRCNN3D; the code's examples name KKI2009-33 and 34",
    "stride": "code, generate_training.py: 10",
    "border": "code, generate_training.py: 10, 10 and 0 voxels",
    "samples": "code, generate_training.py: no limit by default",
    "bias_rate": "code, model/SRReCNN3D_net.py, SRReCNN3D_net: a tenth of the weights' rate",
}

RECNN = Experiment(
    name="recnn",
    paper="Pham et al., CMIG 2019 (HAL hal-01635455)",
    task="gaussian_x2_corners",
    fitted_on="truth",
    network=Network("recnn", 64, {"layers": 10, "kernel": 3, "in_channels": 1, "residual": True}),
    examples=ScanPatches(patch_size=21, n_train=10, stride=10, border=(10, 10, 0)),
    training=Training(
        max_steps=20_000,
        batch_size=64,
        learning_rate=1e-3,
        loss="euclidean",
        bias_rate=0.1,
        schedule="step",
        schedule_args={"at": 0.5, "factor": 0.1},
    ),
    prediction=AboveMinimum(),
    sources={
        **_SOURCES,
        "width": "code, generate_training.py: 64 filters (the examples of its readme: 32)",
        "layers": "code, generate_training.py: 10",
        "kernel": "code, generate_training.py: 3x3x3",
        "initialisation": "code, model/SRReCNN3D_net.py, SRReCNN3D_net: normal, std sqrt(2 / (k^3 "
        "n)) with n input channels; biases 0",
        "max_steps": "code, generate_solver.py: 20,000",
        "batch_size": "code, generate_training.py: 64",
        "patch_size": "code, generate_training.py: 21x21x21",
        "optimizer": "code, generate_solver.py: Adam",
        "learning_rate": "code, generate_solver.py: 0.001 by default (0.0001 in its template)",
        "schedule_args": "code, generate_solver.py: a tenth from step 10,000 of 20,000 on",
    },
    deviations=(
        "the last patch of each axis is moved back inside the scan, where the code leaves a rest "
        "at the far faces",
        "a scan that does not begin at 0 is shifted there, as in training, where the code's test "
        "scripts divide by the maximum alone",
        "the result's affine says where its voxels lie, where the code divides the spacing by the "
        "factor and keeps the origin",
    ),
)

RECNN_FREE = RECNN.variant(
    "recnn_free",
    "a given scan is placed by its affine, where the code stretches it to the shape of the "
    "reference",
    given=True,
    fitted_on="each",
    sources={"fitted_on": "code, generate_training_free.py: each side's own"},
)

RECNN_20 = RECNN.variant(
    "recnn_20",
    "each factor degrades the whole scan, where the code's second factor gets the scan that was "
    "cut for the first",
    "a limit of samples holds for each factor, where the code's holds for all of a scan's together",
    more_tasks=("gaussian_x3_corners",),
    model_args={"layers": 20},
    sources={"layers": "code, SRReCNN3D/readme.md: 20 for factors 2 and 3"},
)

RECNN_MULTI = RECNN.variant(
    "recnn_multi",
    "the reference is brought onto the scan's grid by its affine and scaled to 0 and 1, where the "
    "code takes an array of the same shape and divides it by its maximum",
    reference="t2",
    model_args={"in_channels": 2},
    patch_size=25,
    sources={
        "patch_size": "code, MultiSRReCNN3D_10L_deploy.prototxt: 25x25x25 (21 in the generator's "
        "default)",
    },
)

_GRID = (
    "the low-resolution grid keeps the field of view, where the code's keeps the corner voxels",
    "odd sizes are not cut to a multiple of the factor, and axes of factor 1 are not blurred",
    "intensities are scaled by minimum and maximum of the network's input, in training too, and "
    "results are not clipped",
    "the loss is a mean over voxels, where Caffe's is half the sum over a patch",
)
_ZERO = "the last layer starts at zero, so that training starts from the interpolated scan"
_OURS = {
    "task": "ours: common to all systems here",
    "fitted_on": "ours: the range that is known at prediction",
    "loss": "ours: squared error, mean over voxels; Adam does not feel the factor",
}
_COMMON = {
    "task": "gaussian_x2",
    "fitted_on": "input",
    "loss": "l2",
    "prediction": SameGrid(),
}

# the same systems on the tasks common to all systems here
RECNN_X2, RECNN_X2_T2 = (
    published.variant(
        name,
        *_GRID,
        _ZERO,
        model_args={"zero_last": True},
        sources={
            **_OURS,
            "initialisation": "ours: the last layer at zero, the others as in the code",
        },
        **_COMMON,
    )
    for published, name in ((RECNN, "recnn_x2"), (RECNN_MULTI, "recnn_x2_t2"))
)
# 20 layers do not leave the interpolated scan when they start from it
RECNN_X2X3 = RECNN_20.variant(
    "recnn_x2x3",
    *_GRID,
    more_tasks=("gaussian_x3",),
    model_args={"zero_last": False},
    sources=_OURS,
    **_COMMON,
)
RECNN_1X1X3 = RECNN_X2.variant("recnn_1x1x3", task="gaussian_1x1x3")
RECNN_X25 = RECNN_X2.variant("recnn_x2.5", task="gaussian_x2.5")

SRCNN3D = RECNN.changed(
    name="srcnn3d",
    paper="Pham et al., ISBI 2017",
    network=Network("srcnn3d", 64, {"kernels": (9, 1, 5)}),
    max_steps=470_000,
    batch_size=256,
    patch_size=33,
    optimizer="sgd",
    learning_rate=1e-4,
    schedule="constant",
    schedule_args={},
    loss_crop=21,
    sources={
        **_SOURCES,
        "width": "code, model/SRCNN3D_net.py, SRCNN3D: 64, 32 and 1 filters",
        "kernels": "code, generate_training.py: 9, 1 and 5 by default; also 9-3-5 and 9-5-5",
        "initialisation": "code, model/SRCNN3D_net.py, SRCNN3D: normal, std 0.001; biases 0",
        "max_steps": "code, SRCNN3D_iter_470000.caffemodel: its name (the solver's file allows "
        "1,500,000, its generator 150,000)",
        "n_train": "code, SRCNN3D_iter_470000.caffemodel: its list of files is named train10",
        "batch_size": "code, generate_training.py: 256",
        "patch_size": "code, generate_training.py: 33x33x33",
        "loss": "code, model/SRCNN3D_net.py, SRCNN3D: Caffe's EuclideanLoss",
        "loss_crop": "code, generate_training.py: the label is the inner 21x21x21 voxels",
        "optimizer": "code, model/SRCNN3D_solver.prototxt: SGD with momentum 0.9 (Adam in the "
        "readme)",
        "learning_rate": "code, model/SRCNN3D_solver.prototxt: 0.0001, fixed",
        "bias_rate": "code, model/SRCNN3D_net.py, SRCNN3D: a tenth of the weights' rate",
    },
    deviations=(
        *RECNN.deviations,
        "every layer sees the outermost voxels repeated beyond the faces, as in the code's CPU "
        "script; its GPU script repeats those of the input only",
    ),
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
