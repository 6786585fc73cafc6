"""Networks with the weights that the original authors published."""

import dataclasses
import re
from pathlib import Path

import torch
from safetensors.torch import load

from srlib.core.paths import InputError, StrPath, explained
from srlib.models.foreign import read_foreign
from srlib.systems.base import Experiment
from srlib.systems.registry import EXPERIMENTS
from srlib.systems.synthsr import SYNTHSR_HYPERFINE, SYNTHSR_PUBLISHED

# file name -> the experiment that it belongs to
PUBLISHED = {
    "mDCSRN_pretrained_G_step250000.pth": EXPERIMENTS["mdcsrn"],
    "SRReCNN3D_10Layers_IsoScalex2.caffemodel": EXPERIMENTS["recnn"],
    "MultiSRReCNN3D_10Layers_IsoScalex2.caffemodel": EXPERIMENTS["recnn_multi"],
    "SRCNN3D_iter_470000.caffemodel": EXPERIMENTS["srcnn3d"],
}
PARTS = ("weight", "bias", "running_mean", "running_var")  # in Caffe's and Keras's order


def is_foreign(path: StrPath) -> bool:
    """Whether a name is that of weights in the original authors' formats."""
    path = Path(path)
    return path.name in PUBLISHED or path.suffix in (".caffemodel", ".h5")


def load_published(path: StrPath) -> tuple[torch.nn.Module, Experiment]:
    """Network and experiment from a published file, which is known by its name.

    Any SRReCNN3D ``.caffemodel`` or SynthSR ``.h5`` is read, too; the file gives its layers,
    filters, kernel and channels. Raises InputError for missing, other and damaged files.
    """
    path = Path(path)
    if not is_foreign(path):
        known = ", ".join(PUBLISHED)
        raise InputError(f"{path.name} is not a published file; expected one of {known}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it from its authors (see csv/README.md)")
    theirs = load(read_foreign(path))
    with explained(path, "its tensors do not fit the published network", "get it again"):
        named = OURS[path.suffix](theirs).items()
        weights = {re.sub(r"\d$", lambda part: PARTS[int(part[0])], n): v for n, v in named}
        experiment = PUBLISHED.get(path.name) or _sized(weights, path.name)
        network = experiment.network.filled(weights)
    return network, experiment


def _mdcsrn(theirs):
    """hz2538/E6040-super-resolution-project: 85 tensors; units are counted from 1 there."""
    ours = {}
    for name, value in theirs.items():
        for old, new in (("conv0.", "first."), ("recon.", "last."), ("comp", "compress.")):
            name = name.replace(old, new)
        layer = re.compile(r"block(\d+)\.denselayer(\d+)")
        ours[layer.sub(lambda m: f"blocks.{m[1]}.{int(m[2]) - 1}", name)] = value
    return ours


def _keras(theirs):
    """BBillot/SynthSR: the U-Net's layers, whose names begin with ``unet_``; no other layers."""
    # number of an arm's first convolution
    first = {"down": 0, "up": sum(name.startswith("unet_bn_down_") for name in theirs) // 4}
    ours = {}
    for name, value in theirs.items():
        if not name.startswith("unet_"):
            continue
        name = name.removeprefix("unet_").replace("likelihood", "last")
        name = re.sub(r"bn_(up|down)_(\d+)", r"\1.\2.norm", name)
        name = re.sub(
            r"conv_(up|down)arm_(\d+)_(\d)",
            lambda m: f"{m[1]}.{int(m[2]) - first[m[1]]}.conv{int(m[3]) + 1}",
            name,
        )
        if value.dim() == 5:  # (x, y, z, in, out)
            value = value.permute(4, 3, 0, 1, 2).contiguous()
        ours[name] = value
    return ours


# a file's layers by the names of ours; those of rousseau/deepBrain, conv1 to convL, are the same
OURS = {".pth": _mdcsrn, ".caffemodel": dict, ".h5": _keras}


def _sized(weights, name):
    """The mono- or multimodal SRReCNN3D, or SynthSR, with the size of a file's network.

    Every second channel of SynthSR's, where their number is even, is a reliability map, except in
    the weights for Hyperfine scans. Raises KeyError without the layers of either.
    """
    if "conv1.weight" in weights:
        width, channels, kernel = weights["conv1.weight"].shape[:3]
        experiment = EXPERIMENTS["recnn_multi" if channels == 2 else "recnn"]
        size = {"layers": len(weights) // 2, "kernel": kernel, "in_channels": channels}
    else:
        width, channels = weights["down.0.conv1.weight"].shape[:2]
        levels = sum(layer.startswith("down") for layer in weights) // 8
        outputs = len(weights["last.weight"])
        size = {"levels": levels, "in_channels": channels, "out_channels": outputs}
        experiment = SYNTHSR_HYPERFINE
        if "hyperfine" not in name or channels != 2:
            given, maps = SYNTHSR_PUBLISHED.examples.generation, channels % 2 == 0
            scans = channels // (1 + maps)
            if not 1 <= scans <= 2:
                raise ValueError(f"it takes {scans} scans, expected one or two")
            given = dataclasses.replace(given, inputs=given.inputs * scans, reliability=maps)
            reference = "t2" if scans > 1 else ""
            experiment = SYNTHSR_PUBLISHED.changed(generation=given, reference=reference)
        if outputs == 2:
            experiment = experiment.changed(loss="laplace", laplace=True)
    return experiment.changed(width=width, model_args={**experiment.network.model_args, **size})
