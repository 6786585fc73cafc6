"""Predict with SynthSR: a U-Net that sees scans of any grid on RAS axes of one spacing."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from srlib.core.parts import Length
from srlib.core.paths import InputError
from srlib.data.pairs import Pair, bring
from srlib.inference.checks import header
from srlib.inference.prediction import Plan, Prediction, SameGrid, Setup
from srlib.scans.intensity import Scaling, fit_scaling
from srlib.scans.separable import blur
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume, coarse_grid, reorient, resample
from srlib.synthesis.settings import Generation
from srlib.synthesis.slices import ISOTROPIC, measured
from srlib.training.losses import uncertainty

CT_HU = (0.0, 80.0)  # code: the window of soft tissue
MULTIPLE = 32  # code: of the voxels per axis that the network sees
NEAR = 0.2  # tolerated relative difference from the spacing of the training


@dataclass(frozen=True)
class Units:
    """The units of predictions, and of the scans that the network sees (code)."""

    scaling: Scaling | None = None  # of the network's output; None: that of the first scan
    low: float = -np.inf  # predictions are clipped ...
    high: float = np.inf  # ... to this range
    tops: tuple[float, float] = (1.0, 1.0)  # maxima of the first and the second scan
    flip: bool = True  # the mean with the result of the mirrored scan


_GREY = Scaling(0.0, 255.0)
OUTPUTS = {
    "scan": Units(),
    "unit": Units(_GREY, 0.0),
    "synthsr": Units(_GREY, 0.0, 128.0),
    "hyperfine": Units(low=0.0, tops=(3.0, 2.0), flip=False),
}


@dataclass(frozen=True)
class IsotropicSpacing(SameGrid):
    """SynthSR (Iglesias et al., 2021): RAS axes of one spacing, which no request changes.

    The uncertainty is the scale b of a Laplace distribution, the mean of the two passes.
    """

    takes: ClassVar = ("ct", "flip")
    choices: ClassVar = {"output": OUTPUTS}
    # a head of 256^3 voxels of 1 mm in one piece, as tiles with the U-Net's halo are hopeless
    memory_gb: ClassVar = 6.0

    generation: Generation  # as in the training: inputs, their reliability, the spline's order
    spacing_mm: Length
    output: str = "scan"  # units of the predictions: key of OUTPUTS
    laplace: bool = False  # whether the network's second channel is an uncertainty

    @property
    def keeps_units(self) -> bool:
        """Whether the image is in the scan's own units and contrast."""
        return self.output == "scan" and self.generation.target == "input"

    @property
    def uncertain(self) -> bool:
        """Whether the network gives an uncertainty."""
        return self.laplace

    def plan(self, scan: Volume, setup: Setup) -> Plan:
        """The grid of the spacing; InputError for a setting that this prediction does not take."""
        self.check_request(setup.request)
        finer = tuple(mm / self.spacing_mm for mm in scan.spacing_mm)
        return Plan(finer, finer, f"{self.spacing_mm:g} mm")

    def seen(self, scan: Volume, setup: Setup) -> Volume:
        """The scan in the intensities of the training."""
        if setup.request.ct:
            return scan.with_data(np.clip(scan.data, *CT_HU))
        return super().seen(scan, setup)

    def on_pair(self, pair: Pair, setup: Setup) -> Volume:
        """The image on the grid of the truth, as ``space.resample_to`` brings it there.

        One in units of its own, of a scan from 0 to 1, is brought to the truth's range.
        """
        image, own = self.run(pair.lr, setup).image, OUTPUTS[self.output].scaling
        if own:
            image = image.with_data(fit_scaling(pair.hr.data).invert(own.apply(image.data)))
        return resample_to(image, pair.hr)

    def run(self, scan: Volume, setup: Setup, plan: Plan | None = None) -> Prediction:
        """The image, and its uncertainty where the model gives one, on the grid of ``isotropic``.

        The uncertainty is at most the range of the intensities: far from its training a network's
        has no bound. Raises InputError for a network of tissue classes.
        """
        generation, units = self.generation, OUTPUTS[self.output]
        if generation.target == "classes":
            raise InputError("this model segments tissue and gives no image; choose another one")
        grid = isotropic(scan, self.spacing_mm, generation.order)
        images, reference = [(scan, grid)], setup.reference
        if reference:
            images.append((reference, bring(reference, grid, order=generation.order)))
        channels, scalings = [], []
        for (given, image), top in zip(images, units.tops, strict=False):
            fitted = fit_scaling(image.data)
            scalings.append(Scaling(fitted.offset, fitted.scale / top))
            channels.append(scalings[-1].apply(image.data))
            if generation.reliability:
                channels.append(reliability(given, grid, generation.maps))
        margins = [((-n % MULTIPLE) // 2, (-n % MULTIPLE + 1) // 2) for n in grid.shape]
        made = self._through(np.pad(np.stack(channels), [(0, 0), *margins]), setup)
        inner = [slice(low, low + n) for (low, _), n in zip(margins, grid.shape, strict=True)]
        made, scaling = made[(slice(None), *inner)], units.scaling or scalings[0]
        image = grid.with_data(np.clip(scaling.invert(made[0]), units.low, units.high))
        if not self.laplace:
            return Prediction(image)
        return Prediction(image, grid.with_data(made[1].clip(max=1) * np.float32(scaling.scale)))

    def _through(self, channels, setup):
        """The network's output (K, X, Y, Z), the mean with that of the mirrored input."""

        def once(x):
            made = setup.run(x).reshape(-1, *x.shape[1:])
            if self.laplace:
                made[1:] = uncertainty(torch.from_numpy(made)[None])[0].numpy()
            return made

        made = once(channels)
        if setup.request.flip and OUTPUTS[self.output].flip:
            made += once(channels[:, ::-1])[:, ::-1]
            made /= 2
        return made

    def header_warnings(self, scan: Volume, setup: Setup) -> list[str]:
        """What looks wrong in the headers, or lies beyond the training."""
        found, inputs = [], self.generation.inputs
        for which, volume, trained in (
            ("the scan", scan, inputs[0]),
            ("the reference", setup.reference, inputs[-1]),
        ):
            if volume:
                found += header(volume, which) + self._beyond(volume, which, trained)
        return found

    def _beyond(self, volume, which, trained):
        """A line for a scan of a spacing that the training lacks, or with nothing to gain."""
        finest, spacing = self.spacing_mm, reorient(volume).spacing_mm
        seen, most = np.maximum(spacing, finest), trained.random_mm
        if most is not None:
            beyond = (seen > most * (1 + ISOTROPIC)).any()
            known = f"{finest:g} to {most:g}"
        else:
            beyond = (abs(seen / np.maximum(trained.spacing_mm, finest) - 1) > NEAR).any()
            known = " x ".join(f"{v:g}" for v in trained.spacing_mm)
        if beyond:
            shown = " x ".join(f"{v:.4g}" for v in spacing)
            axes = f"{which} has {shown} mm along R, A and S"
            return [f"{axes}; this model was trained on {known} mm"]
        if which == "the scan" and (seen < finest * (1 + ISOTROPIC)).all():
            return [
                f"{which} already has {finest:g} mm or less along all axes: no resolution to gain"
            ]
        return []


def isotropic(scan: Volume, spacing_mm: float, order: int = 1) -> Volume:
    """The scan on the grid that the network sees: its own axes, flipped to RAS, of one spacing.

    Spline interpolation keeps the field of view; beyond the outermost centres the edge is repeated,
    or mirrored for orders above 1. A blur with a sigma of a quarter of the new voxel goes before,
    along axes that are not coarser (code).
    """
    ratio = np.divide(spacing_mm, scan.spacing_mm)
    blurred = blur(scan.data, np.where(ratio > 1 - 1e-4, ratio / 4, 0))
    grid = coarse_grid(scan, ratio)
    mode = "nearest" if order == 1 else "mirror"
    return reorient(resample(scan.with_data(blurred), *grid, order=order, mode=mode))


def reliability(scan: Volume, grid: Volume, kind: str = "reliability") -> np.ndarray:
    """Where a grid's voxels were measured: float32 (X, Y, Z), as ``slices.measured``.

    The scan's axes that are coarser than the grid count.
    """
    to_slices, spacing = np.linalg.inv(scan.affine) @ grid.affine, grid.spacing_mm[0]
    x, y, z = np.ogrid[tuple(map(slice, grid.shape))]
    gaps = [np.zeros(grid.shape)]
    for (a, b, c, first), n, mm in zip(to_slices, scan.shape, scan.spacing_mm, strict=False):
        if mm > spacing * (1 + ISOTROPIC):
            place = a * x + b * y + c * z + first
            place -= np.clip(np.rint(place), 0, n - 1)
            gaps.append(np.abs(place) * (mm / spacing))
    return measured(gaps, spacing, kind)
