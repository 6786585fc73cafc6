"""Read manifests (CSV, one row per subject) and the scans that they name."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from srlib.core.paths import (
    InputError,
    ScanWarning,
    StrPath,
    data_dir,
    existing,
    explained,
    locate,
)
from srlib.core.tables import VOLUMES, check_name, read_table
from srlib.scans.dicom import is_series
from srlib.scans.formats import load_scan, once, read_grid
from srlib.scans.intensity import wild
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume, to_window

SPLITS = ("train", "val", "eval", "test")
EDGE = 1e-3  # voxels by which scans that only touch may seem to overlap

_grid = once(read_grid)  # a scan's shape and affine


@dataclass(frozen=True)
class Subject:
    """A row of a manifest; ``files`` maps a column (t1, t2, image, labels, lr, mask) to a file."""

    name: str
    split: str
    files: Mapping[str, Path]

    def file(self, column: str) -> Path:
        """The file of a column; InputError where the row has none."""
        if column not in self.files:
            raise InputError(
                f"subject {self.name} has no {column}; add the column {column} to the manifest"
            )
        return self.files[column]


def read_manifest(path: StrPath, split: str | None = None) -> list[Subject]:
    """Subjects of a manifest, or of one split of it; the columns are described in csv/README.md.

    Paths are relative to the CSV's folder or, where not found there, to ``SRLIB_DATA``. Raises
    InputError that names row, column and file: what ``read_table`` refuses, a missing or unreadable
    or 4-D volume, an unknown split, a subject twice or with a name that cannot name a file, a mask
    or label map that lies nowhere in the t1 (its grid may be another).
    """
    path, subjects, taken = locate(path), [], {}
    folders = path.parent.absolute(), data_dir()
    for row in read_table(path, ("subject", "split"), VOLUMES):
        name, split_ = row["subject"], row["split"]
        check_name(name, f"{row.place}, column subject", taken)
        if split_ not in SPLITS:
            raise InputError(
                f"{row.place}, column split: expected one of {', '.join(SPLITS)}, got {split_!r}"
            )
        files = {}
        for column in filter(row.get, VOLUMES):
            files[column] = _resolve(folders, column, row[column], f"{row.place}, column {column}")
        if not files:
            raise InputError(
                f"{row.place}: no volume given; fill at least one of {', '.join(VOLUMES)}"
            )
        for column in filter(files.get, ("labels", "mask")):
            if "t1" in files and not _meet(_grid(files[column]), _grid(files["t1"])):
                raise InputError(
                    f"{row.place}, column {column}: {files[column]} lies nowhere in the t1; "
                    "their headers must place both in one world"
                )
        subjects.append(Subject(name, split_, files))
    chosen = [s for s in subjects if split in (None, s.split)]
    if not chosen:
        there = ", ".join(dict.fromkeys(s.split for s in subjects))
        raise InputError(
            f"{path}: no row has split {split!r}, only {there}; give some rows this split"
        )
    return chosen


def read_cohorts(path: StrPath) -> dict[str, Path]:
    """The manifest of each system that a table of cohorts names; nothing for a manifest itself.

    The table has the columns ``system`` and ``cohort`` and perhaps ``layout`` and ``scans``. Paths
    are relative to its folder; a row without a cohort leaves its system out. Raises InputError for
    a manifest that is not there.
    """
    path = locate(path)
    if "system" not in read_table(path)[0]:
        return {}
    found = {}
    for row in read_table(path, ("system", "cohort"), ("layout", "scans")):
        if not row["cohort"]:
            continue
        found[row["system"]] = manifest = path.parent.absolute() / row["cohort"]
        if not os.path.exists(manifest):  # which has no error for a text too long to be a name
            raise InputError(
                f"{row.place}: {row['system']} needs {manifest}, which is missing; make it "
                f"({row.get('scans')}), or empty the cell cohort to leave {row['system']} out"
            )
    return found


def cohort_of(cohort: StrPath, system: str = "", default: StrPath | None = None) -> Path | str:
    """The manifest of a system, by default of the first one, in a table of cohorts.

    "" where the table leaves it out. Of a manifest it is ``default``, else the manifest itself.
    """
    found = read_cohorts(cohort)
    if not found:
        return locate(cohort) if default is None else default
    return found.get(system or next(iter(found)), "")


def _resolve(folders, column, cell, where):
    """The file or series that a cell names; InputError for none, or for a bad header."""
    file = existing(*(folder / cell for folder in folders))
    if not (os.path.isfile(file) or is_series(file)):
        raise InputError(f"{where}: {cell} is neither in {folders[0]} nor in {folders[1]}")
    if column != "lr" or file.suffix.lower() != ".mat":  # which has no image header
        with explained(where, "cannot be read"):
            _grid(file)
    return file


def _meet(one, other):
    """Whether two fields of view may overlap: neither lies beyond a face of the other."""
    for (shape, affine), (its_shape, its_affine) in ((one, other), (other, one)):
        corners = [*product(*([-0.5, n - 0.5] for n in its_shape))]
        at = apply_affine(np.linalg.solve(affine, its_affine), corners)
        if (at.max(0) <= -0.5 + EDGE).any() or (at.min(0) >= np.array(shape) - 0.5 - EDGE).any():
            return False
    return True


def load_contrast(subject: Subject, column: str, *, rule: str = "minmax") -> Volume:
    """A subject's scan; a ScanWarning names it where a few voxels take most of its range.

    The range is that which an intensity rule leaves.
    """
    scan = load_scan(subject.file(column))
    for line in wild(to_window(scan, rule).data):
        warnings.warn(
            f"subject {subject.name}, {subject.file(column)}: {line}", ScanWarning, stacklevel=3
        )
    return scan


def load_mask(subject: Subject, like: Volume) -> np.ndarray | None:
    """Where the subject's ``mask`` is non-zero on the grid of a scan, boolean (X, Y, Z).

    The affines place it. None without a mask. Raises InputError for one that is empty there.
    """
    file = subject.files.get("mask")
    if file is None:
        return None
    what = f"subject {subject.name}: the mask {file}"
    mask = resample_to(load_scan(file), like, order=0, outside=0, what=what).data != 0
    if not mask.any():
        raise InputError(f"{what} holds no voxel of the scan; expected one that is not empty")
    return mask
