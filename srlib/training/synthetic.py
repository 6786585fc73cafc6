"""Draw training examples from label maps: parts of an experiment, their dataset."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch.nn import functional
from torch.utils.data import Dataset

from srlib.core.parts import Count, Length, Size, Whole
from srlib.core.paths import InputError, StrPath, digest, explained
from srlib.data.manifest import Subject, load_contrast
from srlib.data.pairs import ObservationModel
from srlib.models.conditioning import describe_degradation
from srlib.models.network import Network
from srlib.scans.formats import load_scan
from srlib.scans.patches import extract, grid_locations, per_axis
from srlib.scans.space import resample_to
from srlib.scans.volume import reorient
from srlib.synthesis.priors import Label, Prior, read_classes, read_priors
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.simulation import Example, LabelMap, apply, draw, encode, regular
from srlib.training.examples import Examples
from srlib.training.mixture import Mixture, degrade, synthesize
from srlib.training.streams import ALL, Own, Patch, Stream, patch_stream

KEPT = 8  # label maps in the memory of each process
POOL = 16  # synthetic scans whose patches are mixed
MARGIN = 8  # voxels around the patches of a synthetic scan, which the borders of kernels may spoil
SLICES = Generation((Acquisition("t1_hr", (1.0, 1.0, 3.0)),))  # of a T1 that is fine in plane
VALIDATION_SEED = 2_000_000_011  # no likely seed of a training


class Tables(NamedTuple):
    """What labels mean, and how bright their classes are (see ``priors``)."""

    classes: Sequence[Label]
    priors: Mapping[str, Prior]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the classes and of the priors, whichever files they were read from."""
        classes = sorted(map(dataclasses.astuple, self.classes))
        priors = sorted(
            (name, [part.tolist() for part in prior]) for name, prior in self.priors.items()
        )
        held = {"classes": classes, "priors": priors}
        return {name: digest(repr(value)) for name, value in held.items()}

    def complete(self, network: Network) -> Network:
        """The network with an output channel per class where its ``out_channels`` is 0."""
        if network.model_args.get("out_channels") != 0:
            return network
        count = 1 + max(entry.class_ for entry in self.classes if entry.class_ is not None)
        return dataclasses.replace(
            network, model_args={**network.model_args, "out_channels": count}
        )


class _LabelMaps(Examples):
    """What the parts share that draw their examples from label maps."""

    reads = "labels"
    needs = ("labels",)
    shown = 4  # validation examples
    pooled = 1  # scans whose examples are mixed
    per_scan = 1  # examples of one scan

    def read_tables(
        self, classes: StrPath | None, priors: StrPath | None, *, alone: bool = True
    ) -> Tables:
        """Read the tables of labels; without priors classes are of any brightness.

        Raises InputError without classes, and unless label maps are ``alone`` what is read.
        """
        if not (classes and alone):
            raise InputError(
                "its examples come from label maps: give a table of their classes (--classes) and "
                "perhaps intensity priors (--priors), which csv/README.md describes and 'srlib "
                "priors' measures, and no store and no snapshots"
            )
        return Tables(read_classes(classes), read_priors(priors) if priors else {})

    def open(
        self, subjects: Sequence[Subject], pairs: ObservationModel, *, seed: int = 0, tables: Tables
    ) -> "SyntheticDataset":
        """Endless examples of the subjects' label maps as a dataset."""
        return SyntheticDataset(subjects, tables, contrast=pairs.target, seed=seed, part=self)

    def held_out(
        self, subjects: Sequence[Subject], pairs: ObservationModel, *, tables: Tables
    ) -> list[Patch]:
        """The first example of each of a few scans; none without a label map."""
        if not self.usable(subjects):
            return []
        dataset = self.open(subjects, pairs, seed=VALIDATION_SEED, tables=tables)
        return [dataset.scan(k)[0] for k in range(self.shown)]


@dataclass(frozen=True)
class SyntheticScans(_LabelMaps):
    """SynthSR's examples (Iglesias et al., NeuroImage 2021): synthetic scans and their targets."""

    patch_size: Size  # voxels of the target
    n_train: Count  # training subjects, at most
    generation: Generation
    spacing_mm: Length  # of the target
    with_classes: bool = False  # the target's second channel holds the classes, for a segmenter
    padding: Whole = 0  # voxels of background around the label map

    def columns(self, pairs: ObservationModel, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        return ("labels", pairs.target) if self.generation.target == "real" else ("labels",)

    def example(
        self,
        rng: Generator,
        label_map: LabelMap,
        priors: Mapping[str, Prior],
        real: np.ndarray | None,
    ) -> Example:
        """An example with all its parts."""
        if self.padding:
            index = functional.pad(label_map.index, [self.padding] * 6)
            label_map = dataclasses.replace(label_map, index=index)
            real = real if real is None else np.pad(real, self.padding)
        parameters = draw(
            rng,
            label_map,
            self.generation,
            priors=priors,
            patch_size=self.patch_size,
            spacing_mm=self.spacing_mm,
        )
        return apply(label_map, parameters, self.generation, real=real)

    def draw(self, *source: object) -> list[Patch]:
        """One example: input (C, X, Y, Z), target (1 or 2, X, Y, Z), float32."""
        example = self.example(*source)
        target = example.target
        if self.with_classes:
            target = torch.cat([target, example.classes])
        return [(example.network_input(self.generation.reliability).numpy(), target.numpy())]


@dataclass(frozen=True)
class RandomDegradations(_LabelMaps):
    """Training examples for `robust`: synthetic scans, each with a random degradation (ours)."""

    shown: ClassVar = 16
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
        rng: Generator,
        label_map: LabelMap,
        priors: Mapping[str, Prior],
        real: None = None,
    ) -> list[Patch]:
        """The patches of one synthetic scan: input (16, X, Y, Z), truth (1, X, Y, Z), float32.

        Intensities are about [0, 1]. The input is the degraded scan interpolated on the truth's
        grid, then its description (``describe_degradation``) as constant maps. Raises InputError
        as ``simulation.draw``.
        """
        size, count = per_axis(self.patch_size), round(self.samples ** (1 / 3))
        shape = [count * n + 2 * MARGIN for n in size]
        hr = synthesize(rng, label_map, self.generation, self.mixture, priors, shape)
        _, on_grid, kernel = degrade(rng, hr, self.mixture)
        description = describe_degradation(on_grid.data, kernel.coarser).reshape(3, -1)
        measured = description[:, 1:]
        measured += rng.normal(0, self.mixture.jitter, measured.shape)
        maps = np.broadcast_to(description.reshape(-1, 1, 1, 1), (description.size, *size))
        pairs = []
        for place in grid_locations(hr.shape, size, border=(MARGIN,) * 3):
            scan = extract(on_grid.data[None], place)
            pairs.append((np.concatenate([scan, maps]), extract(hr.data[None], place)))
        return pairs


