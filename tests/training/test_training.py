"""Training learns, resumes to the bit, and refuses what it cannot use."""

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from srlib import data, systems
from srlib.cli.commands import main
from srlib.core import device, paths
from srlib.core.paths import InputError, atomic
from srlib.degradations.tasks import TASKS
from srlib.evaluation import results, runs
from srlib.models.weights import load_weights, read_metadata, state_hash
from srlib.scans.volume import Volume, save_scan
from srlib.systems import trained, training
from srlib.training import fit as loop
from srlib.training import processes, validation
from srlib.training.checkpoints import Identity
from srlib.training.games import LeastSquares, Supervised, Wasserstein

SMALL = {"blocks": 1, "units": 2, "residual": True}  # of mDCSRN, for speed
SMOKE = systems.get("mdcsrn_res", "smoke").changed(model_args=SMALL)


def fit(cohort, folder, experiment=SMOKE, **options):
    subjects = data.read_manifest(cohort)
    split = {name: [s for s in subjects if s.split == name] for name in ("train", "val")}
    return training.train(
        experiment, split["train"], split["val"], folder, progress=False, device="cpu", **options
    )


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """Makes training stop dead before a step, as a power cut would; returns the undoing."""

    def arm(before):
        for game in (Supervised, Wasserstein, LeastSquares):

            def limited(self, players, index, *batch, step=game.step):
                if index == before:
                    raise Killed
                return step(self, players, index, *batch)

            monkeypatch.setattr(game, "step", limited)
        return monkeypatch.undo

    return arm


@pytest.mark.parametrize("name", ["mdcsrn_res", "mdcsrn_res_wgan", "srgan3d_x2", "recnn_x2x3"])
def test_resume_gives_the_same_weights_to_the_bit(cohort, tmp_path, kill, name):
    experiment = systems.get(name, "smoke").changed(batch_size=2, max_steps=12)
    experiment = experiment.changed(model_args=SMALL) if "mdcsrn" in name else experiment
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
    pd.testing.assert_frame_equal(
        *(h.drop(columns=["patches_per_s", "wait_share"]) for h in histories)
    )


def test_adversarial_training_starts_from_the_trained_generator(cohort, tmp_path):
    start = fit(cohort, tmp_path / "start")
    experiment = systems.get("mdcsrn_res_wgan", "smoke").changed(model_args=SMALL)
    before, after = (
        load_file(start),
        load_file(fit(cohort, tmp_path / "gan", experiment, start=start)),
    )
    assert not torch.equal(before["last.weight"], after["last.weight"])
    assert (
        before["last.weight"] - after["last.weight"]
    ).abs().max() < 2 * experiment.training.learning_rate
    assert "score.0.weight" in load_file(tmp_path / "gan" / "critic.safetensors")
    history = pd.read_csv(tmp_path / "gan" / "history.csv")
    assert {"critic_loss", "gap", "val_gap", "loss", "adversarial"} <= set(history)
    with pytest.raises(
        InputError, match="mdcsrn_res_wgan starts from the generator weights of 'mdcsrn_res'"
    ):
        fit(cohort, tmp_path / "none", experiment)
    other = fit(cohort, tmp_path / "wide", SMOKE.changed(width=5))
    with pytest.raises(InputError, match="does not fit the generator of mdcsrn_res_wgan"):
        fit(cohort, tmp_path / "none", experiment, start=other)


def test_training_is_a_function_of_the_seed(cohort, tmp_path):
    first, again, other = (fit(cohort, tmp_path / str(i), seed=s) for i, s in enumerate((0, 0, 1)))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_training_reduces_the_loss_and_leaves_global_randomness_alone(cohort, tmp_path):
    experiment = SMOKE.changed(max_steps=40)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = fit(cohort, tmp_path, experiment)
    assert torch.rand(1) == expected
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["loss"].tail(5).mean() < history["loss"].head(5).mean()
    assert np.isfinite(history["val_psnr"]).all()
    assert history["wait_share"].between(0, 1).all()
    assert trained.load_model(weights, device="cpu").experiment.to_json() == experiment.to_json()


