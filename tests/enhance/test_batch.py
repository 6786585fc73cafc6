"""srlib enhance: files of every kind, folders, stopped runs, bad scans."""

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from conftest import AFFINES
from PIL import Image
from pydicom.data import get_testdata_file
from test_foreign import make, theirs

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, ScanWarning, sha256
from srlib.core.tables import read_table
from srlib.enhance import batch, jobs
from srlib.inference.any_factor import AnyFactor
from srlib.inference.prediction import Prediction, Request
from srlib.models.weights import save_weights
from srlib.scans import formats, headers, volume
from srlib.scans.volume import Volume
from srlib.systems import trained

OBLIQUE = AFFINES["oblique"]
DTYPES = next(p.type.choices for p in main.commands["enhance"].params if p.name == "dtype")


@pytest.fixture
def enhance(tiny):
    """Run the command with words; returns click's result."""
    return lambda *words: CliRunner().invoke(
        main, ["enhance", *map(str, words), "--weights", str(tiny)]
    )


def texture(shape=(24, 22, 20), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape)


def dicom_series(folder: Path, slices: int = 6) -> Path:
    """Axial slices of 2 mm, written against their order."""
    folder.mkdir()
    for index in range(slices):
        header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        header.ImagePositionPatient = [-10, 20, 2.0 * index]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.Rows, header.Columns = 20, 24
        header.PixelData = texture((20, 24), index).astype(np.int16).tobytes()
        header.save_as(folder / f"{slices - index}.dcm")
    return folder


def good(folder: Path, shape=(24, 22, 20)) -> list[str]:
    """Thirteen scans of as many kinds; their names."""
    data = texture(shape)
    nib.save(nib.Nifti1Image(data.astype("f4"), OBLIQUE), folder / "a float.nii")
    nib.save(nib.Nifti1Image(data.astype("i2"), OBLIQUE), folder / "b.nii.gz")
    nib.save(nib.Nifti2Image(data.astype("u2"), OBLIQUE), folder / "c.nii")
    nib.save(nib.Nifti1Image(data.astype("f8"), AFFINES["flipped"]), folder / "d.e.nii.gz")
    nib.save(nib.Nifti1Pair(data.astype("u1"), OBLIQUE), folder / "f.hdr")
    nib.save(nib.AnalyzeImage(data.astype("i2"), np.diag([-1, 1, 3, 1])), folder / "g.img")
    nib.save(nib.MGHImage(data.astype("i4"), OBLIQUE), folder / "h.mgz")
    nib.save(nib.MGHImage(data.astype("f4"), OBLIQUE), folder / "i.mgh")
    np.savez(folder / "j.npz", data)
    dicom_series(folder / "k series")
    scaled = nib.Nifti1Image(data.astype("i2"), OBLIQUE)
    scaled.header.set_slope_inter(0.1, -3)
    nib.save(scaled, folder / "λήψη 1.nii.gz")
    nib.save(
        nib.Nifti1Image(data[..., None].astype("i1"), np.diag([0.8, 0.8, 5, 1])),
        folder / "m.nii.gz",
    )
    swapped = nib.Nifti1Image(data.astype(">i2"), OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, folder / "n.nii")
    return ["a float", "b", "c", "d.e", "f", "g", "h", "i", "j", "k series", "m", "n", "λήψη 1"]


def nifti(path: Path, data: np.ndarray, change=lambda raw: None) -> None:
    """A NIfTI-1 file whose header's bytes are changed afterwards."""
    nib.save(nib.Nifti1Image(data, np.eye(4)), path.with_name("tmp.nii"))
    raw = bytearray(path.with_name("tmp.nii").read_bytes())
    path.with_name("tmp.nii").unlink()
    change(raw)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def put(at: int, *values: float, dtype: str = "<f4"):
    def change(raw: bytearray) -> None:
        content = np.array(values, dtype).tobytes()
        raw[at : at + len(content)] = content

    return change


