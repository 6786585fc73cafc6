"""A training step: a plain mDCSRN as the replicated code writes it, then bfloat16, against ours."""

import functools
import logging

import torch
from common import interleaved, main, row
from gpu import players_of
from peers import Plain, plain_step

from srlib import systems
from srlib.core.device import choose_device, keep_freed_memory

# experiment -> voxels per side and patches, on a CPU; a GPU takes those of the paper
SMALL = {"mdcsrn": (48, 1), "recnn": (21, 16), "synthsr_training": (64, 1)}


def our_step(name: str, precision: str, device: torch.device, size: int, batch: int):
    """One step of an experiment as a function, its patches and its network."""
    experiment, players = players_of(name, "paper", precision, device)
    channels = experiment.network.model_args.get("in_channels", 1)
    lr = torch.rand(batch, channels, *[size] * 3, device=device)
    hr = torch.rand(batch, 1, *[size] * 3, device=device)
    return (
        functools.partial(experiment.game.step, players, 0, lr, hr),
        (lr, hr),
        players.networks["generator"],
    )


def run() -> None:
    """Every row, first ours against the plain network with the same weights and the same output."""
    logging.disable(logging.INFO)  # Fabric tells each use of bfloat16
    device = choose_device()
    for name, small in SMALL.items():
        size, batch = small
        if device.type != "cpu":
            paper = systems.get(name)
            size, batch = paper.examples.patch_size, paper.training.batch_size
        step, patches, network = our_step(name, "32-true", device, size, batch)
        what = f"{name}, {batch} x {size}^3"
        with keep_freed_memory():  # for both: a plain loop without it is slower still
            if name == "mdcsrn":
                plain = Plain().to(device)
                plain.load_state_dict(network.state_dict())
                network.train()
                close = 1e-3 if device.type == "cpu" else 3e-2  # convolutions in TF32
                with torch.no_grad():
                    outputs = network(patches[0]), plain(patches[0])
                torch.testing.assert_close(*outputs, rtol=close, atol=close)
                adam = torch.optim.Adam(plain.parameters(), lr=1e-4)
                peer = functools.partial(plain_step, plain, adam, *patches)
                seconds = interleaved(step, peer, device=device)
                row("training_step", what, "plain PyTorch mDCSRN", seconds, device=device)
            half, *_ = our_step(name, "bf16-mixed", device, size, batch)
            seconds = interleaved(half, step, repeats=3, device=device)
            row(
                "training_step", f"{what}, ours_bf16", "ours_32", seconds, precision="bf16-mixed",
                device=device,
            )  # fmt: skip


if __name__ == "__main__":
    main(run)
