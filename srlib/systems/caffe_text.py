"""Describe the training of SRReCNN3D or SRCNN3D to Caffe, for text files beside stored patches."""

import json
from pathlib import Path
from string import Template

from srlib.core.paths import choose
from srlib.scans.patches import per_axis
from srlib.systems.base import Experiment

SOLVERS = {  # in Caffe
    "adam": "Adam", "sgd": "SGD", "nag": "Nesterov", "rmsprop": "RMSProp",
    "adagrad": "AdaGrad", "adadelta": "AdaDelta",
}  # fmt: skip
POLICIES = {"constant": "fixed", "step": "multistep"}
SETTINGS = {
    "momentum": "momentum", "rho": "momentum", "alpha": "rms_decay", "eps": "delta",
    "weight_decay": "weight_decay", "lr": "base_lr",
}  # fmt: skip
DATA = """layer {
  name: "data"
  type: "HDF5Data"
  top: "data"
  top: "label"
  hdf5_data_param {
    source: $source
    batch_size: $batch
    shuffle: true
  }
}
"""
INPUT = """input: "data"
input_shape {
  dim: 1
  dim: $channels
  dim: $x
  dim: $y
  dim: $z
}
"""
CONVOLUTION = """layer {
  name: "$name"
  type: "Convolution"
  bottom: "$below"
  top: "$name"
  param {
    lr_mult: 1.0
  }
  param {
    lr_mult: $bias_rate
  }
  convolution_param {
    num_output: $filters
    kernel_size: $kernel
    stride: 1
    pad: $pad
    engine: CAFFE
    weight_filler {
      type: "gaussian"
      std: $std
    }
    bias_filler {
      value: 0
    }
  }
}
"""
RELU = """layer {
  name: "$name"
  type: "ReLU"
  bottom: "$below"
  top: "$below"
  relu_param {
    engine: CAFFE
  }
}
"""
FIRST_CHANNEL = """layer {
  name: "slice"
  type: "Slice"
  bottom: "data"
  top: "interpolated"
  top: "reference"
  slice_param {
    axis: 1
    slice_point: 1
  }
}
layer {
  name: "silence"
  type: "Silence"
  bottom: "reference"
}
"""
SUM = """layer {
  name: "out"
  type: "Eltwise"
  bottom: "$below"
  bottom: "$scan"
  top: "out"
}
"""
CROP = """layer {
  name: "middle"
  type: "Crop"
  bottom: "label"
  bottom: "$estimate"
  top: "middle"
  crop_param {
    axis: 2
    offset: $margin
  }
}
"""
# the loss takes four axes at most
LOSS = """layer {
  name: "${estimate}_flat"
  type: "Flatten"
  bottom: "$estimate"
  top: "${estimate}_flat"
}
layer {
  name: "${label}_flat"
  type: "Flatten"
  bottom: "$label"
  top: "${label}_flat"
}
layer {
  name: "loss"
  type: "EuclideanLoss"
  bottom: "${estimate}_flat"
  bottom: "${label}_flat"
  top: "loss"
}
"""


def texts(experiment: Experiment, store: Path) -> dict[Path, str]:
    """The net to train, the net to deploy, the solver and the list of HDF5 files, by their paths.

    Empty for other models. Caffe runs in the folder of ``store``. Deviations from the code: of two
    channels only the first is added to the output (Slice), and the deployed net has both; patches
    are shuffled when they are read. Raises InputError for a schedule that Caffe lacks.
    """
    if experiment.network.model not in ("recnn", "srcnn3d"):
        return {}
    training, files = experiment.training, f"{store.stem}_train.txt"
    network = experiment.network.build()
    name, channels = f"name: {json.dumps(experiment.name)}\n", network.conv1.in_channels
    x, y, z = per_axis(experiment.examples.patch_size)
    layers, estimate = _layers(network, training)
    label, crop = "label", ""
    if training.loss_crop:  # without padding the estimate is smaller
        label, crop = "middle", _fill(CROP, estimate=estimate, margin=network.halo)
    found = {
        "net.prototxt": name
        + _fill(DATA, source=json.dumps(files), batch=training.batch_size)
        + layers
        + crop
        + _fill(LOSS, estimate=estimate, label=label),
        "deploy.prototxt": name + _fill(INPUT, channels=channels, x=x, y=y, z=z) + layers,
        "solver.prototxt": _solver(training, network, store.stem),
        "train.txt": f"{store.name}\n",
    }
    return {store.with_name(f"{store.stem}_{name}"): text for name, text in found.items()}


def _fill(template, **values):
    """The text of a template with its values."""
    return Template(template).substitute(values)


def _layers(network, training):
    """The layers from the scan to the estimate, and the estimate's name."""
    text, below = "", "data"
    for (name, conv), std in zip(network.named_children(), network.stds, strict=True):
        if text:
            text += _fill(RELU, name=below.replace("conv", "relu"), below=below)
        text += _fill(
            CONVOLUTION,
            name=name,
            below=below,
            bias_rate=training.bias_rate,
            filters=conv.out_channels,
            kernel=conv.kernel_size[0],
            pad=0 if training.loss_crop else conv.padding[0],
            std=std,
        )
        below = name
    if not network.residual:
        return text, below
    several = network.conv1.in_channels > 1
    text += FIRST_CHANNEL * several
    return text + _fill(SUM, below=below, scan="interpolated" if several else "data"), "out"


def _solver(training, network, stem):
    """The solver's text: optimiser, learning rate and its schedule, number of steps."""
    chosen, args = training.make_optimizer(network).defaults, training.schedule_args
    fields: dict[str, object] = {"net": f"{stem}_net.prototxt", "type": SOLVERS[training.optimizer]}
    fields |= {SETTINGS[name]: chosen[name] for name in SETTINGS if name in chosen}
    fields |= dict(zip(("momentum", "momentum2"), chosen.get("betas", ()), strict=False))
    fields |= {"lr_policy": choose(POLICIES, training.schedule, "Caffe schedule")}
    if training.schedule == "step":
        fields |= {"gamma": args["factor"], "stepvalue": round(args["at"] * training.max_steps)}
    fields |= {
        "max_iter": training.max_steps,
        "test_initialization": False,
        "display": 10,
        "snapshot": 100,
        "snapshot_prefix": stem,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items())