def test_a_finished_run_is_kept_and_other_settings_replace_it(cohort, tmp_path):
    weights = fit(cohort, tmp_path)
    written = weights.stat().st_mtime_ns
    assert fit(cohort, tmp_path, seed=np.int64(0)).stat().st_mtime_ns == written
    assert fit(cohort, tmp_path, seed=1).stat().st_mtime_ns > written


def test_weights_load_without_running_code_and_have_plain_names(cohort, tmp_path):
    state = load_file(fit(cohort, tmp_path))
    assert "first.weight" in state and not any("module." in name for name in state)


def test_training_without_validation_rows_works(cohort, tmp_path):
    subjects = data.read_manifest(cohort, "train")
    training.train(SMOKE, subjects, [], tmp_path, device="cpu", progress=False)
    assert pd.read_csv(tmp_path / "history.csv")["val_psnr"].isna().all()


def test_patches_larger_than_the_scan_are_padded(cohort, tmp_path):
    fit(cohort, tmp_path, SMOKE.changed(patch_size=48, max_steps=1))
    assert (tmp_path / "model.safetensors").is_file()


def test_bad_input_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="train"):
        training.train(SMOKE, [], [], tmp_path)
    with pytest.raises(InputError, match="device"):
        training.train(SMOKE, data.read_manifest(cohort, "train"), [], tmp_path, device="cuda:99")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fit(cohort, tmp_path / "file" / "run")


def test_a_damaged_checkpoint_is_named(cohort, tmp_path):
    with atomic(tmp_path / "checkpoint.pt") as temporary:
        temporary.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt.*delete it"):
        fit(cohort, tmp_path)


QUICK = systems.get("recnn_x2", "smoke")


def put(path, seed=0, size=40):
    data = np.random.default_rng(seed).random((size,) * 3, np.float32)
    save_scan(Volume(1000 * data, np.eye(4)), path)


@pytest.fixture
def two(tmp_path):
    """A folder with ``m.csv`` of two uncompressed scans, which stay as large whatever is in them."""
    for seed, name in enumerate("ab"):
        put(tmp_path / f"{name}.nii", seed)
    (tmp_path / "m.csv").write_text("subject,split,t1\na,train,a.nii\nb,val,b.nii\n")
    return tmp_path


def quick(folder, run="run", experiment=QUICK, **options):
    return fit(folder / "m.csv", folder / run, experiment, **options)


def interrupted(two, kill, **options):
    undo = kill(3)
    with pytest.raises(Killed):
        quick(two, **options)
    undo()
    return two / "run" / "checkpoint.pt"


def test_replaced_scans_of_the_same_size_are_other_data(two, capsys):
    first = quick(two)
    old, history = first.read_bytes(), (two / "run" / "history.csv").read_bytes()
    put(two / "a.nii", seed=7)
    again = quick(two)
    assert state_hash(load_weights(again)) == state_hash(load_weights(quick(two, "elsewhere")))
    (kept,) = (two / "run").glob("model-*.safetensors")
    assert kept.read_bytes() == old and again.read_bytes() != old
    (kept_history,) = (two / "run").glob("history-*.csv")
    assert kept_history.read_bytes() == history
    lines = capsys.readouterr().err.splitlines()
    assert sum(kept.name in line and "train a t1" in line for line in lines) == 1
    put(two / "b.nii", seed=8)  # the validation's scan decides what history.csv says
    quick(two)
    assert len(list((two / "run").glob("history-*"))) == 2


def test_names_and_every_column_that_is_read_tell_runs_apart(two):
    (two / "m.csv").write_text(
        "subject,split,t1,lr,mask\na,train,a.nii,lr.nii,m.nii\nb,val,b.nii,,\nc,val,a.nii,,\n"
    )
    for name, seed in (("lr", 3), ("m", 4)):
        put(two / f"{name}.nii", seed)
    free = systems.get("recnn_free", "smoke")
    first = quick(two, experiment=free).read_bytes()
    put(two / "m.nii", 5)  # which training never reads
    assert quick(two, experiment=free).read_bytes() == first
    put(two / "lr.nii", 6)
    second = quick(two, experiment=free).read_bytes()
    assert second != first
    assert read_metadata(two / "run" / "model.safetensors")["train"]["a"].keys() == {"t1", "lr"}
    (two / "m.csv").write_text("subject,split,t1,lr\nz,train,a.nii,lr.nii\nb,val,b.nii,\n")
    assert quick(two, experiment=free).read_bytes() != second
    twice = data.read_manifest(two / "m.csv", "train") * 2
    with pytest.raises(InputError, match="two subjects are called z"):
        training.train(QUICK.changed(n_train=2), twice, [], two / "run", device="cpu")


