"""Define SRReCNN3D and SRCNN3D: stacks of 3-D convolutions over an interpolated scan."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from srlib.models.layers import Conv3d, channels_last, precise


class ConvolutionStack(nn.Module):
    """Convolutions on one grid, with ReLU after all but the last.

    They map (B, channels[0], X, Y, Z) to (B, channels[-1], X, Y, Z).
    They are named ``conv1`` to ``convL``, as in the published Caffe files. ``faces`` says what lies
    beyond the scan: 'zeros', or 'replicate' for its outermost voxels. Weights start normal with
    ``stds``, one per layer; biases start at zero.
    """

    residual: ClassVar = False

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        stds: Sequence[float],
        faces: str = "zeros",
    ) -> None:
        super().__init__()
        self.stds = stds
        self.halo = sum(k // 2 for k in kernels)  # voxels an output voxel sees beyond itself
        # feature maps alive at the peak: the network's input, and a layer's input and output;
        # PyTorch on one CPU thread copies the input of a 1x1x1 layer, and the first layer's output
        # may lie in two memory layouts
        live = [2 * channels[1]]
        for index, ((a, b), k) in enumerate(zip(pairwise(channels), kernels, strict=True), 1):
            mode = faces if k > 1 else "zeros"
            self.add_module(f"conv{index}", Conv3d(a, b, k, padding=k // 2, padding_mode=mode))
            live.append(a * (2 if k == 1 else 1) + b)
        self.live_channels = channels[0] + max(live)
        for conv, std in zip(self.children(), stds, strict=True):
            nn.init.normal_(conv.weight, std=std)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        x = channels_last(precise(first, x))  # small differences of large numbers
        for conv in others:
            x = conv(functional.relu(x, inplace=True))
        return x


class ReCNN(ConvolutionStack):
    """(Multi)SRReCNN3D, Pham et al., CMIG 2019.

    888,769 parameters at 10 layers of 64 filters, 3x3x3.
    Channel 0 is the interpolated scan, to which the result is added (``residual``); a second one is
    the high-resolution reference of another contrast. Weights start as in the code that writes the
    training network: normal, std sqrt(2 / (k^3 n)) with n the *input* channels of the layer; biases
    at zero. ``zero_last`` (ours) starts the last layer at zero, so that training starts from the
    interpolated scan.
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 10,
        kernel: int = 3,
        in_channels: int = 1,
        residual: bool = True,
        zero_last: bool = False,
    ) -> None:
        channels = [in_channels, *[width] * (layers - 1), 1]
        stds = [math.sqrt(2) / math.sqrt(n * kernel**3) for n in channels[:-1]]
        stds[-1] *= not zero_last
        super().__init__(channels, [kernel] * layers, stds)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x[:, :1] + y if self.residual else y


class SRCNN3D(ConvolutionStack):
    """SRCNN3D, Pham et al., ISBI 2017: three layers, by default 9-1-5 with 64-32-1 filters.

    The output is the image itself, not a residual.
    Weights start as in the code: normal, std 0.001; biases at zero. Every layer sees the outermost
    voxels repeated beyond the faces, as in the published CPU script (its GPU script repeats those
    of the input only, which differs within 2 voxels of a face).
    """

    def __init__(self, width: int = 64, kernels: Sequence[int] = (9, 1, 5)) -> None:
        super().__init__([1, width, width // 2, 1], kernels, [0.001] * len(kernels), "replicate")
