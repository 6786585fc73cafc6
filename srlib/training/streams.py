"""Endless training examples: the stream of patches, batches of them, and a thread that stays a few ahead."""

import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

POOL = 4  # subjects whose patches are mixed; two pools at most are in memory
AHEAD = 4  # batches that wait for the network


def patch_stream(
    dataset: object, seed: int, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (input, truth) patches, (C, x, y, z) and (1, x, y, z): a pure function of the seed, entered anywhere.

    Each epoch shuffles the items (subjects, or the files of a patch store); pools of a few are loaded (the next
    one while this one is served) and their patches mixed. Entering late skips whole pools without reading them.
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
        return [patches[k] for k in rng.permutation(len(patches))][skip:]

    with ThreadPoolExecutor(1) as background:
        todo = pools()
        ahead = background.submit(prepare, *next(todo))
        while True:
            patches, ahead = ahead.result(), background.submit(prepare, *next(todo))
            for index, location in patches:
                yield dataset.read(index, location)


def batches(patches: Iterator, size: int, first: int, share: int) -> Iterator[list[np.ndarray]]:
    """Patches in batches of ``size``, of which a process takes its ``share`` from ``first`` on; (share, ...) per side."""
    while True:
        batch = list(itertools.islice(patches, size))[first : first + share]
        yield [np.stack(arrays) for arrays in zip(*batch, strict=True)]


def ahead(items: Iterator) -> Iterator:
    """The same items, made by a thread that stays a few ahead; its errors are raised here. Closing it ends the thread."""
    ready, closed = queue.Queue(AHEAD), threading.Event()

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
