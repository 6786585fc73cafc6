"""3D-SRGAN: a residual network that upsamples at its end, and its discriminator."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch.nn import functional

from srlib.patches import per_axis
from srlib.paths import InputError

SLOPE = 0.25  # of the generator's leaky ReLUs
# how often a block's filters are alive at its peak: on the grid it comes from, and on the one it goes to
UPSAMPLERS = {"subpixel": (2, 0), "subpixel_nn": (0, 1), "nn_resize": (1, 2)}


class SRGAN3D(nn.Module):
    """Generator of Sanchez & Vilaplana, MIDL 2018: LR grid (B, C, X, Y, Z) to HR grid (B, 1, fX * X, fY * Y, fZ * Z).

    ``factor``: one number or one per axis, of 1, 2, 4, 8. Each doubling is one block of 2 * ``width`` filters for all
    axes that still need it. ``upsampler``: 'subpixel', convolution and pixel shuffle; 'subpixel_nn', transposed
    convolution that starts as a 3^3 convolution with nearest-neighbour upsampling behind it (Aitken et al., 2017);
    'nn_resize', nearest-neighbour upsampling between two convolutions, and tanh at the output. Convolutions start as
    N(0, 0.02); a bias before batch norm has no effect and is left out. Deviation, named and off by default:
    ``residual`` adds the output, which starts at zero and has no tanh, to the interpolated input.
    """

    def __init__(
        self,
        width: int = 32,
        blocks: int = 6,
        factor: int | Sequence[int] = (2, 2, 2),
        upsampler: str = "subpixel",
        residual: bool = False,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.factor, self.residual, self.upsampler = per_axis(factor, "factor"), residual, upsampler
        if not set(self.factor) <= {1, 2, 4, 8}:
            raise InputError(f"factor: expected 1, 2, 4 or 8 per axis, got {factor}")
        if upsampler not in UPSAMPLERS:
            raise InputError(f"unknown upsampler {upsampler!r}; expected one of {', '.join(UPSAMPLERS)}")
        if upsampler == "subpixel" and width % 4:
            raise InputError(f"width: expected a multiple of 4 for the subpixel upsampler, got {width}")
        steps = [tuple(2 if f > done else 1 for f in self.factor) for done in (1, 2, 4) if done < max(self.factor)]
        self.first = nn.Conv3d(in_channels, width, 3, padding=1, bias=False)
        self.first_norm = nn.Sequential(nn.BatchNorm3d(width), nn.LeakyReLU(SLOPE, inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(*_conv_norm(width, width), nn.LeakyReLU(SLOPE, inplace=True), *_conv_norm(width, width))
            for _ in range(blocks)
        )
        self.merge = nn.Sequential(*_conv_norm(width, width))
        self.upsampling, channels, voxels, live = nn.ModuleList(), width, 1, 0
        coarse, fine = UPSAMPLERS[upsampler]
        for step in steps:
            self.upsampling.append(_upsampling(channels, 2 * width, step, upsampler))
            live = max(live, (channels + (coarse + fine * prod(step)) * 2 * width) * voxels)
            channels = 2 * width // (prod(step) if upsampler == "subpixel" else 1)
            voxels *= prod(step)
        # values per LR voxel alive at the peak: the body's, which the allocator may keep, and a block's or the last
        # convolution's with the sum behind it
        self.live_channels = 8 * width + max(live, (channels + 4) * voxels)
        self.last = nn.Conv3d(channels, 1, 3, padding=1)
        _start(self)
        if residual:
            nn.init.zeros_(self.last.weight)
        # LR voxels an output voxel sees beyond the one that it lies in: seen backwards from the last convolution
        reach = [1, 1, 1]
        for step in reversed(steps):
            reach = [-(-(r + (upsampler == "nn_resize")) // s) + 1 for r, s in zip(reach, step, strict=True)]
        self.halo = 2 + 2 * blocks + max(reach)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # a single channel has no memory layout of its own, so the first layer cannot hand it on
        first = self.first_norm(self.first(x).contiguous(memory_format=torch.channels_last_3d))
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


class PixelShuffle3D(nn.Module):
    """Channels to voxels, (B, fX * fY * fZ * C, X, Y, Z) to (B, C, fX * X, fY * Y, fZ * Z), any factor per axis.

    Channel ((a * fY + b) * fZ + c) * C + k becomes map k at sub-voxel (a, b, c): the code's order but for its x and y.
    """

    def __init__(self, factor: Sequence[int]) -> None:
        super().__init__()
        self.factor = tuple(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, *shape = x.shape
        x = x.movedim(1, -1).unflatten(-1, (*self.factor, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(batch, *(n * f for n, f in zip(shape, self.factor, strict=True)), -1).movedim(-1, 1)


def interpolate(x: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """Cubic interpolation (Keys, a = -1/2) of (B, C, X, Y, Z) to (B, C, fX * X, fY * Y, fZ * Z), centre-aligned. Ours.

    PyTorch has it as its anti-aliased bicubic mode, which smooths only when the grid gets coarser. The other mode
    (a = -3/4) bends a ramp by 0.05 LR voxels.
    """
    batch, channels, n, *_ = x.shape
    nx, ny, nz = (n * f for n, f in zip(x.shape[2:], factor, strict=True))
    planes = functional.interpolate(x.flatten(0, 1), size=(ny, nz), mode="bicubic", antialias=True)
    rows = planes.reshape(batch * channels, 1, n, ny * nz)
    y = functional.interpolate(rows, size=(nx, ny * nz), mode="bicubic", antialias=True)
    return y.view(batch, channels, nx, ny, nz)


class Discriminator3D(nn.Module):
    """Discriminator of Sanchez & Vilaplana, MIDL 2018: scores patches, (B, 1, X, Y, Z) to (B,).

    The parameters depend on the ``patch_size`` (one number or one per axis), which may be any: an axis of two voxels
    is not halved again (ours). Batch norm always uses the batch at hand, as the code does in training; real and
    generated patches are to be scored apart. The dense layers start as PyTorch's do (ours; the code's start, normal
    with std 0.1, gives scores of some tens).
    """

    def __init__(self, width: int = 32, patch_size: int | Sequence[int] = (128, 128, 92), slope: float = 0.3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(1, width, 3, padding=1), nn.LeakyReLU(slope, inplace=True)]
        channels, size = width, per_axis(patch_size)
        for maps, halve in ((1, True), (2, False), (2, True), (4, False), (4, True), (8, False), (8, True)):
            stride = tuple(2 if halve and n > 2 else 1 for n in size)
            layers += [*_conv_norm(channels, maps * width, stride, track=False), nn.LeakyReLU(slope, inplace=True)]
            channels, size = maps * width, tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
        self.features = nn.Sequential(*layers)
        dense = nn.Linear(channels * prod(size), 32 * width)
        self.score = nn.Sequential(dense, nn.LeakyReLU(slope), nn.Linear(32 * width, 1))
        _start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.features(x).flatten(1))[:, 0]


def _conv_norm(channels: int, maps: int, stride: int | tuple[int, ...] = 1, track: bool = True) -> list[nn.Module]:
    conv = nn.Conv3d(channels, maps, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm3d(maps, track_running_stats=track)]


def _upsampling(channels: int, filters: int, factor: tuple[int, ...], kind: str) -> nn.Sequential:
    """One block: twice as fine along each axis whose ``factor`` is 2, as fine as before where it is 1."""
    leaky = nn.LeakyReLU(SLOPE, inplace=True)
    if kind == "subpixel_nn":
        return nn.Sequential(nn.ConvTranspose3d(channels, filters, [3 * f for f in factor], factor, factor), leaky)
    conv = nn.Conv3d(channels, filters, 3, padding=1)
    if kind == "subpixel":
        return nn.Sequential(conv, leaky, PixelShuffle3D(factor))
    smooth = nn.Conv3d(filters, filters, 3, padding=1)
    return nn.Sequential(conv, leaky, nn.Upsample(scale_factor=factor), smooth, leaky)


@torch.no_grad()
def _start(network: nn.Module) -> None:
    """Convolutions N(0, 0.02), biases zero; a kernel of 6 is one of 3 with each weight twice."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            kernel = 0.02 * torch.randn(*module.weight.shape[:2], 3, 3, 3)
            for axis in (2, 3, 4):
                kernel = kernel.repeat_interleave(module.weight.shape[axis] // 3, axis)
            module.weight.copy_(kernel)
            if module.bias is not None:
                module.bias.zero_()
