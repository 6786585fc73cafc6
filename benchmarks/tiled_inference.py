"""Whole-scan inference: our tiles against the bare network on all at once, and MONAI's windows."""

import numpy as np
import torch
from common import interleaved, main, row

from srlib.core.device import choose_device, layout
from srlib.data.cohorts import read_template
from srlib.inference.tiles import run_tiled
from srlib.models.recnn import ReCNN
from srlib.scans.volume import framed

SHAPE, WIDTH = (160, 192, 160), 16  # of the paper's 64 filters, for the time
SMALL_GB = 0.3  # a budget that cuts the scan into tiles


def network() -> torch.nn.Module:
    """SRReCNN3D with its first weights, narrower."""
    torch.manual_seed(0)
    made = ReCNN(width=WIDTH).eval().requires_grad_(False)
    return made.to(choose_device(), memory_format=layout(made))


@torch.inference_mode()
def bare(model: torch.nn.Module, data: np.ndarray) -> np.ndarray:
    """The network called once."""
    x = torch.from_numpy(data)[None, None].to(choose_device())
    return model(x)[0, 0].cpu().numpy()


@torch.inference_mode()
def windows(model: torch.nn.Module, data: np.ndarray) -> np.ndarray:
    """MONAI's sliding windows of 64^3 that overlap by a quarter, at its other defaults."""
    from monai.inferers import sliding_window_inference

    x = torch.from_numpy(data)[None, None].to(choose_device())
    return sliding_window_inference(x, 64, 1, model, overlap=0.25)[0, 0].cpu().numpy()


def run() -> None:
    """The default budget and a small one; the differences from the bare network are printed."""
    device, model = choose_device(), network()
    scan = framed(read_template()[0], SHAPE)
    data = scan.data / scan.data.max()
    calls = {
        "tiles of 3 GB": lambda: run_tiled(model, data),
        f"tiles of {SMALL_GB} GB": lambda: run_tiled(model, data, SMALL_GB),
        "bare network": lambda: bare(model, data),
        "MONAI sliding windows": lambda: windows(model, data),
    }
    made = {name: call() for name, call in calls.items()}
    truth = made.pop("bare network")
    for name, output in made.items():
        difference = np.abs(output - truth) / np.ptp(truth)
        worst, root = difference.max(), np.sqrt(np.square(difference).mean())
        print(f"{name}: {worst:.1e} of the range from the bare network at most, {root:.1e} rms")
        assert "MONAI" in name or worst < 1e-5, name
    repeats = 3 if device.type == "cpu" else 9
    seconds = interleaved(*calls.values(), repeats=repeats, warm=False, device=device)
    default, small, floor, monai = seconds
    what = f"recnn {WIDTH} filters, 160x192x160"
    for kind, ours, peer, its in (
        ("3 GB", default, "bare network", floor),
        (f"{SMALL_GB} GB", small, "bare network", floor),
        ("3 GB", default, "MONAI sliding windows", monai),
        (f"{SMALL_GB} GB", small, "MONAI sliding windows", monai),
    ):
        name = f"{what}, tiles of {kind}"
        row("tiled_inference", name, peer, (ours, its), device=device, packages=("monai",))


if __name__ == "__main__":
    main(run)
