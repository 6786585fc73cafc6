"""Check the headers of scan files before voxels are read, and write those of enhanced scans."""

import gzip
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.freesurfer.mghformat import MGHHeader, footer_dtype
from PIL import Image

from srlib.core.paths import InputError, StrPath, explained
from srlib.scans import dicom

MAX_VOXELS = 10**9  # of a scan: more is refused before memory is taken
PACKED = (".gz", ".mgz", ".bz2", ".zst")  # names of files that end with a checksum
GZIP_RATIO = 1032  # the highest compression of deflate
SHEAR = 1e-3  # cosine between axes from which on a transform is no rotation
FEW_LEVELS = 255  # intensities over a smaller range lose detail when they are rounded
COMMENT = 6  # code of a comment among NIfTI's extensions
# kind and length of what follows an MGH's footer, as in FreeSurfer's tags.h
MGH_TAG = struct.Struct(">iq")
MGH_COMMAND = 3  # there, the kind of a command line
ADVICE = (
    "copy it again, or name it as what it is (.nii.gz, .nii, .mgz, .hdr, .img, .npz, .png, .dcm)"
)


def _loaded(path):
    """Open a file by nibabel, without the log of the header's repairs: ``open_image`` judges it."""
    logger = nib.imageglobals.logger
    logger.disabled = True
    try:
        return nib.load(path)
    finally:
        logger.disabled = False


def open_image(
    path: StrPath, *, series: bool = False
) -> tuple[nib.spatialimages.SpatialImage, tuple[int, int, int]]:
    """Open a NIfTI, MGH or Analyze file that holds one real 3-D scan: (image, shape).

    No voxels are read. A plain image (X, Y) has one slice. A ``series`` may have several volumes
    (X, Y, Z, T). Raises InputError, naming the file, for any other file, a spacing that is not
    positive, a singular affine, more than MAX_VOXELS in a volume, and more voxels than a compressed
    file can hold.
    """
    path = Path(path)
    check_file(path)
    with explained(path, "unreadable scan", ADVICE):
        image = _loaded(path)
        _check_voxels(image, 4 if series else 3)
        _check_place(image)
    return image, (*map(int, image.shape), 1)[:3]


def check_file(path: Path) -> None:
    """Raise InputError for a path that is no file."""
    if not os.path.isfile(path):
        found = "a link that leads nowhere" if os.path.islink(path) else "no such file"
        raise InputError(f"{path}: {'no scans in this folder' if os.path.isdir(path) else found}")


def _check_voxels(image, axes):
    """Raise InputError for what is no scan by its format, shape, type or size."""
    if not isinstance(image, nib.analyze.AnalyzeImage | nib.MGHImage):
        raise InputError(
            f"expected NIfTI, MGH or Analyze, got {type(image).__name__}; convert it first"
        )
    shape, kind = tuple(map(int, image.shape)), image.get_data_dtype()
    count = math.prod(shape)
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape[axes:]) > 1:
        raise InputError(
            f"expected a 3-D scan, got shape {shape}; split it into such, or repair its header "
            "('srlib enhance' takes 4-D ones)"
        )
    if kind.kind not in "iuf":
        found = "".join(kind.names or [str(kind)])
        raise InputError(f"expected real numbers, got voxels of {found}; convert the scan first")
    if math.prod(shape[:3]) > MAX_VOXELS:
        raise InputError(
            f"its header says {shape} voxels, more than {MAX_VOXELS:,}; crop or repair it"
        )
    file = Path(image.file_map["image"].filename)
    held, name = file.stat().st_size, file.name.lower()
    ratio = GZIP_RATIO if name.endswith("gz") else np.inf if name.endswith(PACKED) else 1
    if count * kind.itemsize > held * ratio:
        raise InputError(
            f"its header says {shape} voxels, more than its {held} bytes can hold; copy it again"
        )


