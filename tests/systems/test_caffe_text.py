"""What Caffe is told of a training is that training."""

import json
import struct
from pathlib import Path

import h5py
import pytest
import torch
from click.testing import CliRunner

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, published_dir
from srlib.models.foreign import _fields
from srlib.systems import caffe_text


def parse(text: str) -> dict[str, list]:
    """A message in protobuf's text format: the values of each field."""
    stack: list[dict[str, list]] = [{}]
    for line in map(str.strip, text.splitlines()):
        if line.endswith("{"):
            stack.append({})
            stack[-2].setdefault(line.split()[0], []).append(stack[-1])
        elif line == "}":
            stack.pop()
        elif line:
            name, value = line.split(": ")
            plain = value if value.isupper() and value.isalpha() else json.loads(value)
            stack[-1].setdefault(name, []).append(plain)
    (whole,) = stack
    return whole


def written(name: str, *overrides: str) -> tuple[list, systems.Experiment]:
    """The parsed net, deploy net and solver, and the list of files; the experiment."""
    experiment = systems.get(name, "paper", overrides)
    net, deploy, solver, files = caffe_text.texts(experiment, Path("here/patches.h5")).values()
    return [*map(parse, (net, deploy, solver)), files], experiment


def convolutions(message: dict) -> list[dict]:
    return [layer for layer in message["layer"] if layer["type"] == ["Convolution"]]


def parameters(message: dict, channels: int) -> int:
    """Weights and biases, with the input channels that the layers' order gives."""
    count = 0
    for (settings,) in (layer["convolution_param"] for layer in convolutions(message)):
        (n,), (k,) = settings["num_output"], settings["kernel_size"]
        count, channels = count + n * (channels * k**3 + 1), n
    return count


@pytest.mark.parametrize(
    ("name", "channels", "size", "count"),
    [("recnn", 1, 21, 888_769), ("recnn_multi", 2, 25, 890_497)],
)
def test_the_nets_are_ours(name, channels, size, count):
    (net, deploy, _, files), experiment = written(name)
    network = experiment.network.build()
    assert files == "patches.h5\n"
    for message in (net, deploy):
        convs = convolutions(message)
        assert (
            parameters(message, channels) == count == sum(p.numel() for p in network.parameters())
        )
        assert [layer["name"][0] for layer in convs] == [f"conv{i}" for i in range(1, 11)]
        kinds = [layer["type"][0] for layer in message["layer"]]
        assert kinds.count("ReLU") == 9 and kinds.count("Eltwise") == 1
        for layer, conv in zip(convs, network.children(), strict=True):
            (settings,) = layer["convolution_param"]
            assert settings["kernel_size"] == [3] and settings["pad"] == [1]
            assert settings["engine"] == ["CAFFE"]  # cuDNN has no 3-D convolution there
            assert settings["weight_filler"][0]["std"] == [
                pytest.approx((2 / (27 * conv.in_channels)) ** 0.5)
            ]
            assert [rate["lr_mult"] for rate in layer["param"]] == [[1.0], [0.1]]
    assert deploy["input_shape"] == [{"dim": [1, channels, size, size, size]}]
    data = net["layer"][0]
    assert data["type"] == ["HDF5Data"] and data["top"] == ["data", "label"]
    assert data["hdf5_data_param"] == [
        {"source": ["patches_train.txt"], "batch_size": [64], "shuffle": [True]}
    ]
    assert net["layer"][-1]["type"] == ["EuclideanLoss"]


def test_the_second_channel_is_not_added_to_the_output():
    """The code adds one channel to two, which Caffe refuses."""
    (net, *_), _ = written("recnn_multi")
    layers = {layer["name"][0]: layer for layer in net["layer"]}
    assert layers["slice"]["bottom"] == ["data"] and layers["slice"]["slice_param"] == [
        {"axis": [1], "slice_point": [1]}
    ]
    assert layers["out"]["bottom"] == ["conv10", layers["slice"]["top"][0]]
    assert layers["silence"]["bottom"] == layers["slice"]["top"][1:]
    (net, *_), _ = written("recnn_multi", "network.residual=False")
    assert not {"slice", "out"} & {layer["name"][0] for layer in net["layer"]}


