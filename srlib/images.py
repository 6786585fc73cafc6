"""Scans of any format: NIfTI and MGH, PNG, DICOM, and the DeepLesion and Duke ultrasound collections."""

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut
from scipy.io import loadmat
from skimage import io

from srlib import volume
from srlib.headers import MAX_VOXELS, attach_record
from srlib.paths import InputError, atomic, first_line
from srlib.volume import HU_WINDOW, Scaling, Volume

HU_ZERO = 32768  # of DeepLesion's 16-bit PNG
SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".hdr", ".img", ".npz")  # what is looked for in a folder
WHOLE = (".png", ".dcm", ".npz")  # kinds of files whose shape is not known from a header
GEOMETRY = ("initial_radius", "final_radius", "initial_angle", "final_angle")


def load(path: str | Path) -> Volume:
    """Read a scan by the kind of its file: ``.png``, ``.npz``, ``.dcm`` or a folder of DICOM slices, else NIfTI or MGH."""
    path = Path(path)
    if path.suffix.lower() in (".png", ".npz"):
        return load_png(path) if path.suffix.lower() == ".png" else load_npz(path)
    return load_dicom(path) if path.is_dir() or path.suffix.lower() == ".dcm" else volume.load(path)


def scans_in(folder: str | Path) -> list[Path]:
    """NIfTI, MGH, Analyze and ``.npz`` files of a folder and its folders of DICOM slices, sorted; none if it is none.

    Of a pair of files the ``.hdr``; links that lead nowhere are among them.
    """
    entries = sorted(p for p in Path(folder).iterdir() if not p.name.startswith(".")) if Path(folder).is_dir() else []
    pairs = {p.with_suffix(".img") for p in entries if p.suffix == ".hdr"}
    return [p for p in entries if (is_series(p) if p.is_dir() else p.name.lower().endswith(SCANS) and p not in pairs)]


def is_series(folder: Path) -> bool:
    """Whether a folder holds a file that begins as DICOM files do."""

    def begins_so(path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"

    with suppress(OSError):  # a folder or file that may not be read
        return any(begins_so(p) for p in sorted(folder.iterdir()) if p.is_file())
    return False


def read_shape(path: str | Path) -> tuple[int, int, int]:
    """Shape of a scan: from the header of NIfTI and MGH files, from the whole of others."""
    path = Path(path)
    return load(path).shape if path.is_dir() or path.suffix.lower() in WHOLE else volume.read_shape(path)


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
        pixels = np.asarray(io.imread(Path(path)))
    except Exception as err:  # Pillow raises SyntaxError, OSError, ValueError and others for damaged files
        raise InputError(f"{path}: missing, unreadable or truncated image ({first_line(err)})") from err
    if pixels.ndim != 2 or pixels.dtype not in ((np.uint16,) if deeplesion else (np.uint8, np.uint16)):
        expected = "a 16-bit grey PNG" if deeplesion else "an 8- or 16-bit grey PNG"
        raise InputError(f"{path}: expected {expected}, got {pixels.dtype} of shape {pixels.shape}")
    data = pixels.T[:, :, None].astype(np.float32)
    return Volume(data - HU_ZERO if deeplesion else data, np.diag([*spacing_mm, 1.0]))


def load_npz(path: str | Path) -> Volume:
    """Read the one array (X, Y, Z) of a NumPy archive: RAS axes of 1 mm, since it holds no geometry."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > 8 * MAX_VOXELS:
                raise ValueError(f"it says that it holds more than {MAX_VOXELS:,} voxels")
            (data,) = arrays.values()
    except Exception as err:  # NumPy and zipfile raise OSError, ValueError, BadZipFile, TypeError and others
        raise InputError(f"{path}: expected a readable .npz file with one array ({first_line(err)})") from err
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
    are not DICOM or hold no image are passed over. Raises InputError for several series, slices that are missing,
    doubled or on other grids, colour, multi-frame, missing geometry, and pixels that cannot be decoded.
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    slices = [(file, image) for file in files if (image := _slice(file, alone=file == path)) is not None]
    if not slices:
        raise InputError(f"{path}: no DICOM image found; give a DICOM file or the folder of one series")
    series = sorted({str(image.get("SeriesInstanceUID")) for _, image in slices})
    if len(series) > 1:
        raise InputError(f"{path}: {len(series)} series in one folder ({series[0]}, ...); give each its own folder")
    voxels = sum(int(image.Rows) * int(image.Columns) for _, image in slices)
    if voxels > MAX_VOXELS:
        raise InputError(f"{path}: its headers say {voxels:,} voxels, more than {MAX_VOXELS:,}; crop it or repair them")
    geometry = {file: _geometry(file, image) for file, image in slices}
    first = geometry[slices[0][0]]
    normal = np.cross(first[1], first[2])
    slices.sort(key=lambda pair: float(normal @ geometry[pair[0]][0]))
    for file, image in slices:
        same = all(np.allclose(a, b, atol=1e-4) for a, b in zip(first[1:], geometry[file][1:], strict=True))
        if not same or (image.Rows, image.Columns) != (slices[0][1].Rows, slices[0][1].Columns):
            raise InputError(f"{file}: its size, spacing or orientation is not that of {slices[0][0].name}")
    origins = np.stack([geometry[file][0] for file, _ in slices])
    step = (origins[-1] - origins[0]) / max(len(slices) - 1, 1)
    if len(slices) == 1:
        step = normal * float(slices[0][1].get("SliceThickness") or 1)
    gaps = np.diff(origins @ normal)
    stray = np.linalg.norm(origins - origins[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if not np.linalg.norm(step) > 1e-3 or stray > 0.05 * np.linalg.norm(step):
        raise InputError(
            f"{path}: slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart along their normal, expected one "
            "distance and one line; look for missing or doubled slices"
        )
    data = np.stack([_pixels(file, image) for file, image in slices], axis=-1)
    _, along_x, along_y, spacing = first
    affine = np.eye(4)
    affine[:3] = np.stack([along_x * spacing[1], along_y * spacing[0], step, origins[0]], axis=1)
    return Volume(data, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # LPS to RAS


def read_thickness(path: str | Path) -> float | None:
    """Thickness in mm of a DICOM series' slices, which may lie farther apart; None where no header says it."""
    path = Path(path)
    files = (
        sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path][: path.suffix.lower() == ".dcm"]
    )
    thickness = (image.get("SliceThickness") for p in files if (image := _slice(p, alone=p == path)) is not None)
    return next((float(mm) for mm in thickness if mm), None)


