"""Tidy tables of what was run and measured: sorted, in a fixed format, so that a re-run gives the same bytes."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from srlib import metrics
from srlib.core.paths import (
    InputError,
    atomic,
    choose,
    cohort_label,
    locate,
    make_dir,
    sha256,
    source_commit,
)
from srlib.core.tables import read_table
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume
from srlib.systems.base import Experiment

METRIC_KEY = ["run_id", "experiment", "degradation", "dataset", "subject", "region", "metric"]
METRIC_COLUMNS = [*METRIC_KEY, "value"]
RUN_COLUMNS = [
    "run_id", "experiment", "profile", "seed", "commit", "dirty", "started", "seconds", "device", "versions",
    "manifest_sha256", "checkpoint_sha256", "config",
]  # fmt: skip
DIGITS = {
    "psnr": 2,
    "ssim3d": 4,
    "ssim2d": 4,
    "nrmse": 4,
    "sharpness": 3,
}  # shown in tables, in this order
RESAMPLES = 9999  # of the bootstrap
OCCASION = [
    "commit",
    "dirty",
    "started",
    "seconds",
]  # what may differ between two runs that did the same


def run_id(experiment: str, profile: str, seed: int, cohort: str | Path) -> str:
    """Name of a run, also of its folder under ``checkpoints/``."""
    return f"{experiment}-{profile}-s{seed}-{cohort_label(cohort)}"


def _files(table: pd.DataFrame) -> pd.Series:
    """Name of the file for each row: one for all subjects of a run under one degradation, in one dataset and region.

    The region ``mask`` goes with ``volume``, since both are measured at once. Of ``runs.csv`` one for each run.
    """
    parts = table.reindex(
        columns=["run_id", "experiment", "degradation", "dataset", "region"]
    ).dropna(axis=1)
    parts = parts.replace({"region": {"mask": "volume"}})
    names = [
        hashlib.sha256("\n".join(row).encode()).hexdigest()[:16] + ".csv"
        for row in parts.itertuples(index=False)
    ]
    return pd.Series(names, table.index, dtype=str)


def _record(path: Path, rows: pd.DataFrame, without: Iterable[str] = ()) -> None:
    """Put rows into files of their own, in place of those that are there, and make the table at ``path`` of all files.

    ``without`` names files to empty. There is no lock: a file is renamed into place, and whoever has written the table
    looks again for rows that came meanwhile. Rows of the table that no file covers stay.
    """
    folder = make_dir(path.parent / "rows" / path.stem)
    for name, part in [*((name, rows[:0]) for name in without), *rows.groupby(_files(rows))]:
        _write(folder / name, part)
    made = None
    while not (table := _read(path, [*rows])).equals(made):
        _write(path, table)
        made = table


def _write(path: Path, table: pd.DataFrame) -> None:
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """All rows, text, sorted: those of the files, and what else the table at ``path`` holds, as that of a fresh clone."""
    files = sorted((path.parent / "rows" / path.stem).glob("[!.]*.csv"))
    whole = _rows(path, columns) if path.is_file() else pd.DataFrame(columns=columns, dtype=str)
    uncovered = whole[~_files(whole).isin({file.name for file in files})]
    table = pd.concat([*(_rows(file, columns) for file in files), uncovered])
    key = METRIC_KEY if columns == METRIC_COLUMNS else ["run_id"]
    return table.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def _rows(file: Path, columns: list[str]) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    if list(table.columns) != columns:
        raise InputError(
            f"{file}: expected the columns {', '.join(columns)}, got {', '.join(table.columns)}"
        )
    return table


def record_metrics(folder: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Put rows into ``metrics.csv``, in place of all that their runs had under that degradation, dataset and region.

    So give all subjects at once: one that is not measured again is gone. Each row has the columns of ``METRIC_KEY`` and
    a ``value``, of which 6 decimals are kept. Any number of processes may record into one folder. Raises InputError
    when there is none.
    """
    new = pd.DataFrame(list(rows), columns=METRIC_COLUMNS)
    if new.empty:
        raise InputError(
            f"{folder}: nothing was measured; train first, with 'srlib train' or the notebooks 10 to 15"
        )
    new["value"] = [f"{float(v):.6f}" for v in new["value"]]
    _record(Path(folder) / "metrics.csv", new.astype(str))