DATA = texture((12, 11, 10)).astype("f4")
DIM, PIXDIM = 42, 80  # where dim[1] and pixdim[1] are in a NIfTI-1 header
BAD = {  # file -> its maker and words of the line that the user reads
    "text.nii": (lambda p: p.write_text("no image " * 99), "unreadable"),
    "photo.nii.gz": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" * 99), "unreadable"),
    "empty.nii": (lambda p: p.write_bytes(b""), "unreadable"),
    "cut.nii.gz": (lambda p: (nifti(p, DATA), p.write_bytes(p.read_bytes()[:-900])), "truncated"),
    "more.nii": (lambda p: nifti(p, DATA, put(DIM, 40, dtype="<i2")), "bytes can hold"),
    "more.nii.gz": (lambda p: nifti(p, DATA, put(DIM, 900, 900, 900, dtype="<i2")), "bytes can hold"),
    "billion.nii.gz": (lambda p: nifti(p, DATA, put(DIM, 1001, 1000, 1000, dtype="<i2")), "more than 1,000,000,000"),
    "billion.nii": (lambda p: nifti(p, DATA, put(DIM, 32767, 32767, 32767, dtype="<i2")), "more than 1,000,000,000"),
    "zero.nii": (lambda p: nifti(p, DATA, put(PIXDIM + 8, 0)), "spacing of (1.0, 1.0, 0.0)"),
    "negative.nii.gz": (lambda p: nifti(p, DATA, put(PIXDIM, -1)), "spacing of (-1.0, 1.0, 1.0)"),
    "nan_spacing.nii": (lambda p: nifti(p, DATA, put(PIXDIM, np.nan)), "spacing of (nan"),
    "zero.img": (
        lambda p: (
            nib.save(nib.AnalyzeImage(DATA, np.eye(4)), p),
            (raw := bytearray(p.with_suffix(".hdr").read_bytes()), put(PIXDIM, 0)(raw), p.with_suffix(".hdr").write_bytes(raw)),
        ),
        "spacing of (0.0",
    ),
    "nan.nii": (lambda p: nifti(p, np.where(DATA > 990, np.float32("nan"), DATA)), "NaN or infinite"),
    "inf.nii": (lambda p: nifti(p, np.where(DATA > 990, np.float32("inf"), DATA)), "NaN or infinite"),
    "constant.nii": (lambda p: nifti(p, DATA * 0 + 3), "constant"),
    "five.nii": (lambda p: nifti(p, np.stack([DATA] * 2, -1)[:, :, :, None]), "expected a 3-D scan"),
    "hole.nii.gz": (lambda p: nifti(p, np.stack([DATA, np.where(DATA > 990, np.float32("nan"), DATA)], -1)), "volume 2: "),
    "flat.nii.gz": (lambda p: nifti(p, np.stack([DATA, DATA, DATA * 0], -1)), "volume 3: "),
    "cut4.nii.gz": (lambda p: (nifti(p, np.stack([DATA] * 2, -1)), p.write_bytes(p.read_bytes()[:-300])), "truncated"),
    "two.nii": (lambda p: nifti(p, DATA[..., 0]), "needs a 3-D scan"),
    "complex.nii": (lambda p: nifti(p, DATA.astype("c8")), "complex"),
    "colour.nii": (lambda p: nifti(p, np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "RGB"),
    "slice.nii": (lambda p: nifti(p, DATA[..., :1]), "only 2-D models take single slices"),
    "thin.nii": (lambda p: nifti(p, DATA[:1]), "only 2-D models take single slices"),
    "loop.nii": (lambda p: p.symlink_to(p), "a link that leads nowhere"),
    "dangling.nii": (lambda p: p.symlink_to(p.with_name("gone.nii")), "a link that leads nowhere"),
    "surface.gii": (lambda p: nib.save(nib.gifti.GiftiImage(), p), "expected NIfTI, MGH or Analyze"),
    "empty.npz": (lambda p: p.write_bytes(b"PK"), "readable .npz"),
    "cut.mgz": (lambda p: (nib.save(nib.MGHImage(DATA, np.eye(4)), p), p.write_bytes(p.read_bytes()[:2000])), "Compressed file ended"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_scan_is_one_line_and_leaves_nothing(name, tmp_path, enhance):
    make_it, words = BAD[name]
    make_it(tmp_path / name)
    before = sorted(os.listdir(tmp_path))
    begin = time.process_time()
    result = enhance(tmp_path / name, tmp_path / "sr.nii.gz")
    assert time.process_time() - begin < 5
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = [
        line for line in result.stderr.splitlines() if not line.startswith(("warning:", f"{name}:"))
    ]
    assert line.startswith("error: ") and name in line and words in line
    assert sorted(os.listdir(tmp_path)) == before


def test_a_billion_voxels_are_refused_before_memory_is_taken(tmp_path, tiny, noise):
    nifti(tmp_path / "billion.nii.gz", DATA, put(DIM, 1001, 1000, 1000, dtype="<i2"))
    nifti(tmp_path / "almost.nii.gz", DATA, put(DIM, 999, 1000, 1000, dtype="<i2"))
    volume.save_scan(Volume(noise((60, 60, 60)), np.eye(4)), tmp_path / "fine.nii.gz")
    model, before = (
        trained.load_model(tiny, device="cpu"),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    for name, settings, words in (
        ("billion.nii.gz", {}, "more than"), ("almost.nii.gz", {}, "can hold"),
        ("fine.nii.gz", {"spacing_mm": (0.05,) * 3, "max_memory_gb": 3}, "(1200, 1200, 1200) voxels need 34.6 GB"),
        ("fine.nii.gz", {"factor": (5, 5, 5), "max_memory_gb": 0.3}, "need 0.54 GB of memory at least, 0.3 GB"),
    ):  # fmt: skip
        (outcome,) = batch.run(
            [jobs.Job(tmp_path / name, tmp_path / "o.nii")], model, tiny, tell=print, **settings
        )
        assert outcome.status == "failed" and words in outcome.message, outcome
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_the_volumes_of_a_4d_scan_are_enhanced_one_by_one_into_one_file(tmp_path, enhance, noise):
    data = np.stack([400 * (1 + t) * noise((9, 8, 7), seed=t) for t in range(4)], -1)
    image = nib.Nifti1Image(data.astype(np.int16), OBLIQUE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    for name in ("a.nii.gz", "a.nii"):
        nib.save(image, tmp_path / name)
    nib.save(
        nib.Nifti1Image(image.get_fdata()[..., 2].astype(np.int16), OBLIQUE), tmp_path / "third.nii"
    )
    (tmp_path / "out").mkdir()
    for name in ("a.nii.gz", "a.nii", "third.nii"):
        for dtype in ("float32", "int16", "same"):
            made = enhance(tmp_path / name, tmp_path / "out" / f"{dtype}_{name}", "--dtype", dtype)
            assert made.exit_code == 0, made.output
    for dtype in ("float32", "int16", "same"):
        packed, plain, third = (
            nib.load(tmp_path / "out" / f"{dtype}_{name}")
            for name in ("a.nii.gz", "a.nii", "third.nii")
        )
        assert packed.shape == (18, 16, 14, 4) and np.allclose(packed.affine, third.affine)
        assert packed.header.get_zooms()[3] == 2.5
        assert packed.header.get_xyzt_units() == ("mm", "sec")
        assert packed.get_data_dtype() == third.get_data_dtype()
        assert np.array_equal(packed.get_fdata(), plain.get_fdata())
        step = 0 if dtype == "float32" else packed.dataobj.slope  # of rounding
        assert np.abs(packed.get_fdata()[..., 2] - third.get_fdata()).max() <= step
    again = enhance(tmp_path / "a.nii.gz", tmp_path / "out" / "float32_a.nii.gz")
    assert "done before" in again.stderr and not list((tmp_path / "out").glob(".*"))
    result = enhance(tmp_path / "a.nii.gz", tmp_path / "b.mgz")
    assert result.exit_code == 1 and "4 volumes need a name ending in .nii" in result.stderr


def bad_seven(folder: Path) -> list[str]:
    names = [
        "text.nii",
        "cut.nii.gz",
        "billion.nii.gz",
        "zero.nii",
        "nan.nii",
        "five.nii",
        "loop.nii",
    ]
    for name in names:
        BAD[name][0](folder / name)
    return names


def test_of_20_files_13_are_enhanced_and_7_explained(tmp_path, enhance, to_world):
    source, target = tmp_path / "my scans", tmp_path / "ergebnis"
    source.mkdir()
    names, bad = good(source), bad_seven(source)
    result = enhance(source, target)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 7 and all(any(name in line for line in errors) for name in bad)
    assert result.stderr.splitlines()[-1].startswith("13 enhanced, 0 done before, 7 failed; see ")
    rows = {Path(row["file"]).name: row for row in read_table(target / "summary.csv")}
    assert len(rows) == 20 and sum(row["status"] == "failed" for row in rows.values()) == 7
    assert all(BAD[name][1] in rows[name]["message"] for name in bad)
    assert (
        rows["m.nii.gz"]["spacing_in"] == "0.8 0.8 5"
        and rows["m.nii.gz"]["spacing_out"] == "0.4 0.4 2.5"
    )
    assert "m.nii.gz: 24 x 22 x 20 voxels of 0.8 x 0.8 x 5 mm" in result.stderr
    assert "; model mdcsrn_res, x2 2 2" in result.stderr
    assert "warning: an Analyze header does not say which side is left" in result.stderr
    assert sorted(os.listdir(target)) == sorted(
        ["summary.csv", *(f"{name}_sr.nii.gz" for name in names)]
    )
    for name in names:
        (file,) = [p for p in formats.scans_in(source) if formats.scan_name(p) == name]
        given, made = formats.load_scan(file), volume.load_nifti(target / f"{name}_sr.nii.gz")
        ends = (np.array((-0.5,) * 3), np.array(given.shape) / 2 - 0.5, np.array(given.shape) - 0.5)
        for place in ends:  # corners and centre of the field of view
            moved = to_world(made.affine, 2 * place + 0.5) - to_world(given.affine, place)
            assert np.abs(moved).max() < 0.01
    first = volume.load_nifti(target / "a float_sr.nii.gz").data
    for name in ("b", "c", "d.e", "g", "h", "i", "j", "n"):  # the same intensities, of other types
        np.testing.assert_allclose(
            volume.load_nifti(target / f"{name}_sr.nii.gz").data, first, atol=0.01
        )


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, tiny, enhance):
    source, whole, target = tmp_path / "in", tmp_path / "whole", tmp_path / "out"
    source.mkdir()
    good(source, (32, 30, 28))
    bad_seven(source)
    words = [
        sys.executable,
        "-m",
        "srlib",
        "enhance",
        str(source),
        str(target),
        "--weights",
        str(tiny),
        "--workers",
        "2",
    ]
    settings = {
        "cwd": Path(__file__).parents[2],
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    process = subprocess.Popen([*words], env={**os.environ, "OMP_NUM_THREADS": "1"}, **settings)
    deadline = time.monotonic() + 60
    while len(list(target.glob("[!.]*_sr.nii.gz"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = [
        int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(
        Path(f"/proc/{p}").exists() and "srlib" in Path(f"/proc/{p}/cmdline").read_text()
        for p in workers
    ):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.01)
    time.sleep(0.2)
    done = {p: p.stat().st_mtime_ns for p in target.glob("[!.]*_sr.nii.gz")}
    assert 4 <= len(done) < 13
    result = enhance(source, target)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"{13 - len(done)} enhanced, {len(done)} done before, 7 failed"
    )
    assert {p: p.stat().st_mtime_ns for p in done} == done  # nothing is done twice
    assert not list(target.glob(".*"))
    enhance(source, whole)
    outputs = sorted(p.name for p in whole.glob("*_sr.nii.gz"))
    assert len(outputs) == 13 and outputs == sorted(p.name for p in target.glob("[!.]*_sr.nii.gz"))
    assert all((whole / name).read_bytes() == (target / name).read_bytes() for name in outputs)
    statuses = [row["status"] for row in read_table(target / "summary.csv")]
    assert statuses.count("done before") == len(done) and statuses.count("failed") == 7


def test_the_result_is_the_same_for_any_tiles_and_workers(tmp_path, enhance, noise):
    source = tmp_path / "in"
    source.mkdir()
    for name, shape in (("a", (30, 28, 26)), ("b", (26, 30, 28))):
        volume.save_scan(Volume(noise(shape) * 1000, OBLIQUE), source / f"{name}.nii.gz")
    results = {}
    for name, words in {
        "whole": (),
        "tiles": ("--max-memory", 0.012),
        "two": ("--max-memory", 0.024, "--workers", 2),
    }.items():
        result = enhance(source, tmp_path / name, *words)
        assert result.exit_code == 0 and ("tiles: 100%" in result.stderr) == (name == "tiles"), (
            result.stderr
        )
        results[name] = [
            volume.load_nifti(tmp_path / name / f"{scan}_sr.nii.gz").data for scan in "ab"
        ]
    for scans in (results["tiles"], results["two"]):
        for whole, other in zip(results["whole"], scans, strict=True):
            assert np.abs(whole - other).max() <= 1e-6 * np.ptp(whole)  # float32's rounding


def test_what_is_there_is_only_replaced_by_force(tmp_path, enhance, tiny):
    scan, out = tmp_path / "a.nii.gz", tmp_path / "sr.nii.gz"
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), scan)
    assert enhance(scan, out).exit_code == 0
    first, when = out.read_bytes(), out.stat().st_mtime_ns
    again = enhance(scan, out)
    assert (
        again.exit_code == 0
        and "a.nii.gz: done before" in again.stderr
        and str(out) in again.stdout
    )
    assert enhance(scan, out, "--max-memory", 1).exit_code == 0  # which does not change the result
    for words in (("--factor", 2, 2, 1), ("--dtype", "int16"), ("--align", "corners")):
        result = enhance(scan, out, *words)
        assert result.exit_code == 1 and "--force" in result.stderr.splitlines()[-1]
    assert out.stat().st_mtime_ns == when
    nib.save(nib.Nifti1Image(DATA + 1, OBLIQUE), scan)  # another scan under the same name
    assert enhance(scan, out).exit_code == 1 and out.read_bytes() == first
    assert enhance(scan, out, "--force").exit_code == 0 and out.read_bytes() != first
    (tmp_path / "note.nii.gz").write_text("mine")
    assert enhance(scan, tmp_path / "note.nii.gz").exit_code == 1
    assert (tmp_path / "note.nii.gz").read_text() == "mine"
    content = scan.read_bytes()
    for target in (scan, tmp_path):
        (tmp_path / "a_sr.nii.gz").unlink(missing_ok=True)
        (tmp_path / "a_sr.nii.gz").symlink_to(scan)
        result = enhance(scan, target, "--force")
        assert result.exit_code == 1 and "different files" in result.stderr
        assert scan.read_bytes() == content


def test_the_header_says_how_a_scan_was_made(tmp_path, enhance, tiny):
    scan = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), scan)
    enhance(scan, tmp_path / "sr.nii.gz", "--factor", 2, 1, 1.5)
    header = nib.load(tmp_path / "sr.nii.gz").header
    assert header["descrip"].item() == b"srlib mdcsrn_res x2 1 1.5"
    (comment,) = header.extensions
    record = json.loads(comment.get_content())
    assert comment.get_code() == 6 and record == headers.read_record(tmp_path / "sr.nii.gz")
    assert record["source"] == sha256(scan) and record["weights"] == sha256(tiny)
    assert record["settings"]["factor"] == [2, 1, 1.5] and record["model"] == "mdcsrn_res"
    assert str(tmp_path) not in json.dumps(record)


CODES = [(1, 0), (0, 1), (4, 1), (2, 3), (0, 0)]


@pytest.mark.parametrize("image_type", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", CODES)
def test_a_nifti_keeps_its_header(image_type, codes, tmp_path, enhance, to_world):
    sform, qform = codes
    other = OBLIQUE.copy()
    other[:3, 3] += 40  # where the scanner saw it, unlike the template's space of the sform
    image = image_type(DATA, OBLIQUE)
    image.header.set_sform(OBLIQUE if sform else None, sform)
    image.header.set_qform((other if sform else OBLIQUE) if qform else None, qform)
    image.header.set_zooms(np.linalg.norm(OBLIQUE[:3, :3], axis=0))
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 700
    nib.save(image_type(DATA, None, image.header), tmp_path / "a.nii.gz")
    given = nib.load(tmp_path / "a.nii.gz")
    assert (int(given.header["sform_code"]), int(given.header["qform_code"])) == codes
    assert enhance(tmp_path / "a.nii.gz", tmp_path / "sr.nii.gz").exit_code == 0
    made = nib.load(tmp_path / "sr.nii.gz")
    assert (
        type(made) is image_type
        and made.header.get_xyzt_units() == ("mm", "sec")
        and made.header["cal_max"] == 700
    )
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == codes
    pairs = [(given.affine, made.affine)]
    pairs += [(given.get_qform(), made.get_qform())] if qform else []
    for old, new in pairs:
        for corner in np.ndindex(2, 2, 2):
            place = np.array(corner) * DATA.shape - 0.5
            np.testing.assert_allclose(
                to_world(new, 2 * place + 0.5), to_world(old, place), atol=1e-3
            )
    np.testing.assert_allclose(
        made.header.get_zooms(), np.divide(given.header.get_zooms(), 2), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_voxels_are_stored_as_asked(dtype, tmp_path, enhance):
    for name, data in {
        "grey": DATA.astype("i2"),
        "unit": DATA / 1e6,
        "wide": DATA.astype("f8") * 1e7 - 3e9,
    }.items():
        nib.save(nib.Nifti1Image(data, OBLIQUE), tmp_path / f"{name}.nii")
        truth = tmp_path / f"{name}_f.nii"
        enhance(tmp_path / f"{name}.nii", truth)
        out = tmp_path / f"{name}_sr.nii.gz"
        result = enhance(tmp_path / f"{name}.nii", out, "--dtype", dtype)
        assert result.exit_code == 0, result.output
        made, wanted = nib.load(out), nib.load(truth).get_fdata()
        expected = (
            {"grey": "int16", "unit": "float32", "wide": "float64"}[name]
            if dtype == "same"
            else dtype
        )
        assert made.get_data_dtype() == expected
        scaled = (made.dataobj.slope, made.dataobj.inter) != (1, 0)
        assert scaled == ("stored as" in result.stderr)
        plain = name == "grey" and dtype in ("int16", "int32", "same")
        if np.issubdtype(made.get_data_dtype(), np.integer):
            assert scaled != plain
        step = 1 if plain else np.ptp(wanted) / 255 if dtype == "uint8" else np.ptp(wanted) / 60_000
        assert np.abs(made.get_fdata() - wanted).max() <= 0.51 * step


def test_same_keeps_the_slope_and_clips(tmp_path, enhance):
    image = nib.Nifti1Image(
        (DATA.astype("i4") % 2 * 255).astype("u1"), OBLIQUE
    )  # its network overshoots 0 and 255
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii")
    result = enhance(tmp_path / "a.nii", tmp_path / "sr.nii.gz", "--dtype", "same")
    made = nib.load(tmp_path / "sr.nii.gz")
    assert made.get_data_dtype() == np.uint8 and (made.dataobj.slope, made.dataobj.inter) == (
        0.5,
        10,
    )
    assert made.get_fdata().min() == 10 and made.get_fdata().max() == 137.5
    assert "clipped to what the input's uint8 holds" in result.stderr


def test_other_formats_are_written_too(tmp_path, enhance):
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / "a.nii")
    assert enhance(tmp_path / "a.nii", tmp_path / "sr.mgz", "--dtype", "int16").exit_code == 0
    assert nib.load(tmp_path / "sr.mgz").get_data_dtype() == ">i2"
    for dtype, words in (("uint16", "an .mgz holds no uint16"), ("same", "exists")):
        result = enhance(
            tmp_path / "a.nii",
            tmp_path / ("n.mgz" if dtype == "uint16" else "sr.mgz"),
            "--dtype",
            dtype,
        )
        assert result.exit_code == 1 and words in result.stderr
    result = enhance(tmp_path / "a.nii", tmp_path / "sr.bmp")
    assert result.exit_code == 1 and ".nii.gz" in result.stderr


def test_scans_are_named_by_lists_folders_and_manifests(tmp_path):
    for place in ("s 1/t1.nii", "s 1/t2.nii", "s2/t1.nii", "s2/t2.nii", "x.nii.gz"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / place)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"two scans are called t1; .* manifest"):
        jobs.jobs([tmp_path / "s 1/t1.nii", tmp_path / "s2/t1.nii"], out)
    found = jobs.jobs([tmp_path / "s 1", tmp_path / "x.nii.gz"], out, report=tmp_path / "pages")
    assert [j.target.name for j in found] == ["t1_sr.nii.gz", "t2_sr.nii.gz", "x_sr.nii.gz"]
    assert [j.page for j in found] == [
        tmp_path / f"pages/{name}_sr.html" for name in ("t1", "t2", "x")
    ]
    with pytest.raises(InputError, match="a reference goes with a single scan"):
        jobs.jobs([tmp_path / "s2"], out, reference=tmp_path / "s 1")
    manifest = tmp_path / "m.csv"
    manifest.write_text("subject,t1,t2\none,s 1/t1.nii,s 1/t2.nii\ntwo,s2/t1.nii,s2/none.nii\n")
    found = jobs.jobs([manifest], out, columns=("t1", "t2"))
    assert [(j.source, j.target.name, j.reference) for j in found] == [
        (tmp_path / "s 1/t1.nii", "one_sr.nii.gz", tmp_path / "s 1/t2.nii"),
        (tmp_path / "s2/t1.nii", "two_sr.nii.gz", tmp_path / "s2/none.nii"),
    ]
    assert jobs.jobs([manifest], out, columns=("t1", ""))[0].reference is None
    for text, words in (("subject,t2\na,b\n", "expected t1"), ("", "header"),
                        ("subject,t1\n../a,x.nii.gz\n", "cannot name a file")):  # fmt: skip
        manifest.write_text(text)
        with pytest.raises(InputError, match=words):
            jobs.jobs([manifest], out)


def test_a_manifest_gives_both_contrasts(tmp_path):
    weights, matrix = (
        make(tmp_path / "SynthSR_hyperfine.h5", theirs(channels=2)),
        np.diag([1.5, 1.5, 5, 1]),
    )
    for name in ("a1", "a2", "b1"):
        nib.save(
            nib.Nifti1Image(texture((20, 22, 8)).astype("i2"), matrix), tmp_path / f"{name}.nii.gz"
        )
    (tmp_path / "m.csv").write_text(
        "subject,t1,t2\nanna,a1.nii.gz,a2.nii.gz\nbert,b1.nii.gz,b2.nii.gz\n"
    )
    words = ["enhance", str(tmp_path / "m.csv"), str(tmp_path / "sr"), "--weights", str(weights)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1 and "b2.nii.gz: no such file" in result.stderr
    assert [p.name for p in (tmp_path / "sr").glob("*.nii.gz")] == ["anna_sr.nii.gz"]
    made = nib.load(tmp_path / "sr" / "anna_sr.nii.gz").header
    assert (
        made["descrip"].item().endswith(b" 1 mm")
        and headers.read_record(tmp_path / "sr" / "anna_sr.nii.gz")["reference"]
    )


def test_thick_axes_are_brought_to_the_finest_spacing_where_the_model_can(tiny):
    model = trained.load_model(tiny, device="cpu")
    thick, even = (Volume(DATA, np.diag([*mm, 1])) for mm in ((1, 0.9, 4.5), (1, 1.1, 1.19)))
    any_factor = trained.Model(
        model.network, model.experiment.changed(prediction=AnyFactor(4.0, 6.0))
    )
    twice = [
        model.plan(thick, Request()),
        model.plan(even, Request()),
        any_factor.plan(even, Request()),
    ]
    assert all(plan.finer == (2, 2, 2) for plan in twice)
    np.testing.assert_allclose(any_factor.plan(thick, Request()).finer, (1, 1, 5))


def command(*words: object, **settings: object) -> subprocess.Popen:
    """``srlib enhance`` as a process of its own."""
    code = [sys.executable, "-m", "srlib", "enhance", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(code, cwd=Path(__file__).parents[2], env=env, **pipes | settings)


def many(folder: Path, count: int = 6, size: int = 48) -> Path:
    """Scans that take some time, if not much."""
    folder.mkdir()
    for i in range(count):
        nib.save(
            nib.Nifti1Image(texture((size,) * 3, i).astype("f4"), OBLIQUE), folder / f"s{i}.nii"
        )
    return folder


def made(target: Path) -> list[str]:
    return sorted(p.name.replace("_sr.nii.gz", ".nii") for p in target.glob("s*_sr.nii.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("workers, stop", [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_stopped_run_ends_at_once_and_says_what_was_done(tmp_path, tiny, enhance, workers, stop):
    source, target = many(tmp_path / "in"), tmp_path / "out"
    process = command(source, target, "--weights", tiny, "--workers", workers)
    while process.poll() is None and not made(target):
        time.sleep(0.01)
    first = len(made(target))
    process.send_signal(stop)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert (
        errors.splitlines()[-1].startswith("error: stopped; ")
        and "Traceback" not in errors
        and "leaked" not in errors
    )
    assert first <= len(made(target)) <= first + workers < 6 and not list(target.glob(".*"))
    rows = read_table(target / "summary.csv")
    assert [Path(row["file"]).name for row in rows] == made(target) and {
        row["status"] for row in rows
    } == {"enhanced"}
    done = len(rows)
    assert (
        enhance(source, target)
        .stderr.splitlines()[-1]
        .startswith(f"{6 - done} enhanced, {done} done before, 0 failed")
    )


def test_ctrl_c_while_the_model_is_read_is_one_line(tmp_path, enhance, monkeypatch):
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / "a.nii")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(systems, "load_model", interrupted)
    result = enhance(tmp_path / "a.nii", tmp_path / "sr.nii")
    assert result.exit_code == 130 and len(result.stderr.splitlines()) == 1


def test_two_runs_on_one_folder_get_on_with_each_other(tmp_path, tiny, enhance):
    source, target = many(tmp_path / "in", 4, 40), tmp_path / "out"
    runs = [command(source, target, "--weights", tiny, "--workers", n) for n in (1, 2)]
    for process in runs:
        out, errors = process.communicate()
        assert process.returncode == 0 and "error" not in errors and len(out.splitlines()) == 4, (
            errors
        )
    rows = read_table(target / "summary.csv")
    assert len(rows) == 4 and {row["status"] for row in rows} <= {"enhanced", "done before"}
    assert sorted(os.listdir(target)) == [*(f"s{i}_sr.nii.gz" for i in range(4)), "summary.csv"]
    enhance(source, tmp_path / "alone")
    assert all(
        (target / f"s{i}_sr.nii.gz").read_bytes()
        == (tmp_path / f"alone/s{i}_sr.nii.gz").read_bytes()
        for i in range(4)
    )


@pytest.mark.parametrize("words, status", [((), 0), (("--factor", 2, 2, 1), 1)])
def test_what_another_run_writes_meanwhile_stays_or_is_written_once_more(
    tmp_path, enhance, monkeypatch, words, status
):
    scan, out, real = tmp_path / "a.nii", tmp_path / "sr.nii.gz", trained.Model.predict
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), scan)

    def slow(*given: object, **settings: object) -> Prediction:
        monkeypatch.setattr(trained.Model, "predict", real)
        assert (
            enhance(scan, out, *words).exit_code == 0
        )  # of the same scan, in the same way or in another
        written.append(out.read_bytes())
        return real(*given, **settings)

    written = []
    monkeypatch.setattr(trained.Model, "predict", slow)
    result = enhance(scan, out)
    assert result.exit_code == status and out.read_bytes() == written[0]
    assert ("exists and was not made" in result.stderr) == bool(status)


def test_rows_of_runs_that_end_at_once_all_stay(tmp_path):
    def row(name: str, status: str = "enhanced") -> jobs.Outcome:
        return jobs.Outcome(
            jobs.Job(Path(name), tmp_path / name), status, (), (1, 1, 1), (1, 1, 0.5)
        )

    children = []
    for number in range(4):
        if not (child := os.fork()):
            for part in range(3):
                jobs.write_summary(tmp_path, [row(f"{number}-{part}-{i}") for i in range(5)])
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    rows = jobs.read_summary(tmp_path)
    assert len(rows) == 60 and list(rows) == sorted(rows)
    jobs.write_summary(tmp_path, [row("0-0-0", "done before")])
    assert len(jobs.read_summary(tmp_path)) == 60
    assert sorted(os.listdir(tmp_path)) == ["summary.csv"]


def test_a_summary_of_another_kind_is_not_written_over(tmp_path, enhance):
    source, target = many(tmp_path / "in", 1, 12), tmp_path / "out"
    target.mkdir()
    (target / "summary.csv").write_text("subject,age\na,3\n")
    result = enhance(source, target)
    assert (
        result.exit_code == 1
        and "summary.csv: unknown column 'subject'; expected file, status" in result.stderr
        and len(result.stderr.splitlines()) == 1
    )
    assert (target / "summary.csv").read_text() == "subject,age\na,3\n" and os.listdir(target) == [
        "summary.csv"
    ]
    (target / "summary.csv").write_text("")  # what a full disk leaves
    assert enhance(source, target).exit_code == 0 and len(read_table(target / "summary.csv")) == 1


@pytest.mark.parametrize("name", ["sr.nii", "sr.nii.gz", "sr.mgz"])
def test_outputs_of_every_format_are_done_before(name, tmp_path, enhance):
    scan, out = tmp_path / "a.nii", tmp_path / name
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), scan)
    assert enhance(scan, out).exit_code == 0
    content = out.read_bytes()
    result = enhance(scan, out)
    assert result.exit_code == 0 and "a.nii: done before" in result.stderr
    result = enhance(scan, out, "--factor", 2, 1, 2)
    assert result.exit_code == 1 and "exists and was not made" in result.stderr
    assert out.read_bytes() == content
    enhance(scan, tmp_path / "plain.nii.gz")
    np.testing.assert_array_equal(
        nib.load(out).get_fdata(), nib.load(tmp_path / "plain.nii.gz").get_fdata()
    )
    out.write_bytes(content[:-200])  # as an interrupted copy leaves it
    assert (
        enhance(scan, out, *(["--force"] if name == "sr.mgz" else [])).exit_code == 0
    )  # its record is at the end
    assert out.read_bytes() == content


def test_a_png_is_done_before(tmp_path, tmp_path_factory):
    experiment = systems.get("srresnet_ct_res", "smoke")
    weights = tmp_path / "model.safetensors"
    save_weights(
        experiment.network.build().state_dict(), weights, {"experiment": experiment.to_json()}
    )
    volume.save_scan(Volume(texture((40, 36, 1)), np.eye(4)), tmp_path / "a.png")
    words = [
        "enhance",
        *map(str, (tmp_path / "a.png", tmp_path / "sr.png")),
        "--weights",
        str(weights),
    ]
    results = [
        CliRunner().invoke(main, [*words, *more])
        for more in ((), (), ("--report", str(tmp_path / "pages")))
    ]
    assert all(r.exit_code == 0 for r in results), results[0].stderr
    assert "done before" not in results[0].stderr and "a.png: done before" in results[1].stderr
    with Image.open(tmp_path / "sr.png") as picture:
        picture.verify()
    assert (
        formats.load_scan(tmp_path / "sr.png").shape == (40, 36, 1)
        and (tmp_path / "pages/sr.html").is_file()
    )
    assert CliRunner().invoke(main, [*words, "--align", "corners"]).exit_code == 1


def test_one_half_of_two_outputs_is_made_whole(tmp_path):
    experiment = systems.get("synthsr_laplace", "smoke")
    weights = tmp_path / "model.safetensors"
    save_weights(
        experiment.network.build().state_dict(), weights, {"experiment": experiment.to_json()}
    )
    nib.save(
        nib.Nifti1Image(texture((20, 21, 9)).astype("f4"), np.diag([1, 1, 3, 1])),
        tmp_path / "a.nii",
    )
    sr, b = tmp_path / "sr.nii", tmp_path / "b.nii"
    words = [
        "enhance",
        *map(str, (tmp_path / "a.nii", sr)),
        "--weights",
        str(weights),
        "--uncertainty",
        str(b),
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    whole = sr.read_bytes(), b.read_bytes()
    assert "done before" in CliRunner().invoke(main, words).stderr
    for harm in (
        b.unlink,
        sr.unlink,
        lambda: b.write_bytes(whole[1][:-99]),
        lambda: sr.write_bytes(whole[0][:-99]),
    ):
        harm()
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0 and "done before" not in result.stderr
        assert (sr.read_bytes(), b.read_bytes()) == whole


def test_a_page_that_is_missing_or_older_than_its_scan_is_written(tmp_path, enhance):
    scan, out, pages = tmp_path / "a.nii", tmp_path / "sr.nii.gz", tmp_path / "pages"
    nib.save(nib.Nifti1Image(DATA / 1e6, OBLIQUE), scan)
    words = (scan, out, "--dtype", "int16")
    assert enhance(*words).exit_code == 0
    content = out.read_bytes()
    assert enhance(*words, "--report", pages).exit_code == 0 and out.read_bytes() == content
    page = (pages / "sr.html").read_text()
    for line in ("mdcsrn_res, x2 2 2, srlib", "stored as int16 times", "check its header"):
        assert line in page
    (pages / "sr.html").write_text("mine to keep as it is")
    result = enhance(*words, "--report", pages)
    assert result.exit_code == 0 and "a.nii: done before" in result.stderr
    assert (pages / "sr.html").read_text() == "mine to keep as it is"
    factor = ("--factor", 1, 1, 2)
    assert enhance(*words[:2], *factor, "--force").exit_code == 0
    assert enhance(*words[:2], *factor, "--report", pages).exit_code == 0
    assert "mdcsrn_res, x1 1 2, srlib" in (pages / "sr.html").read_text()


def test_warnings_stay_with_what_was_done_before(tmp_path, enhance):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    nib.save(nib.AnalyzeImage(DATA.astype("i2"), np.eye(4)), source / "a.img")
    for status in ("enhanced", "done before"):
        assert enhance(source, target).exit_code == 0
        (row,) = read_table(target / "summary.csv")
        assert row["status"] == status and "does not say which side is left" in row["message"]


def test_outputs_do_not_replace_what_they_are_made_from(tmp_path, enhance):
    series = dicom_series(tmp_path / "series")
    files = sorted(os.listdir(series))
    for target in (series, series / "sr.nii.gz"):
        result = enhance(series, target, "--force")
        assert result.exit_code == 1 and "lie among the" in result.stderr.splitlines()[-1]
    assert sorted(os.listdir(series)) == files
    weights = make(tmp_path / "SynthSR_hyperfine.h5", theirs(channels=2))
    for name in ("t1.nii.gz", "t2.nii.gz"):
        nib.save(
            nib.Nifti1Image(texture((20, 22, 8)).astype("i2"), np.diag([1.5, 1.5, 5, 1])),
            tmp_path / name,
        )
    content = (tmp_path / "t2.nii.gz").read_bytes()
    words = ["t1.nii.gz", "t2.nii.gz", "--reference", "t2.nii.gz", "--force"]
    words = [str(tmp_path / w) if w.endswith("gz") else w for w in words]
    result = CliRunner().invoke(main, ["enhance", *words, "--weights", str(weights)])
    assert result.exit_code == 1 and "is an input" in result.stderr.splitlines()[-1]
    assert (tmp_path / "t2.nii.gz").read_bytes() == content


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "..", ".", "a\\b", "a\x00b"])
def test_a_subject_that_leads_elsewhere_is_refused_before_anything_is_written(
    name, tmp_path, enhance
):
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / "a.nii")
    (tmp_path / "m.csv").write_text(f"subject,t1\nfine,a.nii\n{name},a.nii\n")
    before = sorted(os.listdir(tmp_path))
    result = enhance(tmp_path / "m.csv", tmp_path / "out")
    assert (
        result.exit_code == 1
        and len(result.stderr.splitlines()) == 1
        and "cannot name a file" in result.stderr
    )
    assert sorted(os.listdir(tmp_path)) == before


