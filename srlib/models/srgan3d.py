"""Define 3D-SRGAN: a residual network that upsamples at its end, and its discriminator."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from srlib.core.paths import InputError, choose
from srlib.models.layers import Conv3d, Judge, PixelShuffle3D, channels_last, zero
from srlib.scans.patches import per_axis

SLOPE = 0.25  # of the generator's leaky ReLUs
# how often a block's filters are alive at its peak: on the grid it comes from, and on the one it
# goes to
UPSAMPLERS = {"subpixel": (2, 0), "subpixel_nn": (0, 1), "nn_resize": (1, 2)}


class SRGAN3D(nn.Module):
    """Generator of Sanchez & Vilaplana, MIDL 2018.

    It maps the LR grid, (B, C, X, Y, Z), to the HR grid, (B, 1, fX * X, fY * Y, fZ * Z).
    ``factor``: one number or one per axis, of 1, 2, 4, 8. Each doubling is one block of
    ``up_width`` filters (64 in the authors' code; None: 2 * ``width``, ours) for all axes that
    still need it. ``upsampler``: 'subpixel', convolution and pixel shuffle; 'subpixel_nn',
    transposed convolution that starts as a 3^3 convolution with nearest-neighbour upsampling behind
    it (Aitken et al., 2017); 'nn_resize', nearest-neighbour upsampling between two convolutions,
    and tanh at the output. Convolutions start as N(0, 0.02); a bias before batch norm has no effect
    and is left out. Deviation, named and off by default: ``residual`` adds the output, which starts
    at zero and has no tanh, to the interpolated input.
    """

    def __init__(
        self,
        width: int = 32,
        blocks: int = 6,
        factor: int | Sequence[int] = (2, 2, 2),
        upsampler: str = "subpixel",
        residual: bool = False,
        in_channels: int = 1,
        up_width: int | None = None,
    ) -> None:
        super().__init__()
        filters = 2 * width if up_width is None else up_width
        self.factor, self.residual, self.upsampler = per_axis(factor, "factor"), residual, upsampler
        if not set(self.factor) <= {1, 2, 4, 8}:
            raise InputError(f"factor: expected 1, 2, 4 or 8 per axis, got {factor}")
        if upsampler == "subpixel" and filters % 8:
            raise InputError(
                "up_width (else twice the width): expected a multiple of 8 for the subpixel "
                f"upsampler, got {filters}"
            )
        coarse, fine = choose(UPSAMPLERS, upsampler, "upsampler")
        steps = [
            tuple(2 if f > done else 1 for f in self.factor)
            for done in (1, 2, 4)
            if done < max(self.factor)
        ]
        self.first = Conv3d(in_channels, width, 3, padding=1, bias=False)
        self.first_norm = nn.Sequential(nn.BatchNorm3d(width), nn.LeakyReLU(SLOPE, inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *_conv_norm(width, width),
                nn.LeakyReLU(SLOPE, inplace=True),
                *_conv_norm(width, width),
            )
            for _ in range(blocks)
        )
        self.merge = nn.Sequential(*_conv_norm(width, width))
        self.upsampling, channels, voxels, live = nn.ModuleList(), width, 1, 0
        for step in steps:
            self.upsampling.append(_upsampling(channels, filters, step, upsampler))
            live = max(live, (channels + (coarse + fine * math.prod(step)) * filters) * voxels)
            channels = filters // (math.prod(step) if upsampler == "subpixel" else 1)
            voxels *= math.prod(step)
        # values per LR voxel alive at the peak: the body's, which the allocator may keep, and a
        # block's or the last convolution's with the sum behind it
        self.live_channels = 8 * width + max(live, (channels + 4) * voxels)
        self.last = Conv3d(channels, 1, 3, padding=1)
        _start(self)
        if residual:
            zero(self.last)
        # LR voxels an output voxel sees beyond the one that it lies in, seen backwards from the
        # last convolution
        reach, around = 1, 1 if upsampler == "nn_resize" else 0
        for step in reversed(steps):  # the axis that is refined least sees farthest
            reach = math.ceil((reach + around) / min(step)) + 1
        self.halo = 2 + 2 * blocks + reach

    def forward(self, x: Tensor) -> Tensor:
        first = self.first_norm(channels_last(self.first(x)))
        y = first
        for block in self.blocks:
            y = y + block(y)
        y = first + self.merge(y)
        for block in self.upsampling:
            y = block(y)
        y = self.last(y)
        if self.residual:
            return interpolate(x[:, :1], self.factor) + y
        return torch.tanh(y) if self.upsampler == "nn_resize" else y


def interpolate(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Cubic interpolation (Keys, a = -1/2), centre-aligned. Ours.

    It maps (B, C, X, Y, Z) to (B, C, fX * X, fY * Y, fZ * Z).
    PyTorch has it as its anti-aliased bicubic mode, which smooths only when the grid gets coarser.
    The other mode (a = -3/4) bends a ramp by 0.05 LR voxels.
    """
    cubic = partial(functional.interpolate, mode="bicubic", antialias=True)
    planes = cubic(x.flatten(0, 1), scale_factor=tuple(factor[1:]))
    columns = cubic(planes.flatten(2)[:, None], scale_factor=(factor[0], 1))
    return columns.view(*x.shape[:2], -1, *planes.shape[2:])


class Discriminator3D(Judge):
    """Discriminator of Sanchez & Vilaplana, MIDL 2018: scores patches, (B, 1, X, Y, Z) to (B,).

    The parameters depend on the ``patch_size`` (one number or one per axis), which may be any: an
    axis of two voxels is not halved again (ours). Batch norm always uses the batch at hand, as the
    code does in training; real and generated patches are to be scored apart. The dense layers start
    as PyTorch's do (ours; the code's start, normal with std 0.1, gives scores of some tens).
    """

    def __init__(
        self, width: int = 32, patch_size: int | Sequence[int] = (128, 128, 92), slope: float = 0.3
    ) -> None:
        super().__init__(
            lambda maps, size: nn.BatchNorm3d(maps, track_running_stats=False),
            width=width,
            size=per_axis(patch_size),
            slope=slope,
            hidden=32,
            least=2,
            bias=False,
        )
        _start(self)


def _conv_norm(channels: int, maps: int) -> list[nn.Module]:
    return [Conv3d(channels, maps, 3, padding=1, bias=False), nn.BatchNorm3d(maps)]


def _upsampling(channels: int, filters: int, factor: tuple[int, ...], kind: str) -> nn.Sequential:
    """One block that refines each axis by its ``factor``, 1 or 2."""
    leaky = nn.LeakyReLU(SLOPE, inplace=True)
    if kind == "subpixel_nn":
        return nn.Sequential(
            nn.ConvTranspose3d(channels, filters, [3 * f for f in factor], factor, factor), leaky
        )
    conv = Conv3d(channels, filters, 3, padding=1)
    if kind == "subpixel":
        return nn.Sequential(conv, leaky, PixelShuffle3D(factor))
    smooth = Conv3d(filters, filters, 3, padding=1)
    return nn.Sequential(conv, leaky, nn.Upsample(scale_factor=factor), smooth, leaky)


@torch.no_grad()
def _start(network: nn.Module) -> None:
    """Convolutions N(0, 0.02), biases zero; a kernel of 6 is one of 3 with each weight twice."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            kernel = 0.02 * torch.randn(*module.weight.shape[:2], 3, 3, 3)
            module.weight.copy_(functional.interpolate(kernel, size=module.weight.shape[2:]))
            if module.bias is not None:
                module.bias.zero_()
