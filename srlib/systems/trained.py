"""Trained networks by name, and what they make of scans."""

import functools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from srlib.core.device import choose_device, layout
from srlib.core.paths import InputError, first_line, published_file, results_root, shipped_file
from srlib.data.pairs import Pair
from srlib.inference.checks import warn
from srlib.inference.prediction import Plan, Prediction, Request, predict, predict_pair
from srlib.models.weights import load_weights, read_metadata
from srlib.scans.formats import load
from srlib.scans.volume import Volume
from srlib.systems.base import Experiment
from srlib.systems.published import PUBLISHED, load_published
from srlib.systems.registry import from_json

DEFAULT = "robust"  # the shipped weights that are used when none are named
BEST = ("paper", "study", "quick", "smoke")  # profiles, the one whose runs are taken first


@dataclass(frozen=True, eq=False)
class Model:
    """A network in evaluation mode with the experiment that it was trained for."""

    network: torch.nn.Module
    experiment: Experiment

    def plan(self, scan: Volume, request: Request) -> Plan:
        """What ``predict`` will make of a scan; InputError for what the model does not take."""
        return self.experiment.prediction.plan(scan, self.network, self.experiment.pairs, request)

    def predict(
        self, scan: Volume, request: Request | None = None, **options: object
    ) -> Prediction:
        """What the network makes of a scan; options and errors as ``prediction.predict``."""
        return predict(
            scan,
            self.network,
            self.experiment.pairs,
            self.experiment.prediction,
            request or Request(),
            **options,
        )

    def predict_pair(self, pair: Pair, **options: object) -> Volume:
        """What the network makes of a degraded scan; options and errors as ``prediction.predict_pair``."""
        return predict_pair(
            pair, self.network, self.experiment.pairs, self.experiment.prediction, **options
        )


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
        wanted = (
            "has no model.safetensors; give the folder of a finished run"
            if path.is_dir()
            else "no such file"
        )
        raise InputError(
            f"{name}: {wanted}, or a name without a path: shipped, published, an experiment or a run_id"
        )
    given = shipped_file(name) or published_file(name)
    found = [p for p in (given, inside.is_file() and inside, *_runs(name)) if p]
    if not found:
        raise InputError(
            f"{name}: no such weights; give a .safetensors file, a published one, or an experiment that was trained here"
        )
    if len(found) > 1:
        _say(
            f"{name}: taking {found[0]}; for other weights of this name give a path: {', '.join(map(str, found[1:]))}"
        )
    return found[0]


def _runs(name: str) -> list[Path]:
    """Weights of an experiment's runs, or of one run, the best first."""
    runs = []
    for file in results_root().glob("*/checkpoints/*/model.safetensors"):
        parts = re.fullmatch(rf"(.+?)-({'|'.join(BEST)})-s-?\d+-.+", file.parent.name)
        if name in (file.parent.name, parts and parts[1]):
            runs.append((-BEST.index(parts[2]) if parts else 0, file.stat().st_mtime, str(file)))
    return [Path(file) for *_, file in sorted(runs, reverse=True)]


@functools.cache
def _say(line: str) -> None:  # once: weights are looked for several times
    print(line, file=sys.stderr)


def load_network(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """The trained network of a file that training wrote, and its experiment.

    Raises InputError when the file is missing, damaged or of another kind.
    """
    metadata = read_metadata(path)
    if "experiment" not in metadata:
        raise InputError(
            f"{path}: no experiment is written in it; expected weights made by 'srlib train'"
        )
    try:
        experiment = from_json(metadata["experiment"])
        network = experiment.network.build()
        network.load_state_dict(load_weights(path))
    except InputError as err:
        raise InputError(f"{path}: {err}") from err
    except RuntimeError as err:
        raise InputError(
            f"{path}: its weights do not fit {experiment.network.model} ({first_line(err)})"
        ) from err
    return network, experiment


def load_model(weights: str | Path = DEFAULT, *, device: str = "auto") -> Model:
    """A model from our ``.safetensors`` or from a file the original authors published; nothing in it is run.

    ``weights`` is a path or a name, as in ``find_weights``; by default those shipped for every degradation. Raises
    InputError when the file is missing, damaged or of another kind.
    """
    path = find_weights(weights)
    foreign = path.name in PUBLISHED or path.suffix in (".caffemodel", ".h5")
    network, experiment = load_published(path) if foreign else load_network(path)
    network = network.to(choose_device(device), memory_format=layout(network))
    return Model(network.eval().requires_grad_(False), experiment)


def super_resolve(
    scan: Volume | str | Path,
    model: Model | str | Path = DEFAULT,
    *,
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

    Scan and model may be files or, for the model, a name as in ``find_weights``. For factor, spacing_mm (mm per axis),
    align, ct, flip and zero_filled see ``prediction.Request``; which of them a model takes depends on its prediction.
    The field of view stays, and the affine says where the finer voxels lie, whose spacing gives way by half a voxel over
    an axis at most. ``reference``: the scan of another contrast, where the model takes one; it is not registered.
    Raises InputError for a constant scan and for what the model does not take.

    Warns once, by a ScanWarning with a line each, of what is doubtful in scan or result.
    """
    request = Request(_tuple(factor), _tuple(spacing_mm), _tuple(zero_filled), align, ct, flip)
    name, made = _predict(
        scan, model, request, reference=reference, max_memory_gb=max_memory_gb, progress=progress
    )
    warn(made.warnings, name)
    return made.image


def super_resolve_with_uncertainty(
    scan: Volume | str | Path,
    model: Model | str | Path,
    *,
    request: Request | None = None,
    **options: object,
) -> tuple[Volume, Volume | None]:
    """What ``super_resolve`` gives, and the scale b of a Laplace distribution about each of its voxels, in its units.

    There is no scale for models that were not trained with the loss ``laplace``. Options as ``prediction.predict``.
    """
    name, made = _predict(scan, model, request, **options)
    warn(made.warnings, name)
    return made.image, made.uncertainty


def _predict(
    scan: Volume | str | Path, model: Model | str | Path, request: Request | None, **options: object
) -> tuple[str, Prediction]:
    """What heads warnings of a scan, its file if there is one, and what a model makes of it."""
    name, scan = ("", scan) if isinstance(scan, Volume) else (f"{scan}: ", load(scan))
    model = model if isinstance(model, Model) else load_model(model)
    return name, model.predict(scan, request, **options)


def _tuple(value: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(value)
