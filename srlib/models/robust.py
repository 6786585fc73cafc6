"""A residual network for every factor: it works on a grid of half the resolution, its input lies on
the output's.
"""

import torch
from torch import nn
from torch.nn import functional

from srlib.models.layers import PixelShuffle3D, channels_last, padded, zero

PACK = 2  # voxels per axis that become channels
TOLD = 5  # numbers per axis that the network is told
REACH = 6  # voxels, of the filters


class RobustSR(nn.Module):
    """Ours: (B, 16, X, Y, Z), an interpolated scan and 15 constant maps, to (B, 1, X, Y, Z), any
    shape.

    What the network is told in the maps (``mixture.told``: of each axis the factor, and what the
    scan itself shows of kernel and noise) chooses a symmetric filter along each axis, and a gain
    for every feature map of the residual network that follows. That one sees cubes of 2^3 voxels as
    channels, so that its ``blocks`` work on an eighth of the voxels (the sub-pixel head of Shi et
    al., CVPR 2016, on both sides). Filters and output start at zero. The first layer's kernels sum
    to zero and no convolution has a bias (Mohan et al., ICLR 2020): a scan times a number plus
    another gives the result times the one plus the other, so that units and window do not matter.
    """

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.filters = _perceptron(2 * TOLD, REACH)
        self.gains = _perceptron(3 * TOLD, (blocks + 1) * width)
        self.first = nn.Conv3d(2 * PACK**3, width, 3, bias=False)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.last = nn.Conv3d(width, PACK**3, 3, padding=1, bias=False)
        self.unpack = PixelShuffle3D([PACK] * 3)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="linear")
        zero(self.last)
        nn.init.ones_(self.gains[-1].bias)
        self.multiple = PACK  # tiles begin at multiples of it, or other voxels would be packed
        self.halo = PACK * (2 + 2 * blocks) + REACH
        self.live_channels = 8 + 4 * width // PACK**3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resolve(x[:, :1], x[:, 1:, 0, 0, 0])

    def resolve(self, scan: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """The same from a scan (B, 1, X, Y, Z) and the maps' values (B, 15)."""
        sharp = self._filtered(scan, told.unflatten(1, (3, TOLD)))
        first, *gains = (
            self.gains(told).unflatten(1, (-1, self.first.out_channels, 1, 1, 1)).unbind(1)
        )
        shape = scan.shape[2:]
        both = torch.cat([sharp, sharp - scan], dim=1)
        packed = pack(padded(both, PACK, "replicate"))
        # of the sharpened scan, and of what was added
        weight = self.first.weight.unflatten(1, (2, -1))
        weight = (weight - weight.mean(dim=(2, 3, 4, 5), keepdim=True)).flatten(1, 2)
        with torch.autocast(scan.device.type, enabled=False):  # small differences of large numbers
            y = channels_last(functional.pad(packed, [1] * 6, mode="replicate"))
            y = functional.conv3d(y, weight) * first.float()
        for block, gain in zip(self.blocks, gains, strict=True):
            y = block(y, gain)
        return sharp + self.unpack(self.last(y))[:, :, : shape[0], : shape[1], : shape[2]]

    def _filtered(self, scan: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """The scan through one filter after the other, each chosen by its axis and by what the
        others are on average.
        """
        taps = self.filters(torch.cat([told, (told.sum(1, keepdim=True) - told) / 2], dim=2))
        kernels = torch.cat([taps.flip(2), -2 * taps.sum(2, keepdim=True), taps], dim=2)
        y = scan.movedim(1, 0).float()
        for axis in range(3):
            reach = [REACH if a == axis else 0 for a in range(3)]
            kernel = kernels[:, axis].float().view(-1, 1, *(2 * r + 1 for r in reach))
            around = functional.pad(
                y, [r for r in reversed(reach) for _ in range(2)], mode="replicate"
            )
            with torch.autocast(y.device.type, enabled=False):
                y = y + functional.conv3d(around, kernel, groups=len(scan))
        return y.movedim(0, 1)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two layers, of which the second starts at zero."""
    last = nn.Linear(64, outputs)
    zero(last)
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), last)


class Told(nn.Module):
    """A network with what it is told of a scan, (15,), as one of the scan alone: (B, 1, X, Y, Z) to
    (B, 1, X, Y, Z).
    """

    def __init__(self, network: RobustSR, told: torch.Tensor) -> None:
        super().__init__()
        self.network, self.halo, self.multiple = network, network.halo, network.multiple
        self.live_channels = network.live_channels
        self.register_buffer("told", told[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.resolve(x, self.told.expand(len(x), -1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="linear")
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)  # or features would grow with every block

    def forward(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True) * gain)


def pack(x: torch.Tensor) -> torch.Tensor:
    """Cubes of voxels as channels: (B, C, 2 X, 2 Y, 2 Z) to (B, 8 C, X, Y, Z)."""
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (-1, PACK))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
