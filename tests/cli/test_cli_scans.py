"""The commands degrade and evaluate: grids, headers, safe files, one line for each error."""

import io
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import ndimage
from skimage import io as images
from test_commands import assert_refused

from srlib import metrics
from srlib.cli.commands import main
from srlib.data.manifest import read_manifest
from srlib.degradations import degrade
from srlib.evaluation import results
from srlib.scans import space, volume
from srlib.scans.formats import load_scan
from srlib.scans.volume import Volume, crop_or_pad, reorient, resample, save_scan


@pytest.fixture
def srlib():
    """Run the command with words; returns click's result."""
    return lambda *words: CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture
def textured(affine, noise):
    """A smooth scan with odd axes on each of a few affines."""
    return Volume(1000 * ndimage.gaussian_filter(noise((33, 24, 19)), 1.2), affine)


def row(result):
    assert result.exit_code == 0, result.stderr
    return pd.read_csv(io.StringIO(result.stdout)).iloc[0]


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 3), (2.5, 1.7, 1)])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_what_is_degraded_and_enhanced_can_be_measured(
    srlib, tiny, textured, tmp_path, factor, axes
):
    hr, lr, sr = (tmp_path / f"{name}.nii.gz" for name in ("hr", "lr", "sr"))
    save_scan(reorient(textured, axes), hr)
    assert srlib("degrade", hr, lr, "--factor", *factor).exit_code == 0
    assert srlib("enhance", lr, sr, "--weights", tiny, "--factor", *factor).exit_code == 0
    result = srlib("evaluate", hr, sr)
    truth, estimate = volume.load_nifti(hr), volume.load_nifti(sr)
    if 1.7 in factor and not space.same_lattice(estimate, truth):
        assert len(result.stderr.splitlines()) == 1 and "another grid" in result.stderr
        estimate = resample(estimate, truth.shape, truth.affine)
    else:
        assert not result.stderr
        estimate = crop_or_pad(
            estimate, (0, 0, 0), truth.shape
        )  # beyond the far faces there is no truth
    expected = metrics.evaluate(truth.data, estimate.data, float(np.ptp(truth.data)))["volume"]
    assert (
        row(result)["psnr"] == pytest.approx(expected["psnr"], rel=1e-5) and expected["psnr"] > 15
    )


@pytest.mark.parametrize("stored", ["LPS", "PIR", "SAL"])
def test_a_scan_is_itself_however_it_is_stored(srlib, textured, noise, tmp_path, stored):
    estimate = textured.with_data(textured.data + 9 * noise(textured.shape, 1))
    mask = textured.with_data(textured.data > textured.data.mean())
    for name, scan in (("hr", textured), ("sr", estimate), ("mask", mask)):
        save_scan(scan, tmp_path / f"{name}.nii.gz")
        save_scan(
            crop_or_pad(reorient(scan, stored), (-2, 0, -1), (44, 44, 44)),
            tmp_path / f"{name}_other.nii.gz",
        )
    words = [tmp_path / f"{name}.nii.gz" for name in ("hr", "sr", "mask")]
    expected = row(srlib("evaluate", *words[:2], "--mask", words[2]))
    for other in ((1,), (2,), (1, 2)):
        a, b, c = (
            w.with_name(w.name.replace(".", "_other.", 1)) if i in other else w
            for i, w in enumerate(words)
        )
        found = srlib("evaluate", a, b, "--mask", c)
        pd.testing.assert_series_equal(row(found).drop("subject"), expected.drop("subject"))
        assert not found.stderr


