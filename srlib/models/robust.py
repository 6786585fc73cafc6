"""A residual network for every factor: it works on a grid of half the resolution, its input lies on the output's."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

PACK = 2  # voxels per axis that become channels


class RobustSR(nn.Module):
    """Ours: (B, 4, X, Y, Z), an interpolated scan and three maps of 1 / factor per axis, to (B, 1, X, Y, Z), any shape.

    Cubes of 2^3 voxels become channels, so that the body of residual ``blocks`` has an eighth of the voxels (as the
    sub-pixel head of Shi et al., CVPR 2016, on both sides), and come back as a difference to the scan, which starts at
    zero. The first layer's kernels sum to zero and no layer has a bias (Mohan et al., ICLR 2020): a scan times a number
    plus another gives the result times the one plus the other, so that units and window do not matter. What the network is told, the factor (the maps are
    constant), sets a gain for every feature map of each block.
    """

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv3d(PACK**3, width, 3, bias=False)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.last = nn.Conv3d(width, PACK**3, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="linear")
        nn.init.zeros_(self.last.weight)
        self.multiple = PACK  # tiles begin at multiples of it, or other voxels would be packed
        self.halo = PACK * (2 + 2 * blocks)
        self.live_channels = 8 + 4 * width // PACK**3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scan, told = x[:, :1], x[:, 1:, 0, 0, 0]
        shape = scan.shape[2:]
        packed = pack(functional.pad(scan, [p for n in reversed(shape) for p in (0, -n % PACK)]))
        weight = self.first.weight - self.first.weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        y = functional.pad(packed, [1] * 6, mode="replicate").contiguous(memory_format=torch.channels_last_3d)
        y = functional.conv3d(y, weight)
        for block in self.blocks:
            y = block(y, told)
        return scan + unpack(self.last(y))[:, :, : shape[0], : shape[1], : shape[2]]


class Told(nn.Module):
    """A network that is told the factor per axis, as one of the scan alone: (B, 1, X, Y, Z) to (B, 1, X, Y, Z)."""

    def __init__(self, network: RobustSR, factor: Sequence[float]) -> None:
        super().__init__()
        self.network, self.halo, self.multiple = network, network.halo, network.multiple
        self.live_channels = network.live_channels
        self.register_buffer("told", 1 / torch.tensor(tuple(factor), dtype=torch.float32)[None, :, None, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([x, self.told.expand(-1, -1, *x.shape[2:])], dim=1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.gain = nn.Linear(3, width)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        gain = self.gain(told)[:, :, None, None, None]
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True) * gain)


def pack(x: torch.Tensor) -> torch.Tensor:
    """Cubes of voxels as channels: (B, 1, 2 X, 2 Y, 2 Z) to (B, 8, X, Y, Z)."""
    batch, _, *shape = x.shape
    x = x.reshape(batch, *(v for n in shape for v in (n // PACK, PACK)))
    return x.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3)


def unpack(x: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack``."""
    batch, _, *shape = x.shape
    x = x.reshape(batch, PACK, PACK, PACK, *shape).permute(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(batch, 1, *(PACK * n for n in shape))
