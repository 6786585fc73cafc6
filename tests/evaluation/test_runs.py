"""Experiments trained in their order, found again in runs.csv, and measured on grids of their own."""

import numpy as np
import pytest

from srlib import systems
from srlib.core.paths import InputError
from srlib.data.manifest import read_manifest
from srlib.evaluation import runs
from srlib.scans.formats import load_scan
from srlib.scans.volume import save_scan
from srlib.systems import mdcsrn, recnn, srgan3d

SMALL = "network.width=4 training.max_steps=1"


@pytest.fixture
def masked(cohort, tmp_path):
    """The cohort, its test scans with masks: the half of the voxels with the first axis's indices."""
    lines = ["subject,split,t1,mask"]
    for subject in read_manifest(cohort):
        scan, mask = load_scan(subject.file("t1")), ""
        if subject.split == "test":
            inside = np.zeros(scan.shape)
            inside[: scan.shape[0] // 2] = 1
            mask = save_scan(scan.with_data(inside), tmp_path / f"{subject.name}_mask.nii.gz")
        lines.append(f"{subject.name},{subject.split},{subject.file('t1')},{mask}")
    (tmp_path / "masked.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "masked.csv"


def test_masks_follow_the_grids_that_published_systems_cut_and_frame(masked, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    train = runs.train_all
    weights = train(["recnn"], "smoke", masked, overrides=f"{SMALL} border=0,0,0", **options)
    frame = f"{SMALL} frame=40,32,36"
    weights |= train(["srgan3d"], "smoke", masked, overrides=f"{frame} stride=None", **options)
    rows, pictures = runs.measure_runs(weights, masked)
    cut, framed = (pictures[task] for task in ("gaussian_x2_corners", "gaussian_x4_nearest"))
    first = read_manifest(masked, "test")[0]
    scan = load_scan(first.file("t1"))
    assert cut["HR"].shape == tuple(n // 2 * 2 for n in scan.shape) != scan.shape
    assert framed["HR"].shape == (40, 32, 36)
    found = {
        (row["experiment"].partition("+")[0], row["subject"], row["region"])
        for row in rows
        if row["metric"] == "psnr"
    }
    names = ("recnn", "srgan3d", "linear", "cubic")
    subjects = [s.name for s in read_manifest(masked, "test")]
    assert found == {(n, s, r) for n in names for s in subjects for r in ("mask", "volume")}
    inside = slice(None, scan.shape[0] // 2)
    error = (cut["cubic"].data - cut["HR"].data)[inside]
    by_hand = 20 * np.log10(np.ptp(cut["HR"].data) / np.sqrt(np.mean(error.astype(float) ** 2)))
    (row,) = (
        r for r in rows
        if (r["experiment"], r["subject"], r["region"], r["metric"], r["degradation"])
        == ("cubic", first.name, "mask", "psnr", "gaussian_x2_corners")
    )  # fmt: skip
    assert row["value"] == pytest.approx(by_hand, abs=1e-3)


def test_what_was_trained_is_found_by_profile_seed_cohort_and_system(cohort, masked, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    wider = (
        "mdcsrn_res_wgan:game.critic_steps=0 mdcsrn_res:training.batch_size=2 training.max_steps=1"
    )
    names = ["mdcsrn_res", "mdcsrn_res_wgan"]
    made = runs.train_all(names, "smoke", cohort, overrides=wider, **options)
    assert [*made] == ["mdcsrn_res+training.batch_size=2+training.max_steps=1", "mdcsrn_res_wgan+game.critic_steps=0+training.max_steps=1"]  # fmt: skip
    with pytest.raises(InputError, match="critic_steps: unknown field of game"):
        runs.train_all(names, "smoke", cohort, overrides="game.critic_steps=0", **options)
    plain = runs.train_recorded("mdcsrn", "smoke", cohort, overrides="width=2", **options)
    other = runs.train_recorded("srgan3d_x2", "smoke", cohort, overrides=SMALL, **options)
    runs.train_recorded("mdcsrn", "smoke", masked, overrides=SMALL, **options)
    runs.train_recorded("mdcsrn", "smoke", cohort, overrides=SMALL, seed=1, **options)
    found = runs.recorded(tmp_path, "smoke", cohort, mdcsrn.EXPERIMENTS)
    assert found == {"mdcsrn+width=2": plain, **made}
    both = runs.recorded(tmp_path, "smoke", cohort, [*recnn.EXPERIMENTS, *srgan3d.EXPERIMENTS])
    assert [*both.values()] == [other]
    assert runs.recorded(tmp_path, "quick", cohort, mdcsrn.EXPERIMENTS) == {}
    other.unlink()
    assert runs.recorded(tmp_path, "smoke", cohort, srgan3d.EXPERIMENTS) == {}


@pytest.mark.parametrize("name, part", [("srresnet2d_ct", "_ct"), ("srresnet2d_us", "_us")])
def test_a_part_of_a_systems_runs_is_named_by_a_part_of_their_names(name, part):
    for profile in systems.PROFILES:
        every = systems.runs("srresnet2d", profile)
        assert systems.runs(name, profile) == [n for n in every if part in n] != []
    assert systems.runs("mdcsrn", "smoke") == systems.runs("mdcsrn", "quick")
    with pytest.raises(InputError, match="unknown system 'mdcrsn'; expected one of mdcsrn, recnn"):
        systems.runs("mdcrsn", "paper")
