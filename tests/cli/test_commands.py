"""The command line: what it writes, and one clear line for bad input."""

import gzip
import io

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from test_foreign import make, theirs

from srlib import data, systems
from srlib.cli.commands import main
from srlib.models.unet3d import UNet3D
from srlib.models.weights import save_weights
from srlib.scans import volume
from srlib.systems import training


@pytest.fixture
def srlib(monkeypatch, tmp_path):
    """Run the command with words; returns click's result."""
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))
    return lambda *words: CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture(scope="session")
def weights(cohort, tmp_path_factory):
    """Weights of a residual network after two steps."""
    subjects = data.read_manifest(cohort, "train")
    folder = tmp_path_factory.mktemp("weights")
    return training.train(
        systems.get("mdcsrn_res", "smoke"), subjects, [], folder, device="cpu", progress=False
    )


@pytest.fixture
def scan(tmp_path, blob, oblique):
    return volume.save_scan(blob((21, 18, 17), oblique), tmp_path / "hr.nii.gz")


def assert_refused(result, *words):
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error") for line in lines) == 1
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in lines[-1], lines[-1]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_shows_an_example(srlib, command):
    text = srlib(command, "--help").output
    assert f"srlib {command}" in text.split("Example:")[1]


def test_degrade_enhance_evaluate(srlib, scan, weights, tmp_path, centre_of_mass):
    lr, sr = tmp_path / "lr.nii.gz", tmp_path / "sr.nii.gz"
    assert srlib("degrade", scan, lr, "--factor", 2, 2, 2).exit_code == 0
    assert volume.load_nifti(lr).shape == (11, 9, 9)
    result = srlib("enhance", lr, sr, "--weights", weights)
    assert result.exit_code == 0, result.output
    out = volume.load_nifti(sr)
    assert out.shape == (22, 18, 18)
    assert np.linalg.norm(centre_of_mass(out) - centre_of_mass(volume.load_nifti(scan))) < 0.5
    assert srlib("degrade", scan, lr, "--on-grid").exit_code == 0
    result = srlib("evaluate", scan, lr, "--mask", scan)
    table = pd.read_csv(io.StringIO(result.output))
    assert len(table) == 1 and {"psnr", "ssim3d", "ssim2d", "nrmse", "data_range", "region"} <= set(
        table
    )
    assert table["psnr"][0] > 20


@pytest.mark.parametrize(
    "options, shape",
    [(["--factor", 1, 1, 3], (11, 9, 27)), (["--spacing", 0.9, 1.1, 1.7], (22, 18, 18))],
)
def test_enhance_to_a_factor_or_a_spacing(srlib, scan, weights, tmp_path, options, shape):
    lr, sr = tmp_path / "lr.nii.gz", tmp_path / "sr.nii.gz"
    srlib("degrade", scan, lr)
    assert srlib("enhance", lr, sr, "--weights", weights, *options).exit_code == 0
    assert volume.load_nifti(sr).shape == shape


def test_kspace_and_corner_aligned_degradation(srlib, scan, tmp_path):
    out = tmp_path / "out.nii.gz"
    assert (
        srlib("degrade", scan, out, "--degradation", "kspace", "--factor", 1, 2, 2).exit_code == 0
    )
    assert volume.load_nifti(out).shape == volume.load_nifti(scan).shape
    assert srlib("degrade", scan, out, "--align", "corners").exit_code == 0
    assert_refused(
        srlib("degrade", scan, out, "--degradation", "kspace", "--align", "corners"), "--align"
    )


def bad_scans(folder, good):
    """(file, words of the message) of scans that cannot be used."""
    image = nib.load(good)
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 2), "f4"), np.eye(4)), folder / "4d.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), "f4"), np.eye(4)), folder / "zero.nii.gz")
    data = image.get_fdata()
    data[2, 2, 2] = np.nan
    nib.save(nib.Nifti1Image(data, np.eye(4)), folder / "nan.nii.gz")
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:-200])
    (folder / "text.nii").write_text("hello")
    (folder / "notnifti.nii.gz").write_bytes(gzip.compress(b"hello"))
    return [
        ("none.nii.gz", "no such file"), ("4d.nii.gz", "volume 1: the scan is constant"), ("zero.nii.gz", "constant"),
        ("nan.nii.gz", "NaN"), ("cut.nii.gz", "truncated"), ("text.nii", "unreadable"), ("notnifti.nii.gz", "unreadable"),
    ]  # fmt: skip


def test_bad_scans_are_one_line_and_leave_nothing(srlib, scan, weights, tmp_path):
    out = tmp_path / "out.nii.gz"
    for name, words in bad_scans(tmp_path, scan):
        result = srlib("enhance", tmp_path / name, out, "--weights", weights)
        assert_refused(result, words, *([] if name == "zero.nii.gz" else [name]))
        assert not out.exists() and not list(tmp_path.glob(".*"))


