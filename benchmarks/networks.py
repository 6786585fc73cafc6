"""Whole networks on whole heads in bfloat16 against float32, and a filter as a product."""

from functools import partial

import numpy as np
import torch
from common import interleaved, main, row
from torch.nn import functional

from srlib.core.device import choose_device, layout
from srlib.inference.tiles import run_tiled
from srlib.models.recnn import ReCNN
from srlib.models.robust import REACH, RobustSR
from srlib.models.unet3d import UNet3D

HEADS = {
    "recnn 64 filters": (ReCNN(), (197, 233, 189)),
    "unet3d 24 features": (UNet3D(24, residual_channel=0, zero_start=False), (192, 224, 192)),
}


@torch.inference_mode()
def by_convolution(scan: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """A filter (taps) per axis (3, taps), added to the scan (1, 1, X, Y, Z) by convolutions."""
    for axis in range(3):
        reach = [REACH if a == axis else 0 for a in range(3)]
        kernel = kernels[axis].view(1, 1, *(2 * r + 1 for r in reach))
        around = functional.pad(scan, [r for r in reach[::-1] for _ in "ab"], mode="replicate")
        scan = scan + functional.conv3d(around, kernel)
    return scan


def run() -> None:
    """Each head once per precision, then the shipped network's three filters."""
    device, rng = choose_device(), np.random.default_rng(0)
    for name, (network, shape) in HEADS.items():
        network = network.eval().requires_grad_(False).to(device, memory_format=layout(network))
        calls = [
            partial(run_tiled, network, rng.random(shape, np.float32), 6.0, precision=precision)
            for precision in ("bf16", "32")
        ]
        seconds = interleaved(*calls, repeats=1, warm=False, device=device)
        what = f"{name}, {'x'.join(map(str, shape))}, ours_bf16"
        row("networks", what, "ours_32", seconds, precision="bf16", device=device)
    network, scan = RobustSR().to(device), torch.rand(1, 1, 197, 233, 189, device=device)
    torch.nn.init.normal_(network.filters[-1].bias, 0, 0.05)
    facts = torch.zeros(1, 3, 5, device=device)
    with torch.inference_mode():
        taps = network.filters(torch.zeros(3, 10, device=device))
        kernels = torch.cat([taps.flip(1), -2 * taps.sum(1, keepdim=True), taps], dim=1)
        ours = partial(torch.inference_mode()(network._filtered), scan, facts)
        peer = partial(by_convolution, scan, kernels)
        torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
        seconds = interleaved(ours, peer, repeats=3, device=device)
    row("networks", "three filters of robust, 197x233x189", "conv3d", seconds, device=device)


if __name__ == "__main__":
    main(run)
