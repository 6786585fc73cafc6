"""Every system's numbers, once: what was published, where it is written, and what we do otherwise."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from srlib.paths import InputError

# name -> (degradation, its settings); a task's name is the `degradation` column of results
TASKS: dict[str, tuple[str, dict]] = {
    "gaussian_x2": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0}),
    "gaussian_x2_corners": ("gaussian", {"factor": (2, 2, 2), "sigma": 1.0, "align": "corners"}),
    "kspace_x2_inplane": ("kspace", {"factor": (1, 2, 2)}),
}


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
    contrast: str = "t1"  # manifest column
    loss: str = "l1"  # key of losses.LOSSES
    schedule: str = "constant"  # or "cosine", to zero at max_steps
    sampling: str = "grid"  # non-overlapping patches, or "random" ones
    min_foreground: float = 0.0  # random patches are redrawn below this share of non-background voxels
    intensity: str = "minmax"  # rule of volume.fit_scaling, fitted on the network's input
    sources: Mapping[str, str] = field(default_factory=dict)  # number -> section, "code" or "ours: ..."
    deviations: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All fields that decide what is computed, as canonical JSON (prose left out)."""
        fields = dataclasses.asdict(self)
        for prose in ("paper", "sources", "deviations"):
            del fields[prose]
        return json.dumps({**fields, "task_settings": TASKS[self.task]}, sort_keys=True)


MDCSRN = Experiment(
    name="mdcsrn",
    paper="Chen et al., MICCAI 2018 (arXiv 1803.01417)",
    task="kspace_x2_inplane",
    model="mdcsrn",
    width=16,
    model_args={"blocks": 4, "units": 4, "residual": False},
    max_steps=500_000,
    n_train=780,
    batch_size=2,
    patch_size=64,
    learning_rate=1e-4,
    sources={
        "width": "Sec. 2.2: growth rate 16",
        "max_steps": "Sec. 3.2: 500k steps of the generator alone (250k in the replicated code)",
        "n_train": "Sec. 3.1: 780 of 1,113 HCP subjects",
        "batch_size": "Sec. 3.2",
        "patch_size": "Sec. 3.1: 64x64x64, non-overlapping",
        "learning_rate": "Sec. 3.2: Adam, 1e-4",
        "min_foreground": "ours: off, paper silent",
    },
    deviations=(
        "intensities are scaled to [0, 1] per scan by its own minimum and maximum, since the paper's division "
        "by 4095 fits 12-bit HCP scans only",
    ),
)

MDCSRN_RES_KSPACE = dataclasses.replace(
    MDCSRN,
    name="mdcsrn_res_kspace",
    model_args={**MDCSRN.model_args, "residual": True},
    learning_rate=1e-3,
    schedule="cosine",
    sampling="random",
    min_foreground=0.3,
    max_steps=50_000,
    sources={
        **MDCSRN.sources,
        "max_steps": "ours: the residual form starts at its input and needs fewer",
        "learning_rate": "ours: 1e-3, cosine to zero",
        "min_foreground": "ours: patches that are mostly air teach nothing",
    },
    deviations=(
        *MDCSRN.deviations,
        "the network predicts the difference to its input (global residual), starting at zero",
        "Adam starts at 1e-3 and falls to zero by a cosine; patches are drawn at random, with at least 30 % foreground",
    ),
)

MDCSRN_RES = dataclasses.replace(
    MDCSRN_RES_KSPACE,
    name="mdcsrn_res",
    task="gaussian_x2",
    deviations=(
        *MDCSRN_RES_KSPACE.deviations,
        "the common task of all systems here: Gaussian blur and x2 down-sampling, input interpolated by cubic splines",
    ),
)

