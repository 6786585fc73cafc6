"""mDCSRN and mDCSRN-WGAN: Chen et al., MICCAI 2018, and the replicated code's variant."""

import dataclasses

from srlib.inference.prediction import SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import Training, Wasserstein

_WHOLE = "scans are predicted whole, not in stitched patches with a margin of 3 voxels"

MDCSRN = Experiment(
    name="mdcsrn",
    paper="Chen et al., MICCAI 2018 (arXiv 1803.01417)",
    task="kspace_x2_inplane",
    network=Network("mdcsrn", 16, {"blocks": 4, "units": 4, "residual": False}),
    examples=ScanPatches(patch_size=64, n_train=780),
    training=Training(max_steps=500_000, batch_size=2, learning_rate=1e-4),
    prediction=SameGrid(),
    sources={
        "task": "paper, place not checked: F = 4, 256x160x160 samples kept (so quoted in "
        "loaddata.ipynb and main.ipynb of the code)",
        "intensity": "ours: minimum and maximum of the input; code, patchloader.py, Patch: / 4095",
        "width": "paper, Fig. 1: k = 16",
        "blocks": "paper, Fig. 1: b4u4, 4 blocks",
        "units": "paper, Fig. 1: b4u4, 4 units in each",
        "initialisation": "code, mDCSRN_WGAN.py, Generator: Kaiming normal convolutions, batch "
        "norm 1 and 0; paper silent",
        "batch_norm": "code, mDCSRN_WGAN.py, _DenseLayer: PyTorch's, momentum 0.1, epsilon 1e-5",
        "loss": "paper, place not checked: L1 (code, main.ipynb: the same)",
        "optimizer": "paper, place not checked: Adam (code, training_pre.py: the same, defaults)",
        "learning_rate": "paper, place not checked: 1e-4 (so quoted in main.ipynb of the code)",
        "max_steps": "paper, place not checked: 500,000 (so quoted in main.ipynb of the code)",
        "batch_size": "paper, place not checked: 2 (so quoted in main.ipynb of the code)",
        "patch_size": "paper, place not checked: 64x64x64 (code, main.ipynb: the same)",
        "n_train": "paper, place not checked: 780 of the abstract's 1,113 subjects (code, "
        "main.ipynb: the same)",
        "min_foreground": "ours: off, paper silent",
    },
    deviations=(
        "intensities are scaled to [0, 1] per scan by its own minimum and maximum, since the "
        "paper's division by 4095 fits 12-bit HCP scans only",
        _WHOLE,
    ),
)

MDCSRN_RES_KSPACE = MDCSRN.variant(
    "mdcsrn_res_kspace",
    "the network predicts the difference to its input (global residual), starting at zero",
    "Adam starts at 1e-3 and falls to zero by a cosine; patches are drawn at random, with at least "
    "30 % foreground",
    model_args={"residual": True},
    learning_rate=1e-3,
    schedule="cosine",
    sampling="random",
    min_foreground=0.3,
    max_steps=50_000,
    sources={
        "initialisation": "ours: as mdcsrn, but the last convolution starts at zero",
        "max_steps": "ours: the residual form starts at its input and needs fewer",
        "learning_rate": "ours: 1e-3, cosine to zero",
        "min_foreground": "ours: patches that are mostly air teach nothing",
    },
)

MDCSRN_RES = MDCSRN_RES_KSPACE.variant(
    "mdcsrn_res",
    "the common task of all systems here: Gaussian blur and x2 down-sampling, input interpolated "
    "by cubic splines",
    task="gaussian_x2",
    sources={"task": "ours: common to all systems here"},
)

# the critic's start is PyTorch's own
WGAN = Wasserstein(weight=1e-3, critic_steps=10_000, per_generator=7, extra_every=500, extra=200)

_GAME = {
    "critic_steps": "paper, place not checked: 10,000 (so quoted in main.ipynb of the code)",
    "game.weight": "paper, place not checked: lambda = 0.001 (code, WGAN_GP.py: the same)",
    "game.per_generator": "paper, place not checked: 7 (code, main.ipynb: the same)",
    "game.extra_every": "paper, place not checked: 500 (code, main.ipynb: the same)",
    "game.extra": "paper, place not checked: 200 (code, main.ipynb: the same)",
    "game.constraint": "paper, place not checked: gradient penalty",
    "game.strength": "ours: 10, as Gulrajani et al., NeurIPS 2017; paper silent",
    "game.slope": "ours: 0.2, that of SRGAN's discriminator, on which the critic is built "
    "(code, mDCSRN_WGAN.py, Discriminator: 1, no activation)",
    "game.critic_std": "code, main.ipynb, weights_init: N(0, 0.02), layer normalisation "
    "N(1, 0.02); paper silent",
    "game.generator_mode": "ours: the critic judges what users would get",
}

