"""SynthSR's training examples: drawn from label maps, each by its number, and made ahead by worker processes."""

import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from srlib.data import Subject, load_scan
from srlib.experiments import Experiment
from srlib.generator import Example, LabelMap, apply, draw, encode
from srlib.images import load
from srlib.mixture import paint_patches
from srlib.paths import InputError
from srlib.priors import Label, Prior
from srlib.space import resample_to
from srlib.volume import reorient

KEPT = 8  # label maps in the memory of each process
POOL = 16  # painted scans whose patches are mixed
WORKERS = 8  # processes, at most
Pair = tuple[np.ndarray, np.ndarray]


class SyntheticDataset:
    """Endless examples of an experiment: (input (C, X, Y, Z), target (T, X, Y, Z)), float32; item i by (seed, i) alone.

    Subjects without a label map are left out. T is 1, or 2 where a segmenter judges the output: image and classes.
    An InputError names the subject whose label map or scan cannot be used.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        experiment: Experiment,
        table: Sequence[Label],
        priors: Mapping[str, Prior],
        seed: int,
    ) -> None:
        self.subjects = [s for s in subjects if "labels" in s.files]
        self.experiment, self.table, self.priors, self.seed = experiment, table, priors, seed
        self.load = functools.lru_cache(maxsize=KEPT)(self._load)
        self.patches = functools.lru_cache(maxsize=1)(self._patches)
        self.group = experiment.samples if experiment.mixture else 1  # examples that come from one painted scan

    def __reduce__(self) -> tuple:
        return SyntheticDataset, (self.subjects, self.experiment, self.table, self.priors, self.seed)

    def _load(self, index: int) -> tuple[LabelMap, np.ndarray | None]:
        """A subject's label map and, where it is the target, the real scan, brought on the same grid by its affine."""
        subject = self.subjects[index]
        labels = reorient(load(subject.file("labels")))
        others = [reorient(load_scan(subject, column)) for column in self.experiment.columns[1:]]
        try:
            what = f"its {self.experiment.contrast}"
            real = resample_to(others[0], labels, least=1, what=what).data if others else None
            return encode(labels, self.table), real
        except InputError as err:
            raise InputError(f"subject {subject.name}, {subject.file('labels')}: {err}") from err

    def example(self, index: int) -> Example:
        """An example with all its parts."""
        rng, experiment = np.random.default_rng([self.seed, index]), self.experiment
        label_map, real = self.load(int(rng.integers(len(self.subjects))))
        parameters = draw(
            rng, label_map, experiment.generation, self.priors, experiment.patch_size, experiment.spacing_mm
        )
        return apply(label_map, parameters, experiment.generation, real)

    def _patches(self, index: int) -> list[Pair]:
        """The patches of a painted scan that was degraded at random."""
        rng = np.random.default_rng([self.seed, index])
        label_map, _ = self.load(int(rng.integers(len(self.subjects))))
        return paint_patches(rng, label_map, self.experiment, self.priors)

    def __getitem__(self, index: int) -> Pair:
        if self.experiment.mixture:
            return self.patches(index // self.group)[index % self.group]
        experiment, example = self.experiment, self.example(index)
        target = torch.cat([example.target, example.classes]) if experiment.segmenter else example.target
        return example.network_input(experiment.generation.reliability).numpy(), target.numpy()


class _Served:
    """A dataset whose InputErrors are items: raised in a worker, they would come out as a traceback in one line."""

    def __init__(self, dataset: SyntheticDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Pair | InputError:
        try:
            return self.dataset[index]
        except InputError as err:
            return err


def _as_it_is(item: object) -> object:
    return item  # as arrays, since tensors between processes would need shared memory, of which containers have little


def _end_with_parent(worker: int) -> None:
    """Have a worker end when its parent was killed; at the full pipe between them it would wait for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def example_stream(dataset: SyntheticDataset, start: int = 0, workers: int | None = None) -> Iterator[Pair]:
    """The examples from number ``start`` on, without end, made ahead by worker processes: by default one per core but one.

    The workers start with this call and end with the iterator, also when it is closed early; how many there are changes
    no example. Patches of a few painted scans are mixed. The first label maps are read here. Raises InputError for one
    that cannot be used.
    """
    for index in range(min(len(dataset.subjects), KEPT)):
        dataset.load(index)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = dataset.group * (POOL if dataset.group > 1 else 1)
    loader = DataLoader(
        _Served(dataset),
        batch_size=dataset.group,
        sampler=itertools.count(start - start % pool),
        num_workers=min(WORKERS, max(cores - 1, 1)) if workers is None else workers,
        collate_fn=_as_it_is,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    return _items(iter(loader), pool // dataset.group, [dataset.seed, start // pool], start % pool)


def _items(loaded: Iterator, groups: int, seed: list[int], skip: int) -> Iterator[Pair]:
    """Pools of so many groups, shuffled, but for what is skipped of the first one."""
    try:
        while True:
            pool = [item for _ in range(groups) for item in next(loaded)]
            order = np.random.default_rng(seed).permutation(len(pool))[skip:] if groups > 1 else range(1)
            for k in order:
                if isinstance(pool[k], InputError):
                    raise pool[k]
                yield pool[k]
            seed, skip = [seed[0], seed[1] + 1], 0
    finally:
        del loaded  # the last holder: its processes end here


def with_classes(experiment: Experiment, table: Sequence[Label]) -> Experiment:
    """The experiment with an output channel per class where its ``out_channels`` is 0."""
    if experiment.model_args.get("out_channels") != 0:
        return experiment
    count = 1 + max(entry.class_ for entry in table if entry.class_ is not None)
    return dataclasses.replace(experiment, model_args={**experiment.model_args, "out_channels": count})


def table_hashes(table: Sequence[Label], priors: Mapping[str, Prior]) -> dict[str, str]:
    """SHA-256 of the classes and of the priors, whatever files they stood in."""
    held = {
        "classes": sorted((entry.label, entry.class_, entry.name, entry.side) for entry in table),
        "priors": sorted((name, [part.tolist() for part in prior]) for name, prior in priors.items()),
    }
    return {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in held.items()}
