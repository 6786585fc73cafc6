"""The Keras reader and SynthSR's weights: what is read, what is refused, and that no file makes it hang or swell."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import mutants

from srlib.keras import MAX_NAMES, read_weights
from srlib.models.unet3d import UNet3D
from srlib.paths import InputError
from srlib.systems.published import load_published

KERNEL = np.arange(27 * 2, dtype=np.float32).reshape(3, 3, 3, 1, 2)
BIAS = np.array([0.5, -2.0], np.float32)
LAYERS = {"input": {}, "conv": {"conv/kernel:0": KERNEL, "conv/bias:0": BIAS}, "pool": {}}


def fill(group, layers, as_bytes=False):
    group.attrs["layer_names"] = np.array([n.encode() for n in layers]) if as_bytes else list(layers)
    for layer, weights in layers.items():
        part = group.create_group(layer)
        names = np.array([n.encode() for n in weights]) if as_bytes else list(weights)
        part.attrs["weight_names"] = names if weights else np.zeros(0)
        for name, values in weights.items():
            part[name] = values


def make(path, layers=LAYERS, inner="", **options):
    with h5py.File(path, "w") as file:
        fill(file.create_group(inner) if inner else file, layers, **options)
    return path


def change(**edits):
    """Write a good file, then do something to it."""

    def write(path):
        make(path)
        with h5py.File(path, "a") as file:
            for name, edit in edits.items():
                edit(file, name)

    return write


def replaced(link_or_values):
    def edit(file, _):
        del file["conv/conv/bias:0"]
        file["conv/conv/bias:0"] = link_or_values

    return edit


def stored(**options):
    def edit(file, _):
        del file["conv/conv/kernel:0"]
        file["conv/conv"].create_dataset("kernel:0", **options)

    return edit


def named(group, attribute, value):
    return lambda file, _: file[group].attrs.__setitem__(attribute, value)


def virtual(file, _):
    del file["conv/conv/bias:0"]
    layout = h5py.VirtualLayout((2,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "data", (2,))
    file["conv/conv"].create_virtual_dataset("bias:0", layout)


def shared_many_times(path):
    """Ten thousand names of one array: far more in memory than in the file."""
    make(path, {"conv": {"a": np.ones(1000, np.float32)}})
    with h5py.File(path, "a") as file:
        file["conv"].attrs["weight_names"] = np.array([b"a"] * 1500)


BAD = {
    "empty": ("signature", lambda p: p.write_bytes(b"")),
    "text": ("signature", lambda p: p.write_text("weights")),
    "nothing in it": ("model_weights", lambda p: h5py.File(p, "w").close()),
    "no weights": ("no layer", lambda p: make(p, {"input": {}})),
    "cut off": ("truncated", lambda p: (make(p), p.write_bytes(p.read_bytes()[:-300]))),
    "missing layer": ("dense", change(a=named("/", "layer_names", ["conv", "dense"]))),
    "layer twice": ("twice", change(a=named("/", "layer_names", ["conv", "conv"]))),
    "names as numbers": ("not text", change(a=named("/", "layer_names", [1, 2]))),
    "names as a table": ("a list", change(a=named("/", "layer_names", np.array([[b"conv"]])))),
    "one name": ("a list", change(a=named("/", "layer_names", "conv"))),
    "too many names": ("at most", change(a=named("/", "layer_names", np.array([b"c"] * (MAX_NAMES + 1))))),
    "upwards": ("missing", change(a=named("conv", "weight_names", ["../conv/conv/bias:0"]))),
    "absolute": ("missing", change(a=named("conv", "weight_names", ["/conv/conv/bias:0"]))),
    "a group as an array": ("real numbers", change(a=named("conv", "weight_names", ["conv"]))),
    "whole numbers": ("real numbers", change(a=replaced(np.array([1, 2])))),
    "text as an array": ("real numbers", change(a=replaced("two"))),
    "nothing as an array": ("real numbers", change(a=replaced(h5py.Empty("f4")))),
    "not finite": ("not finite", change(a=replaced(np.array([1, np.nan], np.float32)))),
    "beyond float32": ("not finite", change(a=replaced(np.array([1, 1e300])))),
    "soft link": ("a link", change(a=replaced(h5py.SoftLink("/conv/conv/kernel:0")))),
    "external link": ("a link", change(a=replaced(h5py.ExternalLink("other.h5", "/data")))),
    "external file": ("other files", change(a=stored(shape=(2,), dtype="f4", external=[("raw", 0, 8)]))),
    "virtual": ("other files", change(a=virtual)),
    "compressed": ("compressed", change(a=stored(data=np.zeros(100_000, np.float32), compression="gzip"))),
    "never written": ("whole in the file", change(a=stored(shape=(10_000,) * 3, dtype="f4"))),
    "shared many times": ("whole in the file", shared_many_times),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:overflow")
def test_refuses_in_one_line_that_names_the_file(tmp_path, case):
    words, write = BAD[case]
    write(tmp_path / "net.h5")
    (tmp_path / "raw").write_bytes(bytes(8))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = BIAS
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"net\.h5") as error:
        read_weights(tmp_path / "net.h5")
    assert words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))
    assert time.perf_counter() - began < 2


def test_a_missing_file_is_refused(tmp_path):
    for read in (read_weights, load_published):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "net.h5")


@pytest.mark.parametrize("inner", ["", "model_weights"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_reads_both_layouts_and_both_kinds_of_names(tmp_path, inner, as_bytes):
    layers = read_weights(make(tmp_path / "net.h5", inner=inner, as_bytes=as_bytes))
    assert list(layers) == ["conv"]  # layers without weights are left out
    np.testing.assert_array_equal(layers["conv"][0], KERNEL)
    np.testing.assert_array_equal(layers["conv"][1], BIAS)


def test_other_precisions_become_float32(tmp_path):
    half = {"a": {"w": BIAS.astype(np.float16)}, "b": {"w": BIAS.astype(">f8")}}
    for arrays in read_weights(make(tmp_path / "net.h5", half)).values():
        assert arrays[0].dtype == np.float32
        np.testing.assert_array_equal(arrays[0], BIAS)


def theirs(width=2, levels=3, channels=1, outputs=1):
    """Layers of SynthSR's U-Net as Keras names and orders them, with random weights."""
    rng, layers = np.random.default_rng(0), {}

    def add(name, kind, *shapes):
        parts = ("kernel", "bias") if kind == "conv" else ("gamma", "beta", "moving_mean", "moving_variance")
        shapes = shapes if kind == "conv" else shapes * 4
        layers[name] = {
            f"{name}/{p}:0": rng.uniform(0.1, 0.5, s).astype("f4") for p, s in zip(parts, shapes, strict=True)
        }

    def level(arm, number, index, before, n):
        add(f"unet_conv_{arm}arm_{number}_0", "conv", (3, 3, 3, before, n), (n,))
        add(f"unet_conv_{arm}arm_{number}_1", "conv", (3, 3, 3, n, n), (n,))
        add(f"unet_bn_{arm}_{index}", "norm", (n,))

    features = [width * 2**i for i in range(levels)]
    for i, n in enumerate(features):
        level("down", i, i, features[i - 1] if i else channels, n)
    for i, n in enumerate(reversed(features[:-1])):
        level("up", levels + i, i, 3 * n, n)
    add("unet_likelihood", "conv", (1, 1, 1, width, outputs), (outputs,))
    return layers


