"""Compare a run with the reference, number by number, and say what was reproduced."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from srlib.core.paths import InputError, StrPath, root
from srlib.evaluation.results import METRIC_KEY, read_metrics
from srlib.systems.registry import EXPERIMENTS

SURE = 0.99  # of the prediction intervals of trained networks' numbers
SAME, SHARE = {"psnr": 0.005}, 2e-3  # tolerances of the others: in dB, else a share of the value
# the least standard deviation over seeds that is believed, in dB or shares: how far one seed's
# networks lay apart on two processors (ours; results/README.md)
LEAST = {"psnr": 0.18}
LEAST_SHARES = {"ssim3d": 0.0017, "ssim2d": 0.0029, "nrmse": 0.021, "sharpness": 0.03}
LINES = 20  # numbers that the verdict names, at most
_KIND = ["form", "degradation", "region", "metric"]
_KEY = [*METRIC_KEY, "form"]


def references(run: StrPath) -> list[Path]:
    """Folders of the reference of a run: of what a clone alone gives, and what authors' files add.

    They have the name of the run's folder; there are none for a cohort of one's own.
    """
    name = Path(run).resolve().name
    return [
        f
        for f in (root() / "results" / name, root() / "results" / f"{name}_published")
        if f.is_dir()
    ]


def compare(run: StrPath, reference: Sequence[StrPath] = ()) -> pd.DataFrame:
    """The numbers of a run beside the reference's: one row each, as in ``metrics.csv``.

    ``run_id`` comes without the seed, which is a column. ``value`` counts as ``reproduced`` from
    ``low`` to ``high``, about the ``mean`` of the reference. Without training it may differ by SAME
    or SHARE. With training it must lie in the prediction interval for one further normal
    observation (Hahn and Meeker, Statistical Intervals, 1991, chapter 4): mean ± t s √(1 + 1/n)
    for n seeds. The variance s² over the seeds is pooled over networks of one form (with a global
    residual or not) that have this degradation, region and metric; a network adds n - 1 degrees of
    freedom, whatever its number of scans. A number that one side lacks is NaN there. Raises
    InputError for a side without numbers.
    """
    reference = reference or references(run)
    if not reference:
        raise InputError(
            f"{run}: no reference has the name of this folder; name one, a folder with a metrics.csv"
        )
    ours = _keyed(read_metrics(run))
    theirs = pd.concat(map(read_metrics, reference)).drop_duplicates(METRIC_KEY)
    table = _keyed(theirs).groupby(_KEY)["value"].agg(["mean", "var", "count"]).reset_index()
    table = table.join(_pooled(table), on=_KIND)
    sigma = np.sqrt(table["pooled"]).clip(lower=_allowed(table, LEAST, LEAST_SHARES))
    chance = scipy.stats.t.ppf((1 + SURE) / 2, table["freedom"].clip(lower=1))
    margin = chance * sigma * np.sqrt(1 + 1 / table["count"])
    margin = margin.where(table["form"] != "untrained", _allowed(table, SAME, {}))
    table = table.assign(low=table["mean"] - margin, high=table["mean"] + margin)
    table = ours.merge(table[[*_KEY, "mean", "low", "high"]], on=_KEY, how="outer")
    return table.assign(reproduced=table["value"].between(table["low"], table["high"]))


def _keyed(rows):
    """Rows with the seed apart from the run_id, and the form of what made them."""
    parts = rows["run_id"].str.extract(r"^(.+?-s)(-?\d+)(-.+)$")
    trained = parts[1].notna()
    run = (parts[0] + parts[2]).where(trained, rows["run_id"])
    names = rows["experiment"].str.partition("+")[0]
    form = names.map(_form).where(trained, "untrained")
    return rows.assign(run_id=run, seed=parts[1].fillna(""), form=form)


@functools.cache
def _form(name):
    """``residual`` for an experiment whose network adds to its input, else ``image``."""
    network = EXPERIMENTS[name].network.build() if name in EXPERIMENTS else None
    return "residual" if getattr(network, "residual", False) else "image"


def _allowed(table, absolute, shares):
    """How far numbers may lie from their mean: by metric an absolute value, else a share of it."""
    share = table["metric"].map(shares).fillna(SHARE) * table["mean"].abs()
    return table["metric"].map(absolute).fillna(share)


def _pooled(table):
    """The pooled variance over seeds of each kind of number, and the freedom that it has."""
    freedom = table["count"] - 1
    networks = table.assign(freedom=freedom, pooled=table["var"].fillna(0) * freedom)
    networks = networks.groupby([*_KIND, "run_id"])[["freedom", "pooled"]].mean()
    kinds = networks.groupby(_KIND).sum()
    return kinds.assign(pooled=kinds["pooled"] / kinds["freedom"].clip(lower=1))


def means(table: pd.DataFrame) -> pd.DataFrame:
    """What ``compare`` found of each experiment under a degradation, for ``figures.intervals``.

    The mean PSNR over its scans, as the difference from the reference's.
    """
    rows = table[table["metric"] == "psnr"].dropna(subset=["mean", "value"])
    names = rows["degradation"] + " (" + rows["region"] + ")  " + rows["experiment"]
    found = rows.groupby(names)[["value", "low", "high", "mean"]].mean()
    found = found.sub(found["mean"], axis=0)
    return found.assign(good=found["value"].between(found["low"], found["high"]))


def verdict(table: pd.DataFrame) -> list[str]:
    """What ``compare`` found, in lines: how many numbers are reproduced, and which are not."""
    known = table.dropna(subset="mean")
    there = known.dropna(subset="value")
    if there.empty:
        return ["verdict: no number of this run is in the reference"]
    wrong = there[~there["reproduced"]]
    said = f"verdict: {len(there) - len(wrong):,} of {len(there):,} numbers reproduced"
    lines = [said + (f"; {len(wrong):,} are not:" if len(wrong) else "")]
    margin = (wrong["high"] - wrong["mean"]).clip(lower=1e-9)
    far = ((wrong["value"] - wrong["mean"]).abs() / margin).sort_values(ascending=False)
    for row in wrong.loc[far.index[:LINES]].itertuples():
        name = f"{row.experiment} (seed {row.seed})" if row.seed else row.experiment
        place = f"{row.degradation}, {row.subject}, {row.region}, {row.metric}"
        lines.append(
            f"  {name}, {place}: {row.value:.4f}, reference {row.mean:.4f}, "
            f"expected {row.low:.4f} to {row.high:.4f}"
        )
    if len(wrong) > LINES:
        lines.append(f"  and {len(wrong) - LINES:,} more")
    for text, count in (
        ("of the reference are missing in this run", known["value"].isna().sum()),
        ("of this run are not in the reference", table["mean"].isna().sum()),
    ):
        lines += [f"{count:,} numbers {text}"] if count else []
    return lines
