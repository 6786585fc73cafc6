"""Serve endless training examples: made by worker processes, in batches, ahead of the network."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import Module
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from srlib.core.paths import InputError
from srlib.core.processes import cores, end_with_parent

POOL = 4  # subjects whose patches are mixed
KEPT = 2 * POOL  # subjects, at most, of a training that reads each of them once
WORKERS = 16  # processes, at most
AHEAD = POOL  # batches that wait for the network, and subjects of the next pool
Show = Callable[[Mapping[str, float], Module], None]  # of a row of history.csv and the generator
Check = Callable[[Mapping[str, Module], torch.device], dict[str, float]]  # of networks: columns
Patch = tuple[np.ndarray, np.ndarray]  # input (C, x, y, z), truth (1 or 2, x, y, z)
# what is mixed: keys, from each of which patches are made, and of each patch the number of its key
# and its own number there
Pool = tuple[list, list]


class Own(NamedTuple):
    """A process's part of each batch: of every ``size`` patches ``count``, from ``first`` on."""

    size: int = 1
    first: int = 0
    count: int = 1

    def of(self, pools: Iterator[Pool]) -> Iterator[Pool]:
        """The pools with these patches alone, counted from the first one."""
        places = range(self.first, self.first + self.count)
        counted = itertools.count()
        for keys, patches in pools:
            yield keys, [patch for patch in patches if next(counted) % self.size in places]


ALL = Own()  # of one process


class Stream(IterableDataset):
    """Patches as a torch dataset: (input (C, x, y, z), truth (1 or 2, x, y, z)), float32.

    Each ``iter`` begins anew with ``serve(*given)``. The workers of a DataLoader share the scans:
    none makes what another delivers, and together they deliver what one process does.
    """

    def __init__(self, serve: Callable[..., Iterator[Patch]], *given: Any) -> None:
        self._serve = partial(serve, *given)

    def __iter__(self) -> Iterator[Patch]:
        return self._serve()


def pools_of(dataset: Any, start: int, epochs: int | None = None) -> Iterator[Pool]:
    """Yield the pools of a dataset from patch ``start`` on, a function of its seed alone.

    They are endless, or those of so many epochs, the first one perhaps entered late.

    Each epoch shuffles the items (subjects, or the items of a patch store), and each pool is of a
    few items, whose patches are ``mixed``, or else in their own order, item by item. A key is an
    item and its ``draws``. Whole pools before ``start`` are skipped.
    """
    counts = [len(dataset.grid(index)) for index, _ in enumerate(dataset.items)]
    begin, skip = divmod(start, sum(counts))
    for epoch in itertools.islice(itertools.count(begin), epochs):
        order = np.random.default_rng([dataset.seed, epoch]).permutation(len(counts))
        for pool in np.split(order, range(POOL, len(order), POOL)):
            patches = [(n, k) for n, i in enumerate(pool) for k in range(counts[i])]
            if skip < len(patches):
                rng = np.random.default_rng([dataset.seed, epoch, *pool])
                keys = [(i, dataset.draws(i, rng)) for i in pool]
                if dataset.mixed:
                    patches = [patches[k] for k in rng.permutation(len(patches))]
                yield keys, patches[skip:]
            skip = max(skip - len(patches), 0)


def _share(pools, worker, workers):
    """The pools with a worker's own keys alone: every ``workers``-th of all."""
    served = itertools.count()
    for keys, patches in pools:
        own = [n for n in range(len(keys)) if next(served) % workers == worker]
        yield [keys[n] for n in own], [(own.index(n), k) for n, k in patches if n in own]


class _Same:
    """Every key under itself, for PyTorch's loader."""

    def __getitem__(self, key):
        return key


def _wanted(patches):
    """The number of each key that has patches, and their own numbers there."""
    return {n: [k for m, k in patches if m == n] for n in sorted({n for n, _ in patches})}


def patch_stream(make: Callable, pools: Iterator[Pool], workers: int | None, own: Own) -> Iterator:
    """Yield the patches of pools in their order, or a process's ``own`` ones.

    ``make((key, numbers))`` gives the patches of these numbers; for no other key is it called.

    Worker processes call ``make``; what they make comes by pipe. ``workers``: by default one per
    core but one; their number changes no patch. They start with this call and end with the
    iterator, also when it is closed early. At most in memory is what is made of the keys of two
    pools, and of two more keys in each worker. In a worker of a user's DataLoader there are none:
    it makes and yields its own ``_share``.
    """
    pools = own.of(pools)
    if user := get_worker_info():
        pools, workers = _share(pools, user.id, user.num_workers), 0
    asked, pools = itertools.tee(pools)
    if workers is None:
        workers = min(WORKERS, max(cores() - 1, 1))
    made = DataLoader(
        _Same(),
        batch_size=None,
        sampler=((keys[n], ks) for keys, patches in asked for n, ks in _wanted(patches).items()),
        num_workers=workers,
        collate_fn=make,  # of arrays: tensors would need shared memory
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    return (patch for pool in ahead(_served(iter(made), pools)) for patch in pool)


def _served(made, pools):
    """The patches of each pool, after an empty list for each of its keys that has some."""
    try:
        for _, patches in pools:
            held = {}
            for n in _wanted(patches):
                held[n] = iter(next(made))
                yield []
            yield [next(held[n]) for n, _ in patches]
    except InputError as err:  # a worker's begins with its traceback
        raise InputError(err.args[0].strip().rpartition("InputError: ")[2]) from err


def batches(patches: Iterator, size: int, pinned: bool) -> Iterator[list[torch.Tensor]]:
    """Yield batches of ``size`` patches: one tensor per side.

    A GPU copies ``pinned`` ones while it computes.
    """
    while True:
        batch = itertools.islice(patches, size)
        sides = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*batch, strict=True)]
        yield [side.pin_memory() for side in sides] if pinned else sides


def ahead(items: Iterator) -> Iterator:
    """Yield the same items, made ahead by a thread; it ends with this iterator."""
    thread = ThreadPoolExecutor(1)
    try:
        ready = deque(thread.submit(next, items) for _ in range(AHEAD))
        while True:
            ready.append(thread.submit(next, items))
            yield ready.popleft().result()
    except StopIteration:
        pass
    finally:
        thread.shutdown(cancel_futures=True)