RECNN = Experiment(
    name="recnn",
    paper="Pham et al., CMIG 2019 (HAL hal-01635455)",
    task="gaussian_x2_corners",
    model="recnn",
    width=64,
    model_args={"layers": 10, "kernel": 3, "in_channels": 1, "residual": True},
    max_steps=20_000,
    n_train=10,
    batch_size=64,
    patch_size=21,
    learning_rate=1e-3,
    loss="l2",
    schedule="cosine",
    sampling="random",
    sources={
        "task": "code: Gaussian blur of 1 voxel, cubic-spline zoom that keeps the corner voxels in place",
        "width": "code: 64 filters (its examples use 32)",
        "max_steps": "code: 20,000",
        "n_train": "ours: as SRCNN3D; the code's examples name KKI2009-33 and 34",
        "batch_size": "code: 64",
        "patch_size": "code: 21x21x21",
        "learning_rate": "code: Adam, 1e-3 in the solver generator's default (1e-4 in its template)",
        "loss": "code: squared error",
        "min_foreground": "code: patches of air are kept",
    },
    deviations=(
        "patches are drawn at random, where the code cuts them once at a stride of 10 voxels, 10 voxels off the "
        "faces of the first two axes",
        "the learning rate falls to zero by a cosine, where the code's falls to a tenth at step 10,000",
        "biases learn as fast as weights, where the code's learn at a tenth of the rate",
        "intensities are scaled by minimum and maximum of the network's input, where the code trains on those of "
        "the full-resolution scan and, at test time, divides by the maximum and clips below at the minimum",
        "odd sizes are not cut to a multiple of the factor before degrading",
    ),
)

RECNN_MULTI = dataclasses.replace(
    RECNN,
    name="recnn_multi",
    model_args={**RECNN.model_args, "in_channels": 2},
    patch_size=25,
    sources={**RECNN.sources, "patch_size": "code: 25x25x25 in the deployed network (21 in the generator's default)"},
)

SRCNN3D = dataclasses.replace(
    RECNN,
    name="srcnn3d",
    paper="Pham et al., ISBI 2017",
    model="srcnn3d",
    model_args={"kernels": (9, 1, 5)},
    max_steps=470_000,
    batch_size=256,
    patch_size=33,
    learning_rate=1e-4,
    schedule="constant",
    sources={
        **RECNN.sources,
        "width": "code: 64, 32 and 1 filters of 9, 1 and 5 voxels",
        "max_steps": "the published weights' file name (the code allows 1,500,000)",
        "n_train": "the file list stored in the published weights is named train10",
        "batch_size": "code",
        "patch_size": "code: 33x33x33",
        "learning_rate": "code: 1e-4",
    },
    deviations=(
        RECNN.deviations[0],
        *RECNN.deviations[2:],
        "Adam, which the code's instructions propose; its solver's default is SGD with momentum 0.9",
        "the loss covers the whole patch, where the code compares the inner 21x21x21 voxels only",
    ),
)

EXPERIMENTS = {e.name: e for e in (MDCSRN, MDCSRN_RES_KSPACE, MDCSRN_RES, RECNN, RECNN_MULTI, SRCNN3D)}

BUDGET = ("max_steps", "n_train", "batch_size", "patch_size", "width")  # all that a profile may shrink
QUICK = {"width": 8, "patch_size": 32, "batch_size": 2, "n_train": 5}
SMOKE = {"width": 4, "patch_size": 16, "batch_size": 1, "n_train": 1, "max_steps": 4}
PROFILES: dict[str, dict[str, dict[str, int]]] = {
    "paper": {name: {} for name in EXPERIMENTS},
    "quick": {
        "mdcsrn": {**QUICK, "max_steps": 60},
        "mdcsrn_res_kspace": {**QUICK, "max_steps": 60},
        "mdcsrn_res": {**QUICK, "max_steps": 150},
        "recnn": {**QUICK, "patch_size": 21, "batch_size": 8, "max_steps": 200},
        "recnn_multi": {**QUICK, "patch_size": 25, "batch_size": 4, "max_steps": 200},
        "srcnn3d": {**QUICK, "max_steps": 200},
    },
    "smoke": dict.fromkeys(EXPERIMENTS, SMOKE),
}


def get(name: str, profile: str = "paper") -> Experiment:
    """An experiment with its profile's budget; InputError for an unknown name or profile."""
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; expected one of {', '.join(PROFILES)}")
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}; expected one of {', '.join(EXPERIMENTS)}")
    return dataclasses.replace(EXPERIMENTS[name], **PROFILES[profile][name])


def from_json(text: str) -> Experiment:
    """The experiment that ``to_json`` wrote; InputError when the text is not one."""
    try:
        fields = json.loads(text)
        task = fields.pop("task_settings")
        experiment = Experiment(
            paper=EXPERIMENTS[fields["name"]].paper if fields["name"] in EXPERIMENTS else "", **fields
        )
        TASKS.setdefault(experiment.task, (task[0], task[1]))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as err:
        raise InputError(
            f"not the description of an experiment ({err}); the file is not one of ours or is damaged"
        ) from err
    return experiment
