"""PNG, DICOM, DeepLesion and Duke records: values, places in the world, and what is refused."""

import os
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    UltrasoundImageStorage,
    generate_uid,
)
from scipy.io import savemat
from skimage import io

from srlib.cli.commands import main
from srlib.core.paths import InputError, ScanWarning
from srlib.data import convert
from srlib.enhance import jobs
from srlib.scans import formats, volume
from srlib.scans.formats import load_dicom, load_png, load_scan, read_grid, scans_in
from srlib.scans.headers import read_header
from srlib.scans.volume import save_scan


def derived(source: Path, affine: np.ndarray, shape: tuple) -> nib.Nifti1Header:
    return read_header(source).derive(affine, shape, description="", record={})


def refused(call, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png(tmp_path: Path, dtype: type) -> None:
    rows = np.arange(5 * 7, dtype=dtype).reshape(5, 7) * (7 if dtype == np.uint8 else 1800)
    io.imsave(tmp_path / "a.png", rows, check_contrast=False)
    image = load_png(tmp_path / "a.png", spacing_mm=(0.5, 0.75, 2))
    assert image.shape == (7, 5, 1)
    assert image.data[6, 0, 0] == rows[0, 6] and image.data[0, 4, 0] == rows[4, 0]
    np.testing.assert_array_equal(image.affine, np.diag([0.5, 0.75, 2, 1]))


def test_png_of_deeplesion_is_in_hu(tmp_path: Path) -> None:
    hu = np.array([[-1024, 0, 200], [3000, -2000, 35]])
    io.imsave(tmp_path / "a.png", (hu + 32768).astype(np.uint16), check_contrast=False)
    image = load_png(tmp_path / "a.png", deeplesion=True)
    np.testing.assert_array_equal(image.data[:, :, 0], hu.T)
    io.imsave(tmp_path / "b.png", np.zeros((3, 4), np.uint8), check_contrast=False)
    refused(lambda: load_png(tmp_path / "b.png", deeplesion=True), r"b\.png: expected a 16-bit")


def test_a_bit_that_changed_in_a_png_is_seen(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "a.png"
    io.imsave(
        path, np.cumsum(rng.integers(0, 3, (32, 32)), 0).astype(np.uint16), check_contrast=False
    )
    whole, image, refused = path.read_bytes(), load_png(path).data, 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole) // 4, len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load_png(path).data, image)
        except InputError:
            refused += 1
    assert refused > 50


def test_bad_pngs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 65535, (40, 50), dtype=np.uint16)
    io.imsave(tmp_path / "whole.png", noise, check_contrast=False)
    whole = (tmp_path / "whole.png").read_bytes()
    for size in (0, 5, 60, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:size])
        refused(
            lambda: load_png(tmp_path / "cut.png"), r"cut\.png: missing, unreadable or truncated"
        )
    refused(lambda: load_png(tmp_path / "absent.png"), r"absent\.png: missing")
    io.imsave(tmp_path / "colour.png", np.zeros((4, 5, 3), np.uint8), check_contrast=False)
    refused(
        lambda: load_png(tmp_path / "colour.png"),
        r"colour\.png: expected an 8- or 16-bit grey PNG, got RGB",
    )


def test_archives_of_one_array(tmp_path: Path) -> None:
    data = np.arange(60.0).reshape(3, 4, 5)
    for array in (data, data[..., 0]):
        np.savez(tmp_path / "a.npz", array)
        np.testing.assert_array_equal(load_scan(tmp_path / "a.npz").data, array.reshape(3, 4, -1))
    np.savez(tmp_path / "a.npz", hr=data, lr=data)
    refused(lambda: load_scan(tmp_path / "a.npz"), r"one array .it holds 2: hr, lr")
    np.savez(tmp_path / "a.npz")
    refused(lambda: load_scan(tmp_path / "a.npz"), r"one array .it holds 0")


def test_ct_small_of_pydicom() -> None:
    path = get_testdata_file("CT_small.dcm", download=False)
    image, header = load_dicom(path), pydicom.dcmread(path)
    assert image.shape == (128, 128, 1)
    np.testing.assert_array_equal(image.data[:, :, 0].T, header.pixel_array - 1024.0)
    assert image.data.min() >= -1024 and 500 < image.data.max() < 3072
    np.testing.assert_allclose(image.spacing_mm, (0.661468, 0.661468, 5))
    np.testing.assert_allclose(image.affine[:3, 3], (158.135803, 179.035797, -75.699997))
    assert np.diag(image.affine)[0] < 0 and np.diag(image.affine)[1] < 0 < np.diag(image.affine)[2]


