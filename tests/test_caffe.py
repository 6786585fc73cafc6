"""The Caffe reader: what it reads, what it refuses, and that nothing in a file makes it hang or swell."""

import contextlib
import functools
import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from srlib.caffe import MAX_BLOBS, read_blobs
from srlib.paths import InputError, published_dir

REAL = published_dir() / "SRCNN3D_iter_470000.caffemodel"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(body)) + body


def floats(values: np.ndarray, packed: bool = True) -> bytes:
    raw = np.asarray(values, dtype="<f4").tobytes()
    if packed:
        return message(5, raw)
    return b"".join(varint(5 << 3 | 5) + raw[i : i + 4] for i in range(0, len(raw), 4))


def blob(values: np.ndarray, field: int = 7, packed: bool = True, legacy: bool = False) -> bytes:
    """A BlobProto with its shape as a BlobShape or, in old files, as num, channels, height and width."""
    if legacy:
        shape = b"".join(number(i + 1, n) for i, n in enumerate(values.shape))
    elif packed:
        shape = message(7, message(1, *(varint(n) for n in values.shape)))
    else:
        shape = message(7, *(number(1, n) for n in values.shape))
    return message(field, floats(values.ravel(), packed), shape)


def layer(name: str, *blobs: bytes) -> bytes:
    return message(100, message(1, name.encode()), message(2, b"Convolution"), *blobs, number(10, 0))


WEIGHT = np.linspace(-1, 1, 2 * 3 * 8, dtype=np.float32).reshape(2, 3, 2, 2, 2)
BIAS = np.array([0.5, -2.0], dtype=np.float32)
LAST = layer("c\u00e9", blob(BIAS))
MODEL = message(1, b"net") + layer("data") + layer("conv1", blob(WEIGHT), blob(BIAS)) + LAST


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(content)
        return path

    return write


def test_reads_blobs_with_their_shapes(write):
    blobs = read_blobs(write(MODEL))
    assert list(blobs) == ["conv1", "c\u00e9"]  # layers without weights are left out
    assert [b.shape for b in blobs["conv1"]] == [(2, 3, 2, 2, 2), (2,)]
    assert all(b.dtype == np.float32 and b.flags.writeable for b in blobs["conv1"])
    np.testing.assert_array_equal(blobs["conv1"][0], WEIGHT)
    np.testing.assert_array_equal(blobs["conv1"][1], BIAS)


def test_reads_unpacked_numbers(write):
    np.testing.assert_array_equal(read_blobs(write(layer("a", blob(WEIGHT, packed=False))))["a"][0], WEIGHT)


def test_packed_data_in_pieces_are_joined(write):
    parts = message(7, floats(BIAS[:1]), floats(BIAS[1:], packed=False), message(7, number(1, 2)))
    np.testing.assert_array_equal(read_blobs(write(layer("a", parts)))["a"][0], BIAS)


def test_reads_old_layers_and_old_shapes(write):
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    old = message(2, message(2, b"data"), blob(values, field=6, legacy=True), message(4, b"conv1"), number(5, 4))
    blobs = read_blobs(write(old))
    np.testing.assert_array_equal(blobs["conv1"][0], values)


def test_a_scalar_has_no_axes(write):
    assert read_blobs(write(layer("a", message(7, floats([3.0]), message(7)))))["a"][0].shape == ()


def bad_blob(*parts: bytes) -> bytes:
    return layer("a", message(7, *parts))


