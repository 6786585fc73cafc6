"""Headers of scan files: what they must say before voxels are read, and what that of an enhanced scan keeps."""

import gzip
import json
import math
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from PIL import Image

from srlib import dicom
from srlib.dicom import is_dicom
from srlib.paths import InputError, first_line

MAX_VOXELS = 10**9  # of a scan: more is refused before memory is taken
PACKED = (".gz", ".mgz", ".bz2", ".zst")  # names of files that end with a checksum
GZIP_RATIO = 1032  # what deflate compresses at most
DTYPES = ("float32", "int16", "uint8", "uint16", "int32", "same")
SHEAR = 1e-3  # cosine between axes from which on a transform is no rotation
FEW_LEVELS = 255  # intensities over a smaller range lose what was enhanced when they are rounded
COMMENT = 6  # code of a comment among NIfTI's extensions
MGH_COMMAND = 3  # FreeSurfer's tag of the command line, TAG_CMDLINE in its tags.h
PNG_START = 33  # bytes of a PNG's signature and its first chunk, which nothing may precede
# what nibabel, gzip and NumPy raise for damaged files
DAMAGED = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.freesurfer.mghformat.MGHError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    zlib.error,
)


@contextmanager
def _unheard() -> Iterator[None]:
    """What nibabel logs in this thread meanwhile is not heard: it mends headers and says so, ``opened`` judges them."""
    here, logger = threading.get_ident(), nib.imageglobals.logger

    def elsewhere(record) -> bool:
        return record.thread != here

    logger.addFilter(elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(elsewhere)


def _loaded(path: str | Path) -> nib.spatialimages.SpatialImage:
    with _unheard():
        return nib.load(path)


def opened(path: str | Path) -> nib.spatialimages.SpatialImage:
    """A NIfTI, MGH or Analyze file whose header is one of a real 3-D scan; its voxels are not read.

    Raises InputError, naming the file, for any other, a spacing that is not positive, a singular affine, more than
    MAX_VOXELS, and more voxels than a compressed file can hold.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a link that leads nowhere' if path.is_symlink() else 'no such file'}")
    try:
        image = _loaded(path)
        shape, spacing = shape_of(image, path), _declared_spacing(image)
        kind, held = image.get_data_dtype(), Path(image.file_map["image"].filename).stat().st_size
        affine = np.asarray(image.affine)
    except InputError:
        raise
    except DAMAGED as err:
        raise InputError(f"{path}: unreadable scan ({first_line(err)}); copy it again") from err
    if kind.kind not in "iuf":
        found = "colours (RGB)" if kind.names else "complex numbers" if kind.kind == "c" else f"type {kind}"
        raise InputError(f"{path}: expected real numbers, got voxels of {found}; convert the scan first")
    if not all(0 < mm < np.inf for mm, n in zip(spacing, shape, strict=True) if n > 1):
        raise InputError(
            f"{path}: its header says a spacing of {spacing} mm; expected positive numbers, repair it first"
        )
    if path.name.lower().endswith("gz") and math.prod(shape) * kind.itemsize > held * GZIP_RATIO:
        raise InputError(f"{path}: its header says {shape} voxels, more than its {held} bytes can hold; copy it again")
    with np.errstate(all="ignore"):
        turned = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite([*turned.flat, *affine.flat]).all() or abs(np.linalg.det(turned)) < 1e-3:
        raise InputError(f"{path}: its affine is singular (a zero spacing) or not finite; repair the header first")
    return image


def shape_of(image: nib.spatialimages.SpatialImage, path: str | Path) -> tuple[int, int, int]:
    """The three axes of an image, of which a plain one (X, Y) has one slice.

    InputError for other formats, more axes, fewer, and more than MAX_VOXELS.
    """
    if not isinstance(image, nib.analyze.AnalyzeImage | nib.MGHImage):
        raise InputError(f"{path}: expected NIfTI, MGH or Analyze, got {type(image).__name__}; convert it first")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"{path}: expected a 3-D scan or a 2-D image, got shape {shape}")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: expected a 3-D scan, got shape {shape}; split it into 3-D volumes first")
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"{path}: its header says {shape} voxels, more than {MAX_VOXELS:,}; crop it or repair the header"
        )
    return (*shape, 1)[:3]


def voxels(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """The voxels of an image from ``opened``, float32; compressed files are read to their end, where a checksum stands.

    Raises one of DAMAGED for a file that is cut off or whose content is not that of its checksum.
    """
    proxy = image.dataobj
    data = None
    for part in ("header", "image"):
        holder = image.file_map.get(part)
        if holder is None or not holder.filename.lower().endswith(PACKED):
            continue
        with holder.get_prepare_fileobj("rb") as file:
            if part == "image":
                kind = proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
                data = np.asarray(ArrayProxy(file, kind, mmap=False), dtype=np.float32)
            _read_on(file)
    return np.asarray(proxy, dtype=np.float32) if data is None else data


def _read_on(file: nib.openers.ImageOpener) -> None:
    """Read to the end of a compressed file; what follows a whole gzip stream is not looked at, as by gzip itself."""
    try:
        for _ in range(2**14):
            if not file.read(2**16):
                return
    except gzip.BadGzipFile as err:
        if str(err).startswith("Not a gzipped file"):
            return
        raise
    raise ValueError("it goes on for more than a GB after its voxels")


def _declared_spacing(image: nib.spatialimages.SpatialImage) -> tuple[float, ...]:
    """What the header's bytes say, since nibabel turns a zero into 1 and takes negative numbers as positive ones."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    return tuple(float(mm) for mm in (header["delta"] if isinstance(image, nib.MGHImage) else header["pixdim"][1:4]))


def _image(path: Path) -> nib.spatialimages.SpatialImage | None:
    """The file as nibabel sees it; None for DICOM, PNG and NumPy."""
    return None if is_dicom(path) or path.suffix.lower() in (".png", ".npz") else _loaded(path)


def doubts(path: Path) -> list[str]:
    """What a scan's header leaves open about its place or its size, a line each."""
    image = _image(path)
    if isinstance(image, nib.Nifti1Pair):
        unit = {1: "metre", 3: "micron"}.get(int(image.header["xyzt_units"]) % 8)
        return [f"the header's unit is {unit}, which is taken wherever mm is meant"] if unit else []
    if isinstance(image, nib.analyze.AnalyzeImage):
        return ["an Analyze header does not say which side is left"]
    return dicom.doubts(first) if (first := dicom.first_image(path)) else []


def kept(
    source: Path, affine: np.ndarray, made_affine: np.ndarray, shape: Sequence[int], done: str, record: Mapping
) -> nib.Nifti1Header:
    """Header of a scan of ``shape`` at ``made_affine`` that was made from ``source``, which lies at ``affine``.

    Of a NIfTI: its version, units, display range, and both transforms with their codes, moved as the voxels were; of
    MGH and DICOM: scanner coordinates. A sheared transform (a tilted gantry) stands in the sform alone, as a qform cannot
    hold it. ``done`` becomes the description, ``record`` a comment in JSON.
    """
    image = _image(source)
    old = image.header if isinstance(image, nib.Nifti1Pair) else None
    new = (nib.Nifti2Header if isinstance(old, nib.Nifti2Header) else nib.Nifti1Header)()
    new.set_data_shape(shape)
    new.set_zooms(np.linalg.norm(made_affine[:3, :3], axis=0))
    if old is not None:
        for field in ("xyzt_units", "cal_min", "cal_max", "aux_file"):
            new[field] = old[field]
        moved = np.linalg.inv(affine) @ made_affine
        for read, write in ((old.get_qform, partial(_set_qform, new)), (old.get_sform, new.set_sform)):
            with suppress(*DAMAGED, np.linalg.LinAlgError):  # the one that is not used may hold anything
                matrix, code = read(coded=True)
                if code:
                    write(matrix @ moved, code)
    elif isinstance(image, nib.MGHImage) or ((first := dicom.first_image(source)) and first.position is not None):
        _set_qform(new, made_affine, "scanner")
        new.set_sform(made_affine, "scanner")
    if not np.allclose(new.get_best_affine(), made_affine, atol=1e-3):
        new.set_sform(made_affine, "aligned")
    if int(new["xyzt_units"]) % 8 not in (1, 2, 3):
        new.set_xyzt_units("mm")
    new["descrip"] = done.encode("ascii", "replace")[:79]
    write_record(new, record)
    return new


def _set_qform(header: nib.Nifti1Header, affine: np.ndarray, code: int | str) -> None:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR
    header.set_qform(None if sheared else affine, 0 if sheared else code)


def store_as(header: nib.Nifti1Header, dtype: str, source: Path, data: np.ndarray) -> str:
    """Set a header's voxel type, one of DTYPES, and its slope and intercept; what there is to tell about it, if any.

    Integers are scaled only where their range is too small for the values or the values' too small for rounding.
    ``same``: type, slope and intercept of the source; of DICOM int16, and float32 of files without a type of their own.
    """
    image = _image(source) if dtype == "same" else None
    if image is not None:
        kind, slope, inter = image.get_data_dtype().newbyteorder("="), image.dataobj.slope, image.dataobj.inter
    else:
        kind, slope, inter = np.dtype(("int16" if is_dicom(source) else "float32") if dtype == "same" else dtype), 1, 0
    low, high, note = float(data.min()), float(data.max()), ""
    if kind.kind == "f":
        kind, slope, inter = np.dtype(np.float64 if kind.itemsize > 4 else np.float32), 1, 0
    else:
        least, most = limits(kind)
        fits = least <= min((low - inter) / slope, (high - inter) / slope)
        fits = fits and max((low - inter) / slope, (high - inter) / slope) <= most
        if image is not None:
            note = (
                "" if fits else f"intensities of {low:.4g} to {high:.4g} were clipped to what the input's {kind} holds"
            )
        elif not fits or high - low < FEW_LEVELS:
            slope = max((high - low) / (most - least), float(np.finfo(np.float32).tiny))
            inter = low - least * slope
            note = f"stored as {kind} times {slope:.6g} plus {inter:.6g}, as the header says"
    header.set_data_dtype(kind)
    header.set_slope_inter(slope, inter)
    return note


def limits(dtype: type | np.dtype) -> tuple[float, float]:
    """Lowest and highest float64 that an integer type holds."""
    exact = np.iinfo(dtype)
    high = np.float64(exact.max)
    return float(exact.min), float(high if int(high) <= exact.max else np.nextafter(high, 0))


def write_record(header: nib.Nifti1Header, record: Mapping[str, object]) -> None:
    """Make a record, in JSON, the one comment of a NIfTI header."""
    content = json.dumps(record, sort_keys=True).encode()
    header.extensions[:] = [e for e in header.extensions if e.get_code() != COMMENT]
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", content))


def attach_record(path: Path, header: nib.Nifti1Header | None = None) -> None:
    """Write the record of a header into a file that has no such header: an MGH file or a PNG.

    As FreeSurfer's tag of the command line, which follows the voxels, and as a PNG's comment; readers of voxels pass
    both over.
    """
    text = b"".join(e.get_content() for e in header.extensions if e.get_code() == COMMENT) if header else b""
    if text and path.suffix == ".mgz":
        with open(path, "ab") as file:
            file.write(gzip.compress(struct.pack(">iq", MGH_COMMAND, len(text)) + text, mtime=0))
    elif text and path.suffix.lower() == ".png":
        content, chunk = path.read_bytes(), b"tEXtComment\0" + text
        sizes = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:PNG_START] + sizes[0] + chunk + sizes[1] + content[PNG_START:])


def read_record(path: Path) -> dict[str, object] | None:
    """The record that a file was written with (``write_record``, ``attach_record``); None where there is none."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                texts = [picture.info["Comment"]]
        elif path.suffix == ".mgz":
            header = _loaded(path).header
            with gzip.open(path) as file:
                file.seek(header.get_footer_offset() + nib.freesurfer.mghformat.footer_dtype.itemsize)
                tag, length = struct.unpack(">iq", file.read(12))
                texts = [file.read(min(length, 2**20))] if tag == MGH_COMMAND else []
        else:
            extensions = _loaded(path).header.extensions
            texts = [e.get_content().rstrip(b"\0") for e in extensions if e.get_code() == COMMENT]
        return next((r for r in map(json.loads, texts) if isinstance(r, dict) and "srlib" in r), None)
    except Exception:  # whatever is wrong with the file, it was not written so
        return None