def _check_place(image):
    """Raise InputError for a spacing that is not positive, or a singular affine."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        # unchecked: nibabel's repair turns a zero into 1 and negative numbers into positive ones
        header = type(image.header).from_fileobj(file, check=False)  # type: ignore[call-arg]
    spacing = tuple(map(float, header.get_zooms()))
    axes = zip(spacing[:3], image.shape, strict=False)
    if not all(0 < mm < np.inf for mm, n in axes if n > 1):
        raise InputError(
            f"its header says a spacing of {spacing} mm; expected positive numbers, repair it first"
        )
    with np.errstate(all="ignore"):
        unit = image.affine[:3, :3] / voxel_sizes(image.affine)
    if not np.isfinite(image.affine).all() or not abs(np.linalg.det(unit)) >= 1e-3:
        raise InputError(
            "its affine is singular (a zero spacing) or not finite; repair the header first"
        )


def check_sums(image: nib.spatialimages.SpatialImage) -> None:
    """Read compressed files of an image to their end, where a checksum stands.

    Raises for a file that is cut off or that differs from its checksum.
    """
    for part in ("header", "image"):
        holder = image.file_map.get(part)
        if holder and holder.filename.lower().endswith(PACKED):
            with holder.get_prepare_fileobj("rb") as file:
                try:
                    while file.read(2**20):
                        pass
                except gzip.BadGzipFile as err:
                    # what follows a whole stream is ignored, as by gzip
                    if not str(err).startswith("Not a gzipped file"):
                        raise


def is_whole(path: Path) -> bool:
    """Whether the shape of a scan is only known once its files are read: DICOM, PNG and NumPy."""
    return dicom.is_dicom(path) or path.suffix.lower() in (".png", ".npz")


@dataclass(frozen=True, eq=False)
class SourceHeader:
    """The header of a scan file, read once, from which that of an enhanced scan is derived.

    ``own``, ``affine`` and ``scaling`` (slope, intercept) are set for NIfTI, MGH and Analyze,
    ``first`` (the first image by name) for DICOM. No file is held open: nibabel closes one in a
    finalizer, where Python would lose an interrupt.
    """

    first: dicom.Slice | None
    own: nib.spatialimages.SpatialHeader | None = None
    affine: np.ndarray | None = None
    scaling: tuple[float, float] = (1, 0)

    @property
    def thickness(self) -> float | None:
        """Slice thickness in mm by DICOM, where slices may lie farther apart; else None."""
        return self.first and self.first.thickness

    def warnings(self) -> list[str]:
        """What the header leaves open about place, size or intensities, a line each."""
        if isinstance(self.own, nib.Nifti1Header):
            unit = {1: "metre", 3: "micron"}.get(int(self.own["xyzt_units"]) % 8)
            return [f"the header's unit is {unit}; it is read as mm"] if unit else []
        if isinstance(self.own, nib.AnalyzeHeader):
            return ["an Analyze header does not say which side is left"]
        return dicom.header_warnings(self.first) if self.first else []

    def derive(
        self, affine: np.ndarray, shape: Sequence[int], *, description: str, record: Mapping
    ) -> nib.Nifti1Header:
        """Header of a scan of ``shape`` at ``affine`` that was made from this one.

        ``shape`` is (X, Y, Z), or (X, Y, Z, T) as the source's, whose time between volumes stays.
        From a NIfTI it takes the version, units, display range, and both transforms with their
        codes, moved as the voxels were; from MGH and DICOM scanner coordinates. A sheared transform
        (a tilted gantry) stands in the sform alone, as a qform cannot hold it. ``record`` becomes a
        comment in JSON.
        """
        old = self.own if isinstance(self.own, nib.Nifti1Header) else None
        new = (nib.Nifti2Header if isinstance(old, nib.Nifti2Header) else nib.Nifti1Header)()
        new.set_data_shape(shape)
        between = np.abs(self.own.get_zooms()[3:4] if self.own is not None else ())  # volumes
        new.set_zooms([*voxel_sizes(affine), *between, 1][: len(shape)])
        if old is not None:
            for field in ("xyzt_units", "cal_min", "cal_max", "aux_file"):
                new[field] = old[field]
            moved = np.linalg.inv(self.affine) @ affine
            set_qform = partial(_set_qform, new)
            for read, write in ((old.get_qform, set_qform), (old.get_sform, new.set_sform)):
                with suppress(Exception):  # the unused one may hold anything
                    matrix, code = read(coded=True)
                    if code and np.isfinite(matrix).all():
                        write(matrix @ moved, code)
        elif isinstance(self.own, MGHHeader) or (self.first and self.first.position is not None):
            _set_qform(new, affine, "scanner")
            new.set_sform(affine, "scanner")
        if not np.allclose(new.get_best_affine(), affine, atol=1e-3):
            new.set_sform(affine, "aligned")
        if int(new["xyzt_units"]) % 8 not in (1, 2, 3):
            new["xyzt_units"] = int(new["xyzt_units"]) // 8 * 8 + 2  # mm; time stays
        new["descrip"] = description.encode("ascii", "replace")[:79]
        write_record(new, record)
        return new

    def set_type(self, header: nib.Nifti1Header, dtype: str, low: float, high: float) -> list[str]:
        """Set the voxel type, slope and intercept of a derived header; return notes on the change.

        Values go from ``low`` to ``high``. ``dtype`` is NumPy's name of a type, or ``same``.
        Integers are scaled only where their range is too small for the values, or that of the
        values too small for rounding. ``same`` keeps type, slope and intercept of the source; it is
        int16 for DICOM and float32 for files without a type.
        """
        kept = dtype == "same" and self.own is not None
        slope, inter, notes = 1, 0, []
        if kept:
            kind = self.own.get_data_dtype().newbyteorder("=")
            slope, inter = self.scaling
        else:
            usual = "int16" if self.first else "float32"
            kind = np.dtype(usual if dtype == "same" else dtype)
        if kind.kind == "f":
            kind, slope, inter = np.dtype(np.float64 if kind.itemsize > 4 else np.float32), 1, 0
        else:
            least, most = limits(kind)
            ends = (np.array([low, high]) - inter) / slope
            fits = np.array_equal(np.clip(ends, least, most), ends)
            if kept and not fits:
                held = f"what the input's {kind} holds"
                notes = [f"values of {low:.4g} to {high:.4g} were clipped to {held}"]
            elif not kept and (not fits or high - low < FEW_LEVELS):
                slope = max((high - low) / (most - least), float(np.finfo(np.float32).tiny))
                inter = low - least * slope
                notes = [f"stored as {kind} times {slope:.6g} plus {inter:.6g}"]
        header.set_data_dtype(kind)
        header.set_slope_inter(slope, inter)
        return notes


def read_header(path: Path) -> SourceHeader:
    """Read the header of a scan file that was loaded before, and so is known to be sound."""
    if is_whole(path):
        return SourceHeader(next(dicom.images_in(path), None) if dicom.is_dicom(path) else None)
    image = _loaded(path)
    scaling = image.dataobj.slope, image.dataobj.inter
    return SourceHeader(None, image.header, image.affine, scaling)


def _set_qform(header, affine, code):
    """Set the qform and its code; a sheared affine, which it cannot hold, leaves it unknown."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR
    header.set_qform(None if sheared else affine, 0 if sheared else code)


