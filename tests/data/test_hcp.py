"""The replicated code's HCP data: folders, MATLAB twins, 12 bits, and its truncation script's arithmetic."""

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import savemat

from srlib import data, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.degradations.resolution import KSpaceTruncation
from srlib.degradations.tasks import TASKS
from srlib.scans.formats import load_mat
from srlib.scans.intensity import fit_scaling
from srlib.scans.volume import Volume, load_nifti

F25 = systems.get("mdcsrn_f25", "smoke")


def truncation_script(scan: np.ndarray, cut: float) -> np.ndarray:
    """What the script stores, step by step in double precision; rounding as MATLAB's (half away from zero)."""
    k = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(scan.astype(float) / 4095)))
    x, y = (int(np.floor(n / cut + 0.5)) for n in scan.shape[1:])
    k[:, :x, :] = k[:, :, :y] = 0
    k[:, -x:, :] = k[:, :, -y:] = 0
    image = np.abs(np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(k))))
    return np.floor(image / image.max() * 4095 + 0.5).astype(np.int16)


@pytest.fixture
def hcp(tmp_path):
    """Ten subjects in HCP's folders, 12-bit, each with its MATLAB twin."""
    for index in range(10):
        folder = tmp_path / "HCP" / f"10{index}" / "unprocessed" / "3T" / "T1w_MPR1"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(index)
        scan = rng.integers(0, 4096, (10, 20, 25)).astype(np.int16)
        nib.save(
            nib.Nifti1Image(scan, np.diag([0.7, 0.7, 0.7, 1])),
            folder / f"10{index}_3T_T1w_MPR1.nii.gz",
        )
        savemat(folder / f"10{index}_LR.mat", {"out_final": truncation_script(scan, 2.5)})
    return tmp_path / "HCP"


@pytest.mark.parametrize("shape", [(6, 20, 25), (5, 16, 30), (4, 21, 33)])
def test_our_degradation_is_what_the_script_stores(shape):
    scan = np.random.default_rng(1).integers(0, 4096, shape).astype(np.int16)
    ours = KSpaceTruncation((1, 5, 5), stored_12bit=True)(Volume(scan, np.eye(4))).data
    np.testing.assert_array_equal(ours, truncation_script(scan, 2.5))


def test_given_and_made_pairs_are_the_same(hcp, tmp_path):
    result = CliRunner().invoke(
        main, ["manifest", "hcp", str(hcp), "--out", str(tmp_path / "m.csv")]
    )
    assert result.exit_code == 0, result.output
    subjects = data.read_manifest(tmp_path / "m.csv")
    assert len(subjects) == 10
    for subject in subjects:
        given = F25.pairs.make(subject)
        made = F25.pairs.degrade(load_nifti(subject.file("t1")))
        np.testing.assert_array_equal(given.on_grid.data, made.on_grid.data)
        assert given.scaling == made.scaling and given.scaling.scale == 4095
        assert given.scaling.apply(given.hr.data).max() <= 1


def test_an_id_list_chooses_and_splits(hcp, tmp_path):
    ids = tmp_path / "ids.csv"
    ids.write_text("id,,\n" + "".join(f"10{i},,\n" for i in range(8)))
    words = [
        "manifest",
        "hcp",
        str(hcp),
        "--out",
        str(tmp_path / "m.csv"),
        "--subjects",
        str(ids),
        "--split",
        "5/1/1/1",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    splits = [s.split for s in data.read_manifest(tmp_path / "m.csv")]
    assert {name: splits.count(name) for name in set(splits)} == {
        "train": 5,
        "val": 1,
        "eval": 1,
        "test": 1,
    }


def test_samples_kept_by_both_variants():
    assert KSpaceTruncation((1, 2, 2)).kept((256, 320, 320)) == (256, 160, 160)
    assert KSpaceTruncation((1, 5, 5)).kept((256, 320, 320)) == (256, 64, 64)
    for name, share in (("mdcsrn", 1 / 4), ("mdcsrn_f25", 1 / 25)):
        kind, settings = TASKS[systems.get(name).task]
        kept = KSpaceTruncation(**settings).kept((256, 320, 320))
        assert kind == "kspace" and np.prod(kept) / (256 * 320 * 320) == pytest.approx(share)


def test_bad_twins_and_bad_ranges_are_refused(tmp_path):
    like = Volume(np.zeros((3, 4, 5)), np.eye(4))
    savemat(tmp_path / "other.mat", {"x": np.zeros((3, 4, 5))})
    savemat(tmp_path / "shape.mat", {"out_final": np.zeros((3, 4, 6))})
    (tmp_path / "text.mat").write_text("hello")
    (tmp_path / "empty.mat").write_bytes(b"")
    whole = (tmp_path / "shape.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("other", "out_final"),
        ("shape", "shape"),
        ("text", "MATLAB"),
        ("empty", "MATLAB"),
        ("cut", "MATLAB"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            load_mat(tmp_path / f"{name}.mat", like)
        assert f"{name}.mat" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="12bit"):
        fit_scaling(np.array([0.0, 1.0]), "12bit")
