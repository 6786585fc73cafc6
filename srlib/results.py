"""Tidy tables of what was run and measured: sorted, fixed format, upserted by key, so a re-run gives the same bytes."""

import io
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from srlib import metrics
from srlib.experiments import Experiment
from srlib.paths import InputError, atomic, make_dir, root, sha256
from srlib.space import resample_to
from srlib.volume import Volume

METRIC_KEY = ["run_id", "experiment", "degradation", "dataset", "subject", "region", "metric"]
RUN_COLUMNS = [
    "run_id", "experiment", "profile", "seed", "commit", "dirty", "started", "seconds", "device", "versions",
    "manifest_sha256", "checkpoint_sha256", "config",
]  # fmt: skip
DIGITS = {"psnr": 2, "ssim3d": 4, "ssim2d": 4, "nrmse": 4, "sharpness": 3}  # shown in tables, in this order
RESAMPLES = 9999  # of the bootstrap
OCCASION = ["commit", "dirty", "started", "seconds"]  # what may differ between two runs that did the same


def run_id(experiment: str, profile: str, seed: int, cohort: str | Path) -> str:
    """Name of a run, also of its folder under ``checkpoints/``."""
    return f"{experiment}-{profile}-s{seed}-{Path(cohort).stem}"


def _write(path: Path, table: pd.DataFrame, key: list[str]) -> None:
    make_dir(path.parent)
    table = table.drop_duplicates(key, keep="last").sort_values(key)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=columns, dtype=str)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != columns:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(table.columns)}")
    return table


def record_metrics(folder: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Upsert rows into ``metrics.csv``; each has the columns of ``METRIC_KEY`` and a ``value`` (kept to 6 decimals)."""
    path, columns = Path(folder) / "metrics.csv", [*METRIC_KEY, "value"]
    new = pd.DataFrame(rows, columns=columns)
    new["value"] = [f"{float(v):.6f}" for v in new["value"]]
    _write(path, pd.concat([_read(path, columns), new.astype(str)]), METRIC_KEY)


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
    return [
        {"run_id": (runs or {}).get(name, name), "experiment": name, **key, "region": where, "metric": m, "value": v}
        for name, estimate in estimates.items()
        for placed in [resample_to(estimate, truth, least=1, what=name)]
        for where, values in metrics.evaluate(truth.data, placed.data, peak, mask).items()
        for where in [region if where == "volume" else where]
        for m, v in values.items()
        if not np.isnan(v)  # 2-D images have no ssim3d
    ]


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
    """Upsert a training run into ``runs.csv`` and return its run_id; ``started`` in ISO 8601, UTC.

    When the same weights came out of the same configuration before, the old row stays as it was.
    """
    path = Path(folder) / "runs.csv"
    packages = ("torch", "numpy", "scipy", "scikit-image", "nibabel")
    row = {
        "run_id": run_id(experiment.name, profile, seed, cohort),
        "experiment": experiment.name,
        "profile": profile,
        "seed": str(seed),
        **_git_state(),
        "started": started,
        "seconds": f"{seconds:.1f}",
        "device": device,
        "versions": " ".join([f"python={platform.python_version()}", *(f"{p}={version(p)}" for p in packages)]),
        "manifest_sha256": sha256(cohort),
        "checkpoint_sha256": sha256(checkpoint),
        "config": experiment.to_json(),
    }
    table = read_runs(folder)
    old = table[table["run_id"] == row["run_id"]].drop(columns=OCCASION)
    if old.empty or old.iloc[0].to_dict() != {k: v for k, v in row.items() if k not in OCCASION}:
        _write(path, pd.concat([table, pd.DataFrame([row], columns=RUN_COLUMNS)]), ["run_id"])
    return row["run_id"]


def _git_state() -> dict[str, str]:
    """Commit of the checkout, and whether what computes results differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "srlib", "notebooks", "csv", "pyproject.toml")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": "yes" if changed else "no"}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": "unknown"}


def read_runs(folder: str | Path) -> pd.DataFrame:
    """``runs.csv``, all columns text; no rows when nothing was trained yet."""
    return _read(Path(folder) / "runs.csv", RUN_COLUMNS)


