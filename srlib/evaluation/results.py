"""Tables of runs and measured values as CSV: sorted, in a fixed format, equal for equal results."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from srlib.core.paths import (
    InputError,
    StrPath,
    choose,
    cohort_label,
    explained,
    locate,
    make_dir,
    root,
    sha256,
    source_commit,
    write_file,
)
from srlib.core.tables import read_table
from srlib.data.manifest import read_cohorts
from srlib.evaluation.quality import measure
from srlib.scans.formats import once
from srlib.scans.volume import Volume
from srlib.systems.base import Experiment

METRIC_KEY = ["run_id", "experiment", "degradation", "dataset", "subject", "region", "metric"]
METRIC_COLUMNS = [*METRIC_KEY, "value"]
OCCASION = ["commit", "dirty", "started", "seconds"]  # differ between two equal runs
RUN_COLUMNS = [
    "run_id", "experiment", "profile", "seed", *OCCASION, "device", "versions",
    "manifest_sha256", "checkpoint_sha256", "config",
]  # fmt: skip
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "nibabel")  # whose versions are recorded
DIGITS = {"psnr": 2, "ssim3d": 4, "ssim2d": 4, "nrmse": 4, "sharpness": 3}  # shown, in this order
REGIONS = ("mask", "volume", "centre", "crop")  # of the main table, the first that a task has
BASELINES = ("cubic", "zero_filled", "sparse_fbp")  # what gains are over, the first that is there
CONVENTIONS = {  # of regions
    "volume": "whole scan; data range of the truth",
    "crop": "middle of the scan, cut before degrading; data range of the truth",
    "crop122": "the same, 122 voxels per axis",
    "crop_printed": "as printed: that middle / 4095; data range 1 for PSNR, 2 for SSIM",
    "printed": "as printed: whole image, each side to [0, 1]; data range 1; Gaussian windows",
}


def run_id(experiment: str, profile: str, seed: int, cohort: StrPath) -> str:
    """Name of a run, also of its folder under ``checkpoints/``."""
    return f"{experiment}-{profile}-s{seed}-{cohort_label(cohort)}"


def _files(table):
    """Name of each row's file, which holds a run's rows of one degradation, dataset and region.

    The region ``mask`` shares the file of ``volume``, since both are measured at once. In
    ``runs.csv`` each run has its own file.
    """
    groups = ["run_id", "experiment", "degradation", "dataset", "region"]
    parts = table.filter(groups).replace({"region": {"mask": "volume"}})
    hashes = [hashlib.sha256("\n".join(row).encode()).hexdigest() for row in parts.to_numpy()]
    return pd.Series([f"{name[:16]}.csv" for name in hashes], table.index, dtype=str)


def _record(path, rows, stale=()):
    """Write rows into their files, then collect the rows of all files in the table at ``path``.

    Files named in ``stale`` become empty. There is no lock: files are renamed into place, and the
    process that wrote the table reads the files again, until it finds no rows of other processes.
    """
    folder = make_dir(path.parent / "rows" / path.stem)
    for name in stale:
        _write(folder / name, rows[:0])
    for name, part in rows.groupby(_files(rows)):
        _write(folder / name, part)
    written = None
    while not (table := _read(path, [*rows])).equals(written):
        _write(path, table)
        written = table


def _write(path, table):
    """Write a table as CSV."""
    write_file(path, table.to_csv(index=False, lineterminator="\n"))


def _read(path, columns):
    """All rows as text, sorted: those of the files, and those of the table that have no file.

    A fresh clone has the table only.
    """
    files = sorted((path.parent / "rows" / path.stem).glob("[!.]*.csv"))
    whole = _rows(path, columns) if path.is_file() else pd.DataFrame(columns=columns, dtype=str)
    cloned = whole[~_files(whole).isin([file.name for file in files])]
    table = pd.concat([*(_rows(file, columns) for file in files), cloned])
    key = [name for name in METRIC_KEY if name in columns]
    return table.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


@once  # a run has hundreds of such files
def _table(file):
    """A CSV, all cells text."""
    with explained(file, "it is no table", "delete it, and run again what wrote it"):
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def _rows(file, columns):
    """The rows of a file; InputError for other columns."""
    table = _table(file)
    if [*table] != columns:
        raise InputError(
            f"{file}: expected the columns {', '.join(columns)}, got {', '.join(table)}"
        )
    return table


def record_metrics(folder: StrPath, rows: Iterable[Mapping[str, object]]) -> None:
    """Put rows into ``metrics.csv``; they replace all rows of the same run, degradation, dataset
    and region.

    Give all subjects at once: a subject without new rows is removed. Each row has the columns of
    ``METRIC_KEY`` and a ``value``, which is rounded to 6 decimals. Any number of processes may
    record into one folder. Raises InputError when there are no rows.
    """
    new = pd.DataFrame(rows, columns=METRIC_COLUMNS)
    if new.empty:
        raise InputError(
            f"{folder}: nothing was measured; train first, with 'srlib train' or notebooks 10 to 15"
        )
    new["value"] = [f"{float(v):.6f}" for v in new["value"]]
    _check_single(new[new.duplicated(METRIC_KEY, keep=False)], ["value"], METRIC_KEY)
    _record(Path(folder) / "metrics.csv", new.astype(str))


def measured(
    truth: Volume,
    estimates: Mapping[str, Volume],
    *,
    mask: np.ndarray | None = None,
    region: str = "volume",
    data_range: float | None = None,
    runs: Mapping[str, str] | None = None,
    extended: bool = False,
    **key: str,
) -> list[dict[str, object]]:
    """Rows of ``metrics.csv`` for estimates of one scan; ``key`` holds the other columns.

    ``estimates`` maps experiments to scans that cover the truth in the world, on any grid
    (``quality.measure``, also for errors and ``extended``). ``mask`` lies on the truth's grid.
    ``region`` names the whole of ``truth``. ``data_range`` is by default the truth's maximum -
    minimum. ``runs`` maps trained experiments to their run_id; the run_id of others is their name.
    """
    rows = []
    for name, estimate in estimates.items():
        quality = measure(
            truth, estimate, mask=mask, data_range=data_range, name=name, extended=extended
        )
        where = {"run_id": (runs or {}).get(name, name), "experiment": name, **key}
        for part, values in quality.items():
            where["region"] = region if part == "volume" else part
            for metric, value in values.items():
                if not np.isnan(value):  # 2-D images have no ssim3d
                    rows.append({**where, "metric": metric, "value": value})
    return rows


def record_run(
    folder: StrPath,
    experiment: Experiment,
    *,
    cohort: StrPath,
    checkpoint: StrPath,
    **columns: object,
) -> None:
    """Put a training run into ``runs.csv``.

    ``columns`` are ``run_id``, ``profile``, ``seed``, ``started`` (ISO 8601, UTC), ``seconds`` and
    ``device``. The old row stays when the same configuration gave the same weights before. When the
    weights changed, the run's old rows leave ``metrics.csv``.
    """
    versions = [f"python={platform.python_version()}", *(f"{p}={version(p)}" for p in PACKAGES)]
    row = {
        **columns,
        **source_commit(),
        "experiment": experiment.name,
        "versions": " ".join(versions),
        "manifest_sha256": sha256(locate(cohort)),
        "checkpoint_sha256": sha256(checkpoint),
        "config": experiment.to_json(),
    }
    new, before = pd.DataFrame([row], columns=RUN_COLUMNS).astype(str), read_runs(folder)
    old = before[before["run_id"] == row["run_id"]].reset_index(drop=True)
    if not old.drop(columns=OCCASION).equals(new.drop(columns=OCCASION)):
        _record(Path(folder) / "runs.csv", new)
    if [*old["checkpoint_sha256"]] not in ([], [row["checkpoint_sha256"]]):
        path = Path(folder) / "metrics.csv"
        known = _read(path, METRIC_COLUMNS)
        if stale := set(_files(known[known["run_id"] == row["run_id"]])):
            _record(path, known[:0], stale)


def read_runs(folder: StrPath) -> pd.DataFrame:
    """``runs.csv`` with all columns as text; no rows before the first training."""
    return _read(Path(folder) / "runs.csv", RUN_COLUMNS)


def read_metrics(folder: StrPath) -> pd.DataFrame:
    """``metrics.csv`` with numeric values; InputError when nothing was recorded yet."""
    table = _read(Path(folder) / "metrics.csv", METRIC_COLUMNS)
    if table.empty:
        raise InputError(f"{folder}: nothing was measured yet; run 'srlib run' first")
    with explained(folder, "metrics.csv has a value that is no number", "correct or delete it"):
        return table.astype({"value": float})


def tested(rows: pd.DataFrame, cohort: StrPath, seed: int | None = None) -> pd.DataFrame:
    """Rows of ``metrics.csv`` for a cohort's tables: only subjects of its present split ``test``.

    ``cohort`` may be a table of cohorts. With ``seed``, trained runs of other seeds are left out.
    Rows of other datasets stay.
    """
    chosen = pd.Series(True, rows.index)
    for manifest in [*read_cohorts(cohort).values()] or [locate(cohort)]:
        if manifest.is_file():
            names = [row["subject"] for row in read_table(manifest) if row["split"] == "test"]
            chosen &= (rows["dataset"] != cohort_label(manifest)) | rows["subject"].isin(names)
    seeds = rows["run_id"].str.extract(r"-s(-?\d+)-", expand=False)  # none for other methods
    return rows[chosen if seed is None else chosen & (seeds.isna() | (seeds == str(seed)))]


def _check_single(rows, columns, within):
    """Raise InputError for rows that agree in ``within`` and differ in one of the columns."""
    for column in columns:
        for place, values in rows.groupby(within)[column].unique().items():
            if len(values) > 1:
                found = ", ".join(map(str, values))
                raise InputError(f"{place}: more than one {column} ({found}); choose one of them")


def wide(
    rows: pd.DataFrame | Iterable[Mapping], index: Sequence[str], columns: str = "metric"
) -> pd.DataFrame:
    """Values of tidy rows: one row per ``index``, one column per ``columns``, in their order.

    Nothing is averaged: InputError for two values of one cell names the column that differs.
    """
    rows, key = pd.DataFrame(rows).drop_duplicates(), [*index, columns]
    _check_single(rows[rows.duplicated(key, keep=False)], rows.columns.drop(key), key)
    table = rows.pivot(index=[*index], columns=columns, values="value")
    order = rows.set_index([*index]).index.unique()
    return table.reindex(index=order, columns=rows[columns].unique())


def beside_printed(folder: StrPath, system: str) -> pd.DataFrame:
    """The figures that others printed for a system, ours beside them, and the conventions of both.

    Ours are means over all scans in the folder's ``metrics.csv``, if any, of the row that the
    column ``ours`` of ``csv/reported.csv`` names: experiment, degradation, region and metric.
    """
    printed = pd.read_csv(root() / "csv" / "reported.csv").query("system == @system")
    rows = _read(Path(folder) / "metrics.csv", METRIC_COLUMNS).astype({"value": float})
    names = rows["experiment"] + " " + rows["degradation"] + " " + rows["region"]
    values = rows.groupby(names + " " + rows["metric"])["value"]
    ours = values.agg(ours_mean="mean", ours_scans="count")
    regions = printed["ours"].str.split().str[2].map(CONVENTIONS)
    found = printed.join(ours, on="ours").assign(ours_conventions=regions)
    return found.astype({"subjects": "Int64", "ours_scans": "Int64"})


def shown(rows: pd.DataFrame, region: str = "") -> pd.DataFrame:
    """The rows of one region.

    By default it is that of whole scans, by dataset and degradation the first of REGIONS, and
    ``crop`` only for datasets without one; else the first in the table. Raises InputError when no
    row has the region.
    """
    ranks = rows["region"].map({name: rank for rank, name in enumerate(REGIONS)})
    cut = rows["region"] == "crop"
    ranks = ranks.mask(cut & rows["dataset"].isin(rows["dataset"][~cut & ranks.notna()]))
    if region or ranks.isna().all():
        regions = dict.fromkeys(rows["region"])
        region = region or next(iter(regions), "")
        choose(regions, region, "region")
        return rows[rows["region"] == region]
    where = [rows["dataset"], rows["degradation"]]
    return rows[ranks == ranks.groupby(where).transform("min")]


def gains(rows: pd.DataFrame, region: str = "") -> pd.DataFrame:
    """The metrics of a region (``shown``) as columns, and ``gain``: PSNR over interpolation's (dB).

    A row per degradation, subject, experiment and run. Interpolation is the first of BASELINES that
    the degradation has. A degradation of several datasets stands once for each, with its name.
    Raises InputError as ``shown``, and without PSNR.
    """
    key = ["degradation", "subject", "experiment", "run_id"]
    rows = shown(rows, region)
    tasks, sets = rows["degradation"], rows["dataset"]
    alone = sets.groupby(tasks).transform("nunique") == 1
    rows = rows.assign(degradation=tasks.where(alone, tasks + ", " + sets))
    table, found = wide(rows.drop(columns="dataset"), key).reset_index(), []
    choose(table, "psnr", "metric of these rows")
    for _, group in table.groupby("degradation"):
        base = next((b for b in BASELINES if b in group["experiment"].values), None)
        given = group[group["experiment"] == base].set_index("subject")["psnr"]
        found.append(group.assign(gain=group["psnr"] - group["subject"].map(given)))
    return pd.concat(found)


def standing(rows: pd.DataFrame, region: str = "") -> pd.DataFrame:
    """Experiments of each degradation in a region, best first: means over scans and seeds.

    ``gain`` is that of ``gains``; ``spread`` its standard deviation over ``seeds`` (nan for one),
    each the mean over ``scans``. ``rank`` goes from 1 more than the experiments that are clearly
    better to those that are not clearly worse: two are tied when their difference is at most
    √(spread² + spread²). Without interpolation PSNR is compared. Raises InputError as ``gains``.
    """
    found = []
    for (task, name), own in gains(rows, region).groupby(["degradation", "experiment"]):
        seeds = own.groupby("run_id")["gain"].mean()
        row = {"degradation": task, "experiment": name, "spread": seeds.std(), "seeds": len(seeds)}
        means = own.reindex(columns=["gain", *DIGITS]).mean()
        found.append({**row, "scans": own["subject"].nunique(), **means})
    order = ["degradation", "gain", "psnr", "experiment"]
    up = [True, False, False, True]
    table = pd.DataFrame(found).sort_values(order, ascending=up, ignore_index=True)
    tasks = table.groupby("degradation", sort=False)
    ranks = [rank for _, group in tasks for rank in _ranks(group)]
    order = ["degradation", "experiment", "rank", "gain", "spread", *DIGITS, "scans", "seeds"]
    return table.assign(rank=ranks)[order]


def _ranks(group):
    """The ranks of one degradation's experiments, such as ``1`` or ``2-3``."""
    compared = "psnr" if group["gain"].isna().all() else "gain"
    gain, spread = group[compared].to_numpy(), group["spread"].fillna(0).to_numpy()
    ahead = gain[:, None] - gain > np.hypot(spread[:, None], spread)  # of the row over the column
    places = zip(1 + ahead.sum(axis=0), len(gain) - ahead.sum(axis=1), strict=True)
    return [f"{first}" if first == last else f"{first}-{last}" for first, last in places]


