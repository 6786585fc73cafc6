"""What a user names on the command line, as a list of files to read and write, and the table of what became of them."""

import csv
import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srlib.images import scans_in
from srlib.paths import InputError, apart, atomic, data_dir, make_dir, sha256
from srlib.tables import VOLUMES, check_name, read_table

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


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``enhanced``, ``done before`` or ``failed``; spacings in mm."""

    job: Job
    status: str
    message: str = ""
    spacing_in: Sequence[float] = ()
    spacing_out: Sequence[float] = ()
    seconds: float = 0.0


def jobs(
    sources: Sequence[str | Path],
    target: str | Path,
    reference: str | Path | None = None,
    uncertainty: str | Path | None = None,
    columns: Sequence[str] = ("t1",),
) -> list[Job]:
    """What to read and to write: of scans, patterns such as ``*/t1.nii``, folders of scans, or a manifest.

    ``target`` is the file for a single scan; else, and where it is a folder or has no suffix, a folder, made if need be,
    for ``NAME_sr.nii.gz``; then ``uncertainty`` is one, too, for ``NAME_b.nii.gz``. References lie in a folder under the
    names of their scans. Of a manifest ``columns`` names those of the scan and of its reference, if there is one;
    subjects name the outputs. A folder without scans is one, a DICOM series. Raises InputError when outputs would be of
    one name, or lie among several scans.
    """
    target, reference, uncertainty = (None if p is None else Path(p) for p in (target, reference, uncertainty))
    listed = len(sources) == 1 and str(sources[0]).lower().endswith(".csv")
    found = _listed(Path(sources[0]), columns) if listed else [(p, _stem(p), None) for s in sources for p in _scans(s)]
    single = not listed and len(sources) == 1 and [Path(sources[0])] == [p for p, *_ in found]
    if single and not target.is_dir() and target.suffix:
        if not target.name.endswith(WRITTEN):
            raise InputError(f"{target}: expected a name ending in {', '.join(WRITTEN)}, or a folder")
        return [Job(found[0][0], target, reference, uncertainty)]
    if reference and (listed or not (single or reference.is_dir())):
        where = "the manifest's column" if listed else "a folder with a reference for each scan, under its name"
        raise InputError(f"{reference}: expected {where}")
    stems = [s for _, s, _ in found]
    if len(set(stems)) < len(stems):
        twice = next(s for i, s in enumerate(stems) if s in stems[:i])
        raise InputError(f"two scans are called {twice}; give them names of their own, or list them in a manifest")
    for folder in filter(None, (target, uncertainty)):
        make_dir(folder)
        among = {p.parent for p, *_ in found if not single} | {p for p, *_ in found}
        if any(folder.samefile(p) for p in among if os.path.isdir(p)):  # which takes names of any length
            raise InputError(f"{folder}: outputs would lie among the scans; choose another folder")
    if reference and reference.is_dir() and not single:
        found = [(p, s, reference / p.name) for p, s, _ in found]
    elif reference:
        found = [(p, s, reference) for p, s, _ in found]
    return [Job(p, target / f"{s}_sr.nii.gz", r, uncertainty and uncertainty / f"{s}_b.nii.gz") for p, s, r in found]


def _stem(path: Path) -> str:
    name = os.path.basename(os.path.abspath(path))
    numbered = path.suffix[1:].isdigit()  # as DICOM files are
    return name if path.is_dir() or numbered else Path(name.removesuffix(".gz")).stem


def _scans(source: str | Path) -> list[Path]:
    """The scans that a path or a pattern stands for."""
    path = Path(source)
    if not os.path.lexists(path) and glob.has_magic(str(source)):
        matches = sorted(glob.glob(str(source), recursive=True))
        if not matches:
            raise InputError(f"{source}: no file matches; check the pattern")
        return [p for match in matches for p in _scans(match)]
    return scans_in(path) or [path]


def _listed(manifest: Path, columns: Sequence[str]) -> list[tuple[Path, str, Path | None]]:
    """Scan, name and reference of each row of a manifest; whether the files are there is not asked.

    A row without a scan stands for a file that is not there, so that it is told and stops no other.
    """
    found, taken, columns = [], {}, [c for c in columns if c]
    rows = read_table(manifest, columns, ("subject", "split", *VOLUMES))
    if not any(row[columns[0]] for row in rows):
        raise InputError(f"{rows[0].place}: expected {columns[0]}, which this model takes; fill in that column")
    for row in rows:
        scan, *reference = (_place(manifest, row[c]) if row[c] else None for c in columns)
        name = row["subject"] if "subject" in row else _stem(scan or manifest)
        check_name(name, row.place, taken)
        found.append((scan or Path(f"{row.place}, column {columns[0]} (empty)"), name, *(reference or [None])))
    return found


def _place(manifest: Path, cell: str) -> Path:
    places = [folder / cell for folder in (manifest.parent, data_dir())]
    return next((p for p in places if os.path.exists(p)), places[0])


def fingerprint(scan: Path) -> str:
    """SHA-256 of a scan's file, or of the sums of its files where there are several; InputError when unreadable."""
    parts = [scan.with_suffix(s) for s in (".hdr", ".img", ".mat")] if scan.suffix in (".hdr", ".img") else [scan]
    parts = sorted(scan.iterdir()) if os.path.isdir(scan) else parts
    try:
        sums = [sha256(p) for p in parts if os.path.isfile(p)]
    except OSError as err:
        raise InputError(f"{scan}: cannot be read ({err.strerror})") from err
    if not sums:
        raise InputError(f"{scan}: {'a link that leads nowhere' if os.path.islink(scan) else 'no such file'}")
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def record_of(job: Job, by: Mapping[str, object], dtype: str = "float32", **settings: object) -> dict[str, object]:
    """What an output is made from and how, as it is read back; ``by`` what, and the settings of ``super_resolve``."""
    free = ("max_memory_gb", "progress", "force", "report")  # what does not change the result
    record = {
        **by,
        "source": fingerprint(job.source),
        "reference": fingerprint(job.reference) if job.reference else None,
        "settings": {"dtype": dtype} | {k: v for k, v in settings.items() if k not in free and v is not None},
    }
    return json.loads(json.dumps(record))


