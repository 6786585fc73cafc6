"""Training learns, resumes to the bit, and refuses what it cannot use."""

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from srlib import data, experiments, infer, phases, train
from srlib.paths import InputError, atomic

SMOKE = experiments.get("mdcsrn_res", "smoke")


def fit(cohort, folder, experiment=SMOKE, **options):
    subjects = data.read_manifest(cohort)
    split = {name: [s for s in subjects if s.split == name] for name in ("train", "val")}
    return train.fit(experiment, split["train"], split["val"], folder, progress=False, device="cpu", **options)


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """Makes training stop dead before a step, as a power cut would; returns the undoing."""

    def arm(before):
        for phase in (phases.SupervisedPhase, phases.AdversarialPhase, phases.LeastSquaresPhase):

            def limited(self, index, lr, hr, step=phase.step):
                if index == before:
                    raise Killed
                return step(self, index, lr, hr)

            monkeypatch.setattr(phase, "step", limited)
        return monkeypatch.undo

    return arm


@pytest.mark.parametrize("name", ["mdcsrn", "mdcsrn_res", "mdcsrn_res_wgan", "srgan3d_x2", "recnn_x2x3"])
def test_resume_gives_the_same_weights_to_the_bit(cohort, tmp_path, kill, name):
    experiment = dataclasses.replace(experiments.get(name, "smoke"), batch_size=2, max_steps=12)
    start = fit(cohort, tmp_path / "start") if experiment.start else None
    whole = fit(cohort, tmp_path / "whole", experiment, start=start)
    for step in sorted(np.random.default_rng(0).integers(1, 12, 5)):
        undo = kill(step)
        with pytest.raises(Killed):
            fit(cohort, tmp_path / "cut", experiment, checkpoint_every=2, start=start)
        undo()
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    cut = fit(cohort, tmp_path / "cut", experiment, checkpoint_every=2, start=start)
    written = sorted(p.name for p in whole.parent.iterdir())
    assert sorted(p.name for p in cut.parent.iterdir()) == written
    for file in (f for f in written if f.endswith(".safetensors")):
        assert (cut.parent / file).read_bytes() == (whole.parent / file).read_bytes()
    histories = [pd.read_csv(p.parent / "history.csv") for p in (whole, cut)]
    pd.testing.assert_frame_equal(*(h.drop(columns=["patches_per_s", "wait_share"]) for h in histories))


def test_adversarial_training_starts_from_the_trained_generator(cohort, tmp_path):
    start = fit(cohort, tmp_path / "start")
    experiment = experiments.get("mdcsrn_res_wgan", "smoke")
    before, after = load_file(start), load_file(fit(cohort, tmp_path / "gan", experiment, start=start))
    assert not torch.equal(before["last.weight"], after["last.weight"])
    assert (before["last.weight"] - after["last.weight"]).abs().max() < 2 * experiment.learning_rate
    assert "score.0.weight" in load_file(tmp_path / "gan" / "critic.safetensors")
    history = pd.read_csv(tmp_path / "gan" / "history.csv")
    assert {"critic_loss", "gap", "val_gap", "loss", "adversarial"} <= set(history)
    with pytest.raises(InputError, match="mdcsrn_res_wgan expects the generator weights of 'mdcsrn_res'"):
        fit(cohort, tmp_path / "none", experiment)
    with pytest.raises(InputError, match="mdcsrn_res expects no generator weights"):
        fit(cohort, tmp_path / "none", start=start)
    other = fit(cohort, tmp_path / "wide", dataclasses.replace(SMOKE, width=5))
    with pytest.raises(InputError, match="does not fit the generator of mdcsrn_res_wgan"):
        fit(cohort, tmp_path / "none", experiment, start=other)


def test_training_is_a_function_of_the_seed(cohort, tmp_path):
    first, again, other = (fit(cohort, tmp_path / str(i), seed=s) for i, s in enumerate((0, 0, 1)))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_training_reduces_the_loss_and_leaves_global_randomness_alone(cohort, tmp_path):
    experiment = dataclasses.replace(SMOKE, max_steps=40)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = fit(cohort, tmp_path, experiment)
    assert torch.rand(1) == expected
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["loss"].tail(5).mean() < history["loss"].head(5).mean()
    assert np.isfinite(history["val_psnr"]).all()
    assert history["wait_share"].between(0, 1).all()
    assert infer.load_model(weights, "cpu").experiment.to_json() == experiment.to_json()


def test_a_finished_run_is_kept_and_other_settings_replace_it(cohort, tmp_path):
    weights = fit(cohort, tmp_path)
    written = weights.stat().st_mtime_ns
    assert fit(cohort, tmp_path).stat().st_mtime_ns == written
    assert fit(cohort, tmp_path, seed=1).stat().st_mtime_ns > written


def test_weights_load_without_running_code_and_have_plain_names(cohort, tmp_path):
    state = load_file(fit(cohort, tmp_path))
    assert "first.weight" in state and not any("module." in name for name in state)


def test_training_without_validation_rows_works(cohort, tmp_path):
    subjects = data.read_manifest(cohort, "train")
    train.fit(SMOKE, subjects, [], tmp_path, device="cpu", progress=False)
    assert pd.read_csv(tmp_path / "history.csv")["val_psnr"].isna().all()


def test_patches_larger_than_the_scan_are_padded(cohort, tmp_path):
    fit(cohort, tmp_path, dataclasses.replace(SMOKE, patch_size=48, max_steps=1))
    assert (tmp_path / "model.safetensors").is_file()


def test_bad_input_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="train"):
        train.fit(SMOKE, [], [], tmp_path)
    with pytest.raises(InputError, match="device"):
        train.fit(SMOKE, data.read_manifest(cohort, "train"), [], tmp_path, device="cuda:99")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fit(cohort, tmp_path / "file" / "run")


def test_a_damaged_checkpoint_is_named(cohort, tmp_path):
    with atomic(tmp_path / "checkpoint.pt") as temporary:
        temporary.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt.*delete it"):
        fit(cohort, tmp_path)


def test_two_processes_share_a_batch(cohort, tmp_path):
    """Both ranks see their half, and one file comes out."""
    script = tmp_path / "two.py"
    script.write_text(
        "import dataclasses, sys\n"
        "from srlib import data, experiments, train\n"
        "e = dataclasses.replace(experiments.get('mdcsrn_res', 'smoke'), batch_size=2, max_steps=2)\n"
        "s = data.read_manifest(sys.argv[1], 'train')\n"
        "train.fit(e, s, [], sys.argv[2], device='cpu', processes=2, progress=False)\n"
    )
    subprocess.run([sys.executable, script, cohort, tmp_path], check=True, capture_output=True, timeout=120)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
