"""Run a model on scans of known truth: write the volumes, measure them, summarize the metrics."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from srlib import metrics
from srlib.core.paths import InputError, StrPath, apart, file_name, make_dir, write_file
from srlib.core.workers import share_all
from srlib.data.manifest import Subject, load_mask
from srlib.degradations.tasks import degradation_of
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume, save_scan
from srlib.systems.trained import Model


def evaluate(
    model: Model,
    subjects: Sequence[Subject],
    folder: StrPath,
    *,
    task: str = "",
    workers: int = 1,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Degrade, enhance and measure scans; write ``NAME_{hr,lr,sr}.nii.gz`` and ``metrics.csv``.

    The table has one row per subject and region. The region ``volume`` is the whole scan, ``mask``
    the voxels inside the subject's mask (both with the truth's data range), and ``masked`` is
    3D-SRGAN's convention: both scans times the mask, data range = joint maximum - minimum. ``task``
    replaces the degradation of the model's training. ``workers`` and ``scheduler`` share the
    subjects, as ``workers.share``. Raises InputError for an unknown task, for an
    output that would overwrite an input scan, a subject whose name cannot name a file, no subject,
    and as ``ObservationModel.make``; nothing is written then.
    """
    if not subjects:
        raise InputError("no subject to evaluate; give at least one row of the manifest this split")
    model.pairs.degradation(task)  # an unknown one is refused now
    folder = make_dir(Path(folder))
    names = [file_name(subject.name, f"subject {subject.name}") for subject in subjects]
    files = [[folder / f"{n}_{kind}.nii.gz" for kind in ("hr", "lr", "sr")] for n in names]
    read = [file for subject in subjects for file in subject.files.values()]
    written = [file for outputs in files for file in outputs]
    apart([*written, folder / "metrics.csv"], read)
    todo, work = [*zip(subjects, files, strict=True)], partial(_evaluate, model, task)
    found = share_all(todo, work, workers=workers, scheduler=scheduler)
    table = pd.DataFrame([row for rows in found for row in rows])
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_file(folder / "metrics.csv", text)
    return table


def _evaluate(model, task, job):
    """Degrade, enhance and measure a subject's scan, and write it to files; its rows."""
    subject, files = job
    pair = model.pairs.make(subject, task)
    estimate, mask = model.predict_pair(pair), load_mask(subject, pair.hr)
    for file, scan in zip(files, (pair.hr, pair.lr, estimate), strict=True):
        save_scan(scan, file)
    hr, sr = pair.hr.data, estimate.data
    quality = metrics.evaluate(hr, sr, mask=mask)
    if mask is not None:
        joint = float(np.ptp([hr.min(), hr.max(), sr.min(), sr.max()]))
        quality["masked"] = metrics.evaluate(hr * mask, sr * mask, joint)["volume"]
    return [{"subject": subject.name, "region": r, **values} for r, values in quality.items()]


def statistics(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, population variance, median, minimum and maximum per region and metric.

    Raises InputError for a subject that stands twice in a region, as in tables of two models.
    """
    twice = table[table.duplicated(["subject", "region"])]
    if len(twice):
        subject, region = twice.iloc[0][["subject", "region"]]
        raise InputError(f"{subject} stands twice in the region {region}; choose one")
    values = table.drop(columns="subject").melt("region", var_name="metric")
    groups = values.groupby(["region", "metric"], sort=False)["value"]
    return groups.agg(
        mean="mean", var=lambda v: v.var(ddof=0), median="median", min="min", max="max"
    )


def measure(
    truth: metrics.Scan,
    estimate: metrics.Scan,
    *,
    mask: metrics.Scan | None = None,
    data_range: float | None = None,
    name: str = "the estimate",
    extended: bool = False,
) -> dict[str, dict[str, float]]:
    """Metrics of an estimate by region (``volume``, and ``mask`` where one is given) and name.

    Of two Volumes, the estimate lies anywhere in the truth's world and covers it
    (``space.resample_to``); arrays and tensors have the truth's shape. ``mask`` is boolean, on the
    truth's grid. Metrics and ``data_range`` are those of ``metrics.evaluate``. ``extended`` adds
    the resolution (in voxels, where the truth is no Volume), HFEN and HaarPSI. Raises InputError,
    which calls the estimate ``name``, where it lies elsewhere, and as ``metrics.psnr``.
    """
    if isinstance(truth, Volume) and isinstance(estimate, Volume):
        estimate = resample_to(estimate, truth, least=1, what=name)
    spacing = getattr(truth, "spacing_mm", (1, 1, 1)) if extended else None
    return metrics.evaluate(truth, estimate, data_range, mask=mask, spacing_mm=spacing)


def consistency(lr: Volume, estimate: Volume, task: str) -> float:
    """Data consistency: PSNR in dB of the estimate, degraded again, against its input ``lr``.

    The LR-PSNR of Lugmayr et al., ECCV 2020; infinite for the truth of a noise-free input. ``task``
    names the degradation, which is applied without its noise. The data range is that of ``lr``.
    Raises InputError for an unknown task, an estimate that it cannot degrade or that does not cover
    ``lr``, and a constant ``lr``.
    """
    degradation = degradation_of(task)
    if hasattr(degradation, "noise"):
        degradation = replace(degradation, noise=0.0)
    again = resample_to(degradation(estimate), lr, least=1, what="the estimate, degraded again,")
    return metrics.psnr(lr, again, float(np.ptp(lr.data)))
