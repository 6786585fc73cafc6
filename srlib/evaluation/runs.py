"""Train experiments by name, each in its folder of the results; record and measure them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from srlib import systems
from srlib.core.device import choose_device
from srlib.core.paths import InputError, StrPath, cohort_label, results_dir
from srlib.data.manifest import load_mask, read_manifest
from srlib.evaluation import results
from srlib.models.weights import read_metadata
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume
from srlib.systems.base import Experiment
from srlib.systems.overrides import Overrides
from srlib.systems.trained import load_model
from srlib.systems.training import STARTS, train
from srlib.training.processes import is_first

# voxels per axis of the scans that networks are measured on under their own task; 0: whole scans
MIDDLE = {"smoke": 32, "study": 64, "quick": 112, "paper": 0}


def train_recorded(
    name: str,
    profile: str,
    cohort: StrPath,
    *,
    overrides: Overrides = (),
    seed: int = 0,
    device: str = "auto",
    folder: StrPath | None = None,
    out: StrPath | None = None,
    **options: object,
) -> Path:
    """Train an experiment on a cohort, in its place under ``folder``; record it in ``runs.csv``.

    Returns the weights file. ``folder`` is by default the folder of the cohort's results. A run in
    another place, the folder ``out``, is not recorded.
    ``overrides`` are those of ``systems.get``; ``options`` and errors are those of
    ``systems.training.train``.
    """
    experiment = systems.get(name, profile, overrides)
    subjects, folder = read_manifest(cohort), Path(folder or out or results_dir(profile, cohort))
    place = folder / "checkpoints" / results.run_id(experiment.name, profile, seed, cohort)
    parts = ([s for s in subjects if s.split == split] for split in ("train", "val"))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    weights = train(experiment, *parts, out or place, seed=seed, device=device, **options)
    seconds = time.perf_counter() - clock
    if not out and is_first():
        results.record_run(
            folder,
            systems.from_json(read_metadata(weights)["experiment"]),  # with its number of classes
            cohort=cohort,
            checkpoint=weights,
            run_id=place.name,
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
    cohort: StrPath,
    *,
    overrides: Overrides = (),
    classes: StrPath | None = None,
    priors: StrPath | None = None,
    **options: object,
) -> dict[str, Path]:
    """Train experiments one after the other, each from those that it needs; record them.

    Returns the weights files by the experiments' names, which tell overrides. ``classes`` and
    ``priors`` are tables for the experiments whose examples come from label maps; ``options`` are
    those of ``train_recorded``. Raises InputError as ``train``, and for an experiment named before
    one that it needs.
    """
    weights, trained = {}, {}
    for name in names:
        experiment = systems.get(name, profile, overrides)
        given = {"classes": classes, "priors": priors} if experiment.examples.needs else {}
        for option in STARTS.values():
            if first := getattr(experiment, option):
                if first not in weights:
                    raise InputError(f"{name} needs {first}, which must be trained before it")
                file = "critic.safetensors" if option == "start_critic" else "model.safetensors"
                given[option] = weights[first].with_name(file)
        weights[name] = train_recorded(
            name, profile, cohort, overrides=overrides, **options, **given
        )
        trained[experiment.name] = weights[name]
    return trained


def recorded(
    folder: StrPath,
    profile: str,
    cohort: StrPath,
    experiments: Iterable[Experiment],
    *,
    seed: int = 0,
) -> dict[str, Path]:
    """Weights of the runs in ``runs.csv`` of a profile, cohort and seed, by their experiment.

    Those of the named experiments, with any overrides, in this order, whose weights are there.
    """
    table, found = results.read_runs(folder), {}
    for experiment in experiments:
        for name, run in zip(table["experiment"], table["run_id"], strict=True):
            file = Path(folder) / "checkpoints" / run / "model.safetensors"
            own = name.partition("+")[0] == experiment.name
            if own and run == results.run_id(name, profile, seed, cohort) and file.is_file():
                found[name] = file
    return found


def measure_runs(
    weights: Mapping[str, Path], cohort: StrPath, middle: int = 0
) -> tuple[list[dict[str, object]], dict[str, dict[str, Volume]]]:
    """Measure trained networks on the test scans of a cohort, each under its own task.

    The scans are whole, or cut to ``middle`` voxels per axis before they are degraded (region
    ``crop``); 2-D images are always whole. Returns rows of ``metrics.csv``, interpolation among
    them, and the first scan's truth (``HR``) and estimates by task. A line names each network whose
    contrasts a subject lacks.
    """
    rows, pictures = [], {}
    subjects = read_manifest(cohort, "test") if weights else []
    ids = {name: file.parent.name for name, file in weights.items()}
    for subject in subjects:
        done = set()
        for name, file in weights.items():
            model = load_model(file)
            pairs, task = model.experiment.pairs, model.experiment.task
            if missing := {*pairs.columns(subject)} - subject.files.keys():
                print(f"{subject.name} has no {', '.join(missing)}: {name} is left out")
                continue
            cut = 0 if 1 in per_axis(model.experiment.examples.patch_size) else middle
            pair = pairs.make(subject, middle=cut)
            estimates = {} if task in done else pairs.baselines(pair)
            estimates[name] = model.predict_pair(pair)
            where = {"region": "crop"} if cut else {"mask": load_mask(subject, pair.hr)}
            rows += results.measured(
                pair.hr,
                estimates,
                runs=ids,
                degradation=task,
                dataset=cohort_label(cohort),
                subject=subject.name,
                **where,
            )
            done.add(task)
            if subject is subjects[0]:
                pictures.setdefault(task, {"HR": pair.hr}).update(estimates)
        print(f"{subject.name}: {', '.join(done)}")
    return rows, pictures