def test_bad_arguments_are_one_line(srlib, scan, weights, cohort, tmp_path):
    out = tmp_path / "out.nii.gz"
    assert_refused(srlib("enhance", scan, out, "--weights", "nothing"), "no such weights")
    assert_refused(srlib("enhance", scan, out, "--weights", scan), "hr.nii.gz")
    assert_refused(
        srlib("enhance", scan, out, "--weights", weights, "--factor", 0.5, 1, 1), "factor"
    )
    both = ("--factor", 2, 2, 2, "--spacing", 1, 1, 1)
    assert_refused(srlib("enhance", scan, out, "--weights", weights, *both), "not both")
    assert_refused(srlib("enhance", scan, tmp_path / "out.png", "--weights", weights), ".nii.gz")
    assert_refused(
        srlib("enhance", scan, tmp_path / "no" / "out.nii.gz", "--weights", weights),
        "does not exist",
    )
    assert_refused(srlib("degrade", scan, out, "--factor", 0, 1, 1), "factor")
    assert_refused(srlib("train", "nothing", "--cohort", cohort), "unknown experiment")
    assert_refused(
        srlib("train", "mdcsrn", "--cohort", cohort, "--profile", "fast"), "unknown profile"
    )
    assert_refused(srlib("run", "--profile", "fast"), "unknown profile")
    assert_refused(srlib("run", "--cohort", tmp_path / "none.csv"), "no such manifest")
    assert_refused(
        srlib("run", "--cohort", cohort, "--profile", "smoke", "-p", "sede", 3),
        "unknown notebook parameter",
    )
    assert_refused(
        srlib("manifest", "flat", tmp_path / "nowhere", "--out", tmp_path / "m.csv"), "nowhere"
    )
    assert_refused(
        srlib("manifest", "flat", tmp_path, "--out", tmp_path / "m.csv", "--split", "a/b"),
        "--split",
    )
    other = volume.save_scan(volume.Volume(np.ones((3, 3, 3)), np.eye(4)), tmp_path / "small.nii")
    assert_refused(srlib("evaluate", scan, other), "field of view")
    assert not out.exists()