@pytest.mark.parametrize("size", [(2, 3, 1, 1), (3, 2, 2, 2), (1, 4, 4, 1)])
def test_the_size_is_read_from_the_file(tmp_path, size):
    layers = {"labels": {"labels/w": BIAS}, **theirs(*size)}  # a training has layers of its own
    network, experiment = load_published(make(tmp_path / "mine.h5", layers, inner="model_weights"))
    width, levels, channels, outputs = size
    assert (experiment.name, experiment.network.model, experiment.network.width) == (
        "synthsr_published",
        "unet3d",
        width,
    )
    assert experiment.network.model_args == {"levels": levels, "in_channels": channels, "out_channels": outputs}
    assert experiment.reference == ("t2" if channels == 4 else "")  # two scans, each with its map
    kernel, bias = layers[f"unet_conv_uparm_{levels}_0"].values()
    mine = network.up[0].conv1
    np.testing.assert_array_equal(mine.weight.detach()[1, 2, 0, 1, 2], kernel[0, 1, 2, 2, 1])
    np.testing.assert_array_equal(mine.bias.detach(), bias)
    for part, theirs_ in zip(
        ("weight", "bias", "running_mean", "running_var"), layers["unet_bn_down_1"].values(), strict=True
    ):
        np.testing.assert_array_equal(getattr(network.down[1].norm, part).detach(), theirs_)