BAD = {
    "empty": b"",
    "text": b'name: "net"\nlayer { }\n',
    "zeros": bytes(10_000),
    "no weights": layer("a") + layer("b"),
    "cut": MODEL[:-1],
    "cut in a number": MODEL + b"\x80",
    "length beyond the file": varint(100 << 3 | 2) + varint(1 << 62) + b"abc",
    "length beyond 64 bits": varint(100 << 3 | 2) + b"\xff" * 11,
    "inner length beyond the outer": message(100, varint(7 << 3 | 2) + varint(50)) + bytes(100),
    "group": b"\x0b" * 1000,
    "wire type 7": b"\x0f",
    "layer as a number": number(100, 5),
    "blob as a number": message(100, number(7, 5)),
    "name not UTF-8": message(100, message(1, b"\xff\xfe"), blob(BIAS)),
    "twice": layer("a\nb", blob(BIAS)) * 2,
    "fewer numbers than its shape": bad_blob(floats(BIAS), message(7, number(1, 3))),
    "shape beyond memory": bad_blob(floats(BIAS), message(7, *[number(1, 1 << 40)] * 4)),
    "negative axis": bad_blob(floats(BIAS), message(7, *[number(1, (1 << 64) - n) for n in (1, 2)])),
    "empty axis": bad_blob(message(7, number(1, 0), number(1, 1 << 63))),
    "33 axes": bad_blob(floats([1.0]), message(7, message(1, b"\x01" * 33))),
    "33 axes in pieces": bad_blob(floats([1.0]), *[message(7, number(1, 1))] * 33),
    "no shape": bad_blob(floats(BIAS)),
    "not whole numbers": bad_blob(message(5, b"abcde"), message(7, number(1, 1))),
    "doubles": bad_blob(message(8, bytes(16)), message(7, number(1, 2))),
    "not finite": layer("a", blob(np.array([1.0, np.nan], dtype=np.float32))),
    "a million axes": bad_blob(floats([1.0]), message(7, message(1, b"\x01" * 1_000_000))),
    "a million blobs": message(100, message(7) * 1_000_000),
    "too many blobs": layer("a", blob(BIAS) * (MAX_BLOBS + 1)),
    "deep": functools.reduce(lambda inner, _: message(100, inner), range(5_000), b""),
    "deep blobs": message(100, functools.reduce(lambda inner, _: message(7, inner), range(5_000), b"")),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_in_one_line_that_names_the_file(write, case):
    path = write(BAD[case])
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"net\.caffemodel") as error:
        read_blobs(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    assert time.perf_counter() - began < 5


def test_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing.caffemodel"):
        with pytest.raises(InputError, match=path.name):
            read_blobs(path)


def test_every_cut_is_refused_unless_it_falls_between_layers(write):
    for length in range(len(MODEL)):
        try:
            blobs = read_blobs(write(MODEL[:length]))
        except InputError:
            continue
        assert length == len(MODEL) - len(LAST) and list(blobs) == ["conv1"]


def test_time_and_memory_grow_with_the_file_alone(write):
    small_fields = layer("a", message(7, floats(np.ones(100_000), packed=False), message(7, number(1, 100_000))))
    for content in (small_fields, number(5, 1) * 200_000 + MODEL, layer("") * 20_000 + MODEL):
        path = write(content)
        tracemalloc.start()
        began = time.perf_counter()
        read_blobs(path)
        seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seconds < 20
        assert peak < 4 * len(content) + 100_000


def mutate(content: bytes, draw: random.Random, reach: int) -> bytes:
    """One to four hostile changes within the first ``reach`` bytes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        reach = min(reach, len(data))
        if not reach:
            break
        at, kind = draw.randrange(reach), draw.randrange(6)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:  # a length, or whatever stands there, becomes a huge or an endless number
            data[at : at + 1] = draw.choice([varint(1 << draw.randrange(64)), b"\xff" * draw.randrange(1, 12)])
        elif kind == 4:
            start = draw.randrange(reach)
            data[at:at] = data[start : start + draw.randrange(1, 64)]
        else:
            start = draw.randrange(reach)
            del data[start : start + draw.randrange(1, 64)]
    return bytes(data)


def check_mutants(content: bytes, count: int, reach: int, path: Path) -> int:
    """Read mutants under a memory limit; the number of those that were read."""
    draw, read = random.Random(len(content)), 0
    with open(path, "wb", buffering=0) as file:  # kept open: making a file anew takes longer than reading it
        for _ in range(count):
            mutant = mutate(content, draw, reach)
            file.seek(0)
            file.write(mutant)
            file.truncate()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(InputError):
                read += bool(read_blobs(path))
            assert tracemalloc.get_traced_memory()[1] - before < 4 * len(mutant) + 100_000
    return read


def test_mutants_are_read_or_refused(tmp_path):
    old = message(2, blob(BIAS[None, None, None], field=6, legacy=True), message(4, b"old"))
    pieces = layer("pieces", blob(WEIGHT[0], packed=False), blob(BIAS[:1]))
    began = time.perf_counter()
    tracemalloc.start()
    try:
        content = MODEL + old + pieces
        read = check_mutants(content, 10_000, len(content), tmp_path / "net.caffemodel")
    finally:
        tracemalloc.stop()
    assert 500 < read < 9_500  # both ways are taken
    assert time.perf_counter() - began < 20


def test_mutants_of_a_published_file_are_read_or_refused(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"{REAL.name} is not at hand; SRLIB_PUBLISHED names its folder")
    content = REAL.read_bytes()
    structure = content[:200]  # up to the first weights
    tracemalloc.start()
    try:
        check_mutants(content, 500, len(structure), tmp_path / "net.caffemodel")
        check_mutants(content, 500, len(content), tmp_path / "net.caffemodel")
    finally:
        tracemalloc.stop()


def test_published_weights_are_little_endian_floats():
    if not REAL.is_file():
        pytest.skip(f"{REAL.name} is not at hand; SRLIB_PUBLISHED names its folder")
    blobs = read_blobs(REAL)
    assert [b.shape for layer in blobs.values() for b in layer] == [
        (64, 1, 9, 9, 9), (64,), (32, 64, 1, 1, 1), (32,), (1, 32, 5, 5, 5), (1,),
    ]  # fmt: skip
    assert REAL.read_bytes().count(struct.pack("<f", blobs["conv3"][1][0])) == 1
