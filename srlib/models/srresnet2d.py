"""SRResNet and the discriminator of SRGAN for 2-D images, in their forms for ultrasound and CT."""

import math

import torch
from torch import nn
from torch.nn import functional

from srlib.paths import InputError


class SRResNet2D(nn.Module):
    """Generator of Ledig et al., CVPR 2017, Fig. 4, in the forms of the replicated code (``form``), BN and PReLU.

    (B, 1, X, Y) or slice by slice (B, 1, X, Y, N), to the same rank. ``factor`` f is any power of two from 2 on.
    ``isotropic``: (X, Y) to (f X, f Y). ``ultrasound``: (X, Y) to (f X, Y) for beams along the first axis; the
    upsampling convolutions have stride 2 along Y. ``ct``: (X, Y) to (X, Y), by log2(f) steps down before the
    blocks (4 at the published factor 16) and as many up after them; X and Y are reflected to the next multiple
    of f. Output pixels lie where the degradations put them: LR beam i on HR beam f i; isotropic, the same field
    of view.

    Deviations: the code's PReLU has a slope per pixel (46-51 million parameters, one image size), ours per channel;
    at stride 2 ours pads Y before its first row, Keras behind its last. Ours, off by default: ``residual`` adds
    the input, cubically interpolated on the output's grid, and starts the last convolution at zero.
    """

    def __init__(
        self, width: int = 64, blocks: int = 5, factor: int = 4, form: str = "ultrasound", residual: bool = False
    ) -> None:
        super().__init__()
        steps = int(math.log2(factor)) if factor >= 2 else 0
        if form not in ("isotropic", "ultrasound", "ct") or steps == 0 or 2**steps != factor:
            raise InputError(
                f"expected a factor of 2, 4, 8, ... and the form isotropic, ultrasound or ct, got {factor} and {form!r}"
            )
        self.form, self.residual = form, residual
        self.factor = {"isotropic": (factor, factor, 1), "ultrasound": (factor, 1, 1), "ct": (1, 1, 1)}[form]
        multiple, halo = {"isotropic": 1, "ultrasound": 2, "ct": factor}[form], _halo(form, steps, blocks)
        self.multiple = (multiple, multiple, 1)  # where a tile may begin, in LR pixels per axis
        self.halo = (halo, halo, 0)  # LR pixels that an output pixel sees beyond itself; slices are apart
        # feature maps alive at the peak, per LR pixel: the last upsampling step's in several memory layouts
        self.live_channels = 4 * width * math.prod(self.factor)
        self.down, self.body, self.up = nn.Sequential(), nn.Sequential(), nn.Sequential()
        channels = 1
        for _ in range(steps if form == "ct" else 0):
            self.down.extend([nn.Conv2d(channels, width, 3, padding=1), nn.PixelUnshuffle(2), _prelu(4 * width)])
            channels = 4 * width
        first = 3 if form == "ct" else 9
        self.first = nn.Sequential(nn.Conv2d(channels, width, first, padding=first // 2), _prelu(width))
        self.body.extend([ResidualBlock(width) for _ in range(blocks)])
        self.body.extend([nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)])
        stride = (1, 2) if form == "ultrasound" else 1
        for _ in range(steps):
            self.up.extend([nn.Conv2d(width, 4 * width, 3, stride, padding=1), nn.PixelShuffle(2), _prelu(width)])
        self.last = nn.Conv2d(width, 1, 9, padding=4)
        if residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = _slices(x)
        sizes = [n * f for n, f in zip(images.shape[2:], self.factor, strict=False)]
        features = self.first(self.down(self._padded(images))).contiguous(memory_format=torch.channels_last)
        y = self.last(self.up(features + self.body(features)))[..., : sizes[0], : sizes[1]]
        if self.residual:
            y = y + self._interpolated(images)
        return y if x.dim() == 4 else y.unflatten(0, (len(x), -1)).movedim(1, -1)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        if self.form != "ct":
            return x
        missing = [-n % m for n, m in zip(x.shape[2:], self.multiple, strict=False)]
        if any(m >= n for m, n in zip(missing, x.shape[2:], strict=True)):
            raise InputError(f"expected at least {self.multiple[0] // 2 + 1} pixels per axis, got {tuple(x.shape[2:])}")
        return functional.pad(x, (0, missing[1], 0, missing[0]), "reflect")

    def _interpolated(self, x: torch.Tensor) -> torch.Tensor:
        fx, fy, _ = self.factor
        shift = 0.0 if self.form == "ultrasound" else (fx - 1) / 2  # of LR pixel 0's centre, in HR pixels
        return _cubic(_cubic(x, fx, shift).mT, fy, shift).mT


class SRResNet2DRes(nn.Module):
    """Ours, to learn within minutes: SRResNet's first convolution and blocks on the input's grid, plus that input.

    (B, 1, X, Y, N) to (B, 1, f X, Y, N), ``factor`` f, LR column i on HR column f i. The last convolution gives all f
    columns at once (Shi et al., CVPR 2016), as differences to the cubically interpolated input; it starts at zero.
    """

    def __init__(self, width: int = 64, blocks: int = 5, factor: int = 4) -> None:
        super().__init__()
        self.factor, self.live_channels = (factor, 1, 1), 4 * width + 2 * factor
        self.halo = (2 * blocks + 6, 2 * blocks + 6, 0)
        self.first = nn.Sequential(nn.Conv2d(1, width, 9, padding=4), nn.PReLU(width))
        layers = [*(ResidualBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(width))
        self.last = nn.Conv2d(width, factor, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = _slices(x)
        features = self.first(images)
        columns = self.last(features + self.body(features))
        y = columns.transpose(1, 2).flatten(1, 2)[:, None] + _cubic(images, self.factor[0], 0.0)
        return y if x.dim() == 4 else y.unflatten(0, (len(x), -1)).movedim(1, -1)


class ResidualBlock(nn.Module):
    """Convolution, BN, PReLU, convolution, BN, plus the input: (B, width, X, Y) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), _prelu(width),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Discriminator2D(nn.Module):
    """Discriminator of Ledig et al., CVPR 2017, Fig. 4: (B, 1, X, Y) or (B, 1, X, Y, N) to B or B N logits.

    ``shape`` (X, Y) fixes the image size, as in the code (541,564,609 parameters at 512 x 512, batch-norm statistics
    counted). Deviations: without it features are averaged over the image, so that any size will do; logits
    instead of a sigmoid.
    """

    def __init__(self, width: int = 64, shape: tuple[int, int] | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for maps, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            layers += [nn.Conv2d(channels, maps * width, 3, stride, padding=1), nn.BatchNorm2d(maps * width)]
            layers += [nn.LeakyReLU(0.2)]
            channels = maps * width
        self.features = nn.Sequential(*layers, nn.Identity() if shape else nn.AdaptiveAvgPool2d(1), nn.Flatten())
        inputs = channels * math.prod(-(-n // 16) for n in shape or (1, 1))
        self.score = nn.Sequential(nn.Linear(inputs, 16 * width), nn.LeakyReLU(0.2), nn.Linear(16 * width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.features(_slices(x)))[:, 0]


def _prelu(channels: int) -> nn.PReLU:
    return nn.PReLU(channels, init=0.0)  # as in the code


def _slices(x: torch.Tensor) -> torch.Tensor:
    """(B, 1, X, Y, N) as a batch (B N, 1, X, Y) of images; a batch of images as it is."""
    return x if x.dim() == 4 else x.movedim(-1, 1).flatten(0, 1)


def _halo(form: str, steps: int, blocks: int) -> int:
    """Follow every output pixel of a cell back through the layers to the farthest input pixels that it sees."""
    middle, halo = 2 * blocks + (2 if form == "ct" else 5), 0
    for strided in (False, True) if form == "ultrasound" else (False,):  # along X, along Y
        for pixel in range(2**steps):
            low, high = pixel - 4, pixel + 4
            for _ in range(steps):  # a shuffle, then a 3x3 convolution
                low, high = (low // 2 * 2 - 1, high // 2 * 2 + 1) if strided else (low // 2 - 1, high // 2 + 1)
            low, high = low - middle, high + middle
            for _ in range(steps if form == "ct" else 0):
                low, high = 2 * low - 1, 2 * high + 2
            home = pixel if strided or form == "ct" else 0
            halo = max(halo, home - low, high - home)
    return halo


def _cubic(x: torch.Tensor, factor: int, shift: float) -> torch.Tensor:
    """Cubic convolution (Keys, IEEE TASSP 1981) along X, (B, 1, X, Y) to (B, 1, f X, Y), edge pixels repeated beyond.

    Input pixel i lies on output pixel f i + ``shift``.
    """
    place = (torch.arange(factor, device=x.device) - shift) / factor
    d = (place[:, None] - torch.arange(-2, 3, device=x.device)).abs()
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0)).to(x.dtype)
    phases = functional.conv2d(functional.pad(x, (0, 0, 2, 2), "replicate"), weights[:, None, :, None])
    return phases.transpose(1, 2).flatten(1, 2)[:, None]
