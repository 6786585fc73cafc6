"""Load trained networks by name and super-resolve scans with them."""

import dataclasses
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srlib.core.device import choose_device, choose_precision, layout
from srlib.core.paths import (
    InputError,
    StrPath,
    explained,
    published_file,
    results_root,
    shipped_file,
)
from srlib.data.pairs import ObservationModel, Pair
from srlib.degradations.tasks import Task
from srlib.inference.checks import warn
from srlib.inference.prediction import CoarseToFine, Plan, Prediction, Request, SameGrid, Setup
from srlib.inference.tiles import Callee, run_tiled
from srlib.models.weights import load_weights, read_metadata
from srlib.scans.formats import load_scan
from srlib.scans.volume import Volume
from srlib.systems.base import Experiment
from srlib.systems.published import is_foreign, load_published
from srlib.systems.registry import from_json

DEFAULT = "robust"  # the shipped weights that are used when none are named
BEST = ("paper", "study", "quick", "smoke")  # profiles, the one whose runs are taken first


class Model:
    """A network with what it is run with: the experiment it was trained for, or a degradation.

    ``network`` is any callable that ``run_tiled`` takes; a module computes in evaluation mode.
    Without an ``experiment`` it belongs to ``degradation``: a task, a degradation, or the
    ``ObservationModel`` of its training. A network of finer output sees the coarse grid, another
    one the interpolated scan, in [0, 1] unless the observation model has another ``intensity``.
    ``precision``: "32" or "bf16". Raises InputError for another factor than the degradation's and
    as ``run_tiled``.
    """

    def __init__(
        self,
        network: Callee,
        experiment: Experiment | None = None,
        precision: str = "32",
        *,
        degradation: Task | ObservationModel = "gaussian_x2",
    ) -> None:
        self.network, self.experiment, self.precision = network, experiment, precision
        if experiment:
            self.name, self.pairs = experiment.name, experiment.pairs
            self.prediction = experiment.prediction
            return
        given = isinstance(degradation, ObservationModel)
        pairs = degradation if given else ObservationModel(degradation)
        probe = np.zeros((1 + bool(pairs.reference), 32, 32, 32), np.float32)
        finer = np.floor_divide(run_tiled(network, probe).shape[-3:], 32)
        self.name = getattr(network, "__name__", type(network).__name__)
        self.prediction = CoarseToFine() if finer.max() > 1 else SameGrid()
        self.pairs = dataclasses.replace(pairs, coarse=self.prediction.coarse)
        if self.pairs.coarse and np.not_equal(finer, coarser := pairs.degradation().coarser).any():
            raise InputError(
                f"{self.name} makes scans {tuple(finer.tolist())} times finer, its degradation "
                f"makes them {coarser} times coarser; give that of its training"
            )

    def plan(self, scan: Volume, request: Request | None = None) -> Plan:
        """What ``predict`` will make of a scan; InputError for what the model does not take."""
        return self.prediction.plan(scan, self._setup(request))

    def predict(
        self,
        scan: Volume | StrPath,
        request: Request | None = None,
        *,
        plan: Plan | None = None,
        **options: Any,
    ) -> Prediction:
        """The network's result for a scan, perhaps a file, with warnings.

        ``plan``: that of ``plan``, where it is known. Options: ``reference`` (the scan of another
        contrast, where the model takes one), ``max_memory_gb``, ``progress``. Raises InputError as
        ``prediction.SameGrid.predict``.
        """
        scan = scan if isinstance(scan, Volume) else load_scan(scan)
        return self.prediction.predict(scan, self._setup(request, **options), plan)

    def predict_pair(
        self, pair: Pair, *, kernel: str | None = None, max_memory_gb: float | None = None
    ) -> Volume:
        """The network's result for a degraded scan, on the grid of the truth, in the scan's units.

        ``kernel``: as in ``Request``. Raises InputError for a missing or unwanted reference and too
        little memory.
        """
        request = Request(kernel=kernel)
        setup = self._setup(request, reference=pair.reference, max_memory_gb=max_memory_gb)
        setup.check_reference()
        return self.prediction.on_pair(pair, setup)

    def _setup(self, request, max_memory_gb=None, **options):
        """What ``prediction`` needs of the model, with its usual memory unless another is given."""
        memory = self.prediction.memory_gb if max_memory_gb is None else max_memory_gb
        options |= {"max_memory_gb": memory, "precision": self.precision}
        return Setup(self.network, self.pairs, request or Request(), **options)


def as_model(model: Model | Callee | StrPath) -> Model:
    """A model as it is, that of any network, or of weights (``find_weights``)."""
    if isinstance(model, str | Path):
        return load_model(model)
    return model if isinstance(model, Model) else Model(model)


