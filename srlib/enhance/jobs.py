"""Turn scans, a folder or a manifest into a list of jobs; the table of what became of them."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlib.core.paths import InputError, apart, data_dir, make_dir
from srlib.core.tables import VOLUMES, check_name, read_table, write_table
from srlib.scans.formats import scans_in

WRITTEN = (".nii", ".nii.gz", ".mgz", ".png")
SUMMARY = "summary.csv"
COLUMNS = ("file", "status", "seconds", "spacing_in", "spacing_out", "message")
MOMENT = 0.1  # seconds, longer than it takes to read, merge and write it


@dataclass(frozen=True)
class Job:
    """A scan to read and a file to write."""

    source: Path
    target: Path
    reference: Path | None = None  # the scan of another contrast
    uncertainty: Path | None = None  # a second file to write
    page: Path | None = None  # a report to write

    @property
    def scans(self) -> list[Path]:
        """The scans to write."""
        return [p for p in (self.target, self.uncertainty) if p]

    @property
    def outputs(self) -> list[Path]:
        """All files to write."""
        return [p for p in (self.target, self.uncertainty, self.page) if p]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``enhanced``, ``done before`` or ``failed``; spacings in mm."""

    job: Job
    status: str
    notes: Sequence[str] = ()  # why it failed, or what to mind
    spacing_in: Sequence[float] = ()
    spacing_out: Sequence[float] = ()
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The notes in one line."""
        return "; ".join(self.notes)


def jobs(
    sources: Sequence[str | Path],
    target: str | Path,
    reference: str | Path | None = None,
    uncertainty: str | Path | None = None,
    columns: Sequence[str] = ("t1",),
    report: str | Path | None = None,
) -> list[Job]:
    """What to read and to write: of scans, of folders of scans, or of a manifest.

    A folder without scans is one, a DICOM series. ``target`` is the file for a single scan; else,
    and where it is a folder or has no suffix, a folder, made if need be, for ``NAME_sr.nii.gz``;
    then ``uncertainty`` is one, too, for ``NAME_b.nii.gz``. ``report`` is a folder for a page on
    each. ``reference`` goes with a single scan. Of a manifest ``columns`` names those of the scan
    and of its reference, if there is one; subjects name the outputs. Raises InputError when outputs
    would be of one name, or lie among several scans.
    """
    target = Path(target)
    reference, uncertainty, report = (p and Path(p) for p in (reference, uncertainty, report))
    listed = len(sources) == 1 and str(sources[0]).lower().endswith(".csv")
    if listed:
        found = _listed(Path(sources[0]), columns)
    else:
        scans = [scan for source in sources for scan in scans_in(source) or [Path(source)]]
        found = [(scan, _stem(scan), reference) for scan in scans]
    single = not listed and [scan for scan, *_ in found] == [Path(sources[0])]
    if reference and not single:
        raise InputError(
            f"{reference}: a reference goes with a single scan; list those of several in a manifest"
        )
    if report:
        make_dir(report)
    if single and target.suffix and not target.is_dir():
        if not target.name.endswith(WRITTEN):
            raise InputError(
                f"{target}: expected a name ending in {', '.join(WRITTEN)}, or a folder"
            )
        return [
            Job(
                found[0][0],
                target,
                reference,
                uncertainty,
                report and report / f"{_stem(target)}.html",
            )
        ]
    _check_folders([p for p in (target, uncertainty) if p], found, single)
    return [
        Job(
            source=scan,
            target=target / f"{name}_sr.nii.gz",
            reference=other,
            uncertainty=uncertainty and uncertainty / f"{name}_b.nii.gz",
            page=report and report / f"{name}_sr.html",
        )
        for scan, name, other in found
    ]


def _stem(path: Path) -> str:
    name = os.path.basename(os.path.abspath(path))
    numbered = path.suffix[1:].isdigit()  # as DICOM files are
    return name if path.is_dir() or numbered else Path(name.removesuffix(".gz")).stem


def _check_folders(folders: Sequence[Path], found: Sequence[tuple], single: bool) -> None:
    """Make the folders of outputs; InputError for outputs of one name, or among the scans."""
    name, count = Counter(name for _, name, _ in found).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"two scans are called {name}; give them names of their own, or list them in a manifest"
        )
    among = {scan for scan, *_ in found} | {scan.parent for scan, *_ in found if not single}
    for folder in folders:
        make_dir(folder)
        if any(
            os.path.isdir(p) and folder.samefile(p) for p in among
        ):  # isdir takes names of any length
            raise InputError(f"{folder}: outputs would lie among the scans; choose another folder")


def _listed(manifest: Path, columns: Sequence[str]) -> list[tuple[Path, str, Path | None]]:
    """Scan, name and reference of each row of a manifest; whether the files are there is not asked.

    A row without a scan stands for a file that is not there, so that it is told and stops no other.
    """
    columns = [c for c in columns if c]
    found, taken = [], {}
    for row in read_table(manifest, columns, ("subject", "split", *VOLUMES)):
        places = [_place(manifest, row[c]) if row[c] else None for c in columns]
        scan, reference, *_ = [*places, None]
        name = row["subject"] if "subject" in row else _stem(scan or manifest)
        check_name(name, row.place, taken)
        found.append((scan or Path(f"{row.place}, column {columns[0]} (empty)"), name, reference))
    return found


def _place(manifest: Path, cell: str) -> Path:
    beside, stored = manifest.parent / cell, data_dir() / cell
    return stored if os.path.exists(stored) and not os.path.exists(beside) else beside


def check_places(job: Job) -> None:
    """Raise InputError for outputs without a folder, among slices, of one name, or that are inputs."""
    inputs = [p for p in (job.source, job.reference) if p]
    for path in job.outputs:
        if not path.parent.is_dir():
            raise InputError(
                f"cannot write {path}: the folder {path.parent} does not exist; create it first"
            )
        if any(os.path.isdir(p) and path.parent.samefile(p) for p in inputs):
            raise InputError(
                f"{path}: it would lie among the slices of the scan; choose another folder"
            )
    if job.uncertainty == job.target:
        raise InputError(f"{job.target}: the outputs must be different files")
    apart(job.outputs, inputs)


def read_summary(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of a folder's ``summary.csv`` by their scans; InputError for one of another kind."""
    path = folder / SUMMARY
    rows = read_table(path, COLUMNS, ()) if path.exists() and path.stat().st_size else []
    return {row["file"]: row for row in rows}


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``summary.csv``, a row per scan; rows of other scans that other runs wrote there stay.

    A process that had read it before this one's rename may rename its own, without these rows, over
    it. So this looks whether they have stayed, a moment later. InputError as ``read_summary``, and
    when it cannot be written.
    """
    path, mine = folder / SUMMARY, {}
    for o in outcomes:
        given, made = (
            " ".join(f"{mm:.6g}" for mm in spacing) for spacing in (o.spacing_in, o.spacing_out)
        )
        cells = (str(o.job.source), o.status, f"{o.seconds:.1f}", given, made, o.message)
        cells = [
            cell.encode(errors="backslashreplace").decode() for cell in cells
        ]  # names need not be text
        mine[cells[0].strip()] = dict(zip(COLUMNS, cells, strict=True))
    while True:
        rows = read_summary(folder) | mine
        write_table(
            path, COLUMNS, [map(rows[name].get, COLUMNS) for name in sorted(rows)], force=True
        )
        time.sleep(MOMENT)
        if mine.keys() <= read_summary(folder).keys():
            return path