def _slice(file: Path, alone: bool) -> pydicom.Dataset | None:
    try:
        image = pydicom.dcmread(file)
        readable = "PixelData" in image
    except Exception as err:  # pydicom raises InvalidDicomError, EOFError, KeyError and others
        if alone or not isinstance(err, pydicom.errors.InvalidDicomError):
            raise InputError(f"{file}: not a readable DICOM file ({first_line(err)})") from err
        return None
    if not readable:
        return None
    frames, colour = int(image.get("NumberOfFrames") or 1), str(image.get("PhotometricInterpretation"))
    if frames > 1 or not colour.startswith("MONOCHROME"):
        raise InputError(f"{file}: expected one grey slice per file, got {frames} frames, {colour}; export it as such")
    return image


def _geometry(file: Path, image: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position of the first pixel, directions along a row (x) and a column (y), row and column spacing; LPS, mm."""
    counts = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    try:
        position, axes, spacing = (np.array(image[tag].value, dtype=float).reshape(n) for tag, n in counts.items())
    except (KeyError, TypeError, ValueError) as err:
        raise InputError(f"{file}: expected {', '.join(counts)}, got none ({first_line(err)})") from err
    if not (spacing > 0).all() or not np.allclose(axes.reshape(2, 3) @ axes.reshape(2, 3).T, np.eye(2), atol=1e-3):
        raise InputError(f"{file}: spacing {spacing} or orientation {axes} is none; repair the header first")
    return position, axes[:3], axes[3:], spacing


def _pixels(file: Path, image: pydicom.Dataset) -> np.ndarray:
    try:
        return np.asarray(apply_modality_lut(image.pixel_array, image), dtype=np.float32).T
    except Exception as err:  # decoders raise RuntimeError, NotImplementedError, ValueError, AttributeError
        syntax = getattr(image.file_meta.get("TransferSyntaxUID"), "name", "no transfer syntax")
        raise InputError(f"{file}: its pixels cannot be decoded ({syntax}); decompress it, e.g. by dcmdjpeg") from err


def deeplesion_rows(folder: str | Path) -> list[tuple[Path, str, tuple[float, float, float]]]:
    """Key slices that lie in DeepLesion's ``folder``: (file, split, spacing in mm of x, y and the slices), sorted.

    As the replicated loader chooses them from ``DL_info.csv``: 512 x 512, not noisy, pixels of 0.6 mm at least,
    slices 1 to 6 mm apart; splits as published. Raises InputError for a missing or other CSV, for a
    patient in two splits, and when no file is there.
    """
    table = Path(folder) / "DL_info.csv"
    found, splits = {}, {}
    for number, row in enumerate(read_table(table), 2):
        try:
            series, _, slice_name = row["File_name"].rpartition("_")
            split = {"1": "train", "2": "val", "3": "test"}[row["Train_Val_Test"].strip()]
            x, y, z = (float(v) for v in row["Spacing_mm_px_"].split(","))
            size, noisy = [int(v) for v in row["Image_size"].split(",")], int(row["Possibly_noisy"])
        except (KeyError, ValueError, AttributeError, TypeError) as err:
            raise InputError(f"{table}, row {number}: not as published ({first_line(err)}); copy it again") from err
        patient = series.split("_")[0]
        if splits.setdefault(patient, split) != split:
            raise InputError(f"{table}, row {number}: patient {patient} is in two splits; copy it again")
        file = Path(folder) / "Images_png" / series / slice_name
        if size == [512, 512] and not noisy and min(x, y) >= 0.6 and 1 <= z <= 6 and file.is_file():
            found[file] = (split, (x, y, z))
    if not found:
        raise InputError(f"{folder}: no slice of DL_info.csv found; expected Images_png/000001_01_01/109.png and so on")
    return [(file, *found[file]) for file in sorted(found)]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV by column; InputError when it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read as a CSV ({first_line(err)})") from err


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
