"""Scans of any format: NIfTI and MGH, PNG, DICOM, and the DeepLesion and Duke ultrasound
collections.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from srlib.core.paths import InputError, ScanWarning, sha256
from srlib.core.tables import read_table
from srlib.scans import dicom, volume
from srlib.scans.dicom import explained
from srlib.scans.headers import MAX_VOXELS, is_whole, opened
from srlib.scans.volume import Volume

HU_ZERO = 32768  # of DeepLesion's 16-bit PNG
SCANS = (
    ".nii",
    ".nii.gz",
    ".mgh",
    ".mgz",
    ".hdr",
    ".img",
    ".npz",
)  # what is looked for in a folder
DEEP = ("I;16", "I")  # Pillow's modes of 16 bits
Grid = tuple[tuple[int, int, int], np.ndarray]  # shape, affine
GEOMETRY = ("initial_radius", "final_radius", "initial_angle", "final_angle")


def load(path: str | Path) -> Volume:
    """Read a scan: DICOM, a file or a folder of slices, by its content, others by their suffix
    (NIfTI, MGH, PNG, NumPy).
    """
    path = Path(path)
    if dicom.is_dicom(path):
        return load_dicom(path)
    return {".png": load_png, ".npz": load_npz}.get(path.suffix.lower(), volume.load)(path)


def scans_in(folder: str | Path) -> list[Path]:
    """NIfTI, MGH, Analyze and ``.npz`` files of a folder and its folders of DICOM slices, sorted;
    none if it is none.

    Single DICOM files count where there are such scans, else the folder itself is a series. Of a
    pair of files the ``.hdr``; links that lead nowhere are among them.
    """
    entries = sorted(Path(folder).glob("[!.]*"))
    pairs = {p.with_suffix("") for p in entries if p.suffix.lower() == ".hdr"}
    entries = [p for p in entries if p.suffix.lower() != ".img" or p.with_suffix("") not in pairs]
    scans = {
        p for p in entries if (dicom.is_series(p) if p.is_dir() else p.name.lower().endswith(SCANS))
    }
    single = {
        p
        for p in entries
        if scans and not p.is_dir() and p.name.upper() != "DICOMDIR" and dicom.is_dicom(p)
    }
    return sorted(scans | single)


def read_grid(path: str | Path) -> Grid:
    """Shape and affine of a scan: from the header of NIfTI and MGH files, from the whole of
    others.
    """
    path = Path(path)
    if is_whole(path):
        scan = load(path)
        return scan.shape, scan.affine
    image, shape = opened(path)
    return shape, image.affine


def read_shape(path: str | Path) -> tuple[int, int, int]:
    """Shape of a scan, read as by ``read_grid``."""
    return read_grid(path)[0]


def load_png(
    path: str | Path, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), deeplesion: bool = False
) -> Volume:
    """Read an 8- or 16-bit grey PNG as (X, Y, 1): x along the image's columns, y down its rows,
    affine diag(spacing).

    A PNG knows nothing of the patient, so the axes are the image's. ``deeplesion``: 16-bit values
    less 32768 are HU (Yan et al., JMI 2018). Raises InputError, naming the file, for anything else.
    """
    modes = DEEP if deeplesion else ("L", *DEEP)
    with explained(path, "missing, unreadable or truncated image"):
        with Image.open(path) as image:
            image.verify()  # compares the checksums, which reading the pixels does not
        with Image.open(path) as image:
            if image.mode not in modes:
                bits = "a 16-bit" if deeplesion else "an 8- or 16-bit"
                raise InputError(f"expected {bits} grey PNG, got {image.mode}; convert it to that")
            data = np.asarray(image, dtype=np.float32).T[:, :, None]
    return Volume(data - HU_ZERO if deeplesion else data, np.diag([*spacing_mm, 1.0]))


def load_npz(path: str | Path) -> Volume:
    """Read the one array, (X, Y, Z) or (X, Y), of a NumPy archive: RAS axes of 1 mm, since it
    holds no geometry.
    """
    with explained(path, "expected a readable .npz file with one array", "save it anew"):
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > 8 * MAX_VOXELS:
                raise InputError(f"it says that it holds more than {MAX_VOXELS:,} voxels; crop it")
            if len(arrays.files) != 1:
                raise ValueError(f"it holds {len(arrays.files)}: {', '.join(arrays.files)}")
            data = arrays[arrays.files[0]]
        data = data[..., None] if data.ndim == 2 else data
        if (
            data.ndim != 3
            or data.dtype.kind not in "iuf"
            or not data.size
            or not np.isfinite(data).all()
        ):
            raise InputError(
                f"expected finite numbers (X, Y, Z), got {data.dtype} of {data.shape}; save these"
            )
        return Volume(data, np.eye(4))


def load_mat(path: str | Path, like: Volume) -> Volume:
    """Read ``out_final``, a 3-D array, from a MATLAB file (version 5) onto the grid of ``like``.

    Raises InputError, naming the file, when it does not fit.
    """
    with explained(path, "not a readable MATLAB 5 file"):
        data = loadmat(path, variable_names=["out_final"]).get("out_final")
        if data is None:
            raise InputError(
                "it holds no variable 'out_final'; expected a file of the truncation script"
            )
        if data.shape != like.shape or data.dtype.kind not in "iuf":
            raise InputError(
                f"expected real numbers of shape {like.shape}, got {data.dtype} of {data.shape}"
            )
        return like.with_data(data)


def load_dicom(path: str | Path) -> Volume:
    """Read a DICOM file, or a folder that holds the slices of one series, in rescaled units (HU for
    CT).

    (X, Y, Z) along the image's columns, its rows and the slice normal; the affine is nibabel's
    (RAS+, mm). Slices are sorted by position, their spacing comes from the positions (of a single
    slice, its thickness). Files that are not DICOM or hold no image are passed over. Single
    ultrasound images, X-rays and captures do not say where they lie: their axes are those of
    ``load_png``, their spacing that of the ultrasound region that shows tissue, else PixelSpacing
    or ImagerPixelSpacing; grey ones stored in colours are read too. Raises InputError for several
    series, slices that are missing, doubled or on other grids, colour, multi-frame, missing
    geometry, damaged tags, and pixels that cannot be decoded. Warns (ScanWarning) of what
    ``dicom.doubts`` finds.
    """
    slices = dicom.read_slices(path)
    voxels = len(slices) * math.prod(slices[0].shape)
    if voxels > MAX_VOXELS:
        raise InputError(
            f"{path}: its headers say {voxels:,} voxels, more than {MAX_VOXELS:,}; crop it"
        )
    affine = dicom.affine_of(path, slices)
    for line in dicom.doubts(slices[0]):
        warnings.warn(f"{path}: {line}", ScanWarning, stacklevel=2)
    return Volume(np.stack([dicom.pixels(s) for s in slices], axis=-1), affine)


def deeplesion_rows(folder: str | Path) -> list[tuple[Path, str, tuple[float, float, float]]]:
    """Key slices that lie in DeepLesion's ``folder``: (file, split, spacing in mm of x, y and the
    slices), sorted.

    As the replicated loader chooses them from ``DL_info.csv``: 512 x 512, not noisy, pixels of 0.6
    mm at least, slices 1 to 6 mm apart; splits as published. Raises InputError for a missing or
    other CSV, for a patient in two splits, and when no file is there.
    """
    table = Path(folder) / "DL_info.csv"
    found, splits = {}, {}
    for row in read_table(table):
        with explained(row.place, "not as published"):
            series, _, slice_name = row["File_name"].rpartition("_")
            split = {"1": "train", "2": "val", "3": "test"}[row["Train_Val_Test"]]
            x, y, z = (float(v) for v in row["Spacing_mm_px_"].split(","))
            size, noisy = [int(v) for v in row["Image_size"].split(",")], int(row["Possibly_noisy"])
            if not np.isfinite([x, y, z]).all() or "/" in row["File_name"]:
                raise ValueError("a spacing that is none, or a path for a name")
            patient = series.split("_")[0]
            if splits.setdefault(patient, split) != split:
                raise InputError(f"patient {patient} is in two splits; copy it again")
        file = Path(folder) / "Images_png" / series / slice_name
        if size == [512, 512] and not noisy and min(x, y) >= 0.6 and 1 <= z <= 6 and file.is_file():
            found[file] = (split, (x, y, z))
    if not found:
        raise InputError(
            f"{folder}: no slice of DL_info.csv; expected Images_png/000001_01_01/109.png, ..."
        )
    return [(file, *found[file]) for file in sorted(found)]


def load_duke(path: str | Path, table: str | Path) -> tuple[np.ndarray, dict[str, float]]:
    """Read a record of Duke ultrasound: (beam, depth) float32 in the file's units, and its polar
    geometry.

    The image is ``dtce``, as the scanner post-processed it. Geometry: ``initial_radius`` and
    ``final_radius`` in depth samples, ``initial_angle`` and ``final_angle`` in radians, from the
    file's row in ``table``, one of the published CSV splits. Raises InputError when file, image or
    geometry is missing or damaged.
    """
    path = Path(path)
    with explained(path, "not a readable MATLAB 5 file"):
        polar = np.asarray(loadmat(path, variable_names=["dtce"]).get("dtce", 0))
    if polar.ndim != 2 or polar.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: expected numbers (depth, beam) in the variable dtce, got {polar.dtype}"
        )
    with explained(path, f"no geometry in {table}", "give the CSV that lists it"):
        row = next((r for r in read_table(table) if r["filename"] == path.name), {})
        geometry = {name: float(row[name]) for name in GEOMETRY}
        if not np.isfinite([*geometry.values()]).all():
            raise ValueError("numbers that are not finite")
    return polar.T.astype(np.float32), geometry


def fingerprint(scan: Path) -> str:
    """SHA-256 of a scan's file, or of the sums of its files where there are several.

    Raises InputError when unreadable.
    """
    parts = [scan]
    if scan.suffix in (".hdr", ".img"):
        parts = [scan.with_suffix(suffix) for suffix in (".hdr", ".img", ".mat")]
    elif os.path.isdir(scan):
        parts = sorted(scan.iterdir())
    try:
        sums = [sha256(p) for p in parts if os.path.isfile(p)]
    except OSError as err:
        raise InputError(f"{scan}: cannot be read ({err.strerror})") from err
    if not sums:
        raise InputError(
            f"{scan}: {'a link that leads nowhere' if os.path.islink(scan) else 'no such file'}"
        )
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