def limits(dtype: type | np.dtype) -> tuple[np.float64, np.float64]:
    """Lowest and highest float64 that an integer type holds; of 64 bits the highest is lower than
    the type's own.
    """
    info = np.iinfo(dtype)
    return np.float64(info.min), np.float64(info.max - info.max // 2**53)


def write_record(header: nib.Nifti1Header, record: Mapping[str, object]) -> None:
    """Make a record, in JSON, the one comment of a NIfTI header."""
    content = json.dumps(record, sort_keys=True).encode()
    header.extensions[:] = [nib.nifti1.Nifti1Extension("comment", content)]


def comment(header: nib.Nifti1Header | None) -> bytes:
    """The first comment of a NIfTI header, as of ``write_record``; empty where there is none."""
    extensions = header.extensions if header is not None else ()
    return next((e.get_content().rstrip(b"\0") for e in extensions if e.get_code() == COMMENT), b"")


def append_to_mgh(path: Path, text: bytes) -> None:
    """Add a text, if any, to a written ``.mgz`` as FreeSurfer's tag of the command line, which
    readers ignore.
    """
    if text:
        with open(path, "ab") as file:
            file.write(gzip.compress(MGH_TAG.pack(MGH_COMMAND, len(text)) + text, mtime=0))


def read_record(path: Path) -> dict[str, object]:
    """The record that ``volume.save_scan`` wrote into a file; empty where there is none."""
    with suppress(Exception):  # whatever is wrong with the file, srlib did not write it
        record = json.loads(_text(path))
        return record if isinstance(record, dict) and "srlib" in record else {}
    return {}


def _text(path):
    """The comment of a file that ``volume.save_scan`` wrote."""
    if path.suffix.lower() == ".png":
        with Image.open(path) as picture:
            return picture.info["Comment"]
    header = _loaded(path).header
    if path.suffix != ".mgz":
        return comment(header)
    with gzip.open(path) as file:
        file.seek(header.get_footer_offset() + footer_dtype.itemsize + MGH_TAG.size)
        return file.read(2**20)
