"""Train experiments by name, each in its folder of the results, and record them."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from srlib import systems
from srlib.core.device import choose_device
from srlib.core.paths import InputError, results_dir
from srlib.data.manifest import read_manifest
from srlib.evaluation import results
from srlib.models.weights import read_metadata
from srlib.systems.overrides import Overrides
from srlib.systems.training import STARTS, train


def train_recorded(
    name: str,
    profile: str,
    cohort: str | Path,
    *,
    overrides: Overrides = (),
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    **options: object,
) -> Path:
    """Train an experiment on a cohort, in its place under ``folder``; record it in ``runs.csv``.

    Returns the weights file. ``folder`` is by default the folder of the cohort's results.
    ``overrides`` are those of ``systems.get``; ``options`` and errors are those of ``systems.training.train``.
    """
    subjects, folder = read_manifest(cohort), Path(folder or results_dir(profile, cohort))
    experiment = systems.get(name, profile, overrides)
    run = folder / "checkpoints" / results.run_id(experiment.name, profile, seed, cohort)
    parts = ([s for s in subjects if s.split == split] for split in ("train", "val"))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    weights = train(experiment, *parts, run, seed=seed, device=device, **options)
    seconds = time.perf_counter() - clock
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes that share the batches
        results.record_run(
            folder,
            systems.from_json(read_metadata(weights)["experiment"]),  # with its number of classes
            cohort=cohort,
            checkpoint=weights,
            run_id=run.name,
            profile=profile,
            seed=seed,
            started=started,
            seconds=f"{seconds:.1f}",
            device=choose_device(device),
        )
    return weights


def train_all(
    names: Sequence[str],
    profile: str,
    cohort: str | Path,
    *,
    overrides: Overrides = (),
    classes: str | Path | None = None,
    priors: str | Path | None = None,
    **options: object,
) -> dict[str, Path]:
    """Train experiments one after the other, each from those that it needs; record them.

    Returns the weights file of each experiment. ``classes`` and ``priors`` are tables for the
    experiments whose examples come from label maps; ``options`` are those of ``train_recorded``.
    Raises InputError as ``train``, and for an experiment named before one that it needs.
    """
    weights: dict[str, Path] = {}
    for name in names:
        experiment = systems.get(name, profile, overrides)
        given = experiment.examples.tables_of(classes, priors)
        for option in STARTS.values():
            if first := getattr(experiment, option):
                if first not in weights:
                    raise InputError(f"{name} needs {first}, which must be trained before it")
                file = "critic.safetensors" if option == "start_critic" else "model.safetensors"
                given[option] = weights[first].with_name(file)
        given |= {"overrides": overrides, **options}
        weights[name] = train_recorded(name, profile, cohort, **given)
    return weights
