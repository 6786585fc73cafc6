"""Compute training losses: supervised ones by name, and those of critics and discriminators."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from srlib.core.paths import InputError

REAL, FAKE = (0.7, 1.2), (0.0, 0.3)  # ranges of the soft labels (Sanchez & Vilaplana, MIDL 2018)
WINDOW = 7  # voxels, uniform, as in the metric
# weights of Wang et al., 2003, finest scale first
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - SSIM, differentiable; SSIM is that of ``metrics.ssim``: 2-D for one slice, 3-D where
    there are more.

    Images (B, C, X, Y) or (B, C, X, Y, 1), volumes (B, C, X, Y, Z), in [0, 1]. Deviation: the
    SRResNet code has an 11-wide Gaussian window. Raises InputError for images below the window.
    """
    luminance, contrast = _similarity(_squeezed(sr, WINDOW), _squeezed(hr, WINDOW))
    return 1 - (luminance * contrast).mean()


def ms_ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - multi-scale SSIM (Wang et al., Asilomar 2003), mean over images and channels; shapes as
    ``ssim``.

    Five scales, each the 2-fold average of the finer one (an odd last row or column is dropped);
    contrast-structure terms of all, the luminance of the coarsest. A term may be negative, its
    power may not: an image's mean is raised to 1e-6 at least, where its gradient is zero. Raises
    InputError for images below 112 voxels per axis.
    """
    least = WINDOW * 2 ** (len(SCALES) - 1)
    sr, hr, product = _squeezed(sr, least), _squeezed(hr, least), 1.0
    for scale, weight in enumerate(SCALES, 1):
        luminance, terms = _similarity(sr, hr)
        if scale == len(SCALES):
            terms = luminance * terms
        product = product * terms.flatten(2).mean(2).clamp(min=1e-6) ** weight
        sr, hr = _pool(sr, 2), _pool(hr, 2)
    return 1 - product.mean()


def l1_l2(sr: Tensor, hr: Tensor) -> Tensor:
    """L1 + 20 L2, for images in [0, 1]: the first keeps empty background empty, the second finds
    edges in noise (ours).
    """
    return functional.l1_loss(sr, hr) + 20 * functional.mse_loss(sr, hr)


def euclidean(sr: Tensor, hr: Tensor) -> Tensor:
    """Half the sum of squares of a patch, mean over the batch: Caffe's EuclideanLoss.

    For patches of 21^3 voxels 4,630.5 times ``l2``, and so are the gradients: a rate of SGD with
    this loss is a rate 4,630.5 times higher with that one.
    """
    return functional.mse_loss(sr, hr, reduction="sum") / (2 * len(sr))


def log_mse(sr: Tensor, hr: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean over a batch's patches of the logarithm of their squared error, which is their PSNR in
    other units.

    A patch counts by the share of its error that goes, so that hard degradations do not drown the
    mild ones (as the PSNR loss of Chen et al., ECCV 2022). ``floor``, 40 dB, keeps patches that are
    nearly right from counting most.
    """
    return torch.log((sr - hr).square().flatten(1).mean(1) + floor).mean()


