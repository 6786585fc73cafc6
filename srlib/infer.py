"""Whole scans through a trained network, placed by the affine."""

import functools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from srlib.checks import content, findings, warn, wild
from srlib.data import Pair, bring, degradation_of, network_input
from srlib.device import choose_device, layout
from srlib.experiments import Experiment
from srlib.images import load
from srlib.mixture import told, without_wild
from srlib.models.robust import Told
from srlib.paths import InputError, published_file, results_root, shipped_file
from srlib.published import PUBLISHED, load_published
from srlib.space import resample_to
from srlib.synthesis import CT_HU, doubts, synthesise
from srlib.tiled import run_tiled
from srlib.volume import HU_WINDOW, Volume, fine_grid, fit_scaling, resample, to_window
from srlib.weights import load_network

DEFAULT = "robust"  # the shipped weights that are used when none are named
BEST = ("paper", "study", "quick", "smoke")  # profiles, the one whose runs are taken first
THICK = 1.2  # times the finest spacing: from there on an axis counts as thick


@dataclass(frozen=True, eq=False)
class Model:
    """A network in evaluation mode with the experiment that it was trained for."""

    network: torch.nn.Module
    experiment: Experiment

    @property
    def factor(self) -> tuple[float, float, float]:
        """How much finer the output grid is than the input's; 1 where the task stays on its grid."""
        return degradation_of(self.experiment.task, self.experiment.task_settings).coarser


def find_weights(name: str | Path) -> Path:
    """A weights file, from its path or its run's folder, the name of shipped or published weights, a run_id, or an experiment.

    Of an experiment's runs in ``results/`` it is the best: ``paper`` before ``study``, ``quick`` and ``smoke``, then the
    newest. A line on stderr says so where there is a choice. Raises InputError when there is nothing of that name; what
    looks like a path is nothing else.
    """
    name, path = str(name), Path(name).expanduser()
    inside = path / "model.safetensors"
    if path.is_file():
        return path
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        if inside.is_file():
            return inside
        wanted = "has no model.safetensors; give the folder of a finished run" if path.is_dir() else "no such file"
        raise InputError(f"{name}: {wanted}, or a name without a path: shipped, published, an experiment or a run_id")
    runs = []  # of a profile's rank, time and path
    for file in results_root().glob("*/checkpoints/*/model.safetensors"):
        parts = re.fullmatch(rf"(.+?)-({'|'.join(BEST)})-s-?\d+-.+", file.parent.name)
        if name in (file.parent.name, parts and parts[1]):
            runs.append((-BEST.index(parts[2]) if parts else 0, file.stat().st_mtime, str(file)))
    places = [Path(file) for *_, file in sorted(runs, reverse=True)]
    given = shipped_file(name) or published_file(name)
    found = [p for p in (given, inside.is_file() and inside, *places) if p]
    if not found:
        raise InputError(
            f"{name}: no such weights; give a .safetensors file, a published one, or an experiment that was trained here"
        )
    if len(found) > 1:
        _say(f"{name}: taking {found[0]}; for other weights of this name give a path: {', '.join(map(str, found[1:]))}")
    return found[0]


@functools.cache
def _say(line: str) -> None:  # once: weights are looked for several times
    print(line, file=sys.stderr)


def load_model(weights: str | Path = DEFAULT, device: str = "auto") -> Model:
    """A model from our ``.safetensors`` or from a file the original authors published; nothing in it is run.

    ``weights`` is a path or a name, as in ``find_weights``; by default those shipped for every degradation. Raises InputError when the file is missing,
    damaged or of another kind.
    """
    path = find_weights(weights)
    if path.name in PUBLISHED or path.suffix in (".caffemodel", ".h5"):
        network, experiment = load_published(path)
    else:
        network, experiment = load_network(path)
    network = network.to(choose_device(device), memory_format=layout(network))
    return Model(network.eval().requires_grad_(False), experiment)


