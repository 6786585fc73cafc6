"""DICOM slices: how they are told from other files, what their headers say of their place, and
their pixels.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from srlib.core.paths import InputError, first_line

SUFFIXES = (".dcm", ".dicom", ".ima")
# the mark after the preamble, or where there is none an element of group 2 or 8,
# with a VR or with a length
BEGINS = re.compile(
    rb".{128}DICM|[\x02\x08]\0.\0([A-Z]{2}|..\0\0)|\0[\x02\x08]..[A-Z]{2}", re.DOTALL
)
PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
SECTIONS = ("CT", "MR", "PT", "NM")  # modalities whose slices are nothing without their place
ROUGH = 2e-3  # of directions: what three decimals leave of right angles
AIR = -1024.0  # HU: no tissue has less, but padding may
GREY = 8 / 255  # of the range: by how much lossy compression parts the colours of grey pixels
SIDES = ("MinX0", "MaxX1", "MinY0", "MaxY1")


@dataclass(frozen=True, eq=False)
class Slice:
    """A grey DICOM image: ``shape`` (columns, rows), spacing (x, y) in mm, position and directions
    (x, y) in LPS, mm.

    One that does not say where in the patient it lies has no ``position``, and the image's own
    directions.
    """

    file: Path
    header: pydicom.Dataset
    series: str
    shape: tuple[int, int]
    spacing: np.ndarray
    axes: np.ndarray
    position: np.ndarray | None
    thickness: float | None


def is_dicom(path: str | Path) -> bool:
    """Whether a path is a folder, as no other scan is, is named as DICOM files are, or begins as
    they do.
    """
    path = Path(path)
    with suppress(OSError):  # what cannot be read is explained by who reads it
        return (
            path.is_dir() or path.suffix.lower() in SUFFIXES or (path.is_file() and _begins(path))
        )
    return False


def _begins(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(132)
    raw = path.suffix.lower() == ".img"  # voxels may begin in any way
    return head[128:] == b"DICM" if raw else BEGINS.match(head) is not None


def is_series(folder: Path) -> bool:
    """Whether a folder holds a file that begins as DICOM files do."""
    with suppress(OSError):  # a folder or file that may not be read
        return any(_begins(p) for p in folder.iterdir() if p.is_file())
    return False


def read_slices(path: str | Path) -> list[Slice]:
    """The image of a file, or those of a folder that holds one series, sorted by position.

    Files that are not DICOM or hold no image are passed over. Raises InputError for none, several
    series, slices on other grids, several images without a position, and for each that cannot be
    used (a line that names it).
    """
    path, slices = Path(path), list(_images(path))
    if not slices:
        raise InputError(
            f"{path}: no DICOM image found; give a DICOM file or the folder of one series"
        )
    series = sorted({s.series for s in slices})
    if len(series) > 1:
        raise InputError(
            f"{path}: {len(series)} series in one folder ({series[0]}, ...); part them"
        )
    if len(slices) > 1 and (unplaced := [s.file for s in slices if s.position is None]):
        raise InputError(
            f"{unplaced[0]}: one of {len(slices)} images, without a position; give it by itself"
        )
    grids = [(s.shape, *np.round([*s.axes.flat, *s.spacing], 3)) for s in slices]
    usual = slices[grids.index(Counter(grids).most_common(1)[0][0])]
    like = usual.file.name
    for s in slices:
        near = np.allclose(s.axes, usual.axes, atol=ROUGH) and np.allclose(
            s.spacing, usual.spacing, atol=1e-4
        )
        if s.shape != usual.shape or not near:
            raise InputError(
                f"{s.file}: its size, spacing or orientation is not that of {like}; remove it"
            )
    return sorted(
        slices,
        key=lambda s: 0.0 if s.position is None else float(np.cross(*usual.axes) @ s.position),
    )


def affine_of(path: str | Path, slices: list[Slice]) -> np.ndarray:
    """Affine of a series' sorted slices, nibabel's (RAS+, mm); for one without a position that of a
    picture.

    The places are fitted by a line. InputError where that leaves more than a twentieth of the
    spacing and more than the rounding of the positions explains: then slices are missing, doubled
    or beside it.
    """
    first = min(slices, key=lambda s: s.file)
    normal = np.cross(*first.axes)
    step = normal * (first.thickness or 1)
    if first.position is None:
        return np.diag([*first.spacing, step[2], 1.0])
    start, index = slices[0].position, np.arange(len(slices))
    if len(slices) > 1:
        origins = np.stack([s.position for s in slices])
        centred = index - index.mean()
        step = centred @ (origins - origins.mean(0)) / np.square(centred).sum()
        start = origins.mean(0) - index.mean() * step
        _check_line(path, origins, step, origins - start - index[:, None] * step, normal)
    x, y = first.axes * first.spacing[:, None]
    lps = np.vstack([np.stack([x, y, step, start], axis=1), [0, 0, 0, 1]])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _check_line(
    path: str | Path, origins: np.ndarray, step: np.ndarray, stray: np.ndarray, normal: np.ndarray
) -> None:
    """InputError where positions ``stray`` from a line of equal steps along about the normal."""
    mm, gaps = np.linalg.norm(step), np.diff(origins @ normal)
    along = step / max(mm, 1e-3)
    decimals = next((d for d in range(6) if np.abs(origins - origins.round(d)).max() < 1e-6), 6)
    rounding = 1.2 * 10.0**-decimals * np.abs(along).sum()  # what it adds to a distance at most
    slack = max(
        0.05 * mm, min(rounding, 0.3 * mm)
    )  # where a slice is missing, a distance is 0.33 more than their mean
    uneven = np.abs(np.diff(origins @ along) - mm).max()
    if (
        along @ normal < 0.1
        or np.linalg.norm(stray, axis=1).max() > slack
        or uneven > max(0.1 * mm, slack)
    ):
        raise InputError(
            f"{path}: slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart along their normal, "
            "expected one distance and one line; look for missing or doubled slices"
        )


def read_thickness(path: str | Path) -> float | None:
    """Thickness in mm of a DICOM series' first slice; slices may lie farther apart. None where
    its header lacks it.
    """
    return getattr(first_image(path), "thickness", None)


def first_image(path: str | Path) -> Slice | None:
    """The first image by name of a DICOM file or folder; None where there is none, and of other
    files.
    """
    return next(_images(path), None) if is_dicom(path) else None


def doubts(image: Slice) -> list[str]:
    """What a header leaves open about the intensities, a line each."""
    header, found = image.header, []
    if header.PhotometricInterpretation == "MONOCHROME1":
        found.append("MONOCHROME1: larger numbers are darker, and they are kept as they are")
    if (
        header.get("Modality") == "CT"
        and "RescaleSlope" not in header
        and "ModalityLUTSequence" not in header
    ):
        found.append("a CT without RescaleSlope and RescaleIntercept: its numbers need not be HU")
    return found


def _images(path: str | Path) -> Iterator[Slice]:
    path = Path(path)
    with explained(path, "cannot be read", "change its permissions"):
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return (s for file in files if (s := _read(file, alone=file == path)) is not None)


def _read(file: Path, alone: bool) -> Slice | None:
    """None for what holds no image, and in a folder for what is not DICOM."""
    with explained(file, "not a readable DICOM file"):
        begins = _begins(file)
        image = pydicom.dcmread(file, force=begins) if begins or alone else {}
        return _slice(file, image) if "PixelData" in image else None


@contextmanager
def explained(file: str | Path, what: str, advice: str = "copy it again") -> Iterator[None]:
    """Turn every exception into an InputError of one line that names the file, says ``what`` is
    wrong, and what to do.

    Libraries raise exceptions of many kinds for damaged files. Their warnings are silenced: the
    callers judge files themselves.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError as err:
        raise InputError(f"{file}: {err}") from err
    except Exception as err:
        raise InputError(f"{file}: {what} ({first_line(err)}); {advice}") from err