def test_of_two_channels_the_hyperfine_weights_alone_take_a_t2(tmp_path):
    for name, reference in (("SynthSR_v10_210712_hyperfine.h5", "t2"), ("SynthSR_v10_210712.h5", "")):
        assert load_published(make(tmp_path / name, theirs(channels=2)))[1].reference == reference


def lacking(name):
    return {k: v for k, v in theirs().items() if k != name}


def reshaped(name, *shapes):
    return theirs() | {name: {f"w{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}}


OTHER = {
    "another network": LAYERS,
    "no output": lacking("unet_likelihood"),
    "one convolution less": lacking("unet_conv_uparm_3_1"),
    "one norm less": lacking("unet_bn_up_0"),
    "one level less": lacking("unet_bn_down_2"),
    "one layer more": theirs() | {"unet_dense": {"w": BIAS}},
    "three convolutions": theirs() | {"unet_conv_downarm_0_2": {"w": KERNEL, "b": BIAS}},
    "three scans": theirs(channels=3),
    "one level alone": {k: v for k, v in theirs(levels=1).items() if "up" not in k},
    "a flat kernel": reshaped("unet_conv_downarm_0_0", (3, 3, 1, 2), (2,)),
    "scalars": reshaped("unet_conv_downarm_0_0", (), ()),
    "a norm of three": reshaped("unet_bn_down_0", (2,), (2,), (2,)),
    "kernels of 5": reshaped("unet_conv_downarm_0_0", (5, 5, 5, 1, 2), (2,)),
    "features that do not double": reshaped("unet_conv_downarm_2_1", (3, 3, 3, 4, 4), (4,)),
    "another width": reshaped("unet_conv_downarm_0_0", (3, 3, 3, 1, 50_000), (50_000,)),
}


@pytest.mark.parametrize("case", OTHER)
def test_other_networks_are_refused(tmp_path, case):
    path = make(tmp_path / "SynthSR_v10_210712.h5", OTHER[case])
    with pytest.raises(InputError, match=r"SynthSR_v10_210712\.h5") as error:
        load_published(path)
    assert "\n" not in str(error.value)


def count_read(path: Path, content: bytes, count: int, reach: int, read) -> int:
    """How many mutants, changed mostly among their first ``reach`` bytes, are read; the others must be refused."""
    done = 0
    with open(path, "wb", buffering=0) as file:  # kept open: making a file anew takes longer than reading it
        for mutant in mutants(content, count, reach):
            file.seek(0)
            file.write(mutant)
            file.truncate()
            try:
                read(path)
                done += 1
            except InputError as err:
                assert "\n" not in str(err)
    return done


@pytest.mark.parametrize("inner", ["", "model_weights"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_mutants_are_read_or_refused(tmp_path, inner, as_bytes):
    """No crash, no hang, no other error."""
    path = make(tmp_path / "net.h5", theirs(levels=2), inner, as_bytes=as_bytes)
    count, began = 800 if as_bytes else 200, time.perf_counter()  # names of any length are slow to read
    assert 10 < count_read(path, path.read_bytes(), count, 6000, load_published) < count - 10
    assert time.perf_counter() - began < 60


def published(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not at hand")
    return folder / name


@torch.inference_mode()
def test_output_is_that_of_keras(published_dir):
    network, experiment = load_published(published(published_dir, "synthsr_unet_f6_random.h5"))
    assert isinstance(network, UNet3D) and experiment.network.width == 6
    pair = np.load(published(published_dir, "synthsr_unet_f6_io.npz"))
    y = network.eval()(torch.from_numpy(pair["x"])[None, None])[0, 0].numpy()
    assert pair["y"].std() > 0.1
    np.testing.assert_allclose(y, pair["y"], atol=1e-4, rtol=0)


def test_mutants_of_keras_own_file_are_read_or_refused(published_dir, tmp_path):
    content = published(published_dir, "synthsr_unet_f6_random.h5").read_bytes()
    assert 10 < count_read(tmp_path / "net.h5", content, 200, 60_000, read_weights) < 190
