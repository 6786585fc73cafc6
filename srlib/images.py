"""Scans of any format: NIfTI and MGH, PNG, DICOM, and the DeepLesion and Duke ultrasound collections."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from skimage import io

from srlib import dicom, volume
from srlib.headers import MAX_VOXELS, attach_record, opened, shape_of
from srlib.paths import InputError, ScanWarning, atomic, first_line
from srlib.tables import read_table
from srlib.volume import HU_WINDOW, Scaling, Volume

HU_ZERO = 32768  # of DeepLesion's 16-bit PNG
SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".hdr", ".img", ".npz")  # what is looked for in a folder
PICTURES = (".png", ".npz")
Grid = tuple[tuple[int, int, int], np.ndarray]  # shape, affine
GEOMETRY = ("initial_radius", "final_radius", "initial_angle", "final_angle")


def load(path: str | Path) -> Volume:
    """Read a scan: DICOM, a file or a folder of slices, by its content, others by their suffix (NIfTI, MGH, PNG, NumPy)."""
    path = Path(path)
    if dicom.is_dicom(path):
        return load_dicom(path)
    if path.suffix.lower() in PICTURES:
        return load_png(path) if path.suffix.lower() == ".png" else load_npz(path)
    return volume.load(_named(path))


def _named(path: Path) -> Path:
    """A path whose suffix says what it is; InputError for the others."""
    if not path.is_file() or {*map(str.lower, path.suffixes)} & {*SCANS}:
        return path
    try:
        with open(path, "rb") as file:
            head = file.read(348)
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err
    magic = {".nii.gz": b"\x1f\x8b", ".png": b"\x89PNG", ".npz": b"PK"}
    nifti = ".nii" if b"n+" in (head[344:346], head[4:6]) else ""
    like = next((suffix for suffix, begin in magic.items() if head.startswith(begin)), nifti)
    advice = f"; it begins like a {like}: rename it" if like else ""
    raise InputError(
        f"{path}: unreadable scan: expected NIfTI, MGH or Analyze ({', '.join(SCANS)}), .png or DICOM{advice}"
    )


def scans_in(folder: str | Path) -> list[Path]:
    """NIfTI, MGH, Analyze and ``.npz`` files of a folder and its folders of DICOM slices, sorted; none if it is none.

    Single DICOM files count where there are such scans, else the folder itself is a series. Of a pair of files the
    ``.hdr``; links that lead nowhere are among them.
    """
    try:
        entries = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    except OSError as err:
        raise InputError(f"{folder}: cannot be read ({err.strerror})") from err
    entries = [p for p in entries if not p.name.startswith(".")]
    pairs = {p.with_suffix("") for p in entries if p.suffix.lower() == ".hdr"}
    entries = [p for p in entries if p.suffix.lower() != ".img" or p.with_suffix("") not in pairs]
    scans = {p for p in entries if (dicom.is_series(p) if p.is_dir() else p.name.lower().endswith(SCANS))}
    single = {p for p in entries if scans and not p.is_dir() and p.name.upper() != "DICOMDIR" and dicom.is_dicom(p)}
    return sorted(scans | single)


def read_grid(path: str | Path) -> Grid:
    """Shape and affine of a scan: from the header of NIfTI and MGH files, from the whole of others."""
    path = Path(path)
    if is_whole(path):
        return (scan := load(path)).shape, scan.affine
    return shape_of(image := opened(_named(path)), path), image.affine


def read_shape(path: str | Path) -> tuple[int, int, int]:
    """Shape of a scan, read as by ``read_grid``."""
    return read_grid(path)[0]


def is_whole(path: Path) -> bool:
    """Whether a scan's shape is known from the whole of its files alone."""
    return dicom.is_dicom(path) or path.suffix.lower() in PICTURES


