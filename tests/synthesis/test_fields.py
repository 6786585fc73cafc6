"""Warps and fields follow the seed, and warps never fold."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from srlib.synthesis.fields import band_noise, draw_warp, integrate, sample, smooth_field


def jacobian_determinant(warp):
    gradients = torch.stack([torch.stack(torch.gradient(c)) for c in warp.double()])
    matrix = gradients.movedim((0, 1), (-2, -1)) + torch.eye(3)
    return torch.linalg.det(matrix)[1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("shape", [(41, 50, 39), (84, 101, 83)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_warp_does_not_fold(shape, seed):
    points = max(4, round(9 * shape[0] / 168))  # as dense as the cohort's
    warp = draw_warp(np.random.default_rng(seed), shape, points=points, std=5.0)
    assert warp.shape == (3, *shape)
    determinant = jacobian_determinant(warp)
    assert determinant.min() > 0
    assert determinant.std() > 0.05
    assert warp.abs().max() > 3


def test_a_constant_velocity_is_a_shift_and_its_negative_the_way_back():
    velocity = torch.tensor([1.5, -0.5, 0.25]).view(3, 1, 1, 1).expand(3, 12, 12, 12)
    torch.testing.assert_close(integrate(velocity), velocity.clone())
    smooth = smooth_field(np.random.default_rng(0), (30, 30, 30), 4, 2.0, channels=3)
    there, back = integrate(smooth), integrate(-smooth)
    rest = (there + sample(back, there))[:, 8:-8, 8:-8, 8:-8]
    assert rest.abs().mean() < 0.03 * there.abs().mean()


def test_sampling_reads_where_the_displacement_points():
    image = torch.arange(5 * 6 * 7.0).view(1, 5, 6, 7)
    torch.testing.assert_close(sample(image, torch.zeros(3, 5, 6, 7)), image, atol=1e-3, rtol=0)
    shift = torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 5)
    expected = image[:, 1:4, 0:4, 0:5] + 0.5 * 7 - 1
    out = sample(image, shift)
    torch.testing.assert_close(out[..., 1:], expected[..., 1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        out[..., 0], expected[..., 0] + 1, atol=1e-3, rtol=0
    )  # the edge is repeated


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: draw_warp(rng, (20, 21, 22), 4, 2.0),
        lambda rng: smooth_field(rng, (20, 21, 22), 4, 1.0),
        lambda rng: band_noise(rng, (20, 21, 22), 3.0),
    ],
)
def test_the_seed_decides(draw):
    torch.manual_seed(0)
    first = draw(np.random.default_rng(7))
    torch.manual_seed(1)
    assert torch.equal(first, draw(np.random.default_rng(7)))
    assert not torch.equal(first, draw(np.random.default_rng(8)))


def test_band_noise_has_unit_variance_no_local_mean_and_its_own_width():
    neighbours = []
    for width in (2.0, 3.0, 4.0, 8.0):
        noise = band_noise(np.random.default_rng(0), (48, 47, 49), width)
        assert noise.std() == pytest.approx(1, abs=1e-3)
        assert ndimage.gaussian_filter(noise.numpy(), width).std() < 0.1
        neighbours.append(float((noise[1:] * noise[:-1]).mean()))
    assert neighbours == sorted(neighbours)
    assert neighbours[0] < 0.1 < 0.6 < neighbours[-1]
