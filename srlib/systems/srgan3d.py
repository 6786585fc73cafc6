"""3D-SRGAN: Sanchez & Vilaplana, MIDL 2018, and its code's variant."""

import dataclasses

from srlib.inference.prediction import CoarseToFine
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import LeastSquares, Supervised, Training

_MEANS = (
    "the loss takes means: in the code's sums the adversarial weight of 0.1 is negligible (see "
    "srgan3d_code)"
)
_LABELS = (
    "labels are soft, and swapped in a tenth of all steps; the code draws the swap once when it "
    "builds its graph, and labels generated patches as real (see srgan3d_code)"
)
_DECAY = (
    "the learning rate decays; the code writes this rule but passes its optimisers no step, so "
    "that its rate stays (see srgan3d_code)"
)
_BATCH = (
    "each input is blurred by itself; the code's blur also runs over the batch, so that an input "
    "is 65 % its own patch and 35 % the other (see srgan3d_code)"
)
_ORDER = (
    "patches come from four volumes at a time; the code takes a volume's eight patches in their "
    "order"
)
_SCALE = (
    "a prediction is scaled by half the maximum of the low-resolution scan; the code's test takes "
    "that of the true scan, as in training"
)
_DENSE = (
    "the discriminator's dense layers start as PyTorch's; the code's start, normal with std 0.1, "
    "gives scores of some tens"
)
_NORM = (
    "scales of batch norm start at 1 and its averages move once a step; in the code they start as "
    "N(1, 0.002) and move twice"
)

LSGAN = LeastSquares(weight=0.1, slope=0.3)

SRGAN3D = Experiment(
    name="srgan3d",
    paper="Sanchez & Vilaplana, MIDL 2018 (arXiv 1812.11440)",
    task="gaussian_x4_nearest",
    frame=(224, 224, 152),
    intensity="halfmax",
    fitted_on="truth",
    network=Network(
        "srgan3d",
        32,
        {"blocks": 6, "factor": (4, 4, 4), "upsampler": "subpixel", "up_width": 64},
    ),
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
    game=dataclasses.replace(LSGAN, critic_width=32),
    prediction=CoarseToFine(),
    sources={
        "task": "code, model.py, train: of each patch a Gaussian blur of 1 voxel, then "
        "zoom(1 / 4, order=0)",
        "intensity": "code, model.py, train: half the patch's maximum is subtracted, then divides",
        "width": "code, README.md: 32 filters by default",
        "blocks": "code, README.md: 6 residual blocks by default",
        "up_width": "code, model.py, generator: 64, whatever -feature_size is",
        "initialisation": "code, model.py, generator: convolutions N(0, 0.02), biases 0; ours: "
        "dense layers as PyTorch's",
        "batch_norm": "code, model.py, generator: TensorLayer's epsilon of 1e-5 and averages that "
        "keep 0.9, which are PyTorch's; the discriminator takes the batch at hand",
        "max_steps": "code, model.py, train: 10 epochs of 470 volumes, 4 steps each",
        "n_train": "code, README.md: 470 of 589 ADNI volumes",
        "batch_size": "code, README.md: 2 of a volume's 8 patches per step",
        "patch_size": "code, README.md: 128x128x92",
        "stride": "code, README.md: 112x112x76; dataset.py steps 96x96x60, to the same 8 patches",
        "frame": "code, README.md: 224x224x152",
        "learning_rate": "code, model.py, train: 1e-4",
        "optimizer": "code, model.py, train: Adam; its TensorFlow defaults are PyTorch's",
        "schedule_args": "code, model.py, train: 1e-4 / (1 + 0.5 step / 4920), as written",
        "loss": "paper, abstract: mean square error and image gradients",
        "game.weight": "code, model.py, train: 10e-2",
        "game.slope": "code, model.py, lrelu2: 0.3",
        "game.critic_width": "code, model.py, discriminator: 32, whatever -feature_size is",
        "game.batch_sigma": "ours: 0, the batch is not blurred",
    },
    deviations=(_MEANS, _LABELS, _DECAY, _BATCH, _ORDER, _SCALE, _DENSE, _NORM),
)

# the other two upsamplers, and the other factor, of the paper
SRGAN3D_NN, SRGAN3D_RC = (
    SRGAN3D.variant(f"srgan3d_{upsampler}", model_args={"upsampler": upsampler})
    for upsampler in ("subpixel_nn", "nn_resize")
)
SRGAN3D_TWO = SRGAN3D.variant(
    "srgan3d_nearest_x2", task="gaussian_x2_nearest", model_args={"factor": (2, 2, 2)}
)

