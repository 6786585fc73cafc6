"""Read DICOM slices: recognise them, check their headers, place them and decode their pixels."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from srlib.core.paths import InputError, explained

SUFFIXES = (".dcm", ".dicom", ".ima")
# the mark after the preamble; without one an element of group 2 or 8, with a VR or with a length
BEGINS = re.compile(
    rb".{128}DICM|[\x02\x08]\0.\0([A-Z]{2}|..\0\0)|\0[\x02\x08]..[A-Z]{2}", re.DOTALL
)
PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
SECTIONS = ("CT", "MR", "PT", "NM")  # modalities whose slices must have a place
ROUGH = 2e-3  # of directions: what three decimals leave of right angles
AIR = -1024.0  # HU: no tissue has less, but padding may
GREY = 8 / 255  # of the range: how far lossy compression may part the colours of grey pixels
BOX = [f"RegionLocation{side}" for side in ("MinX0", "MaxX1", "MinY0", "MaxY1")]
# regions of an ultrasound image that show tissue in two dimensions, measured in cm
TISSUE = {
    "RegionSpatialFormat": 1,
    "RegionDataType": 1,
    "PhysicalUnitsXDirection": 3,
    "PhysicalUnitsYDirection": 3,
}


@dataclass(frozen=True, eq=False)
class Slice:
    """A grey DICOM image: ``shape`` (columns, rows), spacing (x, y) and position in mm, directions
    (x, y) in LPS.

    ``position`` is None where the header does not place the image in the patient; the directions
    are then the image's own. ``thickness`` is in mm, None where the header lacks it.
    """

    file: Path
    header: pydicom.Dataset
    series: str
    shape: tuple[int, int]
    spacing: np.ndarray
    axes: np.ndarray
    position: np.ndarray | None
    thickness: float | None


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder (as no other scan is), or has the name or first bytes of DICOM."""
    # whoever reads the file reports that it cannot be read
    with suppress(OSError, ValueError):
        named = path.is_dir() or path.suffix.lower() in SUFFIXES
        return named or (path.is_file() and _begins(path))
    return False


def _begins(path):
    """Whether a file's first bytes are those of DICOM."""
    with open(path, "rb") as file:
        head = file.read(132)
    raw = path.suffix.lower() == ".img"  # voxels may begin in any way
    return head[128:] == b"DICM" if raw else BEGINS.match(head) is not None


def is_series(folder: Path) -> bool:
    """Whether a folder holds a file that begins as DICOM files do."""
    with suppress(OSError, ValueError):  # a folder or file that may not be read; no name
        return any(_begins(p) for p in folder.iterdir() if p.is_file())
    return False


def read_series(path: Path) -> tuple[list[Slice], np.ndarray]:
    """Read the headers of a file, or of a folder that holds one series: (slices, affine).

    Slices are sorted by position; the affine is nibabel's (RAS+, mm), or that of a picture for an
    image without a position. Files that are not DICOM or hold no image are ignored. Raises
    InputError for no image, several series, several images without a position, slices on different
    grids or at uneven distances, and any slice with an unusable header.
    """
    slices = list(images_in(path))
    if not slices:
        raise InputError(
            f"{path}: no DICOM image found; give a DICOM file or the folder of one series, "
            "and name PNG images one by one"
        )
    series = sorted({s.series for s in slices})
    if len(series) > 1:
        raise InputError(
            f"{path}: {len(series)} series in one folder ({series[0]}, ...); part them"
        )
    first, several = slices[0], len(slices) > 1
    unplaced = [s.file for s in slices if s.position is None]
    if unplaced and several:
        raise InputError(
            f"{unplaced[0]}: one of {len(slices)} images, without a position; give it by itself"
        )
    _check_grids(slices)
    normal = np.cross(*first.axes)
    step = normal * (first.thickness or 1)
    if unplaced:
        return slices, np.diag([*first.spacing, step[2], 1.0])
    slices.sort(key=lambda s: normal @ s.position)
    start = slices[0].position
    if several:
        start, step = _fit_line(path, np.stack([s.position for s in slices]), normal)
    x, y = first.axes * first.spacing[:, None]
    lps = np.vstack([np.stack([x, y, step, start], axis=1), [0, 0, 0, 1]])
    return slices, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _check_grids(slices):
    """InputError for a slice whose size, spacing or orientation is not that of most slices."""
    grids = np.array([[*s.shape, *s.axes.flat, *s.spacing] for s in slices])
    usual = np.percentile(grids, 50, axis=0, method="lower")
    away = (np.abs(grids - usual) > [0.1] * 2 + [ROUGH] * 6 + [1e-4] * 2).any(axis=1)
    if away.any():
        raise InputError(
            f"{slices[away.argmax()].file}: its size, spacing or orientation is not that of "
            f"{slices[away.argmin()].file.name}; remove it"
        )


