"""Many scans through a model: what was done before, and one line for each that cannot be used."""

import json
import math
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from srlib import __version__
from srlib.core.device import layout
from srlib.core.paths import InputError, first_line, make_dir, sha256, sweep
from srlib.enhance.jobs import SUMMARY, Job, Outcome, check_places
from srlib.enhance.report import write_report
from srlib.enhance.workers import STOPPED, share
from srlib.inference.any_factor import THICK
from srlib.inference.checks import gaps
from srlib.inference.prediction import Request
from srlib.scans import headers
from srlib.scans.dicom import read_thickness
from srlib.scans.formats import fingerprint, is_whole, load, read_shape
from srlib.scans.volume import axcodes, describe, save
from srlib.systems.trained import Model, find_weights

COPIES = 5  # float32 copies of the result that live at once, before, between and after the tiles


def run(
    todo: Sequence[Job],
    model: Model,
    weights: str | Path,
    tell: Callable[[str], None],
    workers: int = 1,
    max_memory_gb: float | None = None,
    dtype: str = "float32",
    force: bool = False,
    **settings: object,
) -> Iterator[Outcome]:
    """Enhance scans by a model and its weights; yield what became of each as they finish.

    No bad scan stops the others. ``workers`` processes share the memory. ``tell`` hears what is read
    and what to mind, in the process that does it; with several workers it can be pickled.
    ``dtype``: see ``headers.store_as``. ``force`` replaces what is there. ``settings`` are the
    fields of a ``prediction.Request``. What this and earlier runs left half-written when they were killed is swept
    away. Raises InputError for weights that are not there.
    """
    workers = min(workers, len(todo))
    if max_memory_gb is None:
        max_memory_gb = model.experiment.prediction.memory_gb
    enhancer = Enhancer(
        model=model,
        by={
            "srlib": __version__,
            "model": model.experiment.name,
            "weights": sha256(find_weights(weights)),
        },
        settings=settings,
        limits={"max_memory_gb": max_memory_gb / workers, "progress": workers == 1},
        dtype=dtype,
        force=force,
        tell=tell,
        heads={
            job: f"[{i}/{len(todo)}] " if len(todo) > 1 else "" for i, job in enumerate(todo, 1)
        },
    )
    given = ()
    if (
        workers > 1
    ):  # bytes, as PyTorch would send tensors by shared memory, of which containers have little
        given = pickle.dumps(enhancer), max(1, torch.get_num_threads() // workers)
    try:
        with closing(share(todo, workers, enhancer.attempt, _begin, *given)) as results:
            for job, result in results:
                if result is STOPPED:
                    result = enhancer.made_after_all(job)
                elif isinstance(result, str):
                    result = Outcome(job, "failed", (f"{job.source}: {result}",))
                if result:
                    yield result
    finally:
        written = [path for job in todo for path in job.outputs]
        for folder in {path.parent for path in written}:
            sweep(folder, [SUMMARY, *(path.name for path in written)])


def _begin(enhancer: bytes, threads: int) -> Callable[[Job], Outcome]:
    """In a worker: what enhances a scan."""
    torch.set_num_threads(threads)
    # its own lasts beyond a process that is killed, and is complained about
    tqdm.set_lock(threading.RLock())
    return pickle.loads(enhancer).attempt


@dataclass(frozen=True)
class Enhancer:
    """A model with all that says how it enhances scans."""

    model: Model
    by: Mapping[str, str]  # what outputs say of it
    settings: Mapping[str, object]  # fields of a ``prediction.Request``
    limits: Mapping[str, object]  # of memory, and whether progress is shown
    dtype: str
    force: bool
    tell: Callable[[str], None]
    heads: Mapping[Job, str]  # what each line about a job begins with

    def attempt(self, job: Job) -> Outcome:
        """Enhance a scan; an exception of any kind becomes a failed outcome of one line."""
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = self._enhance_or_leave(job)
        except Exception as err:  # whatever a library raises, the other scans go on
            outcome = Outcome(job, "failed", (_why(err, job.source),))
        return replace(outcome, seconds=time.perf_counter() - begin)

    def made_after_all(self, job: Job) -> Outcome | None:
        """What a worker had just made of a job when it was stopped; None where it was not ready."""
        with suppress(InputError):
            made = self._made(job, self._record(job))
            return made and replace(made, status="enhanced")

    def _tell(self, job, line):
        self.tell(self.heads[job] + line)

    def _enhance_or_leave(self, job):
        record = self._record(job)
        check_places(job)
        made = None if self.force else self._made(job, record)
        stale = made and job.page
        if stale and job.page.exists():
            stale = job.page.stat().st_mtime < job.target.stat().st_mtime
        if not made or (
            stale and job.target.suffix == ".png"
        ):  # which has lost its units and its place
            return self._enhance(job, record)
        if stale:
            scan = load(job.source)
            plan = self.model.plan(scan, Request(**self.settings))
            self._write_page(job, scan, [load(p) for p in job.scans], made.notes, plan)
        self._tell(job, f"{job.source.name}: done before")
        return made

    def _record(self, job):
        """What an output is made from and how, as it is read back."""
        settings = {k: v for k, v in self.settings.items() if v is not None}
        record = {
            **self.by,
            "source": fingerprint(job.source),
            "reference": job.reference and fingerprint(job.reference),
            "settings": settings | {"dtype": self.dtype},
        }
        return json.loads(json.dumps(record))

    def _made(self, job, record):
        """The outcome of an earlier run with this record; None where scans are missing or damaged.

        Raises InputError when something else lies there.
        """
        there = {p: headers.read_record(p) or {} for p in job.scans if os.path.lexists(p)}
        for path, old in there.items():
            if not record.items() <= old.items():
                raise InputError(
                    f"{path} exists and was not made from this scan in this way; --force replaces it"
                )
        if len(there) < len(job.scans):
            return None
        try:
            sr, *_ = [load(p) for p in job.scans]
        except InputError as err:
            self._tell(
                job,
                f"{job.source.name}: what was made before is damaged, and made again ({first_line(err)})",
            )
            return None
        old = there[job.target]
        return Outcome(
            job, "done before", old.get("warnings", ()), old.get("spacing_in", ()), sr.spacing_mm
        )

    def _enhance(self, job, record):
        for path in job.scans:
            make_dir(path.parent)  # asked before the work
        reference = job.reference and load(job.reference)
        scan, request, plan = self._read(job)
        about = f"{describe(scan)}{_thick(scan)}; model {self.model.experiment.name}, {plan.made}"
        self._tell(job, f"{job.source.name}: {about}")
        made = self.model.predict(scan, request, plan=plan, reference=reference, **self.limits)
        if not np.isfinite(made.image.data).all():
            raise InputError(
                "the result is not finite; scale the scan's intensities, they are too large or too small"
            )
        notes = headers.doubts(job.source) + made.warnings + gaps(scan, read_thickness(job.source))
        if not self.force:
            self._made(
                job, record
            )  # raises where another process has written something else meanwhile
        made = [made.image] if job.uncertainty is None else [made.image, made.uncertainty]
        notes += self._write(job, record | {"spacing_in": scan.spacing_mm}, scan, made, notes, plan)
        for note in notes:
            self._tell(job, f"warning: {note}")
        if job.page:
            self._write_page(job, scan, made, notes, plan)
        return Outcome(job, "enhanced", notes, scan.spacing_mm, made[0].spacing_mm)

    def _read(self, job):
        """A scan, what is asked of it, and what will be made.

        Raises InputError for one slice where the model needs more, and for too many voxels.
        """
        if not is_whole(job.source):
            self._check_size(read_shape(job.source))  # before it is read
        scan, experiment = load(job.source), self.model.experiment
        flat = layout(self.model.network) is torch.channels_last
        if min(scan.shape[: 2 if flat else 3]) < 2:
            needs = "an image" if flat else "a 3-D scan, and only 2-D models take single slices"
            raise InputError(f"the scan has {scan.shape} voxels; {experiment.name} needs {needs}")
        if job.uncertainty and not experiment.prediction.uncertain:
            raise InputError(
                f"{experiment.name} knows no uncertainty; it was not trained with the loss 'laplace'"
            )
        request = Request(**self.settings)
        plan = self.model.plan(scan, request)
        self._check_size([math.ceil(n * f) for n, f in zip(scan.shape, plan.finer, strict=True)])
        return scan, request, plan

    def _check_size(self, shape):
        need, most = 4 * COPIES * math.prod(shape) / 1e9, self.limits["max_memory_gb"]
        if need > most:
            raise InputError(
                f"{tuple(shape)} voxels need {need:.3g} GB of memory at least, {most:.3g} GB are "
                "allowed; choose a larger spacing, or allow more (--max-memory)"
            )

    def _write(self, job, record, scan, made, notes, plan):
        """Write the uncertainty, then the scan; what there is to tell of its type."""
        sr = made[0]
        done = f"srlib {self.model.experiment.name} {plan.made}"
        header = headers.kept(job.source, scan.affine, sr.affine, sr.shape, done, record)
        if job.uncertainty:
            save(made[1], job.uncertainty, np.float32, header)
        more = [
            note for note in [headers.store_as(header, self.dtype, job.source, sr.data)] if note
        ]
        headers.write_record(header, record | ({"warnings": notes + more} if notes + more else {}))
        save(sr, job.target, header.get_data_dtype(), header)
        return more

    def _write_page(self, job, scan, made, notes, plan):
        line = f"{self.model.experiment.name}, {plan.made}, srlib {__version__}"
        write_report(
            scan, made[0], job.page, f"{job.source.name}, enhanced", [line], notes, *made[1:]
        )


def _thick(scan):
    least = THICK * min(scan.spacing_mm)
    axes = zip(axcodes(scan), scan.spacing_mm, strict=True)
    thick = ", ".join(f"{axis} ({mm:.4g} mm)" for axis, mm in axes if mm > least)
    return f"; thick along {thick}" if thick else ""


def _why(err, source):
    """An exception in one line that names the scan."""
    if isinstance(err, InputError):
        message = " ".join(str(err).split())
    elif isinstance(err, MemoryError) or "memory" in str(err):
        message = "this machine's memory is not enough; choose a larger spacing, or fewer --workers"
    else:
        message = f"failed unexpectedly ({type(err).__name__}: {first_line(err)})"
    return message if str(source) in message else f"{source}: {message}"
