"""Degraded pairs as patches: an experiment's subjects as a dataset, and the endless stream of training patches."""

import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from srlib.checks import usual_range
from srlib.data import Subject, degradation_of, make_pair, network_input
from srlib.experiments import Experiment
from srlib.images import read_shape
from srlib.patches import PatchLocation, extract, grid_locations, per_axis, random_locations
from srlib.paths import InputError
from srlib.volume import fit_scaling, plateau

POOL = 4  # subjects whose patches are mixed; two pools at most are in memory
AHEAD = 4  # batches that wait for the network


class PairDataset:
    """Scaled (input, truth) arrays, (C, X, Y, Z) and (X, Y, Z) float32, of an experiment's subjects and tasks.

    Item ``i`` is a subject under one of the experiment's training tasks; the last few are kept in memory. Where the
    network sees the low-resolution grid, patches lie on that grid, and the truth's are ``factor`` times larger.
    """

    def __init__(self, subjects: Sequence[Subject], experiment: Experiment) -> None:
        self.experiment = experiment
        self.items = [(s, task) for s in subjects for task in (experiment.task, *experiment.more_tasks)]
        self.factor = _whole_factor(experiment) if experiment.lr_grid else (1, 1, 1)
        self.shapes = [
            tuple(
                n // f
                for n, f in zip(degradation_of(task, experiment.task_settings).usable(shape), self.factor, strict=True)
            )
            for s, task in self.items
            for shape in [experiment.frame or read_shape(s.file(experiment.contrast))]
        ]
        self._load = functools.lru_cache(maxsize=2 * POOL)(self._load)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._load(index)

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        experiment = self.experiment
        pair = make_pair(self.items[index][0], experiment, self.items[index][1])
        scan = pair.lr if experiment.lr_grid else pair.on_grid
        if experiment.per_patch:
            return scan.data[None], pair.hr.data
        return network_input(scan, pair.reference, experiment.intensity), pair.scaling.apply(pair.hr.data)

    def _on_input(self, voxels: int | Sequence[int]) -> tuple[int, ...]:
        """A size in voxels of the truth as one on the network's input grid."""
        sizes = per_axis(voxels)
        if any(n % f for n, f in zip(sizes, self.factor, strict=True)):
            raise InputError(f"{sizes} voxels are no multiple of the factor {self.factor}; choose another patch size")
        return tuple(n // f for n, f in zip(sizes, self.factor, strict=True))

    def grid(self, index: int) -> list[PatchLocation]:
        """An item's patch locations on the experiment's grid; at most ``samples``, always the same ones."""
        experiment, shape = self.experiment, self.shapes[index]
        stride = None if experiment.stride is None else self._on_input(experiment.stride)
        places = grid_locations(shape, self._on_input(experiment.patch_size), stride, experiment.border)
        if experiment.samples is None or len(places) <= experiment.samples:
            return places
        chosen = np.random.default_rng(index).permutation(len(places))[: experiment.samples]
        return [places[k] for k in chosen]

    def locations(self, index: int, rng: np.random.Generator) -> list[PatchLocation]:
        """One epoch's patch locations of an item; their number depends on its shape alone."""
        grid, (_, hr), chosen = self.grid(index), self[index], []
        if self.experiment.sampling == "grid":
            return grid
        shown = foreground(hr)
        for place in grid:
            candidates = random_locations(self.shapes[index], place.size, 8, rng)
            shares = [np.mean(shown[c.scaled(self.factor).slices]) for c in candidates]
            enough = [i for i, share in enumerate(shares) if share >= self.experiment.min_foreground]
            chosen.append(candidates[enough[0] if enough else int(np.argmax(shares))])
        return chosen

    def read(self, index: int, location: PatchLocation) -> tuple[np.ndarray, np.ndarray]:
        """An item's patch as (input (C, x, y, z), truth (1, x, y, z)).

        Where patches are scaled one by one, what the rule cannot scale, such as a constant patch, is scaled as its scan is.
        """
        whole = self[index]
        given, truth = extract(whole[0], location), extract(whole[1], location.scaled(self.factor))[None]
        if not self.experiment.per_patch:
            return given, truth
        try:
            scaling = fit_scaling(truth, self.experiment.intensity)
        except InputError:
            scaling = fit_scaling(whole[1], self.experiment.intensity)
        return scaling.apply(given), scaling.apply(truth)


def foreground(hr: np.ndarray) -> np.ndarray:
    """Where a scan in a network's units, about [0, 1], shows something, boolean: above 0.05.

    Off the ``plateau`` where that is another value, as when the mean was brought to 0; wild voxels do not count.
    """
    held = np.clip(hr, *usual_range(hr))
    held = hr if np.array_equal(held, hr) else fit_scaling(held).apply(held)
    empty = plateau(held) or 0.0
    return held > 0.05 if abs(empty) <= 0.05 else np.abs(held - empty) > 0.05


def _whole_factor(experiment: Experiment) -> tuple[int, int, int]:
    """The factor of the experiment's task, which a network from grid to grid needs in whole numbers."""
    factor = degradation_of(experiment.task, experiment.task_settings).coarser
    if any(f != int(f) for f in factor):
        raise InputError(f"{experiment.name} goes from grid to grid and needs a whole factor, got {factor}")
    return tuple(int(f) for f in factor)


def patch_stream(dataset: PairDataset, seed: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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

    def prepare(epoch: int, pool: list[int], skip: int) -> list[tuple[int, PatchLocation]]:
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