def test_every_blob_that_a_layer_reads_was_made_before():
    for name in ("recnn", "recnn_multi", "srcnn3d"):
        (net, deploy, *_), _ = written(name)
        for message in (net, deploy):
            made = set(message.get("input", []))
            for layer in message["layer"]:
                assert set(layer.get("bottom", [])) <= made
                made |= set(layer.get("top", []))


def test_options_of_the_generators_are_overrides():
    """-l 5 -k 5 --numkernel 32 -r False -b 16 of generate_net, -p of generate_training."""
    (net, deploy, *_), _ = written(
        "recnn", "network.layers=5", "network.kernel=5", "network.width=32",
        "network.residual=False", "training.batch_size=16", "examples.patch_size=25",
    )  # fmt: skip
    convs = [layer["convolution_param"][0] for layer in convolutions(net)]
    assert [c["num_output"] for c in convs] == [[32]] * 4 + [[1]]
    assert all(c["kernel_size"] == [5] and c["pad"] == [2] for c in convs)
    assert net["layer"][0]["hdf5_data_param"][0]["batch_size"] == [16]
    assert "Eltwise" not in {layer["type"][0] for layer in net["layer"]}
    assert deploy["input_shape"][0]["dim"] == [1, 1, 25, 25, 25]


def test_the_solver_has_the_numbers_of_the_training():
    (*_, solver, _), _ = written("recnn")
    expected = {
        "net": "patches_net.prototxt", "type": "Adam", "base_lr": 1e-3, "momentum": 0.9,
        "momentum2": 0.999, "delta": 1e-8, "weight_decay": 0, "lr_policy": "multistep",
        "gamma": 0.1, "stepvalue": 10_000, "max_iter": 20_000, "snapshot": 100, "display": 10,
        "test_initialization": False, "snapshot_prefix": "patches",
    }  # fmt: skip
    assert solver == {name: [value] for name, value in expected.items()}
    (*_, solver, _), _ = written(
        "recnn", "training.optimizer_args.betas=0.8,0.99", "training.learning_rate=1e-4",
        "training.optimizer_args.weight_decay=1e-5", "training.max_steps=1000",
        "training.schedule_args.at=0.3",
    )  # fmt: skip
    names = ("momentum", "momentum2", "base_lr", "weight_decay", "max_iter", "stepvalue")
    assert [solver[name] for name in names] == [[0.8], [0.99], [1e-4], [1e-5], [1000], [300]]


@pytest.mark.parametrize(
    ("optimizer", "kind", "numbers"),
    [
        ("sgd", "SGD", {"momentum": 0.9}),
        ("nag", "Nesterov", {"momentum": 0.9}),
        ("rmsprop", "RMSProp", {"momentum": 0, "rms_decay": 0.99, "delta": 1e-8}),
        ("adagrad", "AdaGrad", {"delta": 1e-8}),  # Caffe refuses a momentum
        ("adadelta", "AdaDelta", {"momentum": 0.9, "delta": 1e-8}),
    ],
)
def test_every_solver_has_its_name(optimizer, kind, numbers):
    (*_, solver, _), _ = written("recnn", f"training.optimizer={optimizer}")
    found = {name: solver[name][0] for name in ("momentum", "rms_decay", "delta") if name in solver}
    assert solver["type"] == [kind] and found == numbers


def test_srcnn3d_is_compared_where_it_gives_something():
    (net, _, solver, _), _ = written("srcnn3d")
    layers = {layer["name"][0]: layer for layer in net["layer"]}
    assert all(layer["convolution_param"][0]["pad"] == [0] for layer in convolutions(net))
    assert layers["middle"]["crop_param"] == [{"axis": [2], "offset": [6]}]
    assert layers["middle"]["bottom"] == ["label", "conv3"]
    assert parameters(net, 1) == 52_801
    assert (solver["type"], solver["lr_policy"], solver["base_lr"]) == (["SGD"], ["fixed"], [1e-4])


