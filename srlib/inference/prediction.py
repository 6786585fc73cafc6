"""Whole scans through a trained network: the parts of an experiment that place what it makes by the affine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage

from srlib.core.parts import Number, Part
from srlib.core.paths import InputError
from srlib.data.pairs import ObservationModel, Pair, bring, network_input
from srlib.degradations.resolution import Degradation
from srlib.inference.checks import content, findings, header
from srlib.inference.tiles import run_tiled
from srlib.models.conditioning import describe_degradation
from srlib.models.robust import Conditioned
from srlib.scans.intensity import HU_WINDOW, fit_scaling, usual_range, wild
from srlib.scans.volume import Volume, fine_grid, resample, to_window

THICK = 1.2  # times the finest spacing: from there on an axis counts as thick
Tiles = Callable[
    [torch.nn.Module, np.ndarray], np.ndarray
]  # a network over a whole array, see ``run_tiled``
Factor = tuple[float, float, float]


@dataclass(frozen=True)
class Request:
    """What a user asks of a prediction, beside the scan.

    ``factor`` per axis or a target ``spacing_mm`` per axis; ``zero_filled``: by how much the scanner interpolated
    already, per axis (its matrix over that measured); ``align``: what stays, the field of view (``center``) or the
    outermost voxel centres (``corners``); ``ct`` clips to the HU of soft tissue; without ``flip`` one pass is made.
    """

    factor: Sequence[float] | None = None
    spacing_mm: Sequence[float] | None = None
    zero_filled: Sequence[float] | None = None
    align: str = "center"
    ct: bool = False
    flip: bool = True

    def given(self) -> list[str]:
        """The names of all that differs from the default."""
        return [name for name, value in vars(self).items() if value != getattr(Request, name)]


@dataclass(frozen=True)
class Plan:
    """What will be made of a scan."""

    finer: Factor  # how much finer the output's grid is, per axis of the scan
    coarser: Factor  # how much coarser than that grid the scan resolves
    made: str  # in words


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network made of a scan, in its place; ``warnings`` hold what to mind before trusting it, a line each."""

    image: Volume
    uncertainty: Volume | None = None  # the scale b of a Laplace distribution about each voxel
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SameGrid(Part):
    """Interpolation by cubic splines, then a network that stays on its grid."""

    takes: ClassVar = ("factor", "spacing_mm", "align")  # of a request
    coarse: ClassVar = False  # whether the network sees the low-resolution grid
    memory_gb: ClassVar = 3.0  # that tiles may take where nothing is said
    keeps_units: ClassVar = True  # whether the image is in the scan's own units
    uncertain: ClassVar = False  # whether the network gives an uncertainty

    def accepts(self, pairs: ObservationModel, degradation: Degradation) -> bool:
        """Whether the network can be tried on scans of another degradation than its own."""
        return True

    def default_factor(self, scan: Volume, pairs: ObservationModel) -> Factor:
        """How much finer a scan becomes where nothing is asked for: the factor of the network's task."""
        return pairs.degradation().coarser

    def plan(
        self, scan: Volume, network: torch.nn.Module, pairs: ObservationModel, request: Request
    ) -> Plan:
        """What will be made of a scan, in whole voxels over its field of view.

        Raises InputError for what this prediction does not take, a factor below 1 or not finite, and factor and
        spacing at once.
        """
        refused = [name for name in request.given() if name not in self.takes]
        if refused:
            raise InputError(f"this model takes no {refused[0]}; it takes {', '.join(self.takes)}")
        factor = _asked(scan, request) or self.default_factor(scan, pairs)
        if len(factor) != 3 or not all(np.isfinite(f) and f >= 0.999 for f in factor):
            raise InputError(
                f"factor per axis must be at least 1, got {factor}; the scan's spacing is {scan.spacing_mm} mm"
            )
        # whole voxels over the same field of view: half a voxel over an axis is what the spacing may give way
        finer = tuple(max(round(n * f), n) / n for n, f in zip(scan.shape, factor, strict=True))
        coarser = tuple(f * z for f, z in zip(finer, request.zero_filled or (1, 1, 1), strict=True))
        return Plan(finer, coarser, "x" + " ".join(f"{f:.4g}" for f in finer))

    def seen(self, scan: Volume, pairs: ObservationModel, request: Request) -> Volume:
        """The scan as the network knows intensities; CT in HU is clipped to what it was trained on."""
        return to_window(scan, pairs.intensity, reconstructed=True)

    def run(
        self,
        scan: Volume,
        network: torch.nn.Module,
        pairs: ObservationModel,
        plan: Plan,
        request: Request,
        reference: Volume | None,
        tiles: Tiles,
    ) -> Prediction:
        """What the network makes of a scan on its own grid."""
        same = np.allclose(plan.finer, 1)
        on_grid = (
            scan if same else resample(scan, *fine_grid(scan, plan.finer, align=request.align))
        )
        return Prediction(
            self.on_grid(
                on_grid, network, pairs, reference, tiles, plan.coarser, request.flip, scan
            )
        )

    def on_pair(
        self, pair: Pair, network: torch.nn.Module, pairs: ObservationModel, tiles: Tiles
    ) -> Prediction:
        """What the network makes of a degraded scan, on the grid of the truth."""
        return Prediction(
            self.on_grid(
                pair.on_grid, network, pairs, pair.reference, tiles, pair.factor, True, pair.lr
            )
        )

    def on_grid(
        self,
        scan: Volume,
        network: torch.nn.Module,
        pairs: ObservationModel,
        reference: Volume | None,
        tiles: Tiles,
        factor: Factor | None = None,
        flip: bool = True,
        lr: Volume | None = None,
    ) -> Volume:
        """Run the network on a scan that already lies on the output grid, in the scan's own units.

        ``reference`` lies anywhere in the same world: it is brought by its affine, and nothing is registered.
        """
        brought = None if reference is None else bring(reference, scan)
        scaling = fit_scaling(scan.data, pairs.intensity)
        return scan.with_data(
            scaling.invert(tiles(network, network_input(scan, brought, pairs.intensity)))
        )

    def warnings(
        self,
        scan: Volume,
        made: Volume,
        pairs: ObservationModel,
        plan: Plan,
        request: Request,
        reference: Volume | None,
    ) -> list[str]:
        """What to mind before trusting what was made: headers, intensities, slices (see ``checks``); a line each."""
        seen = self.seen(scan, pairs, request)
        found = self.header_warnings(scan, pairs, reference) + wild(seen.data)
        if reference is not None:
            found += [f"the reference: {line}" for line in wild(reference.data)]
        clipped = 0 if request.ct else np.count_nonzero(seen.data != scan.data) / scan.data.size
        if clipped:
            found.append(
                f"{100 * clipped:.2g} % of the voxels lay outside {HU_WINDOW[0]:g} to {HU_WINDOW[1]:g} HU, "
                "which is all that this model knows, and were clipped"
            )
        return [
            *found,
            *self.content_warnings(scan, plan, request),
            *findings(scan, made, plan.finer),
        ]

    def header_warnings(
        self, scan: Volume, pairs: ObservationModel, reference: Volume | None
    ) -> list[str]:
        """What looks wrong in the headers; single images are of any part of the body."""
        if pairs.contrast == "image":
            return []
        return header(scan) + (header(reference, "the reference") if reference is not None else [])

    def content_warnings(self, scan: Volume, plan: Plan, request: Request) -> list[str]:
        """What in the scan is unlike all that the network was trained on."""
        return []


