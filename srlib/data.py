"""Manifests (CSV, one row per subject), and the degraded pairs that experiments make of their scans."""

import csv
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srlib.checks import usual_range, wild
from srlib.degrade import Degradation, SparseView, make_degradation
from srlib.experiments import TASKS, Experiment
from srlib.images import load, load_mat, read_shape
from srlib.paths import InputError, ScanWarning, data_dir
from srlib.volume import Scaling, Volume, central, crop_or_pad, fit_scaling, framed, resample, to_window

VOLUMES = ("t1", "t2", "image", "labels", "lr", "mask")
SPLITS = ("train", "val", "eval", "test")


@dataclass(frozen=True)
class Subject:
    """A row of a manifest; ``files`` maps a column (t1, t2, image, labels, lr, mask) to its file."""

    name: str
    split: str
    files: Mapping[str, Path]

    def file(self, column: str) -> Path:
        if column not in self.files:
            raise InputError(f"subject {self.name} has no {column}; add the column {column} to the manifest")
        return self.files[column]


def read_manifest(path: str | Path, split: str | None = None) -> list[Subject]:
    """Subjects of a manifest, or of one split of it; the columns are described in csv/README.md.

    Paths are relative to the CSV's folder or, where not found there, to ``SRLIB_DATA``. Raises InputError
    that names row, column and file: unknown or missing column, missing or unreadable or 4-D volume,
    unknown split, a subject twice or in two splits, a mask or label map whose shape is not the t1's.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read as a CSV ({err}); give the path of a manifest") from err
    rows = [
        (number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1) if any(c.strip() for c in row)
    ]
    if len(rows) < 2:
        raise InputError(f"{path}: expected a header and at least one row, got {len(rows)} lines; see csv/README.md")
    header = rows[0][1]
    unknown = sorted(set(header) - {"subject", "split", *VOLUMES})
    if unknown or not {"subject", "split"} <= set(header) or len(set(header)) < len(header):
        wrong = f"unknown column {unknown[0]!r}" if unknown else "a column is missing or stands twice"
        raise InputError(f"{path}: {wrong}; expected subject, split and any of {', '.join(VOLUMES)}")
    subjects: dict[str, Subject] = {}
    for number, cells in rows[1:]:
        if len(cells) > len(header):
            raise InputError(f"{path}, row {number}: {len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, cells, strict=False))
        name, where = row.get("subject", ""), f"{path}, row {number}"
        if not name:
            raise InputError(f"{where}: the column subject is empty")
        if row.get("split") not in SPLITS:
            raise InputError(f"{where}, column split: expected one of {', '.join(SPLITS)}, got {row.get('split')!r}")
        if name in subjects:
            other = subjects[name].split
            twice = f"in two splits, {other} and {row['split']}" if other != row["split"] else "twice"
            raise InputError(f"{where}, column subject: {name} stands {twice}; one row per subject")
        files = {
            column: _resolve(path, column, row[column], f"{where}, column {column}")
            for column in VOLUMES
            if row.get(column)
        }
        if not files:
            raise InputError(f"{where}: no volume given; fill at least one of {', '.join(VOLUMES)}")
        for column in [c for c in ("labels", "mask") if c in files and "t1" in files]:
            shape, expected = read_shape(files[column]), read_shape(files["t1"])
            if shape != expected:
                raise InputError(f"{where}, column {column}: {files[column]} has shape {shape}, the t1 {expected}")
        subjects[name] = Subject(name, row["split"], files)
    chosen = [s for s in subjects.values() if split in (None, s.split)]
    if not chosen:
        raise InputError(f"{path}: no row has split {split!r}")
    return chosen


def _resolve(manifest: Path, column: str, cell: str, where: str) -> Path:
    for folder in (manifest.parent, data_dir()):
        if (folder / cell).is_file() or (column == "image" and (folder / cell).is_dir()):  # a DICOM series
            file = (folder / cell).absolute()
            if column == "lr" and file.suffix.lower() == ".mat":  # MATLAB has no image header to check
                return file
            try:
                read_shape(file)
            except InputError as err:
                raise InputError(f"{where}: {err}") from err
            return file
    raise InputError(f"{where}: {cell} is neither in {manifest.parent.absolute()} nor in {data_dir()}")


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded scan, on its own grid and interpolated on the high-resolution one, and the truth, in scan units."""

    lr: Volume  # on its own grid
    on_grid: Volume
    hr: Volume
    scaling: Scaling  # fitted on what the network sees, the only one known at prediction time
    reference: Volume | None = None  # another contrast on the grid of ``hr``, where the experiment takes one
    factor: tuple[float, float, float] | None = (
        None  # how much coarser than ``hr`` it resolves, per axis; not of 2-D tasks
    )