MDCSRN_WGAN = MDCSRN.variant(
    "mdcsrn_wgan",
    start="mdcsrn",
    game=dataclasses.replace(WGAN, critic_std=0.02),
    max_steps=550_000,
    learning_rate=5e-6,
    sources={
        "max_steps": "paper, place not checked: 1,050,000 in all, 500,000 of them the generator "
        "alone (so quoted in main.ipynb of the code)",
        "learning_rate": "paper, place not checked: 5e-6, both networks (so quoted in main.ipynb "
        "of the code)",
        **_GAME,
    },
)

MDCSRN_RES_WGAN = MDCSRN_RES.variant(
    "mdcsrn_res_wgan",
    "both networks learn at 1e-4, constant",
    start="mdcsrn_res",
    game=WGAN,
    critic_steps=2_000,
    learning_rate=1e-4,
    schedule="constant",
    sources={
        **_GAME,
        "max_steps": "ours: short",
        "learning_rate": "ours: 1e-4, so that short runs move both networks",
        "critic_steps": "ours: a share of the short run",
        "game.critic_std": "ours: PyTorch's own start",
    },
)

MDCSRN_F25 = MDCSRN.variant(
    "mdcsrn_f25",
    task="kspace_x5_inplane_12bit",
    intensity="12bit",
    given=True,
    mixed=False,
    max_steps=250_000,
    sources={
        "task": "code, kspace.m: F = 2.5, 64 of 320 lines kept",
        "intensity": "code, patchloader.py, Patch: / 4095",
        "mixed": "code, patchloader.py, patching: SequentialSampler serves the patches in order",
        "max_steps": "code, main.ipynb: num_steps_pre = 250,000",
    },
    deviations=(
        "the replicated code's task, not the paper's: F = 2.5 keeps a fifth of the lines per "
        "in-plane axis, the input is divided by its own maximum and rounded to 12 bits, and both "
        "sides by 4095, so their scales differ",
        "patches are served scan by scan in their order, as in the replicated code",
        _WHOLE,
    ),
)

MDCSRN_WGAN_CLIP = MDCSRN_F25.variant(
    "mdcsrn_wgan_clip",
    "weight clipping instead of the paper's gradient penalty, and no activation in the critic, as "
    "in the replicated code",
    "the replicated code's pre-training of the critic by cross-entropy is not repeated",
    "the generator does move; in the replicated code it never did",
    start="mdcsrn_f25",
    game=MDCSRN_WGAN.game,
    constraint="clip",
    strength=0.01,
    slope=1.0,
    generator_mode="train",
    max_steps=200_000,
    learning_rate=5e-6,
    sources={
        **_GAME,
        "critic_steps": "code, main.ipynb: first_steps = 10,000",
        "learning_rate": "code, main.ipynb: lr = 5e-6",
        "max_steps": "code, main.ipynb: num_steps = 450,000, 250,000 of them the generator alone "
        "(550,000 by default in WGAN_GP.py)",
        "game.constraint": "code, WGAN_GP.py, updateD: weights are clamped",
        "game.strength": "code, WGAN_GP.py, updateD: weights are clamped to 0.01",
        "game.slope": "code, mDCSRN_WGAN.py, Discriminator: LeakyReLU(1), the identity",
        "game.generator_mode": "code, WGAN_GP.py, training: train() for both networks",
    },
)

EXPERIMENTS = (
    MDCSRN,
    MDCSRN_RES_KSPACE,
    MDCSRN_RES,
    MDCSRN_WGAN,
    MDCSRN_RES_WGAN,
    MDCSRN_F25,
    MDCSRN_WGAN_CLIP,
)

_SMALL = {"width": 8, "patch_size": 32, "batch_size": 2, "n_train": 5, "max_steps": 60}
_GAN = {**_SMALL, "patch_size": 24, "critic_steps": 40, "max_steps": 160}
QUICK = {e.name: _GAN if e.start else _SMALL for e in EXPERIMENTS}
QUICK["mdcsrn_res"] = {**_SMALL, "max_steps": 150}
# what the notebooks train, in this order
RUNS = {
    # the 12-bit forms first: they refuse other scans at once
    "paper": ("mdcsrn_f25", "mdcsrn_wgan_clip", "mdcsrn", "mdcsrn_wgan", "mdcsrn_res"),
    "quick": ("mdcsrn", "mdcsrn_res_kspace", "mdcsrn_res", "mdcsrn_res_wgan"),
}
