"""What SynthSR's published weights belong to: Iglesias et al., NeuroImage 2021."""

from srlib.experiments.base import Experiment

# not among EXPERIMENTS: it describes weights that others trained on synthetic scans, and cannot be trained from pairs
SYNTHSR_PUBLISHED = Experiment(
    name="synthsr_published",
    paper="Iglesias et al., NeuroImage 2021; Science Advances 2023",
    task="gaussian_1x1x3",
    model="unet3d",
    width=24,
    model_args={"levels": 5, "in_channels": 1, "out_channels": 1},
    max_steps=200_000,
    n_train=5,
    batch_size=1,
    patch_size=128,
    learning_rate=1e-4,
    sampling="random",
    sources={
        "task": "ours, for comparison with other systems: these weights take scans of any contrast and resolution",
        "width": "paper: 24 features",
        "max_steps": "code: 200 epochs of 1,000 steps, as its tutorial advises; that of the weights is not stated",
        "n_train": "code: 5 label maps in its tutorial; those behind the weights are not public",
        "batch_size": "code: 1",
        "patch_size": "code: 128 in its tutorial",
        "learning_rate": "code: Adam, 1e-4",
        "loss": "code: absolute error",
    },
    deviations=("the weights were trained by their authors, on synthetic scans drawn from label maps, not on pairs",),
)