@dataclass(frozen=True)
class CoarseToFine(SameGrid):
    """A network from the low-resolution grid to one that is ``network.factor`` times finer."""

    coarse: ClassVar = True

    def accepts(self, pairs: ObservationModel, degradation: Degradation) -> bool:
        """Whether the other degradation is of the network's factor."""
        return pairs.degradation().coarser == degradation.coarser

    def plan(
        self, scan: Volume, network: torch.nn.Module, pairs: ObservationModel, request: Request
    ) -> Plan:
        """As ``SameGrid``; InputError for another factor than the network's."""
        plan = super().plan(scan, network, pairs, request)
        if not np.allclose(plan.finer, network.factor, rtol=1e-3):
            raise InputError(
                f"this model makes scans {network.factor} times finer, got a factor of {plan.finer}"
            )
        return plan

    def run(
        self,
        scan: Volume,
        network: torch.nn.Module,
        pairs: ObservationModel,
        plan: Plan,
        request: Request,
        reference: None,
        tiles: Tiles,
    ) -> Prediction:
        """What the network makes of a scan; where scan lines were left out, voxel 0 stays where it is."""
        align = "first" if pairs.degradation().align == "first" else request.align
        affine = fine_grid(scan, network.factor, align=align)[1]
        return Prediction(Volume(self._finer(scan, network, pairs, tiles), affine))

    def on_pair(
        self, pair: Pair, network: torch.nn.Module, pairs: ObservationModel, tiles: Tiles
    ) -> Prediction:
        """What the network makes of the low-resolution scan, cut to the grid of the truth."""
        made = self._finer(pair.lr, network, pairs, tiles)
        return Prediction(pair.hr.with_data(made[tuple(slice(n) for n in pair.hr.shape)]))

    def _finer(
        self, scan: Volume, network: torch.nn.Module, pairs: ObservationModel, tiles: Tiles
    ) -> np.ndarray:
        scaling = fit_scaling(scan.data, pairs.intensity)
        return scaling.invert(tiles(network, scaling.apply(scan.data)))