def make_pair(subject: Subject, experiment: Experiment, task: str = "", middle: int | None = None) -> Pair:
    """Degrade a subject's scan by a task (the experiment's when empty), or take the degraded one of the manifest.

    ``middle`` cuts the scan to so many voxels of each axis first.

    The given one is a scan anywhere in the same world, which is interpolated by a cubic spline, or a ``.mat`` file on
    the true scan's grid; the reference, too, is brought by its affine alone: no registration is done. A ScanWarning
    names the scan of which few voxels take most of the range.
    """
    hr = load_scan(subject, experiment.contrast, experiment.intensity)
    hr = framed(hr, experiment.frame) if experiment.frame else hr
    hr = central(hr, middle) if middle else hr
    try:
        if experiment.given and "lr" in subject.files:
            file = subject.files["lr"]
            lr = load_mat(file, hr) if file.suffix == ".mat" else load(file)
            on_grid = lr if lr.shape == hr.shape else resample(lr, hr.shape, hr.affine)
            pair = _pair(lr, on_grid, hr, experiment, degradation_of(experiment.task).factor)
        else:
            pair = degraded(hr, experiment, task)
    except InputError as err:
        raise InputError(f"subject {subject.name}, {subject.file(experiment.contrast)}: {err}") from err
    if not experiment.reference:
        return pair
    try:
        reference = bring(load_scan(subject, experiment.reference, experiment.intensity), pair.hr)
    except InputError as err:
        raise InputError(f"subject {subject.name}, {experiment.reference}: {err}") from err
    return dataclasses.replace(pair, reference=reference)


def load_scan(subject: Subject, column: str, rule: str = "minmax") -> Volume:
    """A subject's scan; a ScanWarning names it if a few voxels take most of the range that an intensity rule leaves."""
    scan = load(subject.file(column))
    for line in wild(to_window(scan, rule)):
        warnings.warn(f"subject {subject.name}, {subject.file(column)}: {line}", ScanWarning, stacklevel=3)
    return scan


def degraded(hr: Volume, experiment: Experiment, task: str = "") -> Pair:
    """The pair that a task (the experiment's when empty) makes of a scan, which it may cut at its far faces.

    The truth of few CT views is the reconstruction from all; CT in HU is clipped to the window first.
    """
    degradation = degradation_of(task or experiment.task)
    hr = crop_or_pad(hr, (0, 0, 0), degradation.usable(hr.shape))
    hr = to_window(hr, experiment.intensity)
    lr, hr = degradation.pair(hr) if isinstance(degradation, SparseView) else (degradation(hr), hr)
    on_grid = degradation.to_grid(lr, hr.shape)
    return _pair(lr, on_grid, hr, experiment, degradation.factor if isinstance(degradation.factor, tuple) else None)


def _pair(lr: Volume, on_grid: Volume, hr: Volume, experiment: Experiment, factor: tuple | None) -> Pair:
    scaling = fit_scaling((lr if experiment.lr_grid else on_grid).data, experiment.intensity)
    return Pair(lr, on_grid, hr, scaling, factor=factor)


def degradation_of(task: str) -> Degradation:
    """The degradation of a task in TASKS."""
    name, settings = TASKS[task]
    return make_degradation(name, **settings)


def bring(reference: Volume, grid: Volume, order: int = 3) -> Volume:
    """A scan of another contrast on a scan's grid, by their affines; its minimum, wild voxels apart, where it saw nothing.

    Spline of the given order; nothing is registered. Raises InputError when the two fields of view do not meet.
    """
    if reference.shape == grid.shape and np.allclose(reference.affine, grid.affine, atol=1e-4):
        return reference
    low = max(float(reference.data.min()), usual_range(reference.data)[0])
    brought = resample(reference, grid.shape, grid.affine, order, outside=low)
    if not (brought.data != low).any():
        raise InputError(
            "the reference shows nothing in the scan's field of view; their headers must place both in one world"
        )
    return brought


def network_input(scan: Volume, reference: Volume | None, rule: str) -> np.ndarray:
    """What a network sees: the scan and, where it takes one, the reference, each scaled on its own; (C, X, Y, Z)."""
    return np.stack([fit_scaling(v.data, rule).apply(v.data) for v in (scan, reference) if v is not None])


def baselines(pair: Pair, experiment: Experiment) -> dict[str, Volume]:
    """What needs no training, by name: the input itself where the task stays on its grid, else interpolations."""
    if pair.lr is pair.on_grid:
        return {"sparse_fbp" if TASKS[experiment.task][0] == "sparse_view" else "zero_filled": pair.on_grid}
    linear = degradation_of(experiment.task).to_grid(pair.lr, pair.hr.shape, order=1)
    return {"linear": linear, "cubic": pair.on_grid}


def load_mask(subject: Subject, like: Volume | None = None) -> np.ndarray | None:
    """Where the subject's ``mask`` is non-zero, boolean, on its own grid or that of ``like``; None without a mask."""
    if "mask" not in subject.files:
        return None
    mask = load(subject.files["mask"])
    return (resample(mask, like.shape, like.affine, order=0, outside=0) if like else mask).data != 0


def training_subjects(subjects: Sequence[Subject], experiment: Experiment) -> list[Subject]:
    """The subjects of the split ``train`` that an experiment trains on: its first ``n_train`` by name."""
    return sorted((s for s in subjects if s.split == "train"), key=lambda s: s.name)[: experiment.n_train]