def check_places(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise InputError for outputs without a folder, among the slices of a scan, of one name, or that are inputs."""
    for path in outputs:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        if any(os.path.isdir(p) and path.parent.samefile(p) for p in inputs):
            raise InputError(f"{path}: it would lie among the slices of the scan; choose another folder")
    if len(set(outputs)) < len(outputs):
        raise InputError(f"{outputs[0]}: the outputs must be different files")
    apart(outputs, inputs)


def page_of(job: Job, report: str | Path | None) -> Path | None:
    """Where the page on a job goes in the folder ``report``, if there is one."""
    name = job.target.name.removesuffix(".gz").rpartition(".")[0]
    return Path(report) / f"{name}.html" if report else None


def read_summary(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of a folder's ``summary.csv`` by their scans, none where there is none; InputError for one of another kind."""
    path = folder / SUMMARY
    rows = read_table(path) if path.exists() and path.stat().st_size else []
    if any({*row} != {*COLUMNS} for row in rows):
        raise InputError(f"{path}: it has other columns than srlib writes; move it away, or choose another folder")
    return {row["file"]: row for row in rows}


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``summary.csv``, a row per scan; rows of other scans that other runs wrote there stay.

    A process that had read it before this one's rename may rename its own, without these rows, over it. So this looks
    whether they have stayed, a moment later. InputError as ``read_summary``, and when it cannot be written.
    """
    path, mine = folder / SUMMARY, {}
    for o in outcomes:
        given, made = (" ".join(f"{mm:.6g}" for mm in spacing) for spacing in (o.spacing_in, o.spacing_out))
        name = str(o.job.source).encode(errors="backslashreplace").decode()  # names of files need not be text
        values = (name, o.status, f"{o.seconds:.1f}", given, made, o.message)
        mine[name] = dict(zip(COLUMNS, values, strict=True))
    while True:
        rows = read_summary(folder) | mine
        with (
            atomic(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))
        time.sleep(MOMENT)
        if mine.keys() <= read_summary(folder).keys():
            return path
