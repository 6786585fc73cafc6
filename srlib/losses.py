"""Training losses: supervised ones by name, and the Wasserstein and the least-squares game of two networks."""

from functools import partial

import numpy as np
import torch
from torch.nn import functional

from srlib.paths import InputError

REAL, FAKE = (0.7, 1.2), (0.0, 0.3)  # ranges of the soft labels (Sanchez & Vilaplana, MIDL 2018)


def gradient_difference(sr: torch.Tensor, hr: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Squared differences of the absolute gradients of two batches (B, C, X, Y, Z), 'mean' or 'sum', over three axes.

    Mathieu et al., ICLR 2016, with exponent 2; the gradient along an axis is that of neighbouring voxels, and the
    axes' means or sums are added.
    """
    axes = ((sr.diff(dim=axis).abs(), hr.diff(dim=axis).abs()) for axis in (2, 3, 4))
    return sum(functional.mse_loss(a, b, reduction=reduction) for a, b in axes)


def mse_gdl(sr: torch.Tensor, hr: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Squared error + gradient difference: sums in Sanchez & Vilaplana, MIDL 2018; the means are ours."""
    return functional.mse_loss(sr, hr, reduction=reduction) + gradient_difference(sr, hr, reduction)


def uncertainty(output: torch.Tensor) -> torch.Tensor:
    """Scale b of the Laplace distribution about each voxel, (B, C, X, Y, Z), from an output (B, 2 C, X, Y, Z).

    b = 1e-5 + 0.02 exp(s), in the unit of the intensities; the last C channels are s (Iglesias et al., NeuroImage 2021).
    """
    return 1e-5 + 0.02 * output.chunk(2, dim=1)[1].exp()


def laplace(output: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of a Laplace distribution, log(2 b) + |sr - hr| / b; ``output``: sr, then s of b."""
    if output.shape[1] != 2 * hr.shape[1]:
        raise InputError(f"the loss 'laplace' needs {2 * hr.shape[1]} output channels, got {output.shape[1]}")
    b = uncertainty(output)
    return ((2 * b).log() + (output[:, : hr.shape[1]] - hr).abs() / b).mean()


# (sr, hr) batches to a scalar, mean-reduced where the name does not say otherwise
LOSSES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "laplace": laplace,
    "mse_gdl": mse_gdl,
    "mse_gdl_sum": partial(mse_gdl, reduction="sum"),
}


def wasserstein_critic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """What the critic minimises: mean D(fake) - mean D(real) (Arjovsky et al., ICML 2017)."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: torch.Tensor) -> torch.Tensor:
    """What the generator minimises beside its supervised loss: -mean D(fake)."""
    return -fake.mean()


def mix(real: torch.Tensor, fake: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Points between real and fake samples (B, C, X, Y, Z), ready for ``gradient_penalty``; ``share`` (B,) of real."""
    share = share.view(-1, *[1] * (real.dim() - 1)).to(real)
    return (share * real + (1 - share) * fake).detach().requires_grad_(True)


def gradient_penalty(scores: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of (|gradient of the critic's score at a point| - 1)^2 (Gulrajani et al., NeurIPS 2017).

    ``scores`` (B,) must have been computed from ``points`` (B, C, X, Y, Z), which require gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def clip_weights(network: torch.nn.Module, bound: float) -> None:
    """Clamp every parameter to [-bound, bound], in place (Arjovsky et al., ICML 2017)."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.clamp_(-bound, bound)


def least_squares(scores: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    """Mean of (score - label)^2 over a batch, (B,) each (Mao et al., ICCV 2017, without their factor 1/2)."""
    return functional.mse_loss(scores, torch.from_numpy(labels).to(scores))


def draw_labels(rng: np.random.Generator, n: int, rule: str = "per_step") -> tuple[np.ndarray, np.ndarray]:
    """Labels for ``n`` real and ``n`` generated patches, float32: what the discriminator's scores are drawn towards.

    'per_step': soft labels, in a tenth of all steps swapped, as Sanchez & Vilaplana, MIDL 2018, mean it. 'code': those
    of their code, which labels both sides as real, so that its one swap per run has no effect either.
    """
    swapped = rng.random() < 0.1
    real, fake = {"per_step": (FAKE, REAL) if swapped else (REAL, FAKE), "code": (REAL, REAL)}[rule]
    return rng.uniform(*real, n).astype(np.float32), rng.uniform(*fake, n).astype(np.float32)