def test_a_losslessly_compressed_image_is_the_image() -> None:
    plain, packed = (
        load_dicom(get_testdata_file(f"MR_small{s}.dcm", download=False)) for s in ("", "_RLE")
    )
    np.testing.assert_array_equal(plain.data, packed.data)
    assert plain.data.std() > 0


SHAPE, SPACING = (4, 6, 5), (0.7, 0.9, 2.5)  # x, y, slices


@pytest.fixture
def series(tmp_path: Path, oblique: np.ndarray):
    """Maker of a series of five oblique slices, numbered against their positions; ``change`` edits a header."""
    axes = (
        oblique[:3, :3]
        / np.linalg.norm(oblique[:3, :3], axis=0)
        * np.sign(np.linalg.det(oblique[:3, :3]))
    )
    origin, voxels = np.array([12.0, -30.0, 7.5]), np.arange(np.prod(SHAPE)).reshape(SHAPE)

    def make(change=lambda header, index: None, name: str = "series") -> Path:
        folder, uid = tmp_path / name, generate_uid()
        folder.mkdir(exist_ok=True)
        for index in range(SHAPE[2]):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
                ExplicitVRLittleEndian,
                CTImageStorage,
            )
            meta.MediaStorageSOPInstanceUID = generate_uid()
            header = FileDataset(
                folder / f"{name}{SHAPE[2] - index}.dcm", {}, file_meta=meta, preamble=b"\0" * 128
            )
            header.SOPClassUID, header.SOPInstanceUID = (
                CTImageStorage,
                meta.MediaStorageSOPInstanceUID,
            )
            header.SeriesInstanceUID, header.InstanceNumber = uid, SHAPE[2] - index
            header.Rows, header.Columns = SHAPE[1], SHAPE[0]
            header.ImageOrientationPatient = [f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])]
            header.ImagePositionPatient = [
                f"{v:.9f}" for v in origin + index * SPACING[2] * axes[:, 2]
            ]
            header.PixelSpacing, header.SliceThickness = [SPACING[1], SPACING[0]], 1.25
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = (
                16,
                12,
                11,
                0,
            )
            header.RescaleSlope, header.RescaleIntercept = 2, -1024
            header.PixelData = voxels[:, :, index].T.astype(np.uint16).tobytes()
            change(header, index)
            header.save_as(header.filename, enforce_file_format=True)
        return folder

    make.axes, make.origin, make.voxels = axes, origin, voxels
    return make


def test_a_series_lies_where_its_headers_say(series) -> None:
    folder = series()
    (folder / "notes.txt").write_text("not a slice")
    volume = load_dicom(folder)
    np.testing.assert_array_equal(volume.data, 2.0 * series.voxels - 1024)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    to_ras = np.diag([-1, -1, 1])
    for voxel in ((0, 0, 0), (3, 0, 0), (0, 5, 0), (2, 1, 4)):
        lps = series.origin + series.axes @ (np.array(voxel) * SPACING)
        np.testing.assert_allclose(volume.affine @ (*voxel, 1), (*(to_ras @ lps), 1), atol=1e-6)


def test_slopes_may_differ_from_slice_to_slice(series) -> None:
    def change(header, index: int) -> None:
        header.RescaleSlope = index + 1

    volume = load_dicom(series(change))
    np.testing.assert_array_equal(volume.data, (np.arange(5) + 1.0) * series.voxels - 1024)


def test_one_slice_is_as_thick_as_it_says(series) -> None:
    slice_2 = load_dicom(sorted(series().iterdir())[2])
    np.testing.assert_array_equal(slice_2.data, 2.0 * series.voxels[:, :, 2:3] - 1024)
    np.testing.assert_allclose(slice_2.spacing_mm, (0.7, 0.9, 1.25), rtol=1e-6)
    whole = load_dicom(series())
    np.testing.assert_allclose(slice_2.affine[:3, 3], (whole.affine @ (0, 0, 2, 1))[:3], atol=1e-6)


