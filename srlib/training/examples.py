"""Training examples from degraded scans: the part of an experiment, and its dataset."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from srlib.core.parts import Count, Part, Share, Size, Whole
from srlib.core.paths import InputError
from srlib.data.manifest import Subject
from srlib.data.pairs import ObservationModel
from srlib.models.network import Network
from srlib.scans.formats import read_grid
from srlib.scans.intensity import fit_scaling, plateau, usual_range
from srlib.scans.patches import PatchLocation, extract, grid_locations, per_axis, random_locations
from srlib.training.streams import POOL, patch_stream

LOOKED_AT = 2  # validation scans
FULLEST = 4  # patches of each
Example = tuple[
    np.ndarray, np.ndarray
]  # input (C, X, Y, Z) and truth (1 or more, X', Y', Z') of a network


@dataclass(frozen=True)
class ScanPatches(Part):
    """Patches of scans that a task degrades, on a grid or at random places."""

    choices: ClassVar = {"sampling": ("grid", "random")}
    reads: ClassVar = "a scan"  # what each subject must have

    patch_size: Size  # voxels of the truth
    n_train: Count  # training subjects, at most
    more_tasks: tuple[str, ...] = ()  # further tasks whose pairs are mixed into the training
    sampling: str = "grid"  # patches on a grid, or "random" ones
    stride: Size | None = None  # voxels between patches of the grid; None: they do not overlap
    border: tuple[Whole, Whole, Whole] = (
        0,
        0,
        0,
    )  # voxels at each face that no patch of the grid enters
    samples: Count | None = None  # patches per scan, at most
    min_foreground: Share = (
        0.0  # random patches are redrawn below this share of non-background voxels
    )
    per_patch: bool = (
        False  # the intensity rule is fitted on each patch of the truth instead of on the scan
    )

    def tasks(self, task: str) -> tuple[str, ...]:
        """The tasks that a network is trained for."""
        return (task, *self.more_tasks)

    def columns(self, pairs: ObservationModel, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        return pairs.columns(subject)

    def select(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to train on: the first ``n_train`` by name."""
        return sorted(subjects, key=lambda subject: subject.name)[: self.n_train]

    def select_val(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to validate on."""
        return list(subjects[:LOOKED_AT])

    def read_tables(
        self, classes: str | Path | None, priors: str | Path | None, *, alone: bool = True
    ) -> None:
        """None; InputError for tables of labels, which are of no use here."""
        if classes or priors:
            raise InputError(
                "it is trained on scans, not on label maps; leave out classes and priors"
            )

    def tables_of(
        self, classes: str | Path | None, priors: str | Path | None
    ) -> dict[str, str | Path | None]:
        """Which of the tables of labels are read: none."""
        return {}

    @property
    def fixed(self) -> bool:
        """Whether the patches are the same in every epoch."""
        return self.sampling == "grid"

    def fitted(self, network: Network, tables: None = None) -> Network:
        """The network for these examples: itself."""
        return network

    def open(
        self,
        subjects: Sequence[Subject],
        pairs: ObservationModel,
        *,
        seed: int = 0,
        tables: None = None,
    ) -> "PairDataset":
        """The subjects' pairs as a dataset."""
        return PairDataset(subjects, self, pairs, seed)

    def held_out(
        self, subjects: Sequence[Subject], pairs: ObservationModel, *, tables: None = None
    ) -> list[Example]:
        """The four patches with the most foreground of each of the first two subjects."""
        chosen = (fullest(subject, self, pairs, FULLEST) for subject in subjects)
        return [dataset.read(0, place) for dataset, places in chosen for place in places]


class PairDataset:
    """Scaled (input, truth) arrays, (C, X, Y, Z) and (X, Y, Z) float32, of subjects under training tasks.

    Item ``i`` is a subject under one of the tasks; the last few are kept in memory. Where the network sees the
    low-resolution grid, patches lie on that grid, and the truth's are ``factor`` times larger.
    """

    def __init__(
        self, subjects: Sequence[Subject], part: ScanPatches, pairs: ObservationModel, seed: int = 0
    ) -> None:
        self.part, self.pairs, self.seed = part, pairs, seed
        self.items = [(subject, task) for subject in subjects for task in part.tasks(pairs.task)]
        self.factor = _whole_factor(pairs) if pairs.coarse else (1, 1, 1)
        self.shapes = [self._shape(*item) for item in self.items]
        self._load = functools.lru_cache(maxsize=2 * POOL)(self._load)

    def _shape(self, subject: Subject, task: str) -> tuple[int, ...]:
        whole = self.pairs.frame or read_grid(subject.file(self.pairs.contrast))[0]
        usable = self.pairs.degradation(task).usable(whole)
        return tuple(n // f for n, f in zip(usable, self.factor, strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self._load(index)

    def _load(self, index: int) -> Example:
        pair = self.pairs.make(*self.items[index])
        if self.part.per_patch:
            return pair.seen.data[None], pair.hr.data
        return pair.network_input, pair.scaling.apply(pair.hr.data)

    def stream(self, start: int = 0) -> Iterator[Example]:
        """Endless patches from number ``start`` on; a pure function of the seed."""
        return patch_stream(self, self.seed, start)

    def _on_input(self, voxels: int | Sequence[int]) -> tuple[int, ...]:
        """A size in voxels of the truth as one on the network's input grid."""
        sizes = per_axis(voxels)
        if any(n % f for n, f in zip(sizes, self.factor, strict=True)):
            raise InputError(
                f"{sizes} voxels are no multiple of the factor {self.factor}; choose another patch size"
            )
        return tuple(n // f for n, f in zip(sizes, self.factor, strict=True))

    def grid(self, index: int) -> list[PatchLocation]:
        """An item's patch locations on the grid; at most ``samples``, always the same ones."""
        part, shape = self.part, self.shapes[index]
        stride = None if part.stride is None else self._on_input(part.stride)
        places = grid_locations(shape, self._on_input(part.patch_size), stride=stride, border=part.border)
        if part.samples is None or len(places) <= part.samples:
            return places
        chosen = np.random.default_rng(index).permutation(len(places))[: part.samples]
        return [places[k] for k in chosen]

    def locations(self, index: int, rng: np.random.Generator) -> list[PatchLocation]:
        """One epoch's patch locations of an item; their number depends on its shape alone."""
        grid, (_, hr), chosen = self.grid(index), self[index], []
        if self.part.sampling == "grid":
            return grid
        shown = foreground(hr)
        for place in grid:
            candidates = random_locations(self.shapes[index], place.size, 8, rng)
            shares = [np.mean(shown[c.scaled(self.factor).slices]) for c in candidates]
            enough = [i for i, share in enumerate(shares) if share >= self.part.min_foreground]
            chosen.append(candidates[enough[0] if enough else int(np.argmax(shares))])
        return chosen

    def read(self, index: int, location: PatchLocation) -> Example:
        """An item's patch as (input (C, x, y, z), truth (1, x, y, z)).

        Where patches are scaled one by one, a patch that the rule cannot scale is scaled as its scan is.
        """
        whole = self[index]
        given, truth = (
            extract(whole[0], location),
            extract(whole[1], location.scaled(self.factor))[None],
        )
        if not self.part.per_patch:
            return given, truth
        try:
            scaling = fit_scaling(truth, self.pairs.intensity)
        except InputError:
            scaling = fit_scaling(whole[1], self.pairs.intensity)
        return scaling.apply(given), scaling.apply(truth)


def foreground(hr: np.ndarray) -> np.ndarray:
    """Where a scan in a network's units, about [0, 1], shows something, boolean: above 0.05.

    Off the ``plateau`` where that is another value, as when the mean was brought to 0; wild voxels do not count.
    """
    held = np.clip(hr, *usual_range(hr))
    held = hr if np.array_equal(held, hr) else fit_scaling(held).apply(held)
    empty = plateau(held) or 0.0
    return held > 0.05 if abs(empty) <= 0.05 else np.abs(held - empty) > 0.05


def fullest(
    subject: Subject, part: ScanPatches, pairs: ObservationModel, count: int
) -> tuple[PairDataset, list[PatchLocation]]:
    """A subject's dataset, and its patches with the most foreground under the own task."""
    dataset = dataclasses.replace(part, stride=None, samples=None).open([subject], pairs)
    shown = foreground(dataset[0][1])
    share = {p: np.mean(shown[p.scaled(dataset.factor).slices]) for p in dataset.grid(0)}
    return dataset, sorted(share, key=lambda p: -share[p])[:count]


def _whole_factor(pairs: ObservationModel) -> tuple[int, int, int]:
    """The factor of the task, which a network from grid to grid needs in whole numbers."""
    factor = pairs.degradation().coarser
    if any(f != int(f) for f in factor):
        raise InputError(f"a network from grid to grid needs a whole factor, got {factor}")
    return tuple(int(f) for f in factor)
