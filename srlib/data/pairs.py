"""Make degraded pairs of a subject's scans, and the input of a network from them."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from srlib.core.parts import Count
from srlib.core.paths import InputError, ScanWarning, explained
from srlib.data.manifest import Subject, load_contrast
from srlib.degradations.resolution import Degradation
from srlib.degradations.tasks import TASKS, Settings, Task, degradation_of
from srlib.scans.formats import load_mat, load_scan
from srlib.scans.intensity import Scaling, fit_scaling, usual_range
from srlib.scans.space import covered, resample_to, same_lattice
from srlib.scans.volume import Volume, central, framed, resample, to_window

# in training, the rule of intensity is fitted on the network's input, as it must be at prediction,
# on the truth, or on each of both by itself; a given low-resolution scan, whose units may be
# others, is then brought into the truth's range, so that estimates are in the truth's units
FITTED_ON = ("input", "truth", "each")
# least share of a true scan that a given low-resolution one shows; the rest is mirrored
GIVEN_COVERS = 0.9


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded scan and its ground truth, in scan units."""

    lr: Volume  # on its own grid
    on_grid: Volume  # interpolated on the grid of ``hr``
    hr: Volume
    seen: Volume  # ``lr`` or ``on_grid``: the network's input
    intensity: str  # rule of intensity.fit_scaling
    scaling: Scaling  # fitted on ``seen``, the only scan known at prediction time
    reference: Volume | None = None  # another contrast on the grid of ``hr``, if the network's
    factor: tuple[float, float, float] | None = None  # of resolution, per axis; not of 2-D tasks
    fitted_on: str = "input"  # one of FITTED_ON

    def for_training(self) -> tuple[np.ndarray, np.ndarray]:
        """The network's input (C, X, Y, Z) and the truth (X, Y, Z) in the units of training."""
        # where it has a range of its own, the low-resolution scan counts before it is interpolated
        by = self.seen if self.fitted_on == "input" else self.lr
        first, own = scalings(by.data, self.hr.data, self.intensity, self.fitted_on)
        given = self.network_input
        given[0] = first.apply(self.seen.data)
        return given, own.apply(self.hr.data)

    @property
    def network_input(self) -> np.ndarray:
        """The network's input (C, X, Y, Z), float32."""
        return network_input(self.seen, self.reference, self.intensity)


@dataclass(frozen=True, kw_only=True)
class Scans:
    """Which columns of the manifest are read, and what becomes of their scans."""

    contrast: str = "t1"  # column
    reference: str = ""  # column of a second contrast, the network's second input channel
    truth: str = ""  # column of the true scan where it is another contrast
    reference_task: str = ""  # degrades the second contrast, too; it stays on its coarse grid
    intensity: str = "minmax"  # rule of intensity.fit_scaling
    fitted_on: str = "input"  # what the rule is fitted on in training, one of FITTED_ON
    # voxels that each scan is cut or padded to, about its middle
    frame: tuple[Count, Count, Count] | None = None
    given: bool = False  # the column lr, where filled, is the low-resolution scan


