"""The adversarial losses do what their papers say."""

import pytest
import torch
from torch import nn

from srlib import losses


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_penalty_of_a_critic_with_known_gradient_norm(norm):
    weight = torch.randn(1, 1, 4, 4, 4)
    weight *= norm / weight.norm()
    points = losses.mix(torch.rand(5, 1, 4, 4, 4), torch.rand(5, 1, 4, 4, 4), torch.rand(5))
    scores = (points * weight).sum((1, 2, 3, 4))
    assert losses.gradient_penalty(scores, points).item() == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_penalty_teaches_the_critic():
    critic = nn.Linear(8, 1, bias=False)
    points = losses.mix(torch.rand(4, 8), torch.rand(4, 8), torch.rand(4))
    losses.gradient_penalty(critic(points)[:, 0], points).backward()
    norm, gradient = critic.weight.norm(), critic.weight.grad
    expected = 2 * (norm - 1) * critic.weight / norm
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-6, rtol=1e-4)


def test_mix_lies_between_its_ends():
    real, fake = torch.zeros(3, 1, 2, 2, 2), torch.ones(3, 1, 2, 2, 2)
    mixed = losses.mix(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed.flatten(1).mean(1).tolist() == [1.0, 0.75, 0.0]
    assert mixed.requires_grad and mixed.is_leaf


def test_wasserstein_signs():
    high, low = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])
    assert losses.wasserstein_critic(real=high, fake=low) == -3  # a critic that separates has a low loss
    assert losses.wasserstein_critic(real=low, fake=high) == 3
    assert losses.wasserstein_generator(high) < losses.wasserstein_generator(low)  # to please the critic is good


def test_clipping_bounds_every_weight():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    losses.clip_weights(network, 0.01)
    assert max(p.abs().max() for p in network.parameters()) <= 0.01


@pytest.mark.parametrize("name, expected", [("l1", 2.0), ("l2", 5.0)])
def test_supervised_losses_are_means(name, expected):
    assert losses.LOSSES[name](torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])) == expected
