"""On a CUDA card: training steps and heads of every system, as shares of a matrix product's speed."""

import functools
import sys

import torch
from common import header, interleaved, row
from torch.utils.flop_counter import FlopCounterMode

from srlib import systems
from srlib.core.device import choose_device, layout
from srlib.data.cohorts import read_template
from srlib.scans.patches import per_axis
from srlib.scans.volume import central
from srlib.systems.training import build
from srlib.training.fit import Machine
from srlib.training.games import Players

SYSTEMS = ("mdcsrn", "recnn", "srcnn3d", "srgan3d", "srresnet_us", "synthsr_training", "robust")
CHANNELS = {"robust": 16}  # of the input: the scan and its description
SIDE = 8192  # of the matrices whose product gives the card's speed


def players_of(name: str, profile: str, precision: str, device: torch.device) -> tuple:
    """An experiment of a profile in a precision, and its networks ready to move."""
    experiment = systems.get(name, profile, [f"training.precision={precision}"])
    networks = build(experiment, 0)
    networks["generator"].to(memory_format=layout(networks["generator"]))
    fabric = Machine(str(device)).fabric(precision)
    return experiment, Players(networks, experiment.training, fabric, 0)


def training_step(name: str, profile: str, precision: str, device: torch.device):
    """A step of an experiment's game on random patches, as a function, and what it is."""
    experiment, players = players_of(name, profile, precision, device)
    batch, size = experiment.training.batch_size, per_axis(experiment.examples.patch_size)
    factor = getattr(players.networks["generator"], "factor", (1, 1, 1))
    known = experiment.network.model_args.get("in_channels", 1)
    coarse = (n // f for n, f in zip(size, factor, strict=True))
    lr = torch.rand(batch, CHANNELS.get(name, known), *coarse, device=device)
    hr = torch.rand(batch, 1, *size, device=device)
    step = functools.partial(experiment.game.step, players, 0, lr, hr)
    return step, f"{name} step, {batch} x {'x'.join(map(str, size))}"


def head(name: str, profile: str, device: torch.device, middle: int | None = None):
    """The prediction of the MNI152 T1 under an experiment's task, as a function, and what it is."""
    experiment, players = players_of(name, profile, "32-true", device)
    network = players.networks["generator"].eval().requires_grad_(False)
    template = read_template()[0]
    pair = experiment.pairs.degrade(central(template, middle) if middle else template)
    model = systems.Model(network, experiment)
    what = f"{name} head, {'x'.join(map(str, pair.hr.shape))}"
    return functools.partial(model.predict_pair, pair), what


def flops(call) -> int:
    """Floating-point operations of a call's convolutions and products."""
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def speed(precision: str, device: torch.device, side: int = SIDE) -> float:
    """Operations per second of a large matrix product: bfloat16, or float32 as TF32."""
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    torch.set_float32_matmul_precision("high")  # as convolutions have it by default
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = interleaved(lambda: a @ b, repeats=20, device=device)[0]
    torch.set_float32_matmul_precision("highest")
    return 2 * side**3 / seconds


def run(profile: str = "paper") -> None:
    """A row per system, precision and kind of work; the ratio is the share of the card's speed."""
    device = choose_device("cuda")
    peaks = {kind: speed(kind, device) for kind in ("32-true", "bf16-mixed")}
    print(", ".join(f"{kind}: {peak / 1e12:.0f} TFLOP/s" for kind, peak in peaks.items()))
    steps = [(training_step, (n, profile, kind, device), kind) for n in SYSTEMS for kind in peaks]
    heads = [(head, (name, profile, device), "32-true") for name in SYSTEMS]
    for make, settings, kind in steps + heads:
        call, what = make(*settings)
        ideal = flops(call) / peaks[kind]
        seconds = interleaved(call, repeats=3 if make is head else 10, device=device)[0]
        print(f"{what}: {1 / seconds:.3g} per second")
        peer = "matrix product of as many operations"
        row("gpu", what, peer, (seconds, ideal), precision=kind, device=device)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("gpu.py times a CUDA card, and there is none here")
    header()
    run()
