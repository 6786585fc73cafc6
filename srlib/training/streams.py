"""Serve endless training examples: a stream of patches, batches, and a thread that works ahead."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from torch.nn import Module

POOL = 4  # subjects whose patches are mixed; two pools at most are in memory
AHEAD = 4  # batches that wait for the network
Show = Callable[[Mapping[str, float], Module], None]  # of a row of history.csv and the generator
Patch = tuple[np.ndarray, np.ndarray]  # input (C, x, y, z), truth (1 or 2, x, y, z)


def patch_stream(dataset: Any, seed: int, start: int = 0, mixed: bool = True) -> Iterator[Patch]:
    """Yield endless patches of a dataset from number ``start`` on; a pure function of ``seed``.

    Each epoch shuffles the items (subjects, or the items of a patch store). Pools of a few items
    are loaded, the next one while this one is served, and their patches are ``mixed``, or else
    served item by item in their own order. Whole pools before ``start`` are skipped without reading
    them.
    """
    counts = [len(dataset.grid(index)) for index in range(len(dataset))]

    def pools() -> Iterator[tuple[int, list[int], int]]:
        epoch, skip = divmod(start, sum(counts))
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(len(dataset)).tolist()
            for first in range(0, len(order), POOL):
                pool = order[first : first + POOL]
                size = sum(counts[i] for i in pool)
                if skip < size:
                    yield epoch, pool, skip
                skip = max(skip - size, 0)
            epoch += 1

    def prepare(epoch: int, pool: list[int], skip: int) -> list[tuple[int, object]]:
        rng = np.random.default_rng([seed, epoch, *pool])
        patches = [(i, location) for i in pool for location in dataset.locations(i, rng)]
        order = rng.permutation(len(patches)) if mixed else range(len(patches))
        return [patches[k] for k in order][skip:]

    with ThreadPoolExecutor(1) as background:
        todo = pools()
        ahead = background.submit(prepare, *next(todo))
        while True:
            patches, ahead = ahead.result(), background.submit(prepare, *next(todo))
            for index, location in patches:
                yield dataset.read(index, location)


def batches(patches: Iterator, size: int, first: int, share: int) -> Iterator[list[np.ndarray]]:
    """Yield, of each batch of ``size``, the ``share`` from ``first`` on: one array per side."""
    while True:
        batch = list(itertools.islice(patches, size))[first : first + share]
        yield [np.stack(arrays) for arrays in zip(*batch, strict=True)]


def ahead(items: Iterator) -> Iterator:
    """Yield the same items, made ahead by a thread.

    The thread's errors are raised here. Closing the iterator ends the thread.
    """
    ready: queue.Queue = queue.Queue(AHEAD)
    closed = threading.Event()

    def work(items: Iterator) -> None:
        try:
            for item in items:
                ready.put((item, None))
                if closed.is_set():
                    return
        except Exception as err:  # handed to the consumer, whatever it is
            ready.put((None, err))

    thread = threading.Thread(target=work, args=[items], daemon=True)
    del items  # what makes them ends with the thread, their last holder
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error:
                raise error
            yield item
    finally:
        closed.set()
        while thread.is_alive():
            with suppress(queue.Empty):  # a full queue would hold the thread
                ready.get(timeout=0.1)