@dataclass(frozen=True)
class ObservationModel(Scans):
    """How pairs are made of subjects.

    ``task`` is a name or a degradation. ``settings`` of tasks by name go before those of TASKS.
    ``coarse``: the network's input is on the low-resolution grid.
    """

    task: Task
    settings: Mapping[str, Settings] = field(default_factory=dict)
    coarse: bool = False

    @property
    def target(self) -> str:
        """The column of the true scan."""
        return self.truth or self.contrast

    def degradation(self, task: Task = "") -> Degradation:
        """The degradation of a task, by default its own; InputError for an unknown one."""
        return degradation_of(task or self.task, {**TASKS, **self.settings})

    def columns(self, subject: Subject) -> tuple[str, ...]:
        """The columns of the manifest that are read of a subject."""
        lr = ("lr",) if self.given and "lr" in subject.files else ()
        return tuple(filter(None, (self.contrast, self.reference, self.truth, *lr)))

    def make(self, subject: Subject, task: Task = "", *, middle: int | None = None) -> Pair:
        """The pair of a subject's scan, or of its ``middle`` voxels of each axis.

        The scan is degraded by a task, by default its own; under its own task the manifest's
        low-resolution scan is taken instead where ``given``. That is a scan anywhere in the same
        world or a ``.mat`` file on the true scan's grid, and is interpolated there by a cubic
        spline; a network that sees coarse grids gets it on the task's. The reference, too, is
        placed by its affine alone: nothing is registered. A ScanWarning names a scan where a few
        voxels take most of the range. Raises InputError for a given scan that covers less than
        GIVEN_COVERS of the true one.
        """
        whole = self._load(subject, self.contrast)
        hr = framed(whole, self.frame) if self.frame else whole
        hr = central(hr, middle) if middle else hr
        what = subject.file(self.contrast)
        try:
            if "lr" in self.columns(subject) and task in ("", self.task):
                pair = self._given(subject.files["lr"], whole, hr)
            else:
                pair = self.degrade(hr, task)
            if self.reference:
                what = self.reference
                other, task = self._load(subject, self.reference), self.reference_task
                seen = self.degradation(task)(other) if task else bring(other, pair.hr)
                pair = dataclasses.replace(pair, reference=seen)
            if self.truth:
                what = self.truth
                hr = self._load(subject, self.truth)
                on_grid = resample_to(pair.lr, hr, what=f"the {self.contrast}")
                pair = dataclasses.replace(pair, hr=hr, on_grid=on_grid)
            return pair
        except InputError as err:
            raise InputError(f"subject {subject.name}, {what}: {err}") from err

    def _load(self, subject, column):
        """A subject's scan; a ScanWarning as ``load_contrast``."""
        return load_contrast(subject, column, rule=self.intensity)

    def degrade(self, hr: Volume, task: Task = "") -> Pair:
        """The pair that a task, by default its own, makes of a scan, cut to what is usable.

        CT in HU is clipped to the window first.
        """
        degradation = self.degradation(task)
        lr, hr = degradation.pair(to_window(hr, self.intensity))
        return self._pair(lr, degradation.to_grid(lr, hr.shape), hr, degradation)

    def degrade_alone(self, patch: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """The network's input and the truth, in scan units, of a patch degraded by itself."""
        degradation = self.degradation(task)
        lr, hr = degradation.pair(to_window(Volume(patch, np.eye(4)), self.intensity))
        seen = lr if self.coarse else degradation.to_grid(lr, hr.shape)
        return seen.data, hr.data

    def _given(self, file, whole, hr):
        """The pair of a low-resolution scan and the part ``hr`` of a true scan."""
        lr = load_mat(file, whole) if file.suffix.lower() == ".mat" else load_scan(file)
        if self.fitted_on == "each":
            own, wanted = (fit_scaling(scan.data, self.intensity) for scan in (lr, whole))
            lr = lr.with_data(wanted.invert(own.apply(lr.data)))
        degradation = self.degradation()
        uncut, hr = hr, degradation.cut(hr)
        on_grid = resample_to(lr, hr, least=GIVEN_COVERS, what=f"the lr {file}")
        if (share := covered(lr, hr)) < 1:
            percent = int(1000 * share) / 10
            warnings.warn(
                f"{file} covers {percent:g} % of its true scan; the rest is mirrored",
                ScanWarning,
                stacklevel=3,
            )
        if self.coarse:
            lr = resample_to(lr, degradation(uncut))
        return self._pair(on_grid if same_lattice(lr, hr) else lr, on_grid, hr, degradation)

    def _pair(self, lr, on_grid, hr, degradation):
        """The pair of these scans, with the scaling of what the network sees."""
        seen = lr if self.coarse else on_grid
        factor = degradation.factor if isinstance(degradation.factor, tuple) else None
        scaling = fit_scaling(seen.data, self.intensity)
        return Pair(
            lr,
            on_grid,
            hr,
            seen,
            self.intensity,
            scaling,
            factor=factor,
            fitted_on=self.fitted_on,
        )

    def baselines(self, pair: Pair) -> dict[str, Volume]:
        """Untrained estimates by name: the input where it is on the fine grid, else splines.

        None where the truth is of another contrast.
        """
        if self.truth:
            return {}
        if pair.lr is pair.on_grid:
            return {self.degradation().baseline: pair.on_grid}
        linear = resample(pair.lr, pair.hr.shape, pair.on_grid.affine, order=1)
        return {"linear": linear, "cubic": pair.on_grid}


def bring(reference: Volume, grid: Volume, *, order: int = 3) -> Volume:
    """A scan of another contrast on a scan's grid, as ``resample_to``.

    Beyond its field of view it is its minimum, wild voxels apart. Raises InputError when the two
    fields of view do not meet.
    """
    low = max(float(reference.data.min()), usual_range(reference.data)[0])
    return resample_to(reference, grid, order=order, outside=low, what="the reference")


def scalings(
    given: np.ndarray, truth: np.ndarray, rule: str, fitted_on: str
) -> tuple[Scaling, Scaling]:
    """The scalings of a training input and its truth, by a rule and what it is fitted on."""
    sides = {"input": (given, given), "truth": (truth, truth), "each": (given, truth)}
    return tuple(fit_scaling(side, rule) for side in sides[fitted_on])


def network_input(scan: Volume, reference: Volume | None, rule: str) -> np.ndarray:
    """The input of a network (C, X, Y, Z): the scan and, where there is one, the reference.

    Each is scaled on its own.
    """
    made = [fit_scaling(scan.data, rule).apply(scan.data)]
    if reference:
        with explained("the reference", "cannot be scaled"):
            made.append(fit_scaling(reference.data, rule).apply(reference.data))
    return np.stack(made)
