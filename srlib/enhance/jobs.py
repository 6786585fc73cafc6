"""Turn scans, a folder or a manifest into a list of jobs; write the summary of their outcomes."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlib.core.paths import InputError, StrPath, apart, data_dir, existing, make_dir
from srlib.core.tables import VOLUMES, check_name, read_table, write_table
from srlib.scans.formats import scan_name, scan_names, scans_in

WRITTEN = (".nii", ".nii.gz", ".mgz", ".png")
SUMMARY = "summary.csv"
COLUMNS = ("file", "status", "seconds", "spacing_in", "spacing_out", "message", "output")
MOMENT = 0.1  # seconds, longer than reading, merging and writing a summary takes


@dataclass(frozen=True)
class Job:
    """A scan to read and the files to write."""

    source: Path
    target: Path
    reference: Path | None = None  # scan of another contrast
    uncertainty: Path | None = None  # second scan to write
    page: Path | None = None  # report to write
    place: str = ""  # among all, such as "[2/5] "

    @property
    def scans(self) -> list[Path]:
        """The scans to write."""
        return [p for p in (self.target, self.uncertainty) if p]

    @property
    def outputs(self) -> list[Path]:
        """All files to write."""
        return self.scans + ([self.page] if self.page else [])


@dataclass(frozen=True)
class Outcome:
    """The end of a job: ``enhanced``, ``done before`` or ``failed``; spacings in mm."""

    job: Job
    status: str
    notes: Sequence[str] = ()  # the reason of a failure, or warnings
    spacing_in: Sequence[float] = ()
    spacing_out: Sequence[float] = ()
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The notes in one line."""
        return "; ".join(self.notes)


def jobs(
    sources: Sequence[StrPath],
    target: StrPath,
    *,
    reference: StrPath | None = None,
    uncertainty: StrPath | None = None,
    columns: Sequence[str] = ("t1",),
    report: StrPath | None = None,
) -> list[Job]:
    """List what to read and to write, for scans, folders of scans, or one manifest.

    A folder without scans counts as one scan, a DICOM series. ``target`` is a file if there is a
    single scan and ``target`` has a suffix. Otherwise it is a folder for ``NAME_sr.nii.gz``, and
    ``uncertainty`` is one for ``NAME_b.nii.gz``; both are made if needed. ``report`` is a folder
    for one page per scan. ``reference`` belongs to a single scan. ``columns`` are a manifest's
    columns for the scan and, if there is one, its reference; its subjects name the outputs. Raises
    InputError if two outputs would have one name, or if outputs would lie among the scans.
    """
    target = Path(target)
    reference, uncertainty, report = (p and Path(p) for p in (reference, uncertainty, report))
    found = _found(sources, columns, reference)
    scan = found[0][0]
    single = [*map(Path, sources)] == [scan]
    if report:
        make_dir(report)
    if single and target.suffix and not target.is_dir():
        for path in filter(None, (target, uncertainty)):
            if not path.name.endswith(WRITTEN):
                raise InputError(
                    f"{path}: expected a name ending in {', '.join(WRITTEN)}, or a folder"
                )
        page = report and report / f"{scan_name(target)}.html"
        return [Job(scan, target, reference, uncertainty, page)]
    among = {scan for scan, *_ in found}
    if not single:
        among |= {scan.parent for scan in among}
    for folder in filter(None, (target, uncertainty)):
        make_dir(folder)
        if _is_one_of(folder, among):
            raise InputError(f"{folder}: outputs would lie among the scans; choose another folder")
    return [
        Job(
            source=scan,
            target=target / f"{name}_sr.nii.gz",
            reference=other,
            uncertainty=uncertainty and uncertainty / f"{name}_b.nii.gz",
            page=report and report / f"{name}_sr.html",
            place=f"[{number}/{len(found)}] " if len(found) > 1 else "",
        )
        for number, (scan, name, other) in enumerate(found, 1)
    ]


def _found(sources, columns, reference):
    """Scan, name and reference of each job."""
    first = Path(sources[0])
    if len(sources) == 1 and first.suffix.lower() == ".csv":
        scans, found = [], _listed(first, columns)
    else:
        scans = [scan for source in sources for scan in scans_in(source) or [Path(source)]]
        found = [
            (scan, name, reference) for scan, name in zip(scans, scan_names(scans), strict=True)
        ]
    if reference and len(scans) != 1:
        raise InputError(
            f"{reference}: a reference goes with a single scan; list those of several in a manifest"
        )
    return found


def _is_one_of(folder, paths):
    # os.path.isdir accepts names of any length
    return any(os.path.isdir(p) and folder.samefile(p) for p in paths)


def _listed(manifest, columns):
    """Scan, name and reference of each row of a manifest; the files need not exist.

    A row without a scan gets a path that does not exist, so that it fails alone.
    """
    columns = [c for c in columns if c]
    found, taken = [], {}
    for row in read_table(manifest, columns, ("subject", "split", *VOLUMES)):
        files = [
            existing(manifest.parent / cell, data_dir() / cell) if cell else None
            for cell in map(row.get, columns)
        ]
        scan, reference, *_ = (*files, None)
        name = row["subject"] if "subject" in row else scan_name(scan or manifest)
        check_name(name, row.place, taken)
        found.append((scan or Path(f"{row.place}, column {columns[0]} (empty)"), name, reference))
    return found


def check_places(job: Job) -> None:
    """Raise InputError for outputs without a folder, among slices, of one name, or among inputs."""
    inputs = [p for p in (job.source, job.reference) if p]
    for path in job.outputs:
        if not path.parent.is_dir():
            raise InputError(
                f"cannot write {path}: the folder {path.parent} does not exist; create it first"
            )
        if _is_one_of(path.parent, inputs):
            raise InputError(
                f"{path}: it would lie among the slices of the scan; choose another folder"
            )
    if job.uncertainty == job.target:
        raise InputError(f"{job.target}: the outputs must be different files")
    apart(job.outputs, inputs)


def read_summary(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of a folder's ``summary.csv`` by output; InputError for another kind of CSV."""
    path = folder / SUMMARY
    there = path.exists() and path.stat().st_size
    rows = read_table(path, COLUMNS[:-1], COLUMNS[-1:]) if there else []
    return {row.get("output") or row["file"]: row for row in rows}


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``summary.csv``, a row per output; rows that other runs wrote for others stay.

    Another process that read the file before this one replaced it may write it again without these
    rows. So this function checks a moment later whether they are there. Raises InputError as
    ``read_summary``, and if the file cannot be written.
    """
    path, mine = folder / SUMMARY, {}
    for outcome in outcomes:
        row = [
            str(outcome.job.source),
            outcome.status,
            f"{outcome.seconds:.1f}",
            _spacing(outcome.spacing_in),
            _spacing(outcome.spacing_out),
            outcome.message,
            outcome.job.target.name,
        ]
        # file names need not be text
        row = [cell.encode(errors="backslashreplace").decode() for cell in row]
        mine[row[-1].strip()] = dict(zip(COLUMNS, row, strict=True))
    while True:
        rows = read_summary(folder) | mine
        cells = [map(rows[name].get, COLUMNS) for name in sorted(rows)]
        write_table(path, COLUMNS, cells, force=True)
        time.sleep(MOMENT)
        if mine.keys() <= read_summary(folder).keys():
            return path


def _spacing(spacing):
    return " ".join(f"{mm:.6g}" for mm in spacing)