def _slice(file: Path, image: pydicom.Dataset) -> Slice:
    """What is used of a header, every tag checked."""
    if "TransferSyntaxUID" not in image.file_meta:  # of a file without preamble
        implicit, little = image.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    modality = image.get("Modality")
    place = {tag: _numbers(image, tag, n) for tag, n in PLACE.items()}
    missing = [tag for tag, value in place.items() if value is None]
    unplaced = {*PLACE} - {*missing} <= {"PixelSpacing"} and modality not in SECTIONS
    _check_grey_slice(image, unplaced)
    if missing and not unplaced:
        raise InputError(
            f"expected {', '.join(PLACE)}, got no {' and no '.join(missing)}; export all"
        )
    position, axes, spacing = (
        (None, np.eye(3)[:2], _pixel_size(image)) if unplaced else place.values()
    )
    axes = axes.reshape(2, 3)
    tags = (
        "Rows",
        "Columns",
        "BitsStored",
        "HighBit",
        "SliceThickness",
        "RescaleSlope",
        "RescaleIntercept",
    )
    rows, columns, bits, high, thickness, slope, intercept = (_number(image, tag) for tag in tags)
    expected = {
        "Rows": ((rows or 0) >= 1, "1 or more"),
        "Columns": ((columns or 0) >= 1, "1 or more"),
        "HighBit": (None in (bits, high) or high == bits - 1, "BitsStored - 1"),
        "RescaleSlope": (slope != 0, "another number than 0"),
        "SliceThickness": (0 <= (thickness or 0) < 1e4, "mm"),
        "PixelSpacing": (((spacing > 1e-6) & (spacing < 1e4)).all(), "mm"),
        "ImageOrientationPatient": (
            np.allclose(axes @ axes.T, np.eye(2), atol=ROUGH),
            "directions at right angles",
        ),
    }
    for tag, (sound, what) in expected.items():
        if not sound:
            raise InputError(
                f"its {tag} is {image.get(tag)}, expected {what}; repair the header first"
            )
    if (
        "RescaleSlope" in image or "RescaleIntercept" in image
    ):  # pydicom ignores one where the other is missing
        image.RescaleSlope, image.RescaleIntercept = 1 if slope is None else slope, intercept or 0
    series, shape = str(image.get("SeriesInstanceUID")), (int(columns), int(rows))
    return Slice(file, image, series, shape, spacing[::-1], axes, position, thickness or None)


