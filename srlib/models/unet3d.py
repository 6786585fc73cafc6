"""Define SynthSR's 3-D U-Net and the critic of its fine-tuning."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from srlib.models.layers import Conv3d, Judge, channels_last, glorot, padded, zero

ACTIVATIONS = {"elu": functional.elu, "relu": functional.relu}


class UNet3D(nn.Module):
    """U-Net of Iglesias et al., NeuroImage 2021.

    It maps (B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z). Two 3^3 convolutions with ELU
    per level, batch norm at its end, ``width`` features that double at each of the ``levels``:
    13,242,049 values with one input channel, moving statistics included. ``convs`` per level, their
    ``kernel`` and ``activation`` and the ``growth`` of the features may be others. Inputs of any
    shape are zero-padded at their end to a multiple of ``multiple`` and cut back (ours).
    ``residual_channel`` adds that input channel to output channel 0; then the last layer starts at
    zero, unless not ``zero_start`` (ours). ``momentum`` is that of the moving statistics, Keras's
    by default. Weights start as in Keras: Glorot uniform.
    """

    def __init__(
        self,
        width: int = 24,
        levels: int = 5,
        in_channels: int = 1,
        out_channels: int = 1,
        residual_channel: int | None = None,
        momentum: float = 0.01,
        zero_start: bool = True,
        convs: int = 2,
        kernel: int = 3,
        growth: float = 2,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self.residual_channel, self.residual = residual_channel, residual_channel is not None
        features = [round(width * growth**level) for level in range(levels)]
        settings = (momentum, convs, kernel, ACTIVATIONS[activation])
        self.down = nn.ModuleList(
            _Level(a, b, *settings)
            for a, b in zip([in_channels, *features[:-1]], features, strict=True)
        )
        # the skip's channels, then those that come from below
        self.up = nn.ModuleList(
            _Level(a + b, a, *settings) for a, b in reversed([*pairwise(features)])
        )
        self.last = nn.Conv3d(width, out_channels, 1)
        # tiles begin at multiples of it, or pooling groups other voxels
        self.multiple = 2 ** (levels - 1)
        # voxels that an output voxel sees beyond itself, at most
        self.halo = convs * (kernel // 2) * (3 * self.multiple - 2) + self.multiple - 1
        # values per voxel alive at the peak: two maps of the width, and what the coarser grids hold
        # (2.2 to 2.4 widths were measured; below 20,480 values (C, X, Y) PyTorch's first
        # convolution takes 27 of its own for each channel)
        self.live_channels = in_channels + 5 * width // 2
        glorot(self)
        if residual_channel is not None and zero_start:
            zero(self.last)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        y = padded(x, self.multiple)
        skips: list[Tensor] = []
        for level in self.down:
            if skips:
                # with its indices it has no detour by float32
                y, _ = functional.max_pool3d(y, 2, return_indices=True)
            y = level.rest(level.conv1(y))
            skips.append(y)
            y = level.norm(y)
        skips.pop()
        for level in self.up:
            y = level.norm(level.rest(_joined(level.conv1, skips.pop(), y)))
        y = self.last(y)[..., : shape[0], : shape[1], : shape[2]]
        if self.residual_channel is not None:
            y = torch.cat([x[:, self.residual_channel, None] + y[:, :1], y[:, 1:]], dim=1)
        return y


class PlainCritic(Judge):
    """Critic of SynthSR's fine-tuning: SRGAN's ladder of convolutions, without normalisation.

    Scores patches, (B, 1, n, n, n) to (B,). It has 32 filters at first in the code. Weights start
    as in Keras.
    """

    def __init__(self, width: int = 32, patch_size: int = 128, slope: float = 0.2) -> None:
        super().__init__(
            lambda maps, size: nn.Identity(),
            width=width,
            size=[patch_size] * 3,
            slope=slope,
        )
        glorot(self)


class _Level(nn.Module):
    """Convolutions, whose output is the skip; batch norm follows for the next level."""

    def __init__(
        self,
        channels: int,
        features: int,
        momentum: float,
        convs: int,
        kernel: int,
        activate: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.convs, self.activate = convs, activate
        for number in range(convs):
            conv = Conv3d(features if number else channels, features, kernel, padding=kernel // 2)
            setattr(self, f"conv{number + 1}", conv)
        self.norm = nn.BatchNorm3d(features, eps=1e-3, momentum=momentum)  # Keras's epsilon

    def rest(self, y: Tensor) -> Tensor:
        """What follows the first convolution."""
        y = self.activate(channels_last(y), inplace=True)
        for number in range(1, self.convs):
            y = self.activate(getattr(self, f"conv{number + 1}")(y), inplace=True)
        return y


def _joined(conv: Conv3d, skip: Tensor, below: Tensor) -> Tensor:
    """Convolve the skip joined with ``below`` at twice its resolution, without upsampling it.

    Along an axis a fine voxel at 2 i sees coarse voxel i - 1 once and i twice, a fine voxel at
    2 i + 1 sees i twice and i + 1 once. That is a transposed convolution by sums of the weights,
    with a third of the work and half of the memory. Other kernels than 3^3 see it upsampled.
    """
    if conv.weight.shape[2] != 3:
        finer = functional.interpolate(below, scale_factor=2)
        return conv(torch.cat([skip, finer], dim=1))
    weight = conv.weight.split([skip.shape[1], below.shape[1]], dim=1)
    y = conv._conv_forward(skip, weight[0], conv.bias)
    del skip
    sums = y.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    kernel = torch.einsum("oixyz,ax,by,cz->ioabc", weight[1], sums, sums, sums)
    return y.add_(functional.conv_transpose3d(below, kernel, stride=2, padding=1))
