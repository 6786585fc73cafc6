"""Jobs shared out among processes, of which none takes the others along when it dies."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from srlib.paths import first_line

T, R = TypeVar("T"), TypeVar("R")
ENDED = "its process ended, perhaps for want of memory; use fewer --workers and run again"
STOPPED = "stopped while it was worked on"


def share(
    todo: Sequence[T], workers: int, here: Callable[[T], R], begin: Callable[..., Callable[[T], R]], *given: object
) -> Iterator[tuple[T, R | str]]:
    """Yield each job with its result, as they finish, or with a line that says why there is none.

    One worker is this process, and ``here`` does a job; else ``begin(*given)`` makes what does so in each process. A job
    whose process dies is tried once more, after the others. A process that cannot begin is not replaced; when none is
    left, the other jobs have no result. Processes end with the iterator, with the process that uses it, and by Ctrl-C:
    then the line for the jobs at hand is STOPPED, and KeyboardInterrupt follows.
    """
    waiting, again, started, pool, why = deque(todo), set(), [], {}, ENDED
    try:
        while waiting and workers == 1:
            pool[None] = waiting.popleft()
            yield pool[None], here(pool[None])
            del pool[None]
        while waiting or pool:
            while waiting and len(pool) < workers:
                process, pipe = _start(begin, given)
                started.append(process)
                pool[pipe] = None  # no job yet
            if not pool:
                yield from ((job, why) for job in waiting)
                return
            for pipe in wait([*pool]):
                job, alive = pool[pipe], True
                try:
                    result = pipe.recv()
                except (EOFError, OSError):
                    alive, result = False, ENDED
                if job is not None and (alive or job in again):
                    yield job, result
                elif job is not None:
                    again.add(job)
                    waiting.append(job)
                elif result:
                    alive, workers, why = False, workers - 1, result
                del pool[pipe]
                if alive and waiting:
                    pool[pipe] = waiting.popleft()
                    with suppress(OSError):  # it died meanwhile, which is seen when it is next heard
                        pipe.send(pool[pipe])
                elif alive:
                    pipe.close()
    except KeyboardInterrupt:
        _end(started)
        yield from ((job, STOPPED) for job in pool.values() if job is not None)
        raise
    finally:
        _end(started)


def _end(processes: Sequence[multiprocessing.Process]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _start(begin: Callable, given: Sequence[object]) -> tuple[multiprocessing.Process, Connection]:
    context = multiprocessing.get_context("spawn")  # since forks of a process that has threads may hang
    pipe, end = context.Pipe()
    process = context.Process(target=_serve, args=(end, begin, given), daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: a Ctrl-C is the parent's to handle
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    end.close()  # or the death of the process would not be seen
    return process, pipe


def _serve(pipe: Connection, begin: Callable, given: Sequence[object]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # nothing more to do, or nobody to do it for
        try:
            work = begin(*given)
        except Exception as err:  # whatever it is, the parent tells it
            pipe.send(first_line(err))
            return
        pipe.send("")
        while True:
            pipe.send(work(pipe.recv()))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # at once: nobody waits for what is being computed
