"""Convert published collections of 2-D images to NIfTI files and a manifest."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, StrPath, choose, make_dir
from srlib.core.tables import check_name, keep, read_table, write_table
from srlib.degradations.ultrasound import scan_convert
from srlib.scans.formats import deeplesion_rows, load_duke, load_png
from srlib.scans.intensity import fit_scaling
from srlib.scans.volume import Volume, save_scan

DUKE_SIZE = 512  # pixels a side of a scan-converted image (code of SRResNet)
Listed = Iterator[tuple[str, str, Callable[[], Volume]]]  # name, split, how to read the image


def convert(
    collection: str,
    folder: StrPath,
    *,
    out: StrPath,
    manifest: StrPath,
    force: bool = False,
) -> Path:
    """Write a collection's images into ``out`` and their manifest (columns subject, split, image).

    ``deeplesion``: the key slices of ``DL_info.csv``, in HU. ``duke``: the records that
    ``train*.csv``, ``val*.csv`` and ``test*.csv`` in the folder list, scaled to [0, 1] and
    scan-converted, see ``square``. Splits are the published ones. Raises InputError for an unknown
    collection, another folder, two images of one name, an output that exists unless ``force``, and
    an unreadable image.
    """
    find, dtype = choose(COLLECTIONS, collection, "collection")
    keep(manifest, force=force)
    rows, readers, taken = [], {}, {}
    for name, split, read in find(Path(folder)):
        check_name(name, str(folder), taken)
        file = Path(out, f"{name}.nii.gz").absolute()
        keep(file, force=force)
        rows.append((name, split, file))
        readers[file] = read
    if not rows:
        raise InputError(
            f"{folder}: expected train*.csv, val*.csv or test*.csv whose column filename lists "
            ".mat files"
        )
    make_dir(Path(out))
    for file, read in readers.items():
        save_scan(read(), file, dtype=dtype)
    return write_table(manifest, ("subject", "split", "image"), rows, force=force)


def _deeplesion(folder: Path) -> Listed:
    for file, split, spacing in deeplesion_rows(folder):
        read = partial(load_png, file, spacing_mm=spacing, deeplesion=True)
        yield f"{file.parent.name}_{file.stem}", split, read


def _duke(folder: Path) -> Listed:
    files = defaultdict(list)
    for file in sorted(folder.rglob("*.mat")):
        files[file.name].append(file)
    for split in ("train", "val", "test"):
        for table in sorted(folder.glob(f"{split}*.csv")):
            for row in read_table(table, ("filename",)):
                found = files[row["filename"]]
                if len(found) > 1:
                    raise InputError(
                        f"{row.place}: expected one file of this name, got {found[0]} and "
                        f"{found[1]}; keep one of them"
                    )
                for file in found:
                    yield file.stem, split, partial(_beams, file, table)


def _beams(file: Path, table: Path) -> Volume:
    polar, geometry = load_duke(file, table)
    try:
        return square(scan_convert(fit_scaling(polar).apply(polar), **geometry))
    except InputError as err:
        raise InputError(f"{file}: {err}") from err


def square(image: Volume, size: int = DUKE_SIZE) -> Volume:
    """An image (X, Y, 1) of ``size`` pixels a side, as in the SRResNet code.

    A longer axis is cut at a random place, drawn anew from the seed 0 for each image, depth first;
    a shorter one is reflected at both ends. The pixels stay in their places.
    """
    rng, data, start = np.random.RandomState(0), image.data, [0, 0, 0, 1]
    for axis in (1, 0):
        missing = size - data.shape[axis]
        if missing < 0:
            start[axis] = rng.randint(-missing)
            data = data.take(range(start[axis], start[axis] + size), axis)
        else:
            start[axis] = -((missing + 1) // 2)
            ends = np.where(np.arange(3)[:, None] == axis, [-start[axis], missing // 2], 0)
            data = np.pad(data, ends, "reflect")
    affine = image.affine.copy()
    affine[:, 3] = image.affine @ start
    return Volume(data, affine)


# how images are found, and the type of their numbers
COLLECTIONS = {"deeplesion": (_deeplesion, np.int16), "duke": (_duke, np.float32)}
