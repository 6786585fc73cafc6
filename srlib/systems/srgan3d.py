"""3D-SRGAN: Sanchez & Vilaplana, MIDL 2018, and its code's variant."""

import dataclasses

from srlib.inference.prediction import CoarseToFine
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import LeastSquares, Supervised, Training

LSGAN = LeastSquares(weight=0.1, slope=0.3)

SRGAN3D = Experiment(
    name="srgan3d",
    paper="Sanchez & Vilaplana, MIDL 2018 (arXiv 1812.11440)",
    task="gaussian_x4_nearest",
    frame=(224, 224, 152),
    intensity="halfmax",
    network=Network("srgan3d", 32, {"blocks": 6, "factor": (4, 4, 4), "upsampler": "subpixel"}),
    examples=ScanPatches(
        patch_size=(128, 128, 92), n_train=470, stride=(112, 112, 76), per_patch=True
    ),
    training=Training(
        max_steps=18_800,
        batch_size=2,
        learning_rate=1e-4,
        loss="mse_gdl",
        schedule="inverse",
        schedule_args={"rate": 0.5, "every": 4920},
    ),
    game=LSGAN,
    prediction=CoarseToFine(),
    sources={
        "task": "code: Gaussian blur of 1 voxel, then every 4th voxel; its evaluation interpolates "
        "by "
        "cubic splines",
        "width": "paper: 32 filters",
        "max_steps": "code: 10 epochs of 470 volumes, 4 steps each",
        "n_train": "paper: 470 of 589 ADNI volumes",
        "batch_size": "paper: 2 of a volume's 8 patches per step",
        "patch_size": "paper: 128x128x92",
        "stride": "paper: 112x112x76",
        "frame": "paper: 224x224x152",
        "learning_rate": "code: Adam, 1e-4",
        "schedule_args": "code: 1e-4 / (1 + 0.5 step / 4920)",
        "game.weight": "code: 0.1",
        "game.slope": "code: 0.3",
        "loss": "paper: squared error and gradient difference",
    },
    deviations=(
        "the loss takes means: in the code's sums the adversarial weight of 0.1 is negligible (see "
        "srgan3d_code)",
        "labels are soft, and swapped in a tenth of all steps, as the paper means it; the code "
        "draws "
        "the swap once when it builds its graph and labels generated patches as real (see "
        "srgan3d_code)",
        "scans are degraded whole and then cut; the code degrades each patch",
        "patches come from four volumes at a time, where the code takes a volume's eight patches "
        "in "
        "their order",
    ),
)

# what the code does, where it contradicts the paper
SRGAN3D_CODE = SRGAN3D.variant(
    "srgan3d_code",
    loss="mse_gdl_sum",
    game=dataclasses.replace(LSGAN, labels="code"),
    deviations=SRGAN3D.deviations[2:],
)

_VOLUME = "intensities are scaled to [0, 1] per scan, where the code scales each patch to [-1, 1]"
_CENTRED = "the low-resolution grid keeps the field of view, sampled by cubic splines"

# the published form on the task common to all systems here
SRGAN3D_X2 = SRGAN3D.variant(
    "srgan3d_x2",
    task="gaussian_x2",
    model_args={"factor": (2, 2, 2)},
    patch_size=96,
    stride=None,
    frame=None,
    sampling="random",
    min_foreground=0.3,
    intensity="minmax",
    per_patch=False,
    sources={
        "task": "ours: common to all systems here",
        "patch_size": "ours: 96 voxels, drawn at random",
        "min_foreground": "ours: patches that are mostly air teach nothing",
    },
    deviations=(
        *SRGAN3D.deviations[:3],
        _VOLUME,
        _CENTRED,
        "patches are drawn at random, with at least 30 % foreground",
    ),
)

_RESIDUAL = (
    "the network predicts the difference to its cubically interpolated input (global residual), "
    "starting at zero",
    "Adam starts at 1e-3 and falls to zero by a cosine",
)

_NO_GAME = {
    name: source
    for name, source in SRGAN3D_X2.sources.items()
    if not name.startswith(("game", "schedule"))
}
SRGAN3D_RES = SRGAN3D_X2.changed(
    name="srgan3d_res_subpixel",
    model_args={**SRGAN3D_X2.network.model_args, "residual": True},
    game=Supervised(),
    learning_rate=1e-3,
    schedule="cosine",
    schedule_args={},
    sources={**_NO_GAME, "learning_rate": "ours: 1e-3, cosine to zero"},
    deviations=(
        SRGAN3D.deviations[0],
        *SRGAN3D_X2.deviations[2:],
        *_RESIDUAL,
        "no discriminator",
    ),
)
SRGAN3D_RES_NN, SRGAN3D_RES_RC = (
    SRGAN3D_RES.variant(f"srgan3d_res_{upsampler}", model_args={"upsampler": upsampler})
    for upsampler in ("subpixel_nn", "nn_resize")
)
SRGAN3D_RES_X4, SRGAN3D_RES_1X1X4 = (
    SRGAN3D_RES_NN.variant(
        f"srgan3d_res_{name}", task=f"gaussian_{name}", model_args={"factor": factor}
    )
    for name, factor in (("x4", (4, 4, 4)), ("1x1x4", (1, 1, 4)))
)

SRGAN3D_RES_GAN = SRGAN3D_RES_NN.changed(
    name="srgan3d_res_gan",
    start="srgan3d_res_subpixel_nn",
    game=LSGAN,
    learning_rate=1e-4,
    schedule="inverse",
    schedule_args=SRGAN3D.training.schedule_args,
    sources=SRGAN3D_X2.sources,
    deviations=(
        *SRGAN3D_X2.deviations,
        _RESIDUAL[0],
        "training goes on from the network trained without a discriminator",
    ),
)

EXPERIMENTS = (
    SRGAN3D, SRGAN3D_CODE, SRGAN3D_X2, SRGAN3D_RES, SRGAN3D_RES_NN, SRGAN3D_RES_RC, SRGAN3D_RES_X4,
    SRGAN3D_RES_1X1X4, SRGAN3D_RES_GAN,
)  # fmt: skip

_SMALL = {"width": 16, "n_train": 5, "patch_size": 32, "batch_size": 2}
QUICK = {
    e.name: {**_SMALL, "max_steps": 300 if e.game == Supervised() else 100} for e in EXPERIMENTS
}
# what the notebooks train, in this order
RUNS = {
    "paper": ("srgan3d", "srgan3d_code", "srgan3d_x2"),
    "quick": (
        "srgan3d_res_subpixel_nn",
        "srgan3d_x2",
        "srgan3d_res_subpixel",
        "srgan3d_res_nn_resize",
        "srgan3d_res_x4",
        "srgan3d_res_gan",
    ),
}
