"""Published collections of 2-D images, as NIfTI files and a manifest with their published splits."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, choose, make_dir
from srlib.core.tables import check_name, keep, read_table, write_table
from srlib.degradations.ultrasound import scan_convert
from srlib.scans.formats import deeplesion_rows, load_duke, load_png
from srlib.scans.volume import Volume, save

DUKE_SHAPE = (512, 512)  # pixels of a scan-converted image (code of SRResNet)
Listed = Iterator[tuple[str, str, Callable[[], Volume]]]  # name, split, how to read the image


def convert(
    collection: str, folder: str | Path, out: str | Path, manifest: str | Path, force: bool = False
) -> Path:
    """Write a collection's images into ``out`` and their manifest (columns subject, split, image).

    ``deeplesion``: the key slices of ``DL_info.csv``, in HU. ``duke``: the records that ``train*.csv``, ``val*.csv``
    and ``test*.csv`` in the folder list, scan-converted. Raises InputError for an unknown collection, a folder that is
    not one, two images of one name, an output that is there unless ``force``, and an unreadable image.
    """
    find, dtype = choose(COLLECTIONS, collection, "collection")
    listed, rows, taken = [*find(Path(folder))], [], {}
    if not listed:
        raise InputError(
            f"{folder}: expected train*.csv, val*.csv or test*.csv whose column filename lists .mat files"
        )
    for name, split, _ in listed:
        check_name(name, str(folder), taken)
        rows.append((name, split, Path(out, f"{name}.nii.gz").absolute()))
    for file in (Path(manifest), *(file for *_, file in rows)):
        keep(file, force=force)
    make_dir(Path(out))
    for (*_, read), (*_, file) in zip(listed, rows, strict=True):
        save(read(), file, dtype=dtype)
    return write_table(manifest, ("subject", "split", "image"), rows, force=force)


def _deeplesion(folder: Path) -> Listed:
    for file, split, spacing in deeplesion_rows(folder):
        yield (
            f"{file.parent.name}_{file.stem}",
            split,
            partial(load_png, file, spacing, deeplesion=True),
        )


def _duke(folder: Path) -> Listed:
    files = defaultdict(list)
    for file in sorted(folder.rglob("*.mat")):
        files[file.name].append(file)
    for split in ("train", "val", "test"):
        for table in sorted(folder.glob(f"{split}*.csv")):
            for row in read_table(table, ("filename",)):
                found = files[row["filename"]]
                if len(found) > 1:
                    raise InputError(f"{row.place}: {found[0]} or {found[1]}? keep one of them")
                for file in found:
                    yield file.stem, split, partial(_beams, file, table)


def _beams(file: Path, table: Path) -> Volume:
    polar, geometry = load_duke(file, table)
    return scan_convert(polar, **geometry, shape=DUKE_SHAPE)


COLLECTIONS = {
    "deeplesion": (_deeplesion, np.int16),
    "duke": (_duke, np.float32),
}  # and the type of its numbers