def _fit_line(path, origins, normal):
    """Fit sorted positions by a line of equal steps: (start, step).

    Raises InputError where a position strays by more than a twentieth of the step and more than the
    rounding of the positions explains: slices are missing, doubled or beside the line.
    """
    index = np.arange(len(origins))
    step, start = np.polyfit(index, origins, 1)
    stray = origins - start - index[:, None] * step
    mm, gaps = np.linalg.norm(step), np.diff(origins @ normal)
    along = step / max(mm, 1e-3)
    decimals = next((d for d in range(6) if np.abs(origins - origins.round(d)).max() < 1e-6), 6)
    rounding = 1.2 * 10.0**-decimals * np.abs(along).sum()  # the most it adds to a distance
    # where a slice is missing, a distance is 0.33 more than their mean
    slack = max(0.05 * mm, min(rounding, 0.3 * mm))
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
    return start, step


def header_warnings(image: Slice) -> list[str]:
    """What a header leaves open about the intensities, a line each."""
    header, found = image.header, []
    if header.PhotometricInterpretation == "MONOCHROME1":
        found.append("MONOCHROME1: larger numbers are darker, and they are kept as they are")
    scaled = "RescaleSlope" in header or "ModalityLUTSequence" in header
    if header.get("Modality") == "CT" and not scaled:
        found.append("a CT without RescaleSlope and RescaleIntercept: its numbers need not be HU")
    return found


def images_in(path: Path) -> Iterator[Slice]:
    """The images of a file or folder; in a folder, files that are not DICOM are ignored."""
    with explained(path, "cannot be read", "change its permissions"):
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        with explained(file, "not a readable DICOM file"):
            begins = _begins(file)
            if not (begins or file == path):
                continue
            if DeflatedExplicitVRLittleEndian.encode() in file.read_bytes():
                raise InputError("it may be deflated, to 1,000 times its size; export it otherwise")
            image = pydicom.dcmread(file, force=begins)
            found = _slice(file, image) if "PixelData" in image else None
        if found:
            yield found


def _slice(file, image):
    """Read the used tags of a header; InputError for any that is damaged."""
    if "TransferSyntaxUID" not in image.file_meta:  # of a file without preamble
        implicit, little = image.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    place = {tag: _numbers(image, tag, n) for tag, n in PLACE.items()}
    position, axes, spacing = place.values()
    missing = [tag for tag, value in place.items() if value is None]
    modality = image.get("Modality")
    unplaced = position is None and axes is None and modality not in SECTIONS
    _check_grey_slice(image, unplaced)
    if unplaced:
        axes, spacing = np.eye(3)[:2], _pixel_size(image)
    elif missing:
        raise InputError(
            f"expected {', '.join(PLACE)}, got no {' and no '.join(missing)}; export all"
        )
    axes = axes.reshape(2, 3)
    rows, columns = (_number(image, tag) or 0 for tag in ("Rows", "Columns"))
    bits, high = _number(image, "BitsStored"), _number(image, "HighBit")
    slope, intercept = _number(image, "RescaleSlope"), _number(image, "RescaleIntercept")
    thickness = _number(image, "SliceThickness") or 0
    square = np.allclose(axes @ axes.T, np.eye(2), atol=ROUGH)
    expected = {
        "Rows": (rows >= 1, "1 or more"),
        "Columns": (columns >= 1, "1 or more"),
        "HighBit": (None in (bits, high) or high == bits - 1, "BitsStored - 1"),
        "RescaleSlope": (slope != 0, "another number than 0"),
        "SliceThickness": (0 <= thickness < 1e4, "mm"),
        "PixelSpacing": (((spacing > 1e-6) & (spacing < 1e4)).all(), "mm"),
        "ImageOrientationPatient": (square, "directions at right angles"),
    }
    for tag, (sound, what) in expected.items():
        if not sound:
            raise InputError(
                f"its {tag} is {image.get(tag)}, expected {what}; repair the header first"
            )
    # pydicom ignores one of them where the other is missing
    if "RescaleSlope" in image or "RescaleIntercept" in image:
        image.RescaleSlope, image.RescaleIntercept = 1 if slope is None else slope, intercept or 0
    series, shape = str(image.get("SeriesInstanceUID")), (int(columns), int(rows))
    return Slice(file, image, series, shape, spacing[::-1], axes, position, thickness or None)


