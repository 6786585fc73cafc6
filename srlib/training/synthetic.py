"""Training examples from label maps: parts of an experiment, their dataset, and worker processes that draw ahead."""

import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from srlib.core.parts import Count, Length, Part, Size
from srlib.core.paths import InputError
from srlib.data.manifest import Subject, load_scan
from srlib.data.pairs import ObservationModel
from srlib.models.conditioning import describe_degradation
from srlib.models.network import Network
from srlib.models.robust import TOLD
from srlib.scans.formats import load
from srlib.scans.patches import extract, grid_locations, per_axis
from srlib.scans.space import resample_to
from srlib.scans.volume import reorient
from srlib.synthesis.priors import Label, Prior, read_classes, read_priors
from srlib.synthesis.settings import Generation
from srlib.synthesis.simulation import Example, LabelMap, apply, draw, encode
from srlib.training.mixture import Mixture, degrade, synthesize

KEPT = 8  # label maps in the memory of each process
POOL = 16  # synthetic scans whose patches are mixed
WORKERS = 8  # processes, at most
MARGIN = 8  # voxels about the patches of a synthetic scan, which the borders of kernels and k-space may spoil
VALIDATION_SEED = 2_000_000_011  # its examples are those of no likely seed of a training
Pair = tuple[np.ndarray, np.ndarray]