# what the code does, where it contradicts the paper or itself
SRGAN3D_CODE = SRGAN3D.variant(
    "srgan3d_code",
    loss="mse_gdl_sum",
    schedule="constant",
    schedule_args={},
    labels="code",
    batch_sigma=1.0,
    sources={
        "loss": "code, model.py, train: sums over the batch",
        "schedule_args": "code, model.py, train: none, as global_step never moves",
        "game.batch_sigma": "code, model.py, train: gaussian_filter(sigma=1) of the whole batch",
    },
    deviations=SRGAN3D.deviations[4:],
)

_OURS = (
    _MEANS,
    _BATCH,
    _NORM,
    "scans are degraded whole and then cut; the code degrades each patch",
    "intensities are scaled to [0, 1] per scan, where the code scales each patch to [-1, 1]",
    "the low-resolution grid keeps the field of view, sampled by cubic splines",
    "patches are drawn at random, with at least 30 % foreground",
)
_PUBLISHED = ("frame", "stride", "up_width", "game.critic_width")  # of that form alone

# the published form on the task common to all systems here
SRGAN3D_X2 = SRGAN3D.changed(
    name="srgan3d_x2",
    task="gaussian_x2",
    network=Network("srgan3d", 32, {"blocks": 6, "factor": (2, 2, 2), "upsampler": "subpixel"}),
    game=LSGAN,
    patch_size=96,
    stride=None,
    frame=None,
    sampling="random",
    min_foreground=0.3,
    intensity="minmax",
    fitted_on="input",
    per_patch=False,
    sources={name: text for name, text in SRGAN3D.sources.items() if name not in _PUBLISHED}
    | {
        "task": "ours: common to all systems here",
        "intensity": "ours: [0, 1], common to all systems here",
        "patch_size": "ours: 96 voxels, drawn at random",
        "min_foreground": "ours: patches that are mostly air teach nothing",
    },
    deviations=(*_OURS, _LABELS, _DECAY, _DENSE),
)

_RESIDUAL = (
    "the network predicts the difference to its cubically interpolated input (global residual), "
    "starting at zero",
    "Adam starts at 1e-3 and falls to zero by a cosine",
)
_ZERO = "ours: as published, but the last convolution starts at zero"

SRGAN3D_RES = SRGAN3D_X2.changed(
    name="srgan3d_res_subpixel",
    model_args={**SRGAN3D_X2.network.model_args, "residual": True},
    game=Supervised(),
    learning_rate=1e-3,
    schedule="cosine",
    schedule_args={},
    sources={
        name: text
        for name, text in SRGAN3D_X2.sources.items()
        if not name.startswith(("game", "schedule"))
    }
    | {"learning_rate": "ours: 1e-3, cosine to zero", "initialisation": _ZERO},
    deviations=(*_OURS, *_RESIDUAL, "no discriminator"),
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
    sources={**SRGAN3D_X2.sources, "initialisation": _ZERO},
    deviations=(
        *SRGAN3D_X2.deviations,
        _RESIDUAL[0],
        "training goes on from the network trained without a discriminator",
    ),
)

EXPERIMENTS = (
    SRGAN3D, SRGAN3D_NN, SRGAN3D_RC, SRGAN3D_TWO, SRGAN3D_CODE, SRGAN3D_X2, SRGAN3D_RES,
    SRGAN3D_RES_NN, SRGAN3D_RES_RC, SRGAN3D_RES_X4, SRGAN3D_RES_1X1X4, SRGAN3D_RES_GAN,
)  # fmt: skip

_SMALL = {"width": 16, "n_train": 5, "patch_size": 32, "batch_size": 2}
QUICK = {
    e.name: {**_SMALL, "max_steps": 300 if e.game == Supervised() else 100} for e in EXPERIMENTS
} | {e.name: {**_SMALL, "max_steps": 100, "stride": 32} for e in EXPERIMENTS if e.frame}
# what the notebooks train, in this order
RUNS = {
    "paper": (*(e.name for e in EXPERIMENTS if e.frame), "srgan3d_x2"),
    "quick": (
        "srgan3d_res_subpixel_nn",
        "srgan3d_x2",
        "srgan3d_res_subpixel",
        "srgan3d_res_nn_resize",
        "srgan3d_res_x4",
        "srgan3d_res_gan",
    ),
}