@pytest.mark.parametrize("change", ["data", "seed", "number", "version", "loss"])
def test_a_checkpoint_of_another_run_is_left_alone_and_the_line_says_what_differs(
    two, kill, monkeypatch, change
):
    checkpoint = interrupted(two, kill)
    before, options = checkpoint.read_bytes(), {}
    if change == "data":
        put(two / "a.nii", seed=7)
        said = "train a t1"
    elif change == "seed":
        options, said = {"seed": 1}, "seed 0 -> 1"
    elif change == "number":
        options, said = {"experiment": QUICK.changed(max_steps=8)}, "training max_steps 4 -> 8"
    elif change == "loss":
        other = {**paths.sources(), "training/losses.py": "0" * 64}
        monkeypatch.setattr(training, "sources", lambda: other)
        said = "source training/losses.py"
    else:
        monkeypatch.setattr(training, "RESULTS_VERSION", paths.RESULTS_VERSION + 1)
        said = f"results_version {paths.RESULTS_VERSION} -> {paths.RESULTS_VERSION + 1}"
    with pytest.raises(
        InputError, match=rf"checkpoint\.pt is another run's: {said}.*--restart"
    ) as caught:
        quick(two, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert checkpoint.read_bytes() == before
    again = quick(two, restart=True, **options)
    (kept,) = again.parent.glob("checkpoint-*.pt")
    assert kept.read_bytes() == before and not checkpoint.exists()
    assert again.read_bytes() == quick(two, "whole", **options).read_bytes()


def test_a_checkpoint_of_another_form_is_refused_in_one_line_and_still_there(two, kill):
    checkpoint = interrupted(two, kill)
    state = torch.load(checkpoint, weights_only=True)
    state["identity"] = {
        "experiment": QUICK.to_json(), "seed": "0", "source": "077a9805cb1813f1", "data": "a:256352,b:256352",
        "store": "", "start": ",,",
    }  # fmt: skip
    torch.save(state, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt is another run's.*--restart"):
        quick(two)
    assert checkpoint.read_bytes() == before
    assert (
        quick(two, restart=True).is_file() and len(list((two / "run").glob("checkpoint-*.pt"))) == 1
    )


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "other", "list"])
def test_a_checkpoint_of_another_form_is_one_line_and_still_there(two, kill, damage):
    checkpoint = interrupted(two, kill)
    if damage in ("other", "list"):
        torch.save({"step": 3} if damage == "other" else [torch.zeros(2)], checkpoint)
    else:
        content = checkpoint.read_bytes()
        checkpoint.write_bytes(
            {"text": b"not a checkpoint", "empty": b"", "cut": content[: len(content) // 2]}[damage]
        )
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt.*--restart") as caught:
        quick(two)
    assert "\n" not in str(caught.value) and checkpoint.read_bytes() == before


def test_what_experiments_did_not_have_counts_as_its_default():
    ours = json.loads(QUICK.to_json())
    run = Identity(
        {"experiment": json.dumps(ours), "seed": 0, "results_version": 1},
        renew=lambda text: systems.from_json(text).to_json(),
    )
    del ours["training"]["loss_crop"]
    old = {**run.facts, "experiment": json.dumps(ours)}
    assert run.difference(old) == ""
    assert run.difference({**old, "seed": 3}) == "seed 3 -> 0"
    del ours["network"]["model_args"]["kernel"]
    old["experiment"] = json.dumps(ours)
    assert run.difference(old) == "network model_args kernel none -> 3"


def test_two_trainings_in_one_folder_do_not_take_each_other_s_checkpoint(two, kill, monkeypatch):
    checkpoint, step = two / "run" / "checkpoint.pt", Supervised.step
    other = interrupted(two, kill, seed=1).rename(two / "other.pt")
    meanwhile = []

    def disturbed(self, players, index, *batch):
        if index == 2:
            meanwhile[0](checkpoint)
        return step(self, players, index, *batch)

    monkeypatch.setattr(Supervised, "step", disturbed)
    meanwhile[:] = [lambda path: shutil.copy(other, path)]
    with pytest.raises(InputError, match=r"checkpoint\.pt is another run's: seed 1 -> 0"):
        quick(two)
    assert checkpoint.read_bytes() == other.read_bytes()
    checkpoint.unlink()
    meanwhile[:] = [lambda path: path.unlink()]  # a user who tidies up stops nothing
    assert quick(two).is_file()
    meanwhile[:] = [lambda path: path.write_bytes(path.read_bytes())]  # nor does a copy of its own
    assert quick(two, seed=2).is_file() and not checkpoint.exists()


def test_a_run_that_was_stopped_before_it_removed_its_checkpoint_is_finished(two, kill):
    kept = interrupted(two, kill).rename(two / "kept.pt")
    quick(two)
    checkpoint = kept.rename(two / "run" / "checkpoint.pt")
    quick(two)
    assert not checkpoint.exists() and quick(two, seed=1).is_file()


@contextlib.contextmanager
def full_disk(most):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(two, kill):
    experiment = QUICK.changed(max_steps=6)
    checkpoint = interrupted(two, kill, experiment=experiment, checkpoint_every=1)
    before = checkpoint.read_bytes()
    for most, every, name in (
        (len(before) // 2, 1, "checkpoint"),
        (5_000, 100, "model"),
        (20, 100, "history"),
    ):
        with (
            full_disk(most),
            pytest.raises(InputError, match=rf"cannot write .*{name}\.") as caught,
        ):
            quick(two, experiment=experiment, checkpoint_every=every)
        assert "\n" not in str(caught.value)
        assert checkpoint.read_bytes() == before and not list(checkpoint.parent.glob(".*"))
    assert (
        quick(two, experiment=experiment).read_bytes()
        == quick(two, "whole", experiment).read_bytes()
    )


def poisoned(monkeypatch, game, part, when=2):
    """From a step on something of a training is not finite, as after a gradient that overflowed."""
    step = game.step

    def spoilt(self, players, index, *batch):
        terms = step(self, players, index, *batch)
        if index >= when:
            if part == "loss":
                return {**terms, "loss": terms["loss"] * torch.nan}
            network = players.networks["critic" if part == "critic" else "generator"]
            if part == "optimizer":
                next(iter(players.optimizers["generator"].state.values()))["exp_avg_sq"].view(-1)[
                    0
                ] = torch.inf
            elif part == "buffer":
                next(b for b in network.buffers() if b.is_floating_point())[0] = torch.nan
            else:
                with torch.no_grad():
                    next(network.parameters()).view(-1)[0] = torch.inf
        return terms

    monkeypatch.setattr(game, "step", spoilt)


@pytest.mark.parametrize(
    "part, name",
    [("loss", "recnn_x2"), ("weight", "recnn_x2"), ("optimizer", "recnn_x2"), ("buffer", "mdcsrn_res"),
     ("critic", "srgan3d_x2")],
)  # fmt: skip
def test_what_is_not_finite_is_never_saved(two, monkeypatch, part, name):
    experiment = systems.get(name, "smoke").changed(max_steps=40)  # a row every two steps
    poisoned(monkeypatch, LeastSquares if part == "critic" else Supervised, part)
    with pytest.raises(
        InputError, match=r"diverged at step 3 .*holds the last good step"
    ) as caught:
        quick(two, experiment=experiment, checkpoint_every=1)
    assert "\n" not in str(caught.value) and {"optimizer": "optimizer", "critic": "critic"}.get(
        part, ""
    ) in str(caught.value)
    state = torch.load(two / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert all(
        t.isfinite().all() for network in state["networks"].values() for t in network.values()
    )
    assert sorted(p.name for p in (two / "run").iterdir()) == ["checkpoint.pt"]


def test_a_run_that_diverges_at_its_last_step_leaves_no_weights(two, monkeypatch):
    poisoned(monkeypatch, Supervised, "weight", QUICK.training.max_steps - 1)
    with pytest.raises(InputError, match=f"diverged at step {QUICK.training.max_steps} "):
        quick(two)
    assert not (two / "run" / "model.safetensors").exists()


def test_validation_changes_nothing_of_the_networks():
    experiment = systems.get("srgan_us_critic", "smoke")
    networks = {
        "generator": experiment.network.build(),
        "critic": experiment.game.critic(experiment.network.width, experiment.examples.patch_size),
    }
    networks["generator"].eval()
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in networks.items()}
    side = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    row = validation.validation([(side[:, ::4], side)], experiment.training.loss)(
        networks, torch.device("cpu")
    )
    assert np.isfinite(row["val_gap"]) and row["val_auc"] == (row["val_gap"] > 0)
    for name, network in networks.items():
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items()), name
    assert networks["critic"].training and not networks["generator"].training


@pytest.mark.parametrize(
    "name, processes, told",
    [("cuda:1", 1, [1]), ("cuda:0", 1, [0]), ("cuda", 1, 1), ("cuda", 2, 2), ("cpu", 1, 1), ("cpu:0", 1, 1),
     ("cpu", 3, 3), ("mps", 1, 1), ("mps:0", 1, 1)],
)  # fmt: skip
def test_fabric_is_told_the_gpu_that_was_asked_for(monkeypatch, name, processes, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.fabric_devices(torch.device(name), processes) == told


@pytest.mark.parametrize(
    "name, processes",
    [("cuda:1", 2), ("cuda", 3), ("mps", 2), ("cpu", 0), ("cpu", -1), ("cpu", 1.5)],
)
def test_processes_that_cannot_be_are_refused(monkeypatch, name, processes):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="processes"):
        device.fabric_devices(torch.device(name), processes)


def test_training_goes_to_the_gpu_that_was_asked_for(two, monkeypatch):
    class Asked(Exception):
        pass

    def fabric(**how):
        raise Asked(how["accelerator"], how["devices"])

    monkeypatch.setattr("lightning_fabric.Fabric", fabric)
    monkeypatch.setattr(processes, "choose_device", torch.device)
    subjects = data.read_manifest(two / "m.csv", "train")
    with pytest.raises(Asked, match=r"'cuda', \[1\]"):
        training.train(QUICK, subjects, [], two / "run", device="cuda:1", progress=False)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"loss": "l3"}, "unknown Training loss 'l3'; expected one of l1"),
        ({"optimizer": "adamw"}, "unknown Training optimizer 'adamw'; expected one of adam"),
        ({"schedule": "cos"}, "unknown Training schedule 'cos'; expected one of constant"),
        ({"model": "reccn"}, "unknown model 'reccn'; expected one of"),
        ({"model_args": {"layer": 3}}, "layer"),
        ({"optimizer_args": {"beta": 1}}, "beta"),
        ({"schedule": "inverse", "schedule_args": {"rate": 1, "every": 0}}, "division by zero"),
        ({"schedule": "cyclic", "schedule_args": {"low": -1, "up": 2}}, "learning rates"),
        (
            {"game": Wasserstein(1.0), "patch_size": (9, 9, 8)},
            "the critic does not take its settings",
        ),
    ],
)
def test_what_an_experiment_names_is_looked_up_before_anything_is_written(two, change, said):
    with pytest.raises(InputError, match=said):
        quick(two, experiment=QUICK.changed(**change))
    assert not (two / "run").exists()


