"""Share jobs among processes, here or on a Dask cluster, so that one that dies stops no other."""

import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Any

from srlib.core.paths import InputError, explained, first_line
from srlib.core.processes import end_with_parent

ENDED = "its process ended, perhaps for want of memory; use fewer --workers and run again"
STOPPED = "stopped before it ended"
PATIENCE = 60  # seconds that a cluster may take to answer


def share(
    todo: Sequence, work: Callable, *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple]:
    """Yield each job with ``work(job)`` as it finishes, or with a line that says why it has none.

    One worker is this process, and what it raises is raised here; more are processes of this
    machine. With the ``scheduler`` of a Dask cluster, its address or its file, all jobs are done by
    the cluster's workers. ``work`` goes to each process once, by pickle. Jobs that were being done
    when a process died are tried once more, each by itself; a cluster tries a job as often as its
    scheduler says, each time. Processes end with the iterator and with the process that uses it; a
    cluster finishes what it has begun. After Ctrl-C the line for unfinished jobs is STOPPED, and
    KeyboardInterrupt follows. Raises InputError for a cluster that does not answer or cannot do the jobs.
    """
    running = {}
    try:
        if scheduler or min(workers, len(todo)) > 1:
            begin = functools.partial(_cluster, scheduler) if scheduler else _processes
            # a cluster queues them itself
            workers = len(todo) if scheduler else min(workers, len(todo))
            yield from _shared(deque(todo), functools.partial(begin, work), workers, running)
        else:
            for running[0] in todo:
                yield running[0], work(running[0])
    except KeyboardInterrupt:
        yield from ((job, STOPPED) for job in running.values())
        raise


def share_all(todo: Sequence, work: Callable, **how: Any) -> list:
    """What ``share`` yields for all jobs, in their order.

    Raises InputError for the first job without a result, and as ``share``.
    """
    found = {}
    with closing(share([*enumerate(todo)], functools.partial(_numbered, work), **how)) as done:
        for (number, _), result in done:
            if isinstance(result, str):
                raise InputError(result)
            found[number] = result
    return [found[number] for number in range(len(todo))]


def _numbered(work, job):
    """Do a job of ``share_all``, which numbers them."""
    return work(job[1])


def _shared(waiting, begin, workers, running):
    """Share jobs among processes; begin anew where one died, and at last job by job."""
    again = deque()
    try:
        while waiting:
            with begin(workers) as submit:
                for job, result in _finished(submit, waiting, workers, running):
                    if result is ENDED:
                        again.append(job)
                    else:
                        yield job, result
        while again:
            with begin(1) as submit:
                yield from _finished(submit, deque([again.popleft()]), 1, running)
    except _CannotBegin as err:
        yield from ((job, str(err)) for job in [*again, *waiting])


class _CannotBegin(Exception):
    """No process can do jobs; the line says why."""


def _finished(submit, waiting, most, running):
    """Yield jobs with their results, ``most`` at once, until all are done or a process dies."""
    done, count, died = SimpleQueue(), itertools.count(), False
    while running or (waiting and not died):
        while waiting and len(running) < most and not died:
            number = next(count)
            running[number] = waiting.popleft()
            submit(running[number]).add_done_callback(lambda f, n=number: done.put((n, f)))
        number, future = done.get()
        result = _result(future)
        died = died or result is ENDED
        yield running.pop(number), result


def _result(future):
    try:
        return future.result()
    except BrokenExecutor:
        return ENDED
    except Exception as err:  # whatever a job raises in its process, the others go on
        return ENDED if type(err).__name__ == "KilledWorker" else first_line(err)


@contextmanager
def _processes(work, workers):
    """Processes of this machine; the first of them has begun."""
    before = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")  # forks of a process with threads may hang
    # as bytes: PyTorch would send tensors by shared memory, which is scarce in containers
    pool = ProcessPoolExecutor(workers, spawn, _begin, [pickle.dumps(work)])

    def submit(*given):
        # a process inherits the mask: only this one handles Ctrl-C
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(_do, *given)
        except BrokenExecutor as err:  # an idle process died meanwhile
            (future := Future()).set_exception(err)
            return future
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        first, *_ = [submit() for _ in range(workers)]  # all start now
        if failed := _result(first):
            raise _CannotBegin(failed)
        yield submit
    finally:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
        pool.shutdown(cancel_futures=True)


def _begin(blob):
    end_with_parent()
    _held.append(blob)


_held = []  # the pickled work of a worker process


def _do(*jobs):
    """Do the job, if there is one, in a worker process of this machine."""
    work = _loaded(_held[0])
    return work(*jobs) if jobs else None


@functools.lru_cache(1)
def _loaded(blob):
    return pickle.loads(blob)


def _do_there(folder, path, blob, job):
    """Do a job in a worker of a cluster, whose paths and imports begin in the same places as here."""
    os.chdir(folder)
    sys.path += [place for place in path if place not in sys.path]
    return _loaded(blob)(job)


@contextmanager
def _cluster(scheduler, work, workers):
    """The workers of a Dask cluster, however many there are."""
    try:
        from distributed import Client
    except ImportError as err:
        raise InputError("a scheduler needs Dask; pip install 'srlib[cluster]'") from err
    with explained(scheduler, "no Dask scheduler answers", "start one: dask scheduler"):
        where = "address" if "://" in scheduler else "scheduler_file"
        client = Client(**{where: scheduler}, timeout=PATIENCE, set_as_default=False)
    with client:
        with explained(scheduler, "its cluster has no workers", "start some: dask worker ADDRESS"):
            client.wait_for_workers(1, timeout=PATIENCE)
        if max(client.nthreads().values()) > 1:
            raise InputError(
                f"{scheduler}: its workers do several jobs at once; start them with --nthreads 1"
            )
        print(f"Dask's dashboard: {client.dashboard_link}", file=sys.stderr)
        # by a task, which another worker repeats where this one's dies
        blob = client.submit(bytes, pickle.dumps(work), pure=False)
        submit = client.get_executor(pure=False).submit
        yield functools.partial(submit, _do_there, os.getcwd(), sys.path, blob)
