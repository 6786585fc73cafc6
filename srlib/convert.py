"""Published collections of 2-D images, as NIfTI files and a manifest with their published splits."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from srlib.images import deeplesion_rows, load_duke, load_png, read_table
from srlib.paths import InputError, atomic, make_dir
from srlib.ultrasound import scan_convert
from srlib.volume import Volume, save

DUKE_SHAPE = (512, 512)  # pixels of a scan-converted image (code of SRResNet)


def convert(collection: str, folder: str | Path, out: str | Path, manifest: str | Path) -> Path:
    """Write a collection's images into ``out`` and their manifest (columns subject, split, image).

    ``deeplesion``: the key slices of ``DL_info.csv``, in HU. ``duke``: the records that ``train*.csv``, ``val*.csv``
    and ``test*.csv`` in the folder list, scan-converted. Raises InputError for an unknown collection, a folder that is
    not one, and an unreadable image.
    """
    if collection not in COLLECTIONS:
        raise InputError(f"unknown collection {collection!r}; expected one of {', '.join(COLLECTIONS)}")
    out, text = make_dir(Path(out)), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["subject", "split", "image"])
    for name, split, image, dtype in COLLECTIONS[collection](Path(folder)):
        file = save(image, out / f"{name}.nii.gz", dtype=dtype)
        writer.writerow([name, split, file.absolute()])
    with atomic(Path(manifest)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return Path(manifest)


def _deeplesion(folder: Path) -> Iterator[tuple[str, str, Volume, type]]:
    for file, split, spacing in deeplesion_rows(folder):
        image = load_png(file, spacing, deeplesion=True)
        yield f"{file.parent.name}_{file.stem}", split, image, np.int16


def _duke(folder: Path) -> Iterator[tuple[str, str, Volume, type]]:
    files = {file.name: file for file in sorted(folder.rglob("*.mat"))}
    tables = [(split, table) for split in ("train", "val", "test") for table in sorted(folder.glob(f"{split}*.csv"))]
    listed = [(row.get("filename"), split, table) for split, table in tables for row in read_table(table)]
    found = [(files[name], split, table) for name, split, table in listed if name in files]
    if not found:
        raise InputError(
            f"{folder}: expected train*.csv, val*.csv or test*.csv whose column filename lists its .mat files"
        )
    for file, split, table in found:
        polar, geometry = load_duke(file, table=table)
        yield file.stem, split, scan_convert(polar, **geometry, shape=DUKE_SHAPE), np.float32


COLLECTIONS = {"deeplesion": _deeplesion, "duke": _duke}
