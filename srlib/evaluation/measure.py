"""A model on every scan of a split: volumes in their place, a table of metrics, and its summary."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from srlib import metrics
from srlib.core.paths import InputError, apart, atomic, choose, file_name, make_dir
from srlib.data.manifest import Subject, load_mask
from srlib.degradations.tasks import TASKS
from srlib.scans.volume import save
from srlib.systems.trained import Model

KINDS = ("hr", "lr", "sr")


def evaluate(
    model: Model,
    subjects: Sequence[Subject],
    folder: str | Path,
    task: str = "",
    max_memory_gb: float | None = None,
) -> pd.DataFrame:
    """Degrade, enhance and measure scans; write ``NAME_{hr,lr,sr}.nii.gz`` and ``metrics.csv`` into a folder.

    One row per subject and region: ``volume`` and, where there is a mask, ``mask`` (the voxels inside, data range of
    the truth) and ``masked`` (3D-SRGAN's convention: both scans times the mask, whole, data range = joint maximum -
    minimum). ``task`` degrades otherwise than in training. Raises InputError as ``make_pair``, for an unknown task,
    when there is no subject, one whose name leads out of the folder, and where an output is one of the scans.
    """
    if task:
        choose(TASKS, task, "task")
    if not subjects:
        raise InputError("no subject to evaluate; give at least one row of the manifest this split")
    folder, rows = make_dir(Path(folder)), []
    names = [
        f"{file_name(s.name, f'subject {s.name}')}_{kind}.nii.gz"
        for s in subjects
        for kind in KINDS
    ]
    apart(
        [folder / name for name in ("metrics.csv", *names)],
        [file for s in subjects for file in s.files.values()],
    )
    for subject in subjects:
        pair = model.experiment.pairs.make(subject, task)
        sr, mask = (
            model.predict_pair(pair, max_memory_gb=max_memory_gb),
            load_mask(subject, pair.hr),
        )
        for kind, scan in zip(KINDS, (pair.hr, pair.lr, sr), strict=True):
            save(scan, folder / f"{subject.name}_{kind}.nii.gz")
        quality = metrics.evaluate(pair.hr.data, sr.data, float(np.ptp(pair.hr.data)), mask=mask)
        if mask is not None:
            joint = float(
                max(pair.hr.data.max(), sr.data.max()) - min(pair.hr.data.min(), sr.data.min())
            )
            quality["masked"] = metrics.evaluate(pair.hr.data * mask, sr.data * mask, joint)[
                "volume"
            ]
        rows += [
            {"subject": subject.name, "region": region, **values}
            for region, values in quality.items()
        ]
    table = pd.DataFrame(rows)
    with atomic(folder / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    return table


def statistics(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, variance (of the population, as NumPy's), median, least and greatest value per region and metric.

    Raises InputError when a subject stands twice in a region, as in tables of two models or tasks put together.
    """
    twice = table[table.duplicated(["subject", "region"])]
    if len(twice):
        raise InputError(
            f"{twice.iloc[0]['subject']} stands twice in the region {twice.iloc[0]['region']}; choose one"
        )
    values = (
        table.drop(columns="subject")
        .melt("region", var_name="metric")
        .groupby(["region", "metric"], sort=False)
    )
    return values["value"].agg(
        mean="mean", var=lambda v: v.var(ddof=0), median="median", min="min", max="max"
    )