@pytest.mark.parametrize(
    "options", [{"seed": -1}, {"seed": 0.5}, {"checkpoint_every": 0}, {"checkpoint_every": -2}]
)
def test_mistyped_numbers_of_a_run_are_refused(two, options):
    with pytest.raises(InputError, match=next(iter(options))):
        quick(two, **options)
    assert not (two / "run").exists()


def test_training_leaves_its_host_as_it_was(two):
    def state():
        return {
            "environment": dict(os.environ), "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
            "torch": torch.random.get_rng_state().tolist(), "numpy": str(np.random.get_state()),
            "python": random.getstate(), "errors": np.geterr(), "warnings": list(warnings.filters),
            "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], "tasks": str(TASKS),
            "level": logging.getLogger().level, "precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(), "threads alive": threading.active_count(),
        }  # fmt: skip

    before = state()
    quick(two)
    assert state() == before


def test_importing_the_package_sets_no_environment_variable():
    code = "import os; b = dict(os.environ); import srlib.systems.training, srlib.systems.trained, srlib.core.device; assert dict(os.environ) == b"
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_command_records_its_run_in_the_place_where_notebooks_look(two, monkeypatch):
    monkeypatch.setenv("SRLIB_RESULTS", str(two / "results"))
    words = [
        "train",
        "recnn_x2",
        "--profile",
        "smoke",
        "--cohort",
        str(two / "m.csv"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    weights = result.stdout.strip()
    recorded = results.read_runs(paths.results_dir("smoke", two / "m.csv"))
    assert list(recorded["experiment"]) == ["recnn_x2"] and list(recorded["checkpoint_sha256"]) == [
        paths.sha256(weights)
    ]
    assert recorded["run_id"][0] == os.path.basename(os.path.dirname(weights))
    aside = CliRunner().invoke(main, [*words, "--out", str(two / "own")])
    assert aside.exit_code == 0
    pd.testing.assert_frame_equal(
        results.read_runs(paths.results_dir("smoke", two / "m.csv")), recorded
    )
    made = runs.train_all(["recnn_x2"], "smoke", two / "m.csv", device="cpu")
    assert str(made["recnn_x2"]) == weights
    pd.testing.assert_frame_equal(
        results.read_runs(paths.results_dir("smoke", two / "m.csv")), recorded
    )


@pytest.mark.parametrize(
    "words, option",
    [(["srgan_us_critic"], "--start "), (["synthsr_dice", "--start", "a.nii"], "--segmenter"),
     (["srgan_us", "--set", "start_critic=srgan_us_critic"], "--start-critic"), (["recnn_x2", "--start-critic", "a.nii"], "leave out --start-critic")],
)  # fmt: skip
def test_the_command_names_the_option_for_weights_that_are_missing(two, words, option):
    words = [str(two / w) if w == "a.nii" else w for w in words]
    result = CliRunner().invoke(
        main, ["train", *words, "--cohort", str(two / "m.csv"), "--out", str(two / "run")]
    )
    assert result.exit_code == 1 and option in result.stderr and "None" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_bar_shows_the_critic_s_loss_while_the_critic_alone_moves(two, monkeypatch):
    shown, game = [], systems.get("mdcsrn_wgan").game
    monkeypatch.setattr(loop.tqdm, "set_postfix", lambda bar, values, **_: shown.append(values))
    quick(two, experiment=QUICK.changed(game=game, critic_steps=3, max_steps=12))
    assert not any("nan" in str(value) for values in shown for value in values.values())
    critic = [values for values in shown if "loss" not in values]
    assert critic and all("critic_loss" in values for values in critic) and len(critic) < len(shown)


def test_a_finished_training_says_what_it_leaves_out(cohort, tmp_path, capsys):
    train = partial(
        training.train,
        systems.get("recnn_x2", "smoke"),
        data.read_manifest(cohort, "train"),
        [],
        tmp_path,
    )
    train(progress=False)
    capsys.readouterr()
    train(progress=False)
    assert not capsys.readouterr().err
    train(progress=False, restart=True)
    assert "is finished and stays as it is" in capsys.readouterr().err


def test_a_number_of_another_experiment_is_refused(cohort, tmp_path):
    words = ["train", "recnn_x2", "--profile", "smoke", "--cohort", cohort, "--out", tmp_path / "o"]
    words += ["--set", "mdcsrn:training.max_steps=1"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 1 and "mdcsrn is not recnn_x2" in done.stderr
    assert not (tmp_path / "o").exists()
