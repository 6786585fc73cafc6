"""Ours: one network for every degradation, told the factor, blind to the rest."""

from srlib.experiments.base import Acquisition, Experiment, Generation, Mixture

ROBUST = Experiment(
    name="robust",
    paper="ours; scans are painted as in Iglesias et al., NeuroImage 2021",
    task="gaussian_x2",
    model="robust",
    width=32,
    model_args={"blocks": 8},
    max_steps=7_000,
    n_train=8,
    batch_size=8,
    patch_size=32,
    samples=27,
    learning_rate=1e-3,
    schedule="cosine",
    loss="log_mse",
    precision="bf16-mixed",
    generation=Generation((Acquisition("t1"),), blur_all=False, reliability=False),
    mixture=Mixture(),
    sources={
        "task": "ours: what it is used for when nothing else is said; it is trained on the mixture",
        "width": "ours: 32 feature maps, which keep the weights under 2 MB",
        "max_steps": "ours: an hour on two cores",
        "n_train": "ours: all label maps at hand",
        "batch_size": "ours: 8 patches",
        "patch_size": "ours: 32",
        "samples": "ours: 27 patches of each painted scan",
        "learning_rate": "ours: Adam, 1e-3, cosine to zero",
        "loss": "ours: the logarithm of a patch's squared error",
        "mixture": "ours",
    },
    deviations=(
        "the scan that SynthSR paints is the truth, and is degraded by the same degradations as all systems here",
        "the built-in tissue maps are not trained on, as they show the anatomy that is tested on",
    ),
)
EXPERIMENTS = (ROBUST,)
QUICK = {"robust": {"width": 16, "max_steps": 200}}