def test_scans_that_do_not_meet_or_not_wholly_are_refused(srlib, tmp_path, noise):
    scan = Volume(noise((20, 20, 20)), np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 900
    hr, less, away = (tmp_path / f"{name}.nii" for name in ("hr", "less", "away"))
    (
        save_scan(scan, hr),
        save_scan(crop_or_pad(scan, (0, 0, 0), (20, 20, 15)), less),
        save_scan(Volume(scan.data, far), away),
    )
    save_scan(scan.with_data(scan.data * 0), tmp_path / "empty.nii")
    assert_refused(srlib("evaluate", hr, less), less, "covers 75 %")
    assert_refused(srlib("evaluate", hr, away), away, "shows nothing")
    assert_refused(srlib("evaluate", hr, hr, "--mask", away), away, "shows nothing")
    assert_refused(srlib("evaluate", hr, hr, "--mask", tmp_path / "empty.nii"), "not empty")
    assert_refused(srlib("evaluate", tmp_path / "empty.nii", hr), "constant", "--data-range")
    for wrong in ("nan", 0, -3, "inf"):
        assert_refused(srlib("evaluate", hr, hr, "--data-range", wrong), "data_range")


@pytest.fixture
def tool(tmp_path, noise):
    """Folders hr, sr and mask of three scans, as another tool named its estimates."""
    for name, end in (("s1", "_tool-x.nii"), ("s10", ".nii.gz"), ("s10_b", "-x2.nii.gz")):
        truth = Volume(100 * noise((16, 17, 18), len(name)), np.diag([1, 1, 2, 1]))
        estimate = truth.with_data(truth.data + 9 * noise(truth.shape, 9))
        mask = truth.with_data(truth.data > 30)
        for kind, scan, tail in (
            ("hr", truth, ".nii"),
            ("sr", estimate, end),
            ("mask", mask, ".mgz"),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            save_scan(scan, tmp_path / kind / f"{name}{tail}")
    return tmp_path


def test_folders_give_a_row_per_scan_each_that_of_the_scan_alone(srlib, tool):
    out = tool / "scores.csv"
    words = ["--mask", tool / "mask", "--extended", "--task", "gaussian_x2"]
    result = srlib("evaluate", tool / "hr", tool / "sr", *words, "--out", out)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    table = pd.read_csv(out)
    assert [*table["subject"]] == ["s1", "s10", "s10_b"]
    shared = srlib("evaluate", tool / "hr", tool / "sr", *words, "--workers", 2)
    assert (shared.exit_code, shared.stdout) == (0, out.read_text()), shared.stderr
    names = ["hr/s10.nii", "sr/s10.nii.gz", "mask/s10.mgz"]
    hr, sr, mask = (tool / name for name in names)
    single = row(srlib("evaluate", hr, sr, "--mask", mask, *words[2:]))
    pd.testing.assert_series_equal(table.iloc[1], single, check_names=False)
    truth, estimate = volume.load_nifti(hr), volume.load_nifti(sr)
    inside = truth.data > 30
    assert single["hfen"] == pytest.approx(metrics.hfen(truth, estimate, mask=inside), rel=1e-4)
    again, lr = (degrade(scan, "gaussian_x2").data for scan in (estimate, truth))
    expected = metrics.psnr(lr, again, float(np.ptp(lr)))
    assert single["consistency"] == pytest.approx(expected, rel=1e-4)
    assert single["resolution_z"] >= 4  # mm


def test_estimates_that_are_missing_or_ambiguous_are_named(srlib, tool):
    hr, sr = tool / "hr", tool / "sr"
    (sr / "s1_tool-x.nii").rename(sr / "s1x.nii")  # another word
    assert_refused(srlib("evaluate", hr, sr), "s1_*", "none")
    (sr / "s1x.nii").rename(sr / "s1.nii")
    assert srlib("evaluate", hr, sr).exit_code == 0
    (sr / "s10.nii.gz").rename(sr / "s1_again.nii.gz")
    assert_refused(srlib("evaluate", hr, sr), "s1.nii, s1_again.nii.gz")
    out = hr / "s1.nii"
    assert_refused(srlib("evaluate", out, sr / "s1.nii", "--out", out), "is an input")


def test_another_tools_rows_stand_in_the_tables(srlib, cohort, tmp_path):
    subjects = read_manifest(cohort, "test")
    for subject in subjects:
        scan = load_scan(subject.file("t1"))
        lr = degrade(scan, "gaussian_x2")
        save_scan(resample(lr, scan.shape, scan.affine), tmp_path / f"{subject.name}_sr.nii.gz")
    words = ["evaluate", cohort, tmp_path, "--add-to", tmp_path / "results", "mytool"]
    assert_refused(srlib(*words), "--task")
    result = srlib(*words, "--task", "gaussian_x2")
    printed = pd.read_csv(io.StringIO(result.stdout)).set_index("subject")
    rows = results.tested(results.read_metrics(tmp_path / "results"), cohort)
    table = results.standing(rows)
    assert {*table["experiment"]} == {"mytool"} and {*table["degradation"]} == {"gaussian_x2"}
    assert [*printed.index] == [s.name for s in subjects] and [*table["scans"]] == [len(subjects)]
    for metric in results.DIGITS:
        assert table[metric].item() == pytest.approx(printed[metric].mean(), rel=1e-4)


@pytest.mark.parametrize("kind", ["itself", "hard", "soft", "spelled", "series"])
def test_degrade_never_replaces_its_input(srlib, tmp_path, noise, kind):
    scan = save_scan(Volume(noise((16, 16, 16)), np.eye(4)), tmp_path / "scan.nii.gz")
    before, target, source = scan.read_bytes(), tmp_path / "other.nii.gz", scan
    if kind == "hard":
        os.link(scan, target)
    elif kind == "soft":
        target.symlink_to(scan)
    elif kind == "series":  # a folder of slices
        source = tmp_path
    else:
        target = scan if kind == "itself" else tmp_path / ".." / tmp_path.name / "scan.nii.gz"
    for more in ((), ("--force",)):
        assert_refused(srlib("degrade", source, target, *more), "different files")
    assert scan.read_bytes() == before and len(list(tmp_path.iterdir())) == (
        2 if kind in ("hard", "soft") else 1
    )


def test_degrade_replaces_what_it_made_and_nothing_else(srlib, tmp_path, noise):
    scan = save_scan(Volume(noise((16, 16, 16)), np.eye(4)), tmp_path / "scan.nii.gz")
    other = save_scan(Volume(noise((4, 4, 4)), np.eye(4)), tmp_path / "precious.nii.gz")
    before = other.read_bytes()
    assert_refused(srlib("degrade", scan, other), other, "--force")
    assert other.read_bytes() == before
    out = tmp_path / "lr.nii.gz"
    assert srlib("degrade", scan, out).exit_code == 0
    first = out.read_bytes()
    assert srlib("degrade", scan, out, "--factor", 1, 1, 4).exit_code == 0
    assert volume.load_nifti(out).shape == (16, 16, 4)
    assert srlib("degrade", scan, out).exit_code == 0 and out.read_bytes() == first
    assert srlib("degrade", scan, other, "--force").exit_code == 0 and other.read_bytes() == first


def test_degrade_keeps_both_forms_their_codes_and_units(srlib, tmp_path, noise, oblique):
    image = nib.Nifti1Image(noise((16, 15, 14)), oblique)
    image.set_qform(oblique, 1)
    other = oblique.copy()
    other[:3, 3] += 5
    image.set_sform(other, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 7
    nib.save(image, tmp_path / "hr.nii.gz")
    assert (
        srlib(
            "degrade", tmp_path / "hr.nii.gz", tmp_path / "lr.nii.gz", "--factor", 1, 1, 2
        ).exit_code
        == 0
    )
    made = nib.load(tmp_path / "lr.nii.gz")
    moved = np.diag([1, 1, 2.0, 1])
    moved[2, 3] = 0.5
    for form, code, before in ((made.get_qform, 1, oblique), (made.get_sform, 4, other)):
        matrix, found = form(coded=True)
        assert found == code
        np.testing.assert_allclose(matrix, before @ moved, atol=1e-4)
    assert made.header.get_xyzt_units() == ("mm", "sec") and made.header["cal_max"] == 7
    assert made.get_data_dtype() == np.float32 and made.shape == (16, 15, 7)


def test_degrade_of_an_image(srlib, tmp_path, noise):
    nib.save(nib.Nifti1Image(noise((20, 16)), np.eye(4)), tmp_path / "image.nii")
    images.imsave(
        tmp_path / "image.png", (noise((16, 20)) * 255).astype(np.uint8), check_contrast=False
    )
    for source in ("image.nii", "image.png"):
        for target in ("lr.nii.gz", "lr.mgz", "lr.png"):
            result = srlib("degrade", tmp_path / source, tmp_path / target, "--force")
            assert result.exit_code == 0, result.stderr
            assert srlib("evaluate", tmp_path / source, tmp_path / source).exit_code == 0
    scan = volume.load_nifti(tmp_path / "lr.nii.gz")
    assert scan.shape == (10, 8, 1) and scan.spacing_mm == pytest.approx((2, 2, 1))


@pytest.mark.parametrize(
    "words",
    [
        "--window 200 -1024", "--window nan 3", "--window 1 nan", "--window 5 5", "--window -inf 3", "--sigma nan",
        "--sigma -1", "--sigma inf", "--factor inf 1 1", "--factor 0 0 0", "--factor 1e9 1e9 1e9", "--factor nan 1 1",
        "--factor 17 1 1", "--degradation kspace --factor 1e9 1 1", "--degradation scanline --every 0",
        "--degradation scanline --every -2", "--degradation scanline --every 17", "--degradation sparse_view --every 0",
        "--degradation sparse_view --every 1001",
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(srlib, tmp_path, noise, words):
    scan = save_scan(Volume(noise((16, 16, 16)), np.eye(4)), tmp_path / "scan.nii.gz")
    assert_refused(srlib("degrade", scan, tmp_path / "out.nii.gz", *words.split()))
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_one_line(srlib, tmp_path, noise, monkeypatch):
    scan, out = (
        save_scan(Volume(noise((16, 16, 16)), np.eye(4)), tmp_path / "scan.nii"),
        tmp_path / "out.nii.gz",
    )

    def fill(image, path):
        path.write_bytes(b"half")
        with open("/dev/full", "w") as full:
            full.write("x")

    monkeypatch.setattr(volume.nib, "save", fill)
    assert_refused(srlib("degrade", scan, out), "cannot write", out, "No space left")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii"]
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "srlib", "evaluate", scan, scan]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.fixture
def pair(tmp_path, noise):
    """A truth and an estimate, as files."""
    truth = Volume(1000 * ndimage.gaussian_filter(noise((20, 21, 22)), 1), np.eye(4))
    hr = save_scan(truth, tmp_path / "hr.nii.gz")
    return hr, save_scan(truth.with_data(truth.data + 5), tmp_path / "sr.nii.gz")


def test_two_truths_of_one_name_are_refused(srlib, pair, tmp_path):
    for folder, names in (("t", ("a.nii", "a.nii.gz")), ("s", ("a_sr.nii.gz",))):
        (tmp_path / folder).mkdir()
        for name in names:
            save_scan(load_scan(pair[0]), tmp_path / folder / name)
    assert_refused(srlib("evaluate", tmp_path / "t", tmp_path / "s"), "two scans are called a")
    upper = pair[0].rename(tmp_path / "HR.NII.GZ")
    assert row(srlib("evaluate", upper, pair[1]))["subject"] == "HR"


@pytest.mark.parametrize(
    "words",
    [("--data-range", 4095), ("--mask", "m.nii"), ("--extended",), ("--add-to", "runs", "mine")],
)
def test_options_of_the_other_form_are_refused(srlib, pair, tiny, cohort, tmp_path, words):
    form = ("--weights", tiny, "--cohort", cohort, "--out", tmp_path / "out", "--task", "block_x2")
    assert_refused(srlib("evaluate", *form, *words), words[0], "leave it out")
    assert not (tmp_path / "out").exists()
    assert_refused(srlib("evaluate", *pair, "--cohort", cohort), "--cohort", "two scans")


def test_evaluate_replaces_nothing_unasked(srlib, pair, tiny, cohort, tmp_path):
    mine = save_scan(load_scan(pair[0]), tmp_path / "mine.nii.gz")
    before = mine.read_bytes()
    assert_refused(srlib("evaluate", *pair, "--out", mine), mine, "--force")
    assert mine.read_bytes() == before
    assert srlib("evaluate", *pair, "--out", mine, "--force").exit_code == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan4_sr.nii.gz").write_text("mine")
    words = ("evaluate", "--weights", tiny, "--cohort", cohort, "--out", tmp_path / "out")
    assert_refused(srlib(*words), "--force")
    assert [p.read_text() for p in (tmp_path / "out").iterdir()] == ["mine"]
    assert srlib(*words, "--force").exit_code == 0


def test_rows_are_added_under_a_known_task_and_a_name(srlib, pair, tmp_path):
    words = ("evaluate", *pair, "--add-to", tmp_path / "runs")
    assert_refused(srlib(*words, "mine", "--task", "gausian_x2"), "did you mean 'gaussian_x2'")
    assert_refused(srlib(*words, "", "--task", "gaussian_x2"), "--add-to")
    assert not (tmp_path / "runs").exists()


def test_images_without_a_place_are_compared_voxel_by_voxel(srlib, tmp_path, noise):
    for name, size in (("hr", 32), ("same", 32), ("lr", 16)):
        save_scan(Volume(noise((size, size, 1)) * 200, np.eye(4)), tmp_path / f"{name}.png")
    hr, same, lr = (tmp_path / f"{name}.png" for name in ("hr", "same", "lr"))
    assert row(srlib("evaluate", hr, same))["psnr"] == np.inf
    for one, other in ((hr, lr), (lr, hr)):
        assert_refused(srlib("evaluate", one, other), other, "voxels as")
    finer = save_scan(Volume(load_scan(hr).data, np.diag([0.5, 0.5, 1, 1])), tmp_path / "f.nii")
    assert row(srlib("evaluate", hr, finer))["psnr"] == np.inf  # `enhance` halves the spacing


def test_an_empty_mask_is_named(srlib, pair, tmp_path):
    mask = save_scan(Volume(np.zeros((20, 21, 22)), np.eye(4)), tmp_path / "m.nii.gz")
    assert_refused(srlib("evaluate", *pair, "--mask", mask), mask, "not empty")


def test_what_cannot_be_computed_is_one_line_and_leaves_nothing(srlib, pair, tmp_path):
    out, wide = tmp_path / "o.nii.gz", ("--sigma", 1e9)
    assert_refused(srlib("degrade", pair[0], out, *wide), "too wide")
    np.savez(tmp_path / "big.npz", np.full((20, 20, 20), 1e300))
    assert_refused(srlib("degrade", tmp_path / "big.npz", out), "finite numbers")
    large = np.where(np.indices((20, 20, 20)).sum(0) % 2, 3e38, -3e38)
    save_scan(Volume(large, np.eye(4)), tmp_path / "large.nii")
    assert_refused(srlib("degrade", tmp_path / "large.nii", out), "NaN or infinite")
    assert not out.exists()


def test_odd_times_axes_and_transforms_are_enhanced(srlib, tiny, tmp_path, noise):
    """A negative repetition time, a fifth axis, a qform that is no number beside a sound sform."""
    data = (noise((2, 12, 13, 14)) * 900).transpose(1, 2, 3, 0)
    image = nib.Nifti1Image(data[..., None], np.diag([2, 2, 2, 1]))
    image.set_qform(image.affine, 1)
    image.header["pixdim"][4] = -2
    image.header["quatern_b"] = np.nan
    nib.save(image, tmp_path / "a.nii")
    words = ("enhance", tmp_path / "a.nii", tmp_path / "o.nii.gz", "--weights", tiny)
    assert srlib(*words).exit_code == 0
    made = nib.load(tmp_path / "o.nii.gz")
    assert made.shape == (24, 26, 28, 2) and made.header.get_zooms()[3] == 2
    assert made.header["qform_code"] == 0 and made.header["sform_code"] > 0
    np.testing.assert_allclose(made.affine[:3, 3], -0.5)
    for n in range(2):
        seen = np.asarray(made.dataobj)[::2, ::2, ::2, n].ravel()
        alike = [np.corrcoef(seen, data[..., k].ravel())[0, 1] for k in range(2)]
        assert np.argmax(alike) == n and max(alike) > 0.5
