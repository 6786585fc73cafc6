"""Share jobs among processes so that one that dies does not stop the others."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait

from srlib.core.paths import first_line
from srlib.core.processes import end_with_parent

ENDED = "its process ended, perhaps for want of memory; use fewer --workers and run again"
STOPPED = "stopped before it ended"


def share(
    todo: Sequence, workers: int, here: Callable, begin: Callable, *given: object
) -> Generator[tuple, None, None]:
    """Yield each job with its result as it finishes, or with a line that says why there is none.

    With one worker, ``here`` does the jobs in this process. Otherwise ``begin(*given)`` returns the
    function that does them in each process; if ``begin`` raises, the error is the line for each
    job. A job whose process dies is tried once more, after the others. A process that dies before
    it has begun is not replaced; once none is left, the other jobs have no result. Processes end
    with the iterator and with the process that uses it. After Ctrl-C the line for unfinished jobs
    is STOPPED, and KeyboardInterrupt follows.
    """
    pool, processes = {}, []  # the job of each pipe, None before its process has begun
    try:
        if workers == 1:
            for job in todo:
                pool[None] = job
                yield job, here(job)
        else:
            yield from _together(deque(todo), workers, pool, processes, begin, given)
    except KeyboardInterrupt:
        _kill(processes)
        yield from ((job, STOPPED) for job in pool.values() if job is not None)
        raise
    finally:
        _kill(processes)


def _together(waiting, workers, pool, processes, begin, given):
    again = set()
    while pool or (waiting and workers):
        for _ in range(min(len(waiting), workers - len(pool))):
            process, pipe = _start(begin, given)
            processes.append(process)
            pool[pipe] = None
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
                with suppress(OSError):  # it died meanwhile; the next wait shows it
                    pipe.send(pool[pipe])
    yield from ((job, ENDED) for job in waiting)


def _received(pipe):
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the process died
        return ENDED


def _kill(processes):
    for process in processes:
        process.kill()
        process.join()


def _start(begin, given):
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang
    pipe, end = context.Pipe()
    process = context.Process(target=_serve, args=(end, begin, given), daemon=True)
    # the child inherits the mask: only the parent handles Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    end.close()  # otherwise the death of the process would stay unseen
    return process, pipe


def _serve(pipe, begin, given):
    end_with_parent()
    try:
        work = begin(*given)
    except Exception as err:  # any error is reported for each job
        why = first_line(err)

        def work(_):
            return why

    with suppress(EOFError, OSError):  # the parent has closed the pipe
        pipe.send(None)
        while True:
            pipe.send(work(pipe.recv()))
