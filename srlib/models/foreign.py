"""Read weights of other programs in a process of their own (``core.isolated``)."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save

from srlib.core.isolated import answer, isolated
from srlib.core.paths import StrPath, explained, unspoilt

MOST = 10_000  # arrays in a file
MOST_PACKED = 50  # bytes of numbers per byte in a file

# Field numbers of caffe.proto
LAYER, NAME, BLOBS = 100, 1, 7
BLOB_DATA, BLOB_SHAPE, SHAPE_DIM = 5, 7, 1
FIXED = {1: 8, 5: 4}  # wire type -> its size in bytes


def read_foreign(path: StrPath) -> bytes:
    """The weights of a Caffe model, a Keras HDF5 file or a PyTorch state dict, as safetensors.

    Values become float32; arrays keep their axes. In a ``.caffemodel`` and an ``.h5`` the i-th
    array of a layer is called ``layer.i``; others keep their names. No code in the file is run.
    Raises InputError, naming the file, when it is damaged, of another kind, not finite, or takes
    more than a minute or 2 GiB.
    """
    with explained(path, "damaged or not such weights", "get it again from its authors"):
        return isolated("srlib.models.foreign", path)


def caffe(path: Path) -> dict[str, np.ndarray]:
    """Read a Caffe model, in protobuf's wire format.

    A convolution's arrays are its weights (out, in, ...) and its bias.
    """
    arrays = {}
    for number, layer in _fields(memoryview(path.read_bytes())):
        if number == LAYER:
            fields = list(_fields(layer))
            name = "".join(str(value, "utf-8") for number, value in fields if number == NAME)
            blobs = [_blob(value) for number, value in fields if number == BLOBS]
            arrays |= {f"{name}.{index}": blob for index, blob in enumerate(blobs)}
    return arrays


def _blob(message: memoryview) -> np.ndarray:
    fields = list(_fields(message))
    data = b"".join(value for number, value in fields if number == BLOB_DATA)
    shapes = [part for number, value in fields if number == BLOB_SHAPE for part in _fields(value)]
    packed = b"".join(value for number, value in shapes if number == SHAPE_DIM)
    shape, at = [], 0
    while at < len(packed):
        size, at = _varint(packed, at)
        shape.append(size)
    return np.frombuffer(data, "<f4").reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of each field: an int, or the bytes, not copied."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        value, end = _varint(message, at) if wire in (0, 2) else (FIXED[wire], at)
        if wire:  # the value so far is a size
            start, end = end, end + value
            value = message[start:end]
            if end > len(message):
                raise ValueError("it ends inside a field")
        at = end
        yield key >> 3, value


def _varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    """The variable-length integer at ``at`` and the place behind it."""
    value = shift = 0
    while True:
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def keras(path: Path) -> dict[str, np.ndarray]:
    """Read what ``model.save_weights`` and ``model.save`` of Keras 1 and 2 write.

    A convolution's arrays are its kernel (..., in, out) and its bias; those of a batch norm gamma,
    beta, moving mean and moving variance.
    """
    arrays = {}
    with h5py.File(path, "r") as file:
        top = file.get("model_weights", file)
        for layer in _names(top, "layer_names"):
            for index, name in enumerate(_names(top[layer], "weight_names")):
                values = top[layer][name]
                if values.nbytes > MOST_PACKED * values.id.get_storage_size():
                    raise ValueError(f"{name} was never written, or is packed too much")
                arrays[f"{layer}.{index}"] = values[()]
    return arrays


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; older Keras has fixed-size bytes, or empty numbers for no name."""
    return list(np.asarray(group.attrs[attribute]).astype(str))


def pytorch(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict that ``torch.save`` wrote."""
    import torch  # seconds that the other readers need not wait

    state = torch.load(unspoilt(path), map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


READERS = {".caffemodel": caffe, ".h5": keras, ".pth": pytorch}


def convert(path: Path) -> bytes:
    """``read_foreign`` without limits; any error for a file that is damaged or of another kind."""
    arrays = READERS[path.suffix](path)
    if not 0 < len(arrays) <= MOST:
        raise ValueError(f"{len(arrays)} arrays")
    for name, array in arrays.items():
        arrays[name] = np.asarray(array, np.float32, order="C")
        if array.dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} does not hold finite real numbers")
    return save(arrays)


def main() -> None:
    """Write the weights of the file that the command line names."""
    answer(convert)


if __name__ == "__main__":
    main()
