"""The adversarial losses do what their papers say."""

import numpy as np
import pytest
import torch
from torch import nn

from srlib import losses
from srlib.paths import InputError


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


def test_gradient_difference_by_hand():
    hr = torch.zeros(1, 1, 2, 2, 2)
    sr = torch.zeros(1, 1, 2, 2, 2)
    hr[..., 1, :, :] = 3.0  # |gradient| 3 at the four places along x, 0 along y and z
    sr[..., 1, 0, 0] = -2.0  # |gradient| 2 at one place along each axis
    along_x, along_y, along_z = [(3 - 2) ** 2, 9, 9, 9], [2**2, 0, 0, 0], [2**2, 0, 0, 0]
    total = sum(along_x + along_y + along_z)
    assert losses.gradient_difference(sr, hr, "sum") == total == 36
    assert losses.gradient_difference(sr, hr) == total / 4
    squares = (-2 - 3) ** 2 + 3 * 9
    assert losses.LOSSES["mse_gdl_sum"](sr, hr) == total + squares
    assert losses.LOSSES["mse_gdl"](sr, hr) == total / 4 + squares / 8


def test_gradient_difference_forgets_the_sign_and_the_offset():
    hr = torch.rand(2, 1, 5, 4, 3)
    for same in (hr + 7, -hr):
        assert losses.gradient_difference(same, hr) < 1e-10
    assert losses.gradient_difference(2 * hr, hr) > 0.05
    batch = losses.LOSSES["mse_gdl_sum"](2 * hr, hr)
    torch.testing.assert_close(batch, sum(losses.LOSSES["mse_gdl_sum"](2 * h[None], h[None]) for h in hr))


def test_least_squares_by_hand():
    scores, labels = torch.tensor([1.0, -0.5]), np.array([0.75, 0.5], np.float32)
    assert losses.least_squares(scores, labels) == (0.25**2 + 1.0) / 2


def test_laplace_by_hand():
    hr = torch.tensor([0.5, 0.25]).view(1, 1, 1, 1, 2)
    output = torch.tensor([[0.3, 0.25], [0.0, 1.0]]).view(1, 2, 1, 1, 2)  # sr, then s
    b = [0.02001, 0.02 * 2.718281828 + 1e-5]
    assert losses.uncertainty(output).flatten().tolist() == pytest.approx(b, rel=1e-6)
    expected = (np.log(2 * b[0]) + 0.2 / b[0] + np.log(2 * b[1])) / 2
    assert losses.LOSSES["laplace"](output, hr).item() == pytest.approx(expected, rel=1e-6)


def test_laplace_is_least_where_b_is_the_error():
    hr, sr = torch.zeros(1, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 0.3)
    s = np.log((0.3 - 1e-5) / 0.02)
    values = [losses.laplace(torch.cat([sr, torch.full_like(sr, s + d)], dim=1), hr) for d in (-0.1, 0, 0.1)]
    assert values[1] < min(values[0], values[2])


def test_laplace_needs_two_channels():
    with pytest.raises(InputError, match="2 output channels"):
        losses.laplace(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
