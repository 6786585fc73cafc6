"""Ours: one network for every degradation, told the factor, blind to the rest."""

from srlib.experiments.base import Acquisition, Experiment, Generation, Mixture

ROBUST = Experiment(
    name="robust",
    paper="ours; examples are painted as in Iglesias et al., NeuroImage 2021",
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
    generation=Generation((Acquisition("t1"),), blur_all=False, bias_std=0.3, reliability=False),
    mixture=Mixture(),
)
EXPERIMENTS = (ROBUST,)
QUICK = {"robust": {"max_steps": 200, "width": 16}}
