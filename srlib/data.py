"""Manifests (CSV, one row per subject), and the degraded pairs that experiments make of their scans."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srlib.checks import usual_range, wild
from srlib.degrade import Degradation, SparseView, make_degradation
from srlib.dicom import is_series
from srlib.experiments import TASKS, Experiment
from srlib.images import Grid, load, load_mat, read_grid
from srlib.paths import InputError, ScanWarning, choose, data_dir, locate
from srlib.space import covered, resample_to, same_lattice
from srlib.tables import VOLUMES, check_name, read_table
from srlib.volume import Scaling, Volume, central, crop_or_pad, fit_scaling, framed, resample, to_window

GIVEN_COVERS = 0.9  # share of a true scan that a given low-resolution one shows at least; the rest is mirrored
SPLITS = ("train", "val", "eval", "test")
EDGE = 1e-3  # voxels by which scans that only touch may seem to overlap


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
    that names row, column and file: what ``read_table`` refuses, a missing or unreadable or 4-D volume, an
    unknown split, a subject twice or with a name that cannot name a file, a mask or label map that lies nowhere in the
    t1 (its grid may be another).
    """
    path, subjects, taken = locate(path), [], {}
    folders = path.parent.absolute(), data_dir()
    for row in read_table(path, ("subject", "split"), VOLUMES):
        name, split_ = row["subject"], row["split"]
        check_name(name, f"{row.place}, column subject", taken)
        if split_ not in SPLITS:
            raise InputError(f"{row.place}, column split: expected one of {', '.join(SPLITS)}, got {split_!r}")
        files = {c: _resolve(folders, c, row[c], f"{row.place}, column {c}") for c in VOLUMES if row.get(c)}
        if not files:
            raise InputError(f"{row.place}: no volume given; fill at least one of {', '.join(VOLUMES)}")
        for column in [c for c in ("labels", "mask") if c in files and "t1" in files]:
            if not _meet(_grid(files[column]), _grid(files["t1"])):
                raise InputError(
                    f"{row.place}, column {column}: {files[column]} lies nowhere in the t1; "
                    "their headers must place both in one world"
                )
        subjects.append(Subject(name, split_, files))
    chosen = [s for s in subjects if split in (None, s.split)]
    if not chosen:
        there = ", ".join(dict.fromkeys(s.split for s in subjects))
        raise InputError(f"{path}: no row has split {split!r}, only {there}; give some rows this split")
    return chosen


def _resolve(folders: Sequence[Path], column: str, cell: str, where: str) -> Path:
    for file in (folder / cell for folder in folders):
        if os.path.isfile(file) or is_series(file):
            if column == "lr" and file.suffix.lower() == ".mat":  # MATLAB has no image header to check
                return file
            try:
                _grid(file)
            except InputError as err:
                raise InputError(f"{where}: {err}") from err
            return file
    raise InputError(f"{where}: {cell} is neither in {folders[0]} nor in {folders[1]}")