def save(scan: Volume, path: str | Path, *how: object) -> Path:
    """Write a scan as ``volume.save``, or one slice as ``.png``, x along the columns as in ``load_png``.

    A PNG is to be looked at: 16 bits from the slice's minimum to its maximum, its units and place are lost.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        return volume.save(scan, path, *how)
    if scan.shape[2] != 1:
        raise InputError(f"{path}: a PNG holds one slice, got {scan.shape[2]}; give a name ending in .nii.gz")
    low, high = float(scan.data.min()), float(scan.data.max())
    with atomic(path) as temporary:
        grey = np.rint((scan.data[..., 0].T - low) / ((high - low) or 1.0) * 65535).astype(np.uint16)
        io.imsave(temporary, grey, check_contrast=False)
        attach_record(temporary, *how[1:])
    return path


def load_png(path: str | Path, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), deeplesion: bool = False) -> Volume:
    """Read an 8- or 16-bit grey PNG as (X, Y, 1): x along the image's columns, y down its rows, affine diag(spacing).

    A PNG knows nothing of the patient, so the axes are the image's. ``deeplesion``: 16-bit values less 32768
    are HU (Yan et al., JMI 2018). Raises InputError, naming the file, for anything else.
    """
    try:
        with Image.open(path) as image:
            image.verify()  # compares the checksums, which reading the pixels does not
        pixels = np.asarray(io.imread(Path(path)))
    except Exception as err:  # Pillow raises SyntaxError, OSError, ValueError and others for damaged files
        raise InputError(f"{path}: missing, unreadable or truncated image ({first_line(err)})") from err
    if pixels.ndim != 2 or pixels.dtype not in ((np.uint16,) if deeplesion else (np.uint8, np.uint16)):
        expected = "a 16-bit grey PNG" if deeplesion else "an 8- or 16-bit grey PNG"
        raise InputError(f"{path}: expected {expected}, got {pixels.dtype} of shape {pixels.shape}; convert it to that")
    data = pixels.T[:, :, None].astype(np.float32)
    return Volume(data - HU_ZERO if deeplesion else data, np.diag([*spacing_mm, 1.0]))


def load_npz(path: str | Path) -> Volume:
    """Read the one array, (X, Y, Z) or (X, Y), of a NumPy archive: RAS axes of 1 mm, since it holds no geometry."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > 8 * MAX_VOXELS:
                raise ValueError(f"it says that it holds more than {MAX_VOXELS:,} voxels")
            if len(arrays.files) != 1:
                raise ValueError(f"it holds {len(arrays.files)}: {', '.join(arrays.files)}")
            data = arrays[arrays.files[0]]
    except Exception as err:  # NumPy and zipfile raise OSError, ValueError, BadZipFile, TypeError and others
        raise InputError(f"{path}: expected a readable .npz file with one array ({first_line(err)})") from err
    data = data[..., None] if data.ndim == 2 else data
    if data.ndim != 3 or data.dtype.kind not in "iuf" or not data.size or not np.isfinite(data).all():
        raise InputError(f"{path}: expected finite numbers (X, Y, Z), got {data.dtype} of shape {data.shape}")
    return Volume(data, np.eye(4))


def load_mat(path: str | Path, like: Volume, variable: str = "out_final") -> Volume:
    """Read a 3-D array from a MATLAB file (version 5) onto the grid of ``like``; InputError when it does not fit."""
    try:
        data = loadmat(path, variable_names=[variable])[variable]
    except KeyError as err:
        raise InputError(
            f"{path}: it holds no variable {variable!r}; expected a file of the truncation script"
        ) from err
    except Exception as err:  # SciPy raises OSError, ValueError, NotImplementedError, MatReadError and others
        raise InputError(f"{path}: not a readable MATLAB 5 file ({first_line(err)})") from err
    if data.shape != like.shape or data.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected real numbers of shape {like.shape}, got {data.dtype} of shape {data.shape}")
    return like.with_data(data)


def hu_window(data: np.ndarray, low: float = HU_WINDOW[0], high: float = HU_WINDOW[1]) -> np.ndarray:
    """Clip HU to the window and scale it to [0, 1], as the SRResNet code does for DeepLesion.

    ``Scaling(low, high - low).invert`` gives back what was not clipped.
    """
    return Scaling(low, high - low).apply(np.clip(data, low, high))


def load_dicom(path: str | Path) -> Volume:
    """Read a DICOM file, or a folder that holds the slices of one series, in rescaled units (HU for CT).

    (X, Y, Z) along the image's columns, its rows and the slice normal; the affine is nibabel's (RAS+, mm). Slices
    are sorted by position, their spacing comes from the positions (of a single slice, its thickness). Files that
    are not DICOM or hold no image are passed over. Single ultrasound images, X-rays and captures do not say where
    they lie: their axes are those of ``load_png``, their spacing that of the ultrasound region that shows tissue, else
    PixelSpacing or ImagerPixelSpacing; grey ones stored in colours are read too. Raises InputError for several series,
    slices that are missing, doubled or on other grids, colour, multi-frame, missing geometry, damaged tags, and pixels
    that cannot be decoded. Warns (ScanWarning) of what ``dicom.doubts`` finds.
    """
    slices = dicom.read_slices(path)
    voxels = len(slices) * math.prod(slices[0].shape)
    if voxels > MAX_VOXELS:
        raise InputError(f"{path}: its headers say {voxels:,} voxels, more than {MAX_VOXELS:,}; crop it or repair them")
    affine = dicom.affine_of(path, slices)
    for line in dicom.doubts(slices[0]):
        warnings.warn(f"{path}: {line}", ScanWarning, stacklevel=2)
    return Volume(np.stack([dicom.pixels(s) for s in slices], axis=-1), affine)


