"""What an experiment is, and the tasks that experiments share."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import get_args, get_origin

from srlib.paths import InputError, choose

# name -> (degradation, its settings); a task's name is the `degradation` column of results
TASKS: dict[str, tuple[str, dict]] = {
    "gaussian_x2": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0}),
    "gaussian_x2.5": ("gaussian", {"factor": (2.5, 2.5, 2.5), "sigma": 1.0}),
    "gaussian_x3": ("gaussian", {"factor": (3, 3, 3), "sigma": 1.0}),
    "gaussian_x4": ("gaussian", {"factor": (4, 4, 4), "sigma": 1.0}),
    "gaussian_1x1x4": ("gaussian", {"factor": (1, 1, 4), "sigma": 1.0}),
    "gaussian_1x1x3": ("gaussian", {"factor": (1, 1, 3), "sigma": 1.0}),
    "thick_1x1x3": ("gaussian", {"factor": (1, 1, 3), "sigma": 1.26}),  # SynthSR's slice profile: 0.42 x 3 mm, at 1 mm
    "thick_1x1x5": ("gaussian", {"factor": (1, 1, 5), "sigma": 2.1}),
    "gaussian_x2_sigma0.5": ("gaussian", {"factor": (2, 2, 2), "sigma": 0.5}),
    "gaussian_x2_sigma2": ("gaussian", {"factor": (2, 2, 2), "sigma": 2.0}),
    "gaussian_x2_noise": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0, "noise": 0.02}),
    "block_x2": ("block", {"factor": (2, 2, 2)}),
    "gaussian_x2_corners": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0, "align": "corners", "whole": True}),
    "gaussian_x3_corners": ("gaussian", {"factor": (3, 3, 3), "sigma": 1.0, "align": "corners", "whole": True}),
    "gaussian_x4_corners": ("gaussian", {"factor": (4, 4, 4), "sigma": 1.0, "align": "corners"}),
    "gaussian_x4_nearest": ("gaussian", {"factor": (4, 4, 4), "sigma": 1.0, "align": "corners", "order": 0}),
    "scanline_x4": ("scanline", {"factor": 4}),
    "sparse_view_x16": ("sparse_view", {"factor": 16, "views": 1000}),
    "kspace_x2_inplane": ("kspace", {"factor": (1, 2, 2)}),
    "kspace_x2_3d": ("kspace", {"factor": (2, 2, 2)}),
    "kspace_x5_inplane_12bit": ("kspace", {"factor": (1, 5, 5), "stored_12bit": True}),
}

# what fields of that name may say; those of other names lead to tables in upper rooms
CHOICES: dict[str, tuple[str, ...]] = {
    "sampling": ("grid", "random"),
    "intensity": ("minmax", "max", "12bit", "halfmax", "hu"),
    "output": ("scan", "unit", "synthsr", "hyperfine"),
    "precision": ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"),
    "game": ("wasserstein", "least_squares", "cross_entropy"),
    "constraint": ("penalty", "clip"),
    "labels": ("per_step", "code", "hard"),
    "moves": ("both", "critic"),
    "distribution": ("normal", "uniform"),
}
# the least and the greatest of numbers, where that is not 0 and any finite one
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("max_steps", "n_train", "batch_size", "width", "patch_size"), (1, math.inf)),
    **dict.fromkeys(("stride", "frame", "samples", "loss_crop", "extra_every"), (1, math.inf)),
    "spacing_mm": (1e-3, math.inf),
    "min_foreground": (0, 1),
}


def _fits(value: object, kind: object, low: float, high: float) -> bool:
    """Whether a value is of an annotated kind, and its numbers are finite and lie within bounds."""
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and low <= value <= high and abs(value) < math.inf
    parts, origin = get_args(kind), get_origin(kind)
    if origin is tuple:
        parts = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        same = isinstance(value, tuple) and len(value) == len(parts)
        return same and all(_fits(v, k, low, high) for v, k in zip(value, parts, strict=True))
    if origin is None or issubclass(origin, Mapping):
        return isinstance(value, origin or kind)
    return any(_fits(value, k, low, high) for k in parts)


def _check(part: object) -> None:
    """Raise InputError when a field is of another kind than annotated, out of LIMITS, or not among its CHOICES."""
    for entry in dataclasses.fields(part):
        value, where = getattr(part, entry.name), f"{type(part).__name__.lower()} {entry.name}"
        low, high = LIMITS.get(entry.name, (0, math.inf))
        if not _fits(value, entry.type, low, high):
            kind = entry.type.__name__ if isinstance(entry.type, type) else str(entry.type)
            bounds = f" of at least {low}" + (f" and at most {high}" if high < math.inf else "")
            raise InputError(f"{where} must be {kind}{bounds * (not isinstance(value, str))}, got {value!r}")
        if entry.name in CHOICES:
            choose(dict.fromkeys(CHOICES[entry.name]), value, where)


def as_tuples(value: object) -> object:
    """The same with tuples in place of lists, all the way down, as JSON does not tell the two apart."""
    if isinstance(value, dict):
        return {name: as_tuples(part) for name, part in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Adversarial:
    """How a critic is trained beside the generator.

    A step is one update of either of the two in the Wasserstein game, and one of each in the games of least squares
    and cross-entropy, to which the critic's own steps, constraint and strength do not apply.
    """

    weight: float  # of the adversarial term in the generator's loss
    per_generator: int = 0  # critic steps for each generator step
    extra_every: int = 1  # after so many steps ...
    extra: int = 0  # ... so many more critic steps
    constraint: str = "penalty"  # gradient penalty, or "clip" the critic's weights
    strength: float = 10.0  # of the penalty; the bound of the weights where they are clipped
    slope: float = 0.2  # of the critic's LeakyReLU
    game: str = "wasserstein"  # or "least_squares", "cross_entropy"
    labels: str = "per_step"  # rule of losses.draw_labels, of the latter two
    moves: str = "both"  # or, there, the "critic" alone

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Acquisition:
    """How a synthetic scan is acquired: an input channel of the network."""

    prior: str  # modality in the table of intensity priors; "t1_lr" falls back on "t1"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of its slices along the RAS axes
    thickness_mm: tuple[float, float, float] | None = None  # of its slices; None: as their spacing
    random_mm: float | None = None  # spacing of each axis drawn up to so much, thickness up to that, instead

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Generation:
    """How SynthSR draws training examples from label maps; bounds of uniform draws, where not said otherwise."""

    inputs: tuple[Acquisition, ...]
    target: str = "input"  # first input before its acquisition; "real" scan; "classes" of labels; or a prior's modality
    distribution: str = "normal"  # of the priors' means and stds, or "uniform"
    scaling: float = 0.15  # +- of 1, per axis
    rotation_deg: float = 15.0  # +-, about each axis
    shear: float = 0.012  # +-
    translation_mm: float = 0.0  # +-, per axis
    warp_std: float = 3.0  # most std of the velocity at the coarse points, voxels
    warp_grid: float = 0.0625  # coarse points per voxel
    flip: bool = True  # left and right, in half of all examples
    bias_std: float = 0.3  # most std of the log bias at the coarse points
    bias_grid: float = 0.025  # coarse points per voxel
    clip: float = 300.0  # greatest intensity
    gamma_std: float = 0.5  # std of the normal log exponent
    blur: float = 0.5  # sigma of every channel, voxels
    profile: float = 0.42  # sigma of a slice profile, per slice thickness
    blur_all: bool = True  # also axes whose slices are no farther apart than the output's voxels
    blur_range: float = 1.15  # that sigma times a number from 1 / range to range
    order: int = 1  # of the spline that brings slices on the output's voxels
    misplaced_deg: float = 5.0  # +-, of further inputs against the first one ...
    misplaced_mm: float = 5.0
    residual_deg: float = 0.5  # ... and what remains of it after registration
    residual_mm: float = 0.5
    reliability: bool = True  # each input is followed by a map of where it was measured

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Mixture:
    """Degradations of which each painted scan gets one, drawn at random; bounds of uniform draws, where not said otherwise."""

    contrasts: tuple[str, ...] = ("t1_hr", "t2", "any")  # of the priors; "any" has every class of any brightness
    texture: float = 1.0  # most std of the voxels of a class, as a multiple of the priors'
    mottle: float = 0.1  # most std of a smooth relative variation, correlated over 1 to 4 voxels
    soft: float = 0.6  # most sigma of a further blur of the truth, voxels; more, and kernel and truth look alike
    isotropic: float = 4.0  # greatest factor of all axes, or of two
    thick: float = 6.0  # greatest factor of a single axis
    sigma: tuple[float, float] = (0.2, 1.05)  # of a Gaussian kernel per factor; their logarithm is uniform
    noise: tuple[float, float] = (0.002, 0.03)  # Rician, of the brightest voxel; their logarithm is uniform
    noisy: float = 0.4  # share of scans with noise
    kernels: tuple[str, ...] = ("gaussian", "gaussian", "box", "kspace", "sinc")  # each as likely
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # std of noise on what is told of a scan's own differences

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Experiment:
    """A published system on a task, with the source of each number and the deviations from the paper."""

    name: str
    paper: str = field(compare=False)
    task: str  # key of TASKS
    model: str  # key of models.MODELS
    width: int  # the network's base number of feature maps (growth rate, filters)
    max_steps: int
    n_train: int  # training subjects, at most
    batch_size: int  # patches per step
    patch_size: int | tuple[int, int, int]  # voxels of the truth per axis
    learning_rate: float
    model_args: Mapping[str, object] = field(default_factory=dict)
    start: str = ""  # experiment whose trained weights the generator starts from
    start_critic: str = ""  # experiment whose trained critic the critic starts from
    adversarial: Adversarial | None = None
    critic_steps: int = 0  # steps of the critic alone, at first
    contrast: str = "t1"  # manifest column
    reference: str = ""  # manifest column of a second contrast, the network's second input channel
    more_tasks: tuple[str, ...] = ()  # further tasks whose pairs are mixed into the training
    loss: str = "l1"  # key of losses.LOSSES
    optimizer: str = "adam"  # key of phases.OPTIMIZERS
    optimizer_args: Mapping[str, object] = field(default_factory=dict)
    bias_rate: float = 1.0  # learning rate of biases, as a multiple of that of weights
    schedule: str = "constant"  # key of phases.SCHEDULES
    schedule_args: Mapping[str, float] = field(default_factory=dict)
    sampling: str = "grid"  # patches on a grid, or "random" ones
    stride: int | tuple[int, int, int] | None = None  # voxels between patches of the grid; None: they do not overlap
    frame: tuple[int, int, int] | None = None  # voxels that each scan is cut or padded to, about its middle
    border: tuple[int, int, int] = (0, 0, 0)  # voxels at each face that no patch of the grid enters
    samples: int | None = None  # patches per scan, at most
    min_foreground: float = 0.0  # random patches are redrawn below this share of non-background voxels
    intensity: str = "minmax"  # rule of volume.fit_scaling, fitted on the network's input
    per_patch: bool = False  # in training the rule is fitted on each patch of the truth instead
    lr_grid: bool = False  # the network sees the low-resolution grid and gives the high-resolution one
    given: bool = False  # the manifest's lr column, where filled, is the low-resolution scan
    generation: Generation | None = None  # examples are drawn from label maps, not from scans
    mixture: Mixture | None = None  # each is degraded at random, and the network is told the factor
    precision: str = "32-true"  # of training, by its name in Lightning Fabric
    spacing_mm: float | None = None  # the network sees RAS scans of this isotropic spacing, linearly interpolated
    output: str = "scan"  # units that predictions come in: key of synthesis.OUTPUTS
    loss_crop: int | None = None  # voxels per axis in the middle of a patch that the loss sees
    segmenter: str = ""  # experiment whose trained network judges the output by its Dice
    dice_weight: float = 0.0  # of that term in the loss
    task_settings: Mapping[str, tuple[str, dict]] = field(default_factory=dict)  # of its tasks; else those of TASKS
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)  # number -> "paper", "code" or "ours: ..."
    deviations: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, as_tuples(getattr(self, entry.name)))
        _check(self)
        known = {**TASKS, **self.task_settings}
        tasks = {name: as_tuples(choose(known, name, "task")) for name in (self.task, *self.more_tasks)}
        object.__setattr__(self, "task_settings", tasks)

    @property
    def columns(self) -> tuple[str, ...]:
        """The manifest's columns that training reads of every subject."""
        if self.generation:
            return ("labels", self.contrast) if self.generation.target == "real" else ("labels",)
        return (self.contrast, self.reference) if self.reference else (self.contrast,)

    def to_json(self) -> str:
        """All fields that decide what is computed, as canonical JSON (prose left out)."""
        fields = dataclasses.asdict(self)
        for prose in ("paper", "sources", "deviations"):
            del fields[prose]
        return json.dumps(fields, sort_keys=True)