def _check_grey_slice(image, unplaced):
    """InputError for several frames, and for colours where an image has a place in the patient."""
    frames, samples = (_number(image, tag) or 1 for tag in ("NumberOfFrames", "SamplesPerPixel"))
    colour = str(image.get("PhotometricInterpretation"))
    if frames != 1 or "SharedFunctionalGroupsSequence" in image:
        advice = "each frame as a file of its own (enhanced series: as classic slices)"
    elif not unplaced and (samples != 1 or not colour.startswith("MONOCHROME")):
        advice = "it in grey"
    else:
        return
    raise InputError(
        f"expected one grey slice per file, got {frames:g} frames, {colour}; export {advice}"
    )


def _numbers(image, tag, count):
    """The numbers of a tag; None when it is missing or empty. InputError for any other content."""
    with explained(f"its {tag}", "cannot be read", "repair the header first"):
        value = image.get(tag)
        numbers = np.array([] if value is None or value == "" else value, dtype=float).reshape(-1)
    if not len(numbers):
        return None
    if len(numbers) != count or not (np.abs(numbers) < 1e9).all():
        raise InputError(
            f"its {tag} is {value}, expected {count} finite numbers; repair the header first"
        )
    return numbers


def _number(image, tag):
    """The one number of a tag; None when it is missing or empty."""
    numbers = _numbers(image, tag, 1)
    return None if numbers is None else float(numbers[0])


def _tissue(image, tags):
    """The numbers of these tags for each region of TISSUE that has them all."""
    found = []
    for region in image.get("SequenceOfUltrasoundRegions") or ():
        if all(region.get(tag) == value for tag, value in TISSUE.items()):
            found.append([_number(region, tag) for tag in tags])
    return [numbers for numbers in found if None not in numbers]


def _pixel_size(image):
    """Spacing (y, x) in mm of an image without a place: of its ultrasound regions, its pixels, or
    the detector of an X-ray.
    """
    found = [np.abs(size) * 10 for size in _tissue(image, ["PhysicalDeltaY", "PhysicalDeltaX"])]
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

    Colours are averaged; they must be grey where an ultrasound image shows tissue. Raises
    InputError for other colours, and for pixels that cannot be decoded.
    """
    header, advice = image.header, "copy it again, or decompress it, e.g. by dcmdjpeg"
    with explained(image.file, "its pixels cannot be decoded", advice):
        stored = header.pixel_array
        if header.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
        values = apply_modality_lut(stored, header) if stored.ndim == 2 else _grey(header, stored)
        padding = _number(header, "PixelPaddingValue")
        limit = _number(header, "PixelPaddingRangeLimit")
        if header.get("Modality") == "CT" and padding is not None:
            low, high = sorted((padding, padding if limit is None else limit))
            above = (stored.astype(np.int64) - int(low)) % 2 ** int(header.BitsAllocated)
            values = np.where(above <= high - low, np.maximum(values, AIR), values)
        return np.asarray(values, dtype=np.float32).T


def _grey(header, colours):
    """Mean of an image's colours; InputError where they are not grey, in its tissue if known."""
    spread = np.ptp(colours.astype(float), axis=-1)
    parts = []
    for box in _tissue(header, BOX):
        left, right, top, low = map(int, box)
        parts.append(spread[top : low + 1, left : right + 1])
    if max(part.max(initial=0) for part in parts or [spread]) > GREY * np.iinfo(colours.dtype).max:
        raise InputError("expected one grey slice per file, got colours; export it in grey")
    return colours.astype(float).mean(-1)
