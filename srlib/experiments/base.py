"""What an experiment is, and the tasks that experiments share."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

# name -> (degradation, its settings); a task's name is the `degradation` column of results
TASKS: dict[str, tuple[str, dict]] = {
    "gaussian_x2": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0}),
    "gaussian_x2_corners": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0, "align": "corners"}),
    "kspace_x2_inplane": ("kspace", {"factor": (1, 2, 2)}),
    "kspace_x5_inplane_12bit": ("kspace", {"factor": (1, 5, 5), "stored_12bit": True}),
}


@dataclass(frozen=True)
class Adversarial:
    """How a critic is trained beside the generator.

    A step is one update of either of the two in the Wasserstein game, and one of each in the least-squares game,
    to which the critic's own steps, constraint and strength do not apply.
    """

    weight: float  # of the adversarial term in the generator's loss
    per_generator: int = 0  # critic steps for each generator step
    extra_every: int = 1  # after so many steps ...
    extra: int = 0  # ... so many more critic steps
    constraint: str = "penalty"  # gradient penalty, or "clip" the critic's weights
    strength: float = 10.0  # of the penalty; the bound of the weights where they are clipped
    slope: float = 0.2  # of the critic's LeakyReLU
    game: str = "wasserstein"  # or "least_squares"
    labels: str = "per_step"  # rule of losses.draw_labels, of the least-squares game


@dataclass(frozen=True)
class Experiment:
    """A published system on a task, with the source of each number and the deviations from the paper."""

    name: str
    paper: str
    task: str  # key of TASKS
    model: str  # key of models.MODELS
    width: int  # the network's base number of feature maps (growth rate, filters)
    max_steps: int
    n_train: int  # training subjects, at most
    batch_size: int  # patches per step
    patch_size: int  # voxels per axis
    learning_rate: float
    model_args: Mapping[str, object] = field(default_factory=dict)
    start: str = ""  # experiment whose trained weights the generator starts from
    adversarial: Adversarial | None = None
    critic_steps: int = 0  # steps of the critic alone, at first
    contrast: str = "t1"  # manifest column
    loss: str = "l1"  # key of losses.LOSSES
    schedule: str = "constant"  # or "cosine", to zero at max_steps
    sampling: str = "grid"  # non-overlapping patches, or "random" ones
    min_foreground: float = 0.0  # random patches are redrawn below this share of non-background voxels
    intensity: str = "minmax"  # rule of volume.fit_scaling, fitted on the network's input
    given: bool = False  # the manifest's lr column, where filled, is the low-resolution scan
    sources: Mapping[str, str] = field(default_factory=dict)  # number -> "paper", "code" or "ours: ..."
    deviations: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All fields that decide what is computed, as canonical JSON (prose left out)."""
        fields = dataclasses.asdict(self)
        for prose in ("paper", "sources", "deviations"):
            del fields[prose]
        return json.dumps({**fields, "task_settings": TASKS[self.task]}, sort_keys=True)
