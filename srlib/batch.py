"""Many scans through a model: what was done before, and one line for each that cannot be used."""

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from srlib import __version__, headers, synthesis, tiled
from srlib.checks import gaps
from srlib.device import layout
from srlib.dicom import read_thickness
from srlib.headers import MAX_VOXELS
from srlib.images import is_whole, load, read_shape
from srlib.infer import THICK, Model, find_weights, load_model, output_factor, super_resolve, with_uncertainty
from srlib.inputs import SUMMARY, Job, Outcome, check_places, page_of, record_of
from srlib.paths import InputError, ScanWarning, first_line, make_dir, sha256, sweep
from srlib.report import write_report
from srlib.volume import Volume, axcodes, describe, save
from srlib.workers import STOPPED, share

COPIES = 5  # float32 copies of the result that live at once, before, between and after the tiles


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

    ``settings`` are those of ``enhance_file``, whose lines ``tell`` hears; ``workers`` processes share the memory. What
    earlier runs left half-written when they were killed is swept away. Raises InputError when pages cannot be written.
    """
    weights, report = find_weights(weights), settings.get("report")
    if report:
        make_dir(Path(report))
    written = [p for job in todo for p in (job.target, job.uncertainty, page_of(job, report)) if p]
    default = synthesis.MAX_MEMORY_GB if model.experiment.spacing_mm else tiled.MAX_MEMORY_GB
    workers = max(min(workers, len(todo)), 1)
    settings |= {
        "max_memory_gb": (default if max_memory_gb is None else max_memory_gb) / workers,
        "by": {"srlib": __version__, "model": model.experiment.name, "weights": sha256(weights)},
    }
    heads = {job: f"[{i}/{len(todo)}] " if len(todo) > 1 else "" for i, job in enumerate(todo, 1)}
    _sweep(written)
    threads = max(1, torch.get_num_threads() // workers)

    def here(job: Job) -> tuple[Outcome, list[str]]:
        return attempt(job, model, lambda line: tell(heads[job] + line), progress=True, **settings), []

    try:
        with closing(share(todo, workers, here, _begin, weights, device, threads, settings)) as results:
            for job, result in results:
                outcome, lines = (_without(job, result, settings), []) if isinstance(result, str) else result
                for line in lines:
                    tell(heads[job] + line)
                if outcome:
                    yield outcome
    finally:
        _sweep(written)  # after workers that were killed


def _without(job: Job, why: str, settings: Mapping[str, object]) -> Outcome | None:
    """What became of a job that gave no outcome; None where it was stopped and its output was not there yet."""
    if why is not STOPPED:
        return Outcome(job, "failed", f"{job.source}: {why}")
    with suppress(InputError):
        if made := _made(job, record_of(job, **settings), str):
            return _outcome(job, "enhanced", made)
    return None


def _sweep(written: Sequence[Path]) -> None:
    for folder in {p.parent for p in written}:
        sweep(folder, [SUMMARY, *(p.name for p in written)])


def _begin(weights: Path, device: str, threads: int, settings: Mapping[str, object]) -> Callable[[Job], tuple]:
    """In a worker: what gives a job's outcome and the lines to tell."""
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own lasts beyond a process that is killed, and is complained about
    model = load_model(weights, device)
    if sha256(weights) != settings["by"]["weights"]:
        raise InputError(f"{weights} has changed since this run began; run again")

    def work(job: Job) -> tuple[Outcome, list[str]]:
        lines: list[str] = []
        return attempt(job, model, lines.append, **settings), lines

    return work


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

    ``report`` is a folder for a page on it, see ``report.write_report``, which is also made of a scan that was done
    before where it is missing or older.

    A NIfTI keeps its header (``headers.kept``). It and every other output says how it was made: ``by`` what, from which
    source, with which ``settings``, those of ``super_resolve``. ``dtype``: see ``headers.store_as``. Raises InputError
    as these, when something else is there unless ``force``, and as ``_enhance`` does.
    """
    begin = time.perf_counter()
    record = record_of(job, by, dtype, **settings)
    page = page_of(job, report)
    check_places([p for p in (job.target, job.uncertainty, page) if p], [p for p in (job.source, job.reference) if p])
    made = None if force else _made(job, record, tell)
    lacking = made and page and not (page.exists() and page.stat().st_mtime >= job.target.stat().st_mtime)
    if made and not (lacking and job.target.suffix == ".png"):  # which has lost its units and its place
        old, scans = made
        if lacking:
            scan = load(job.source)
            finer = np.divide(scans[0].shape, scan.shape)
            _write_page(page, job, model, finer, scan, scans, old.get("warnings", []))
        tell(f"{job.source.name}: done before")
        return _outcome(job, "done before", made)
    for path in filter(None, (job.target, job.uncertainty)):
        make_dir(path.parent)  # asked before the work
    status, scan, sr, notes = _enhance(job, model, tell, record, dtype, page, force or lacking, settings)
    return Outcome(job, status, notes, scan.spacing_mm, sr.spacing_mm, time.perf_counter() - begin)


def _outcome(job: Job, status: str, made: tuple[dict, list[Volume]]) -> Outcome:
    record, scans = made
    notes = "; ".join(record.get("warnings", []))
    return Outcome(job, status, notes, record.get("spacing_in", ()), scans[0].spacing_mm)


def _made(job: Job, record: Mapping[str, object], tell: Callable[[str], None]) -> tuple[dict, list[Volume]] | None:
    """What lies there that was made in this way: its record, and the scans; None where it is not all there and whole.

    Raises InputError when something else lies there.
    """
    outputs = [p for p in (job.target, job.uncertainty) if p]
    there = {p: headers.read_record(p) or {} for p in outputs if os.path.lexists(p)}
    other = [p for p, old in there.items() if not record.items() <= old.items()]
    if other:
        raise InputError(f"{other[0]} exists and was not made from this scan in this way; --force replaces it")
    if len(there) < len(outputs):
        return None
    try:
        return there[job.target], [load(p) for p in outputs]
    except InputError as err:
        tell(f"{job.source.name}: what was made before is damaged, and made again ({first_line(err)})")
        return None


def _how(model: Model, finer: Sequence[float]) -> str:
    """The model, and by which factors the scan became finer where it leaves a choice."""
    return model.experiment.name + ("" if model.experiment.spacing_mm else f", x{' '.join(f'{f:.4g}' for f in finer)}")


def _write_page(
    page: Path,
    job: Job,
    model: Model,
    finer: Sequence[float],
    scan: Volume,
    made: Sequence[Volume],
    notes: Sequence[str],
) -> None:
    title, done = f"{job.source.name}, enhanced", f"{_how(model, finer)}, srlib {__version__}"
    write_report(scan, made[0], page, title, [done], notes, *made[1:])


def _enhance(
    job: Job,
    model: Model,
    tell: Callable[[str], None],
    record: dict,
    dtype: str,
    page: Path | None,
    force: object,
    settings: dict,
) -> tuple[str, Volume, Volume, str]:
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
        f"{job.source.name}: {describe(scan)}{'; thick along ' * bool(thick)}{', '.join(thick)}; "
        f"model {_how(model, finer)}"
    )
    notes = headers.doubts(job.source)
    mixture, told = experiment.mixture, np.multiply(finer, settings.get("zero_filled") or 1)
    if mixture and told.max() > (mixture.thick if np.sum(told > 1) == 1 else mixture.isotropic):
        notes.append(
            f"a factor of {told.max():.3g}; {experiment.name} was trained on up to {mixture.isotropic:g}, or {mixture.thick:g} along one axis"
        )
    b = None
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
    if not force and _made(job, record, tell):  # by another process, meanwhile
        tell(f"{job.source.name}: done before")
        return "done before", scan, sr, "; ".join(notes)
    record = record | {"spacing_in": scan.spacing_mm}
    header = headers.kept(job.source, scan.affine, sr.affine, sr.shape, f"srlib {experiment.name} {made}", record)
    if b is not None:
        save(b, job.uncertainty, np.float32, header)
    notes += filter(None, [headers.store_as(header, dtype, job.source, sr.data)])
    for note in notes:
        tell(f"warning: {note}")
    headers.write_record(header, record | ({"warnings": notes} if notes else {}))
    try:
        if page:
            _write_page(page, job, model, finer, scan, [sr] if b is None else [sr, b], notes)
        save(sr, job.target, header.get_data_dtype(), header)
        if page:
            os.utime(page)  # since one older than its scan is of another
    except BaseException:
        for path in filter(None, (job.uncertainty, page)):
            path.unlink(missing_ok=True)
        raise
    return "enhanced", scan, sr, "; ".join(notes)


def _check_size(shape: Sequence[int], max_memory_gb: float) -> None:
    need = 4 * COPIES * math.prod(shape) / 1e9  # asked before it is taken
    if math.prod(shape) > MAX_VOXELS or need > max_memory_gb:
        raise InputError(
            f"{tuple(shape)} voxels need {need:.3g} GB of memory at least, {max_memory_gb:.3g} GB and {MAX_VOXELS:,} voxels "
            "are allowed; choose a larger spacing, or allow more (--max-memory)"
        )
