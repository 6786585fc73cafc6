"""Many scans through a model: what was done before, and one line for each that cannot be used."""

import csv
import functools
import json
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from srlib import __version__, headers, synthesis, tiled
from srlib.adapt import adapt
from srlib.checks import gaps
from srlib.claims import claimed, sweep
from srlib.device import layout
from srlib.dicom import read_thickness
from srlib.headers import MAX_VOXELS
from srlib.images import is_whole, load, read_shape, save
from srlib.infer import THICK, Model, find_weights, load_model, output_factor, super_resolve, with_uncertainty
from srlib.inputs import Job, fingerprint
from srlib.paths import InputError, ScanWarning, atomic, first_line, make_dir, sha256
from srlib.report import write_report
from srlib.tables import read_table
from srlib.volume import Volume, axcodes, describe

COPIES = 5  # float32 copies of the result that live at once, before, between and after the tiles
SUMMARY = "summary.csv"
COLUMNS = ("file", "status", "seconds", "spacing_in", "spacing_out", "message")


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``enhanced``, ``done before`` or ``failed``; spacings in mm."""

    job: Job
    status: str
    message: str = ""
    spacing_in: Sequence[float] = ()
    spacing_out: Sequence[float] = ()
    seconds: float = 0.0


def run(
    todo: Sequence[Job],
    model: Model,
    weights: str | Path,
    tell: Callable[[str], None],
    device: str = "auto",
    workers: int = 1,
    max_memory_gb: float | None = None,
    **settings: object,
) -> Iterator[Outcome]:
    """Enhance scans by a model and its weights; yield what became of each as they finish. No bad scan stops the others.

    ``settings`` are those of ``enhance_file``, whose lines ``tell`` hears; ``workers`` processes share the memory.
    """
    names = {p.name for job in todo for p in (job.target, job.uncertainty) if p} | {SUMMARY}
    for folder in {p.parent for job in todo for p in (job.target, job.uncertainty) if p}:
        if folder.is_dir():
            sweep(folder, names)
    default = synthesis.MAX_MEMORY_GB if model.experiment.spacing_mm else tiled.MAX_MEMORY_GB
    workers = max(min(workers, len(todo)), 1)
    settings |= {
        "max_memory_gb": (default if max_memory_gb is None else max_memory_gb) / workers,
        "by": {"srlib": __version__, "model": model.experiment.name, "weights": sha256(find_weights(weights))},
    }
    heads = {job: f"[{i}/{len(todo)}] " if len(todo) > 1 else "" for i, job in enumerate(todo, 1)}
    if workers == 1:
        for job in todo:
            yield attempt(job, model, lambda line, head=heads[job]: tell(head + line), progress=True, **settings)
        return
    context = multiprocessing.get_context("spawn")  # since forks of a process that has threads may hang
    with ProcessPoolExecutor(workers, context, _begin_worker, (max(1, torch.get_num_threads() // workers),)) as pool:
        pending = {pool.submit(_work, job, str(weights), device, settings): job for job in todo}
        for future in as_completed(pending):
            job = pending[future]
            try:
                outcome, lines = future.result()
            except (BrokenExecutor, RuntimeError) as err:  # killed, or without the memory for the model
                why = "its process ended, perhaps for want of memory; use fewer --workers and run again"
                outcome, lines = Outcome(job, "failed", f"{job.source}: {why} ({first_line(err)})"), []
            for line in lines:
                tell(heads[job] + line)
            yield outcome


def _begin_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once and without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a worker whose parent was killed would wait for work for ever


_loaded = functools.cache(load_model)


def _work(job: Job, weights: str, device: str, settings: Mapping[str, object]) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    return attempt(job, _loaded(weights, device), lines.append, **settings), lines


def attempt(job: Job, model: Model, tell: Callable[[str], None], **settings: object) -> Outcome:
    """``enhance_file``, whose exceptions of any kind become a failed outcome with a message of one line."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return enhance_file(job, model, tell, **settings)
    except InputError as err:
        message = " ".join(str(err).split())
    except Exception as err:  # whatever a library raises, the other scans go on
        if isinstance(err, MemoryError) or "memory" in str(err):
            message = "this machine's memory is not enough; choose a larger spacing, or fewer --workers"
        elif isinstance(err, OSError):
            message = f"cannot write {job.target}: {err.strerror or first_line(err)}"
        else:
            message = f"failed unexpectedly ({type(err).__name__}: {first_line(err)})"
    named = message if str(job.source) in message else f"{job.source}: {message}"
    return Outcome(job, "failed", named, seconds=time.perf_counter() - begin)


