"""The named tasks: degradations that all systems are trained and compared on."""

from collections.abc import Mapping

from srlib.core.paths import choose
from srlib.degradations.resolution import DEGRADATIONS, Degradation
from srlib.scans.intensity import finite
from srlib.scans.volume import Volume

Settings = tuple[str, Mapping[str, object]]  # a degradation's name and its settings
Task = str | Degradation  # the name of a task, or a degradation


def _gaussian(*factor: float, sigma: float = 1.0, **more: object) -> Settings:
    return "gaussian", {"factor": factor, "sigma": sigma, **more}


# SRReCNN3D's own observation model
_CORNERS = {"align": "corners", "whole": True, "blur_first": True}

# a task's name is the `degradation` column of results
TASKS: dict[str, Settings] = {
    "gaussian_x2": _gaussian(2, 2, 2),
    "gaussian_x2.5": _gaussian(2.5, 2.5, 2.5),
    "gaussian_x3": _gaussian(3, 3, 3),
    "gaussian_x4": _gaussian(4, 4, 4),
    "gaussian_1x1x4": _gaussian(1, 1, 4),
    "gaussian_1x1x3": _gaussian(1, 1, 3),
    "thick_1x1x3": _gaussian(1, 1, 3, sigma=1.26),  # SynthSR's slice profile: 0.42 x 3 mm, at 1 mm
    "thick_1x4.5x1": _gaussian(1, 4.5, 1, sigma=1.26),  # slices of 3 mm, a gap of 1.5 mm
    "thick_1x1x5": _gaussian(1, 1, 5, sigma=2.1),
    "gaussian_x2_sigma0.5": _gaussian(2, 2, 2, sigma=0.5),
    "gaussian_x2_sigma2": _gaussian(2, 2, 2, sigma=2.0),
    "gaussian_x2_noise": _gaussian(2, 2, 2, noise=0.02),
    "block_x2": ("block", {"factor": (2, 2, 2)}),
    "gaussian_x2_corners": _gaussian(2, 2, 2, **_CORNERS),
    "gaussian_x3_corners": _gaussian(3, 3, 3, **_CORNERS),
    "gaussian_x4_corners": _gaussian(4, 4, 4, align="corners"),
    "gaussian_x2_nearest": _gaussian(2, 2, 2, align="corners", order=0),
    "gaussian_x4_nearest": _gaussian(4, 4, 4, align="corners", order=0),
    "gaussian_x2_smoothed": _gaussian(2, 2, 2, align="corners", prefilter=False),
    "gaussian_x4_smoothed": _gaussian(4, 4, 4, align="corners", prefilter=False),
    "scanline_x4": ("scanline", {"factor": 4}),
    "sparse_view_x16": ("sparse_view", {"factor": 16, "views": 1000}),
    "kspace_x2_inplane": ("kspace", {"factor": (1, 2, 2)}),
    "kspace_x2_3d": ("kspace", {"factor": (2, 2, 2)}),
    "kspace_x5_inplane_12bit": ("kspace", {"factor": (1, 5, 5), "stored_12bit": True}),
}


def degradation_of(task: Task, tasks: Mapping[str, Settings] = TASKS) -> Degradation:
    """The degradation of a named task, or itself; InputError for a name that ``tasks`` lacks."""
    if isinstance(task, Degradation):
        return task
    name, settings = choose(tasks, task, "task")
    return choose(DEGRADATIONS, name, "degradation")(**settings)


def degrade(scan: Volume, task: Task) -> Volume:
    """The low-resolution scan that a task, or a degradation, makes of a scan, in its place.

    Raises InputError for an unknown task, and for a scan that the task cannot degrade.
    """
    return degradation_of(task).pair(scan.with_data(finite(scan.data)))[0]