def enhance_on_grid(
    on_grid: Volume,
    model: Model,
    reference: Volume | None = None,
    max_memory_gb: float | None = None,
    progress: bool = False,
    factor: Sequence[float] | None = None,
    flip: bool = True,
    lr: Volume | None = None,
) -> Volume:
    """Run a model on a scan that already lies on the output grid, in the scan's own units.

    A model with two input channels needs the other contrast as ``reference``, on any grid in the same world: it is
    brought by its affine, and nothing is registered. ``factor``: how much coarser than this grid the scan resolves, per
    axis, which models for every factor are told; by default that of the experiment's task. Of these models it is the mean
    with the result of the scan mirrored along all axes, unless ``flip`` is off: it is better, and cannot move anything to
    one side. They never see wild voxels (``checks.usual_range``) of ``lr``, the scan before it was interpolated (by
    default it was not): what these add to it is added to the result as interpolated. Raises InputError when the
    reference is missing or not wanted.
    """
    if bool(model.experiment.reference) != (reference is not None):
        wanted = f"a reference ({model.experiment.reference})" if model.experiment.reference else "no reference"
        raise InputError(f"{model.experiment.name} takes {wanted}, got {'none' if reference is None else 'one'}")
    brought = None if reference is None else bring(reference, on_grid)
    seen = without_wild(on_grid, lr or on_grid) if model.experiment.mixture else on_grid
    scaling = fit_scaling(seen.data, model.experiment.intensity)
    given = network_input(seen, brought, model.experiment.intensity)
    network = model.network
    if model.experiment.mixture:
        facts = torch.from_numpy(told(given[0], factor or model.factor))
        network = Told(network, facts.to(next(network.parameters()).device))
    sr = run_tiled(network, given, max_memory_gb, progress)
    if model.experiment.mixture and flip:
        sr += run_tiled(network, given[:, ::-1, ::-1, ::-1], max_memory_gb, progress)[::-1, ::-1, ::-1]
        sr /= 2
    sr = scaling.invert(sr)
    return on_grid.with_data(sr if seen is on_grid else sr + (on_grid.data - seen.data))


def enhance_pair(pair: Pair, model: Model, max_memory_gb: float | None = None) -> Volume:
    """What a model makes of a degraded scan, on the grid of the truth, in the scan's own units or those it was taught.

    A prediction of SynthSR is brought there as ``space.resample_to`` says.
    """
    if model.experiment.spacing_mm:
        sr, _ = synthesise(model.network, model.experiment, pair.lr, pair.reference, max_memory_gb=max_memory_gb)
        return resample_to(sr, pair.hr)
    if not model.experiment.lr_grid:
        return enhance_on_grid(pair.on_grid, model, pair.reference, max_memory_gb, factor=pair.factor, lr=pair.lr)
    sr = _from_grid_to_grid(pair.lr, model, max_memory_gb, progress=False)
    return pair.hr.with_data(sr[tuple(slice(n) for n in pair.hr.shape)])


def _from_grid_to_grid(scan: Volume, model: Model, max_memory_gb: float | None, progress: bool) -> np.ndarray:
    scaling = fit_scaling(scan.data, model.experiment.intensity)
    return scaling.invert(run_tiled(model.network, scaling.apply(scan.data), max_memory_gb, progress))


def choose_factor(volume: Volume, model: Model) -> tuple[float, float, float]:
    """How much finer a scan becomes where nothing is asked for: the model's own factor.

    A model for any factor brings thick axes, those over THICK times the finest spacing, to that spacing; ours.
    """
    spacing = np.array(volume.spacing_mm)
    thick = spacing > THICK * spacing.min()
    if model.experiment.mixture is None or not thick.any():
        return model.factor
    return tuple(float(f) for f in np.where(thick, spacing / spacing.min(), 1))


