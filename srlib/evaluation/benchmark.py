"""Benchmark every system under every degradation: which apply, what they gain, what they cost."""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name

from srlib.core.paths import StrPath, published_file, shipped_file
from srlib.data.manifest import Subject
from srlib.degradations.tasks import degradation_of
from srlib.evaluation.results import measured
from srlib.inference.tiles import Callee
from srlib.scans.volume import central
from srlib.systems.base import Experiment
from srlib.systems.published import PUBLISHED
from srlib.systems.registry import EXPERIMENTS
from srlib.systems.trained import DEFAULT, Model, as_model

BENCHMARK = (
    "gaussian_x2", "gaussian_x2_sigma0.5", "gaussian_x2_sigma2", "gaussian_x2_noise", "block_x2",
    "gaussian_x2.5", "gaussian_x3", "kspace_x2_inplane", "kspace_x2_3d", "thick_1x1x3",
    "thick_1x1x5",
)  # fmt: skip
# voxels per axis of the cut; 0: the whole scan
MIDDLE = {"smoke": 16, "study": 56, "quick": 56, "paper": 0}
TOLD = f"{DEFAULT}_told"
INNER = 0.75  # share of the cut that is measured, per axis: near its faces networks lack context


def belongs(experiment: Experiment) -> bool:
    """Whether an experiment is in the table: trained for one of its degradations, from T1 to T1 in
    the same units.

    This excludes networks of 2-D images, segmenters, SynthSR's cases that change contrast or units,
    and ``robust``, which comes as shipped.
    """
    trained = set(BENCHMARK) & set(experiment.examples.tasks(experiment.task))
    same = experiment.contrast == "t1" and experiment.prediction.keeps_units
    return same and experiment.task in trained


def systems(folder: StrPath, profile: str, seed: int = 0) -> dict[str, Path | None]:
    """Weights of the table's systems by name, None where there are none.

    First come the shipped weights of ``robust``, then the newest run of each experiment in a
    results folder, then the published weights.
    """
    found = {DEFAULT: shipped_file(DEFAULT)}
    for name, experiment in EXPERIMENTS.items():
        if belongs(experiment):
            runs = Path(folder).glob(f"checkpoints/{name}-{profile}-s{seed}-*/model.safetensors")
            found[name] = max(runs, key=lambda p: (p.stat().st_mtime, str(p)), default=None)
    return found | {f"{e.name}_published": published_file(file) for file, e in PUBLISHED.items()}


def others(names: str) -> dict[str, Model]:
    """Further models by name, each a weights file or ``module:network`` of the working directory.

    The network is one that ``systems.Model`` takes, or a Model. Raises InputError as
    ``load_model``, and what importing raises.
    """
    sys.path.insert(0, os.getcwd())
    found = {name: resolve_name(name) if ":" in name else name for name in names.split()}
    return {name: as_model(network) for name, network in found.items()}


def measure(
    subject: Subject,
    models: Mapping[str, Model | Callee],
    middle: int = 0,
    *,
    runs: Mapping[str, str] | None = None,
    **key: str,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Run every model, or any network (``systems.Model``), on one scan under every degradation.

    Left out are models whose second contrast the subject lacks or whose grid does not fit. Returns
    rows of ``metrics.csv`` and costs. ``linear`` and ``cubic`` are the scan interpolated on the
    truth's grid; k-space truncation does not change the grid. ``robust`` runs twice, also with its
    kernel told (``TOLD``). ``middle`` voxels per axis are cut
    out first and their inner three quarters measured (region ``middle``); 0 takes the whole scan
    (region ``whole``). ``runs`` and ``key`` are those of ``results.measured``. A cost has the
    columns of ``key``, degradation, subject, experiment and s_per_mvoxel. Raises InputError as
    ``ObservationModel.make``.
    """
    base = EXPERIMENTS["recnn_x2_t2" if "t2" in subject.files else "recnn_x2"]
    rows, costs = [], []
    models = {name: as_model(model) for name, model in models.items()}
    for task in BENCHMARK:
        pair = base.pairs.make(subject, task, middle=middle)
        alone = dataclasses.replace(pair, reference=None)
        estimates = {
            "linear": degradation_of(task).to_grid(pair.lr, pair.hr.shape, order=1),
            "cubic": pair.on_grid,
        }
        where = {**key, "degradation": task, "subject": subject.name}
        for name, model in models.items():
            reference = model.pairs.reference
            complete = reference in ("", *subject.files)
            if complete and model.prediction.accepts(model.pairs, degradation_of(task)):
                began = time.perf_counter()
                estimates[name] = model.predict_pair(pair if reference else alone)
                speed = (time.perf_counter() - began) / (pair.hr.data.size / 1e6)
                costs.append({**where, "experiment": name, "s_per_mvoxel": speed})
            if name == DEFAULT:
                kernel = degradation_of(task).kernel
                estimates[TOLD] = model.predict_pair(alone, kernel=kernel)
        inner = round(INNER * middle) or max(pair.hr.shape)
        cut = {name: central(scan, inner) for name, scan in estimates.items()}
        region = "middle" if middle else "whole"
        rows += measured(central(pair.hr, inner), cut, region=region, runs=runs, **where)
    return rows, costs