def test_what_caffe_lacks_is_refused_and_other_systems_have_no_text():
    with pytest.raises(InputError, match="unknown Caffe schedule 'cosine'"):
        written("recnn", "training.schedule=cosine", "training.schedule_args={}")
    assert caffe_text.texts(systems.get("mdcsrn"), Path("patches.h5")) == {}


def test_the_texts_lie_beside_the_patches(cohort, tmp_path):
    words = ["store", "recnn_x2", "--profile", "smoke", "--cohort", str(cohort)]
    words += ["--out", str(tmp_path / "p.h5"), "--set", "training.learning_rate=3e-4"]
    run = CliRunner().invoke(main, words)
    assert run.exit_code == 0, run.output
    kinds = ("net.prototxt", "deploy.prototxt", "solver.prototxt", "train.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["p.h5", *(f"p_{k}" for k in kinds)]
    )
    assert parse((tmp_path / "p_solver.prototxt").read_text())["base_lr"] == [3e-4]
    (tmp_path / "p.h5").unlink()  # as if killed before they were written
    assert CliRunner().invoke(main, words).exit_code == 0
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1 and "p.h5 exists; --force" in again.stderr
    (tmp_path / "p.h5").unlink()
    (tmp_path / "p_net.prototxt").write_text("another's\n")
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1 and "p_net.prototxt exists; --force" in again.stderr
    assert not (tmp_path / "p.h5").exists()
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
    with h5py.File(tmp_path / "p.h5") as file:  # as the code's, so that others may add to it
        assert file["data"].maxshape[0] is file["label"].maxshape[0] is None


def test_weights_that_caffe_trained_are_what_training_starts_with():
    """The text's spread is that of the weights that we draw."""
    (net, *_), experiment = written("recnn_x2", "network.layers=3")
    torch.manual_seed(0)
    for layer, conv in zip(convolutions(net), experiment.network.build().children(), strict=True):
        std = layer["convolution_param"][0]["weight_filler"][0]["std"][0]
        assert conv.weight.std().item() == pytest.approx(std, rel=0.06, abs=1e-12)


PUBLISHED = {
    "SRReCNN3D_10Layers_IsoScalex2.caffemodel": "recnn",
    "MultiSRReCNN3D_10Layers_IsoScalex2.caffemodel": "recnn_multi",
    "SRCNN3D_iter_470000.caffemodel": "srcnn3d",
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_text_says_what_the_published_files_say_of_their_own_training(file):
    """Field numbers are those of caffe.proto: batch size, rates, and each convolution's settings."""
    path = published_dir() / file
    if not path.is_file():
        pytest.skip(f"{file} is not at hand")
    (net, *_), _ = written(PUBLISHED[file])
    whole = _fields(memoryview(path.read_bytes()))
    layers = [list(_fields(layer)) for n, layer in whole if n == 100]
    (batches,) = (dict(_fields(v)) for layer in layers for n, v in layer if n == 112)
    assert net["layer"][0]["hdf5_data_param"][0]["batch_size"] == [batches[2]]
    theirs = [layer for layer in layers if any(n == 106 for n, _ in layer)]
    for ours, layer in zip(convolutions(net), theirs, strict=True):
        rates = [struct.unpack("<f", dict(_fields(v))[3])[0] for n, v in layer if n == 6]
        assert [rate["lr_mult"] for rate in ours["param"]] == [[pytest.approx(r)] for r in rates]
        (settings,) = (dict(_fields(v)) for n, v in layer if n == 106)
        (wanted,) = ours["convolution_param"]
        found = {"num_output": settings[1], "pad": settings[3], "kernel_size": settings[4]}
        assert {name: wanted[name][0] for name in found} == found
        (std,) = struct.unpack("<f", dict(_fields(settings[7]))[6])
        assert wanted["weight_filler"][0]["std"] == [pytest.approx(std, rel=1e-5)]