def _check_grey_slice(image: pydicom.Dataset, unplaced: bool) -> None:
    """InputError for several frames, and for colours, which only images ``unplaced`` in the
    patient may have.
    """
    frames, samples = (_number(image, tag) or 1 for tag in ("NumberOfFrames", "SamplesPerPixel"))
    colour, several = (
        str(image.get("PhotometricInterpretation")),
        "SharedFunctionalGroupsSequence" in image,
    )
    several = several or int(frames) != 1
    if several or (not unplaced and (int(samples) != 1 or not colour.startswith("MONOCHROME"))):
        advice = (
            "each frame as a file of its own (enhanced series: as classic slices)"
            if several
            else "it in grey"
        )
        raise InputError(
            f"expected one grey slice per file, got {frames:g} frames, {colour}; export {advice}"
        )


def _numbers(image: pydicom.Dataset, tag: str, count: int) -> np.ndarray | None:
    """The numbers of a tag; None when it is missing or empty. InputError names the tag where it
    holds others.
    """
    try:
        value = image.get(tag)
        numbers = np.array([] if value is None or value == "" else value, dtype=float).reshape(-1)
    except (
        Exception
    ) as err:  # pydicom and NumPy raise ValueError, TypeError, OverflowError and others
        raise InputError(
            f"its {tag} cannot be read ({first_line(err)}); repair the header first"
        ) from err
    if len(numbers) and (len(numbers) != count or not (np.abs(numbers) < 1e9).all()):
        raise InputError(
            f"its {tag} is {value}, expected {count} finite numbers; repair the header first"
        )
    return numbers if len(numbers) else None


def _number(image: pydicom.Dataset, tag: str) -> float | None:
    numbers = _numbers(image, tag, 1)
    return None if numbers is None else float(numbers[0])


def _tissue(image: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Regions of an ultrasound image that show tissue in two dimensions and are measured in cm."""
    wanted = {
        "RegionSpatialFormat": 1,
        "RegionDataType": 1,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
    }
    regions = image.get("SequenceOfUltrasoundRegions") or ()
    return [
        region
        for region in regions
        if all(region.get(tag) == value for tag, value in wanted.items())
    ]


def _pixel_size(image: pydicom.Dataset) -> np.ndarray:
    """Spacing (y, x) in mm of an image that does not say where it lies; of X-rays that at the
    detector, if need be.
    """
    sizes = [
        [_number(region, f"PhysicalDelta{axis}") for axis in "YX"] for region in _tissue(image)
    ]
    found = [np.abs(size) * 10 for size in sizes if None not in size]
    if any(not np.allclose(size, found[0], rtol=1e-3) for size in found):
        raise InputError(
            f"{len(found)} regions whose pixels differ in size; export each as an image of its own"
        )
    found += [_numbers(image, tag, 2) for tag in ("PixelSpacing", "ImagerPixelSpacing")]
    for size in found:
        if size is not None:
            return size
    raise InputError(
        "says neither where it lies (ImagePositionPatient, ImageOrientationPatient) nor how large "
        "its pixels are (an ultrasound region, PixelSpacing, ImagerPixelSpacing); export it so"
    )


def pixels(image: Slice) -> np.ndarray:
    """Rescaled values (columns, rows), float32: HU for CT, whose padding below AIR becomes AIR.

    Of colours, which must be grey where an ultrasound image shows tissue, the mean. InputError for
    others, and for pixels that cannot be decoded.
    """
    header = image.header
    with explained(
        image.file,
        "its pixels cannot be decoded",
        "copy it again, or decompress it, e.g. by dcmdjpeg",
    ):
        stored = header.pixel_array
        if header.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
        values = apply_modality_lut(stored, header) if stored.ndim == 2 else _grey(header, stored)
        padding, limit = (
            _number(header, tag) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        )
        if header.get("Modality") == "CT" and padding is not None:
            low, high = sorted((padding, padding if limit is None else limit))
            padded = (stored.astype(np.int64) - int(low)) % 2 ** int(
                header.BitsAllocated
            ) <= high - low
            values = np.where(padded, np.maximum(values, AIR), values)
        return np.asarray(values, dtype=np.float32).T


def _grey(header: pydicom.Dataset, colours: np.ndarray) -> np.ndarray:
    spread = np.ptp(colours.astype(float), axis=-1)
    boxes = [
        [_number(region, f"RegionLocation{side}") for side in SIDES] for region in _tissue(header)
    ]
    boxes = [map(int, box) for box in boxes if None not in box]
    parts = [spread[top : low + 1, left : right + 1] for left, right, top, low in boxes] or [spread]
    if max(part.max(initial=0) for part in parts) > GREY * np.iinfo(colours.dtype).max:
        raise InputError("expected one grey slice per file, got colours; export it in grey")
    return colours.astype(float).mean(-1)
