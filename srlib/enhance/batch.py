"""Enhance many scans with one model; resume earlier runs and report each bad scan in one line."""

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
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from srlib import __version__
from srlib.core.device import layout
from srlib.core.paths import InputError, StrPath, first_line, make_dir, sha256, sweep
from srlib.enhance.jobs import SUMMARY, Job, Outcome, check_places
from srlib.enhance.workers import STOPPED, share
from srlib.inference.checks import gaps
from srlib.inference.prediction import Prediction, Request
from srlib.scans import headers
from srlib.scans.formats import fingerprint, is_whole, load_scan, read_grid
from srlib.scans.volume import describe, save_scan
from srlib.systems.trained import Model, find_weights

COPIES = 5  # float32 copies of the result that exist at once, besides the tiles


def run(
    todo: Sequence[Job],
    model: Model,
    weights: StrPath,
    *,
    tell: Callable[[str], None],
    workers: int = 1,
    max_memory_gb: float | None = None,
    dtype: str = "float32",
    force: bool = False,
    **settings: Any,
) -> Iterator[Outcome]:
    """Enhance scans with a model and its weights; yield the outcome of each as it finishes.

    A bad scan does not stop the others. ``workers`` processes share the memory. ``tell`` receives
    progress and warnings, in the process that enhances the scan; it must be picklable if there are
    several workers. ``dtype``: see ``SourceHeader.set_type``. ``force`` replaces existing outputs.
    ``settings`` are the fields of a ``prediction.Request``. Temporary files of killed runs are
    deleted. Raises InputError if the weights are missing.
    """
    workers = max(min(workers, len(todo)), 1)
    if max_memory_gb is None:
        max_memory_gb = model.experiment.prediction.memory_gb
    origin = {
        "srlib": __version__,
        "model": model.experiment.name,
        "weights": sha256(find_weights(weights)),
        "settings": {k: v for k, v in settings.items() if v is not None}
        | {"dtype": dtype, "precision": model.precision},
    }
    limits = {"max_memory_gb": max_memory_gb / workers, "progress": workers == 1}
    enhancer = Enhancer(model, todo, origin, Request(**settings), limits, force, tell)
    given = ()
    if workers > 1:
        # as bytes: PyTorch would send tensors by shared memory, which is scarce in containers
        given = pickle.dumps(enhancer), max(1, torch.get_num_threads() // workers)
    try:
        with closing(share(todo, workers, enhancer.attempt, _begin, *given)) as results:
            for job, result in results:
                if result is STOPPED:
                    result = enhancer.finished(job)
                elif isinstance(result, str):
                    result = Outcome(job, "failed", (f"{job.source}: {result}",))
                if result:
                    yield result
    finally:
        written = [path for job in todo for path in job.outputs]
        for folder in {path.parent for path in written}:
            sweep(folder, [SUMMARY, *(path.name for path in written)])


def _begin(enhancer, threads):
    """Return the function with which a worker enhances scans."""
    torch.set_num_threads(threads)
    # tqdm's own lock outlives a killed process and causes a complaint
    tqdm.set_lock(threading.RLock())
    return pickle.loads(enhancer).attempt


@dataclass(frozen=True)
class Enhancer:
    """Enhance single scans of a batch with one model and one set of settings."""

    model: Model
    todo: Sequence[Job]  # the whole batch
    origin: Mapping[str, object]  # the part of an output's record that all scans share
    request: Request
    limits: Mapping[str, object]  # memory, and whether progress is shown
    force: bool
    tell: Callable[[str], None]

    def attempt(self, job: Job) -> Outcome:
        """Enhance a scan; any exception becomes a failed outcome with one line."""
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = self._enhance_if_needed(job)
        except Exception as err:  # whatever a library raises, the other scans go on
            outcome = Outcome(job, "failed", (_why(err, job.source),))
        return replace(outcome, seconds=time.perf_counter() - begin)

    def finished(self, job: Job) -> Outcome | None:
        """The outcome of a job whose worker was stopped; None if its outputs were not ready."""
        with suppress(InputError):
            outcome = self._earlier(job, self._record(job))
            return outcome and replace(outcome, status="enhanced")
        return None

    def _tell(self, job, line):
        count = len(self.todo)
        self.tell(f"[{self.todo.index(job) + 1}/{count}] {line}" if count > 1 else line)

    def _enhance_if_needed(self, job):
        record = self._record(job)
        check_places(job)
        page, earlier = job.page, None if self.force else self._earlier(job, record)
        if earlier and (
            not page or (page.exists() and page.stat().st_mtime >= job.target.stat().st_mtime)
        ):
            self._tell(job, f"{job.source.name}: done before")
            return earlier
        return self._enhance(job, record)

    def _record(self, job):
        """What an output is made from and how, in the form in which it is read back."""
        record = {
            **self.origin,
            "source": fingerprint(job.source),
            "reference": job.reference and fingerprint(job.reference),
        }
        return json.loads(json.dumps(record))

    def _earlier(self, job, record):
        """The outcome of an earlier run with this record; None if scans are missing or damaged.

        Raises InputError if another file is there.
        """
        there = {p: headers.read_record(p) for p in job.scans if os.path.lexists(p)}
        for path, old in there.items():
            if not record.items() <= old.items():
                raise InputError(
                    f"{path} exists and was not made from this scan in this way; "
                    "--force replaces it"
                )
        if len(there) < len(job.scans):
            return None
        try:
            sr, *_ = [load_scan(p) for p in job.scans]
        except InputError as err:
            damaged = f"the earlier output is damaged, making it again ({first_line(err)})"
            self._tell(job, f"{job.source.name}: {damaged}")
            return None
        old = there[job.target]
        return Outcome(
            job, "done before", old.get("warnings", ()), old.get("spacing_in", ()), sr.spacing_mm
        )

    def _enhance(self, job, record):
        for path in job.scans:
            make_dir(path.parent)  # fails early if it is not writable
        reference = job.reference and load_scan(job.reference)
        scan, plan = self._read(job)
        how = f"model {self.model.experiment.name}, {plan.made}, precision {self.model.precision}"
        self._tell(job, f"{job.source.name}: {describe(scan)}; {how}")
        made = self.model.predict(scan, self.request, plan=plan, reference=reference, **self.limits)
        if not np.isfinite(made.image.data).all():
            raise InputError(
                "the result is not finite; rescale the scan's intensities, they are too large or "
                "too small"
            )
        source = headers.read_header(job.source)
        notes = source.warnings() + made.warnings + gaps(scan, source.thickness)
        if not self.force:
            self._earlier(job, record)  # raises if another process has written there meanwhile
        made = Prediction(made.image, job.uncertainty and made.uncertainty, notes)
        self._write(job, record | {"spacing_in": scan.spacing_mm}, source, made, plan)
        for note in notes:
            self._tell(job, f"warning: {note}")
        if job.page:
            from srlib.enhance.report import write_report  # a second of imports

            write_report(
                scan,
                made.image,
                job.page,
                title=f"{job.source.name}, enhanced",
                lines=[f"{self.model.experiment.name}, {plan.made}, srlib {__version__}"],
                warnings=made.warnings,
                uncertainty=made.uncertainty,
            )
        return Outcome(job, "enhanced", notes, scan.spacing_mm, made.image.spacing_mm)

    def _read(self, job):
        """A scan and the plan for it.

        Raises InputError for one slice where the model needs more, and for too many voxels.
        """
        if not is_whole(job.source):
            self._check_size(read_grid(job.source)[0])  # before it is read
        scan, experiment = load_scan(job.source), self.model.experiment
        flat = layout(self.model.network) is torch.channels_last
        if min(scan.shape[: 2 if flat else 3]) < 2:
            needs = "an image" if flat else "a 3-D scan, and only 2-D models take single slices"
            raise InputError(f"the scan has {scan.shape} voxels; {experiment.name} needs {needs}")
        if job.uncertainty and not experiment.prediction.uncertain:
            raise InputError(
                f"{experiment.name} knows no uncertainty; use a model trained with the loss "
                "'laplace', or leave --uncertainty out"
            )
        plan = self.model.plan(scan, self.request)
        self._check_size([math.ceil(n * f) for n, f in zip(scan.shape, plan.finer, strict=True)])
        return scan, plan

    def _check_size(self, shape):
        need, most = 4 * COPIES * math.prod(shape) / 1e9, self.limits["max_memory_gb"]
        if need > most:
            raise InputError(
                f"{tuple(shape)} voxels need {need:.3g} GB of memory at least, {most:.3g} GB are "
                "allowed; choose a larger spacing, or allow more (--max-memory)"
            )

    def _write(self, job, record, source, made, plan):
        """Write the uncertainty, then the scan; add a note on the voxel type to the warnings."""
        sr = made.image
        done = f"srlib {self.model.experiment.name} {plan.made}"
        header = source.derive(sr.affine, sr.shape, description=done, record=record)
        if job.uncertainty:
            save_scan(made.uncertainty, job.uncertainty, dtype=np.float32, header=header)
        made.warnings.extend(source.set_type(header, record["settings"]["dtype"], sr.data))
        if made.warnings:
            headers.write_record(header, record | {"warnings": made.warnings})
        save_scan(sr, job.target, dtype=header.get_data_dtype(), header=header)


def _why(err, source):
    """Describe an exception in one line that names the scan."""
    if isinstance(err, InputError):
        message = str(err)
    elif isinstance(err, MemoryError) or "memory" in str(err):
        message = "this machine's memory is not enough; choose a larger spacing, or fewer --workers"
    else:
        message = f"failed unexpectedly ({type(err).__name__}: {first_line(err)})"
    return message if str(source) in message else f"{source}: {message}"
