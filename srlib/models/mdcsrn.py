"""Define mDCSRN, the multi-level densely connected super-resolution network, and its critic."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from srlib.models.layers import Conv3d, Judge, channels_last, zero


class DenseUnit(nn.Module):
    """BatchNorm, ELU, 3x3x3 convolution to ``growth`` maps, appended to the input's channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)
        self.conv = Conv3d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv(functional.elu(self.norm(x), inplace=True))
        # joined on the channels-last view, which is several times faster on a CPU
        return torch.cat([x.movedim(1, -1), new.movedim(1, -1)], -1).movedim(-1, 1)


class MDCSRN(nn.Module):
    """Generator of Chen et al., MICCAI 2018, Fig. 1.

    411,648 parameters at growth 16 and 4 blocks of 4 units.
    Maps an interpolated or zero-filled scan to the full-resolution one on the same grid, (B, 1, X,
    Y, Z) to the same shape. Deviation, named and off by default: ``residual`` adds the input to the
    output and starts the last convolution at zero, so that training begins at the input instead of
    having to learn it.
    """

    def __init__(
        self, width: int = 16, blocks: int = 4, units: int = 4, residual: bool = False
    ) -> None:
        super().__init__()
        base, dense = 2 * width, 2 * width + units * width
        self.residual = residual
        self.halo = 1 + blocks * units  # voxels an output voxel sees beyond itself
        # feature maps alive at the peak, in the last unit: the running sums, its input, norm and
        # output
        self.live_channels = (blocks - 1) * base + 16 + 3 * dense - width
        self.first = Conv3d(1, base, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleList(DenseUnit(base + i * width, width) for i in range(units))
            for _ in range(blocks)
        )
        self.compress = nn.ModuleList(
            Conv3d(base + (i + 1) * dense, base, 1, bias=False) for i in range(blocks - 1)
        )
        self.last = Conv3d(base + blocks * dense, 1, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
        if residual:
            zero(self.last)

    def forward(self, x: Tensor) -> Tensor:
        out = channels_last(self.first(x))
        # A 1x1x1 convolution of concatenated features is a sum over the features: each is added to
        # the sums of the convolutions that will read it (all later compressions and the last) and
        # need not be kept.
        heads = [conv.weight.flatten(1) for conv in [*self.compress, self.last]]
        sums: list[Tensor | float] = [0.0] * len(heads)
        read = 0
        for i, block in enumerate([[], *self.blocks]):
            if i > 1:
                out, sums, heads = sums[0].movedim(-1, 1), sums[1:], heads[1:]
            for unit in block:
                out = unit(out)
            stacked = torch.cat([w[:, read : read + out.shape[1]] for w in heads])
            # matrix products with a single or an odd number of columns are slow
            spare = -len(stacked) % 16
            mapped = functional.linear(
                out.movedim(1, -1), functional.pad(stacked, (0, 0, 0, spare))
            )
            *parts, _ = mapped.split([*(len(w) for w in heads), spare], dim=-1)
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
            read += out.shape[1]
        y = sums[0].movedim(-1, 1)
        return x + y if self.residual else y


class Critic(Judge):
    """Critic of Chen et al., MICCAI 2018, Fig. 1.

    31,155,777 parameters at width 64 and patches of 64^3.
    Scores patches, (B, 1, n, n, n) to (B,). Layer normalisation is over (C, X, Y, Z), so that the
    parameters depend on the ``patch_size`` n, which may be any. ``slope`` of the leaky ReLU: 1, as
    in the replicated code, is the identity. ``std``: weights start at N(0, std), those of the layer
    normalisation at N(1, std), as in the replicated code with 0.02; None: PyTorch's own start.
    """

    def __init__(
        self,
        width: int = 64,
        patch_size: int = 64,
        slope: float = 0.2,
        std: float | None = None,
    ) -> None:
        super().__init__(
            lambda maps, size: nn.LayerNorm([maps, *size]),
            width=width,
            size=[patch_size] * 3,
            slope=slope,
            pool=nn.AdaptiveAvgPool3d(1),
        )
        for name, parameter in self.named_parameters():
            if std is not None and name.endswith("weight"):
                # of the tensors named weight, those of the layer normalisation have four axes
                nn.init.normal_(parameter, float(parameter.ndim == 4), std)