class SyntheticDataset(Dataset[Patch]):
    """Synthetic examples as a torch dataset: (input (C, X, Y, Z), target (T, X, Y, Z)), float32.

    ``classes`` and ``priors`` are files (``csv/README.md``), or both ``Tables`` in one; without
    priors classes are of any brightness. ``patch_size`` is in voxels of 1 mm. By default a scan of
    ``generation`` in 3 mm slices is the input, with a map of where it was measured (C = 2), and the
    scan before it was acquired is the target; another ``part`` draws other examples. ``contrast``
    is the column of the target where that is a real scan. ``length``: examples of the dataset; the
    ``stream`` is endless. Example ``i`` depends on ``(seed, i)`` alone. Subjects without a label
    map are left out. Raises InputError when none is left, and names the subject whose label map or
    scan cannot be used.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        classes: StrPath | Tables,
        priors: StrPath | None = None,
        *,
        patch_size: Size = 64,
        generation: Generation = SLICES,
        contrast: str = "t1",
        length: int = 1000,
        seed: int = 0,
        part: SyntheticScans | RandomDegradations | None = None,
    ) -> None:
        self.part = part or SyntheticScans(patch_size, 1, generation, 1.0)
        self.contrast, self.length, self.seed = contrast, length, seed
        self.subjects = self.part.usable(subjects)
        if not self.subjects:
            raise InputError(
                "no subject with a label map; name one in the manifest's column labels"
            )
        read = isinstance(classes, Tables)
        self.tables = classes if read else self.part.read_tables(classes, priors)
        self.load = functools.lru_cache(KEPT)(self._load)
        self.scan = functools.lru_cache(1)(self._draw)  # of a synthetic scan, its examples

    def __reduce__(self) -> tuple:
        again = functools.partial(
            SyntheticDataset,
            contrast=self.contrast,
            length=self.length,
            seed=self.seed,
            part=self.part,
        )
        return again, (self.subjects, self.tables)

    def __len__(self) -> int:
        return self.length

    def _load(self, index):
        """A subject's label map and, where it is the target, the real scan on the same grid."""
        subject = self.subjects[index]
        labels = regular(load_scan(subject.file("labels")))
        real = None
        if self.part.generation.target == "real":
            real = reorient(load_contrast(subject, self.contrast))
        place = f"subject {subject.name}, {subject.file('labels')}"
        with explained(place, "cannot be used", "look at the label map"):
            real = real and resample_to(real, labels, least=1, what=f"its {self.contrast}").data
            return encode(labels, self.tables.classes), real

    def source(
        self, index: int
    ) -> tuple[Generator, LabelMap, Mapping[str, Prior], np.ndarray | None]:
        """What scan ``index`` is drawn from: random numbers, label map, priors, real scan."""
        rng = np.random.default_rng([self.seed, index])
        label_map, real = self.load(int(rng.integers(len(self.subjects))))
        return rng, label_map, self.tables.priors, real

    def _draw(self, index):
        """All examples of a scan."""
        return self.part.draw(*self.source(index))

    def _made(self, asked):
        index, numbers = asked
        made = self._draw(index)
        return [made[k] for k in numbers]

    def __getitem__(self, index: int) -> Patch:
        scan, place = divmod(range(self.length)[index], self.part.per_scan)  # or IndexError
        return self.scan(scan)[place]

    def _pools(self, start):
        scans, count = self.part.pooled, self.part.per_scan
        first, skip = divmod(start, scans * count)
        for number in itertools.count(first):
            order = np.random.default_rng([self.seed, number]).permutation(scans * count)
            keys = range(number * scans, (number + 1) * scans)
            yield keys, [divmod(k, count) for k in order[skip:]]
            skip = 0

    def stream(self, start: int = 0, workers: int | None = None, *, own: Own = ALL) -> Stream:
        """Endless examples from number ``start`` on, those of a few scans mixed.

        Scans without examples of its ``own`` are not drawn.

        See ``Stream`` and ``patch_stream``. Its iterator reads the first label maps at once. Raises
        InputError for one that cannot be used.
        """
        return Stream(self._serve, start, workers, own)

    def _serve(self, start, workers, own):
        for index in range(min(len(self.subjects), KEPT)):
            self.load(index)
        return patch_stream(self._made, self._pools(start), workers, own)