def set_to(**values):
    """A change of the header of the middle slice."""

    def change(header, index: int) -> None:
        for name, value in values.items() if index == 2 else ():
            setattr(header, name, value)

    return change


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"SeriesInstanceUID": generate_uid()}, "2 series in one folder"),
        (
            {"NumberOfFrames": 2},
            "one grey slice per file, got 2 frames, MONOCHROME2; export each frame as a file",
        ),
        (
            {"SharedFunctionalGroupsSequence": [Dataset()]},
            "export each frame as a file of its own .*classic slices",
        ),
        ({"Rows": None}, "its Rows is None, expected 1 or more"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": 1e300}, "RescaleSlope is 1e.?300"),
        ({"HighBit": 15}, "its HighBit is 15, expected BitsStored - 1"),
        ({"BitsAllocated": 8}, "cannot be decoded"),
        ({"SliceThickness": -1}, "its SliceThickness is -1"),
        (
            {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
            "grey slice per file, got 1 frames, RGB",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE"),
        ({"PixelSpacing": [0.9, 0.8]}, "size, spacing or orientation is not that of"),
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            "size, spacing or orientation is not that of",
        ),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "repair the header"),
        ({"ImagePositionPatient": None}, "expected ImagePositionPatient"),
        (
            {"PixelSpacing": None},
            "expected ImagePositionPatient, ImageOrientationPatient, PixelSpacing",
        ),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
        ({"Rows": 3, "PixelData": b"\0" * 24}, "size, spacing or orientation is not that of"),
    ],
)
def test_slices_that_do_not_belong_are_refused(series, values: dict, match: str) -> None:
    refused(lambda: load_dicom(series(set_to(**values))), match)


CONTENTS = {
    "empty": b"",
    "text": b"1A",
    "negative": b"-5",
    "absurd": b"1e30",
    "nan": b"nan ",
    "several": b"1\\2\\3 ",
}
USED = """NumberOfFrames SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SliceThickness
    RescaleSlope RescaleIntercept ImagePositionPatient ImageOrientationPatient PixelSpacing SeriesInstanceUID Modality
    PhotometricInterpretation PixelPaddingValue ModalityLUTSequence SequenceOfUltrasoundRegions PixelData"""


@pytest.mark.parametrize("tag", USED.split())
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_tag_is_one_line_and_never_a_traceback(tmp_path: Path, tag: str, capfd) -> None:
    number, file = Tag(pydicom.datadict.tag_for_keyword(tag)), tmp_path / "x.dcm"
    usual = pydicom.datadict.dictionary_VR(number).split()[0]
    for content, vr in [
        (None, usual),
        *((c, vr) for c in CONTENTS.values() for vr in (usual, "LO", "US", "SQ", "UN")),
    ]:
        header = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        header._dict.pop(number, None)
        if content is not None:
            header._dict[number] = RawDataElement(number, vr, len(content), content, 0, False, True)
        try:
            header.save_as(file)
        except Exception:  # what pydicom does not write, nobody reads
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # those of pydicom must not be heard
                read = load_scan(file)
        except InputError as err:
            assert str(file) in str(err) and "\n" not in str(err)
        except ScanWarning:
            assert tag == "RescaleSlope" or tag == "RescaleIntercept"
        else:
            assert read.shape == (128, 128, 1) and np.isfinite(read.affine).all()
    assert capfd.readouterr() == ("", "")


def test_the_damaged_file_of_pydicom_is_one_line() -> None:
    refused(
        lambda: load_scan(get_testdata_file("badVR.dcm", download=False)),
        r"badVR\.dcm: its NumberOfFrames: cannot be read .*1A",
    )


@pytest.mark.parametrize("series_spacing", [0.5, 0.625, 1.25, 3.3])
def test_positions_rounded_to_a_tenth_are_one_stack(series, series_spacing: float) -> None:
    def place(header, index: int) -> None:
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [
            f"{v:.1f}" for v in (-12.34, 5.67, 3.21 + series_spacing * index)
        ]

    folder = series(place)
    read = load_dicom(folder)
    assert read.spacing_mm[2] == pytest.approx(
        series_spacing, abs=0.026
    )  # fitted over all slices, not two of them
    np.testing.assert_array_equal(read.data, 2.0 * series.voxels - 1024)
    for missing in (1, 2, 3):
        file = sorted(folder.iterdir())[missing]
        content = file.read_bytes()
        file.unlink()
        refused(lambda: load_dicom(folder), "look for missing or doubled slices")
        file.write_bytes(content)
    shutil.copy(file, folder / "twin.dcm")
    refused(lambda: load_dicom(folder), "look for missing or doubled slices")


def test_the_message_names_the_odd_slice_and_one_of_the_others(series) -> None:
    def turn(header, index: int) -> None:
        if index == 4:  # the first by name
            header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    refused(
        lambda: load_dicom(series(turn)),
        r"series1\.dcm: its size, spacing or orientation is not that of series2\.dcm",
    )