def deeplesion_rows(folder: str | Path) -> list[tuple[Path, str, tuple[float, float, float]]]:
    """Key slices that lie in DeepLesion's ``folder``: (file, split, spacing in mm of x, y and the slices), sorted.

    As the replicated loader chooses them from ``DL_info.csv``: 512 x 512, not noisy, pixels of 0.6 mm at least,
    slices 1 to 6 mm apart; splits as published. Raises InputError for a missing or other CSV, for a
    patient in two splits, and when no file is there.
    """
    table = Path(folder) / "DL_info.csv"
    found, splits = {}, {}
    for row in read_table(table):
        try:
            series, _, slice_name = row["File_name"].rpartition("_")
            split = {"1": "train", "2": "val", "3": "test"}[row["Train_Val_Test"]]
            x, y, z = (float(v) for v in row["Spacing_mm_px_"].split(","))
            size, noisy = [int(v) for v in row["Image_size"].split(",")], int(row["Possibly_noisy"])
            if not np.isfinite([x, y, z]).all() or "/" in row["File_name"]:
                raise ValueError("a spacing that is none, or a path for a name")
        except (KeyError, ValueError) as err:
            raise InputError(f"{row.place}: not as published ({first_line(err)}); copy it again") from err
        patient = series.split("_")[0]
        if splits.setdefault(patient, split) != split:
            raise InputError(f"{row.place}: patient {patient} is in two splits; copy it again")
        file = Path(folder) / "Images_png" / series / slice_name
        if size == [512, 512] and not noisy and min(x, y) >= 0.6 and 1 <= z <= 6 and file.is_file():
            found[file] = (split, (x, y, z))
    if not found:
        raise InputError(f"{folder}: no slice of DL_info.csv found; expected Images_png/000001_01_01/109.png and so on")
    return [(file, *found[file]) for file in sorted(found)]


def load_duke(
    path: str | Path, variable: str = "dtce", table: str | Path | None = None
) -> tuple[np.ndarray, dict[str, float]]:
    """Read a record of Duke ultrasound: (beam, depth) float32 in the file's units, and its polar geometry.

    ``variable``: ``dtce`` as post-processed by the scanner, or ``iq``, of which the envelope is returned. Geometry:
    ``initial_radius`` and ``final_radius`` in depth samples, ``initial_angle`` and ``final_angle`` in radians, from
    the file's row in ``table``, one of the published CSV splits, or from the file's own ``acq_params``. Raises
    InputError when file, variable or geometry is missing or damaged.
    """
    path = Path(path)
    try:
        record = loadmat(path, simplify_cells=True, variable_names=[variable, "acq_params"])
    except Exception as err:  # SciPy raises OSError, ValueError, NotImplementedError, MatReadError and others
        raise InputError(f"{path}: not a readable MATLAB 5 file ({first_line(err)})") from err
    polar = np.asarray(record.get(variable, 0))
    if polar.ndim != 2 or polar.dtype.kind not in "iufc":
        raise InputError(f"{path}: expected numbers (depth, beam) in the variable {variable}, got {polar.dtype}")
    polar = np.abs(polar) if variable == "iq" else polar
    try:
        if table is not None:
            row = next((r for r in read_table(Path(table)) if r["filename"] == path.name), {})
            geometry = {name: float(row[name]) for name in GEOMETRY}
            if not np.isfinite([*geometry.values()]).all():
                raise ValueError("numbers that are not finite")
        else:
            acquired = record["acq_params"]
            depths, apex = acquired["r"], np.atleast_1d(acquired.get("apex", acquired.get("apex_coordinates")))[-1]
            first = abs((depths[0] - apex) / (depths[1] - depths[0]))
            ends = (first, first + len(polar), acquired["theta"][0], acquired["theta"][-1])
            geometry = dict(zip(GEOMETRY, map(float, ends), strict=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as err:
        where = table if table is not None else "its acq_params"
        raise InputError(f"{path}: no geometry in {where} ({first_line(err)}); give the CSV that lists it") from err
    return polar.T.astype(np.float32), geometry