def test_nobody_need_read_the_listing(tmp_path, tiny):
    source, target = many(tmp_path / "in", 4, 12), tmp_path / "out"
    process = command(source, target, "--weights", tiny)
    process.stdout.close()  # as head does
    errors = process.communicate()[1]
    assert process.returncode == 0 and len(made(target)) == 4 and "4 enhanced" in errors
    assert "Traceback" not in errors and "BrokenPipe" not in errors and "error" not in errors


def test_a_folder_that_vanishes_is_a_line_per_scan_at_once(tmp_path, tiny, monkeypatch):
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / "a.nii")
    todo = jobs.jobs([tmp_path / "a.nii"], tmp_path / "out")
    (tmp_path / "out").rmdir()
    monkeypatch.setattr(
        trained.Model, "predict", None
    )  # nothing is computed that cannot be written
    (outcome,) = batch.run(todo, trained.load_model(tiny, device="cpu"), tiny, tell=print)
    assert outcome.status == "failed" and "out does not exist; create it first" in outcome.message
    with pytest.raises(InputError, match=r"summary\.csv: the folder"):
        jobs.write_summary(tmp_path / "out", [outcome])


@pytest.fixture
def mounted(tmp_path):
    """Maker of a small file system of its own, or a skip where none may be mounted."""
    places = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True
        )
        if done.returncode:
            pytest.skip("needs the right to mount a file system")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, enhance, mounted):
    scans, full = tmp_path / "in", mounted("size=64k")
    scans.mkdir()
    for name, shape in (("a", (40, 40, 40)), ("b", (9, 9, 9))):
        nib.save(nib.Nifti1Image(texture(shape).astype("f4"), OBLIQUE), scans / f"{name}.nii")
    result = enhance(scans / "a.nii", full / "sr.nii.gz")
    assert (
        result.exit_code == 1
        and "sr.nii.gz: No space left on device" in result.stderr.splitlines()[-1]
    )
    assert os.listdir(full) == []
    result = enhance(scans, full)  # what fits is written all the same
    assert result.exit_code == 1 and sorted(os.listdir(full)) == ["b_sr.nii.gz", "summary.csv"]
    (full / "rest").write_bytes(
        bytes(2**16 - sum(os.path.getsize(p) for p in full.iterdir()) // 4096 * 4096 - 2 * 4096)
    )
    result = enhance(scans, full, "--force")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.stderr.splitlines()[-1].startswith(("error: ", "0 enhanced", "1 enhanced"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits are of Unix")
def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(tmp_path, tiny):
    nib.save(nib.Nifti1Image(texture((40, 40, 40)).astype("f4"), OBLIQUE), tmp_path / "a.nii")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from srlib.cli.commands import main; main(sys.argv[1:])"
    )
    words = ["enhance", tmp_path / "a.nii", tmp_path / "sr.nii.gz", "--weights", tiny]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1].startswith("error: ")
        and "Traceback" not in done.stderr
    )
    assert os.listdir(tmp_path) == ["a.nii"]


