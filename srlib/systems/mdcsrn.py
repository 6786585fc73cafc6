"""mDCSRN and mDCSRN-WGAN: Chen et al., MICCAI 2018, and the replicated code's variant."""

import dataclasses

from srlib.inference.prediction import SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import Training, Wasserstein

MDCSRN = Experiment(
    name="mdcsrn",
    paper="Chen et al., MICCAI 2018 (arXiv 1803.01417)",
    task="kspace_x2_inplane",
    network=Network("mdcsrn", 16, {"blocks": 4, "units": 4, "residual": False}),
    examples=ScanPatches(patch_size=64, n_train=780),
    training=Training(max_steps=500_000, batch_size=2, learning_rate=1e-4),
    prediction=SameGrid(),
    sources={
        "width": "paper: growth rate 16",
        "max_steps": "paper: 500k steps of the generator alone (250k in the replicated code)",
        "n_train": "paper: 780 of 1,113 HCP subjects",
        "batch_size": "paper",
        "patch_size": "paper: 64x64x64, non-overlapping",
        "learning_rate": "paper: Adam, 1e-4",
        "min_foreground": "ours: off, paper silent",
    },
    deviations=(
        "intensities are scaled to [0, 1] per scan by its own minimum and maximum, since the "
        "paper's "
        "division by 4095 fits 12-bit HCP scans only",
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
)

WGAN = Wasserstein(weight=1e-3, critic_steps=10_000, per_generator=7, extra_every=500, extra=200)

MDCSRN_WGAN = MDCSRN.variant(
    "mdcsrn_wgan",
    start="mdcsrn",
    game=WGAN,
    max_steps=550_000,
    learning_rate=5e-6,
    sources={
        "max_steps": "paper: 1,050,000 in all, 500,000 of them the generator alone",
        "learning_rate": "paper: Adam, 5e-6, both networks",
        "critic_steps": "paper: 10k",
        "game.weight": "paper: lambda = 0.001",
        "game.per_generator": "paper",
        "game.extra_every": "paper",
        "game.extra": "paper",
        "game.strength": "ours: 10, as Gulrajani et al., NeurIPS 2017; paper silent",
        "game.slope": "paper: the critic is SRGAN's, whose slope is 0.2 (the replicated code's "
        "slope "
        "of 1 is no activation)",
    },
)

MDCSRN_RES_WGAN = MDCSRN_RES.changed(
    name="mdcsrn_res_wgan",
    start="mdcsrn_res",
    game=WGAN,
    critic_steps=2_000,
    max_steps=50_000,
    learning_rate=1e-4,
    schedule="constant",
    sources={
        **MDCSRN_WGAN.sources,
        "max_steps": "ours",
        "learning_rate": "ours: 1e-4, so that short runs move both networks",
        "critic_steps": "ours",
        "min_foreground": MDCSRN_RES.sources["min_foreground"],
    },
    deviations=(*MDCSRN_RES.deviations, "both networks learn at 1e-4, constant"),
)

MDCSRN_F25 = MDCSRN.variant(
    "mdcsrn_f25",
    task="kspace_x5_inplane_12bit",
    intensity="12bit",
    given=True,
    max_steps=250_000,
    sources={"max_steps": "replicated code: 250k steps"},
    deviations=(
        "the replicated code's task, not the paper's: F = 2.5 keeps a fifth of the lines per "
        "in-plane axis, the input is divided by its own maximum and rounded to 12 bits, and both "
        "sides by 4095, so their scales differ",
    ),
)

MDCSRN_WGAN_CLIP = MDCSRN_F25.variant(
    "mdcsrn_wgan_clip",
    "weight clipping instead of the paper's gradient penalty, and no activation in the critic, as "
    "in the replicated code; its pre-training of the critic by cross-entropy is not repeated, and "
    "here the generator does move",
    start="mdcsrn_f25",
    game=dataclasses.replace(WGAN, constraint="clip", strength=0.01, slope=1.0),
    max_steps=300_000,
    learning_rate=5e-6,
    sources={
        **MDCSRN_WGAN.sources,
        "max_steps": "replicated code: 550k in all, 250k of them the generator alone",
        "game.strength": "replicated code: weights clipped to 0.01",
        "game.slope": "replicated code: LeakyReLU(1), the identity",
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

_SMALL = {"width": 8, "patch_size": 32, "batch_size": 2, "n_train": 5}
_GAN = {**_SMALL, "patch_size": 24, "critic_steps": 40, "max_steps": 160}
QUICK = {
    "mdcsrn": {**_SMALL, "max_steps": 60},
    "mdcsrn_res_kspace": {**_SMALL, "max_steps": 60},
    "mdcsrn_res": {**_SMALL, "max_steps": 150},
    "mdcsrn_wgan": _GAN,
    "mdcsrn_res_wgan": _GAN,
    "mdcsrn_f25": {**_SMALL, "max_steps": 60},
    "mdcsrn_wgan_clip": _GAN,
}
# what the notebooks train, in this order
RUNS = {
    # the 12-bit forms first: they refuse other scans at once
    "paper": ("mdcsrn_f25", "mdcsrn_wgan_clip", "mdcsrn", "mdcsrn_wgan", "mdcsrn_res"),
    "quick": ("mdcsrn", "mdcsrn_res_kspace", "mdcsrn_res", "mdcsrn_res_wgan"),
}
