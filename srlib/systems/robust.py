"""Ours: one network for every degradation, which knows the factor and is blind to the rest."""

import dataclasses

from srlib.inference.any_factor import AnyFactor
from srlib.models.network import Network
from srlib.synthesis.settings import Acquisition, Generation
from srlib.systems.base import Experiment
from srlib.training.games import Training
from srlib.training.mixture import Mixture
from srlib.training.synthetic import RandomDegradations

MIXTURE = Mixture()

ROBUST_BASE = Experiment(
    name="robust_base",
    paper="ours; synthetic scans as in Iglesias et al., NeuroImage 2021",
    task="gaussian_x2",
    network=Network("robust", 32, {"blocks": 8}),
    examples=RandomDegradations(
        patch_size=32,
        n_train=8,
        samples=27,
        generation=Generation((Acquisition("t1"),), blur_all=False, reliability=False),
        mixture=MIXTURE,
    ),
    training=Training(
        max_steps=7_000,
        batch_size=8,
        learning_rate=1e-3,
        loss="log_mse",
        schedule="cosine",
        precision="bf16-mixed",
    ),
    prediction=AnyFactor(MIXTURE.isotropic, MIXTURE.thick),
    sources={
        "task": "ours: what it is used for when nothing else is said; it is trained on the mixture",
        "intensity": "ours: minimum and maximum of the input, as for most systems here",
        "width": "ours: 32 feature maps, which keep the weights under 2 MB",
        "blocks": "ours: 8, which keep a scan at minutes on two cores",
        "initialisation": "ours: He normal; filters and output of zeros",
        "max_steps": "ours: an hour on two cores",
        "n_train": "ours: all label maps at hand",
        "batch_size": "ours: 8 patches",
        "patch_size": "ours: 32",
        "samples": "ours: 27 patches of each synthetic scan",
        "optimizer": "ours: Adam",
        "learning_rate": "ours: 1e-3, cosine to zero",
        "loss": "ours: the logarithm of a patch's squared error",
        "generation": "ours: SynthSR's numbers, but that slices are not blurred along other axes",
        "mixture": "ours: what scanners and resampling do, see training/mixture.py",
    },
    deviations=(
        "SynthSR's synthetic scan is the truth, and is degraded by the same degradations as all "
        "systems here",
        "the built-in tissue maps are not trained on, as they show the anatomy that is tested on",
    ),
)
# goes on where mild degradations count more, truths may be softer, and descriptions are less exact
ROBUST = ROBUST_BASE.variant(
    "robust",
    start="robust_base",
    max_steps=1_600,
    learning_rate=3e-4,
    loss="log_mse_50db",
    mixture=dataclasses.replace(MIXTURE, soft=0.8, jitter=(0.05, 0.03, 0.1, 0.2)),
    sources={
        "max_steps": "ours: ten minutes on two cores",
        "learning_rate": "ours: Adam, 3e-4, cosine to zero",
        "loss": "ours: the logarithm of a patch's squared error, down to 50 dB",
    },
)
EXPERIMENTS = (ROBUST_BASE, ROBUST)
QUICK = {e.name: {"width": 16, "max_steps": 200} for e in EXPERIMENTS}
RUNS = {"quick": ()}  # it comes trained
