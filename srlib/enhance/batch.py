"""Enhance many scans with one model; resume earlier runs and report each bad scan in one line."""

import itertools
import json
import math
import os
import re
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
from srlib.core.paths import InputError, StrPath, digest, first_line, make_dir, sha256, sweep
from srlib.core.processes import free_memory_gb
from srlib.core.workers import STOPPED, share
from srlib.enhance.jobs import SUMMARY, Job, Outcome, check_places
from srlib.inference.checks import gaps
from srlib.inference.prediction import Request
from srlib.scans import headers
from srlib.scans.formats import fingerprint, load_scan
from srlib.scans.series import Series, load_volumes, save_series
from srlib.systems.trained import Model, find_weights

COPIES = 5  # float32 copies of the result that exist at once, besides the tiles
ROOM = 3  # times these copies: room for tiles beside them
SHARE = 0.8  # of the free memory that scans may take by default
MARK = '<meta name="srlib" content="{}">'  # of a page: the scan that it shows


def run(
    todo: Sequence[Job],
    model: Model,
    weights: StrPath,
    *,
    tell: Callable[[str], None],
    workers: int = 1,
    scheduler: str | None = None,
    max_memory_gb: float | None = None,
    dtype: str = "float32",
    force: bool = False,
    **settings: Any,
) -> Iterator[Outcome]:
    """Enhance scans with a model and its weights; yield the outcome of each as it finishes.

    A bad scan does not stop the others. ``workers`` and ``scheduler`` as in ``workers.share``;
    processes of this machine share the memory, each worker of a cluster has all of it. ``tell``
    receives progress and warnings, in the process that enhances the scan; it must be picklable if
    that is another one. ``dtype``: see ``SourceHeader.set_type``. ``force`` replaces existing outputs.
    ``settings`` are the fields of a ``prediction.Request``. Temporary files of killed runs are
    deleted. Raises InputError if the weights are missing.
    """
    workers = max(min(workers, len(todo)), 1)
    most = usual = max_memory_gb
    if most is None:
        most = SHARE * free_memory_gb()
        usual = min(model.experiment.prediction.memory_gb, most)
    origin = {
        "srlib": __version__,
        "model": model.experiment.name,
        "weights": sha256(find_weights(weights)),
        "settings": {k: v for k, v in settings.items() if v is not None}
        | {"dtype": dtype, "precision": model.precision},
    }
    memory = usual / workers, most / workers
    threads = 0 if workers == 1 or scheduler else max(1, torch.get_num_threads() // workers)
    enhancer = Enhancer(model, origin, Request(**settings), memory, force, tell, threads)
    try:
        with closing(
            share(todo, enhancer.attempt, workers=workers, scheduler=scheduler)
        ) as results:
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


@dataclass(frozen=True)
class Enhancer:
    """Enhance single scans of a batch with one model and one set of settings."""

    model: Model
    origin: Mapping[str, object]  # the part of an output's record that all scans share
    request: Request
    memory_gb: tuple[float, float]  # for a scan: usually, and at most
    force: bool
    tell: Callable[[str], None]
    threads: int = 0  # of a worker process that shares this machine with others; 0: all

    def attempt(self, job: Job) -> Outcome:
        """Enhance a scan; any exception becomes a failed outcome with one line."""
        begin = time.perf_counter()
        if self.threads:
            torch.set_num_threads(self.threads)
            # tqdm's own lock outlives a killed process and causes a complaint
            tqdm.set_lock(threading.RLock())
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
        self.tell(f"{job.place}{line}")

    def _enhance_if_needed(self, job):
        record = self._record(job)
        check_places(job)
        earlier = None if self.force else self._earlier(job, record)
        if not self.force and self._is_shown(job, record, earlier) and earlier:
            self._tell(job, f"{job.source.name}: done before")
            return earlier
        return self._enhance(job, record)

    def _is_shown(self, job, record, earlier):
        """Whether the page of an ``earlier`` outcome is there, if a page is wanted.

        One that was changed by hand since then stays. Raises InputError where another page is.
        """
        page = job.page
        if not (page and os.path.lexists(page)):
            return not page
        text = page.read_text("utf-8", "replace")
        if _mark(job, record) in text or (earlier and MARK.partition("{")[0] not in text):
            return earlier and page.stat().st_mtime >= job.target.stat().st_mtime
        raise InputError(
            f"{page} exists and is not of this scan; --force replaces it, or choose another folder"
        )

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
            for path in reversed(job.scans):
                *_, sr = load_volumes(path)[1]
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
        count, volumes, scan, plan, memory = self._read(job)
        how = f"model {self.model.experiment.name}, {plan.made}, precision {self.model.precision}"
        several = f"{count} volumes, the first " if count > 1 else ""
        self._tell(job, f"{job.source.name}: {several}{scan}; {how}")
        source = headers.read_header(job.source)
        images, uncertainties, notes = self._predict(job, count, volumes, plan, memory)
        notes = source.warnings() + notes + gaps(scan, source.thickness)
        if not self.force:
            self._earlier(job, record)  # raises if another process has written there meanwhile
        spacing = {"spacing_in": scan.spacing_mm}
        self._write(job, record | spacing, source, images, uncertainties, notes, plan)
        for note in notes:
            self._tell(job, f"warning: {note}")
        if job.page:
            from srlib.enhance.report import write_report  # a second of imports

            write_report(
                scan,
                images.first,
                job.page,
                title=f"{job.source.name}, enhanced",
                lines=[f"{self.model.experiment.name}, {plan.made}, srlib {__version__}"],
                warnings=notes,
                uncertainty=uncertainties.first,
                mark=_mark(job, record),
            )
        return Outcome(job, "enhanced", notes, scan.spacing_mm, images.first.spacing_mm)

    def _read(self, job):
        """How many volumes a scan has, all of them, the first, the plan for each and its memory.

        Raises InputError for one slice where the model needs more, for too many voxels, and for
        outputs that cannot hold them.
        """
        (*shape, count), volumes = load_volumes(job.source)
        self._memory(shape)  # before it is read
        for path in job.scans:
            if count > 1 and not path.name.endswith((".nii", ".nii.gz")):
                raise InputError(f"{path}: {count} volumes need a name ending in .nii or .nii.gz")
            if path.suffix == ".png" and shape[2] > 1:
                raise InputError(f"{path}: a PNG holds one slice, got {shape[2]}; choose .nii.gz")
        scan, experiment = next(volumes), self.model.experiment
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
        finer = [math.ceil(n * f) for n, f in zip(scan.shape, plan.finer, strict=True)]
        memory = self._memory(finer)
        return count, itertools.chain([scan], volumes), scan, plan, memory

    def _predict(self, job, count, volumes, plan, memory):
        """Enhance volume by volume: images, uncertainties, and what to mind, once each kind."""
        images, uncertainties = (Series(job.target.parent) for _ in range(2))
        reference, notes = job.reference and load_scan(job.reference), {}
        for number, volume in enumerate(volumes, 1):
            where = f"volume {number}: " if count > 1 else ""
            try:
                made = self.model.predict(
                    volume,
                    self.request,
                    plan=plan,
                    reference=reference,
                    max_memory_gb=memory,
                    progress=not self.threads,
                )
            except InputError as err:
                raise InputError(f"{where}{err}") from err
            images.append(made.image)
            if job.uncertainty:
                uncertainties.append(made.uncertainty)
            for line in made.warnings:
                notes.setdefault(re.sub(r"[\d.]+", "", line), where + line)
        return images, uncertainties, [*notes.values()]

    def _memory(self, shape):
        """Memory for the tiles of a scan in GB, more than usual only where its voxels need it."""
        need, (usual, most) = 4 * COPIES * math.prod(shape) / 1e9, self.memory_gb
        if need > most:
            raise InputError(
                f"{tuple(shape)} voxels need {need:.3g} GB of memory at least, {most:.3g} GB are "
                "allowed; choose a larger spacing, or allow more (--max-memory)"
            )
        return min(max(usual, ROOM * need), most)

    def _write(self, job, record, source, images, uncertainties, notes, plan):
        """Write the uncertainty, then the scan; add a note on the voxel type to the others."""
        first, count = images.first, len(images)
        done = f"srlib {self.model.experiment.name} {plan.made}"
        shape = first.shape if count == 1 else (*first.shape, count)
        header = source.derive(first.affine, shape, description=done, record=record)
        if job.uncertainty:
            header.set_data_dtype(np.float32)
            save_series(uncertainties, job.uncertainty, header)
        kind = record["settings"]["dtype"]
        notes += source.set_type(header, kind, images.low, images.high)
        if notes:
            headers.write_record(header, record | {"warnings": notes})
        save_series(images, job.target, header)


def _mark(job, record):
    return MARK.format(digest(json.dumps([job.source.name, record["source"]])))


def _why(err, source):
    """Describe an exception in one line that names the scan."""
    if isinstance(err, InputError):
        message = str(err)
    elif isinstance(err, MemoryError) or "memory" in str(err):
        message = "this machine's memory is not enough; choose a larger spacing, or fewer --workers"
    else:
        message = f"failed unexpectedly ({type(err).__name__}: {first_line(err)})"
    return message if str(source) in message else f"{source}: {message}"
