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
TURNS = {"critic_steps": 2, "per_generator": 1}
ADAM = {"eps": 1e-3}  # by default it makes whole steps of gradients that are rounding errors
JUDGED = {"dice_weight": 0.25}


class Case:
    """A game, its critic, the loss; ``twice``: both halves of a batch are the same patches, so that batch norm sees the same in each."""

    def __init__(self, game, critic=None, loss="l1", shape=(SIZE,) * 3, twice=False, **training):
        self.game, self.shape, self.twice = game, shape, twice
        self.judged = "dice_weight" in training
        self.training = Training(STEPS, BATCH, 1e-3, loss, optimizer_args=ADAM, **training)
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
    "cross-entropy, batch norm": Case(CrossEntropy(0.1), shape=(32, 32, 1), twice=True),
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


if __name__ == "__main__":
    play(*sys.argv[1:])
