"""Training losses: supervised ones by name, and the Wasserstein game between a critic and a generator."""

import torch
from torch.nn import functional

# (sr, hr) batches to a scalar, mean-reduced
LOSSES = {"l1": functional.l1_loss, "l2": functional.mse_loss}


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
