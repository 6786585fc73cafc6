"""Reader of the weights in a Keras HDF5 file, bounded by the file's own size; nothing in it is run."""

from pathlib import Path

import h5py
import numpy as np

from srlib.paths import InputError, first_line

MAX_NAMES = 2_000  # layers of a file, or arrays of a layer
MAX_ATTRIBUTE_BYTES = 2**20
MAX_BYTES = 2**31  # of all weights
# what h5py raises for damaged or foreign files
_DAMAGED = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


def read_weights(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Layer name -> its arrays, float32 in Keras's order and axes, of every layer that has any.

    Reads what ``model.save_weights`` and ``model.save`` of Keras 1 and 2 write. A convolution's arrays are its kernel
    (..., in, out) and its bias; those of a batch norm gamma, beta, moving mean and moving variance. InputError, naming
    the file, when it is missing, damaged, cut, not finite, of another kind, compressed, or points into other files.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            return _layers(file, min(path.stat().st_size, MAX_BYTES))
    except _DAMAGED as err:
        raise InputError(f"{path}: damaged or not Keras weights ({first_line(err)}); get it again") from err


def _layers(file: h5py.File, budget: int) -> dict[str, list[np.ndarray]]:
    top = _inside(file, "model_weights") if "layer_names" not in file.attrs else file
    layers: dict[str, list[np.ndarray]] = {}
    for name in _names(top, "layer_names"):
        group, arrays = _inside(top, name), []
        for weight in _names(group, "weight_names"):
            arrays.append(_array(_inside(group, weight), weight, budget))
            budget -= arrays[-1].nbytes
        if name in layers:
            raise ValueError(f"layer {name[:40]!r} stands twice")
        if arrays:
            layers[name] = arrays
    if not layers:
        raise ValueError("no layer with weights")
    return layers


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names in an attribute; older Keras has them as fixed-size bytes, without any as empty numbers."""
    if not isinstance(group, h5py.Group) or attribute not in group.attrs:
        raise ValueError(f"expected a group with {attribute}")
    held = group.attrs.get_id(attribute)
    if held.shape == (0,):
        return []
    if len(held.shape) != 1 or held.shape[0] > MAX_NAMES or held.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{attribute}: expected a list of at most {MAX_NAMES} names")
    names = group.attrs[attribute].tolist()
    return [str(name, "utf-8") if isinstance(name, bytes) else name for name in names]


def _inside(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """What lies at a path below a group, without following links to elsewhere."""
    if not isinstance(path, str):
        raise ValueError("names that are not text")
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{path[:60]!r} is missing or a link to elsewhere")
        group = group[part]
    return group


def _array(part: h5py.Dataset, name: str, budget: int) -> np.ndarray:
    if not isinstance(part, h5py.Dataset) or part.shape is None or part.dtype.kind != "f" or part.dtype.itemsize > 8:
        raise ValueError(f"{name[:60]!r} is not an array of real numbers")
    if part.chunks or part.is_virtual or part.external:  # as Keras never writes them
        raise ValueError(f"{name[:60]!r} is stored compressed, in chunks or in other files")
    size = np.prod(part.shape, dtype=float)
    if 0 in part.shape or size * 4 > budget or part.id.get_storage_size() != size * part.dtype.itemsize:
        raise ValueError(f"{name[:60]!r} of shape {part.shape} does not lie whole in the file")
    values = np.asarray(part[()], np.float32)
    if not np.isfinite(values).all():
        raise ValueError("weights that are not finite")
    return values
