"""Apply a trained network to a whole scan and place the result by the affine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from srlib.core.parts import Part
from srlib.core.paths import InputError
from srlib.data.pairs import ObservationModel, Pair, bring, network_input
from srlib.degradations.kernels import Factor, Kernel, told
from srlib.degradations.resolution import Degradation
from srlib.inference.checks import findings, header, unlike
from srlib.inference.consistency import consistent
from srlib.inference.tiles import Callee, run_tiled
from srlib.scans.intensity import HU_WINDOW, Scaling, finite, fit_scaling, wild
from srlib.scans.volume import Volume, fine_grid, resample, to_window


@dataclass(frozen=True)
class Request:
    """What a user asks of a prediction.

    ``factor`` or a target ``spacing_mm``, per axis. ``zero_filled``: how much the scanner
    interpolated already, per axis (its matrix over the measured one). ``align``: what stays, the
    field of view (``center``) or the outermost voxel centres (``corners``). ``ct`` clips to the HU
    of soft tissue. ``flip``: the mean with the result of the mirrored scan. InputError unless
    factor, spacing and zero-filling are three positive numbers.
    """

    factor: Sequence[float] | None = None
    spacing_mm: Sequence[float] | None = None
    zero_filled: Sequence[float] | None = None
    align: str = "center"
    ct: bool = False
    flip: bool = True
    kernel: str | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "spacing_mm", "zero_filled"):
            value = getattr(self, name)
            if value is None:
                continue
            if np.shape(value) != (3,) or not all(0 < v < np.inf for v in value):
                raise InputError(f"{name}: expected three positive numbers, got {value}")
            object.__setattr__(self, name, tuple(map(float, value)))
        if self.factor and self.spacing_mm:
            raise InputError("give a factor or a spacing, not both")

    def given(self) -> list[str]:
        """The names of all values that differ from the default."""
        return [name for name, value in vars(self).items() if value != getattr(Request, name)]


@dataclass(frozen=True)
class Plan:
    """What a prediction will make of a scan."""

    finer: Factor  # how much finer the output's grid is, per axis of the scan
    coarser: Factor  # how much coarser than that grid the scan resolves
    made: str  # in words


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of a network; ``warnings`` say what to mind before trusting it, a line each."""

    image: Volume
    uncertainty: Volume | None = None  # the scale b of a Laplace distribution about each voxel
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Setup:
    """What a prediction needs beside the scan: the network, how it sees scans, the request."""

    network: Callee
    pairs: ObservationModel
    request: Request = Request()
    reference: Volume | None = None  # the second contrast, anywhere in the same world
    max_memory_gb: float | None = None  # as run_tiled
    progress: bool = False
    precision: str = "32"  # or "bf16"

    def run(self, data: np.ndarray) -> np.ndarray:
        """The network over a whole array, as ``run_tiled``."""
        return run_tiled(self.network, data, self.max_memory_gb, self.progress, self.precision)

    def check_reference(self) -> None:
        """Raise InputError when a second contrast is missing or not wanted."""
        name, given = self.pairs.reference, self.reference is not None
        if bool(name) != given:
            wanted = f"a reference ({name})" if name else "no reference"
            raise InputError(f"this model takes {wanted}, got {'one' if given else 'none'}")