def find_weights(name: StrPath) -> Path:
    """The weights file of a path or a name: published, a run's folder, or an experiment.

    Of an experiment's runs in ``runs/`` the best is taken: ``paper`` before ``study``, ``quick``
    and ``smoke``, then the newest; without one, the weights of that name in the package. Those of
    ``robust`` come before any run's. A line on stderr names the choice. A name that looks like a
    path is only a path. Raises InputError when nothing is found.
    """
    name, path = str(name), Path(name).expanduser()
    inside = path / "model.safetensors"
    if path.is_file():
        return path
    if "/" in name or name.startswith((".", "~")):
        if inside.is_file():
            return inside
        lacks = "has no model.safetensors" if path.is_dir() else "no such file"
        raise InputError(f"{name}: {lacks}; give a .safetensors file or the folder of a run")
    shipped = shipped_file(name)
    given = published_file(name) or (name == DEFAULT and shipped)
    found = [p for p in (given, inside.is_file() and inside, *runs_of(name)) if p]
    found = found or [shipped] * bool(shipped)
    if not found:
        raise InputError(
            f"{name}: no such weights; give a .safetensors file, a published one, or an experiment "
            "that was trained here; 'srlib list weights' says which there are"
        )
    if len(found) > 1:
        others = ", ".join(map(str, found[1:]))
        _say(f"{name}: taking {found[0]}; for other weights of this name give a path: {others}")
    return found[0]


def runs_of(name: str) -> list[Path]:
    """Weights of an experiment's runs, or of one run, the best first."""
    runs = []
    for file in results_root().glob("*/checkpoints/*/model.safetensors"):
        parts = re.fullmatch(rf"(.+?)-({'|'.join(BEST)})-s-?\d+-.+", file.parent.name)
        if name in (file.parent.name, parts and parts[1]):
            runs.append((-BEST.index(parts[2]) if parts else 0, file.stat().st_mtime, str(file)))
    return [Path(file) for *_, file in sorted(runs, reverse=True)]


@functools.cache
def _say(line):  # once: weights are looked for several times
    print(line, file=sys.stderr)


def load_network(path: StrPath) -> tuple[torch.nn.Module, Experiment]:
    """The network of a file that training wrote, or that authors published, and its experiment.

    Raises InputError when the file is missing, damaged or of another kind.
    """
    if is_foreign(path):
        return load_published(path)
    metadata = read_metadata(path)
    if "experiment" not in metadata:
        raise InputError(f"{path}: holds no experiment; expected weights made by 'srlib train'")
    with explained(path, "its weights do not fit its network", "train it anew"):
        experiment = from_json(metadata["experiment"])
        network = experiment.network.filled(load_weights(path))
    return network, experiment


def read_state(path: StrPath) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, ours or published, by our names; InputError as load_model."""
    return load_network(path)[0].state_dict() if is_foreign(path) else load_weights(path)


def load_model(
    weights: StrPath = DEFAULT,
    *,
    device: str = "auto",
    precision: str = "32",
    trainable: bool = False,
) -> Model:
    """Load a model from our ``.safetensors`` or from a file that the original authors published.

    No code in the file is run. ``weights`` is a path or a name, as in ``find_weights``; by default
    those shipped for every degradation. ``precision``: ``bf16`` computes in bfloat16, ``auto``
    does where that is faster on this machine; both only with networks that add to their input, as
    others lose more than 0.01 dB of PSNR, and ``Model.precision`` says what is done. The network is
    in evaluation mode without gradients, or ready to be trained on where ``trainable``. Raises
    InputError when the file is missing, damaged or of another kind.
    """
    path = find_weights(weights)
    network, experiment = load_network(path)
    chosen = choose_device(device)
    precision = choose_precision(precision, chosen)
    network = network.to(chosen, torch.float32, memory_format=layout(network))
    network.train(trainable).requires_grad_(trainable)
    # one that gives the image itself, not what to add to its input, would lose more than 0.01 dB
    adds = getattr(network, "residual", False)
    return Model(network, experiment, precision if adds else "32")


def super_resolve(
    scan: Volume | StrPath,
    model: Model | Callee | StrPath = DEFAULT,
    *,
    factor: Sequence[float] | None = None,
    spacing_mm: Sequence[float] | None = None,
    zero_filled: Sequence[float] | None = None,
    align: str = "center",
    ct: bool = False,
    flip: bool = True,
    kernel: str | None = None,
    reference: Volume | None = None,
    max_memory_gb: float | None = None,
    progress: bool = False,
) -> Volume:
    """Super-resolve a scan from its own grid.

    ``scan`` and ``model`` may be files; the model also a name as in ``find_weights``, or any
    network (``Model``). ``reference`` is the scan of another contrast, where the model takes one;
    it is not registered. The first seven keywords are those of ``prediction.Request``; a model
    takes some of them. The field of view stays; the affine gives the place of the finer voxels.
    Warns once (ScanWarning), a line for each problem of scan or result. Raises InputError for a
    constant scan and for what the model does not take.
    """
    name = "" if isinstance(scan, Volume) else f"{scan}: "
    request = Request(factor, spacing_mm, zero_filled, align, ct, flip, kernel)
    made = as_model(model).predict(
        scan, request, reference=reference, max_memory_gb=max_memory_gb, progress=progress
    )
    warn(made.warnings, name)
    return made.image
