"""Readers of the weights that the original authors published, into our networks."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from srlib.caffe import read_blobs
from srlib.keras import read_weights
from srlib.paths import InputError, first_line, unspoilt
from srlib.systems import EXPERIMENTS
from srlib.systems.base import Experiment
from srlib.systems.synthsr import SYNTHSR_HYPERFINE, SYNTHSR_PUBLISHED


def _mdcsrn(path: Path) -> dict[str, torch.Tensor]:
    """hz2538/E6040-super-resolution-project: a PyTorch state dict of 85 tensors."""
    try:
        theirs = torch.load(unspoilt(path), map_location="cpu", weights_only=True)
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


def _keras(path: Path) -> dict[str, torch.Tensor]:
    """BBillot/SynthSR: the U-Net's layers, whose names begin with ``unet_``; those of its training are left out."""
    layers = {name: arrays for name, arrays in read_weights(path).items() if name.startswith("unet_")}
    levels = sum(name.startswith("unet_bn_down_") for name in layers)
    names = {"unet_likelihood": "last"}  # theirs -> ours
    for arm, first, count in (("down", 0, levels), ("up", levels, levels - 1)):  # theirs counts convolutions upwards on
        for level in range(count):
            names[f"unet_bn_{arm}_{level}"] = f"{arm}.{level}.norm"
            for i in range(2):
                names[f"unet_conv_{arm}arm_{first + level}_{i}"] = f"{arm}.{level}.conv{i + 1}"
    if levels < 2 or set(layers) != set(names):
        raise InputError(f"{path}: expected the layers of SynthSR's U-Net, got {len(layers)} of {len(names)} or others")
    ours = {}
    for name, arrays in layers.items():
        norm = "_bn_" in name  # in Keras's order: gamma, beta, mean, variance; or kernel (x, y, z, in, out), bias
        parts = ("weight", "bias", "running_mean", "running_var") if norm else ("weight", "bias")
        if [a.ndim for a in arrays] != ([1] * 4 if norm else [5, 1]):
            raise InputError(f"{path}: layer {name} has arrays of shape {[a.shape for a in arrays][:4]}")
        for part, array in zip(parts, arrays, strict=True):
            tensor = torch.from_numpy(array)
            ours[f"{names[name]}.{part}"] = tensor.permute(4, 3, 0, 1, 2) if array.ndim == 5 else tensor
    return ours


# file name -> (its reader, to a state dict with our names; the experiment that it belongs to)
PUBLISHED: dict[str, tuple[Callable[[Path], dict[str, torch.Tensor]], Experiment]] = {
    "mDCSRN_pretrained_G_step250000.pth": (_mdcsrn, EXPERIMENTS["mdcsrn"]),
    "SRReCNN3D_10Layers_IsoScalex2.caffemodel": (_caffe, EXPERIMENTS["recnn"]),
    "MultiSRReCNN3D_10Layers_IsoScalex2.caffemodel": (_caffe, EXPERIMENTS["recnn_multi"]),
    "SRCNN3D_iter_470000.caffemodel": (_caffe, EXPERIMENTS["srcnn3d"]),
}


def load_published(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """Network and experiment from a published file, known by its name, from any SRReCNN3D ``.caffemodel`` or SynthSR ``.h5``.

    Of the latter two, layers, filters, kernel and channels are read from the file. InputError when it is none of
    these, or damaged.
    """
    path = Path(path)
    if path.name not in PUBLISHED and path.suffix not in (".caffemodel", ".h5"):
        raise InputError(f"{path.name} is not a published file known here; expected one of {', '.join(PUBLISHED)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it from its authors (see csv/README.md)")
    try:
        if path.name in PUBLISHED:
            read, experiment = PUBLISHED[path.name]
            weights = read(path)
        elif path.suffix == ".h5":
            weights = _keras(path)
            experiment = _unet_of(weights, path.name)
        else:
            weights = _caffe(path)
            experiment = _recnn_of(weights)
        network = experiment.network.build()
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
    return experiment.changed(width=width, model_args={**experiment.network.model_args, **size})


def _unet_of(weights: dict[str, torch.Tensor], name: str) -> Experiment:
    """SynthSR with the size of a file's network; KeyError without its layers.

    Of an even number of input channels every second is a reliability map, but in the weights for Hyperfine scans.
    """
    width, channels = weights["down.0.conv1.weight"].shape[:2]
    levels, outputs = sum(k.startswith("down") for k in weights) // 8, len(weights["last.weight"])
    deepest = weights[f"down.{levels - 1}.conv2.weight"]
    if deepest.shape[:2] != (width * 2 ** (levels - 1),) * 2:  # before a network of that size is made
        raise ValueError(f"{len(deepest)} features at level {levels}, {width} at level 1")
    experiment = SYNTHSR_HYPERFINE
    if "hyperfine" not in name or channels != 2:
        given, maps = SYNTHSR_PUBLISHED.examples.generation, channels % 2 == 0
        scans = channels // (1 + maps)
        if not 1 <= scans <= 2:
            raise ValueError(f"it takes {scans} scans, expected one or two")
        given = dataclasses.replace(given, inputs=given.inputs * scans, reliability=maps)
        experiment = SYNTHSR_PUBLISHED.changed(generation=given, reference="t2" if scans > 1 else "")
    size = {"levels": levels, "in_channels": channels, "out_channels": outputs}
    settings = {**experiment.network.model_args, **size}
    if outputs == 2:
        experiment = experiment.changed(loss="laplace", laplace=True)
    return experiment.changed(width=width, model_args=settings)
