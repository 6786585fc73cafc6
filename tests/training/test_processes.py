"""Several processes do what one does: every kind of game, any launcher, a lost process, another number of them."""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from srlib import data, systems
from srlib.core.paths import InputError, make_dir
from srlib.models.mdcsrn import Critic
from srlib.models.network import Network, seeded
from srlib.models.srgan3d import Discriminator3D
from srlib.systems import training
from srlib.training.checkpoints import Identity
from srlib.training.fit import fit
from srlib.training.games import (
    CrossEntropy,
    FineTuning,
    LeastSquares,
    Players,
    Supervised,
    Training,
    Wasserstein,
)
from srlib.training.processes import Machine
from srlib.training.streams import ALL, Own

SIZE, BATCH, STEPS = 8, 4, 20
TURNS = {"critic_steps": 2, "per_generator": 1, "extra_every": 2}
ADAM = {"eps": 1e-3}  # by default it makes whole steps of gradients that are rounding errors
JUDGED = {"dice_weight": 0.25}


class Case:
    """A game, its critic, the loss; ``twice``: both halves of a batch are the same patches, so that batch norm sees the same in each."""

    def __init__(self, game, critic=None, loss="l1", shape=(SIZE,) * 3, twice=False, **training):
        self.game, self.shape, self.twice = game, shape, twice
        self.judged = "dice_weight" in training
        self.training = Training(STEPS, BATCH, 1e-4, loss, optimizer_args=ADAM, **training)
        self.make = critic or (lambda: game.critic(2, shape if 1 in shape else SIZE))

    def networks(self):
        generator = Network("recnn", 2, {"layers": 3}).build(0)
        critic = seeded(self.make, 1, "the critic")
        return {"generator": generator} | ({"critic": critic} if critic else {})

    def stream(self, first, own=ALL):
        for i in count(first):
            if (i - first) % own.size in range(own.first, own.first + own.count):
                rng = np.random.default_rng([5, i // BATCH, i % 2 if self.twice else i % BATCH])
                lr = rng.random((1, *self.shape), np.float32)
                hr = np.clip(lr + 0.1 * rng.standard_normal(lr.shape, np.float32), 0, 1)
                classes = rng.integers(0, 3, hr.shape).astype(np.float32)
                yield lr, np.concatenate([hr, classes]) if self.judged else hr

    def segmenter(self):
        return seeded(lambda: nn.Conv3d(1, 3, 3, padding=1), 2, "") if self.judged else None


def layered():
    return Critic(1, SIZE)


CASES = {
    "supervised, sum": Case(Supervised(), loss="mse_gdl_sum"),
    "supervised, Dice": Case(Supervised(), **JUDGED),
    "Wasserstein, penalty": Case(Wasserstein(0.1, **TURNS), layered, **JUDGED),
    "Wasserstein, clip": Case(
        Wasserstein(0.1, **TURNS, constraint="clip", strength=0.05), layered, "l2"
    ),
    "fine-tuning": Case(FineTuning(0.1, **TURNS)),
    "least squares": Case(LeastSquares(0.1), layered, "mse_gdl_sum"),
    "least squares, code": Case(LeastSquares(0.1, "code", batch_sigma=1.0), layered),
    "least squares, batch norm": Case(
        LeastSquares(0.1), lambda: Discriminator3D(2, SIZE), twice=True
    ),
    "cross-entropy": Case(CrossEntropy(0.1, "per_step"), layered),
    "cross-entropy, batch norm": Case(
        CrossEntropy(0.1, critic_args={"epsilon": 0.1}), shape=(32, 32, 1), twice=True
    ),
    "cross-entropy, critic alone": Case(CrossEntropy(0.1, moves="critic"), layered),
}


def play(folder, processes):
    """Train all cases; ``gradients.pt`` holds, by case and network, the gradients of the first update of each."""
    folder, update, gradients = Path(folder), Players.update, {}
    for name, case in CASES.items():
        held = gradients[name] = {}

        def recorded(self, player, index, loss, held=held):
            update(self, player, index, loss)
            parameters = self.networks[player].named_parameters()
            held.setdefault(player, {k: p.grad.clone() for k, p in parameters})

        Players.update = recorded
        fit(
            case.networks(),
            case.stream,
            case.training,
            case.game,
            make_dir(folder / name),
            identity=Identity({"case": name}),
            check=lambda *_: {},
            machine=Machine("cpu", int(processes)),
            segmenter=case.segmenter(),
            progress=False,
        )
    Players.update = update
    torch.save(gradients, folder / "gradients.pt")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folders of all cases in one process, and in two that torchrun starts."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, two, "2"]
    subprocess.run([sys.executable, *words], check=True, env=environment(), timeout=300)
    play(one, 1)
    return one, two


def environment():
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def furthest(ours, theirs):
    """The greatest difference of two sets of tensors, and the greatest value."""
    pairs = [(ours[k].double(), theirs[k].double()) for k in ours]
    return max((a - b).abs().max() for a, b in pairs), max(a.abs().max() for a, _ in pairs)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(played, name):
    """Gradients of each network's first update, relative to the greatest where it is above 1, and weights after 20 steps."""
    gradients = [torch.load(folder / "gradients.pt")[name] for folder in played]
    alone = getattr(CASES[name].game, "moves", "") == "critic"
    assert {*gradients[0]} == ({"critic"} if alone else {*CASES[name].networks()})
    for player, file in (("generator", "model"), ("critic", "critic")):
        if player in gradients[0]:
            difference, top = furthest(*(g[player] for g in gradients))
            files = [folder / name / f"{file}.safetensors" for folder in played]
            moved, _ = furthest(*map(load_file, files))
            print(f"| {name} | {player} | {difference / max(top, 1):.1e} | {moved:.1e} |")
            assert difference < 1e-6 * max(top, 1) and moved < 1e-4
    drop = ["patches_per_s", "wait_share"]
    one, two = (pd.read_csv(f / name / "history.csv").drop(columns=drop) for f in played)
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-4)


CHANGES = ("training.max_steps=60", "training.batch_size=2")


def train_by_two(cohort, out):
    """``srlib train`` in two processes that Fabric starts."""
    changes = (word for change in CHANGES for word in ("--set", change))
    words = ["train", "recnn_x2", "--profile", "smoke", *changes, "--processes", "2"]
    words += ["--device", "cpu", "--cohort", cohort, "--out", out]
    return subprocess.Popen(
        [sys.executable, "-m", "srlib", *map(str, words)],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def children(pid):
    """The processes that a process started, from the fourth field of /proc/PID/stat."""
    stats = {p.parent.name: p.read_text() for p in Path("/proc").glob("[0-9]*/stat")}
    return [int(n) for n, s in stats.items() if s.rpartition(")")[2].split()[1] == str(pid)]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc which processes live")
def test_a_killed_process_ends_all_and_one_goes_on(cohort, tmp_path, capfd):
    """The checkpoint of two processes stays good: what one process makes of it is what one process makes of all."""
    run = tmp_path / "two"
    with train_by_two(cohort, run) as first:
        try:
            until(lambda: (run / "checkpoint.pt").is_file() or first.poll() is not None)
            (second,) = children(first.pid)
            os.kill(second, signal.SIGKILL)
            out, said = first.communicate(timeout=100)
        finally:
            first.kill()
    assert first.returncode and not out and "Traceback" not in said
    (line,) = (s for s in said.splitlines() if "another process" in s)
    assert "goes on from its last checkpoint" in line
    assert not children(first.pid)
    assert [p.name for p in run.iterdir()] == ["checkpoint.pt"]
    experiment = systems.get("recnn_x2", "smoke", CHANGES)
    subjects = [data.read_manifest(cohort, split) for split in ("train", "val")]
    options = {"device": "cpu", "progress": False}
    resumed = training.train(experiment, *subjects, run, **options)
    (line,) = capfd.readouterr().err.splitlines()
    assert "of 2 processes, now 1" in line and "batch norm" in line
    whole = training.train(experiment, *subjects, tmp_path / "one", **options)
    assert capfd.readouterr().err == ""
    assert furthest(load_file(resumed), load_file(whole))[0] < 1e-4


def until(true):
    ends = time.monotonic() + 200
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_batch_that_cannot_be_shared_names_what_can_be(cohort, tmp_path):
    for machine, size, said in (
        (Machine("cpu", 2), 3, "use --processes 1 or 3, or training.batch_size=4"),
        (Machine("cpu", 4), 6, "use --processes 1 or 2 or 3 or 6, or training.batch_size=8"),
        (Machine("cpu", 2, 2), 6, "use --processes 1 or 3, or training.batch_size=8"),
        (Machine("cpu", 1, 2), 3, "use training.batch_size=4"),
    ):
        with pytest.raises(InputError, match=said):
            machine.own(size)
    assert [Machine("cpu", 2, 2).own(8, rank) for rank in (0, 3)] == [Own(8, 0, 2), Own(8, 6, 2)]
    experiment = systems.get("recnn_x2", "smoke").changed(batch_size=3)
    with pytest.raises(InputError, match="a batch of 3 cannot be shared by 2 processes"):
        training.train(experiment, [], [], tmp_path, processes=2, device="cpu")


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "mine"}


@pytest.mark.parametrize(
    "around, machine, said",
    [(TORCHRUN, (2, 2), ""), (TORCHRUN, (2, 1), "torchrun starts 4 processes.*is 2"), (TORCHRUN, (1, 1), "is 1; make"),
     (SLURM, (4, 1), ""), (SLURM, (3, 1), "SLURM starts 4 processes"), ({**SLURM, "SLURM_JOB_NAME": "bash"}, (1, 1), ""),
     ({}, (2, 1), ""), ({"MASTER_ADDR": "a"}, (2, 2), "set MASTER_PORT, NODE_RANK there"),
     (dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"), "0"), (2, 2), "")],
)  # fmt: skip
def test_what_starts_the_processes_must_start_as_many(monkeypatch, around, machine, said):
    for name in {*TORCHRUN, *SLURM, "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    if not said:
        return Machine("cpu", *machine).check()
    with pytest.raises(InputError, match=said) as caught:
        Machine("cpu", *machine).check()
    assert "\n" not in str(caught.value)


if __name__ == "__main__":
    play(*sys.argv[1:])
