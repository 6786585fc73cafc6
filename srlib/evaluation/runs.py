"""Trainings of experiments by name, each in its place in the results and recorded there."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from srlib import systems
from srlib.core.device import choose_device
from srlib.core.paths import InputError, results_dir
from srlib.data.manifest import Subject, read_manifest
from srlib.evaluation import results
from srlib.models.weights import read_metadata
from srlib.systems.training import STARTS, train


def train_recorded(
    name: str,
    profile: str,
    cohort: str | Path,
    subjects: Sequence[Subject],
    *,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    **options: object,
) -> Path:
    """Train an experiment on the subjects of a cohort, in its place under ``folder``, and record it in ``runs.csv``.

    Returns the weights; ``folder`` is by default the cohort's results, ``options`` are those of ``train``, which says
    what it raises.
    """
    folder = Path(folder or results_dir(profile, cohort))
    run = folder / "checkpoints" / results.run_id(name, profile, seed, cohort)
    parts = ([s for s in subjects if s.split == split] for split in ("train", "val"))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    weights = train(systems.get(name, profile), *parts, run, seed=seed, device=device, **options)
    seconds, where = time.perf_counter() - clock, str(choose_device(device))
    trained = systems.from_json(
        read_metadata(weights)["experiment"]
    )  # its number of classes is known
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes that share the batches
        results.record_run(folder, trained, profile, seed, cohort, weights, started, seconds, where)
    return weights


def train_all(
    names: Sequence[str],
    profile: str,
    cohort: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    classes: str | Path | None = None,
    priors: str | Path | None = None,
) -> dict[str, Path]:
    """Train experiments one after the other, each from those that it needs, and record them in ``runs.csv``.

    Returns the weights by experiment; their folders are ``checkpoints/<run_id>/`` of ``folder``, by default the cohort's
    results; ``classes`` and ``priors`` go to those whose examples come from label maps. Raises InputError as ``train``,
    and when an experiment stands before one that it needs.
    """
    subjects, weights = read_manifest(cohort), {}
    for name in names:
        experiment, options = systems.get(name, profile), {}
        for option in STARTS.values():
            if first := getattr(experiment, option):
                if first not in weights:
                    raise InputError(f"{name} needs {first}, which must be trained before it")
                file = "critic.safetensors" if option == "start_critic" else "model.safetensors"
                options[option] = weights[first].with_name(file)
        if experiment.examples.reads == "labels":
            options |= {"classes": classes, "priors": priors}
        weights[name] = train_recorded(
            name,
            profile,
            cohort,
            subjects,
            seed=seed,
            device=device,
            folder=folder,
            **options,
        )
    return weights