def test_slices_side_by_side_are_no_stack(series) -> None:
    def beside(header, index: int) -> None:
        shift = 2.5 * index * series.axes[:, 0]
        header.ImagePositionPatient = [f"{v:.9f}" for v in series.origin + shift]

    refused(lambda: load_dicom(series(beside)), "0 mm apart along their normal")


@pytest.mark.parametrize(
    "name", ["IM0001", "a.IMA", "b.dicom", "C.DCM", "1.2.840.113619.2.55", "a.img", "a.nii"]
)
def test_dicom_is_told_by_its_content(series, tmp_path: Path, name: str) -> None:
    slice_2 = sorted(series().iterdir())[2]
    file = shutil.copy(slice_2, tmp_path / name)
    np.testing.assert_array_equal(load_scan(file).data, load_scan(slice_2).data)
    assert read_grid(file)[0] == (4, 6, 1)
    header = derived(Path(file), np.eye(4), (4, 6, 1))
    assert int(header["qform_code"]) == int(header["sform_code"]) == 1
    data = load_scan(file).data
    read_header(Path(file)).set_type(header, "same", float(data.min()), float(data.max()))
    assert header.get_data_dtype() == np.int16


def test_a_data_set_without_preamble_is_dicom(series, tmp_path: Path) -> None:
    folder = series()
    whole = load_dicom(folder)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()[132:]
        body = content[
            content.index(b"\x08\0\x16\0UI") :
        ]  # as ACR-NEMA: no file meta information either
        file.with_suffix("").write_bytes(content if file.name.startswith("series1") else body)
        file.unlink()
    again = load_scan(folder)
    np.testing.assert_array_equal(again.data, whole.data)
    np.testing.assert_array_equal(again.affine, whole.affine)


def test_folders_hold_series_and_single_images_of_any_name(series, tmp_path: Path) -> None:
    folder = series()
    assert scans_in(folder) == []  # it is one series
    for name, slice_file in zip(("1.2.3.4", "1.2.3.5"), sorted(folder.iterdir()), strict=False):
        shutil.copy(slice_file, tmp_path / name)
    save_scan(load_dicom(folder), tmp_path / "a.nii.gz")
    for name in ("B.HDR", "B.IMG"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "1.2.3.4").read_bytes())
    names = ["1.2.3.4", "1.2.3.5", "B.HDR", "a.nii.gz", "series"]
    assert [p.name for p in scans_in(tmp_path)] == names
    assert [j.target.name for j in jobs.jobs([tmp_path], tmp_path / "out")][:2] == [
        "1.2.3.4_sr.nii.gz",
        "1.2.3.5_sr.nii.gz",
    ]


def test_what_is_not_dicom_and_has_no_suffix_is_explained(tmp_path: Path, noise) -> None:
    os.rename(
        save_scan(volume.Volume(noise((4, 5, 6)), np.eye(4)), tmp_path / "a.nii"), tmp_path / "scan"
    )
    for read in (load_scan, read_grid):
        refused(
            lambda read=read: read(tmp_path / "scan"),
            r"scan: unreadable scan .* name it as what it is .\.nii\.gz",
        )


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_gaps_are_refused(series, missing: int) -> None:
    folder = series()
    sorted(folder.iterdir())[missing].unlink()
    refused(lambda: load_dicom(folder), r"slices are 2\.5 to 5 mm apart .* missing")


def test_doubled_slices_and_slices_off_the_line_are_refused(series) -> None:
    folder = series()
    twin = pydicom.dcmread(sorted(folder.iterdir())[2])
    twin.save_as(folder / "twin.dcm")
    refused(lambda: load_dicom(folder), r"slices are 0 to 2\.5 mm apart .* doubled")
    (folder / "twin.dcm").unlink()
    twin.ImagePositionPatient = [
        f"{v:.9f}" for v in np.array(twin.ImagePositionPatient, float) + 2 * series.axes[:, 0]
    ]
    twin.save_as(sorted(folder.iterdir())[2])
    refused(lambda: load_dicom(folder), "one line")


def test_a_tilted_gantry_gives_a_sheared_affine(series) -> None:
    def tilt(header, index: int) -> None:
        shift = 0.4 * index * series.axes[:, 1]
        header.ImagePositionPatient = [
            f"{v:.9f}" for v in np.array(header.ImagePositionPatient, float) + shift
        ]

    volume, straight = load_dicom(series(tilt)), load_dicom(series(name="straight"))
    lps = series.origin + series.axes @ (0, 0.4 * 4, 4 * 2.5)
    np.testing.assert_allclose((volume.affine @ (0, 0, 4, 1))[:3], lps * (-1, -1, 1), atol=1e-6)
    np.testing.assert_array_equal(volume.data, straight.data)