def enhance_file(
    job: Job,
    model: Model,
    tell: Callable[[str], None],
    by: Mapping[str, object],
    dtype: str = "float32",
    force: bool = False,
    report: str | Path | None = None,
    **settings: object,
) -> Outcome:
    """Super-resolve a file into another, or leave what was made just so before; ``tell`` hears what was read.

    ``report`` is a folder for a page on it, see ``report.write_report``; with the setting ``adapt`` the model is trained
    further on the scan first, see there.

    A NIfTI keeps its header (``headers.kept``), which then says how it was made: ``by`` what, from which source, with
    which ``settings``, those of ``super_resolve``. ``dtype``: see ``headers.store_as``. Raises InputError as these, when
    something else is there unless ``force``, when another process writes it, and as ``_enhance`` does.
    """
    begin, free = time.perf_counter(), ("max_memory_gb", "progress")  # what does not change the result
    with claimed(job.target):
        record = {
            **by,
            "source": fingerprint(job.source),
            "reference": fingerprint(job.reference) if job.reference else None,
            "settings": {"dtype": dtype} | {k: v for k, v in settings.items() if k not in free and v is not None},
        }
        record = json.loads(json.dumps(record))  # as it is read back
        outputs = [p for p in (job.target, job.uncertainty) if p]
        there = {p: headers.read_record(p) or {} for p in outputs if os.path.lexists(p)}
        if job.uncertainty == job.target or any(p.exists() and p.samefile(job.source) for p in there):
            raise InputError(f"{job.target}: inputs and outputs must be different files")
        other = [p for p, old in there.items() if not record.items() <= old.items()]
        if other and not force:
            raise InputError(f"{other[0]} exists and was not made from this scan in this way; --force replaces it")
        if len(there) == len(outputs) and not force:
            tell(f"{job.source.name}: done before")
            return Outcome(job, "done before", "", there[job.target]["spacing_in"], headers.read_spacing(job.target))
        scan, sr, notes = _enhance(job, model, tell, record, dtype, report, settings)
    return Outcome(job, "enhanced", notes, scan.spacing_mm, sr.spacing_mm, time.perf_counter() - begin)