def output_factor(
    volume: Volume,
    model: Model,
    factor: Sequence[float] | None = None,
    spacing_mm: Sequence[float] | None = None,
    zero_filled: Sequence[float] | None = None,
) -> tuple[float, float, float]:
    """How much finer per axis ``super_resolve`` makes a scan, so that whole voxels fill its field of view.

    InputError as there.
    """
    if factor is not None and spacing_mm is not None:
        raise InputError("give a factor or a spacing, not both")
    if spacing_mm is not None:
        if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
            raise InputError(f"spacing: expected three positive numbers of mm, got {tuple(spacing_mm)}")
        factor = tuple(old / new for old, new in zip(volume.spacing_mm, spacing_mm, strict=True))
    if zero_filled is not None:
        if model.experiment.mixture is None:
            raise InputError(f"{model.experiment.name} knows one resolution; use the model {DEFAULT}")
        if len(zero_filled) != 3 or not all(np.isfinite(f) and f >= 1 for f in zero_filled):
            raise InputError(f"zero_filled: expected three numbers of 1 or more, got {tuple(zero_filled)}")
        factor = (1, 1, 1) if factor is None else factor
    factor = tuple(float(f) for f in (factor if factor is not None else choose_factor(volume, model)))
    if len(factor) != 3 or not all(np.isfinite(f) and f >= 0.999 for f in factor):
        raise InputError(
            f"factor per axis must be at least 1, got {factor}; the scan's spacing is {volume.spacing_mm} mm"
        )
    # whole voxels over the same field of view: half a voxel over an axis is what the spacing may give way
    return tuple(max(round(n * f), n) / n for n, f in zip(volume.shape, factor, strict=True))


def super_resolve(
    volume: Volume | str | Path,
    model: Model | str | Path = DEFAULT,
    factor: Sequence[float] | None = None,
    spacing_mm: Sequence[float] | None = None,
    reference: Volume | None = None,
    align: str = "center",
    max_memory_gb: float | None = None,
    progress: bool = False,
    ct: bool = False,
    flip: bool = True,
    zero_filled: Sequence[float] | None = None,
) -> Volume:
    """Super-resolve a scan from its own grid: cubic-spline interpolation, then the network, or the network alone.

    Scan and model may be files or, for the model, a name as in ``find_weights``. Models that see one spacing (SynthSR)
    give RAS axes of that spacing, see ``synthesis.synthesise``; ``ct`` is theirs, ``flip`` theirs and that of models for
    every factor, and factor, spacing and alignment are the others'.

    ``factor`` per axis (default: ``choose_factor``) or a target ``spacing_mm`` per axis; the field of view stays, and
    the affine says where the finer voxels lie, whose spacing gives way by half a voxel over an axis at most. With
    ``align='corners'`` the outermost voxel centres stay instead, as in the published SRReCNN3D; also then the affine is
    the true one. ``zero_filled``: by how much the scanner interpolated already, per axis (its matrix over that
    measured), for models for every factor; with it, and without factor and spacing, the grid stays. ``reference``: see ``enhance_on_grid``. Raises InputError for a
    constant scan, a factor below 1 or not finite, or factor and spacing at once. CT in HU is clipped to what the model was
    trained on (``volume.to_window``).

    Warns once, by a ScanWarning with a line each, of what is doubtful in scan or result: see ``warnings_of``.
    """
    name, volume = ("", volume) if isinstance(volume, Volume) else (f"{volume}: ", load(volume))
    model = model if isinstance(model, Model) else load_model(model)
    seen = to_window(volume, model.experiment.intensity, reconstructed=True)
    if model.experiment.spacing_mm:
        if factor is not None or spacing_mm is not None or align != "center":
            raise InputError(
                f"{model.experiment.name} gives scans of {model.experiment.spacing_mm:g} mm along all axes; leave factor, "
                "spacing and alignment out"
            )
        sr, _ = synthesise(model.network, model.experiment, seen, reference, ct, flip, max_memory_gb, progress)
    else:
        if ct:
            raise InputError(f"CT is a choice for SynthSR's models, and {model.experiment.name} is none")
        if not flip and not model.experiment.mixture:
            raise InputError(f"{model.experiment.name} takes no mirrored scan; leave flip as it is")
        factor = output_factor(seen, model, factor, spacing_mm, zero_filled)
        coarser = tuple(f * z for f, z in zip(factor, zero_filled or (1, 1, 1), strict=True))
        sr = _by_factor(seen, model, factor, coarser, reference, align, max_memory_gb, progress, flip)
    warn(warnings_of(volume, sr, model, reference, ct, zero_filled), name)
    return sr