@dataclass(frozen=True)
class AnyFactor(SameGrid):
    """A network for every factor: it is given a description of what the scan resolves (ours).

    It is the mean with the result of the scan mirrored along all axes: that is better, and cannot move anything to one
    side.
    """

    takes: ClassVar = ("factor", "spacing_mm", "align", "zero_filled", "flip")

    isotropic: Number  # greatest factor of all axes, or of two, that the network was trained on
    thick: Number  # greatest factor of a single axis

    def default_factor(self, scan: Volume, pairs: ObservationModel) -> Factor:
        """Thick axes, those over THICK times the finest spacing, come to that spacing; else the task's factor."""
        spacing = np.array(scan.spacing_mm)
        thick = spacing > THICK * spacing.min()
        if not thick.any():
            return super().default_factor(scan, pairs)
        return tuple(float(f) for f in np.where(thick, spacing / spacing.min(), 1))

    def on_grid(
        self,
        scan: Volume,
        network: torch.nn.Module,
        pairs: ObservationModel,
        reference: None,
        tiles: Tiles,
        factor: Factor | None = None,
        flip: bool = True,
        lr: Volume | None = None,
    ) -> Volume:
        """As ``SameGrid``; ``factor``: how much coarser than this grid the scan resolves, by default as the task.

        The network never sees wild voxels (``intensity.usual_range``) of ``lr``, the scan before it was interpolated (by
        default it was not): what these add to it is added to the result as interpolated.
        """
        calm = without_wild(scan, lr or scan)
        scaling = fit_scaling(calm.data, pairs.intensity)
        given = network_input(calm, None, pairs.intensity)
        facts = describe_degradation(given[0], factor or pairs.degradation().coarser)
        network = Conditioned(
            network, torch.from_numpy(facts).to(next(network.parameters()).device)
        )
        made = tiles(network, given)
        if flip:
            made += tiles(network, given[:, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
            made /= 2
        made = scaling.invert(made)
        return scan.with_data(made if calm is scan else made + (scan.data - calm.data))

    def content_warnings(self, scan: Volume, plan: Plan, request: Request) -> list[str]:
        """Factors beyond the training, few slices, smooth content."""
        found, greatest = [], max(plan.coarser)
        alone = sum(factor > 1 for factor in plan.coarser) == 1
        if greatest > (self.thick if alone else self.isotropic):
            found.append(
                f"a factor of {greatest:.3g}; this model was trained on up to {self.isotropic:g}, "
                f"or {self.thick:g} along one axis"
            )
        return found + content(scan, plan.finer, request.zero_filled or (1, 1, 1))


def _asked(scan: Volume, request: Request) -> Factor | None:
    """The factor per axis that a request names, if any."""
    factor, spacing, filled = request.factor, request.spacing_mm, request.zero_filled
    if factor is not None and spacing is not None:
        raise InputError("give a factor or a spacing, not both")
    if filled is not None and (
        len(filled) != 3 or not all(np.isfinite(f) and f >= 1 for f in filled)
    ):
        raise InputError(f"zero_filled: expected three numbers of 1 or more, got {tuple(filled)}")
    if spacing is not None:
        if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise InputError(
                f"spacing: expected three positive numbers of mm, got {tuple(spacing)}"
            )
        factor = tuple(old / new for old, new in zip(scan.spacing_mm, spacing, strict=True))
    elif factor is None and filled is not None:
        factor = (1, 1, 1)
    return None if factor is None else tuple(float(f) for f in factor)


def predict(
    scan: Volume,
    network: torch.nn.Module,
    pairs: ObservationModel,
    prediction: SameGrid,
    request: Request,
    *,
    plan: Plan | None = None,
    reference: Volume | None = None,
    max_memory_gb: float | None = None,
    progress: bool = False,
) -> Prediction:
    """What a network makes of a user's scan, with all that is to mind.

    Raises InputError for a constant scan, when a reference is missing or not wanted, too little memory, and as
    ``plan``.
    """
    plan = plan or prediction.plan(scan, network, pairs, request)
    check_reference(pairs, reference)
    tiles = _tiles(prediction, max_memory_gb, progress)
    seen = prediction.seen(scan, pairs, request)
    made = prediction.run(seen, network, pairs, plan, request, reference, tiles)
    return replace(
        made, warnings=prediction.warnings(scan, made.image, pairs, plan, request, reference)
    )


def predict_pair(
    pair: Pair,
    network: torch.nn.Module,
    pairs: ObservationModel,
    prediction: SameGrid,
    *,
    max_memory_gb: float | None = None,
    progress: bool = False,
) -> Volume:
    """What a network makes of a degraded scan, on the grid of the truth, in the units that it was taught.

    Raises InputError as ``predict``.
    """
    check_reference(pairs, pair.reference)
    return prediction.on_pair(
        pair, network, pairs, _tiles(prediction, max_memory_gb, progress)
    ).image


def _tiles(prediction: SameGrid, max_memory_gb: float | None, progress: bool) -> Tiles:
    budget = prediction.memory_gb if max_memory_gb is None else max_memory_gb
    return partial(run_tiled, max_memory_gb=budget, progress=progress)


def check_reference(pairs: ObservationModel, reference: Volume | None) -> None:
    """Raise InputError when a second contrast is missing or not wanted."""
    if bool(pairs.reference) != (reference is not None):
        wanted = f"a reference ({pairs.reference})" if pairs.reference else "no reference"
        raise InputError(f"this model takes {wanted}, got {'none' if reference is None else 'one'}")


def without_wild(on_grid: Volume, lr: Volume) -> Volume:
    """A scan on the output grid as a network may see it: the median in place of wild voxels and their neighbours.

    They (``usual_range``) are looked for in ``lr``, the scan before it was interpolated.
    Without any it is ``on_grid`` itself.
    """
    data = lr.data
    for _ in range(4):  # without the wildest, others of a hot slice are found wild
        held = np.clip(data, *usual_range(data))
        if np.array_equal(held, data):
            break
        near = ndimage.maximum_filter(held != data, 3)  # the dark end of a hot line is as wrong
        data = np.where(near, ndimage.median_filter(held, 3), data)
    if data is lr.data:
        return on_grid
    calm = lr.with_data(data)
    same = lr.shape == on_grid.shape and np.allclose(lr.affine, on_grid.affine)
    return calm if same else resample(calm, on_grid.shape, on_grid.affine)
