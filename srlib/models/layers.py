"""Layers that networks of several systems share."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

# the layers of SRGAN's discriminator after the first: feature maps in widths, and stride 2 or not
LADDER = ((1, True), (2, False), (2, True), (4, False), (4, True), (8, False), (8, True))


class Conv3d(nn.Conv3d):
    """PyTorch's layer, up to 15 times faster on one small volume on a CPU.

    PyTorch leaves oneDNN out where the batch is one and (C, X, Y) has at most 20,480 values. Two
    copies of the volume are twice the work, but done by oneDNN.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batch, channels, *grid = x.shape
        slow = batch == 1 < channels and channels * prod(grid[:2]) <= 20_480
        if x.device.type != "cpu" or not slow:
            return super()._conv_forward(x, weight, bias)
        return super()._conv_forward(x.expand(2, -1, -1, -1, -1), weight, bias)[:1]


class Judge(nn.Module):
    """SRGAN's discriminator (Ledig et al., CVPR 2017, Fig. 4), the base of all critics here.

    It maps patches to scores (B,). ``norm`` makes a normalisation of (maps, size). Patches have the
    ``size`` (voxels per axis), unless a ``pool`` averages the features over the patch. An axis of
    at most ``least`` voxels is not halved. The score has ``hidden`` times the width of inner units.
    """

    def __init__(
        self,
        norm: Callable[[int, tuple[int, ...]], nn.Module],
        *,
        width: int,
        size: Sequence[int],
        slope: float,
        hidden: int = 16,
        pool: nn.Module | None = None,
        least: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if len(size) == 2 else Conv3d
        hidden *= width
        layers: list[nn.Module] = [conv(1, width, 3, padding=1), nn.LeakyReLU(slope, inplace=True)]
        channels = width
        for widths, halve in LADDER:
            maps, stride = widths * width, tuple(2 if halve and n > least else 1 for n in size)
            size = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
            layers.append(conv(channels, maps, 3, stride, padding=1, bias=bias))
            layers += [norm(maps, size), nn.LeakyReLU(slope, inplace=True)]
            channels = maps
        self.features = nn.Sequential(*layers, pool or nn.Identity(), nn.Flatten())
        inputs = channels if pool else channels * prod(size)
        self.score = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LeakyReLU(slope), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x))[:, 0]


class PixelShuffle3D(nn.Module):
    """Channels to voxels: (B, fX * fY * fZ * C, X, Y, Z) to (B, C, fX * X, fY * Y, fZ * Z).

    Channel ((a * fY + b) * fZ + c) * C + k becomes map k at sub-voxel (a, b, c). That is the order
    of 3D-SRGAN's code except for its x and y.
    """

    def __init__(self, factor: Sequence[int]) -> None:
        super().__init__()
        self.factor = tuple(factor)

    def forward(self, x: Tensor) -> Tensor:
        voxels = x.movedim(1, -1).unflatten(-1, (*self.factor, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return voxels.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


def zero(layer: nn.Module) -> None:
    """Start a layer at zero, weights and bias."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def glorot(network: nn.Module) -> None:
    """Start a network as Keras does: weights from Glorot's uniform distribution, biases at zero."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def padded(x: Tensor, multiple: int, mode: str = "constant") -> Tensor:
    """Pad images or volumes at the end of each axis to a multiple of voxels (PyTorch's modes)."""
    missing = [pad for n in reversed(x.shape[2:]) for pad in (0, -n % multiple)]
    return functional.pad(x, missing, mode)


def channels_last(x: Tensor) -> Tensor:
    """A volume with its channels last in memory, where convolutions are fastest.

    A single channel has no memory layout of its own, so a network's first layer cannot hand it on.
    """
    return x.contiguous(memory_format=torch.channels_last_3d)


def precise(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's output in float32, also under autocast to a lower precision."""
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())