@dataclass(frozen=True)
class SameGrid(Part):
    """Interpolation by cubic splines, then a network that stays on its grid."""

    takes: ClassVar[tuple[str, ...]] = ("factor", "spacing_mm", "align", "kernel")  # of a request
    coarse: ClassVar = False  # whether the network sees the low-resolution grid
    memory_gb: ClassVar = 3.0  # budget of the tiles, by default
    keeps_units: ClassVar = True  # whether the image is in the scan's own units
    uncertain: ClassVar = False  # whether the network gives an uncertainty

    def accepts(self, pairs: ObservationModel, degradation: Degradation) -> bool:
        """Whether the network can be tried on scans of another degradation than its own."""
        return True

    def default_factor(self, scan: Volume, pairs: ObservationModel) -> Factor:
        """How much finer a scan becomes by default: the factor of the network's task."""
        return pairs.degradation().coarser

    def check_request(self, request: Request) -> None:
        """Raise InputError for a setting that this prediction does not take."""
        for name in request.given():
            if name not in self.takes:
                raise InputError(f"this model takes no {name}; it takes {', '.join(self.takes)}")

    def plan(self, scan: Volume, setup: Setup) -> Plan:
        """What will be made of a scan, in whole voxels over its field of view.

        Raises InputError for a setting that this prediction does not take and a factor below 1.
        """
        request = setup.request
        self.check_request(request)
        filled = request.zero_filled or (1, 1, 1)
        if request.spacing_mm:
            factor = tuple(np.divide(scan.spacing_mm, request.spacing_mm).tolist())
        elif request.zero_filled:
            factor = request.factor or (1, 1, 1)
        else:
            factor = request.factor or self.default_factor(scan, setup.pairs)
        if min(*factor, *filled) < 0.999:
            raise InputError(
                f"factor and zero_filled must be 1 or more per axis, got {factor} and {filled}; "
                f"the scan's spacing is {scan.spacing_mm} mm"
            )
        # whole voxels over the same field of view: the spacing gives way by up to half a voxel
        finer = tuple(max(round(n * f), n) / n for n, f in zip(scan.shape, factor, strict=True))
        coarser = tuple(f * z for f, z in zip(finer, filled, strict=True))
        kernel = self.kernel(self.seen(scan, setup), setup, coarser, np.allclose(finer, 1))
        words = "x" + " ".join(f"{f:.4g}" for f in finer) + (f", kernel {kernel}" if kernel else "")
        return Plan(finer, coarser, words)

    def kernel(self, scan: Volume, setup: Setup, coarser: Factor, same_grid: bool) -> Kernel | None:
        """What the scan's voxels measured, where it is told; ``same_grid`` is that of the output."""
        kernel = setup.request.kernel
        return None if kernel is None else told(kernel, coarser)

    def predict(self, scan: Volume, setup: Setup, plan: Plan | None = None) -> Prediction:
        """The network's result for a user's scan, with warnings.

        Raises InputError for a constant scan, a scan or a result that is not finite, a missing or
        unwanted reference, too little memory, and as ``plan``.
        """
        finite(scan.data)
        plan = plan or self.plan(scan, setup)
        setup.check_reference()
        made = self.run(self.seen(scan, setup), setup, plan)
        if not np.isfinite(made.image.data).all():
            raise InputError(
                "the result is not finite; rescale the scan's intensities, they are too large or "
                "too small"
            )
        return replace(made, warnings=self.warnings(scan, made.image, setup, plan))

    def seen(self, scan: Volume, setup: Setup) -> Volume:
        """The scan in the intensities of the training; CT in HU is clipped to its window."""
        return to_window(scan, setup.pairs.intensity, reconstructed=True)

    def run(self, scan: Volume, setup: Setup, plan: Plan) -> Prediction:
        """The network's result for a scan on its own grid."""
        same = np.allclose(plan.finer, 1)
        grid = fine_grid(scan, plan.finer, align=setup.request.align)
        order = setup.pairs.degradation().order_up
        on_grid = scan if same else resample(scan, *grid, order=order)
        return Prediction(self.on_grid(on_grid, setup, plan.coarser, scan))

    def on_pair(self, pair: Pair, setup: Setup) -> Volume:
        """The network's result for a degraded scan, on the grid of the truth."""
        return self.on_grid(pair.on_grid, setup, pair.factor, pair.lr)

    def on_grid(self, scan: Volume, setup: Setup, factor: Factor | None, lr: Volume) -> Volume:
        """The network's result for a scan on the output grid, in the scan's own units.

        ``factor``: how much coarser than this grid the scan resolves. ``lr``: the scan before it
        was interpolated.
        """
        reference = setup.reference and bring(setup.reference, scan)
        scaling = self.scaling(scan, lr, setup.pairs.intensity)
        given = network_input(scan, reference, setup.pairs.intensity)
        given[0] = scaling.apply(scan.data)
        made = scan.with_data(scaling.invert(setup.run(given)))
        return self.consistent(made, scan, lr, setup, factor)

    def consistent(
        self, made: Volume, on_grid: Volume, lr: Volume, setup: Setup, factor: Factor | None
    ) -> Volume:
        """The result made consistent with the scan where its kernel and ``factor`` are known."""
        kernel = factor and self.kernel(lr, setup, factor, lr.shape == on_grid.shape)
        return consistent(made, on_grid, lr, kernel) if kernel else made

    def scaling(self, scan: Volume, lr: Volume, rule: str) -> Scaling:
        """The scaling of the network's input; ``lr`` is the scan before it was interpolated."""
        return fit_scaling(scan.data, rule)

    def warnings(self, scan: Volume, made: Volume, setup: Setup, plan: Plan) -> list[str]:
        """What to mind before trusting a result: headers, intensities, slices; a line each."""
        seen, reference = self.seen(scan, setup), setup.reference
        found = self.header_warnings(scan, setup) + wild(seen.data)
        if setup.pairs.contrast != "image" and not setup.pairs.intensity.startswith("hu"):
            found += unlike(seen)
        if reference:
            found += [f"the reference: {line}" for line in wild(reference.data)]
        clipped = np.count_nonzero(seen.data != scan.data) / scan.data.size
        if clipped and not setup.request.ct:
            found.append(
                f"{100 * clipped:.3g} % of the voxels lay outside {HU_WINDOW[0]:g} to "
                f"{HU_WINDOW[1]:g} HU, the window that this model knows, and were clipped"
            )
        found += self.content_warnings(scan, setup, plan)
        return found + findings(scan, made, plan.finer)

    def header_warnings(self, scan: Volume, setup: Setup) -> list[str]:
        """What looks wrong in the headers; single images may show any part of the body."""
        if setup.pairs.contrast == "image":
            return []
        reference = setup.reference
        return header(scan) + (header(reference, "the reference") if reference else [])

    def content_warnings(self, scan: Volume, setup: Setup, plan: Plan) -> list[str]:
        """What in the scan is unlike the training."""
        return []


