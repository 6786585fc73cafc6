"""Make results/study, the evidence for the claims of csv/claims.csv: hours; --estimate says how many.

    python recipes/study.py                      # whatever is missing, after saying how long
    python recipes/study.py mdcsrn recnn         # of these systems alone
    python recipes/study.py --seeds 0 1          # of these seeds alone
    python recipes/study.py --estimate           # how long; nothing is run
    python recipes/study.py --gather             # what runs/study has, to results/study

A job trains one network of csv/study.csv with one seed and measures it. Jobs of one system and seed
run one after the other, each such chain in a process of one thread. Jobs that results/study or
runs/study has are skipped, and an interrupted training goes on where it was. Machines share the
work by --scheduler, a Dask cluster's on a file system that all see, or by systems and seeds: then
each fills a runs/study of its own, and --gather is called on each.
"""

import argparse
import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from srlib import systems
from srlib.core.paths import (
    InputError,
    atomic,
    choose,
    cohort_label,
    data_dir,
    make_dir,
    results_root,
    root,
)
from srlib.core.tables import read_table, write_table
from srlib.core.workers import share
from srlib.data import cohorts, label_maps
from srlib.data.manifest import Subject, read_manifest
from srlib.data.pairs import ObservationModel, Pair
from srlib.evaluation import claims, results, runs
from srlib.scans.formats import load_scan
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume, save_scan
from srlib.synthesis.priors import read_classes, write_priors
from srlib.systems.base import Experiment
from srlib.systems.trained import Model, load_model
from srlib.training.mixture import ANY

KEPT = root() / "results" / "study"
CH2 = Path("/usr/share/mricron/templates/ch2.nii.gz")  # of Debian's mricron-data, where installed
TESTS = 12  # synthetic subjects, or stacks of images
REGIONS = ("crop", "centre")  # of scans, of images
SHIPPED = "robust"  # comes trained
MOVED_MM = 1.0
NETWORKS = claims.networks()
NETWORKS["cohort"] = [str(root() / path) for path in NETWORKS["cohort"]]  # also called elsewhere
SYSTEM_OF = {e.name: name for name, module in systems.SYSTEMS.items() for e in module.EXPERIMENTS}
SYSTEM = NETWORKS["experiment"].str.split().str[-1].map(SYSTEM_OF)
SECONDS = 150  # of a job that nobody has timed


def folder() -> Path:
    """The folder of the study's runs."""
    return make_dir(results_root() / "study")


def make_cohorts() -> None:
    """Make the scans, where they are missing: more subjects like those of the built-in cohorts."""
    for name in dict.fromkeys(NETWORKS["cohort"]):
        manifest, kind = Path(name), cohort_label(name).removeprefix("study_")
        with suppress(InputError):
            read_manifest(manifest)
            continue
        print(f"making the scans of {name}", flush=True)
        if kind == "mr":
            cohorts.build(manifest=manifest, tests=TESTS)
        elif kind == "moved":
            move_references(root() / "csv" / "study_mr.csv", manifest)
        else:
            cohorts.build_images(kind, manifest=manifest, tests=TESTS)


def move_references(source: Path, manifest: Path) -> None:
    """Write a cohort whose T2 lie a voxel beside their place, in a direction of their own."""
    rows = read_table(source)
    for number, row in enumerate(rows):
        if row["t2"]:
            moved = load_scan(data_dir() / row["t2"])
            way = np.random.default_rng([1, number]).standard_normal(3)
            affine = moved.affine.copy()
            affine[:3, 3] += MOVED_MM * way / np.linalg.norm(way)
            row["t2"] = row["t2"].replace("_t2.", "_t2_moved.")
            save_scan(Volume(moved.data, affine), data_dir() / row["t2"], dtype=np.int16)
    write_table(manifest, list(rows[0]), [list(row.values()) for row in rows])


def subjects(cohort: str) -> list[Subject]:
    """The test subjects of a cohort, and a real head that Debian has."""
    found = read_manifest(cohort, "test")
    if cohort_label(cohort) == "study_mr" and CH2.is_file():
        found.append(Subject("ch2", "test", {"t1": CH2}))
    return found


Job = tuple[str, str]  # a network, or "" for interpolation, and a seed, "" without training
_pairs: dict[tuple[str, ...], Pair] = {}


def experiment_of(network: str) -> Experiment:
    """The experiment that a row of csv/study.csv measures."""
    row = NETWORKS.loc[network]
    return systems.get(row["experiment"].split()[-1], "study", row["overrides"])