def test_manifest_and_train(srlib, cohort, tmp_path):
    out = tmp_path / "m.csv"
    result = srlib("manifest", "flat", cohort.parent, "--out", out, "--split", "3/1/2")
    assert result.exit_code == 0, result.output
    assert [s.split for s in data.read_manifest(out)].count("train") == 3
    result = srlib("train", "mdcsrn_res", "--cohort", out, "--profile", "smoke", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith("model.safetensors")
    result = srlib(
        "enhance",
        next(cohort.parent.glob("*.nii.gz")),
        tmp_path / "o.nii",
        "--weights",
        "mdcsrn_res",
    )
    assert result.exit_code == 0, result.output


def test_a_store_is_written_and_trained_from(srlib, cohort, tmp_path):
    patches, out = tmp_path / "p.h5", tmp_path / "run"
    result = srlib("store", "recnn_x2", "--cohort", cohort, "--profile", "smoke", "--out", patches)
    assert result.exit_code == 0 and str(patches) in result.output
    words = (
        "train",
        "recnn_x2",
        "--cohort",
        cohort,
        "--profile",
        "smoke",
        "--out",
        out,
        "--device",
        "cpu",
    )
    assert srlib(*words, "--store", patches).exit_code == 0
    assert (out / "model.safetensors").is_file()
    assert_refused(srlib(*words, "--store", tmp_path / "none.h5"), "none.h5", "srlib store")
    assert_refused(
        srlib("store", "mdcsrn_res", "--cohort", cohort, "--out", tmp_path / "q.h5"),
        "new ones all the time",
    )
    assert not (tmp_path / "q.h5").exists()


@pytest.mark.parametrize("name", ["SRReCNN3D_10Layers_IsoScalex2", "renamed"])
def test_published_caffe_weights_enhance_a_nifti(
    srlib, published_dir, blob, oblique, tmp_path, centre_of_mass, name
):
    weights = tmp_path / f"{name}.caffemodel"
    weights.write_bytes((published_dir / "SRReCNN3D_10Layers_IsoScalex2.caffemodel").read_bytes())
    hr = blob((24, 20, 22), oblique)
    volume.save_scan(hr, tmp_path / "hr.nii.gz")
    for align in ("center", "corners"):
        lr, sr = tmp_path / f"lr_{align}.nii.gz", tmp_path / f"sr_{align}.nii.gz"
        assert srlib("degrade", tmp_path / "hr.nii.gz", lr, "--align", align).exit_code == 0
        words = ("enhance", lr, sr, "--weights", weights, "--factor", 2, 2, 2, "--align", align)
        result = srlib(*words)
        assert result.exit_code == 0, result.output
        out = volume.load_nifti(sr)
        assert out.shape == hr.shape
        np.testing.assert_allclose(out.affine, oblique, atol=1e-5)
        assert np.linalg.norm(centre_of_mass(out) - centre_of_mass(hr)) < 0.05


def test_synthsr_from_the_command_line(srlib, tmp_path, blob, oblique, centre_of_mass):
    weights, out = make(tmp_path / "SynthSR_mine.h5", theirs()), tmp_path / "out.nii.gz"
    scan = volume.save_scan(blob((21, 18, 17), oblique), tmp_path / "in.nii.gz")
    words = ("enhance", scan, out, "--force", "--weights", weights)
    results = [srlib(*words, *more) for more in ((), ("--no-flip",), ("--ct",))]
    assert all(r.exit_code == 0 for r in results), results
    sr = volume.load_nifti(out)
    np.testing.assert_allclose(sr.spacing_mm, 1, atol=1e-5)
    assert volume.axcodes(sr) == "RAS" and sr.data.min() >= 0 and sr.data.max() <= 128
    told = results[0].stderr.splitlines()
    assert told[0].startswith(
        "in.nii.gz: 21 x 18 x 17 voxels of 0.9 x 1.1 x 1.7 mm, axes RAS, intensities"
    )
    assert told[0].endswith("model synthsr_published, 1 mm, precision 32")
    assert told[1].startswith("warning: the scan covers 18.9 mm along R")
    assert_refused(srlib(*words, "--factor", 1, 1, 2), "takes no factor")
    assert_refused(srlib(*words, "--uncertainty", tmp_path / "b.nii.gz"), "knows no uncertainty")
    assert_refused(srlib(*words, "--max-memory", 0.001), "--max-memory")


def test_uncertainty_from_the_command_line(srlib, tmp_path, blob):
    experiment = systems.get("synthsr_laplace", "smoke")
    torch.manual_seed(0)
    network = UNet3D(width=experiment.network.width, **experiment.network.model_args)
    weights = tmp_path / "model.safetensors"
    save_weights(network.state_dict(), weights, {"experiment": experiment.to_json()})
    scan = volume.save_scan(blob((30, 31, 12), np.diag([1, 1, 3, 1])), tmp_path / "in.nii.gz")
    words = (
        "enhance",
        scan,
        tmp_path / "out.nii.gz",
        "--weights",
        weights,
        "--uncertainty",
        tmp_path / "b.nii.gz",
    )
    assert srlib(*words).exit_code == 0
    sr, b = volume.load_nifti(tmp_path / "out.nii.gz"), volume.load_nifti(tmp_path / "b.nii.gz")
    assert sr.shape == b.shape == (30, 31, 36)
    np.testing.assert_allclose(
        b.data, 0.02 * np.ptp(volume.load_nifti(scan).data), rtol=0.05
    )  # its last layer starts at zero
    assert_refused(srlib(*words, "--spacing", 1, 1, 1, "--force"), "takes no spacing")


def test_a_folder_goes_on_after_a_bad_file(srlib, weights, scan, tmp_path, blob):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    good = volume.load_nifti(scan)
    for name in ("a.nii", "b.c.nii.gz", "d.mgz"):
        volume.save_scan(good, folder / name)
    np.savez(folder / "e.npz", vol_data=good.data)
    np.savez(folder / "f.npz", np.zeros(3))
    (folder / ".hidden.nii").write_text("no scan")
    (folder / "notes.txt").write_text("no scan")
    words = ("enhance", folder, out, "--weights", weights)
    result = srlib(*words)
    assert result.exit_code == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
    assert "f.npz" in line
    written = sorted(p.name for p in out.glob("*.nii.gz"))
    assert written == [f"{n}_sr.nii.gz" for n in ("a", "b.c", "d", "e")]
    assert result.stdout.splitlines() == [str(out / n) for n in written]
    np.testing.assert_allclose(
        volume.load_nifti(out / "d_sr.nii.gz").data,
        volume.load_nifti(out / "a_sr.nii.gz").data,
        atol=1e-4,
    )
    np.testing.assert_allclose(volume.load_nifti(out / "e_sr.nii.gz").spacing_mm, 0.5)
    (folder / "f.npz").unlink()
    assert srlib(*words).exit_code == 0  # all was done before
    assert_refused(srlib("enhance", folder, folder, "--weights", weights), "among the scans")
    assert_refused(srlib(*words, "--reference", scan), "goes with a single scan")
    volume.save_scan(good, folder / "a.nii.gz")
    assert_refused(srlib(*words), "two scans are called a")


@pytest.mark.parametrize(
    "words",
    [
        "store recnn_x2 --profile smoke --cohort own.csv",
        "priors own.csv --classes classes.csv",
        "manifest flat . --subjects own.csv",
    ],
)
def test_no_table_is_replaced_by_what_is_made_of_it(words, cohort, tmp_path, monkeypatch):
    text = cohort.read_text()
    if "flat" in words:
        text = "id\nmine\n"
    own = cohort.with_name("own.csv")
    own.write_text(text)
    monkeypatch.chdir(own.parent)
    (own.parent / "classes.csv").write_text("label,class\n0,0\n1,1\n")
    result = CliRunner().invoke(main, [*words.split(), "--out", "own.csv", "--force"])
    assert result.exit_code == 1 and "own.csv is an input" in result.stderr
    assert own.read_text() == text
