"""Jobs shared out among processes, of which none takes the others along when it dies."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TypeVar

from srlib.core.paths import first_line

T, R = TypeVar("T"), TypeVar("R")
ENDED = "its process ended, perhaps for want of memory; use fewer --workers and run again"
STOPPED = "stopped while it was worked on"


def share(
    todo: Sequence[T],
    workers: int,
    here: Callable[[T], R],
    begin: Callable[..., Callable[[T], R]],
    *given: object,
) -> Iterator[tuple[T, R | str]]:
    """Yield each job with its result, as they finish, or with a line that says why there is none.

    One worker is this process, and ``here`` does a job. Else ``begin(*given)`` makes what does so
    in each process; what it raises is the line for each job. A job whose process dies is tried once
    more, after the others. A process that dies before it has begun is not replaced; when none is
    left, the other jobs have no result. Processes end
    with the iterator, with the process that uses it, and by Ctrl-C: then the line for the jobs at
    hand is STOPPED, and KeyboardInterrupt follows.
    """
    if workers == 1:
        yield from _alone(todo, here)
        return
    pool, started = {}, []  # the job of each pipe, None before its process has begun

    def start() -> None:
        process, pipe = _start(begin, given)
        started.append(process)
        pool[pipe] = None

    try:
        yield from _together(deque(todo), workers, pool, start)
    except KeyboardInterrupt:
        _end(started)
        yield from ((job, STOPPED) for job in pool.values() if job is not None)
        raise
    finally:
        _end(started)


def _alone(todo, here):
    for job in todo:
        try:
            result = here(job)
        except KeyboardInterrupt:
            yield job, STOPPED
            raise
        yield job, result


def _together(waiting, workers, pool, start):
    again = set()
    while pool or (waiting and workers):
        for _ in range(min(len(waiting), workers - len(pool))):
            start()
        for pipe in wait([*pool]):
            result = _received(pipe)
            job = pool.pop(pipe)
            if result is ENDED and job is None:
                workers -= 1
            elif result is ENDED and job not in again:
                again.add(job)
                waiting.append(job)
            elif job is not None:
                yield job, result
            if waiting and result is not ENDED:
                pool[pipe] = waiting.popleft()
                with suppress(OSError):  # it died meanwhile, which is seen when it is next heard
                    pipe.send(pool[pipe])
    yield from ((job, ENDED) for job in waiting)


def _received(pipe):
    """What a process has sent; ENDED where it died."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return ENDED


def _end(processes):
    for process in processes:
        process.kill()
        process.join()


def _start(begin, given):
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang
    pipe, end = context.Pipe()
    process = context.Process(target=_serve, args=(end, begin, given), daemon=True)
    # inherited: a Ctrl-C is the parent's to handle
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    end.close()  # or the death of the process would not be seen
    return process, pipe


def _serve(pipe, begin, given):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = begin(*given)
    except Exception as err:  # whatever it is, it is said of each job
        why = first_line(err)

        def work(_: object) -> str:
            return why

    with suppress(EOFError, OSError):  # nothing more to do, or nobody to do it for
        pipe.send(None)
        while True:
            pipe.send(work(pipe.recv()))


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # at once: nobody waits for what is being computed