class Tables(NamedTuple):
    """What labels mean, and how bright their classes are (see ``priors``)."""

    classes: Sequence[Label]
    priors: Mapping[str, Prior]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the classes and of the priors, whatever files they stood in."""
        held = {
            "classes": sorted(
                (entry.label, entry.class_, entry.name, entry.side) for entry in self.classes
            ),
            "priors": sorted(
                (name, [part.tolist() for part in prior]) for name, prior in self.priors.items()
            ),
        }
        return {
            name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in held.items()
        }


def _labelled(subjects: Sequence[Subject]) -> list[Subject]:
    return [subject for subject in subjects if "labels" in subject.files]


class _FromLabels(Part):
    """What parts share that draw their examples from label maps."""

    reads: ClassVar = "labels"  # what each subject must have
    fixed: ClassVar = False  # whether the examples are the same in every epoch
    looked_at: ClassVar = 4  # validation examples
    pooled: ClassVar = 1  # scans whose examples are mixed
    per_scan: ClassVar = 1  # examples of one scan

    def columns(self, pairs: ObservationModel, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        return ("labels",)

    def select(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to train on: the first ``n_train`` by name that have a label map."""
        return sorted(_labelled(subjects), key=lambda subject: subject.name)[: self.n_train]

    def select_val(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to validate on: those with a label map."""
        return _labelled(subjects)

    def read_tables(
        self, classes: str | Path | None, priors: str | Path | None, *, alone: bool = True
    ) -> Tables:
        """The tables of labels; InputError when one is missing, and unless label maps are ``alone`` what is read."""
        if not (classes and priors and alone):
            raise InputError(
                "its examples come from label maps: give a table of their classes (--classes) and intensity priors "
                "(--priors), which csv/README.md describes and 'srlib priors' measures, and no store and no snapshots"
            )
        return Tables(read_classes(classes), read_priors(priors))

    def tables_of(
        self, classes: str | Path | None, priors: str | Path | None
    ) -> dict[str, str | Path | None]:
        """Which of the tables of labels are read: both."""
        return {"classes": classes, "priors": priors}

    def fitted(self, network: Network, tables: Tables) -> Network:
        """The network with an output channel per class where its ``out_channels`` is 0."""
        if network.model_args.get("out_channels") != 0:
            return network
        count = 1 + max(entry.class_ for entry in tables.classes if entry.class_ is not None)
        return dataclasses.replace(
            network, model_args={**network.model_args, "out_channels": count}
        )

    def open(
        self,
        subjects: Sequence[Subject],
        pairs: ObservationModel,
        *,
        seed: int = 0,
        tables: Tables | None = None,
    ) -> "SyntheticDataset":
        """Endless examples of the subjects' label maps as a dataset."""
        return SyntheticDataset(subjects, self, pairs, tables, seed)

    def held_out(
        self, subjects: Sequence[Subject], pairs: ObservationModel, *, tables: Tables | None = None
    ) -> list[Pair]:
        """A few examples of the subjects' label maps, the first of each scan; none without a label map."""
        dataset = self.open(subjects, pairs, seed=VALIDATION_SEED, tables=tables)
        count = self.looked_at if dataset.subjects else 0
        return [dataset[index * self.per_scan] for index in range(count)]


@dataclass(frozen=True)
class SyntheticScans(_FromLabels):
    """SynthSR's examples (Iglesias et al., NeuroImage 2021): an acquired synthetic scan, and its target."""

    patch_size: Size  # voxels of the target
    n_train: Count  # training subjects, at most
    generation: Generation
    spacing_mm: Length  # of the target
    with_classes: bool = False  # the target's second channel holds the classes, for a segmenter

    def tasks(self, task: str) -> tuple[str, ...]:
        """The task that the network is measured on; its examples are like it."""
        return (task,)

    def columns(self, pairs: ObservationModel, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        return ("labels", pairs.contrast) if self.generation.target == "real" else ("labels",)

    def example(
        self,
        rng: np.random.Generator,
        label_map: LabelMap,
        priors: Mapping[str, Prior],
        real: np.ndarray | None,
    ) -> Example:
        """An example with all its parts."""
        parameters = draw(
            rng,
            label_map,
            self.generation,
            priors=priors,
            patch_size=self.patch_size,
            spacing_mm=self.spacing_mm,
        )
        return apply(label_map, parameters, self.generation, real=real)

    def draw(
        self,
        rng: np.random.Generator,
        label_map: LabelMap,
        priors: Mapping[str, Prior],
        real: np.ndarray | None,
    ) -> list[Pair]:
        """One example: input (C, X, Y, Z), target (1 or 2, X, Y, Z), float32."""
        example = self.example(rng, label_map, priors, real)
        target = (
            torch.cat([example.target, example.classes]) if self.with_classes else example.target
        )
        return [(example.network_input(self.generation.reliability).numpy(), target.numpy())]


@dataclass(frozen=True)
class RandomDegradations(_FromLabels):
    """Examples for `robust`: synthetic scans with a random degradation (ours)."""

    looked_at: ClassVar = 16
    pooled: ClassVar = POOL

    patch_size: Size  # voxels of the truth
    n_train: Count  # training subjects, at most
    samples: Count  # patches of a synthetic scan, the cube of a whole number
    generation: Generation
    mixture: Mixture

    def __post_init__(self) -> None:
        super().__post_init__()
        if round(self.samples ** (1 / 3)) ** 3 != self.samples:
            raise InputError(f"samples: expected the cube of a whole number, got {self.samples}")

    @property
    def per_scan(self) -> int:
        """Examples of one scan."""
        return self.samples

    def tasks(self, task: str) -> tuple[str, ...]:
        """None: the network is trained for no named task."""
        return ()

    def draw(
        self,
        rng: np.random.Generator,
        label_map: LabelMap,
        priors: Mapping[str, Prior],
        real: None = None,
    ) -> list[Pair]:
        """The patches of one synthetic scan: input (16, X, Y, Z), truth (1, X, Y, Z), float32, about [0, 1].

        The input is the degraded scan interpolated on the truth's grid and its description
        (``describe_degradation``), as constant maps. Raises InputError as ``simulation.draw``.
        """
        mixture, size, count = (
            self.mixture,
            per_axis(self.patch_size),
            round(self.samples ** (1 / 3)),
        )
        shape = [count * n + 2 * MARGIN for n in size]
        hr = synthesize(rng, label_map, self.generation, mixture, priors, shape)
        on_grid, factor = degrade(rng, hr, mixture)
        facts = describe_degradation(on_grid.data, factor).reshape(3, TOLD)
        facts[:, 1:] += rng.normal(0, mixture.jitter, (3, TOLD - 1))
        maps = np.broadcast_to(facts.reshape(-1, 1, 1, 1), (3 * TOLD, *size))
        pairs = []
        for place in grid_locations(hr.shape, size, border=(MARGIN,) * 3):
            scan = extract(on_grid.data[None], place)
            pairs.append((np.concatenate([scan, maps]), extract(hr.data[None], place)))
        return pairs


class SyntheticDataset:
    """Endless examples of a part: (input (C, X, Y, Z), target (T, X, Y, Z)), float32; item i by (seed, i) alone.

    Subjects without a label map are left out. An InputError names the subject whose label map or scan cannot be used.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        part: SyntheticScans | RandomDegradations,
        pairs: ObservationModel,
        tables: Tables,
        seed: int,
    ) -> None:
        self.subjects = _labelled(subjects)
        self.part, self.pairs, self.tables, self.seed = part, pairs, tables, seed
        self.load = functools.lru_cache(maxsize=KEPT)(self._load)
        self._scan = functools.lru_cache(maxsize=1)(self._draw)

    def __reduce__(self) -> tuple:
        return SyntheticDataset, (self.subjects, self.part, self.pairs, self.tables, self.seed)

    def _load(self, index: int) -> tuple[LabelMap, np.ndarray | None]:
        """A subject's label map and, where it is the target, the real scan, brought on the same grid by its affine."""
        subject = self.subjects[index]
        labels = reorient(load(subject.file("labels")))
        others = [
            reorient(load_scan(subject, column))
            for column in self.part.columns(self.pairs, subject)[1:]
        ]
        try:
            what = f"its {self.pairs.contrast}"
            real = resample_to(others[0], labels, least=1, what=what).data if others else None
            return encode(labels, self.tables.classes), real
        except InputError as err:
            raise InputError(f"subject {subject.name}, {subject.file('labels')}: {err}") from err

    def source(
        self, index: int
    ) -> tuple[np.random.Generator, LabelMap, Mapping[str, Prior], np.ndarray | None]:
        """What scan number ``index`` is drawn from: random numbers, a label map, the priors, the real scan."""
        rng = np.random.default_rng([self.seed, index])
        label_map, real = self.load(int(rng.integers(len(self.subjects))))
        return rng, label_map, self.tables.priors, real

    def _draw(self, index: int) -> list[Pair]:
        return self.part.draw(*self.source(index))

    def __getitem__(self, index: int) -> Pair:
        scan, place = divmod(index, self.part.per_scan)
        return self._scan(scan)[place]

    def stream(self, start: int = 0, workers: int | None = None) -> Iterator[Pair]:
        """The examples from number ``start`` on, without end, drawn ahead by workers: by default one per core but one.

        The workers start with this call and end with the iterator, also when it is closed early; how many there are
        changes no example. Examples of a few scans are mixed. The first label maps are read here. Raises InputError for
        one that cannot be used.
        """
        for index in range(min(len(self.subjects), KEPT)):
            self.load(index)
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        pool = self.part.per_scan * self.part.pooled
        loader = DataLoader(
            _Served(self),
            batch_size=self.part.per_scan,
            sampler=itertools.count(start - start % pool),
            num_workers=min(WORKERS, max(cores - 1, 1)) if workers is None else workers,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        return _items(iter(loader), self.part.pooled, [self.seed, start // pool], start % pool)


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


def _items(loaded: Iterator, groups: int, seed: list[int], skip: int) -> Iterator[Pair]:
    """Pools of so many groups, shuffled, but for what is skipped of the first one."""
    try:
        while True:
            pool = [item for _ in range(groups) for item in next(loaded)]
            order = (
                np.random.default_rng(seed).permutation(len(pool))[skip:]
                if groups > 1
                else range(1)
            )
            for k in order:
                if isinstance(pool[k], InputError):
                    raise pool[k]
                yield pool[k]
            seed, skip = [seed[0], seed[1] + 1], 0
    finally:
        del loaded  # the last holder: its processes end here