def _grid(file: Path) -> Grid:
    """A scan's shape and affine; a header is read once, as long as its file does not change."""
    state = file.stat()
    return _read_grid(file, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.cache
def _read_grid(file: Path, *state: int) -> Grid:
    return read_grid(file)


def _meet(one: Grid, other: Grid) -> bool:
    """Whether two scans may see the same place: on no axis of either does the other lie beyond its faces."""
    if one[0] == other[0] and np.array_equal(one[1], other[1]):
        return True
    for (shape, affine), (its_shape, its_affine) in ((one, other), (other, one)):
        corners = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in its_shape), [1.0])).reshape(4, -1)
        at = (np.linalg.solve(affine, its_affine) @ corners)[:3].T
        if (at.max(0) <= -0.5 + EDGE).any() or (at.min(0) >= np.array(shape) - 0.5 - EDGE).any():
            return False
    return True


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

    The given one, which belongs to the experiment's own task alone, is a scan anywhere in the same world or a ``.mat``
    file on the true scan's grid. It is interpolated on that grid by a cubic spline; for a network that sees coarse
    grids it is brought on the task's first. The reference, too, is brought by its affine alone: no registration is done.
    A ScanWarning names the scan of which few voxels take most of the range. Raises InputError for a given scan that
    covers less than GIVEN_COVERS of the true one.
    """
    whole = load_scan(subject, experiment.contrast, experiment.intensity)
    hr = framed(whole, experiment.frame) if experiment.frame else whole
    hr = central(hr, middle) if middle else hr
    try:
        if experiment.given and "lr" in subject.files and task in ("", experiment.task):
            pair = _given(subject.files["lr"], whole, hr, experiment)
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


def _given(file: Path, whole: Volume, hr: Volume, experiment: Experiment) -> Pair:
    """The pair of a low-resolution scan and the part ``hr`` of a true scan."""
    lr, degradation = (
        load_mat(file, whole) if file.suffix == ".mat" else load(file),
        degradation_of(experiment.task, experiment.task_settings),
    )
    hr = crop_or_pad(hr, (0, 0, 0), degradation.usable(hr.shape))
    on_grid = resample_to(lr, hr, least=GIVEN_COVERS, what=f"the lr {file}")
    if (share := covered(lr, hr)) < 1:
        said = f"{file} covers {int(1000 * share) / 10:g} % of its true scan; the rest is mirrored"
        warnings.warn(said, ScanWarning, stacklevel=3)
    if experiment.lr_grid:
        lr = resample_to(lr, degradation(hr))
    return _pair(on_grid if same_lattice(lr, hr) else lr, on_grid, hr, experiment, degradation.factor)


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
    degradation = degradation_of(task or experiment.task, {**TASKS, **experiment.task_settings})
    hr = crop_or_pad(hr, (0, 0, 0), degradation.usable(hr.shape))
    hr = to_window(hr, experiment.intensity)
    lr, hr = degradation.pair(hr) if isinstance(degradation, SparseView) else (degradation(hr), hr)
    on_grid = degradation.to_grid(lr, hr.shape)
    return _pair(lr, on_grid, hr, experiment, degradation.factor if isinstance(degradation.factor, tuple) else None)


def _pair(lr: Volume, on_grid: Volume, hr: Volume, experiment: Experiment, factor: tuple | None) -> Pair:
    scaling = fit_scaling((lr if experiment.lr_grid else on_grid).data, experiment.intensity)
    return Pair(lr, on_grid, hr, scaling, factor=factor)


def degradation_of(task: str, tasks: Mapping[str, tuple[str, dict]] = TASKS) -> Degradation:
    """The degradation of a task in a table; of an experiment's own task that is its ``task_settings``."""
    name, settings = choose(tasks, task, "task")
    return make_degradation(name, **settings)


def bring(reference: Volume, grid: Volume, order: int = 3) -> Volume:
    """A scan of another contrast on a scan's grid, as ``resample_to``; its minimum, wild voxels apart, where it saw nothing.

    Raises InputError when the two fields of view do not meet.
    """
    low = max(float(reference.data.min()), usual_range(reference.data)[0])
    return resample_to(reference, grid, order, outside=low, what="the reference")


def network_input(scan: Volume, reference: Volume | None, rule: str) -> np.ndarray:
    """What a network sees: the scan and, where it takes one, the reference, each scaled on its own; (C, X, Y, Z)."""
    return np.stack([fit_scaling(v.data, rule).apply(v.data) for v in (scan, reference) if v is not None])


def baselines(pair: Pair, experiment: Experiment) -> dict[str, Volume]:
    """What needs no training, by name: the input itself where the task stays on its grid, else interpolations."""
    if pair.lr is pair.on_grid:
        sparse = experiment.task_settings[experiment.task][0] == "sparse_view"
        return {"sparse_fbp" if sparse else "zero_filled": pair.on_grid}
    linear = resample(pair.lr, pair.hr.shape, pair.on_grid.affine, order=1)  # where the cubic one lies
    return {"linear": linear, "cubic": pair.on_grid}


def load_mask(subject: Subject, like: Volume) -> np.ndarray | None:
    """Where the subject's ``mask`` is non-zero on the grid of a scan, by their affines; boolean, None without a mask.

    Raises InputError when the two fields of view do not meet.
    """
    if "mask" not in subject.files:
        return None
    file = subject.files["mask"]
    return resample_to(load(file), like, order=0, outside=0, what=f"subject {subject.name}: the mask {file}").data != 0


def training_subjects(subjects: Sequence[Subject], experiment: Experiment) -> list[Subject]:
    """The subjects of the split ``train`` that an experiment trains on: its first ``n_train`` by name."""
    return sorted((s for s in subjects if s.split == "train"), key=lambda s: s.name)[: experiment.n_train]