@pytest.mark.parametrize("tilt_mm", [0.4, 0.02])
def test_a_tilted_gantry_stands_in_the_sform_alone(
    series, tmp_path: Path, tiny, tilt_mm: float
) -> None:
    def tilt(header, index: int) -> None:
        shift = tilt_mm * index * series.axes[:, 1]
        header.ImagePositionPatient = [
            f"{v:.9f}" for v in np.array(header.ImagePositionPatient, float) + shift
        ]

    folders = {1: series(name="straight"), 0: series(tilt)}
    for code, folder in folders.items():
        read = load_dicom(folder)
        for made in (read.affine, read.affine @ np.diag([0.5, 0.5, 0.25, 1])):
            header = derived(folder, made, read.shape)
            back = nib.load(save_scan(read, tmp_path / "a.nii.gz", dtype=np.float32, header=header))
            assert int(back.header["qform_code"]) == code and int(back.header["sform_code"]) == 1
            np.testing.assert_allclose(back.affine, made, atol=1e-5)
            np.testing.assert_allclose(
                back.header.get_zooms(), np.linalg.norm(made[:3, :3], axis=0), rtol=1e-6
            )
            again = derived(tmp_path / "a.nii.gz", made @ np.diag([0.5, 1, 1, 1]), read.shape)
            assert (
                int(again["qform_code"]) == code and int(again["sform_code"]) == 1
            )  # and from NIfTI to NIfTI
    words = ("enhance", folder, tmp_path / "sr.nii.gz", "--weights", tiny, "--factor", 2, 2, 1)
    assert CliRunner().invoke(main, [*map(str, words)]).exit_code == 0
    back = nib.load(tmp_path / "sr.nii.gz")
    assert int(back.header["qform_code"]) == 0 and int(back.header["sform_code"]) == 1
    np.testing.assert_allclose(
        back.affine @ [0.5, 0.5, 4, 1], read.affine @ [0, 0, 4, 1], atol=1e-4
    )
    for name in ("b.nii.gz", "b.mgz"):  # without a header
        back = nib.load(volume.save_scan(read, tmp_path / name))
        np.testing.assert_allclose(back.affine, read.affine, atol=1e-4)
    assert int(nib.load(tmp_path / "b.nii.gz").header["qform_code"]) == 0


def test_a_qform_that_would_be_sheared_is_left_out(tmp_path: Path) -> None:
    """The qform of a scan whose sform is sheared moves with its voxels, on to another grid of the sform's world."""
    sheared, straight = np.eye(4), np.diag([1.0, 1, 2, 1])
    sheared[1, 2] = 0.3
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), sheared)
    image.set_qform(straight, 1)
    nib.save(image, tmp_path / "a.nii")
    header = derived(tmp_path / "a.nii", np.eye(4), (4, 4, 4))
    assert int(header["qform_code"]) == 0
    np.testing.assert_allclose(header.get_best_affine(), np.eye(4), atol=1e-6)


def test_rescaling_with_half_of_its_tags(series) -> None:
    plain = series.voxels
    for change, expected in (
        (lambda h, i: h.__delattr__("RescaleSlope"), plain - 1024), (lambda h, i: h.__delattr__("RescaleIntercept"), plain * 2),
        (lambda h, i: setattr(h, "RescaleSlope", None), plain - 1024),
    ):  # fmt: skip
        np.testing.assert_array_equal(load_dicom(series(change)).data, expected)


def test_signed_and_unused_bits(series) -> None:
    def change(header, index: int) -> None:
        header.PixelRepresentation, header.RescaleSlope, header.RescaleIntercept = 1, 1, 0
        header.PixelData = (
            ((series.voxels[:, :, index] - 60) & 0x0FFF).T.astype(np.uint16).tobytes()
        )

    np.testing.assert_array_equal(load_dicom(series(change)).data, series.voxels - 60.0)


def test_padding_of_ct_is_air(series) -> None:
    def pad(header, index: int) -> None:
        header.Modality, header.PixelRepresentation, header.RescaleSlope = "CT", 1, 1
        header.BitsStored, header.HighBit = 16, 15
        values = series.voxels[:, :, index].T.astype(np.int16)
        values[0, 0], header.PixelPaddingValue = -2000, -2000
        header.PixelData = values.tobytes()

    read = load_dicom(series(pad))
    expected = series.voxels - 1024.0
    expected[0, 0] = -1024
    np.testing.assert_array_equal(read.data, expected)


