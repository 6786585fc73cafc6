"""Reader of the weights in a ``.caffemodel`` (protobuf wire format), bounded by the file's own size."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from srlib.paths import InputError

# Field numbers of caffe.proto. NetParameter: layers of today and of Caffe before 2014 -> (their name, their blobs)
LAYERS = {100: (1, 7), 2: (4, 6)}
BLOB_LEGACY_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
BLOB_DATA, BLOB_SHAPE, SHAPE_DIM = 5, 7, 1

VARINT, BYTES = 0, 2  # wire types
FIXED = {1: 8, 5: 4}  # wire type -> its size in bytes
FLOAT = 5  # the wire type of a float that is not packed
MAX_AXES = 32  # Caffe's own limit
MAX_BLOBS = 10_000  # of a file; a tiny blob takes far more memory as an array than in the file


def read_blobs(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Layer name -> its blobs, float32 in Caffe's axis order, of every layer that has any.

    A convolution's blobs are its weights (out, in, ...) and its bias (out,). Time and memory grow linearly
    with the file. Raises InputError, naming the file, when it is missing, damaged, cut or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return _net(memoryview(path.read_bytes()))
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise InputError(f"{path}: damaged or not a Caffe model ({err}); get it again from its authors") from err


def _net(message: memoryview) -> dict[str, list[np.ndarray]]:
    blobs: dict[str, list[np.ndarray]] = {}
    count = 0
    for number, wire, value in _fields(message):
        if number in LAYERS:
            name, found = _layer(_bytes(wire, value), *LAYERS[number], MAX_BLOBS - count)
            if found and name in blobs:
                raise ValueError(f"layer {name[:40]!r} stands twice")
            if found:
                blobs[name] = found
                count += len(found)
    if not blobs:
        raise ValueError("no layer with weights")
    return blobs


def _layer(message: memoryview, name_field: int, blobs_field: int, limit: int) -> tuple[str, list[np.ndarray]]:
    name, blobs = "", []
    for number, wire, value in _fields(message):
        if number == name_field:
            name = str(_bytes(wire, value), "utf-8")
        elif number == blobs_field:
            if len(blobs) == limit:
                raise ValueError(f"more than {MAX_BLOBS} blobs")
            blobs.append(_blob(_bytes(wire, value)))
    return name, blobs


def _blob(message: memoryview) -> np.ndarray:
    shape, legacy, data = None, dict.fromkeys(BLOB_LEGACY_SHAPE, 0), bytearray()
    for number, wire, value in _fields(message):
        if number == BLOB_DATA and wire in (BYTES, FLOAT):  # packed, or one number
            data += value
        elif number == BLOB_SHAPE:
            shape = [*(shape or []), *_shape(_bytes(wire, value))]
        elif number in legacy and wire == VARINT:
            legacy[number] = value
    shape = list(legacy.values()) if shape is None else shape
    if len(shape) > MAX_AXES:
        raise ValueError(f"a blob of more than {MAX_AXES} axes")
    if not data or len(data) != 4 * math.prod(shape):
        raise ValueError(f"a blob with {len(data)} bytes of float data, which do not fill its shape")
    values = np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("weights that are not finite")
    return values


def _shape(message: memoryview) -> list[int]:
    shape: list[int] = []
    for number, wire, value in _fields(message):
        if number != SHAPE_DIM:
            continue
        if wire == VARINT:
            shape.append(value)
        else:  # packed
            packed, at = _bytes(wire, value), 0
            while at < len(packed) and len(shape) <= MAX_AXES:
                dim, at = _varint(packed, at)
                shape.append(dim)
        if len(shape) > MAX_AXES:
            raise ValueError(f"a blob of more than {MAX_AXES} axes")
    return shape


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of each field: an int for a varint, else the bytes, not copied."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field without a number")
        if wire == VARINT:
            value, at = _varint(message, at)
        else:
            if wire == BYTES:
                size, at = _varint(message, at)
            elif wire in FIXED:
                size = FIXED[wire]
            else:
                raise ValueError(f"wire type {wire}")
            if size > len(message) - at:
                raise ValueError("it ends inside a field")
            value, at = message[at : at + size], at + size
        yield number, wire, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The variable-length integer at ``at`` and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):  # 64 bits in 10 bytes at most
        if at == len(message):
            raise ValueError("it ends inside a number")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _bytes(wire: int, value: int | memoryview) -> memoryview:
    if wire != BYTES:
        raise ValueError(f"wire type {wire} where a message was expected")
    return value
