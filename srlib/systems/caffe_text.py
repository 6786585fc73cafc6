"""Describe the training of SRReCNN3D or SRCNN3D to Caffe, for text files beside stored patches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from srlib.core.paths import choose
from srlib.scans.patches import per_axis
from srlib.systems.base import Experiment
from srlib.training.games import Training

SOLVERS = {  # in Caffe
    "adam": "Adam", "sgd": "SGD", "nag": "Nesterov", "rmsprop": "RMSProp",
    "adagrad": "AdaGrad", "adadelta": "AdaDelta",
}  # fmt: skip
POLICIES = {"constant": "fixed", "step": "multistep"}
SETTINGS = {
    "momentum": "momentum", "rho": "momentum", "alpha": "rms_decay", "eps": "delta",
    "weight_decay": "weight_decay", "lr": "base_lr",
}  # fmt: skip
Fields = dict[str, Any]


def texts(experiment: Experiment, store: Path) -> dict[Path, str]:
    """The net to train, the net to deploy, the solver and the list of HDF5 files, by their paths.

    Empty for other models. Caffe runs in the folder of ``store``. Deviations from the code: of two
    channels only the first is added to the output (Slice), and the deployed net has both; patches
    are shuffled when they are read. Raises InputError for a schedule that Caffe lacks.
    """
    if experiment.network.model not in ("recnn", "srcnn3d"):
        return {}
    training, name = experiment.training, {"name": experiment.name}
    with torch.device("meta"):
        network = experiment.network.build()
    read = {"source": f"{store.stem}_train.txt", "batch_size": training.batch_size, "shuffle": True}
    data = _layer("data", "HDF5Data", (), "data", "label", hdf5_data_param=read)
    *layers, last = _layers(network, training)
    loss = _loss(last["top"][0], network.halo if training.loss_crop else 0)
    size = (1, network.conv1.in_channels, *per_axis(experiment.examples.patch_size))
    messages = {
        "net": name | {"layer": (data, *layers, last, *loss)},
        "deploy": name | {"input": "data", "input_shape": {"dim": size}, "layer": (*layers, last)},
        "solver": _solver(training, network, store.stem),
    }
    found = {f"{kind}.prototxt": "\n".join((*_lines(m), "")) for kind, m in messages.items()}
    found["train.txt"] = f"{store.name}\n"
    return {store.with_name(f"{store.stem}_{name}"): text for name, text in found.items()}


def _layer(name: str, kind: str, bottom: tuple[str, ...], *top: str, **settings: Any) -> Fields:
    return {"name": name, "type": kind, "bottom": bottom, "top": top, **settings}


def _layers(network: torch.nn.Module, training: Training) -> Iterator[Fields]:
    rates, engine = ({"lr_mult": 1.0}, {"lr_mult": training.bias_rate}), {"engine": "CAFFE"}
    below = scan = "data"
    for (name, conv), std in zip(network.named_children(), network.stds, strict=True):
        if below != "data":
            yield _layer(below.replace("conv", "relu"), "ReLU", (below,), below, relu_param=engine)
        given = {"num_output": conv.out_channels, "kernel_size": conv.kernel_size[0], "stride": 1}
        given |= {"pad": 0 if training.loss_crop else conv.padding[0], **engine}
        given |= {"weight_filler": {"type": "gaussian", "std": std}, "bias_filler": {"value": 0}}
        yield _layer(name, "Convolution", (below,), name, param=rates, convolution_param=given)
        below = name
    if network.residual and network.conv1.in_channels > 1:
        scan, cut = "interpolated", {"axis": 1, "slice_point": 1}
        yield _layer("slice", "Slice", ("data",), scan, "reference", slice_param=cut)
        yield _layer("silence", "Silence", ("reference",))
    if network.residual:
        yield _layer("out", "Eltwise", (below, scan), "out")


def _loss(estimate: str, cropped: int) -> Iterator[Fields]:
    label, cut = "label", {"axis": 2, "offset": cropped}
    if cropped:  # without padding the estimate is smaller
        yield _layer("middle", "Crop", (label, estimate), label := "middle", crop_param=cut)
    for blob in (estimate, label):  # the loss takes four axes at most
        yield _layer(f"{blob}_flat", "Flatten", (blob,), f"{blob}_flat")
    yield _layer("loss", "EuclideanLoss", (f"{estimate}_flat", f"{label}_flat"), "loss")


def _solver(training: Training, network: torch.nn.Module, stem: str) -> Fields:
    chosen, args = training.make_optimizer(network).defaults, training.schedule_args
    fields: Fields = {"net": f"{stem}_net.prototxt", "type": SOLVERS[training.optimizer]}
    fields |= {SETTINGS[name]: chosen[name] for name in SETTINGS if name in chosen}
    fields |= dict(zip(("momentum", "momentum2"), chosen.get("betas", ()), strict=False))
    fields |= {"lr_policy": choose(POLICIES, training.schedule, "Caffe schedule")}
    if training.schedule == "step":
        fields |= {"gamma": args["factor"], "stepvalue": round(args["at"] * training.max_steps)}
    fields |= {"max_iter": training.max_steps, "test_initialization": False, "display": 10}
    return fields | {"snapshot": 100, "snapshot_prefix": stem}


def _lines(fields: Fields, indent: str = "") -> Iterator[str]:
    for name, value in fields.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, dict):
                yield from (f"{indent}{name} {{", *_lines(one, f"{indent}  "), f"{indent}}}")
            else:
                yield f"{indent}{name}: {one if name == 'engine' else json.dumps(one)}"
