"""Other programs' weights: what is read, what is refused, and that no file makes its reader hang, swell or crash."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load

from srlib.core import isolated
from srlib.core.paths import InputError
from srlib.models.foreign import MOST, convert, read_foreign
from srlib.models.network import Network
from srlib.models.unet3d import UNet3D
from srlib.systems.published import load_published
from srlib.systems.trained import load_model
from tests.mutations import mutants

KERNEL = np.arange(27 * 2, dtype=np.float32).reshape(3, 3, 3, 1, 2)
WEIGHT = np.linspace(-1, 1, 2 * 3 * 8, dtype=np.float32).reshape(2, 3, 2, 2, 2)
BIAS = np.array([0.5, -2.0], np.float32)
LAYERS = {"input": {}, "conv": {"conv/kernel:0": KERNEL, "conv/bias:0": BIAS}, "pool": {}}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(field: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(body)) + body


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def shape(*sizes: int) -> bytes:
    return message(7, message(1, *map(varint, sizes)))


def blob(values: np.ndarray) -> bytes:
    return message(7, message(5, np.asarray(values, "<f4").tobytes()), shape(*values.shape))


def layer(name: str, *blobs: bytes) -> bytes:
    return message(
        100, message(1, name.encode()), message(2, b"Convolution"), *blobs, number(10, 0)
    )


MODEL = (
    message(1, b"net")
    + layer("data")
    + layer("conv1", blob(WEIGHT), blob(BIAS))
    + layer("c\u00e9", blob(BIAS))
)


def fill(group, layers, as_bytes=False):
    group.attrs["layer_names"] = (
        np.array([n.encode() for n in layers]) if as_bytes else list(layers)
    )
    for name, weights in layers.items():
        part = group.create_group(name)
        names = np.array([n.encode() for n in weights]) if as_bytes else list(weights)
        part.attrs["weight_names"] = names if weights else np.zeros(0)
        for weight, values in weights.items():
            part[weight] = values


def make(path, layers=LAYERS, inner="", **options):
    with h5py.File(path, "w") as file:
        fill(file.create_group(inner) if inner else file, layers, **options)
    return path


def stored(path, **options):
    """A good file whose kernel is kept in another way."""
    with h5py.File(make(path), "a") as file:
        del file["conv/conv/kernel:0"]
        return file["conv/conv"].create_dataset("kernel:0", **options)


def named(path, group, attribute, value):
    with h5py.File(make(path), "a") as file:
        file[group].attrs[attribute] = value


def mostly_nothing(path):
    """4 GB, of which a kilobyte is there."""
    stored(path, shape=(10**9,), dtype="f4", chunks=(256,))
    with h5py.File(path, "a") as file:
        file["conv/conv/kernel:0"][:256] = 1


@pytest.mark.parametrize("inner", ["", "model_weights"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_keras_files_of_both_layouts_and_both_kinds_of_names(tmp_path, inner, as_bytes):
    arrays = load(read_foreign(make(tmp_path / "net.h5", inner=inner, as_bytes=as_bytes)))
    assert set(arrays) == {"conv.0", "conv.1"}
    np.testing.assert_array_equal(arrays["conv.0"], KERNEL)
    np.testing.assert_array_equal(arrays["conv.1"], BIAS)


def test_other_precisions_become_float32(tmp_path):
    half = {"a": {"w": BIAS.astype(np.float16)}, "b": {"w": BIAS.astype(">f8")}}
    for array in load(convert(make(tmp_path / "net.h5", half))).values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, BIAS)


def test_caffe_layers_with_weights(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(MODEL)
    arrays = load(read_foreign(path))
    assert set(arrays) == {"conv1.0", "conv1.1", "c\u00e9.0"}
    np.testing.assert_array_equal(arrays["conv1.0"], WEIGHT)
    np.testing.assert_array_equal(arrays["conv1.1"], BIAS)


def test_state_dicts_are_read_without_running_what_is_in_them(tmp_path):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"w": torch.from_numpy(WEIGHT).double().movedim(0, -1)}, tmp_path / "net.pth")
    np.testing.assert_array_equal(
        load(read_foreign(tmp_path / "net.pth"))["w"], np.moveaxis(WEIGHT, 0, -1)
    )
    torch.save({"w": Hostile()}, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"net\.pth"):
        read_foreign(tmp_path / "net.pth")
    assert not marker.exists()


def raw(*parts: bytes):
    return lambda path: path.write_bytes(b"".join(parts))


BAD = {
    "empty.h5": raw(),
    "text.h5": raw(b"weights"),
    "nothing.h5": lambda p: h5py.File(p, "w").close(),
    "no weights.h5": lambda p: make(p, {"input": {}}),
    "cut.h5": lambda p: (make(p), p.write_bytes(p.read_bytes()[:-300])),
    "missing layer.h5": lambda p: named(p, "/", "layer_names", ["conv", "dense"]),
    "names as numbers.h5": lambda p: named(p, "/", "layer_names", [1, 2]),
    "one name.h5": lambda p: named(p, "/", "layer_names", "conv"),
    "a group as an array.h5": lambda p: named(p, "conv", "weight_names", ["conv"]),
    "whole numbers.h5": lambda p: stored(p, data=np.array([1, 2])),
    "text as an array.h5": lambda p: stored(p, data="two"),
    "nothing as an array.h5": lambda p: stored(p, data=h5py.Empty("f4")),
    "not finite.h5": lambda p: stored(p, data=np.array([1, np.nan], np.float32)),
    "beyond float32.h5": lambda p: stored(p, data=np.array([1, 1e300])),
    "never written.h5": lambda p: stored(p, shape=(10,), dtype="f4"),
    "empty.caffemodel": raw(),
    "text.caffemodel": raw(b'name: "net"\nlayer { }\n'),
    "zeros.caffemodel": raw(bytes(10_000)),
    "no weights.caffemodel": raw(layer("a")),
    "cut.caffemodel": raw(MODEL[:-1]),
    "cut in a number.caffemodel": raw(MODEL, b"\x80"),
    "length beyond the file.caffemodel": raw(varint(100 << 3 | 2), varint(1 << 62), b"abc"),
    "group.caffemodel": raw(b"\x0b" * 1000),
    "layer as a number.caffemodel": raw(number(100, 5)),
    "name not UTF-8.caffemodel": raw(message(100, message(1, b"\xff\xfe"), blob(BIAS))),
    "too few numbers.caffemodel": raw(layer("a", message(7, message(5, bytes(8)), shape(3)))),
    "beyond memory.caffemodel": raw(
        layer("a", message(7, message(5, bytes(8)), shape(*[1 << 40] * 4)))
    ),
    "negative axis.caffemodel": raw(
        layer("a", message(7, message(5, bytes(8)), shape((1 << 64) - 1)))
    ),
    "no shape.caffemodel": raw(layer("a", message(7, message(5, bytes(8))))),
    "part of a number.caffemodel": raw(layer("a", message(7, message(5, b"abcde"), shape(1)))),
    "infinite.caffemodel": raw(layer("a", blob(np.array([1.0, np.inf])))),
    "too many.caffemodel": raw(layer("a", blob(BIAS) * (MOST + 1))),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_not_weights_is_an_error(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(Exception):  # noqa: B017 - any will do in a process of its own
        convert(tmp_path / name)


@pytest.mark.parametrize("name", ["text.h5", "not finite.h5", "cut.caffemodel"])
def test_refused_in_one_line_that_names_the_file(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(InputError, match=name) as error:
        load_published(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_file_that_swells_ends_at_the_memory_limit(tmp_path):
    mostly_nothing(tmp_path / "net.h5")
    with pytest.raises(InputError, match=r"net\.h5"):
        read_foreign(tmp_path / "net.h5")


def test_a_file_that_takes_too_long_ends_at_the_time_limit(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "net.caffemodel")  # nobody writes to it
    monkeypatch.setattr(isolated, "SECONDS", 1)
    with pytest.raises(InputError, match=r"net\.caffemodel.*not read within 1 s"):
        read_foreign(tmp_path / "net.caffemodel")


def test_a_reader_that_crashes_is_one_line(tmp_path, monkeypatch):
    def crash(command, **options):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return subprocess_run([sys.executable, "-c", code], **options)

    subprocess_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", crash)
    with pytest.raises(InputError, match=r"net\.h5.*its reader crashed"):
        read_foreign(tmp_path / "net.h5")


def test_a_reader_starts_without_torch():
    code = "import sys, srlib.models.foreign; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_cut_is_refused_unless_it_falls_between_layers(tmp_path):
    path, last = tmp_path / "net.caffemodel", layer("c\u00e9", blob(BIAS))
    for length in range(len(MODEL)):
        path.write_bytes(MODEL[:length])
        try:
            arrays = load(convert(path))
        except Exception:
            continue
        assert length == len(MODEL) - len(last) and set(arrays) == {"conv1.0", "conv1.1"}


def theirs(width=2, levels=3, channels=1, outputs=1):
    """Layers of SynthSR's U-Net as Keras names and orders them, with random weights."""
    rng, layers = np.random.default_rng(0), {}

    def add(name, kind, *shapes):
        parts = (
            ("kernel", "bias")
            if kind == "conv"
            else ("gamma", "beta", "moving_mean", "moving_variance")
        )
        shapes = shapes if kind == "conv" else shapes * 4
        layers[name] = {
            f"{name}/{p}:0": rng.uniform(0.1, 0.5, s).astype("f4")
            for p, s in zip(parts, shapes, strict=True)
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
    assert experiment.name == "synthsr_published"
    settings = {"levels": levels, "in_channels": channels, "out_channels": outputs}
    assert experiment.network == Network("unet3d", width, settings)
    assert experiment.reference == ("t2" if channels == 4 else "")  # two scans, each with its map
    kernel, bias = layers[f"unet_conv_uparm_{levels}_0"].values()
    mine = network.up[0].conv1
    np.testing.assert_array_equal(mine.weight.detach()[1, 2, 0, 1, 2], kernel[0, 1, 2, 2, 1])
    np.testing.assert_array_equal(mine.bias.detach(), bias)
    for part, theirs_ in zip(
        ("weight", "bias", "running_mean", "running_var"),
        layers["unet_bn_down_1"].values(),
        strict=True,
    ):
        np.testing.assert_array_equal(getattr(network.down[1].norm, part).detach(), theirs_)


def test_of_two_channels_the_hyperfine_weights_alone_take_a_t2(tmp_path):
    for name, reference in (
        ("SynthSR_v10_210712_hyperfine.h5", "t2"),
        ("SynthSR_v10_210712.h5", ""),
    ):
        assert load_published(make(tmp_path / name, theirs(channels=2)))[1].reference == reference


def lacking(name):
    return {k: v for k, v in theirs().items() if k != name}


def reshaped(name, *shapes):
    return theirs() | {
        name: {f"w{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    }


OTHER = {
    "another network": LAYERS,
    "no output": lacking("unet_likelihood"),
    "one convolution less": lacking("unet_conv_uparm_3_1"),
    "one norm less": lacking("unet_bn_up_0"),
    "one level less": lacking("unet_bn_down_2"),
    "one layer more": theirs() | {"unet_dense": {"w": BIAS}},
    "three convolutions": theirs() | {"unet_conv_downarm_0_2": {"w": KERNEL, "b": BIAS}},
    "three scans": theirs(channels=3),
    "a flat kernel": reshaped("unet_conv_downarm_0_0", (3, 3, 1, 2), (2,)),
    "scalars": reshaped("unet_conv_downarm_0_0", (), ()),
    "a norm of three": reshaped("unet_bn_down_0", (2,), (2,), (2,)),
    "kernels of 5": reshaped("unet_conv_downarm_0_0", (5, 5, 5, 1, 2), (2,)),
    "features that do not double": reshaped("unet_conv_downarm_2_1", (3, 3, 3, 4, 4), (4,)),
    "a thousand levels": theirs()
    | {f"unet_bn_down_{i}": {f"w{j}": BIAS for j in range(4)} for i in range(3, 1000)},
    "another width": reshaped("unet_conv_downarm_0_0", (3, 3, 3, 1, 50_000), (50_000,)),
}


@pytest.mark.parametrize("case", OTHER)
def test_other_networks_are_refused(tmp_path, case):
    path = make(tmp_path / "SynthSR_v10_210712.h5", OTHER[case])
    with pytest.raises(InputError, match=r"SynthSR_v10_210712\.h5") as error:
        load_published(path)
    assert "\n" not in str(error.value)


def published(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not at hand")
    return folder / name


@pytest.mark.parametrize(("layers", "channels"), [(20, 1), (5, 2)])
def test_caffe_models_of_any_size_are_read(tmp_path, layers, channels):
    """Such as the published one of 20 layers for the factors 2 and 3."""
    sizes, rng = [channels, *[3] * (layers - 1), 1], np.random.default_rng(0)
    blobs = [(rng.random((n, m, 3, 3, 3)), rng.random(n)) for m, n in itertools.pairwise(sizes)]
    named = (layer(f"conv{i}", *map(blob, pair)) for i, pair in enumerate(blobs, 1))
    path = tmp_path / "SRReCNN3D_20Layers_IsoScalex2x3.caffemodel"
    path.write_bytes(message(1, b"net") + b"".join(named))
    network, experiment = load_published(path)
    assert experiment.name == ("recnn_multi" if channels == 2 else "recnn")
    assert (experiment.network.width, experiment.number("layers")) == (3, layers)
    last = network.get_submodule(f"conv{layers}")
    np.testing.assert_allclose(last.weight.detach(), blobs[-1][0], rtol=1e-6)
    np.testing.assert_allclose(network.conv2.bias.detach(), blobs[1][1], rtol=1e-6)


@torch.inference_mode()
def test_output_is_that_of_keras(published_dir):
    network, experiment = load_published(published(published_dir, "synthsr_unet_f6_random.h5"))
    assert isinstance(network, UNet3D) and experiment.network.width == 6
    pair = np.load(published(published_dir, "synthsr_unet_f6_io.npz"))
    y = network.eval()(torch.from_numpy(pair["x"])[None, None])[0, 0].numpy()
    assert pair["y"].std() > 0.1
    np.testing.assert_allclose(y, pair["y"], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthsr_unet_f6_random.h5", "SRCNN3D_iter_470000.caffemodel"])
def test_mutants_of_the_authors_files_are_read_or_refused(published_dir, tmp_path, name):
    """Neither kind of error but those that have a line."""
    file = published(published_dir, name)
    for mutant in mutants(file.read_bytes(), 6, 3000):
        (tmp_path / name).write_bytes(mutant)
        try:
            load_published(tmp_path / name)
        except InputError as err:
            assert "\n" not in str(err)


def test_published_caffe_weights_have_their_shapes(published_dir):
    arrays = load(read_foreign(published(published_dir, "SRCNN3D_iter_470000.caffemodel")))
    assert [arrays[f"conv{i}.{j}"].shape for i in (1, 2, 3) for j in (0, 1)] == [
        (64, 1, 9, 9, 9), (64,), (32, 64, 1, 1, 1), (32,), (1, 32, 5, 5, 5), (1,),
    ]  # fmt: skip


def test_models_are_loaded_in_threads():
    """Each counts its own weights alone."""
    with ThreadPoolExecutor(4) as pool:
        models = [*pool.map(lambda _: load_model("robust", device="cpu"), range(8))]
    first, *others = (model.network.state_dict() for model in models)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_seed_gives_the_same_network_in_threads():
    network, state = Network("recnn", 4, {"layers": 3}), torch.random.get_rng_state()
    expected = network.build(0).state_dict()
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(lambda _: network.build(0).state_dict(), range(40))]
    assert all(torch.equal(one[name], expected[name]) for one in made for name in expected)
    assert torch.equal(torch.random.get_rng_state(), state)
