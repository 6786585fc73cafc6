"""The losses do what their papers say; SSIM is the metric's."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from srlib import metrics
from srlib.core.paths import InputError
from srlib.training import losses


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_penalty_of_a_critic_with_known_gradient_norm(norm):
    weight = torch.randn(1, 1, 4, 4, 4)
    weight *= norm / weight.norm()
    points = losses.mix(torch.rand(5, 1, 4, 4, 4), torch.rand(5, 1, 4, 4, 4), torch.rand(5))
    scores = (points * weight).sum((1, 2, 3, 4))
    assert losses.gradient_penalty(scores, points).item() == pytest.approx(
        (norm - 1) ** 2, abs=1e-5
    )


def test_penalty_teaches_the_critic():
    critic = nn.Linear(8, 1, bias=False)
    points = losses.mix(torch.rand(4, 8, 1, 1, 1), torch.rand(4, 8, 1, 1, 1), torch.rand(4))
    losses.gradient_penalty(critic(points.flatten(1))[:, 0], points).backward()
    norm, gradient = critic.weight.norm(), critic.weight.grad
    expected = 2 * (norm - 1) * critic.weight / norm
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-6, rtol=1e-4)


def test_mix_lies_between_its_ends():
    real, fake = torch.zeros(3, 1, 2, 2, 2), torch.ones(3, 1, 2, 2, 2)
    mixed = losses.mix(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed.flatten(1).mean(1).tolist() == [1.0, 0.75, 0.0]
    assert mixed.requires_grad and mixed.is_leaf


@pytest.mark.parametrize("name, expected", [("l1", 2.0), ("l2", 5.0)])
def test_supervised_losses_are_means(name, expected):
    assert losses.LOSSES[name](torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])) == expected


def test_caffes_loss_is_half_the_sum_over_a_patch():
    sr, hr = torch.rand(2, 1, 21, 21, 21), torch.rand(2, 1, 21, 21, 21)
    loss = losses.LOSSES["euclidean"](sr, hr)
    assert loss.item() == pytest.approx(((sr - hr) ** 2).sum().item() / (2 * 2), rel=1e-5)
    assert loss.item() == pytest.approx(4630.5 * losses.LOSSES["l2"](sr, hr).item(), rel=1e-5)


def test_gradient_difference_by_hand():
    hr = torch.zeros(1, 1, 2, 2, 2)
    sr = torch.zeros(1, 1, 2, 2, 2)
    hr[..., 1, :, :] = 3.0  # |gradient| 3 at the four places along x, 0 along y and z
    sr[..., 1, 0, 0] = -2.0  # |gradient| 2 at one place along each axis
    along_x, along_y, along_z = [(3 - 2) ** 2, 9, 9, 9], [2**2, 0, 0, 0], [2**2, 0, 0, 0]
    total = sum(along_x + along_y + along_z)
    squares = (-2 - 3) ** 2 + 3 * 9
    assert losses.LOSSES["mse_gdl_sum"](sr, hr) == total + squares == 36 + 52
    assert losses.LOSSES["mse_gdl"](sr, hr) == total / 4 + squares / 8


def test_gradient_difference_forgets_the_sign_and_the_offset():
    hr = torch.rand(2, 1, 5, 4, 3)
    for same in (hr + 7, -hr):
        torch.testing.assert_close(losses.mse_gdl(same, hr), (same - hr).square().mean())
    batch = losses.LOSSES["mse_gdl_sum"](2 * hr, hr)
    torch.testing.assert_close(
        batch, sum(losses.LOSSES["mse_gdl_sum"](2 * h[None], h[None]) for h in hr)
    )


def test_least_squares_by_hand():
    scores, labels = torch.tensor([1.0, -0.5]), np.array([0.75, 0.5], np.float32)
    assert losses.least_squares(scores, labels) == (0.25**2 + 1.0) / 2


IMAGES = [(2, 3, 16, 23), (2, 1, 16, 23, 1), (1, 2, 9, 12, 10)]


def pair_of_images(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hr = torch.rand(shape, generator=generator, dtype=dtype)
    return (hr + 0.2 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1), hr


@pytest.mark.parametrize("shape", IMAGES)
def test_ssim_is_the_metric(shape):
    sr, hr = pair_of_images(shape)
    for offset, scale in ((0, 1), (0.9, 0.1)):  # bright and flat too
        a, b = offset + scale * sr, offset + scale * hr
        kind = "3d" if len(shape) == 5 and shape[-1] > 1 else "2d"
        images = [x.reshape(-1, *shape[2:], *[1] * (5 - len(shape))).numpy() for x in (b, a)]
        expected = np.mean([metrics.ssim(*p, 1.0, kind=kind) for p in zip(*images, strict=True)])
        assert 1 - losses.ssim(a, b).item() == pytest.approx(expected, abs=1e-5)
    assert losses.ssim(hr, hr).item() == pytest.approx(0, abs=1e-6)


def reference_ms_ssim(sr, hr):
    """Of one image, from SciPy's uniform filter."""
    weights, product = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 1.0
    c1, c2 = 0.01**2, 0.03**2
    a, b = sr.astype(np.float64), hr.astype(np.float64)
    for scale, weight in enumerate(weights):
        mean = [ndimage.uniform_filter(x, 7)[3:-3, 3:-3] for x in (a, b, a * a, b * b, a * b)]
        va, vb, cov = (
            (m - p) * 49 / 48
            for m, p in zip(mean[2:], (mean[0] ** 2, mean[1] ** 2, mean[0] * mean[1]), strict=True)
        )
        local = (2 * cov + c2) / (va + vb + c2)
        if scale == 4:
            local = local * (2 * mean[0] * mean[1] + c1) / (mean[0] ** 2 + mean[1] ** 2 + c1)
        product *= max(local.mean(), 1e-6) ** weight
        n, m = (s // 2 * 2 for s in a.shape)
        a, b = (x[:n, :m].reshape(n // 2, 2, m // 2, 2).mean((1, 3)) for x in (a, b))
    return product


@pytest.mark.parametrize("size", [(112, 112), (121, 150)])
def test_ms_ssim_is_that_of_its_definition(size):
    sr, hr = pair_of_images((2, 2, *size))
    sr[0, 0] = 1 - hr[0, 0]  # contrast reversed: negative terms
    sr[1, 0] = 0.5 * hr[1, 0]  # darker
    images = zip(sr.reshape(-1, *size).numpy(), hr.reshape(-1, *size).numpy(), strict=True)
    expected = np.mean([reference_ms_ssim(a, b) for a, b in images])
    assert 1 - losses.ms_ssim(sr, hr).item() == pytest.approx(expected, abs=1e-5)
    assert losses.ms_ssim(sr[..., None], hr[..., None]) == losses.ms_ssim(sr, hr)
    assert losses.ms_ssim(hr, hr).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [("ssim", (1, 2, 8, 9)), ("ssim", (1, 1, 7, 8, 7)), ("ssim_l1_l2", (2, 1, 8, 7, 1))],
)
def test_gradients_of_ssim(loss, shape):
    sr, hr = pair_of_images(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: losses.LOSSES[loss](x, hr), sr.clamp(0.01, 0.99).requires_grad_()
    )


def test_gradients_of_ms_ssim():
    sr, hr = pair_of_images((1, 1, 112, 112), dtype=torch.float64)
    x = sr.requires_grad_()
    (gradient,) = torch.autograd.grad(losses.ms_ssim(x, hr), x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):  # along random directions: 112 x 112 is too large for every pixel
        way = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        with torch.no_grad():
            slope = (losses.ms_ssim(x + 1e-5 * way, hr) - losses.ms_ssim(x - 1e-5 * way, hr)) / 2e-5
        assert (gradient * way).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_reversed_contrast_has_a_finite_gradient():
    _, hr = pair_of_images((1, 1, 112, 112))
    sr = (1 - hr).requires_grad_()
    loss = losses.ms_ssim(sr, hr)
    loss.backward()
    assert loss.item() > 0.9
    assert sr.grad.isfinite().all()


def test_absolute_and_squared_error_by_hand():
    sr, hr = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3, 1, 1), torch.zeros(1, 1, 3, 1, 1)
    assert losses.LOSSES["l1_l2"](sr, hr) == pytest.approx(0.5 + 20 * 1.25 / 3)


def test_the_combined_loss_is_its_parts():
    sr, hr = pair_of_images((2, 1, 16, 17, 1))
    expected = (
        0.8 * losses.ssim(sr, hr) + 0.1 * (sr - hr).abs().mean() + 0.1 * (sr - hr).square().mean()
    )
    torch.testing.assert_close(losses.LOSSES["ssim_l1_l2"](sr, hr), expected)


@pytest.mark.parametrize(("name", "least"), [("ssim", 7), ("ssim_l1_l2", 7), ("ms_ssim", 112)])
def test_images_below_the_windows_are_refused(name, least):
    for shape in ((1, 1, least, least), (1, 1, least, least + 3, 1)):
        assert losses.LOSSES[name](*pair_of_images(shape)).isfinite()
    for shape in ((1, 1, least - 1, least), (1, 1, least, least - 1, 1), (1, 1, least, least, 2)):
        with pytest.raises(InputError, match=f"at least {least} voxels"):
            losses.LOSSES[name](*pair_of_images(shape))


def test_ssim_teaches():
    sr, hr = pair_of_images((1, 1, 20, 20))
    guess = sr.clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = losses.ssim(guess, hr)
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * losses.ssim(sr, hr)


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
    values = [
        losses.laplace(torch.cat([sr, torch.full_like(sr, s + d)], dim=1), hr)
        for d in (-0.1, 0, 0.1)
    ]
    assert values[1] < min(values[0], values[2])


def test_ssim_of_slices_is_the_metrics_mean_over_the_axes():
    sr, hr = pair_of_images((2, 1, 12, 9, 15))
    volumes = [list(x[:, 0].numpy()) for x in (hr, sr)]
    expected = [
        metrics.ssim(np.moveaxis(a, axis, 2), np.moveaxis(b, axis, 2), 1.0, kind="2d")
        for a, b in zip(*volumes, strict=True)
        for axis in range(3)
    ]
    assert 1 - losses.LOSSES["ssim_slices"](sr, hr).item() == pytest.approx(
        np.mean(expected), abs=1e-5
    )
    assert losses.ssim_slices(sr, hr) != pytest.approx(losses.ssim(sr, hr).item(), abs=1e-3)
    with pytest.raises(InputError, match="at least 7 voxels"):
        losses.ssim_slices(sr[..., :6], hr[..., :6])


def test_dice_of_outputs_that_share_a_class_or_have_none():
    """Outputs 0 and 2 are class 1, output 1 is class 0, output 3 is not judged: p of class 1 is 0.5."""
    p = torch.tensor([0.3, 0.1, 0.2, 0.4]).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 2)
    classes = torch.tensor([1.0, 0, 1, 1]).view(1, 1, 1, 2, 2)
    ones, zeros = 2 * 3 * 0.5 / (4 * 0.25 + 3), 2 * 0.1 / (4 * 0.01 + 1)
    assert losses.dice(p.log(), classes, (1, 0, 1, None)).item() == pytest.approx(
        1 - (ones + zeros) / 2, abs=1e-6
    )


def test_dice_by_hand():
    likely = torch.tensor([0.75, 0.25, 0.5, 1.0]).view(1, 1, 1, 2, 2)  # of class 1
    logits = torch.cat([1 - likely, likely], dim=1).clamp(min=1e-30).log()
    classes = torch.tensor([1.0, 0, 1, 1]).view(1, 1, 1, 2, 2)
    ones = 2 * (0.75 + 0.5 + 1) / (0.75**2 + 0.25**2 + 0.5**2 + 1 + 3)
    zeros = 2 * 0.75 / (0.25**2 + 0.75**2 + 0.5**2 + 1)
    assert losses.LOSSES["dice"](logits, classes).item() == pytest.approx(
        1 - (ones + zeros) / 2, abs=1e-6
    )
    sure = 100 * torch.nn.functional.one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()
    assert losses.dice(sure, classes).item() == pytest.approx(
        0, abs=1e-6
    )  # the third class is nowhere, and not found