def paired(table: pd.DataFrame, baseline: str = "cubic", metric: str = "psnr") -> pd.DataFrame:
    """Differences to a baseline, scan by scan: one row per degradation and experiment.

    Columns: ``n`` scans; their ``mean`` difference; its 95 % interval from ``low`` to ``high``
    (percentile bootstrap over the scans with fixed draws; nan for one scan); ``p`` of a two-sided
    Wilcoxon signed-rank test (nan without a difference), at least 2^(1 - n). ``table`` has the
    columns of ``metrics.csv``. Raises InputError without the baseline, and for more than one
    region, dataset, or run of an experiment.
    """
    chosen = table[table["metric"] == metric]
    choose([*chosen["experiment"].unique()], baseline, f"baseline of {metric}")
    _check_single(chosen, ("region", "dataset"), "metric")
    _check_single(chosen, ["run_id"], "experiment")
    scans = wide(chosen, ["degradation", "subject"], "experiment")
    differences = scans.sub(scans[baseline], axis=0)
    found = []
    for task, group in differences.groupby(level="degradation", sort=False):
        for name, values in group.items():
            values = values.dropna().to_numpy()
            if len(values):
                found.append({"degradation": task, "experiment": name, **_spread(values)})
    return pd.DataFrame(found)


def _spread(values):
    """What ``paired`` tells of a row's differences."""
    low = high = p = np.nan
    if len(values) > 1:
        draws = scipy.stats.bootstrap((values,), np.mean, method="percentile", random_state=0)
        low, high = draws.confidence_interval
    if values.any():
        p = scipy.stats.wilcoxon(values).pvalue
    return {"n": len(values), "mean": values.mean(), "low": low, "high": high, "p": p}


def ranks(differences: pd.DataFrame) -> pd.DataFrame:
    """Experiments over all degradations, best first, from ``paired`` of a metric to maximize.

    ``degradations`` counts those that an experiment has; ``mean``, ``worst`` and ``worst_at`` are
    over these. ``mean_rank`` (1 is best, ties share their mean) compares the experiments that have
    every degradation; the others have none.
    """
    gains = differences.pivot(index="experiment", columns="degradation", values="mean")
    columns = {
        "degradations": gains.notna().sum(axis=1),
        "mean_rank": gains.dropna().rank(ascending=False).mean(axis=1),
        "mean": gains.mean(axis=1),
        "worst": gains.min(axis=1),
        "worst_at": gains.idxmin(axis=1),
    }
    order = ["mean_rank", "worst"]
    return pd.DataFrame(columns).sort_values(order, ascending=[True, False], kind="stable")