def pairs_of(network: str, token: str) -> Iterator[tuple[str, ObservationModel, Pair]]:
    """The pairs that a network is measured on under a task, subject by subject.

    ``token`` is a task such as gaussian_x2 or, of another contrast, thick_1x1x3:t2. Subjects
    without a contrast are left out.
    """
    task, _, contrast = token.partition(":")
    experiment, cohort = experiment_of(network), NETWORKS["cohort"][network]
    pairs = dataclasses.replace(experiment.pairs, task=task)
    pairs = dataclasses.replace(pairs, contrast=contrast) if contrast else pairs
    image = 1 in per_axis(experiment.examples.patch_size)
    for subject in subjects(cohort):
        if not {*pairs.columns(subject)} - subject.files.keys():
            key = (cohort, subject.name, repr(pairs))
            if key not in _pairs:
                _pairs[key] = pairs.make(subject, middle=0 if image else runs.MIDDLE["study"])
            yield subject.name, pairs, _pairs[key]


def checkerboard(hr: np.ndarray, sr: np.ndarray) -> float:
    """How far the error repeats every two voxels, as upsampling makes it (ours): 1 for white noise.

    The variance over the places within 2 voxels per axis of the error's mean there, in blocks of 8
    voxels per axis, over that of an error of the same energy without a pattern. The rest at the far
    faces is left out. nan for an exact estimate.
    """
    error = (sr.astype(np.float64) - hr)[tuple(slice(n // 8 * 8) for n in hr.shape)]
    blocks = error.reshape([size for n in error.shape for size in (n // 8, 4, 2)])
    means = blocks.mean(axis=tuple(range(1, blocks.ndim, 3)))
    places = tuple(range(1, means.ndim, 2))
    energy = np.square(error).mean() / 4**error.ndim
    return float(means.var(axis=places, ddof=1).mean() / energy) if energy else np.nan


def measure(network: str, token: str, model: Model | None, run: str = "") -> None:
    """Measure a model, or without one interpolation, on the scans of a network under a task."""
    rows, label = [], cohort_label(NETWORKS["cohort"][network])
    for subject, pairs, pair in pairs_of(network, token):
        name = model and model.name
        estimates = {name: model.predict_pair(pair)} if model else pairs.baselines(pair)
        where = {"degradation": token, "dataset": label, "subject": subject, "region": "crop"}
        rows += results.measured(pair.hr, estimates, runs={name: run} if run else None, **where)
        if SYSTEM[network] == "srgan3d":  # of upsamplers
            energy = {n: checkerboard(pair.hr.data, sr.data) for n, sr in estimates.items()}
            new = {"metric": "checkerboard", **where}
            rows += [
                {"run_id": run or n, "experiment": n, "value": v, **new} for n, v in energy.items()
            ]
    results.record_metrics(folder(), rows)


@functools.cache
def tables() -> dict[str, Path]:
    """Classes and priors of the training subjects, with a contrast ``any`` of random brightness."""
    manifest, classes = root() / "csv" / "study_mr.csv", root() / "csv" / "classes_tissue.csv"
    table = read_classes(classes)
    found = label_maps.measure(read_manifest(manifest, "train"), table)
    count = np.shape(next(iter(found.values())))[-1]
    found["any"] = tuple(np.repeat(np.array(part)[:, None], count, axis=1) for part in ANY)
    priors = write_priors(found, make_dir(data_dir() / "made") / "study_priors.csv", force=True)
    return {"classes": classes, "priors": priors}


def work(job: Job) -> None:
    """Train and measure a network with a seed; what is finished is not trained again."""
    network, seed = job
    if not network:
        for token, first in firsts().items():
            measure(first, token, None)
        return
    row, run, weights = NETWORKS.loc[network], "", SHIPPED
    if seed:
        trained = runs.train_all(
            row["experiment"].split(), "study", row["cohort"], overrides=row["overrides"],
            seed=int(seed), folder=folder(), progress=False,
            **(tables() if SYSTEM[network] == "synthsr" else {}),
        )  # fmt: skip
        weights = trained[row["name"]]
        run = weights.parent.name
    model = load_model(weights)
    for token in row["measured"].split():
        measure(network, token, model, run)


def firsts() -> dict[str, str]:
    """Every task that is measured, and a network that it is measured with."""
    found: dict[str, str] = {}
    for network, tokens in NETWORKS["measured"].items():
        for token in tokens.split():
            found.setdefault(token, network)
    return found


def measured_rows() -> pd.DataFrame:
    """What runs/study and results/study have measured, with the columns of EVIDENCE."""
    found = []
    with suppress(InputError):  # nothing was measured here
        rows = results.read_metrics(folder())
        rows = rows[rows["region"].isin(REGIONS)]
        names = pd.Series(
            NETWORKS.index, NETWORKS["name"] + " " + NETWORKS["cohort"].map(cohort_label)
        )
        trained = (rows["experiment"] + " " + rows["dataset"]).map(names)
        network = rows["experiment"].where(rows["run_id"] == rows["experiment"], trained)
        seed = rows["run_id"].str.extract(r"-s(-?\d+)-", expand=False).fillna("")
        found.append(rows.assign(network=network, seed=seed).dropna(subset="network"))
    if (KEPT / "evidence.csv").is_file():
        found.append(claims.read_evidence(KEPT / "evidence.csv"))
    columns = [*claims.EVIDENCE]
    table = pd.concat([pd.DataFrame(columns=columns), *found])[columns]
    return table.drop_duplicates(columns[:-1]).sort_values(columns[:-1], ignore_index=True)


def missing(chosen: Sequence[str], seeds: Sequence[str]) -> list[Job]:
    """The jobs without evidence, in order."""
    rows = measured_rows()
    done = {*zip(rows["network"], rows["seed"], rows["degradation"], strict=True)}
    interpolated = {token for name, _, token in done if name in results.BASELINES}
    jobs = [("", "")] if firsts().keys() - interpolated else []
    for seed in seeds:
        for network, row in NETWORKS[SYSTEM.isin(chosen)].iterrows():
            own = "" if row["name"] == SHIPPED else seed
            tokens = {(network, own, token) for token in row["measured"].split()}
            jobs += [(network, own)] if tokens - done and (network, own) not in jobs else []
    return jobs


def hours(jobs: Sequence[Job]) -> float:
    """How long jobs take on one core, by the runs that are recorded, SECONDS where none is."""
    tables = [results.read_runs(place) for place in (KEPT, folder()) if place.is_dir()]
    known = pd.concat(tables).astype({"seconds": float}).groupby("experiment")["seconds"].median()
    names = NETWORKS["name"].reindex([network for network, _ in jobs])
    return float(names.map(known).fillna(SECONDS).sum() / 3600)


def work_all(jobs: Sequence[Job]) -> int:
    """Do jobs one after the other, on one thread; return how many failed, say so in study.log."""
    torch.set_num_threads(1)
    failed = 0
    with open(folder() / "study.log", "a", encoding="utf-8") as log, redirect_stderr(log):
        for job in jobs:
            began = time.monotonic()
            try:
                work(job)
                print(f"{job}: {time.monotonic() - began:.0f} s", file=log, flush=True)
            except InputError as err:
                failed += 1
                print(f"{job} failed: {err}", file=log, flush=True)
    return failed


def gather() -> None:
    """Bring what runs/study has to results/study: values, runs and learning curves."""
    wanted = {
        part["metric"] for text in claims.ledger()["criterion"] for part in claims.parse(text)
    }
    rows = measured_rows()
    tables = {"evidence": rows[rows["metric"].isin(wanted)]}
    histories = [
        pd.read_csv(path).assign(run_id=path.parent.name)
        for path in sorted(folder().glob("checkpoints/*/history.csv"))
    ]
    for name, new, key in (
        ("runs", [results.read_runs(folder())], ["run_id"]),
        ("histories", histories, ["run_id", "step"]),
    ):
        kept = KEPT / f"{name}.csv"
        old = [pd.read_csv(kept, dtype=new[0].dtypes.to_dict())] if new and kept.is_file() else []
        columns = dict.fromkeys(column for table in [*old, *new] for column in table)
        tables[name] = pd.concat([*new, *old])[[*columns]].drop_duplicates(key).sort_values(key)
    for name, table in tables.items():
        with atomic(make_dir(KEPT) / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    every = [*dict.fromkeys(SYSTEM)]
    parser.add_argument("systems", nargs="*", default=every)
    parser.add_argument("--seeds", nargs="+", default=[str(n) for n in range(claims.SEEDS)])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scheduler", help="address or file of a Dask cluster's")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--gather", action="store_true")
    given = parser.parse_args()
    if given.gather:
        gather()
        return 0
    for name in given.systems:
        choose(dict.fromkeys(every), name, "system")
    jobs, cores = missing(given.systems, given.seeds), given.workers
    print(f"{len(jobs)} jobs, about {hours(jobs) / cores:.1f} hours on {cores} cores", flush=True)
    if given.estimate or not jobs:
        return 0
    make_cohorts()
    units: dict[tuple[str, str], list[Job]] = {}
    for network, seed in jobs:
        units.setdefault((SYSTEM.get(network, ""), seed), []).append((network, seed))
    order = [units[unit] for unit in sorted(units)]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that follow
    # by a name that other processes can import
    do = importlib.import_module("study").work_all
    done = share(order, do, workers=cores, scheduler=given.scheduler)
    failed = [result for _, result in done if result != 0]
    gather()
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
