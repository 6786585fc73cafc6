"""SynthSR's prediction: scans of any grid through a U-Net that sees RAS axes of one spacing."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage

from srlib.core.parts import Length
from srlib.core.paths import InputError
from srlib.data.pairs import ObservationModel, Pair, bring
from srlib.inference.checks import header
from srlib.inference.prediction import Plan, Prediction, Request, SameGrid, Tiles
from srlib.scans.intensity import Scaling, fit_scaling
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume, coarse_grid, reorient, resample
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.slices import ISOTROPIC
from srlib.training.losses import uncertainty

CT_HU = (0.0, 80.0)  # code: the window of soft tissue
MULTIPLE = 32  # code: of the voxels per axis that the network sees
NEAR = 0.2  # relative difference from the spacing of the training that is let pass


@dataclass(frozen=True)
class Units:
    """What predictions come in, and what the network sees of the scans (code)."""

    scaling: Scaling | None = None  # of the network's output; None: that of the first scan
    low: float = -np.inf  # predictions are clipped ...
    high: float = np.inf  # ... to this range
    tops: tuple[float, float] = (
        1.0,
        1.0,
    )  # what the maxima of the first and of the second scan are brought to
    flip: bool = True  # the mean with what the network makes of the mirrored scan


_GREY = Scaling(0.0, 255.0)
OUTPUTS = {
    "scan": Units(),
    "unit": Units(_GREY, 0.0),
    "synthsr": Units(_GREY, 0.0, 128.0),
    "hyperfine": Units(low=0.0, tops=(3.0, 2.0), flip=False),
}


@dataclass(frozen=True)
class IsotropicSpacing(SameGrid):
    """SynthSR (Iglesias et al., 2021): RAS axes of one spacing; no factor, spacing or alignment is taken.

    The uncertainty is the scale b of a Laplace distribution, the mean of the two passes'.
    """

    takes: ClassVar = ("ct", "flip")
    choices: ClassVar = {"output": OUTPUTS}
    # a head of 256^3 voxels of 1 mm in one piece, as tiles with the U-Net's halo are hopeless
    memory_gb: ClassVar = 6.0

    generation: Generation  # as in the training: inputs, their reliability, the spline's order
    spacing_mm: Length
    output: str = "scan"  # units that predictions come in: key of OUTPUTS
    laplace: bool = False  # whether the network's second channel is an uncertainty

    @property
    def keeps_units(self) -> bool:
        """Whether the image is in the scan's own units and contrast."""
        return self.output == "scan" and self.generation.target == "input"

    @property
    def uncertain(self) -> bool:
        """Whether the network gives an uncertainty."""
        return self.laplace

    def plan(
        self, scan: Volume, network: torch.nn.Module, pairs: ObservationModel, request: Request
    ) -> Plan:
        """The grid of the spacing; InputError for what this prediction does not take."""
        refused = [name for name in request.given() if name not in self.takes]
        if refused:
            raise InputError(
                f"this model gives scans of {self.spacing_mm:g} mm along all axes; leave {refused[0]} out"
            )
        finer = tuple(float(mm / self.spacing_mm) for mm in scan.spacing_mm)
        return Plan(finer, finer, f"{self.spacing_mm:g} mm")

    def seen(self, scan: Volume, pairs: ObservationModel, request: Request) -> Volume:
        """The scan as the network knows intensities."""
        if request.ct:
            return scan.with_data(np.clip(scan.data, *CT_HU))
        return super().seen(scan, pairs, request)

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
        """The image, and its uncertainty where the model gives one, on the grid of ``isotropic``."""
        through = partial(self._through, network=network, tiles=tiles, flip=request.flip)
        return self._predict(scan, reference, through)

    def on_pair(
        self, pair: Pair, network: torch.nn.Module, pairs: ObservationModel, tiles: Tiles
    ) -> Prediction:
        """The image on the grid of the truth, as ``space.resample_to`` brings it there."""
        through = partial(self._through, network=network, tiles=tiles, flip=True)
        made = self._predict(pair.lr, pair.reference, through)
        return Prediction(resample_to(made.image, pair.hr))

    def _predict(self, scan: Volume, reference: Volume | None, through: partial) -> Prediction:
        generation, units = self.generation, OUTPUTS[self.output]
        if generation.target == "classes":
            raise InputError(
                "this model tells classes of tissue apart and gives no image; choose another one"
            )
        scans = [volume for volume in (scan, reference) if volume is not None]
        grid = isotropic(scan, self.spacing_mm, generation.order)
        channels, scalings = [], []
        for given, top in zip(scans, units.tops, strict=False):
            image = grid if given is scan else bring(given, grid, order=generation.order)
            fitted = fit_scaling(image.data)
            scalings.append(Scaling(fitted.offset, fitted.scale / top))
            channels.append(scalings[-1].apply(image.data))
            if generation.reliability:
                channels.append(reliability(given, grid))
        margins = [((-n % MULTIPLE) // 2, (-n % MULTIPLE + 1) // 2) for n in grid.shape]
        made = through(np.pad(np.stack(channels), [(0, 0), *margins]))
        inner = [
            slice(before, before + n) for (before, _), n in zip(margins, grid.shape, strict=True)
        ]
        made, scaling = made[(slice(None), *inner)], units.scaling or scalings[0]
        image = grid.with_data(np.clip(scaling.invert(made[0]), units.low, units.high))
        b = grid.with_data(made[1] * np.float32(scaling.scale)) if self.laplace else None
        return Prediction(image, b)

    def _through(
        self, channels: np.ndarray, network: torch.nn.Module, tiles: Tiles, flip: bool
    ) -> np.ndarray:
        """What the network makes of its input, (C, X, Y, Z); the mean with that of the mirrored one."""

        def once(x: np.ndarray) -> np.ndarray:
            made = tiles(network, x).reshape(-1, *x.shape[1:])
            if self.laplace:
                made[1:] = uncertainty(torch.from_numpy(made)[None])[0].numpy()
            return made

        made = once(channels)
        if flip and OUTPUTS[self.output].flip:
            made += once(channels[:, ::-1])[:, ::-1]
            made /= 2
        return made

    def header_warnings(
        self, scan: Volume, pairs: ObservationModel, reference: Volume | None
    ) -> list[str]:
        """What looks wrong in the headers, or lies beyond what the model was trained on."""
        found, named = [], {"the scan": scan, "the reference": reference}
        for (which, volume), trained in zip(
            named.items(), (*self.generation.inputs, None), strict=False
        ):
            if volume is not None:
                found += header(volume, which) + self._beyond(volume, which, trained)
        return found

    def _beyond(self, volume: Volume, which: str, trained: Acquisition | None) -> list[str]:
        if trained is None:
            return []
        finest, spacing = self.spacing_mm, reorient(volume).spacing_mm
        seen = np.maximum(spacing, finest)
        if trained.random_mm is not None:
            beyond, known = (
                (seen > trained.random_mm * (1 + ISOTROPIC)).any(),
                f"{finest:g} to {trained.random_mm:g}",
            )
        else:
            wanted = np.maximum(trained.spacing_mm, finest)
            beyond, known = (
                (abs(seen / wanted - 1) > NEAR).any(),
                " x ".join(f"{v:g}" for v in trained.spacing_mm),
            )
        if beyond:
            shown = " x ".join(f"{v:.4g}" for v in spacing)
            return [
                f"{which} has {shown} mm along R, A and S; this model was trained on {known} mm"
            ]
        if which == "the scan" and (seen < finest * (1 + ISOTROPIC)).all():
            return [
                f"{which} already has {finest:g} mm or less along all axes: no resolution to gain"
            ]
        return []


def isotropic(scan: Volume, spacing_mm: float, order: int = 1) -> Volume:
    """A scan on the grid that the network sees: its own axes, permuted and flipped to RAS, of one spacing (code).

    Spline interpolation that keeps the field of view; beyond the outermost centres the edge is repeated, or mirrored
    for orders above 1. Along axes that are not coarser, a blur with a sigma of a quarter of the new voxel goes before.
    """
    ratio = np.divide(spacing_mm, scan.spacing_mm)
    blurred = ndimage.gaussian_filter(scan.data, np.where(ratio > 1 - 1e-4, ratio / 4, 0))
    grid = coarse_grid(scan, ratio)
    return reorient(
        resample(
            scan.with_data(blurred), *grid, order=order, mode="nearest" if order == 1 else "mirror"
        )
    )


def reliability(scan: Volume, grid: Volume) -> np.ndarray:
    """Where a grid's voxels were measured, float32 (X, Y, Z): 1 in the scan's slices, 0 from a voxel's distance on.

    The product over the scan's axes, but for those not coarser than the grid.
    """
    to_slices, spacing = np.linalg.inv(scan.affine) @ grid.affine, grid.spacing_mm[0]
    x, y, z = np.ogrid[tuple(slice(n) for n in grid.shape)]
    measured = np.ones(grid.shape, np.float32)
    for (a, b, c, first), n, mm in zip(to_slices, scan.shape, scan.spacing_mm, strict=False):
        if mm > spacing * (1 + ISOTROPIC):
            place = a * x + b * y + c * z + first
            place -= np.clip(np.rint(place), 0, n - 1)
            measured *= np.maximum(1 - np.abs(place) * (mm / spacing), 0)
    return measured
