"""Training on examples drawn from label maps: the same whoever makes them, resumed to the bit, judged by a segmenter."""

import gc
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import make_players
from safetensors.torch import load_file
from test_foreign import make, theirs

from srlib import data, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.evaluation import figures, runs
from srlib.models import weights
from srlib.scans.volume import Volume, load_nifti, reorient, save_scan
from srlib.systems import trained, training
from srlib.training import losses, store
from srlib.training.synthetic import Tables

THICK = systems.get("synthsr_thick", "smoke")
REAL = systems.get("synthsr_case1", "smoke")
DICE = systems.get("synthsr_dice", "smoke")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Manifest of three nested balls with a matching scan, two to train on and one to validate, and both tables."""
    folder = tmp_path_factory.mktemp("labels")
    flipped = np.diag([-1.0, 1, 1, 1])  # not the RAS axes that examples have
    rows = ["subject,split,t1,labels"]
    for index, split in enumerate(("train", "train", "val")):
        rng = np.random.default_rng(index)
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 36, 38)), indexing="ij")
        radius = sum((g / 0.9) ** 2 for g in grid) ** 0.5 + 0.1 * np.sin(4 * grid[0] + index)
        labels = np.select([radius < 0.4, radius < 0.7, radius < 1], [10, 2, 4], 0)
        scan = np.select([labels == 10, labels == 2, labels == 4], [500.0, 900, 300], 0)
        save_scan(Volume(labels, flipped), folder / f"labels{index}.nii.gz", dtype=np.uint8)
        save_scan(
            Volume(scan + rng.normal(0, 20, scan.shape), flipped), folder / f"t1{index}.nii.gz"
        )
        rows.append(f"s{index},{split},t1{index}.nii.gz,labels{index}.nii.gz")
    rows.append("unlabelled,train,t10.nii.gz,")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.csv").write_text("label,class\n0,0\n2,3\n4,1\n10,2\n")
    cells = (
        (k, q, v)
        for k, mean in enumerate((0, 80, 140, 220))
        for q, v in (("mean", mean), ("std", 8 * (k > 0)))
    )
    lines = [f"t1,{k},{q},{v},{0.1 * v}" for k, q, v in cells]
    (folder / "priors.csv").write_text(
        "\n".join(["modality,class,quantity,mean,std", *lines]) + "\n"
    )
    return folder


def dataset(folder, experiment=THICK, seed=0, split="train"):
    subjects = data.read_manifest(folder / "m.csv", split)
    return experiment.examples.open(
        subjects, experiment.pairs, seed=seed, tables=read_tables(folder)
    )


def read_tables(folder):
    return THICK.examples.read_tables(folder / "classes.csv", folder / "priors.csv")


def fit(folder, out, experiment=THICK, **options):
    subjects = data.read_manifest(folder / "m.csv")
    split = [[s for s in subjects if s.split == name] for name in ("train", "val")]
    options = {"classes": folder / "classes.csv", "priors": folder / "priors.csv", **options}
    return training.train(experiment, *split, out, progress=False, device="cpu", **options)


@pytest.fixture(scope="session")
def thick(folder, tmp_path_factory):
    return fit(folder, tmp_path_factory.mktemp("thick"))


@pytest.fixture(scope="session")
def segmenter(folder, tmp_path_factory):
    return fit(
        folder, tmp_path_factory.mktemp("segmenter"), systems.get("synthsr_segmenter", "smoke")
    )


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_example_is_a_function_of_seed_and_number(folder):
    ours = dataset(folder)
    assert [s.name for s in ours.subjects] == ["s0", "s1"]  # those with labels
    given, target = ours[5]
    assert given.shape == (2, 32, 32, 32) and target.shape == (1, 32, 32, 32)
    assert given.dtype == target.dtype == np.float32
    assert 0 <= target.min() < 0.1 and 0.5 < target.max() <= 1
    ours[3]
    for other in (ours, dataset(folder), pickle.loads(pickle.dumps(ours))):
        assert same(ours[5], other[5])
    assert not same(ours[5], ours[6])
    assert not same(ours[5], dataset(folder, seed=1)[5])


def test_the_stream_is_the_dataset_whatever_the_number_of_workers(folder):
    ours = dataset(folder)
    before = torch.random.get_rng_state()
    for workers in (0, 1, 2):
        stream = iter(ours.stream(4, workers))
        assert len(multiprocessing.active_children()) == workers
        for index, item in enumerate(islice(stream, 5), 4):
            assert same(item, ours[index])
        stream.close()
        assert not multiprocessing.active_children()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_segmenter_adds_the_classes_and_a_real_scan_follows_its_labels(folder):
    _, (image, classes) = dataset(folder, DICE)[0]
    assert set(np.unique(classes)) <= {0, 1, 2, 3} and len(np.unique(classes)) > 1
    assert not np.array_equal(image, classes)
    _, (image,) = dataset(folder, REAL)[0]
    both = REAL.changed(with_classes=True)
    (again, classes) = dataset(folder, both)[0][1]
    assert np.array_equal(image, again)
    means = [
        image[classes == k].mean() for k in (1, 2, 3)
    ]  # of the scan 300, 500 and 900 where these labels are
    assert means == pytest.approx([1 / 3, 5 / 9, 1], abs=0.12)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["synthsr_thick", "synthsr_gan"])
def test_resume_gives_the_same_weights_to_the_bit(folder, thick, tmp_path, monkeypatch, name):
    experiment = systems.get(name, "smoke").changed(max_steps=5, n_train=2)
    if name == "synthsr_gan":
        experiment = experiment.changed(per_generator=1, extra_every=2, critic_steps=1)
    start = thick if experiment.start else None
    whole = fit(folder, tmp_path / "whole", experiment, start=start)
    game = type(experiment.game)

    def limited(self, players, index, *batch, step=game.step):
        if index == 3:
            raise Killed
        return step(self, players, index, *batch)

    monkeypatch.setattr(game, "step", limited)
    with pytest.raises(Killed):
        fit(folder, tmp_path / "cut", experiment, checkpoint_every=2, start=start)
    assert not multiprocessing.active_children()  # also when training fails
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    cut = fit(folder, tmp_path / "cut", experiment, checkpoint_every=2, start=start)
    for file in sorted(whole.parent.glob("*.safetensors")):
        assert (cut.parent / file.name).read_bytes() == file.read_bytes()
    histories = [pd.read_csv(p.parent / "history.csv") for p in (whole, cut)]
    pd.testing.assert_frame_equal(
        *(h.drop(columns=["patches_per_s", "wait_share"]) for h in histories)
    )
    if name == "synthsr_gan":
        assert {"loss", "adversarial", "gap", "val_gap", "val_psnr"} <= set(histories[0])
        assert np.isfinite(histories[0][["val_psnr", "val_gap"]].to_numpy()).all()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc which processes live")
def test_workers_end_with_a_killed_parent(folder, tmp_path):
    (tmp_path / "ours.pickle").write_bytes(pickle.dumps(dataset(folder)))
    script = (
        "import multiprocessing, pickle, sys, time\n"
        "stream = iter(pickle.load(open(sys.argv[1], 'rb')).stream(0, 2))\n"
        "next(stream)\n"
        "print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(60)\n"
    )
    words = [sys.executable, "-c", script, tmp_path / "ours.pickle"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        workers = parent.stdout.readline().split()
        parent.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while (
        any(Path("/proc", pid, "cmdline").is_file() for pid in workers)
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert not any(Path("/proc", pid, "cmdline").is_file() for pid in workers)


def test_training_leaves_no_process_and_no_thread(folder, tmp_path):
    gc.collect()  # streams that earlier tests left open
    before = set(threading.enumerate())
    fit(folder, tmp_path, THICK.changed(max_steps=1))
    deadline = time.monotonic() + 20
    while left := {t for t in threading.enumerate() if t.name != "tqdm_monitor"} - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_validation_is_of_other_label_maps_and_does_not_depend_on_the_seed(folder, tmp_path):
    once = THICK.changed(max_steps=1, learning_rate=0.0)
    first, other = (
        pd.read_csv(fit(folder, tmp_path / str(s), once, seed=s).parent / "history.csv")
        for s in (0, 7)
    )
    assert (
        first["val_psnr"][0] == other["val_psnr"][0] > 10
    )  # that of the interpolated input, the residual being zero
    assert first["loss"][0] != other["loss"][0]
    subjects = data.read_manifest(folder / "m.csv", "train")
    tables = {"classes": folder / "classes.csv", "priors": folder / "priors.csv"}
    alone = training.train(
        once, subjects, [], tmp_path / "alone", progress=False, device="cpu", **tables
    )
    history = pd.read_csv(alone.parent / "history.csv")
    assert history["val_psnr"].isna().all()
    assert (
        history["loss"][0] == first["loss"][0]
    )  # validation takes nothing from the training's draws


def test_the_classes_decide_the_segmenters_channels(folder, segmenter):
    network, experiment = trained.load_network(segmenter)
    assert experiment.network.model_args["out_channels"] == 4
    assert network.eval()(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 4, 16, 16, 16)
    history = pd.read_csv(segmenter.parent / "history.csv")
    assert history["val_dice"].between(0, 1).all() and "val_psnr" not in history
    figure = figures.curves(
        {"segmenter": history, "thick": history.rename(columns={"val_dice": "val_psnr"})}
    )
    assert [axis.get_ylabel() for axis in figure.axes[1:]] == [
        "validation PSNR (dB, range 1)",
        "validation Dice",
    ]
    assert read_tables(folder).complete(THICK.network) == THICK.network


@pytest.mark.parametrize("name, fall", [("synthsr_segmenter", 0.3), ("synthsr_laplace", 0.1)])
def test_a_single_example_is_learnt(folder, name, fall):
    experiment = systems.get(name, "smoke").changed(max_steps=20, learning_rate=1e-2)
    experiment = experiment.changed(network=read_tables(folder).complete(experiment.network))
    players = make_players(experiment)
    lr, truth = (torch.from_numpy(side)[None] for side in dataset(folder, experiment)[0])
    values = [float(experiment.game.step(players, index, lr, truth)["loss"]) for index in range(20)]
    assert values[-1] < values[0] - fall


def test_the_image_of_a_laplace_output_is_measured(folder, tmp_path):
    still = {
        "max_steps": 1,
        "learning_rate": 0.0,
    }  # its residual is zero, so that it gives the interpolated input
    runs = []
    for name in ("synthsr_thick", "synthsr_laplace"):
        experiment = systems.get(name, "smoke").changed(**still)
        runs.append(fit(folder, tmp_path / name, experiment, start=runs[0] if runs else None))
    first, second = (pd.read_csv(run.parent / "history.csv") for run in runs)
    assert first["val_psnr"][0] == second["val_psnr"][0]


def test_an_uncertainty_is_learnt_behind_a_trained_image(folder, thick, tmp_path):
    """The channel that the start lacks begins at zero: b = 0.02, and the image is what it was."""
    still = systems.get("synthsr_laplace", "smoke").changed(learning_rate=0.0, max_steps=1)
    after = trained.load_network(fit(folder, tmp_path / "laplace", still, start=thick))[0].train()
    before = trained.load_network(thick)[
        0
    ].train()  # by a batch's own statistics, since the moving ones went on
    x = torch.from_numpy(dataset(folder, still)[0][0])[None]
    with torch.no_grad():
        image, s = after(x).chunk(2, dim=1)
        torch.testing.assert_close(image, before(x), atol=1e-5, rtol=0)
    assert torch.count_nonzero(s) == 0


def test_the_segmenter_judges_and_stays_as_it_is(folder, thick, segmenter, tmp_path):
    before = segmenter.read_bytes()
    once = DICE.changed(max_steps=2)
    judged = fit(folder, tmp_path / "judged", once, start=thick, segmenter=segmenter)
    assert segmenter.read_bytes() == before
    assert load_file(judged).keys() == load_file(thick).keys()
    assert {p.name for p in judged.parent.iterdir()} == {"model.safetensors", "history.csv"}
    weightless = once.changed(dice_weight=0.0)
    free = fit(folder, tmp_path / "free", weightless, start=thick, segmenter=segmenter)
    histories = [pd.read_csv(p.parent / "history.csv") for p in (judged, free)]
    first = [h.iloc[0] for h in histories]
    assert first[0]["dice_loss"] == first[1]["dice_loss"] > 0.1
    assert first[0]["loss"] - first[1]["loss"] == pytest.approx(
        0.25 * first[0]["dice_loss"], rel=1e-4
    )
    assert not torch.equal(
        load_file(judged)["last.weight"], load_file(free)["last.weight"]
    )  # its gradient arrives


def players_of(experiment, segmenter=None):
    players = make_players(experiment, segmenter=segmenter)
    with torch.no_grad():
        players.networks["generator"].last.weight.normal_(
            0, 0.1, generator=torch.Generator().manual_seed(0)
        )
    return players


def test_a_frozen_segmenter_has_no_gradient_and_no_statistics_of_its_own(folder, segmenter):
    judge = trained.load_network(segmenter)[0].eval().requires_grad_(False)
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    players = players_of(DICE, judge)
    lr, truth = (torch.from_numpy(side)[None] for side in dataset(folder, DICE)[0])
    sr = players.networks["generator"].train()(lr)
    expected = losses.LOSSES[DICE.training.loss](sr, truth[:, :1]) + 0.25 * losses.dice(
        judge(sr.clamp(0, 1)), truth[:, 1:]
    )
    assert DICE.game.step(players, 0, lr, truth)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.equal(v, judge.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in judge.parameters())
    own = {
        id(p)
        for o in players.optimizers.values()
        for group in o.param_groups
        for p in group["params"]
    }
    assert not own & {id(p) for p in judge.parameters()} and set(players.networks) == {"generator"}


def test_fine_tuning_has_segmenter_and_critic_at_once(folder, segmenter, tmp_path):
    experiment = systems.get("synthsr_finetune", "smoke")
    paper = systems.get("synthsr_finetune")
    assert paper.training.loss_weight == pytest.approx(
        1 - paper.game.weight - paper.training.dice_weight
    )
    moves = [paper.game.who_moves(step) for step in range(122)]
    assert [i for i, who in enumerate(moves) if who == "generator"] == [100, 111]
    judge = trained.load_network(segmenter)[0]
    players = players_of(experiment, judge.eval().requires_grad_(False))
    lr, truth = (torch.from_numpy(side)[None] for side in dataset(folder, experiment)[0])
    with torch.no_grad():
        sr = players.networks["generator"].train()(lr)
        score = players.networks["critic"](sr).mean()
        dice = losses.dice(judge(sr.clamp(0, 1)), truth[:, 1:])
    step = next(i for i in range(30) if experiment.game.who_moves(i) == "generator")
    terms = experiment.game.step(players, step, lr, truth)
    expected = 0.74 * (sr - truth[:, :1]).abs().mean() + 0.25 * dice
    assert float(terms["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(terms["adversarial"]) == pytest.approx(-float(score), rel=1e-4)
    made = fit(folder, tmp_path, experiment, segmenter=segmenter)
    history = pd.read_csv(made.parent / "history.csv")
    assert {"loss", "dice_loss", "adversarial", "gap"} <= set(history)
    assert (made.parent / "critic.safetensors").is_file()


def test_a_keras_file_judges_and_starts_a_training(folder, thick, tmp_path, capsys):
    """Five labels' outputs, two of one class and one of none; as a start it lends all but its last layer."""
    file = make(tmp_path / "seg.h5", theirs(width=4, levels=5, outputs=5), inner="model_weights")
    judged = DICE.changed(max_steps=1, dice_classes=(0, 1, 2, 2, None))
    made = fit(folder, tmp_path / "judged", judged, start=thick, segmenter=file)
    assert pd.read_csv(made.parent / "history.csv")["dice_loss"].between(0, 1).all()
    with pytest.raises(InputError, match=r"5 outputs, and the class of 0 is given.*dice_classes"):
        fit(folder, tmp_path / "none", DICE, start=thick, segmenter=file)
    still = {"training.learning_rate": 0.0, "training.max_steps": 1}
    alone = {"generation.reliability": False, "network.in_channels": 1}
    experiment = systems.get("synthsr_case2", "smoke", {**still, **alone})
    state = load_file(fit(folder, tmp_path / "on", experiment, start=file))
    kernel = theirs(width=4, levels=5, outputs=5)["unet_conv_downarm_0_0"]
    expected = next(iter(kernel.values())).transpose(4, 3, 0, 1, 2)
    np.testing.assert_array_equal(state["down.0.conv1.weight"], expected)
    torch.testing.assert_close(state["last.weight"], experiment.network.build().last.weight.data)


