"""Convert published collections of 2-D images to NIfTI files and a manifest."""

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, ScanWarning, StrPath, choose, explained, make_dir
from srlib.core.tables import check_name, keep, read_table, write_table
from srlib.degradations.ultrasound import scan_convert
from srlib.scans.formats import load_png
from srlib.scans.intensity import fit_scaling
from srlib.scans.matlab import read_matlab
from srlib.scans.volume import Volume, save_scan

DUKE_SIZE = 512  # pixels a side of a scan-converted image (code of SRResNet)
SECTOR = ("initial_radius", "final_radius", "initial_angle", "final_angle")  # columns of its CSVs
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
    find, dtype, expected = choose(COLLECTIONS, collection, "collection")
    keep(manifest, force=force)
    make_dir(Path(manifest).parent)
    rows, readers, taken = [], {}, {}
    for name, split, read in find(Path(folder)):
        check_name(name, str(folder), taken)
        file = Path(out, f"{name}.nii.gz").absolute()
        keep(file, force=force)
        rows.append((name, split, file))
        readers[file] = read
    if not rows:
        raise InputError(f"{folder}: expected {expected}")
    make_dir(Path(out))
    for file, read in readers.items():
        save_scan(read(), file, dtype=dtype)
    return write_table(manifest, ("subject", "split", "image"), rows, force=force)


def deeplesion(folder: Path) -> Listed:
    """The key slices in DeepLesion's ``folder``, sorted.

    They are chosen from ``DL_info.csv`` as by the replicated loader: 512 x 512, not noisy, pixels
    of 0.6 mm at least, slices 1 to 6 mm apart; splits as published. Raises InputError for a missing
    or other CSV, and for a patient in two splits.
    """
    found, splits = {}, {}
    for row in read_table(folder / "DL_info.csv"):
        with explained(row.place, "not as published"):
            series, _, slice_name = row["File_name"].rpartition("_")
            split = {"1": "train", "2": "val", "3": "test"}[row["Train_Val_Test"]]
            x, y, z = (float(v) for v in row["Spacing_mm_px_"].split(","))
            size, noisy = [int(v) for v in row["Image_size"].split(",")], int(row["Possibly_noisy"])
            if not np.isfinite([x, y, z]).all() or "/" in row["File_name"]:
                raise ValueError("a spacing that is not finite, or a path for a name")
            patient = series.split("_")[0]
            if splits.setdefault(patient, split) != split:
                raise InputError(f"patient {patient} is in two splits; copy it again")
        file = folder / "Images_png" / series / slice_name
        fits = size == [512, 512] and not noisy and min(x, y) >= 0.6 and 1 <= z <= 6
        if fits and os.path.isfile(file):
            found[file] = split, (x, y, z)
    for file, (split, spacing) in sorted(found.items()):
        read = partial(load_png, file, spacing_mm=spacing, deeplesion=True)
        yield f"{file.parent.name}_{file.stem}", split, read


def _duke(folder):
    files, missing = defaultdict(list), []
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
                missing += [row["filename"]] * (not found)
                for file in found:
                    yield file.stem, split, partial(_record, file, row)
    if missing:
        line = f"{folder}: {len(missing)} listed records are left out, {missing[0]} is not there"
        warnings.warn(line, ScanWarning, stacklevel=3)


def _record(file, row):
    """The image of a record, ``dtce``, as the scanner post-processed it; its row has the sector."""
    polar = read_matlab(file, "dtce", 2).T.astype(np.float32)  # (beams, depth)
    with explained(file, f"no geometry in {row.place}", "give the CSV that lists it"):
        sector = {name: float(row[name]) for name in SECTOR}
        return square(scan_convert(fit_scaling(polar).apply(polar), **sector))


def square(image: Volume) -> Volume:
    """An image (X, Y, 1) of DUKE_SIZE pixels a side, as in the SRResNet code.

    A longer axis is cut at a random place, drawn anew from the seed 0 for each image, depth first;
    a shorter one is reflected at both ends. The pixels stay in their places.
    """
    rng, data, start = np.random.RandomState(0), image.data, [0, 0, 0, 1]
    for axis in (1, 0):
        missing = DUKE_SIZE - data.shape[axis]
        if missing < 0:
            start[axis] = rng.randint(-missing)
            data = data.take(range(start[axis], start[axis] + DUKE_SIZE), axis)
        else:
            start[axis] = -((missing + 1) // 2)
            ends = np.where(np.arange(3)[:, None] == axis, [-start[axis], missing // 2], 0)
            data = np.pad(data, ends, "reflect")
    affine = image.affine.copy()
    affine[:, 3] = image.affine @ start
    return Volume(data, affine)


# how images are found, the type of their numbers, and what a folder holds
COLLECTIONS = {
    "deeplesion": (deeplesion, np.int16, "slices of DL_info.csv: Images_png/000001_01_01/109.png"),
    "duke": (
        _duke,
        np.float32,
        "train*.csv, val*.csv or test*.csv whose column filename lists .mat files",
    ),
}
