"""Every system on every degradation: what is compared, on which scans it can be, and what each run costs."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from srlib.core.paths import published_file, shipped_file
from srlib.data.manifest import Subject
from srlib.degradations.tasks import degradation_of
from srlib.evaluation.results import measured
from srlib.scans.volume import central
from srlib.systems.base import Experiment
from srlib.systems.published import PUBLISHED
from srlib.systems.registry import EXPERIMENTS
from srlib.systems.trained import DEFAULT, Model

BENCHMARK = (
    "gaussian_x2", "gaussian_x2_sigma0.5", "gaussian_x2_sigma2", "gaussian_x2_noise", "block_x2", "gaussian_x2.5",
    "gaussian_x3", "kspace_x2_inplane", "kspace_x2_3d", "thick_1x1x3", "thick_1x1x5",
)  # fmt: skip
MIDDLE = {
    "smoke": 16,
    "quick": 56,
    "paper": 0,
}  # voxels of each axis that networks see; 0: the whole scan
INNER = 0.75  # share of these that is measured, per axis: where networks miss what lies beyond the cut is left out


def belongs(experiment: Experiment) -> bool:
    """Whether a system has a place in the table: trained for one of its degradations, T1 in, T1 in the same units out.

    That leaves out networks of 2-D images, segmenters, SynthSR's cases that change the contrast or the units, what is
    trained for degradations that are not here, and the recipe, which comes as shipped.
    """
    trained = set(BENCHMARK) & set(experiment.examples.tasks(experiment.task))
    usual = experiment.contrast == "t1" and experiment.prediction.keeps_units
    return usual and experiment.task in trained


def systems(folder: str | Path, profile: str, seed: int = 0) -> dict[str, Path | None]:
    """Weights of the table's systems by name, None where they are not at hand: ``robust``, the others, published ones.

    Of an experiment its newest run in a results folder; of ``robust`` the shipped weights.
    """
    found = {DEFAULT: shipped_file(DEFAULT)}
    for name in (n for n, e in EXPERIMENTS.items() if belongs(e)):
        runs = Path(folder).glob(f"checkpoints/{name}-{profile}-s{seed}-*/model.safetensors")
        found[name] = max(runs, key=lambda p: (p.stat().st_mtime, str(p)), default=None)
    return found | {f"{e.name}_published": published_file(file) for file, e in PUBLISHED.items()}


def applies(model: Model, task: str, subject: Subject) -> bool:
    """Whether a model can be run there: with a second contrast where it takes one; on coarse grids, of its factor only."""
    experiment = model.experiment
    there = experiment.reference in ("", *subject.files)
    return there and experiment.prediction.accepts(experiment.pairs, degradation_of(task))


def measure(
    subject: Subject,
    models: Mapping[str, Model],
    middle: int = 0,
    runs: Mapping[str, str] | None = None,
    **key: str,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """A scan under every degradation through every model that applies: rows of ``metrics.csv``, and costs.

    ``linear`` and ``cubic`` are the scan interpolated on the truth's grid, which k-space truncation leaves as it is.
    ``middle`` voxels of each axis are cut out first, and their inner three quarters measured, the region ``middle``; with
    0 it is all of the scan, the region ``whole``. ``runs`` and ``key`` as in ``results.measured``. A cost has the columns
    degradation, subject, experiment and s_per_mvoxel. Raises InputError as ``make_pair``.
    """
    base = EXPERIMENTS["recnn_x2_t2"] if "t2" in subject.files else EXPERIMENTS["recnn_x2"]
    rows, costs = [], []
    for task in BENCHMARK:
        pair = base.pairs.make(subject, task, middle=middle)
        estimates = {
            "linear": degradation_of(task).to_grid(pair.lr, pair.hr.shape, order=1),
            "cubic": pair.on_grid,
        }
        where = {**key, "degradation": task, "subject": subject.name}
        for name in [n for n, model in models.items() if applies(model, task, subject)]:
            given = (
                pair
                if models[name].experiment.reference
                else dataclasses.replace(pair, reference=None)
            )
            began = time.perf_counter()
            estimates[name] = models[name].predict_pair(given)
            speed = (time.perf_counter() - began) / (pair.hr.data.size / 1e6)
            costs.append({**where, "experiment": name, "s_per_mvoxel": speed})
        inner = round(INNER * middle) or max(pair.hr.shape)
        truth, estimates = (
            central(pair.hr, inner),
            {n: central(v, inner) for n, v in estimates.items()},
        )
        rows += measured(
            truth, estimates, region="middle" if middle else "whole", runs=runs, **where
        )
    return rows, costs