def _by_factor(
    volume: Volume,
    model: Model,
    factor: Sequence[float],
    coarser: Sequence[float],
    reference: Volume | None,
    align: str,
    max_memory_gb: float | None,
    progress: bool,
    flip: bool,
) -> Volume:
    if model.experiment.lr_grid:
        if not np.allclose(factor, model.network.factor, rtol=1e-3) or reference is not None:
            raise InputError(
                f"{model.experiment.name} makes scans {model.network.factor} times finer and takes no reference; "
                f"got a factor of {factor}"
            )
        sr = _from_grid_to_grid(volume, model, max_memory_gb, progress)
        settings = model.experiment.task_settings[model.experiment.task]
        align = "first" if settings[0] == "scanline" else align
        return Volume(sr, fine_grid(volume, model.network.factor, align)[1])
    on_grid = volume if np.allclose(factor, 1) else resample(volume, *fine_grid(volume, factor, align))
    return enhance_on_grid(on_grid, model, reference, max_memory_gb, progress, coarser, flip, volume)


def warnings_of(
    volume: Volume,
    sr: Volume,
    model: Model,
    reference: Volume | None = None,
    ct: bool = False,
    zero_filled: Sequence[float] | None = None,
) -> list[str]:
    """What to mind before trusting what ``super_resolve`` made of a scan, a line each: headers, intensities, slices.

    See ``synthesis.doubts`` and ``checks``.
    """
    experiment, units = model.experiment, model.experiment.spacing_mm
    seen = (
        volume.with_data(np.clip(volume.data, *CT_HU))
        if ct
        else to_window(volume, experiment.intensity, reconstructed=True)
    )
    clipped = 0 if ct else np.count_nonzero(seen.data != volume.data) / volume.data.size
    finer = np.divide(volume.spacing_mm, units) if units else np.divide(sr.shape, volume.shape)
    found = [*doubts(volume, experiment, reference), *wild(seen)]
    if reference is not None:
        found += [f"the reference: {line}" for line in wild(reference)]
    if clipped:
        found.append(
            f"{100 * clipped:.2g} % of the voxels lay outside {HU_WINDOW[0]:g} to {HU_WINDOW[1]:g} HU, which is all that "
            f"{experiment.name} knows, and were clipped"
        )
    if experiment.mixture:
        found += content(volume, finer, zero_filled or (1, 1, 1))
    return [*found, *findings(volume, sr, finer)]


def with_uncertainty(
    volume: Volume, model: Model, reference: Volume | None = None, **settings: object
) -> tuple[Volume, Volume]:
    """What ``super_resolve`` gives, and the scale b of a Laplace distribution about each of its voxels, in its units.

    ``settings`` are ct, flip, max_memory_gb and progress. Warns as ``super_resolve``. Raises InputError for a model that was not trained with the
    loss ``laplace``.
    """
    if not model.experiment.spacing_mm or model.experiment.loss != "laplace":
        raise InputError(
            f"{model.experiment.name} knows no uncertainty; expected a model trained with the loss 'laplace'"
        )
    sr, b = synthesise(model.network, model.experiment, volume, reference, **settings)
    warn(warnings_of(volume, sr, model, reference, settings.get("ct", False)), "")
    return sr, b