def read_metrics(folder: str | Path) -> pd.DataFrame:
    """``metrics.csv`` with numeric values; InputError when nothing was recorded yet."""
    table = _read(Path(folder) / "metrics.csv", [*METRIC_KEY, "value"])
    if table.empty:
        raise InputError(f"{folder}: no metrics.csv yet; run 'srlib run' first")
    return table.assign(value=table["value"].astype(float))


def summary(metrics: pd.DataFrame, region: str | None = None) -> pd.DataFrame:
    """Wide table: one row per degradation, subject and experiment, one column per metric, best PSNR last.

    ``region`` is ``mask`` where there are masks and ``volume`` otherwise (where there is neither, the first), when not
    given. Raises InputError when no row has it.
    """
    region = region or next(r for r in ("mask", "volume", *metrics["region"]) if (metrics["region"] == r).any())
    chosen = metrics[metrics["region"] == region]
    if chosen.empty:
        raise InputError(f"no rows of the region {region!r}; expected one of {', '.join(metrics['region'].unique())}")
    wide = chosen.pivot_table("value", ["degradation", "subject", "experiment"], "metric").reset_index()
    wide = wide.sort_values(["degradation", "subject", "psnr"], kind="stable", ignore_index=True)
    return wide.rename_axis(columns=None).reindex(columns=["degradation", "subject", "experiment", *DIGITS])


def paired(table: pd.DataFrame, baseline: str = "cubic", metric: str = "psnr") -> pd.DataFrame:
    """Differences to a baseline, scan by scan: one row per degradation and experiment, in the order of the rows.

    Columns: ``n`` scans; their ``mean`` difference; ``low`` and ``high``, its 95 % interval (percentile bootstrap over
    the scans, always the same draws; nan for one scan); ``p`` of a two-sided Wilcoxon signed-rank test (nan without a
    difference), which n scans cannot bring below 2^(1 - n). ``table`` has the columns of ``metrics.csv``, one region.
    """
    chosen = table[table["metric"] == metric]
    wide = chosen.pivot_table("value", ["degradation", "subject"], "experiment", sort=False)
    differences = wide.sub(wide[baseline], axis=0)
    found = []
    for task, group in differences.groupby(level="degradation", sort=False):
        for name, values in group.items():
            values = values.dropna().to_numpy()
            if len(values):
                found.append({"degradation": task, "experiment": name, "n": len(values), **_spread(values)})
    return pd.DataFrame(found)


def _spread(values: np.ndarray) -> dict[str, float]:
    low = high = p = np.nan
    if len(values) > 1:
        means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
    if values.any():
        p = stats.wilcoxon(values).pvalue
    return {"mean": values.mean(), "low": low, "high": high, "p": p}


def ranks(differences: pd.DataFrame) -> pd.DataFrame:
    """Experiments over all degradations, from what ``paired`` gives of a metric that is better when higher; best first.

    ``mean_rank`` (1 is best, ties share their mean) is taken among the experiments that have every degradation; the
    others have none. ``degradations`` counts those that an experiment has; ``mean``, ``worst`` and ``worst_at`` are over
    these.
    """
    wide = differences.pivot(index="experiment", columns="degradation", values="mean")
    columns = {
        "degradations": wide.notna().sum(axis=1),
        "mean_rank": wide.dropna().rank(ascending=False).mean(axis=1),
        "mean": wide.mean(axis=1),
        "worst": wide.min(axis=1),
        "worst_at": wide.idxmin(axis=1),
    }
    return pd.DataFrame(columns).sort_values(["mean_rank", "worst"], ascending=[True, False], kind="stable")


def to_text(table: pd.DataFrame, markdown: bool = False) -> str:
    """A summary as aligned text or as a Markdown table, metrics to fixed digits."""
    table = table.dropna(axis="columns", how="all")  # single slices have no 3-D SSIM
    cells = [[f"{v:.{DIGITS[c]}f}" if c in DIGITS else str(v) for c, v in row.items()] for _, row in table.iterrows()]
    rows = [list(table.columns), *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if markdown:
        rows.insert(1, ["-" * (w - 1) + (":" if i > 2 else "-") for i, w in enumerate(widths)])
    out = io.StringIO()
    for row in rows:
        padded = [
            cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        out.write(("| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()) + "\n")
    return out.getvalue()
