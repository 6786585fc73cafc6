"""Manifests (CSV, one row per subject), degraded pairs, and the endless stream of training patches."""

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srlib.degrade import make_degradation
from srlib.experiments import TASKS, Experiment
from srlib.patches import PatchLocation, extract, grid_locations, random_locations
from srlib.paths import InputError, data_dir
from srlib.volume import Scaling, Volume, fit_scaling, load, load_mat, read_shape, resample

VOLUMES = ("t1", "t2", "labels", "lr", "mask")
SPLITS = ("train", "val", "eval", "test")
POOL = 4  # subjects whose patches are mixed; two pools at most are in memory


@dataclass(frozen=True)
class Subject:
    """A row of a manifest; ``files`` maps a column (t1, t2, labels, lr, mask) to its file."""

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
        if (folder / cell).is_file():
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
    """A degraded scan on the high-resolution grid (the network's input) and the truth, both in scan units."""

    lr: Volume  # on its own grid
    on_grid: Volume
    hr: Volume
    scaling: Scaling  # fitted on ``on_grid``, the only one known at prediction time


def make_pair(subject: Subject, experiment: Experiment) -> Pair:
    """Degrade a subject's scan by the experiment's task, or take the degraded one that the manifest gives.

    The given one is a scan anywhere in the same world, which is interpolated by a cubic spline, or a ``.mat`` file on
    the true scan's grid; no registration is done.
    """
    hr = load(subject.file(experiment.contrast))
    try:
        if not (experiment.given and "lr" in subject.files):
            return degraded(hr, experiment)
        file = subject.files["lr"]
        lr = load_mat(file, hr) if file.suffix == ".mat" else load(file)
        on_grid = lr if lr.shape == hr.shape else resample(lr, hr.shape, hr.affine)
        return Pair(lr, on_grid, hr, fit_scaling(on_grid.data, experiment.intensity))
    except InputError as err:
        raise InputError(f"subject {subject.name}, {subject.file(experiment.contrast)}: {err}") from err


def degraded(hr: Volume, experiment: Experiment) -> Pair:
    """The pair that the experiment's task makes of a scan."""
    name, settings = TASKS[experiment.task]
    degradation = make_degradation(name, **settings)
    lr = degradation(hr)
    on_grid = degradation.to_grid(lr, hr.shape)
    return Pair(lr, on_grid, hr, fit_scaling(on_grid.data, experiment.intensity))


def baselines(pair: Pair, experiment: Experiment) -> dict[str, Volume]:
    """What needs no training, by name: the input itself where the task stays on its grid, else interpolations."""
    if pair.lr is pair.on_grid:
        return {"zero_filled": pair.on_grid}
    name, settings = TASKS[experiment.task]
    linear = make_degradation(name, **settings).to_grid(pair.lr, pair.hr.shape, order=1)
    return {"linear": linear, "cubic": pair.on_grid}


def load_mask(subject: Subject) -> np.ndarray | None:
    """Where the subject's ``mask`` is non-zero, boolean (X, Y, Z); None when the manifest gives no mask."""
    return load(subject.files["mask"]).data != 0 if "mask" in subject.files else None


class PairDataset:
    """Scaled (input, truth) arrays of an experiment's subjects, float32 (X, Y, Z); the last few are kept."""

    def __init__(self, subjects: Sequence[Subject], experiment: Experiment) -> None:
        self.subjects, self.experiment = list(subjects), experiment
        self.shapes = [read_shape(s.file(experiment.contrast)) for s in self.subjects]
        self._load = functools.lru_cache(maxsize=2 * POOL)(self._load)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._load(index)

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = make_pair(self.subjects[index], self.experiment)
        return pair.scaling.apply(pair.on_grid.data), pair.scaling.apply(pair.hr.data)

    def locations(self, index: int, rng: np.random.Generator) -> list[PatchLocation]:
        """One epoch's patch locations of a subject; their number depends on its shape alone."""
        experiment, shape = self.experiment, self.shapes[index]
        grid = grid_locations(shape, experiment.patch_size)
        if experiment.sampling == "grid":
            return grid
        hr, chosen = self[index][1], []
        for _ in grid:
            candidates = random_locations(shape, experiment.patch_size, 8, rng)
            shares = [np.mean(hr[c.slices] > 0.05) for c in candidates]
            enough = [i for i, share in enumerate(shares) if share >= experiment.min_foreground]
            chosen.append(candidates[enough[0] if enough else int(np.argmax(shares))])
        return chosen


def patch_stream(dataset: PairDataset, seed: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (input, truth) patches, (1, X, Y, Z) each: a pure function of the seed, entered at any patch.

    Each epoch shuffles the subjects; pools of a few are loaded (the next one while this one is served) and
    their patches mixed. Entering late skips whole pools without reading them.
    """
    counts = [len(grid_locations(shape, dataset.experiment.patch_size)) for shape in dataset.shapes]

    def pools() -> Iterator[tuple[int, list[int], int]]:
        epoch, skip = divmod(start, sum(counts))
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(len(dataset)).tolist()
            for first in range(0, len(order), POOL):
                pool = order[first : first + POOL]
                size = sum(counts[i] for i in pool)
                if skip < size:
                    yield epoch, pool, skip
                skip = max(skip - size, 0)
            epoch += 1

    def prepare(epoch: int, pool: list[int], skip: int) -> list[tuple[int, PatchLocation]]:
        rng = np.random.default_rng([seed, epoch, *pool])
        patches = [(i, location) for i in pool for location in dataset.locations(i, rng)]
        return [patches[k] for k in rng.permutation(len(patches))][skip:]

    with ThreadPoolExecutor(1) as background:
        todo = pools()
        ahead = background.submit(prepare, *next(todo))
        while True:
            patches, ahead = ahead.result(), background.submit(prepare, *next(todo))
            for index, location in patches:
                lr, hr = dataset[index]
                yield extract(lr, location)[None], extract(hr, location)[None]
