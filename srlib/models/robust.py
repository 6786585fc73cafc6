"""Ours: a residual network for every factor, conditioned on a description of the degradation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from srlib.models.layers import PixelShuffle3D, channels_last, padded, precise, zero

PACK = 2  # voxels per axis that become channels
PER_AXIS = 5  # numbers per axis in the description of a degradation
REACH = 6  # voxels, of the filters


class RobustSR(nn.Module):
    """Ours: an interpolated scan and 15 constant maps, (B, 16, X, Y, Z), to (B, 1, X, Y, Z).

    Any shape will do. The maps hold the description of the degradation
    (``conditioning.describe_degradation``). It chooses a symmetric filter along each axis, and a
    gain for every feature map of the residual network that follows. That network sees cubes of 2^3
    voxels as channels, so that its ``blocks`` work on an eighth of the voxels (the sub-pixel head
    of Shi et al., CVPR 2016, on both sides). Filters and output start at zero. The first layer's
    kernels sum to zero and no convolution has a bias (Mohan et al., ICLR 2020): scaling or shifting
    the scan scales or shifts the result.
    """

    residual = True

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.filters = _perceptron(2 * PER_AXIS, REACH)
        self.gains = _perceptron(3 * PER_AXIS, (blocks + 1) * width)
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

    def forward(self, x: Tensor) -> Tensor:
        return self.resolve(x[:, :1], x[:, 1:, 0, 0, 0])

    def resolve(self, scan: Tensor, description: Tensor) -> Tensor:
        """The same from a scan (B, 1, X, Y, Z) and its description (B, 15)."""
        sharp = self._filtered(scan, description.unflatten(1, (3, PER_AXIS)))
        gains = precise(self.gains, description).unflatten(
            1, (-1, self.first.out_channels, 1, 1, 1)
        )
        first, *gains = gains.unbind(1)
        shape = scan.shape[2:]
        both = torch.cat([sharp, sharp - scan], dim=1)
        packed = pack(padded(both, PACK, "replicate"))
        # each part's kernels sum to zero: of the sharpened scan, and of what the filters added
        weight = self.first.weight.unflatten(1, (2, -1))
        weight = (weight - weight.mean(dim=(2, 3, 4, 5), keepdim=True)).flatten(1, 2)
        y = channels_last(functional.pad(packed, [1] * 6, mode="replicate"))
        # small differences of large numbers
        y = precise(lambda y: functional.conv3d(y, weight), y) * first
        for block, gain in zip(self.blocks, gains, strict=True):
            y = block(y, gain)
        return sharp + self.unpack(self.last(y))[:, :, : shape[0], : shape[1], : shape[2]]

    def _filtered(self, scan: Tensor, axes: Tensor) -> Tensor:
        """Filter the scan along each axis in turn.

        The numbers (B, 3, 5) of an axis and the mean of the other axes choose its filter.
        """
        others = (axes.sum(1, keepdim=True) - axes) / 2
        taps = precise(self.filters, torch.cat([axes, others], dim=2))
        kernels = torch.cat([taps.flip(2), -2 * taps.sum(2, keepdim=True), taps], dim=2)
        y = scan[:, 0]
        for axis in range(3):
            y = precise(lambda y, kernel=kernels[:, axis]: _along_first(y, kernel), y)
        return y[:, None]


def _along_first(y: Tensor, kernel: Tensor) -> Tensor:
    """Add what a filter (B, taps) finds along the first axis of (B, X, Y, Z), which becomes the
    last; as one product, which is faster than a convolution of one channel.
    """
    n, reach = y.shape[1], torch.arange(-REACH, REACH + 1, device=y.device)
    seen = (torch.arange(n, device=y.device)[:, None] + reach).clamp(0, n - 1)
    matrix = torch.eye(n, device=y.device).expand(len(y), -1, -1)
    matrix = matrix.scatter_add(2, seen.expand(len(y), -1, -1), kernel[:, None].expand(-1, n, -1))
    return (y.flatten(2).transpose(1, 2) @ matrix.transpose(1, 2)).unflatten(1, y.shape[2:])


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two layers, of which the second starts at zero."""
    last = nn.Linear(64, outputs)
    zero(last)
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), last)


class Conditioned(nn.Module):
    """A network with the description of one scan, (15,): (B, 1, X, Y, Z) to (B, 1, X, Y, Z)."""

    def __init__(self, network: RobustSR, description: Tensor) -> None:
        super().__init__()
        self.network, self.halo, self.multiple = network, network.halo, network.multiple
        self.live_channels = network.live_channels
        self.register_buffer("description", description[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.network.resolve(x, self.description.expand(len(x), -1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="linear")
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)  # or features would grow with every block

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        y = functional.relu(self.conv1(x), inplace=True)
        if len(x) == 1:  # as a gain of the kernels, which are fewer than the voxels
            y = functional.conv3d(y, self.conv2.weight * gain, padding=1)
        else:
            y = self.conv2(y * gain)
        return x + y if x.dtype != y.dtype else y.add_(x)


def pack(x: Tensor) -> Tensor:
    """Cubes of voxels as channels: (B, C, 2 X, 2 Y, 2 Z) to (B, 8 C, X, Y, Z)."""
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (-1, PACK))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