def test_a_read_only_target_is_one_line(tmp_path, enhance, mounted):
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), tmp_path / "a.nii")
    place = mounted("ro")
    for target in (place / "sr.nii.gz", place):
        result = enhance(tmp_path / "a.nii", target)
        assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith("error: ")
        assert "cannot write" in result.stderr and "Read-only" in result.stderr


def fatal(line: str) -> None:
    """In a worker: its process dies at one scan, as if killed for want of memory."""
    if "s1.nii" in line:
        os._exit(9)


@pytest.mark.slow
def test_a_killed_worker_fails_its_scan_alone(tmp_path, tiny):
    todo = jobs.jobs([many(tmp_path / "in", 5, 12)], tmp_path / "out")
    outcomes = list(
        batch.run(todo, trained.load_model(tiny, device="cpu"), tiny, tell=fatal, workers=2)
    )
    assert sorted(o.job.source.name for o in outcomes) == [f"s{i}.nii" for i in range(5)]
    (failed,) = [o for o in outcomes if o.status == "failed"]
    assert (
        failed.job.source.name == "s1.nii"
        and "s1.nii: its process ended, perhaps for want" in failed.message
    )


def test_what_libraries_raise_is_one_line(tmp_path, enhance, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    for name in "abc":
        nib.save(nib.Nifti1Image(DATA, OBLIQUE), source / f"{name}.nii")
    raised = iter([MemoryError(), RuntimeError("x\ny"), KeyError("k")])

    def fail(*args: object, **settings: object) -> None:
        raise next(raised)

    monkeypatch.setattr(trained.Model, "predict", fail)
    result = enhance(source, tmp_path / "out")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1 and len(errors) == 3 and "memory is not enough" in errors[0]
    assert "RuntimeError: x)" in errors[1] and "b.nii" in errors[1]


def test_names_that_are_no_text_do_not_stop_the_others(tmp_path, enhance):
    source = tmp_path / "in"
    source.mkdir()
    nib.save(nib.Nifti1Image(DATA, OBLIQUE), source / "a.nii")
    shutil.copy(source / "a.nii", os.fsencode(source) + b"/\xff.nii")
    (source / "self").symlink_to(source)
    result = enhance(
        source, dicom_series(tmp_path / "series "), tmp_path / "out"
    )  # a space that tables leave out
    assert result.exit_code == 0 and len(list((tmp_path / "out").glob("*_sr.nii.gz"))) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_warnings_are_shown_everywhere(tmp_path, enhance, monkeypatch, workers, capfd):
    """At the terminal, in the summary, on the page; also where warnings are made errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        data = texture().astype(np.float32)
        data[3, 4, 5] = 1e6
        volume.save_scan(Volume(data, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScanWarning)
        result = enhance(
            tmp_path / "in", tmp_path / "out", "--report", tmp_path / "pages", "--workers", workers
        )
    assert result.exit_code == 0, result.stderr
    words = "few voxels take most of the range: 1 of 10560"
    told = result.stderr + capfd.readouterr().err  # of this process and of the workers
    assert all(told.count(f"[{i}/2] warning: {words}") == 1 for i in (1, 2))
    rows = read_table(tmp_path / "out" / "summary.csv")
    assert [row["message"].count(words) for row in rows] == [1, 1]
    for name in ("one", "two"):
        assert (tmp_path / "pages" / f"{name}_sr.html").read_text().count(words) == 1


def test_a_page_of_another_scan_is_not_replaced_unasked(tmp_path, enhance):
    """Nor kept for one of this scan, nor is anything else of that name replaced."""
    pages = tmp_path / "pages"
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        scan = nib.Nifti1Image(texture(seed=seed).astype("i2"), OBLIQUE)
        nib.save(scan, tmp_path / name / "t1.nii.gz")

    def run(name, *words):
        return enhance(tmp_path / name, tmp_path / f"{name}_out", "--report", pages, *words)

    page = pages / "t1_sr.html"
    assert run("a").exit_code == 0
    of_a = page.read_bytes()
    refused = run("b")
    assert refused.exit_code == 1 and f"{page} exists and is not of this scan" in refused.stderr
    assert page.read_bytes() == of_a and os.listdir(tmp_path / "b_out") == ["summary.csv"]
    assert "done before" in run("a").stderr
    assert run("b", "--force").exit_code == 0 and page.read_bytes() != of_a
    assert run("a").exit_code == 1
    page.write_text("notes")
    assert "done before" in run("a").stderr and page.read_text() == "notes"
    (tmp_path / "a_out" / "t1_sr.nii.gz").unlink()
    assert run("a").exit_code == 1 and page.read_text() == "notes"
    page.unlink()
    assert run("a").exit_code == 0 and page.read_bytes() == of_a


def test_a_scan_of_two_subjects_has_a_row_for_each_output(tmp_path, enhance):
    nib.save(nib.Nifti1Image(texture().astype("i2"), OBLIQUE), tmp_path / "s.nii")
    (tmp_path / "m.csv").write_text("subject,t1\nA,s.nii\nB,s.nii\n")
    (tmp_path / "out").mkdir()
    old = "file,status,seconds,spacing_in,spacing_out,message\nother.nii,enhanced,1.0,,,\n"
    (tmp_path / "out" / "summary.csv").write_text(old)  # of an earlier version
    assert enhance(tmp_path / "m.csv", tmp_path / "out").exit_code == 0
    rows = read_table(tmp_path / "out" / "summary.csv")
    assert sorted((Path(row["file"]).name, row["output"]) for row in rows) == [
        ("other.nii", ""),
        ("s.nii", "A_sr.nii.gz"),
        ("s.nii", "B_sr.nii.gz"),
    ]


def test_names_that_cannot_hold_the_result_are_refused_before_the_network_runs(
    tmp_path, enhance, monkeypatch
):
    monkeypatch.setattr(trained.Model, "predict", None)
    nib.save(nib.Nifti1Image(texture().astype("i2"), OBLIQUE), tmp_path / "s.nii")
    result = enhance(tmp_path / "s.nii", tmp_path / "sr.png")
    assert "a PNG holds one slice, got 20" in result.stderr
    result = enhance(tmp_path / "s.nii", tmp_path / "sr.nii", "--uncertainty", tmp_path / "b.tif")
    assert "b.tif: expected a name ending in .nii" in result.stderr