def _enhance(
    job: Job,
    model: Model,
    tell: Callable[[str], None],
    record: dict,
    dtype: str,
    report: str | Path | None,
    settings: dict,
) -> tuple[Volume, Volume, str]:
    """Raises InputError for a scan of one slice where the model needs more, and one too large for the memory."""
    experiment, gb = model.experiment, settings.get("max_memory_gb", tiled.MAX_MEMORY_GB)
    if not is_whole(job.source):
        _check_size(read_shape(job.source), gb)
    scan, other = load(job.source), load(job.reference) if job.reference else None
    flat = layout(model.network) is torch.channels_last
    if min(scan.shape[: 2 if flat else 3]) < 2:
        needs = "an image" if flat else "a 3-D scan, and only 2-D models take single slices"
        raise InputError(f"the scan has {scan.shape} voxels; {experiment.name} needs {needs}")
    if experiment.spacing_mm:
        made, finer = f"{experiment.spacing_mm:g} mm", np.divide(scan.spacing_mm, experiment.spacing_mm)
    else:
        finer = output_factor(scan, model, *(settings.get(k) for k in ("factor", "spacing_mm", "zero_filled")))
        made = "x" + " ".join(f"{f:.4g}" for f in finer)
    _check_size([math.ceil(n * f) for n, f in zip(scan.shape, finer, strict=True)], gb)
    spacing = scan.spacing_mm
    thick = [f"{a} ({mm:.4g} mm)" for a, mm in zip(axcodes(scan), spacing, strict=True) if mm > THICK * min(spacing)]
    tell(
        f"{job.source.name}: {describe(scan)}{'; thick along ' * bool(thick)}{', '.join(thick)}; model {experiment.name}"
        f"{'' if experiment.spacing_mm else ', ' + made}"
    )
    notes = headers.doubts(job.source)
    mixture, told = experiment.mixture, np.multiply(finer, settings.get("zero_filled") or 1)
    if mixture and told.max() > (mixture.thick if np.sum(told > 1) == 1 else mixture.isotropic):
        notes.append(
            f"a factor of {told.max():.3g}; {experiment.name} was trained on up to {mixture.isotropic:g}, or {mixture.thick:g} along one axis"
        )
    b, lines = None, [f"{experiment.name}{'' if experiment.spacing_mm else ', ' + made}, srlib {__version__}"]
    if settings.pop("adapt", False):
        if settings.get("zero_filled"):
            raise InputError("adapting learns from slices that are thick, not from zero-filled planes; leave one out")
        model, line = adapt(scan, model, finer)
        lines.append(line)
        tell(f"{job.source.name}: {line}")
    if job.uncertainty and (settings.get("factor") or settings.get("spacing_mm")):
        raise InputError("the uncertainty comes on the model's own grid; leave factor and spacing out")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)
        if job.uncertainty:
            own = {k: v for k, v in settings.items() if k in ("ct", "flip", "max_memory_gb", "progress")}
            sr, b = with_uncertainty(scan, model, other, **own)
        else:
            sr = super_resolve(scan, model, reference=other, **settings)
    for warning in caught:
        notes += str(warning.message).splitlines() if warning.category is ScanWarning else []
    notes += gaps(scan, read_thickness(job.source))
    if not np.isfinite(sr.data).all():
        raise InputError(
            "the result is not finite; scale the scan's intensities first, they are too large or too small"
        )
    record = record | {"spacing_in": scan.spacing_mm}
    header = headers.kept(job.source, scan.affine, sr.affine, sr.shape, f"srlib {experiment.name} {made}", record)
    if b is not None:
        save(b, job.uncertainty, np.float32, header)
    notes += filter(None, [headers.store_as(header, dtype, job.source, sr.data)])
    for note in notes:
        tell(f"warning: {note}")
    try:
        if report:
            page = make_dir(Path(report)) / f"{job.target.name.removesuffix('.gz').rpartition('.')[0]}.html"
            write_report(scan, sr, page, f"{job.source.name}, enhanced", lines, notes, b)
        save(sr, job.target, header.get_data_dtype(), header)
    except BaseException:
        if job.uncertainty:
            job.uncertainty.unlink(missing_ok=True)
        raise
    return scan, sr, "; ".join(notes)


def _check_size(shape: Sequence[int], max_memory_gb: float) -> None:
    need = 4 * COPIES * math.prod(shape) / 1e9  # asked before it is taken
    if math.prod(shape) > MAX_VOXELS or need > max_memory_gb:
        raise InputError(
            f"{tuple(shape)} voxels need {need:.3g} GB of memory at least, {max_memory_gb:.3g} GB and {MAX_VOXELS:,} voxels "
            "are allowed; choose a larger spacing, or allow more (--max-memory)"
        )


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``summary.csv``, a row per scan; rows of other scans that an earlier run wrote there stay."""
    path, rows = folder / SUMMARY, {}
    with suppress(InputError):
        rows = {row["file"]: row for row in (read_table(path) if path.is_file() else []) if {*row} == {*COLUMNS}}
    for o in outcomes:
        given, made = (" ".join(f"{mm:.6g}" for mm in spacing) for spacing in (o.spacing_in, o.spacing_out))
        name = str(o.job.source).encode(errors="backslashreplace").decode()  # as it is read back: it need not be text
        values = (name, o.status, f"{o.seconds:.1f}", given, made, o.message)
        rows[values[0]] = dict(zip(COLUMNS, values, strict=True))
    how = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic(path) as temporary, open(temporary, "w", **how) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    return path
