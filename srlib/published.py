"""Readers of the weights that the original authors published, into our networks."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from srlib.caffe import read_blobs
from srlib.experiments import EXPERIMENTS, Experiment
from srlib.models import MODELS
from srlib.paths import InputError, first_line


def _mdcsrn(path: Path) -> dict[str, torch.Tensor]:
    """hz2538/E6040-super-resolution-project: a PyTorch state dict of 85 tensors."""
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as err:
        raise InputError(f"{path}: not a PyTorch state dict, or damaged ({first_line(err)})") from err
    ours = {}
    for name, value in theirs.items():
        for old, new in (("conv0.", "first."), ("recon.", "last."), ("comp", "compress."), ("block", "blocks.")):
            name = name.replace(old, new, 1) if name.startswith(old) else name
        head, _, tail = name.partition(".denselayer")  # units are counted from 1 there
        ours[f"{head}.{int(tail[0]) - 1}{tail[1:]}" if tail[:1].isdecimal() else name] = value
    return ours


def _caffe(path: Path) -> dict[str, torch.Tensor]:
    """rousseau/deepBrain: convolutions conv1 to convL, each with its weights and its bias."""
    layers = read_blobs(path)
    if any(len(blobs) != 2 for blobs in layers.values()):
        raise InputError(f"{path}: expected layers with weights and a bias; it is another network")
    return {
        f"{layer}.{name}": torch.from_numpy(blob)
        for layer, blobs in layers.items()
        for name, blob in zip(("weight", "bias"), blobs, strict=True)
    }


# file name -> (its reader, to a state dict with our names; the experiment that it belongs to)
PUBLISHED: dict[str, tuple[Callable[[Path], dict[str, torch.Tensor]], Experiment]] = {
    "mDCSRN_pretrained_G_step250000.pth": (_mdcsrn, EXPERIMENTS["mdcsrn"]),
    "SRReCNN3D_10Layers_IsoScalex2.caffemodel": (_caffe, EXPERIMENTS["recnn"]),
    "MultiSRReCNN3D_10Layers_IsoScalex2.caffemodel": (_caffe, EXPERIMENTS["recnn_multi"]),
    "SRCNN3D_iter_470000.caffemodel": (_caffe, EXPERIMENTS["srcnn3d"]),
}


def load_published(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """Network and experiment from a published file, known by its name, or from any SRReCNN3D ``.caffemodel``.

    Of the latter, layers, filters, kernel and channels are read from the file. InputError when it is neither, or
    damaged.
    """
    path = Path(path)
    if path.name not in PUBLISHED and path.suffix != ".caffemodel":
        raise InputError(f"{path.name} is not a published file known here; expected one of {', '.join(PUBLISHED)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it from its authors (see csv/README.md)")
    try:
        if path.name in PUBLISHED:
            read, experiment = PUBLISHED[path.name]
            weights = read(path)
        else:
            weights = _caffe(path)
            experiment = _recnn_of(weights)
        network = MODELS[experiment.model](width=experiment.width, **experiment.model_args)
        network.load_state_dict(weights, strict=True)
    except InputError:
        raise
    except (RuntimeError, AttributeError, ValueError, KeyError) as err:
        reason = str(err).splitlines()[-1].strip() if str(err) else type(err).__name__
        raise InputError(f"{path}: its tensors do not fit the published network ({reason})") from err
    return network, experiment


def _recnn_of(weights: dict[str, torch.Tensor]) -> Experiment:
    """The mono- or multimodal SRReCNN3D experiment with the size of a file's network; KeyError without its layers."""
    width, channels, kernel = weights["conv1.weight"].shape[:3]
    experiment = EXPERIMENTS["recnn_multi" if channels == 2 else "recnn"]
    size = {"layers": len(weights) // 2, "kernel": kernel, "in_channels": channels}
    return dataclasses.replace(experiment, width=width, model_args={**experiment.model_args, **size})
