"""Read scans of any format: NIfTI, MGH, PNG, NumPy, MATLAB and DICOM."""

import functools
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from srlib.core.paths import InputError, ScanWarning, StrPath, T, digest, explained, sha256
from srlib.scans import dicom, volume
from srlib.scans.headers import MAX_VOXELS, check_file, is_whole, open_image
from srlib.scans.matlab import read_matlab
from srlib.scans.volume import Grid, Volume

HU_ZERO = 32768  # of DeepLesion's 16-bit PNG
SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".hdr", ".img", ".npz")  # the scans of a folder
DEEP = ("I;16", "I")  # Pillow's modes of 16 bits


def load_scan(path: StrPath) -> Volume:
    """Read a scan of any format: DICOM (a file or a folder of slices) by its content, other formats
    (NIfTI, MGH, Analyze, PNG, NumPy) by their suffix.
    """
    path = Path(path)
    if dicom.is_dicom(path):
        return load_dicom(path)
    return {".png": load_png, ".npz": load_npz}.get(path.suffix.lower(), volume.load_nifti)(path)


def scans_in(folder: StrPath) -> list[Path]:
    """List the scans of a folder, sorted: NIfTI, MGH, Analyze, ``.npz``, and folders of slices.

    Single DICOM files count where there are such scans; otherwise the folder itself is a series. A
    pair of files is named by its ``.hdr``. Links that lead nowhere are listed too.
    """
    entries = sorted(Path(folder).glob("[!.]*"))
    headers = {p.with_suffix("") for p in entries if p.suffix.lower() == ".hdr"}
    scans, single = [], []
    for path in entries:
        if path.suffix.lower() == ".img" and path.with_suffix("") in headers:
            continue
        if dicom.is_series(path) if path.is_dir() else path.name.lower().endswith(SCANS):
            scans.append(path)
        elif not path.is_dir() and path.name.upper() != "DICOMDIR" and dicom.is_dicom(path):
            single.append(path)
    return sorted(scans + single) if scans else []


def scan_name(path: Path) -> str:
    """The name of a scan: its file's without the suffix, its folder's or numbered file's whole."""
    name = Path(os.path.abspath(path))
    if path.is_dir() or path.suffix[1:].isdigit():  # as DICOM files are
        return name.name
    return (name.with_suffix("") if name.suffix.lower() == ".gz" else name).stem


def scan_names(scans: Sequence[Path]) -> list[str]:
    """The names of scans; InputError where two have one."""
    names = [*map(scan_name, scans)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"two scans are called {name}; give them names of their own, or list them in a manifest"
        )
    return names


def read_grid(path: Path) -> Grid:
    """Shape and affine of a scan: from the header of NIfTI, MGH and Analyze, from the whole of
    other files.
    """
    if is_whole(path):
        scan = load_scan(path)
        return scan.shape, scan.affine
    image, shape = open_image(path)
    return shape, image.affine


def once(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """A function that reads a file, but reads it again only when the file has changed."""
    cached = functools.cache(lambda path, *state: read(path))

    def reader(path):
        stat = path.stat()
        return cached(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    return reader


def load_png(
    path: Path, *, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), deeplesion: bool = False
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


def load_npz(path: Path) -> Volume:
    """Read the one array, (X, Y, Z) or (X, Y), of a NumPy archive, on RAS axes of 1 mm."""
    with explained(path, "expected a readable .npz file with one array", "save it anew"):
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > 8 * MAX_VOXELS:
                raise InputError(f"it says that it holds more than {MAX_VOXELS:,} voxels; crop it")
            if len(arrays.files) != 1:
                raise ValueError(f"it holds {len(arrays.files)}: {', '.join(arrays.files)}")
            data = arrays[arrays.files[0]]
        data = data[..., None] if data.ndim == 2 else data
        numbers = data.dtype.kind in "iuf" and data.size and np.isfinite(np.float32(data)).all()
        if data.ndim != 3 or not numbers:
            raise InputError(
                f"expected finite numbers (X, Y, Z), got {data.dtype} of {data.shape}; save these"
            )
        return Volume(data, np.eye(4))


def load_mat(path: Path, like: Volume) -> Volume:
    """Read ``out_final``, as the truncation script writes it, from a MATLAB file onto the grid of
    ``like``.

    Raises InputError, naming the file, when it does not fit.
    """
    data = read_matlab(path, "out_final", 3)
    if data.shape != like.shape:
        raise InputError(f"{path}: expected the shape {like.shape}, got {data.shape}; save it anew")
    return like.with_data(data)


def load_dicom(path: StrPath) -> Volume:
    """Read a DICOM file, or a folder that holds the slices of one series, in rescaled units (HU for
    CT).

    (X, Y, Z) along the image's columns, its rows and the slice normal; the affine is nibabel's
    (RAS+, mm). Slices are sorted by position, their spacing comes from the positions (of a single
    slice, its thickness). Files that are not DICOM or hold no image are ignored. Single ultrasound
    images, X-rays and captures have no place in the patient: their axes are those of ``load_png``,
    their spacing that of the ultrasound region that shows tissue, else PixelSpacing or
    ImagerPixelSpacing; grey ones stored in colours are read too. Raises InputError for several
    series, slices that are missing, doubled or on other grids, colour, multi-frame, missing
    geometry, damaged tags, and pixels that cannot be decoded. Emits a ScanWarning for each line of
    ``dicom.header_warnings``.
    """
    slices, affine = dicom.read_series(Path(path))
    voxels = len(slices) * math.prod(slices[0].shape)
    if voxels > MAX_VOXELS:
        raise InputError(
            f"{path}: its headers say {voxels:,} voxels, more than {MAX_VOXELS:,}; crop it"
        )
    for line in dicom.header_warnings(slices[0]):
        warnings.warn(f"{path}: {line}", ScanWarning, stacklevel=2)
    with explained(path, "its pixels are not those of its header"):
        data = np.stack([dicom.pixels(s) for s in slices], axis=-1).reshape(*slices[0].shape, -1)
        return Volume(data, affine)


def files_of(scan: Path) -> list[Path]:
    """The files that a scan may consist of: itself, the slices in its folder, or a pair."""
    if os.path.isdir(scan):
        return sorted(scan.iterdir())
    pair = re.fullmatch(r"(.*)\.(hdr|img)(\.gz)?", scan.name, re.IGNORECASE | re.DOTALL)
    ends = (".hdr", ".img", ".mat", ".hdr.gz", ".img.gz") if pair else ()
    return [scan.with_name(pair[1] + e) for end in ends for e in (end, end.upper())] or [scan]


def fingerprint(scan: Path) -> str:
    """SHA-256 of a scan's file, or of the sums of its files where there are several.

    Raises InputError when unreadable.
    """
    with explained(scan, "cannot be read", "change its permissions"):
        sums = [sha256(p) for p in files_of(scan) if os.path.isfile(p)]
    if not sums:
        check_file(scan)
    return sums[0] if len(sums) == 1 else digest("".join(sums))
