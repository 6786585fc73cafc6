"""SynthSR's prediction: scans of any grid through a U-Net that sees RAS axes and one spacing; what it is doubtful for."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from srlib.checks import header
from srlib.data import bring
from srlib.experiments import Experiment
from srlib.losses import uncertainty
from srlib.paths import InputError
from srlib.slices import ISOTROPIC
from srlib.tiled import run_tiled
from srlib.volume import Scaling, Volume, coarse_grid, fit_scaling, reorient, resample

CT_HU = (0.0, 80.0)  # code: the window of soft tissue
MAX_MEMORY_GB = 6.0  # a head of 256^3 voxels of 1 mm in one piece, as tiles with the U-Net's halo are hopeless
MULTIPLE = 32  # code: of the voxels per axis that the network sees
NEAR = 0.2  # relative difference from the spacing of the training that is let pass


@dataclass(frozen=True)
class Units:
    """What predictions come in, and what the network sees of the scans (code)."""

    scaling: Scaling | None = None  # of the network's output; None: that of the first scan
    low: float = -np.inf  # predictions are clipped ...
    high: float = np.inf  # ... to this range
    tops: tuple[float, float] = (1.0, 1.0)  # what the maxima of the first and of the second scan are brought to
    flip: bool = True  # the mean with what the network makes of the mirrored scan


_GREY = Scaling(0.0, 255.0)
OUTPUTS = {
    "scan": Units(),
    "unit": Units(_GREY, 0.0),
    "synthsr": Units(_GREY, 0.0, 128.0),
    "hyperfine": Units(low=0.0, tops=(3.0, 2.0), flip=False),
}


def synthesise(
    network: torch.nn.Module,
    experiment: Experiment,
    scan: Volume,
    reference: Volume | None = None,
    ct: bool = False,
    flip: bool = True,
    max_memory_gb: float | None = None,
    progress: bool = False,
) -> tuple[Volume, Volume | None]:
    """The image, and its uncertainty where the model gives one, in ``experiment.output`` units (Iglesias et al., 2021).

    Both lie on the grid of ``isotropic``. ``reference`` is a second scan in the same world, brought by its affine;
    ``ct`` clips the scan to the HU of soft tissue; without ``flip`` one pass is made. The uncertainty is the scale b of
    a Laplace distribution, the mean of the two passes'. Raises InputError for a constant scan, too many or few scans,
    a model that gives no image, and too little memory (MAX_MEMORY_GB when None).
    """
    generation, units = experiment.generation, OUTPUTS[experiment.output]
    scans = [v for v in (scan, reference) if v is not None]
    if len(scans) != len(generation.inputs):
        raise InputError(
            f"{experiment.name} takes {len(generation.inputs)} scans ({', '.join(a.prior for a in generation.inputs)}), "
            f"got {len(scans)}; the second one is the reference"
        )
    if generation.target == "classes":
        raise InputError(f"{experiment.name} tells classes of tissue apart and gives no image; choose another model")
    grid = isotropic(
        scan.with_data(np.clip(scan.data, *CT_HU)) if ct else scan, experiment.spacing_mm, generation.order
    )
    channels, scalings = [], []
    for given, top in zip(scans, units.tops, strict=False):
        image = grid if given is scan else bring(given, grid, generation.order)
        fitted = fit_scaling(image.data)
        scalings.append(Scaling(fitted.offset, fitted.scale / top))
        channels.append(scalings[-1].apply(image.data))
        if generation.reliability:
            channels.append(reliability(given, grid))
    margins = [((-n % MULTIPLE) // 2, (-n % MULTIPLE + 1) // 2) for n in grid.shape]
    channels = np.pad(np.stack(channels), [(0, 0), *margins])
    laplace, allowed = experiment.loss == "laplace", MAX_MEMORY_GB if max_memory_gb is None else max_memory_gb

    def through(x: np.ndarray) -> np.ndarray:
        y = run_tiled(network, x, allowed, progress).reshape(-1, *x.shape[1:])
        if laplace:
            y[1:] = uncertainty(torch.from_numpy(y)[None])[0].numpy()
        return y

    y = through(channels)
    if flip and units.flip:
        y += through(channels[:, ::-1])[:, ::-1]
        y /= 2
    y = y[(slice(None), *(slice(before, before + n) for (before, _), n in zip(margins, grid.shape, strict=True)))]
    scaling = units.scaling or scalings[0]
    image = grid.with_data(np.clip(scaling.invert(y[0]), units.low, units.high))
    return image, grid.with_data(y[1] * np.float32(scaling.scale)) if laplace else None


def isotropic(scan: Volume, spacing_mm: float, order: int = 1) -> Volume:
    """A scan on the grid that the network sees: its own axes, permuted and flipped to RAS, of one spacing (code).

    Spline interpolation that keeps the field of view; beyond the outermost centres the edge is repeated, or mirrored
    for orders above 1. Along axes that are not coarser, a blur with a sigma of a quarter of the new voxel goes before.
    """
    ratio = np.divide(spacing_mm, scan.spacing_mm)
    blurred = ndimage.gaussian_filter(scan.data, np.where(ratio > 1 - 1e-4, ratio / 4, 0))
    grid = coarse_grid(scan.shape, scan.affine, ratio)
    return reorient(resample(scan.with_data(blurred), *grid, order=order, mode="nearest" if order == 1 else "mirror"))


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


def doubts(scan: Volume, experiment: Experiment, reference: Volume | None = None) -> list[str]:
    """What looks wrong in the headers of a model's scans, or lies beyond what it was trained on; a line each."""
    found = []
    if experiment.contrast == "image":  # slices, of any part of the body
        return found
    inputs = experiment.generation.inputs if experiment.spacing_mm else (None, None)
    for volume, trained in zip((scan, reference), (*inputs, None), strict=False):
        if volume is None:
            continue
        which = "the scan" if volume is scan else "the reference"
        found += header(volume, which)
        if trained is None:
            continue
        finest = experiment.spacing_mm
        seen = np.maximum(reorient(volume).spacing_mm, finest)
        if trained.random_mm is not None:
            beyond, range_ = (seen > trained.random_mm * (1 + ISOTROPIC)).any(), f"{finest:g} to {trained.random_mm:g}"
        else:
            wanted = np.maximum(trained.spacing_mm, finest)
            beyond, range_ = (abs(seen / wanted - 1) > NEAR).any(), " x ".join(f"{v:g}" for v in trained.spacing_mm)
        if beyond:
            spacing = " x ".join(f"{v:.4g}" for v in reorient(volume).spacing_mm)
            found.append(f"{which} has {spacing} mm along R, A and S; {experiment.name} was trained on {range_} mm")
        elif volume is scan and (seen < finest * (1 + ISOTROPIC)).all():
            found.append(f"{which} already has {finest:g} mm or less along all axes: no resolution to gain")
    return found