def test_what_a_header_leaves_open_is_told(series) -> None:
    def change(header, index: int) -> None:
        del header.RescaleSlope, header.RescaleIntercept
        header.Modality, header.PhotometricInterpretation = "CT", "MONOCHROME1"

    folder = series(change)
    with pytest.warns(ScanWarning) as told:
        load_dicom(folder)
    assert [
        "MONOCHROME1" in str(w.message) or "need not be HU" in str(w.message) for w in told
    ] == [True, True]
    assert len(read_header(folder).warnings()) == 2
    assert read_header(series(name="plain")).warnings() == []


def test_names_that_are_not_utf8_are_enhanced_reported_and_listed(
    tmp_path: Path, tiny, noise
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xe9"))
    folder.mkdir()
    scans = [
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        for name in (b"caf\xe9.nii", b"caf\xe8.nii")
    ]
    for scan in scans:
        os.rename(
            volume.save_scan(volume.Volume(noise((8, 9, 10)), np.eye(4)), tmp_path / "a.nii"), scan
        )
    words = ["enhance", folder, tmp_path / "out", "--weights", tiny, "--report", tmp_path / "pages"]
    for status in ("enhanced", "done before"):
        result = CliRunner().invoke(main, [*map(os.fspath, words)])
        assert result.exit_code == 0, result.output
        rows = (tmp_path / "out/summary.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 3 and all(f",{status}," in row for row in rows[1:])
        assert rows[1].startswith(f"{tmp_path}/in\\udce9/caf\\udce8.nii,")
    pages = sorted((tmp_path / "pages").iterdir())
    assert len(pages) == 2 and "caf\\udce8.nii, enhanced" in pages[0].read_text(encoding="utf-8")
    result = CliRunner().invoke(
        main, ["degrade", os.fspath(scans[0]), os.fspath(folder / "lr.nii")]
    )
    assert result.exit_code == 0 and result.stdout.endswith("/in\\udce9/lr.nii\n")
    result = CliRunner().invoke(
        main, ["manifest", "flat", os.fspath(folder), "--out", str(tmp_path / "m.csv")]
    )
    assert (
        result.exit_code == 1
        and "cannot name a file; expected printable letters" in result.stderr
        and not (tmp_path / "m.csv").exists()
    )


def ultrasound(file: Path, pixels: np.ndarray, regions=((1, 1, 3, 0.02, 0.03),), **tags) -> Path:
    """A single ultrasound image; a region: spatial format, data type, units, x and y of a pixel."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian,
        UltrasoundImageStorage,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = (
        UltrasoundImageStorage,
        generate_uid(),
        "US",
    )
    header.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    header.PhotometricInterpretation, header.PlanarConfiguration = (
        "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        0,
    )
    header.Rows, header.Columns = pixels.shape[:2]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PixelData, items = pixels.tobytes(), []
    for form, kind, unit, x, y in regions:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType, item.PhysicalDeltaX, item.PhysicalDeltaY = (
            form,
            kind,
            x,
            y,
        )
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = unit
        item.RegionLocationMinX0, item.RegionLocationMaxX1 = 2, pixels.shape[1] - 1
        item.RegionLocationMinY0, item.RegionLocationMaxY1 = 2, pixels.shape[0] - 1
        items.append(item)
    header.SequenceOfUltrasoundRegions = items
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(file, enforce_file_format=True)
    return file


ECHO = np.random.default_rng(0).integers(0, 255, (8, 6), dtype=np.uint8)


def test_an_ultrasound_image_has_the_spacing_of_its_region(tmp_path: Path) -> None:
    image = load_scan(ultrasound(tmp_path / "IM1", ECHO))
    np.testing.assert_array_equal(image.data[:, :, 0], ECHO.T)
    np.testing.assert_allclose(image.affine, np.diag([0.2, 0.3, 1, 1]))  # as of a PNG, in mm
    spectrum, second = (2, 1, 4, 0.5, 0.5), (1, 1, 3, -0.02, 0.03)
    several = load_scan(
        ultrasound(tmp_path / "IM2", ECHO, (spectrum, (1, 1, 3, 0.02, 0.03), second))
    )
    np.testing.assert_allclose(several.affine, image.affine)
    header = derived(tmp_path / "IM1", image.affine, image.shape)
    assert (
        int(header["qform_code"]) == 0 and int(header["sform_code"]) == 2
    )  # no scanner says where it lies
    np.testing.assert_allclose(header.get_best_affine(), image.affine, atol=1e-6)
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):  # of X-rays and captures
        capture = ultrasound(tmp_path / "IM3", ECHO, (), **{tag: [0.5, 0.25]}, Modality="OT")
        np.testing.assert_allclose(load_scan(capture).spacing_mm, (0.25, 0.5, 1))


def test_grey_ultrasound_in_colours_is_read(tmp_path: Path) -> None:
    colours = np.repeat(ECHO[..., None], 3, -1)
    colours[0, 0] = 255, 0, 0  # a mark outside the region
    image = load_scan(ultrasound(tmp_path / "IM1", colours))
    np.testing.assert_array_equal(image.data[2:, 2:, 0], ECHO.T[2:, 2:])
    colours[4, 4] = 255, 0, 0
    refused(
        lambda: load_scan(ultrasound(tmp_path / "doppler", colours)),
        "doppler: expected one grey slice .* colours",
    )


@pytest.mark.parametrize(
    ("regions", "tags", "match"),
    [
        ((), {}, "neither where it lies .* nor how large its pixels are"),
        (((2, 1, 3, 0.1, 0.1),), {}, "nor how large its pixels are"),
        (
            ((1, 1, 3, 0.02, 0.03), (1, 1, 3, 0.01, 0.03)),
            {},
            "2 regions whose pixels differ in size",
        ),
        (((1, 1, 3, 0.0, 0.03),), {}, "repair the header"),
        (((1, 1, 3, np.nan, 0.03),), {}, "its PhysicalDeltaX is nan"),
        (
            ((1, 1, 3, 0.02, 0.03),),
            {"NumberOfFrames": 30},
            "got 30 frames, MONOCHROME2; export each frame",
        ),
    ],
)
def test_ultrasound_without_a_clear_size_is_refused(
    tmp_path: Path, regions, tags: dict, match: str
) -> None:
    refused(
        lambda: load_scan(ultrasound(tmp_path / "IM1", ECHO, regions, **tags)), f"IM1: .*{match}"
    )


def test_images_without_a_place_are_no_stack(tmp_path: Path) -> None:
    for name in ("IM1", "IM2"):
        ultrasound(tmp_path / name, ECHO)
    refused(
        lambda: load_scan(tmp_path), "IM1: one of 2 images, without a position; give it by itself"
    )


def test_what_pydicom_cannot_decode_is_refused(series) -> None:
    def compress(header, index: int) -> None:
        header.file_meta.TransferSyntaxUID = JPEGLSLossless
        header.PixelData = pydicom.encaps.encapsulate([header.PixelData])
        header["PixelData"].VR = "OB"

    refused(lambda: load_dicom(series(compress)), "cannot be decoded .*JPEG-LS Lossless")


def test_files_that_are_no_images_are_refused(series, tmp_path: Path) -> None:
    refused(lambda: load_dicom(tmp_path / "absent"), "absent: not a readable DICOM file")
    (tmp_path / "text.dcm").write_text("not a slice")
    refused(lambda: load_dicom(tmp_path / "text.dcm"), r"text\.dcm: not a readable DICOM file")
    refused(lambda: load_dicom(tmp_path), "no DICOM image found")
    refused(
        lambda: load_dicom(get_testdata_file("rtplan.dcm", download=False)),
        r"rtplan\.dcm: no DICOM image",
    )
    first = sorted(series().iterdir())[0]
    whole = first.read_bytes()
    for size in (0, 100, 140, len(whole) - 20):
        first.write_bytes(whole[:size])
        refused(lambda: load_dicom(first), first.name)


HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def deeplesion(folder: Path, *rows: tuple) -> Path:
    """A folder with DL_info.csv; a row: file, split, and perhaps spacing, size, noisy; files are made."""
    lines = [HEADER]
    for name, split, *more in rows:
        spacing, size, noisy = (*more, *("0.8, 0.8, 5", "512, 512", "0")[len(more) :])
        person, study, series, key = (int(part) for part in name.removesuffix(".png").split("_"))
        lines.append(
            f'{name},{person},{study},{series},{key},"1, 2, 3, 4, 5, 6, 7, 8","1, 2, 3, 4","9, 8","0.3, 0.6, 0.2",-1,'
            f'{noisy},"103, 115","{spacing}","{size}","-175, 275",F,62,{split}'
        )
        file = folder / "Images_png" / name.rpartition("_")[0] / name.rpartition("_")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "DL_info.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_deeplesion_rows(tmp_path: Path) -> None:
    folder = deeplesion(
        tmp_path,
        ("000003_01_01_007.png", 3, "0.7, 0.7, 1"),
        ("000001_01_01_109.png", 1), ("000001_01_01_109.png", 1),  # two lesions on one slice
        ("000001_02_01_014.png", 1), ("000002_01_01_162.png", 2),
        ("000004_01_01_001.png", 1, "0.5, 0.5, 5"), ("000004_01_01_002.png", 1, "0.8, 0.8, 8"),
        ("000004_01_01_003.png", 1, "0.8, 0.8, 5", "768, 768"), ("000004_01_01_004.png", 1, "0.8, 0.8, 5", "512, 512", 1),
        ("000005_01_01_001.png", 1),
    )  # fmt: skip
    (folder / "Images_png/000005_01_01/001.png").unlink()  # of an archive that was not fetched
    images = folder / "Images_png"
    assert key_slices(folder) == [
        (images / "000001_01_01/109.png", "train", (0.8, 0.8, 5.0)),
        (images / "000001_02_01/014.png", "train", (0.8, 0.8, 5.0)),
        (images / "000002_01_01/162.png", "val", (0.8, 0.8, 5.0)),
        (images / "000003_01_01/007.png", "test", (0.7, 0.7, 1.0)),
    ]


def key_slices(folder: Path) -> list[tuple]:
    """Files, splits and spacings of the slices that are taken of a folder."""
    listed = convert.deeplesion(folder)
    return [(read.args[0], split, read.keywords["spacing_mm"]) for _, split, read in listed]


def test_bad_deeplesion_folders(tmp_path: Path) -> None:
    refused(lambda: key_slices(tmp_path), r"DL_info\.csv: cannot be read")
    one = ("000001_01_01_109.png", 1)
    refused(
        lambda: key_slices(deeplesion(tmp_path, one, ("000001_02_01_014.png", 2))),
        "row 3: patient 000001 is in",
    )
    for row in ((one[0], 4), (*one, "0.8, 0.8"), (*one, "0.8, 0.8, x")):
        refused(lambda row=row: key_slices(deeplesion(tmp_path, row)), "row 2: not as published")
    (tmp_path / "DL_info.csv").write_text("a,b\n1,2\n")
    refused(lambda: key_slices(tmp_path), "row 2: not as published")
    deeplesion(tmp_path, one)
    (tmp_path / "Images_png/000001_01_01/109.png").unlink()
    assert not key_slices(tmp_path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"echo": np.zeros((3, 4))}, "in the variable dtce"),
        ({"dtce": np.zeros((3, 4, 2))}, "real numbers of 2 axes"),
        (0, r"a\.mat: "),
        (50, r"a\.mat: "),
        (200, r"a\.mat: "),
    ],
)
def test_bad_duke_records(tmp_path: Path, damage, match: str) -> None:
    whole = {"dtce": np.arange(84.0).reshape(12, 7)}
    savemat(tmp_path / "a.mat", whole if isinstance(damage, int) else damage)
    if isinstance(damage, int):
        (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:damage])
    head = "filename,initial_radius,final_radius,initial_angle,final_angle"
    (tmp_path / "test.csv").write_text(f"{head}\na.mat,310.69,322.69,-0.48,0.49\n")
    out, manifest = tmp_path / "out", tmp_path / "duke.csv"
    refused(lambda: convert.convert("duke", tmp_path, out=out, manifest=manifest), match)


def test_the_thickness_of_slices_is_known_where_a_header_says_it(series, tmp_path: Path) -> None:
    folder = series()
    for source in (folder, sorted(folder.iterdir())[2]):
        assert read_header(source).thickness == 1.25
    bare = series(lambda header, index: header.__delattr__("SliceThickness"), "bare")
    assert read_header(bare).thickness is None
    path = save_scan(volume.Volume(np.zeros((2, 3, 4)), np.eye(4)), tmp_path / "scan.nii.gz")
    assert read_header(path).thickness is None


@pytest.mark.parametrize("ends", [(".hdr", ".img"), (".HDR", ".IMG"), (".hdr.gz", ".img.gz")])
def test_a_pair_is_another_scan_when_either_file_changes(tmp_path: Path, ends) -> None:
    header, voxels = (tmp_path / f"x{end}" for end in ends)
    seen = set()
    for number, file in enumerate((header, voxels, header)):
        header.exists() or header.write_bytes(b"h")
        file.write_bytes(file.name.encode() + bytes([number]))
        assert formats.fingerprint(header) == formats.fingerprint(header)
        seen.add(formats.fingerprint(header))
    assert len(seen) == 3


def test_the_name_of_a_scan() -> None:
    names = {"a.nii": "a", "a.b.nii.gz": "a.b", "B.NII.GZ": "B", "IM.0001": "IM.0001"}
    assert {name: formats.scan_name(Path(name)) for name in names} == names