def ssim_slices(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - SSIM of slices, 2-D, mean over the three orientations of volumes (B, C, X, Y, Z).

    Iglesias et al., NeuroImage 2021. Deviation: their code has an 11-wide Gaussian window. Raises
    InputError as ``ssim``.
    """
    views = [[x.movedim(axis, 1).flatten(0, 1) for x in (sr, hr)] for axis in (2, 3, 4)]
    return sum(ssim(*view) for view in views) / 3


def ssim_l1_l2(sr: Tensor, hr: Tensor) -> Tensor:
    """0.8 (1 - SSIM) + 0.1 L1 + 0.1 L2, for images in [0, 1] (code of SRResNet for ultrasound and
    CT).
    """
    return 0.8 * ssim(sr, hr) + 0.1 * functional.l1_loss(sr, hr) + 0.1 * functional.mse_loss(sr, hr)


def _squeezed(x: Tensor, least: int) -> Tensor:
    x = x[..., 0] if x.dim() == 5 and x.shape[-1] == 1 else x
    if min(x.shape[2:]) < least:
        raise InputError(
            f"this loss needs at least {least} voxels per axis, got {tuple(x.shape[2:])}"
        )
    return x


def _pool(x: Tensor, size: int, stride: int | None = None) -> Tensor:
    """Means over windows of an image (B, C, X, Y) or a volume (B, C, X, Y, Z)."""
    return (functional.avg_pool2d if x.dim() == 4 else functional.avg_pool3d)(x, size, stride)


def _similarity(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps over whole windows; variances are those of samples."""
    mean = partial(_pool, size=WINDOW, stride=1)
    count, c1, c2 = WINDOW ** (sr.dim() - 2), 0.01**2, 0.03**2
    shift, unbiased = hr.mean().detach(), count / (count - 1)
    sr, hr = sr - shift, hr - shift  # variances stay, their rounding errors shrink
    a, b = mean(sr), mean(hr)
    both, covariance = mean(sr**2 + hr**2) - a**2 - b**2, mean(sr * hr) - a * b
    a, b = a + shift, b + shift
    luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
    return luminance, (2 * unbiased * covariance + c2) / (unbiased * both + c2)


def mse_gdl(sr: Tensor, hr: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error + gradient difference of two batches (B, C, X, Y, Z): sums in Sanchez &
    Vilaplana, MIDL 2018.

    The means are ours. Gradient difference (Mathieu et al., ICLR 2016, with exponent 2): squared
    differences of the absolute gradients between neighbouring voxels; the three axes' means or sums
    are added.
    """
    error = partial(functional.mse_loss, reduction=reduction)
    gradients = (error(sr.diff(dim=axis).abs(), hr.diff(dim=axis).abs()) for axis in (2, 3, 4))
    return error(sr, hr) + sum(gradients)


def uncertainty(output: Tensor) -> Tensor:
    """Scale b of the Laplace distribution about each voxel, (B, C, X, Y, Z), from an output (B, 2
    C, X, Y, Z).

    b = 1e-5 + 0.02 exp(s), in the unit of the intensities; the last C channels are s (Iglesias et
    al., NeuroImage 2021).
    """
    return 1e-5 + 0.02 * output.chunk(2, dim=1)[1].exp()


def laplace(output: Tensor, hr: Tensor) -> Tensor:
    """Mean negative log-likelihood of a Laplace distribution, log(2 b) + |sr - hr| / b; ``output``:
    sr, then s of b.
    """
    b = uncertainty(output)
    return ((2 * b).log() + (output.chunk(2, dim=1)[0] - hr).abs() / b).mean()


def dice(logits: Tensor, classes: Tensor, class_of: Sequence[int | None] = ()) -> Tensor:
    """1 - soft Dice, mean over the K classes (background too) and the batch: logits (B, K, X, Y,
    Z), classes (B, 1, ...).

    Of a class's probabilities p and its voxels g: 2 sum p g / (sum p^2 + sum g^2), as in SynthSR's
    code. ``class_of``: the class of each of the K outputs, where it is not its own number; outputs
    of one class are added, None is left out.
    """
    p = logits.softmax(1).flatten(2)
    named = [-1 if k is None else k for k in class_of or range(p.shape[1])]
    used = p.new_tensor(sorted({*named} - {-1}))[:, None]
    if class_of:
        p = (used == p.new_tensor(named)).to(p) @ p
    g = (classes.flatten(2) == used).to(p)
    top, bottom = 2 * (p * g).sum(2), (p**2).sum(2) + (g**2).sum(2)
    return 1 - ((top + 1e-7) / (bottom + 1e-7)).mean()


# (sr, hr) batches to a scalar, mean-reduced where the name does not say otherwise
LOSSES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "l1_l2": l1_l2,
    "euclidean": euclidean,
    "log_mse": log_mse,
    "log_mse_50db": partial(log_mse, floor=1e-5),
    "laplace": laplace,
    "dice": dice,
    "mse_gdl": mse_gdl,
    "mse_gdl_sum": partial(mse_gdl, reduction="sum"),
    "ssim": ssim,
    "ssim_slices": ssim_slices,
    "ms_ssim": ms_ssim,
    "ssim_l1_l2": ssim_l1_l2,
}


def mix(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Points between real and fake samples (B, C, X, Y, Z), ready for ``gradient_penalty``;
    ``share`` (B,) of real.
    """
    share = share.view(-1, 1, 1, 1, 1).to(real)
    return (share * real + (1 - share) * fake).detach().requires_grad_(True)


def gradient_penalty(scores: Tensor, points: Tensor) -> Tensor:
    """Mean over the batch of (|gradient of the critic's score at a point| - 1)^2 (Gulrajani et al.,
    NeurIPS 2017).

    ``scores`` (B,) must have been computed from ``points`` (B, C, X, Y, Z), which require
    gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def least_squares(scores: Tensor, labels: np.ndarray) -> Tensor:
    """Mean of (score - label)^2 over a batch, (B,) each (Mao et al., ICCV 2017, without their
    factor 1/2).
    """
    return functional.mse_loss(scores, torch.from_numpy(labels).to(scores))


def cross_entropy(scores: Tensor, labels: np.ndarray) -> Tensor:
    """Binary cross-entropy of logits with labels over a batch, (B,) each (Goodfellow et al.,
    NeurIPS 2014).
    """
    return functional.binary_cross_entropy_with_logits(scores, torch.from_numpy(labels).to(scores))


def wished_labels(rng: Generator, n: int, rule: str) -> np.ndarray:
    """Labels towards which a generator draws the scores of its ``n`` patches: those of real ones,
    never swapped.
    """
    return np.ones(n) if rule == "hard" else rng.uniform(*REAL, n)


def draw_labels(rng: Generator, n: int, rule: str = "per_step") -> tuple[np.ndarray, np.ndarray]:
    """Labels for ``n`` real and ``n`` generated patches, float32: what the discriminator's scores
    are drawn towards.

    'per_step': soft labels, in a tenth of all steps swapped, as Sanchez & Vilaplana, MIDL 2018,
    mean it. 'code': those of their code, which labels both sides as real, so that its one swap per
    run has no effect either. 'hard': 1 and 0.
    """
    if rule == "hard":
        return np.ones(n, np.float32), np.zeros(n, np.float32)
    swapped = rng.random() < 0.1
    real, fake = {"per_step": (FAKE, REAL) if swapped else (REAL, FAKE), "code": (REAL, REAL)}[rule]
    return rng.uniform(*real, n).astype(np.float32), rng.uniform(*fake, n).astype(np.float32)