def measured(
    truth: Volume,
    estimates: Mapping[str, Volume],
    mask: np.ndarray | None = None,
    region: str = "volume",
    data_range: float | None = None,
    runs: Mapping[str, str] | None = None,
    **key: str,
) -> list[dict[str, object]]:
    """Rows of ``metrics.csv`` for estimates of one scan, by experiment; ``key`` holds the other columns.

    ``data_range`` is the truth's maximum - minimum when not given; ``region`` names what the whole of ``truth`` is;
    Estimates lie anywhere in the truth's world and cover it, see ``space.resample_to``; the mask lies on its grid.
    ``runs`` maps trained experiments to their run_id (the others' is their name).
    """
    peak = float(np.ptp(truth.data)) if data_range is None else data_range
    rows = []
    for name, estimate in estimates.items():
        placed = resample_to(estimate, truth, least=1, what=name)
        quality = metrics.evaluate(truth.data, placed.data, peak, mask=mask)
        where = {"run_id": (runs or {}).get(name, name), "experiment": name, **key}
        for part, values in quality.items():
            where["region"] = region if part == "volume" else part
            known = {
                m: v for m, v in values.items() if not np.isnan(v)
            }  # 2-D images have no ssim3d
            rows += [{**where, "metric": m, "value": v} for m, v in known.items()]
    return rows


def record_run(
    folder: str | Path,
    experiment: Experiment,
    profile: str,
    seed: int,
    cohort: str | Path,
    checkpoint: str | Path,
    started: str,
    seconds: float,
    device: str,
) -> str:
    """Put a training run into ``runs.csv`` and return its run_id; ``started`` in ISO 8601, UTC.

    When the same weights came out of the same configuration before, the old row stays as it was. With other weights
    what was measured of the run before leaves ``metrics.csv``.
    """
    packages = ("torch", "numpy", "scipy", "scikit-image", "nibabel")
    row = {
        "run_id": run_id(experiment.name, profile, seed, cohort),
        "experiment": experiment.name,
        "profile": profile,
        "seed": str(seed),
        **source_commit(),
        "started": started,
        "seconds": f"{seconds:.1f}",
        "device": device,
        "versions": " ".join(
            [f"python={platform.python_version()}", *(f"{p}={version(p)}" for p in packages)]
        ),
        "manifest_sha256": sha256(locate(cohort)),
        "checkpoint_sha256": sha256(checkpoint),
        "config": experiment.to_json(),
    }
    old = {r["run_id"]: r for r in read_runs(folder).to_dict("records")}.get(row["run_id"], {})
    if any(old.get(k) != v for k, v in row.items() if k not in OCCASION):
        _record(Path(folder) / "runs.csv", pd.DataFrame([row]))
    if old.get("checkpoint_sha256", row["checkpoint_sha256"]) != row["checkpoint_sha256"]:
        path = Path(folder) / "metrics.csv"
        known = _read(path, METRIC_COLUMNS)
        stale = set(_files(known[known["run_id"] == row["run_id"]]))
        if stale:
            _record(path, known[:0], without=stale)
    return row["run_id"]


def read_runs(folder: str | Path) -> pd.DataFrame:
    """``runs.csv``, all columns text; no rows when nothing was trained yet."""
    return _read(Path(folder) / "runs.csv", RUN_COLUMNS)


def read_metrics(folder: str | Path) -> pd.DataFrame:
    """``metrics.csv`` with numeric values; InputError when nothing was recorded yet."""
    table = _read(Path(folder) / "metrics.csv", METRIC_COLUMNS)
    if table.empty:
        raise InputError(
            f"{folder}: no metrics.csv yet, nothing was measured; run 'srlib run' first"
        )
    return table.assign(value=table["value"].astype(float))


def tested(rows: pd.DataFrame, cohort: str | Path, seed: int | None = None) -> pd.DataFrame:
    """Rows of ``metrics.csv`` for a cohort's tables: without subjects that are not in its split ``test`` any more.

    With ``seed`` the trained runs are those of this seed. Rows of other datasets stay.
    """
    subjects = [row["subject"] for row in read_table(locate(cohort)) if row["split"] == "test"]
    chosen = (rows["dataset"] != cohort_label(cohort)) | rows["subject"].isin(subjects)
    seeds = rows["run_id"].str.extract(
        r"-s(-?\d+)-", expand=False
    )  # see run_id; what is not trained here has none
    return rows[chosen if seed is None else chosen & (seeds.isna() | (seeds == str(seed)))]


def wide(
    rows: pd.DataFrame | Iterable[Mapping], index: Sequence[str], columns: str = "metric"
) -> pd.DataFrame:
    """Values of tidy rows with one row per ``index`` and one column per ``columns``, in their order; nothing is averaged.

    Raises InputError when two values belong in one cell; it names the column in which they differ.
    """
    rows, key = pd.DataFrame(rows).drop_duplicates(), [*index, columns]
    for place, cell in rows[rows.duplicated(key, keep=False)].groupby(key):
        differ = [f"one {c}" for c in cell.columns.drop([*key, "value"]) if cell[c].nunique() > 1]
        choice = " and ".join(differ) or "one of them"
        raise InputError(
            f"{', '.join(place)}: {len(cell)} values where a table has one; choose {choice} first"
        )
    order = rows.set_index([*index]).index.unique()
    return (
        rows.set_index(key)["value"]
        .unstack(columns)
        .reindex(index=order, columns=rows[columns].unique())
    )


