"""Write and read training patches as HDF5 (`data`, `label`), as the SRReCNN3D code and Caffe do."""

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from srlib.core.paths import InputError, StrPath, atomic, explained, make_dir, write_file
from srlib.core.tables import keep
from srlib.training.examples import PatchDataset
from srlib.training.streams import ALL, Own, Patch, pools_of

NAMES = ("data", "label")
CHUNK = 16  # patches read or written at once
MAX_CHUNK_BYTES = 2**30  # what a file may ask to hold in memory for one read


class _Target(io.FileIO):
    """A file that hides failed writes from HDF5, which crashes when it closes after one.

    Leaving the file raises what the system refused.
    """

    refused: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all; nothing after the system has refused once."""
        left = memoryview(data).cast("B")
        try:
            while left and not self.refused:
                left = left[super().write(left) :]
        except OSError as err:
            self.refused = err
        return len(data)

    def truncate(self, size: int | None = None) -> int | None:
        """Set the length."""
        try:
            return super().truncate(size)
        except OSError as err:
            self.refused = self.refused or err
            return size

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.refused:
            raise self.refused


def write_store(
    dataset: PatchDataset,
    path: StrPath,
    *,
    beside: Mapping[Path, str] | None = None,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Write all grid patches of a dataset.

    The arrays are float32: ``data`` (N, C, x, y, z) and ``label`` (N, 1, x, y, z).

    Names and axes are those of the published code. ``beside``: texts by the files to write them to,
    just before the file appears, under its name only when it is complete. Raises InputError for an
    experiment that draws its patches at random, when something is there already unless ``force``,
    and when the disk is full.
    """
    if getattr(dataset.part, "sampling", "random") != "grid":
        raise InputError(
            "its examples are new ones all the time; a store holds fixed ones, of sampling 'grid'"
        )
    keep(path, force=force)
    make_dir(Path(path).parent)
    total = len(dataset)
    bar = tqdm(total=total, desc="patches", unit="patch", disable=not progress)
    with atomic(path) as temporary:
        with (
            bar,
            _Target(temporary, "w+") as target,
            h5py.File(target, "w") as file,
        ):
            for row in range(0, total, CHUNK):
                pairs = [dataset[k] for k in range(row, min(row + CHUNK, total))]
                for name, patches in zip(NAMES, zip(*pairs, strict=True), strict=True):
                    shape = patches[0].shape
                    part = file.require_dataset(
                        name,
                        (total, *shape),
                        np.float32,
                        chunks=(min(CHUNK, total), *shape),
                        maxshape=(None, *shape),
                    )
                    part[row : row + len(pairs)] = np.stack(patches)
                if target.refused:
                    raise target.refused
                bar.update(len(pairs))
            file.attrs["pairs"] = repr(dataset.pairs)
            file.attrs["items"] = [
                len(dataset.grid(index)) for index, _ in enumerate(dataset.items)
            ]
        for place, text in (beside or {}).items():
            write_file(place, text)
    return Path(path)


class PatchStore:
    """The patches of an HDF5 file, ours or the published code's, as a dataset for ``pools_of``.

    Our files keep the items of the dataset that was written, so the stream is that dataset's, patch
    by patch; another file is one item. Raises InputError for a file that is damaged, cut off, or of
    another kind.
    """

    def __init__(self, path: StrPath, seed: int = 0, mixed: bool = True) -> None:
        self.path, self.seed, self.mixed = Path(path), seed, mixed
        if not self.path.is_file():
            raise InputError(f"{path}: no such file; write one with 'srlib store'")
        with ExitStack() as stack:
            stack.enter_context(explained(self.path, "the file is unreadable", "write it again"))
            self._file = stack.enter_context(h5py.File(self.path, "r"))
            self.shapes = [self._checked(name) for name in NAMES]
            self.items = self._checked_items()
            self.pairs = self._file.attrs.get(
                "pairs"
            )  # how they were made; files of others lack it
            stack.pop_all()  # the file stays open

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _checked_items(self):
        """The rows of each item."""
        (n, *data), (m, *label) = self.shapes
        if n != m or np.mod(label[1:], data[1:]).any() or label[0] != 1:
            raise InputError(f"data {data} and label {label} are not pairs of patches")
        items = np.atleast_1d(self._file.attrs.get("items", n)).tolist()
        if not all(isinstance(count, int) and count > 0 for count in items) or sum(items) != n:
            raise InputError(f"items {items[:5]} do not add up to {n} patches; write it again")
        return [range(end - count, end) for count, end in zip(items, np.cumsum(items), strict=True)]

    def _checked(self, name):
        """Shape of a dataset that lies whole in this very file."""
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{name!r} is missing or a link to elsewhere; expected {NAMES}")
        part = self._file[name]
        if len(part.shape) != 5 or part.dtype.kind != "f" or 0 in part.shape:
            raise InputError(f"{name!r} is not a set of patches, real numbers (N, C, x, y, z)")
        chunk = part.chunks or (1, *part.shape[1:])
        if np.prod(chunk, dtype=float) * part.dtype.itemsize > MAX_CHUNK_BYTES:
            raise InputError(f"chunks of {chunk} patches of {name!r} are too large to read")
        if part.is_virtual or part.external:
            raise InputError(f"{name!r} is stored in other files; expected one whole file")
        whole = np.prod(part.shape, dtype=float) * part.dtype.itemsize
        if part.compression is None and part.id.get_storage_size() < whole:
            raise InputError(f"{name!r} was not written to its end; write it again")
        return part.shape

    def grid(self, index: int) -> range:
        """The rows of an item."""
        return self.items[index]

    def stream(self, start: int = 0, *, own: Own = ALL) -> Iterator[Patch]:
        """Endless patches from number ``start`` on; a pure function of the seed.

        Of ``own`` ones no others are read.
        """
        return (
            self.read(0, keys[n][1][k])
            for keys, patches in own.of(pools_of(self, start))
            for n, k in patches
        )

    def draws(self, index: int, rng: np.random.Generator) -> range:
        """The rows of an item, the same in every epoch."""
        return self.grid(index)

    def read(self, index: int, row: int) -> Patch:
        """One patch: input (C, x, y, z) and truth (1, x, y, z), float32."""
        with explained(self.path, f"patch {row} is unreadable", "write it again"):
            given, truth = (self._file[name][row].astype(np.float32) for name in NAMES)
        return given, truth