@dataclass(frozen=True)
class AboveMinimum(SameGrid):
    """As ``SameGrid``, scaled before it is interpolated, and nowhere below the scan's minimum.

    So do the test scripts of SRReCNN3D and SRCNN3D (Pham et al., CMIG 2019 and ISBI 2017).
    """

    def on_grid(self, scan: Volume, setup: Setup, factor: Factor | None, lr: Volume) -> Volume:
        """As ``SameGrid``, clipped below."""
        made = super().on_grid(scan, setup, factor, lr)
        return made.with_data(np.maximum(made.data, lr.data.min()))

    def scaling(self, scan: Volume, lr: Volume, rule: str) -> Scaling:
        """The scaling of ``lr``."""
        return fit_scaling(lr.data, rule)


@dataclass(frozen=True)
class CoarseToFine(SameGrid):
    """A network from the low-resolution grid to the true one, as much finer as its task says."""

    takes: ClassVar = ("factor", "spacing_mm", "align")
    coarse: ClassVar = True

    def accepts(self, pairs: ObservationModel, degradation: Degradation) -> bool:
        """Whether the other degradation has the network's factor."""
        return pairs.degradation().coarser == degradation.coarser

    def plan(self, scan: Volume, setup: Setup) -> Plan:
        """As ``SameGrid``; InputError for another factor or alignment than the network's."""
        plan, factor = super().plan(scan, setup), setup.pairs.degradation().coarser
        if "align" in setup.request.given() and setup.pairs.degradation().align == "first":
            raise InputError("this model takes no align: voxel 0 keeps its place")
        if not np.allclose(plan.finer, factor, rtol=1e-3):
            raise InputError(
                f"this model makes scans {factor} times finer, got a factor of {plan.finer}"
            )
        return plan

    def run(self, scan: Volume, setup: Setup, plan: Plan) -> Prediction:
        """The network's result; where scan lines were left out, voxel 0 stays where it is."""
        degradation = setup.pairs.degradation()
        align = "first" if degradation.align == "first" else setup.request.align
        affine = fine_grid(scan, degradation.coarser, align=align)[1]
        return Prediction(Volume(self._finer(scan, setup), affine))

    def on_pair(self, pair: Pair, setup: Setup) -> Volume:
        """The network's result for the low-resolution scan, cut to the grid of the truth."""
        inside = tuple(map(slice, pair.hr.shape))
        return pair.hr.with_data(self._finer(pair.lr, setup)[inside])

    def _finer(self, scan, setup):
        """The network's output for a low-resolution scan, in the scan's units."""
        scaling = fit_scaling(scan.data, setup.pairs.intensity)
        return scaling.invert(setup.run(scaling.apply(scan.data)))