def summary(metrics: pd.DataFrame, region: str | None = None) -> pd.DataFrame:
    """Wide table: one row per degradation, subject and experiment, one column per metric, best PSNR last.

    ``region`` is ``mask`` where there are masks and ``volume`` otherwise (where there is neither, the first), when not
    given. Experiments with several runs stand with their run_id, subjects of several datasets with their dataset. Raises
    InputError when no row has the region.
    """
    regions = metrics["region"].unique()
    region = region or next((r for r in ("mask", "volume", *regions) if r in regions), "")
    if region not in regions:
        raise InputError(f"no rows of the region {region!r}; expected one of {', '.join(regions)}")
    chosen = metrics[metrics["region"] == region]
    runs = chosen.groupby("experiment")["run_id"].transform("nunique")
    sets = chosen.groupby("subject")["dataset"].transform("nunique")
    chosen = chosen.assign(
        experiment=chosen["experiment"].where(runs == 1, chosen["run_id"]),
        subject=chosen["subject"].where(sets == 1, chosen["dataset"] + "/" + chosen["subject"]),
    )
    table = wide(chosen, ["degradation", "subject", "experiment"]).reset_index()
    table = table.sort_values(["degradation", "subject", "psnr", "experiment"], ignore_index=True)
    return table.rename_axis(columns=None).reindex(
        columns=["degradation", "subject", "experiment", *DIGITS]
    )


def paired(table: pd.DataFrame, baseline: str = "cubic", metric: str = "psnr") -> pd.DataFrame:
    """Differences to a baseline, scan by scan: one row per degradation and experiment, in the order of the rows.

    Columns: ``n`` scans; their ``mean`` difference; ``low`` and ``high``, its 95 % interval (percentile bootstrap over
    the scans, always the same draws; nan for one scan); ``p`` of a two-sided Wilcoxon signed-rank test (nan without a
    difference), which n scans cannot bring below 2^(1 - n). ``table`` has the columns of ``metrics.csv``. Raises
    InputError when there is more than one region, dataset, or run of an experiment in it, and without the baseline.
    """
    chosen = table[table["metric"] == metric]
    choose(dict.fromkeys(chosen["experiment"]), baseline, f"baseline of {metric}")
    for column, within in (("region", "metric"), ("dataset", "metric"), ("run_id", "experiment")):
        for name, values in chosen.groupby(within)[column].unique().items():
            if len(values) > 1:
                raise InputError(
                    f"{name}: more than one {column} ({', '.join(values)}); choose one of them"
                )
    scans = wide(chosen, ["degradation", "subject"], "experiment")
    differences = scans.sub(scans[baseline], axis=0)
    found = []
    for task, group in differences.groupby(level="degradation", sort=False):
        for name, values in group.items():
            values = values.dropna().to_numpy()
            if len(values):
                found.append({"degradation": task, "experiment": name, **_spread(values)})
    return pd.DataFrame(found)


def _spread(values: np.ndarray) -> dict[str, float]:
    low = high = p = np.nan
    if len(values) > 1:
        means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
    if values.any():
        p = stats.wilcoxon(values).pvalue
    return {"n": len(values), "mean": values.mean(), "low": low, "high": high, "p": p}


def ranks(differences: pd.DataFrame) -> pd.DataFrame:
    """Experiments over all degradations, from what ``paired`` gives of a metric that is better when higher; best first.

    ``mean_rank`` (1 is best, ties share their mean) is taken among the experiments that have every degradation; the
    others have none. ``degradations`` counts those that an experiment has; ``mean``, ``worst`` and ``worst_at`` are over
    these.
    """
    gains = wide(differences.rename(columns={"mean": "value"}), ["experiment"], "degradation")
    gains = gains.sort_index().sort_index(axis="columns")
    columns = {
        "degradations": gains.notna().sum(axis=1),
        "mean_rank": gains.dropna().rank(ascending=False).mean(axis=1),
        "mean": gains.mean(axis=1),
        "worst": gains.min(axis=1),
        "worst_at": gains.idxmin(axis=1),
    }
    return pd.DataFrame(columns).sort_values(
        ["mean_rank", "worst"], ascending=[True, False], kind="stable"
    )
