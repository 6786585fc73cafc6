"""Define SRResNet and SRGAN's discriminator for 2-D images, in forms for ultrasound and CT."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from srlib.core.paths import InputError
from srlib.models.layers import Judge, glorot, padded, zero

STEPS = {2**n: n for n in range(1, 7)}  # factor -> how often the grid is doubled


class SliceNetwork(nn.Module):
    """A network of images (B, 1, X, Y) that also takes volumes (B, 1, X, Y, N) slice by slice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.resolve(_slices(x))
        return y if x.dim() == 4 else y.unflatten(0, (len(x), -1)).movedim(1, -1)


class SRResNet2D(SliceNetwork):
    """Generator of Ledig et al., CVPR 2017, Fig. 4, in the forms of the replicated code (``form``),
    BN and PReLU.

    (B, 1, X, Y) or slice by slice (B, 1, X, Y, N), to the same rank. ``factor`` f is a power of two
    from 2 to 64. ``ultrasound``: (X, Y) to (f X, Y) for beams along the first axis; the upsampling
    convolutions have stride 2 along Y. LR beam i lies on HR beam f i, as the degradation puts it.
    ``ct``: (X, Y) to (X, Y), by log2(f) steps down before the blocks (4 at the published factor 16)
    and as many up after them; X and Y are reflected to the next multiple of f.

    Deviations: the code's PReLU has a slope per pixel (46-51 million parameters, one image size),
    ours per channel; at stride 2 ours pads Y before its first row, Keras behind its last, which is
    the same network for mirrored images. ``momentum`` (of the batch's statistics) and ``epsilon``
    are those of batch norm, 0.01 and 1e-3 in Keras; ``keras_start`` draws weights as ``glorot``.
    Ours, off by default: ``residual`` adds the input, cubically interpolated on the output's grid,
    and starts the last convolution at zero.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 5,
        factor: int = 4,
        form: str = "ultrasound",
        residual: bool = False,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        keras_start: bool = False,
    ) -> None:
        super().__init__()
        if factor not in STEPS or form not in ("ultrasound", "ct"):
            raise InputError(
                f"expected factor 2, 4, 8, ... 64 and form ultrasound or ct, got {factor}, {form!r}"
            )
        self.residual, steps, ct = residual, STEPS[factor], form == "ct"
        self.factor = (1 if ct else factor, 1, 1)
        multiple = factor if ct else 2
        self.multiple = (multiple, multiple, 1)  # where a tile may begin, in LR pixels per axis
        # LR pixels that an output pixel sees beyond itself; slices are apart
        halo = factor * (6 + 2 * blocks) if ct else 9 + 2 * steps + 2 * blocks
        self.halo = (halo, halo, 0)
        # feature maps alive at the peak, per LR pixel: the last upsampling step's in several memory
        # layouts
        self.live_channels = 4 * width * self.factor[0]
        self.down, self.body, self.up = nn.Sequential(), nn.Sequential(), nn.Sequential()
        channels, first = 1, 3 if ct else 9
        for _ in range(steps if ct else 0):
            self.down.extend(
                [nn.Conv2d(channels, width, 3, padding=1), nn.PixelUnshuffle(2), _prelu(4 * width)]
            )
            channels = 4 * width
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, first, padding=first // 2), _prelu(width)
        )
        self.body.extend(
            _body(width, blocks, partial(nn.BatchNorm2d, eps=epsilon, momentum=momentum))
        )
        for _ in range(steps):
            conv = nn.Conv2d(width, 4 * width, 3, 1 if ct else (1, 2), padding=1)
            self.up.extend([conv, nn.PixelShuffle(2), _prelu(width)])
        self.last = nn.Conv2d(width, 1, 9, padding=4)
        if keras_start:
            glorot(self)
        if residual:
            zero(self.last)

    def resolve(self, images: Tensor) -> Tensor:
        """Images (B, 1, X, Y) to (B, 1, X', Y'); InputError for those too small to be reflected."""
        x, y = images.shape[2:]
        whole = images
        if self.down:
            least = self.multiple[0] // 2 + 1
            if min(x, y) < least:
                raise InputError(f"expected at least {least} pixels per axis, got {(x, y)}")
            whole = padded(images, self.multiple[0], "reflect")
        features = self.first(self.down(whole)).contiguous(memory_format=torch.channels_last)
        sr = self.last(self.up(features + self.body(features)))[..., : x * self.factor[0], :y]
        return sr + _cubic(images, self.factor[0]) if self.residual else sr


class SRResNet2DRes(SliceNetwork):
    """Ours, to learn within minutes: SRResNet's first convolution and blocks, plus the input.

    (B, 1, X, Y, N) to (B, 1, f X, Y, N), ``factor`` f, LR column i on HR column f i. The last
    convolution gives all f columns at once (Shi et al., CVPR 2016), as differences to the cubically
    interpolated input; it starts at zero.
    """

    residual = True

    def __init__(self, width: int = 64, blocks: int = 5, factor: int = 4) -> None:
        super().__init__()
        self.factor, self.live_channels = (factor, 1, 1), 4 * width + 2 * factor
        self.halo = (2 * blocks + 6, 2 * blocks + 6, 0)
        self.first = nn.Sequential(nn.Conv2d(1, width, 9, padding=4), nn.PReLU(width))
        self.body = nn.Sequential(*_body(width, blocks))
        self.last = nn.Conv2d(width, factor, 3, padding=1)
        zero(self.last)

    def resolve(self, images: Tensor) -> Tensor:
        """Images (B, 1, X, Y) to (B, 1, f X, Y)."""
        features = self.first(images)
        columns = self.last(features + self.body(features))
        return _interleaved(columns) + _cubic(images, self.factor[0])


class ResidualBlock(nn.Module):
    """Convolution, BN, PReLU, convolution, BN, plus the input: (B, width, X, Y) to the same."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), norm(width), _prelu(width),
            nn.Conv2d(width, width, 3, padding=1), norm(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Discriminator2D(Judge):
    """Discriminator of Ledig et al., CVPR 2017, Fig. 4.

    It maps images (B, 1, X, Y) to B logits, and volumes (B, 1, X, Y, N) to B N.
    ``shape`` (X, Y) fixes the image size, as in the code (541,564,609 parameters at 512 x 512,
    batch-norm statistics counted). Deviations: without it features are averaged over the image, so
    that any size will do; logits instead of a sigmoid; at stride 2 padding as in ``SRResNet2D``,
    whose last three settings these are.
    """

    def __init__(
        self,
        width: int = 64,
        shape: tuple[int, int] | None = None,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        keras_start: bool = False,
    ) -> None:
        super().__init__(
            lambda maps, size: nn.BatchNorm2d(maps, eps=epsilon, momentum=momentum),
            width=width,
            size=shape or (1, 1),
            slope=0.2,
            pool=None if shape else nn.AdaptiveAvgPool2d(1),
        )
        if keras_start:
            glorot(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_slices(x))


def _prelu(channels: int) -> nn.PReLU:
    return nn.PReLU(channels, init=0.0)  # as in the code


def _body(
    width: int, blocks: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> list[nn.Module]:
    """The residual blocks, and the convolution with batch norm behind them."""
    layers = [ResidualBlock(width, norm) for _ in range(blocks)]
    return [*layers, nn.Conv2d(width, width, 3, padding=1), norm(width)]


def _slices(x: Tensor) -> Tensor:
    """(B, 1, X, Y, N) as a batch (B N, 1, X, Y) of images; a batch of images as it is."""
    return x if x.dim() == 4 else x.movedim(-1, 1).flatten(0, 1)


def _interleaved(columns: Tensor) -> Tensor:
    """The f output columns of each input column, (B, f, X, Y), as an image (B, 1, f X, Y)."""
    return columns.transpose(1, 2).flatten(1, 2)[:, None]


def _cubic(x: Tensor, factor: int) -> Tensor:
    """Cubic convolution (Keys, IEEE TASSP 1981) along X, (B, 1, X, Y) to (B, 1, f X, Y).

    Edge pixels are repeated beyond the image. Input pixel i lies on output pixel f i.
    """
    place = torch.arange(factor, device=x.device) / factor
    d = (place[:, None] - torch.arange(-2, 3, device=x.device)).abs()
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0)).to(x.dtype)
    return _interleaved(
        functional.conv2d(functional.pad(x, (0, 0, 2, 2), "replicate"), weights[:, None, :, None])
    )
