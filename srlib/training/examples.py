"""Cut training examples from degraded scans: the part of an experiment, and its dataset."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from srlib.core.parts import Count, Part, Share, Size, Whole
from srlib.core.paths import InputError, StrPath
from srlib.core.processes import cores
from srlib.data.manifest import Subject, load_contrast
from srlib.data.pairs import ObservationModel, scalings
from srlib.degradations.tasks import Task
from srlib.scans.formats import read_grid
from srlib.scans.intensity import fit_scaling, plateau, usual_range
from srlib.scans.patches import PatchLocation, extract, grid_locations, per_axis, random_locations
from srlib.scans.volume import framed
from srlib.training.streams import ALL, KEPT, Own, Patch, Stream, patch_stream, pools_of

FULLEST = 4  # patches of each validation scan
DRAWN = 8  # places of which one is chosen for a random patch


class Examples(Part):
    """A source of training examples: what the parts for scans and for label maps share."""

    reads = "a scan"  # what each subject must have
    needs = ()  # columns, where those of the pairs are not read
    n_val = None  # validation subjects, at most
    mixed = True  # patches of several subjects are shuffled together
    more_tasks = ()  # mixed into the training
    n_train: Count  # training subjects, at most

    def tasks(self, task: str) -> tuple[str, ...]:
        """The tasks that a network is trained for when it is measured on ``task``."""
        return (task, *self.more_tasks)

    def columns(self, pairs: ObservationModel, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        return self.needs or pairs.columns(subject)

    def usable(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects that have what is needed."""
        return [subject for subject in subjects if {*self.needs} <= subject.files.keys()]

    def select(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to train on: the first ``n_train`` usable ones by name."""
        return sorted(self.usable(subjects), key=lambda subject: subject.name)[: self.n_train]

    def select_val(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects to validate on."""
        return self.usable(subjects)[: self.n_val]


@dataclass(frozen=True)
class ScanPatches(Examples):
    """Patches of scans that a task degrades, on a grid or at random places."""

    choices: ClassVar = {"sampling": ("grid", "random")}
    n_val: ClassVar = 2

    patch_size: Size  # voxels of the truth
    n_train: Count  # training subjects, at most
    more_tasks: tuple[str, ...] = ()  # further tasks whose pairs are mixed into the training
    sampling: str = "grid"  # patches on a grid, or "random" ones
    stride: Size | None = None  # voxels between patches of the grid; None: they do not overlap
    border: tuple[Whole, Whole, Whole] = (0, 0, 0)  # voxels at each face without grid patches
    samples: Count | None = None  # patches per scan, at most
    min_foreground: Share = 0.0  # least share of non-background voxels of a random patch
    per_patch: bool = False  # cut the truth first, then degrade and scale each patch by itself
    mixed: bool = True  # patches of several scans are shuffled; else scan by scan, in their order

    def read_tables(
        self, classes: StrPath | None, priors: StrPath | None, *, alone: bool = True
    ) -> None:
        """Raise InputError for tables of labels, which scans do not need."""
        if classes or priors:
            raise InputError(
                "it is trained on scans, not on label maps; leave out classes and priors"
            )

    def open(
        self,
        subjects: Sequence[Subject],
        pairs: ObservationModel,
        *,
        seed: int = 0,
        tables: None = None,
    ) -> "PatchDataset":
        """The subjects' pairs as a dataset."""
        return PatchDataset(subjects, pairs, seed=seed, part=self)

    def held_out(
        self, subjects: Sequence[Subject], pairs: ObservationModel, *, tables: None = None
    ) -> list[Patch]:
        """The four patches with the most foreground of each subject."""
        chosen = (fullest(subject, self, pairs, FULLEST) for subject in subjects)
        return [dataset.read(0, place) for dataset, places in chosen for place in places]


class PatchDataset(Dataset[Patch]):
    """Patches of degraded scans as a torch dataset: (input (C, x, y, z), truth (1, x, y, z)).

    Both are float32 in the network's units (``intensity``, about [0, 1]) and are the caller's own.
    ``degradation`` is the name of a task, a degradation, or an ``ObservationModel`` (a second
    contrast, inputs on the coarse grid), which ``contrast`` and ``intensity`` then leave alone.
    ``patch_size`` is in voxels of the truth; ``places`` are further fields of ``ScanPatches``
    (``stride``, ``sampling``, ``samples``, ...), or all are those of a ``part``.

    Patch ``i`` is one of the grid, subject by subject; the ``stream`` shuffles them, or draws
    random places. The pairs of up to KEPT scans are kept in memory, else the last one: of many
    scans, shuffled patches are best read from the stream. Where the network sees the
    low-resolution grid, patches lie there, and the truth's are ``factor`` times larger. Raises
    InputError without a subject, when that factor is no whole number, and for a second or a given
    low-resolution scan where patches are degraded by themselves.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        degradation: Task | ObservationModel,
        patch_size: Size = 64,
        *,
        contrast: str = "t1",
        intensity: str = "minmax",
        seed: int = 0,
        part: ScanPatches | None = None,
        **places: Any,
    ) -> None:
        given = isinstance(degradation, ObservationModel)
        self.pairs = pairs = (
            degradation
            if given
            else ObservationModel(degradation, contrast=contrast, intensity=intensity)
        )
        self.part = part = part or ScanPatches(patch_size, len(subjects), **places)
        self.subjects, self.seed, self.mixed = subjects, seed, part.mixed
        self.items = [(subject, task) for subject in subjects for task in part.tasks(pairs.task)]
        self.factor = (1, 1, 1)
        if part.per_patch and (pairs.reference or pairs.given):
            raise InputError(
                "patches that are degraded by themselves (per_patch) come of one scan alone; "
                "leave out the reference and the given low-resolution scans"
            )
        if pairs.coarse:
            self.factor = per_axis(pairs.degradation().coarser, "factor from grid to grid")
        self.shapes = []
        for subject, task in self.items:
            whole = pairs.frame or read_grid(subject.file(pairs.contrast))[0]
            usable = pairs.degradation(task).usable(whole)
            self.shapes.append(tuple(np.floor_divide(usable, self.factor).tolist()))
        # of an item, a subject under a task, input (C, X, Y, Z) and truth (X, Y, Z), scaled
        self.pair = functools.lru_cache(KEPT if len(self.items) <= KEPT else 1)(self._make)

    @functools.cached_property
    def places(self) -> list[tuple[int, PatchLocation]]:
        """The item and the location of each patch."""
        return [(item, place) for item, _ in enumerate(self.items) for place in self.grid(item)]

    def __reduce__(self) -> tuple:
        again = functools.partial(PatchDataset, part=self.part, seed=self.seed)
        return again, (self.subjects, self.pairs)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Patch:
        return self.read(*self.places[index])

    def _make(self, index):
        """An item's scaled arrays; the scan twice where its patches are degraded later."""
        subject, task = self.items[index]
        if not self.part.per_patch:
            return self.pairs.make(subject, task).for_training()
        scan = load_contrast(subject, self.pairs.contrast, rule=self.pairs.intensity)
        hr = framed(scan, self.pairs.frame or scan.shape).data
        return hr[None], hr

    def stream(
        self,
        start: int = 0,
        workers: int | None = None,
        *,
        epochs: int | None = None,
        own: Own = ALL,
    ) -> Stream:
        """Shuffled patches from number ``start`` on, endless or of some epochs.

        They are a pure function of the seed; of ``own`` ones no others are cut or degraded by
        themselves. In a DataLoader of several workers each delivers the
        patches of its own share of the scans (``Stream``).

        Elsewhere ``workers`` are processes that the stream starts itself (``patch_stream``). A
        worker sends an item's two whole arrays, which patches are cut from here, or the patches
        that it degraded by themselves. By default up to KEPT items are made once, here, and kept,
        and on two cores all are made here, as a pipe costs more than one worker saves; of more, no
        worker keeps any but its last. For scans of 84 MB (HCP) two pools are 1.4 GB, and each of up
        to WORKERS workers holds three pairs, 0.5 GB, beside what a degradation takes.
        """
        return Stream(self._serve, start, workers, epochs, own)

    def _serve(self, start, workers, epochs, own):
        if workers is None and (len(self.items) <= KEPT or cores() < 3):
            workers = 0
        made = patch_stream(self._made, pools_of(self, start, epochs), workers, own)
        return made if self.part.per_patch else (self._cut(*held) for held in made)

    def _on_input(self, voxels):
        """A size in voxels of the truth as one on the network's input grid."""
        sizes = per_axis(voxels)
        if np.mod(sizes, self.factor).any():
            raise InputError(
                f"{sizes} voxels are no multiple of the factor {self.factor}; "
                "choose another patch size"
            )
        return tuple(np.floor_divide(sizes, self.factor).tolist())

    def grid(self, index: int) -> list[PatchLocation]:
        """An item's patch locations on the grid; at most ``samples``, always the same ones."""
        part = self.part
        size, stride = map(self._on_input, (part.patch_size, part.stride or part.patch_size))
        places = grid_locations(self.shapes[index], size, stride=stride, border=part.border)
        if part.samples and part.samples < len(places):
            chosen = np.random.default_rng(index).permutation(len(places))[: part.samples]
            places = [places[k] for k in chosen]
        return places

    def draws(self, index: int, rng: np.random.Generator) -> list[PatchLocation]:
        """One epoch's patch locations of an item, or DRAWN to choose from for each random patch.

        They depend on its shape alone.
        """
        grid = self.grid(index)
        if self.part.sampling == "grid":
            return grid
        return random_locations(self.shapes[index], grid[0].size, DRAWN * len(grid), rng)

    def shares(self, index: int, places: Sequence[PatchLocation]) -> np.ndarray:
        """The share of foreground in an item's patches."""
        shown = foreground(self.pair(index)[1])
        return np.array([np.mean(shown[place.scaled(self.factor).slices]) for place in places])

    def _made(self, asked):
        """An item's arrays with each patch's place, or patches that are degraded by themselves.

        Of the locations that were drawn for a random patch the first with enough foreground is
        taken, or else that with the most.
        """
        (index, places), numbers = asked
        if self.part.sampling == "random":
            drawn = [place for k in numbers for place in places[DRAWN * k :][:DRAWN]]
            shares = np.minimum(self.shares(index, drawn), self.part.min_foreground)
            best = shares.reshape(-1, DRAWN).argmax(1)
            places = [drawn[DRAWN * n + k] for n, k in enumerate(best)]
        else:
            places = [places[k] for k in numbers]
        if self.part.per_patch:
            return [self.read(index, place) for place in places]
        return [(self.pair(index), place) for place in places]

    def _cut(self, pair, place):
        """A patch of an item's arrays, copied: input (C, x, y, z) and truth (1, x, y, z)."""
        hr = extract(pair[1], place.scaled(self.factor))[None]
        return extract(pair[0], place).copy(), hr.copy()  # what is kept stays as it is

    def read(self, index: int, location: PatchLocation) -> Patch:
        """An item's patch as (input (C, x, y, z), truth (1, x, y, z)).

        Where each patch is degraded and scaled by itself, one that the rule cannot scale is scaled
        as its whole scan.
        """
        pair = self.pair(index)
        patch = self._cut(pair, location)
        if not self.part.per_patch:
            return patch
        given, truth = self.pairs.degrade_alone(patch[1][0], self.items[index][1])
        by, whole = (self.pairs.intensity, self.pairs.fitted_on), pair[1]
        try:
            first, own = scalings(given, truth, *by)
        except InputError:
            first, own = scalings(whole, whole, *by)
        return first.apply(given)[None], own.apply(truth)[None]


def foreground(hr: np.ndarray) -> np.ndarray:
    """Where a scan in a network's units, about [0, 1], shows something, boolean: above 0.05.

    Where the ``plateau`` is another value, as when the mean was brought to 0: more than 0.05 from
    it. Wild voxels do not count.
    """
    held = np.clip(hr, *usual_range(hr))
    held = hr if np.array_equal(held, hr) else fit_scaling(held).apply(held)
    empty = plateau(held) or 0.0
    return held > 0.05 if abs(empty) <= 0.05 else np.abs(held - empty) > 0.05


def fullest(
    subject: Subject, part: ScanPatches, pairs: ObservationModel, count: int
) -> tuple[PatchDataset, list[PatchLocation]]:
    """A subject's dataset, and its ``count`` patches with the most foreground."""
    dataset = dataclasses.replace(part, stride=None, samples=None).open([subject], pairs)
    grid = dataset.grid(0)
    return dataset, [grid[k] for k in np.argsort(-dataset.shares(0, grid), kind="stable")[:count]]
