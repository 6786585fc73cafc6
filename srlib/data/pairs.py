"""Degraded pairs: what a task makes of a subject's scan, and what a network sees of it."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, ScanWarning
from srlib.data.manifest import Subject, load_scan
from srlib.degradations.resolution import Degradation, SparseView
from srlib.degradations.tasks import TASKS, Settings, degradation_of
from srlib.scans.formats import load, load_mat
from srlib.scans.intensity import Scaling, fit_scaling, usual_range
from srlib.scans.space import covered, resample_to, same_lattice
from srlib.scans.volume import Volume, central, crop_or_pad, framed, resample, to_window

GIVEN_COVERS = (
    0.9  # share of a true scan that a given low-resolution one shows at least; the rest is mirrored
)


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded scan, on its own grid and interpolated on the high-resolution one, and the truth, in scan units."""

    lr: Volume  # on its own grid
    on_grid: Volume
    hr: Volume
    seen: Volume  # the one of the first two that the network sees
    intensity: str  # rule of intensity.fit_scaling
    scaling: Scaling  # fitted on ``seen``, the only scan known at prediction time
    reference: Volume | None = (
        None  # another contrast on the grid of ``hr``, where the experiment takes one
    )
    factor: tuple[float, float, float] | None = (
        None  # how much coarser than ``hr`` it resolves, per axis; not of 2-D tasks
    )

    @property
    def network_input(self) -> np.ndarray:
        """What a network sees, (C, X, Y, Z) float32: the scan and the reference, each scaled on its own."""
        return network_input(self.seen, self.reference, self.intensity)


@dataclass(frozen=True)
class PairMaker:
    """How pairs are made of subjects: the task, and the columns of the manifest that are read.

    ``settings`` of tasks by name go before those of TASKS. ``coarse`` says that the network sees the
    low-resolution grid.
    """

    task: str
    settings: Mapping[str, Settings] = field(default_factory=dict)
    contrast: str = "t1"
    reference: str = ""  # column of a second contrast, the network's second input channel
    intensity: str = "minmax"  # rule of intensity.fit_scaling, fitted on the network's input
    frame: tuple[int, int, int] | None = (
        None  # voxels that each scan is cut or padded to, about its middle
    )
    given: bool = False  # the column lr, where filled, is the low-resolution scan
    coarse: bool = False

    def degradation(self, task: str = "") -> Degradation:
        """The degradation of a task, by default its own; InputError for an unknown one."""
        return degradation_of(task or self.task, {**TASKS, **self.settings})

    def columns(self, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        lr = ("lr",) if self.given and "lr" in subject.files else ()
        return tuple(filter(None, (self.contrast, self.reference, *lr)))

    def make(self, subject: Subject, task: str = "", middle: int | None = None) -> Pair:
        """Degrade a subject's scan by a task (its own when empty), or take the low-resolution one of the manifest.

        ``middle`` cuts the scan to so many voxels of each axis first.

        The given one, which belongs to the own task alone, is a scan anywhere in the same world or a ``.mat`` file on
        the true scan's grid. It is interpolated on that grid by a cubic spline; for a network that sees coarse grids it
        is brought on the task's first. The reference, too, is brought by its affine alone: no registration is done. A
        ScanWarning names the scan of which few voxels take most of the range. Raises InputError for a given scan that
        covers less than GIVEN_COVERS of the true one.
        """
        whole = load_scan(subject, self.contrast, self.intensity)
        hr = framed(whole, self.frame) if self.frame else whole
        hr = central(hr, middle) if middle else hr
        try:
            if self.given and "lr" in subject.files and task in ("", self.task):
                pair = self._given(subject.files["lr"], whole, hr)
            else:
                pair = self.degrade(hr, task)
        except InputError as err:
            raise InputError(
                f"subject {subject.name}, {subject.file(self.contrast)}: {err}"
            ) from err
        if not self.reference:
            return pair
        try:
            reference = bring(load_scan(subject, self.reference, self.intensity), pair.hr)
        except InputError as err:
            raise InputError(f"subject {subject.name}, {self.reference}: {err}") from err
        return dataclasses.replace(pair, reference=reference)

    def degrade(self, hr: Volume, task: str = "") -> Pair:
        """The pair that a task (its own when empty) makes of a scan, which it may cut at its far faces.

        The truth of few CT views is the reconstruction from all; CT in HU is clipped to the window first.
        """
        degradation = self.degradation(task)
        hr = crop_or_pad(hr, (0, 0, 0), degradation.usable(hr.shape))
        hr = to_window(hr, self.intensity)
        sparse = isinstance(degradation, SparseView)
        lr, hr = degradation.pair(hr) if sparse else (degradation(hr), hr)
        return self._pair(lr, degradation.to_grid(lr, hr.shape), hr, degradation)

    def _given(self, file: Path, whole: Volume, hr: Volume) -> Pair:
        """The pair of a low-resolution scan and the part ``hr`` of a true scan."""
        lr, degradation = (
            load_mat(file, whole) if file.suffix == ".mat" else load(file),
            self.degradation(),
        )
        hr = crop_or_pad(hr, (0, 0, 0), degradation.usable(hr.shape))
        on_grid = resample_to(lr, hr, least=GIVEN_COVERS, what=f"the lr {file}")
        if (share := covered(lr, hr)) < 1:
            said = (
                f"{file} covers {int(1000 * share) / 10:g} % of its true scan; the rest is mirrored"
            )
            warnings.warn(said, ScanWarning, stacklevel=3)
        if self.coarse:
            lr = resample_to(lr, degradation(hr))
        return self._pair(on_grid if same_lattice(lr, hr) else lr, on_grid, hr, degradation)

    def _pair(self, lr: Volume, on_grid: Volume, hr: Volume, degradation: Degradation) -> Pair:
        seen = lr if self.coarse else on_grid
        factor = degradation.factor if isinstance(degradation.factor, tuple) else None
        scaling = fit_scaling(seen.data, self.intensity)
        return Pair(lr, on_grid, hr, seen, self.intensity, scaling, factor=factor)

    def baselines(self, pair: Pair) -> dict[str, Volume]:
        """What needs no training, by name: the input where the task stays on its grid, else interpolations."""
        if pair.lr is pair.on_grid:
            sparse = isinstance(self.degradation(), SparseView)
            return {"sparse_fbp" if sparse else "zero_filled": pair.on_grid}
        linear = resample(
            pair.lr, pair.hr.shape, pair.on_grid.affine, order=1
        )  # where the cubic one lies
        return {"linear": linear, "cubic": pair.on_grid}


def bring(reference: Volume, grid: Volume, order: int = 3) -> Volume:
    """A scan of another contrast on a scan's grid, as ``resample_to``; its minimum, wild voxels apart, where it saw nothing.

    Raises InputError when the two fields of view do not meet.
    """
    low = max(float(reference.data.min()), usual_range(reference.data)[0])
    return resample_to(reference, grid, order=order, outside=low, what="the reference")


def network_input(scan: Volume, reference: Volume | None, rule: str) -> np.ndarray:
    """What a network sees: the scan and, where it takes one, the reference, each scaled on its own; (C, X, Y, Z)."""
    return np.stack(
        [fit_scaling(v.data, rule).apply(v.data) for v in (scan, reference) if v is not None]
    )