def test_a_published_file_starts_a_training(folder, tmp_path, published_dir):
    file = published_dir / "synthsr_unet_f6_random.h5"
    if not file.is_file():
        pytest.skip(f"{file.name} is not at hand")
    sizes = {"network.width": 6, "network.in_channels": 1, "generation.reliability": False}
    still = {"training.learning_rate": 0.0, "training.max_steps": 1}
    experiment = systems.get("synthsr_case2", "smoke", {**sizes, **still})
    state, given = (
        load_file(fit(folder, tmp_path, experiment, start=file)),
        trained.read_state(file),
    )
    assert all(torch.equal(state[k], v) for k, v in given.items() if k.endswith("weight"))


def test_without_priors_a_training_runs_on_classes_of_any_brightness(folder, tmp_path):
    made = fit(folder, tmp_path, THICK.changed(max_steps=1), priors=None)
    assert pd.read_csv(made.parent / "history.csv")["val_psnr"][0] > 5


@pytest.mark.parametrize("crop", [8, 13, 64])
def test_the_loss_sees_only_the_middle(folder, crop):
    lr, hr = (torch.from_numpy(side)[None] for side in dataset(folder)[0])
    experiment = THICK.changed(loss_crop=crop)
    inside = [slice(max(n - crop, 0) // 2, max(n - crop, 0) // 2 + crop) for n in hr.shape[2:]]
    outside, within = hr.clone(), hr.clone()
    outside[(..., *inside)] += 100
    outside = hr + 100 - (outside - hr)  # 100 at the border, nothing in the middle
    within[(..., *inside)] += 100
    expected, changed, middle = (
        float(THICK.game.step(players_of(experiment), 0, lr, y)["loss"])
        for y in (hr, outside, within)
    )
    assert changed == pytest.approx(expected, rel=1e-4)
    assert middle > 50


def test_the_critic_sees_the_image_alone(folder):
    experiment = systems.get("synthsr_gan", "smoke").changed(
        with_classes=True,
        loss="laplace",
        critic_steps=1,
        model_args={**THICK.network.model_args, "out_channels": 2},
    )
    players = players_of(experiment, torch.nn.Conv3d(1, 4, 1).requires_grad_(False))
    lr, truth = (torch.from_numpy(side)[None] for side in dataset(folder, experiment)[0])
    assert np.isfinite(float(experiment.game.step(players, 0, lr, truth)["critic_loss"]))
    step = next(i for i in range(30) if experiment.game.who_moves(i) == "generator")
    assert {"loss", "dice_loss", "adversarial"} == set(
        experiment.game.step(players, step, lr, truth)
    )


def test_what_an_example_needs_and_what_it_cannot_use_is_named(folder, thick, segmenter, tmp_path):
    with pytest.raises(InputError, match=r"csv/README\.md.*srlib priors"):
        fit(folder, tmp_path, classes=None)
    with pytest.raises(InputError, match="no snapshots"):
        fit(folder, tmp_path, snapshots=True)
    with pytest.raises(InputError, match="on scans"):
        fit(folder, tmp_path, systems.get("mdcsrn_res", "smoke"))
    with pytest.raises(InputError, match="segmenter weights of 'synthsr_segmenter'"):
        fit(folder, tmp_path, DICE, start=thick)
    with pytest.raises(InputError, match="has no segmenter"):
        fit(folder, tmp_path, segmenter=segmenter)
    with pytest.raises(InputError, match="new ones all the time"):
        store.write_store(dataset(folder), tmp_path / "p.h5")
    (tmp_path / "classes.csv").write_text("label,class\n0,0\n2,1\n4,2\n10,3\n")
    with pytest.raises(InputError, match="another table of classes"):
        fit(
            folder,
            tmp_path,
            DICE,
            start=thick,
            segmenter=segmenter,
            classes=tmp_path / "classes.csv",
        )
    (tmp_path / "classes.csv").write_text("label,class\n0,0\n2,3\n10,2\n99,1\n")
    with pytest.raises(
        InputError, match=r"subject s\d, .*labels\d.nii.gz: label 4 \(\d+ voxels\) has no class"
    ):
        fit(folder, tmp_path, classes=tmp_path / "classes.csv")
    subjects = [s for s in data.read_manifest(folder / "m.csv", "train") if "labels" not in s.files]
    with pytest.raises(InputError, match="split train and with labels"):
        training.train(
            THICK,
            subjects,
            [],
            tmp_path,
            classes=folder / "classes.csv",
            priors=folder / "priors.csv",
        )


def test_a_label_map_that_a_worker_cannot_use_ends_training_in_one_line(
    folder, tmp_path, monkeypatch
):
    from srlib.training import synthetic

    monkeypatch.setattr(synthetic, "KEPT", 0)  # none is read before the workers start
    (tmp_path / "classes.csv").write_text("label,class\n0,0\n2,3\n10,2\n99,1\n")
    options = {"classes": tmp_path / "classes.csv", "priors": folder / "priors.csv"}
    with pytest.raises(InputError, match="label 4") as error:
        training.train(
            THICK,
            data.read_manifest(folder / "m.csv", "train"),
            [],
            tmp_path,
            progress=False,
            **options,
        )
    assert len(str(error.value).splitlines()) == 1


def test_a_real_scan_on_another_grid_is_refused(folder, tmp_path):
    subject = data.read_manifest(folder / "m.csv", "train")[0]
    shifted = load_nifti(subject.file("t1"))
    moved = shifted.affine + np.outer([0, 0, 3, 0], [0, 0, 0, 1])
    save_scan(Volume(shifted.data, moved), tmp_path / "t1.nii.gz")
    other = data.Subject("s0", "train", {**subject.files, "t1": tmp_path / "t1.nii.gz"})
    tables = {"classes": folder / "classes.csv", "priors": folder / "priors.csv"}
    with pytest.raises(InputError, match=r"subject s0.*its t1 covers \d+(\.\d)? % of"):
        training.train(REAL, [other], [], tmp_path / "run", progress=False, device="cpu", **tables)
    turned = reorient(
        load_nifti(subject.file("t1")), "SAL"
    )  # other axes of the same grid are the same scan
    save_scan(turned, tmp_path / "turned.nii.gz")
    other = data.Subject("s0", "train", {**subject.files, "t1": tmp_path / "turned.nii.gz"})
    tables = read_tables(folder)
    first, second = (
        REAL.examples.open([s], REAL.pairs, tables=tables)[0] for s in (subject, other)
    )
    assert same(first, second)


def test_the_tables_count_not_their_files(folder, tmp_path):
    ours = read_tables(folder)
    classes, priors = ours
    assert Tables(classes[::-1], priors).hashes() == ours.hashes()
    assert Tables(classes[1:], priors).hashes()["classes"] != ours.hashes()["classes"]
    brighter = {"t1": (priors["t1"][0] + 1, priors["t1"][1])}
    assert Tables(classes, brighter).hashes()["priors"] != ours.hashes()["priors"]


def test_the_command_trains_and_logs_on_label_maps(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))
    words = ["--cohort", folder / "m.csv", "--profile", "smoke", "--device", "cpu"]
    tables = ["--classes", folder / "classes.csv", "--priors", folder / "priors.csv"]

    def srlib(*more):
        return CliRunner().invoke(main, [str(w) for w in ("train", *more, *words)])

    for name in ("synthsr_thick", "synthsr_segmenter"):
        result = srlib(name, *tables, "--tensorboard")
        assert result.exit_code == 0, result.output
    result = srlib(
        "synthsr_dice", *tables, "--start", "synthsr_thick", "--segmenter", "synthsr_segmenter"
    )
    assert result.exit_code == 0, result.output
    folders = sorted((tmp_path / "results").glob("*/checkpoints/*"))
    assert [f.name.split("-")[0] for f in folders] == [
        "synthsr_dice",
        "synthsr_segmenter",
        "synthsr_thick",
    ]
    assert len(list((tmp_path / "results").glob("*/checkpoints/*/tensorboard/events*"))) == 2
    result = srlib("synthsr_thick")
    assert result.exit_code == 1 and "csv/README.md" in result.stderr


def test_a_chain_of_experiments_is_recorded_with_its_classes(folder, tmp_path):
    tables = {"classes": folder / "classes.csv", "priors": folder / "priors.csv"}
    names = ["synthsr_thick", "synthsr_segmenter", "synthsr_dice"]
    found = runs.train_all(
        names, "smoke", folder / "m.csv", device="cpu", folder=tmp_path, **tables
    )
    assert list(found) == names
    recorded = pd.read_csv(tmp_path / "runs.csv").set_index("experiment")
    assert (
        systems.from_json(recorded["config"]["synthsr_segmenter"]).network.model_args[
            "out_channels"
        ]
        == 4
    )
    with pytest.raises(InputError, match="synthsr_dice needs synthsr_segmenter"):
        runs.train_all(
            ["synthsr_thick", "synthsr_dice"], "smoke", folder / "m.csv", folder=tmp_path, **tables
        )


def test_patches_of_several_synthetic_scans_are_mixed_and_the_stream_is_entered_anywhere(folder):
    robust = systems.get("robust_base", "smoke")
    ours = dataset(folder, robust)
    assert same(ours[11], dataset(folder, robust)[11]) and not same(ours[11], ours[12])
    whole = list(islice(ours.stream(0, 0), 150))  # more than a pool of 16 scans
    for start, workers in ((3, 0), (127, 1), (129, 2)):
        stream = iter(ours.stream(start, workers))
        for expected in whole[start : start + 4]:
            assert same(next(stream), expected)
        stream.close()
    descriptions = [tuple(given[1:, 0, 0, 0]) for given, _ in whole[:128]]
    assert (
        len(set(descriptions)) == 16 and len(set(descriptions[:8])) > 3
    )  # 8 patches of each scan, not one after the other


def test_the_recipe_trains_in_two_stages_and_its_network_enhances(folder, tmp_path, noise):
    base = fit(folder, tmp_path / "base", systems.get("robust_base", "smoke"))
    final = fit(folder, tmp_path / "robust", systems.get("robust", "smoke"), start=base)
    again = fit(folder, tmp_path / "again", systems.get("robust", "smoke"), start=base)
    assert final.read_bytes() == again.read_bytes()
    one, other = weights.load_weights(base), weights.load_weights(final)
    mean = {name: value.lerp(other[name], 0.8) for name, value in one.items()}
    weights.save_weights(mean, tmp_path / "mean.safetensors", weights.read_metadata(final))
    model, scan = (
        trained.load_model(tmp_path / "mean.safetensors"),
        Volume(noise((24, 22, 8)), np.diag([1, 1, 3.0, 1])),
    )
    sr = trained.super_resolve(scan, model)
    assert sr.shape == (24, 22, 24) and np.isfinite(sr.data).all()
    with pytest.raises(InputError, match="generator weights of 'robust_base'"):
        fit(folder, tmp_path / "alone", systems.get("robust", "smoke"))
