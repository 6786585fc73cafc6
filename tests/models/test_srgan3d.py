"""3D-SRGAN: the published sizes, upsamplers without checkerboards, voxels in place, tiles that give the whole."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from srlib import systems
from srlib.core.paths import InputError
from srlib.models.layers import PixelShuffle3D
from srlib.models.srgan3d import SRGAN3D, UPSAMPLERS, Discriminator3D, interpolate
from srlib.scans.patches import tiles

FACTORS = [(2, 2, 2), (4, 4, 4), (1, 1, 4)]
upsamplers = pytest.mark.parametrize("upsampler", UPSAMPLERS)
factors = pytest.mark.parametrize("factor", FACTORS, ids=str)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_published_sizes():
    norms, body = (
        14 * 2 * 32,
        27 * 32 + 13 * 27 * 32 * 32,
    )  # first, two in each of six blocks, one behind them
    first, second, last = 27 * 32 * 64 + 64, 27 * 8 * 64 + 64, 27 * 8 + 1
    assert parameters(SRGAN3D()) == norms + body + first + last == 416_761
    assert parameters(SRGAN3D(factor=4)) == norms + body + first + second + last
    deconvolutions = 216 * 32 * 64 + 64 + 216 * 64 * 64 + 64
    assert (
        parameters(SRGAN3D(factor=4, upsampler="subpixel_nn"))
        == norms + body + deconvolutions + 27 * 64 + 1
    )
    resized = first + 3 * (27 * 64 * 64 + 64)
    assert (
        parameters(SRGAN3D(factor=4, upsampler="nn_resize")) == norms + body + resized + 27 * 64 + 1
    )


def test_feature_size_reaches_the_residual_blocks_alone():
    """At 64 the code's upsampling blocks keep 64 filters, and its discriminator 32 to 256."""
    norms, body = 14 * 2 * 64, 27 * 64 + 13 * 27 * 64 * 64
    block, last = 216 * 64 * 64 + 64, 27 * 64 + 1  # subpixel_nn
    for factor, blocks, count in ((2, 1, 2_327_745), (4, 2, 3_212_545)):
        published = f"network.factor={factor} network.upsampler=subpixel_nn network.width=64"
        experiment = systems.get("srgan3d", "paper", published)
        found = parameters(experiment.network.build())
        assert found == norms + body + blocks * block + last == count
    with torch.device("meta"):
        assert parameters(experiment.game.critic(64, (128, 128, 92))) == 104_179_393
    for name, profile in (("srgan3d_res_subpixel_nn", "paper"), ("srgan3d_x2", "quick")):
        ours = systems.get(name, profile)  # these shrink as a whole, as before
        assert ours.network.build().last.in_channels in (2 * ours.network.width, 32 // 8)


def test_published_discriminator():
    with torch.device("meta"):
        network = Discriminator3D()
        assert network(torch.empty(2, 1, 128, 128, 92)).shape == (2,)
    maps = [32, 32, 64, 64, 128, 128, 256, 256]
    convolutions = 27 * 32 + 32 + sum(27 * a * b + 2 * b for a, b in pairwise(maps))
    assert parameters(network) == convolutions + 8 * 8 * 6 * 256 * 1024 + 1024 + 1024 + 1


@upsamplers
@factors
@pytest.mark.parametrize("residual", [False, True])
def test_the_output_lies_on_the_hr_grid(upsampler, factor, residual):
    network = SRGAN3D(4, 1, factor, upsampler, residual, in_channels=2)
    shape = tuple(n * f for n, f in zip((5, 3, 7), factor, strict=True))
    assert network(torch.rand(2, 2, 5, 3, 7)).shape == (2, 1, *shape)
    assert network.factor == factor


def test_one_number_is_a_factor_for_every_axis():
    assert SRGAN3D(4, 1, 4).factor == (4, 4, 4)
    assert SRGAN3D(4, 1, 1)(torch.rand(1, 1, 5, 4, 3)).shape == (1, 1, 5, 4, 3)


@pytest.mark.parametrize(
    "settings",
    [{"factor": 3}, {"factor": (2, 2)}, {"factor": 16}, {"upsampler": "bilinear"}, {"width": 6}],
)
def test_settings_that_cannot_be_built_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        SRGAN3D(**settings)


def test_pixel_shuffle_by_hand():
    x = torch.tensor([10.0, 11, 20, 21, 30, 31, 40, 41]).view(
        1, 8, 1, 1, 1
    )  # pairs of maps at (a, c) of (2, 1, 2)
    expected = torch.tensor([[[[10.0, 20]], [[30, 40]]], [[[11, 21]], [[31, 41]]]])[None]
    assert torch.equal(PixelShuffle3D((2, 1, 2))(x), expected)
    x = torch.arange(2 * 24 * 2 * 3 * 4.0).view(2, 24, 2, 3, 4)
    y = PixelShuffle3D((2, 2, 2))(x)
    for a, b, c, k in product(range(2), range(2), range(2), range(3)):
        assert torch.equal(y[:, k, a::2, b::2, c::2], x[:, ((a * 2 + b) * 2 + c) * 3 + k])


@factors
def test_subpixel_nn_starts_as_a_convolution_and_nearest_neighbours(factor):
    torch.manual_seed(0)
    step = tuple(min(f, 2) for f in factor)
    block = SRGAN3D(4, 1, step, "subpixel_nn").upsampling[0][0]
    kernel = (
        block.weight[(..., *(slice(None, None, s) for s in step))].flip(2, 3, 4).transpose(0, 1)
    )
    assert kernel.shape == (8, 4, 3, 3, 3)
    x = torch.randn(2, 4, 5, 6, 7)
    expected = functional.interpolate(functional.conv3d(x, kernel, padding=1), scale_factor=step)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=0)  # up to the faces, all of it


def checkerboard(network: SRGAN3D) -> float:
    """Share of the energy at the grid frequencies (Nyquist, and 1/4 at a factor of 4) for a constant scan, faces cut."""
    n = network.halo
    with torch.no_grad():
        y = network.eval()(torch.ones(1, 1, *[2 * n + 4] * 3))[0, 0]
    y = y[tuple(slice(n * f, -n * f) for f in network.factor)]
    energy = torch.fft.fftn(y.double()).abs() ** 2
    grid = energy[
        tuple(slice(None, None, 4) for _ in network.factor)
    ]  # 4 LR voxels: every 4th frequency
    return float((grid.sum() - energy[0, 0, 0]) / energy.sum())


@factors
def test_only_the_plain_subpixel_starts_with_a_checkerboard(factor):
    for seed in range(3):
        torch.manual_seed(seed)
        share = {u: checkerboard(SRGAN3D(8, 1, factor, u)) for u in UPSAMPLERS}
        assert share["subpixel"] > 0.1
        assert share["subpixel_nn"] < 1e-9 and share["nn_resize"] < 1e-9


@upsamplers
@pytest.mark.parametrize("mode", [True, False])
def test_the_residual_form_begins_at_the_interpolation(upsampler, mode):
    x = torch.randn(2, 2, 6, 5, 7)
    network = SRGAN3D(4, 1, (2, 1, 4), upsampler, residual=True, in_channels=2).train(mode)
    assert torch.equal(network(x), interpolate(x[:, :1], (2, 1, 4)))
    with torch.no_grad():
        network.last.bias.fill_(3)
    torch.testing.assert_close(network(x), interpolate(x[:, :1], (2, 1, 4)) + 3)  # no tanh


def test_tanh_is_nn_resizes_alone():
    for upsampler in UPSAMPLERS:
        network = SRGAN3D(4, 1, 2, upsampler)
        with torch.no_grad():
            network.last.bias.fill_(30)
        assert (network(torch.rand(1, 1, 5, 5, 5)).max() <= 1) == (upsampler == "nn_resize")


@factors
def test_the_interpolation_keeps_a_ramp_and_a_blob_in_place(factor, blob):
    shape = (21, 23, 22)
    hr = tuple(n * f for n, f in zip(shape, factor, strict=True))
    for axis in range(3):
        line = torch.arange(shape[axis], dtype=torch.float32).view(
            [-1 if a == axis else 1 for a in range(3)]
        )
        y = interpolate(line.expand(shape)[None, None], factor)[0, 0].movedim(axis, 0)
        f = factor[axis]
        place = (torch.arange(hr[axis]) - (f - 1) / 2) / f
        error = (
            f * (y - place.view(-1, 1, 1)).abs()[2 * f : -2 * f]
        )  # in HR voxels, off the scan's faces
        assert error.max() < 1e-3
    scan = blob(shape).data
    y = interpolate(torch.from_numpy(scan)[None, None], factor)[0, 0].numpy()
    for old, new, f in zip(
        ndimage.center_of_mass(scan), ndimage.center_of_mass(y), factor, strict=True
    ):
        assert new == pytest.approx(f * old + (f - 1) / 2, abs=0.05)


@factors
def test_the_interpolation_is_closer_to_the_spline_than_trilinear(factor, blob):
    scan = blob().data
    spline = ndimage.zoom(scan, factor, order=3, mode="nearest", grid_mode=True)
    x = torch.from_numpy(scan)[None, None]
    ours, linear = (
        interpolate(x, factor),
        functional.interpolate(x, scale_factor=factor, mode="trilinear"),
    )
    error, other = (np.abs(y[0, 0].numpy() - spline).max() for y in (ours, linear))
    assert error < 0.3 * other


@upsamplers
@factors
def test_an_output_voxel_sees_exactly_the_halo(upsampler, factor):
    torch.manual_seed(0)
    network = SRGAN3D(4, 1, factor, upsampler).double().eval()
    reach = []
    for axis, f in enumerate(factor):
        shape, middle = [5, 5, 5], network.halo + 2
        shape[axis] = 2 * middle + 1
        x = torch.rand(1, 1, *shape, dtype=torch.float64, requires_grad=True)
        y = network(x)[0, 0].movedim(axis, 0)
        (gradient,) = torch.autograd.grad(y[middle * f : (middle + 1) * f].sum(), x)
        seen = gradient[0, 0].movedim(axis, 0).abs().amax((1, 2)).nonzero().flatten()
        reach += [middle - seen.min().item(), seen.max().item() - middle]
    assert max(reach) == network.halo


@upsamplers
@factors
@torch.inference_mode()
def test_tiles_give_the_whole(upsampler, factor):
    torch.manual_seed(0)
    network = SRGAN3D(4, 1, factor, upsampler, residual=True).to(
        memory_format=torch.channels_last_3d
    )
    network.last.weight.normal_()
    data = torch.rand(1, 1, 61, 12, 13)
    network(data)  # batch norm off its initial statistics
    network.eval().last.weight /= (network(data) - interpolate(data, factor)).abs().max()
    whole = network(data)  # differs from the interpolation by up to 1
    out = torch.full_like(whole, torch.nan)
    todo, _ = tiles(data.shape[2:], network.halo, 5200)
    assert len(todo) > 2
    for tile in todo:
        part = network(data[(..., *tile.outer.slices)])
        inner = (
            slice(s.start * f, s.stop * f) for s, f in zip(tile.inner.slices, factor, strict=True)
        )
        out[(..., *tile.core.scaled(factor).slices)] = part[(..., *inner)]
    torch.testing.assert_close(out, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "network", [*(SRGAN3D(4, 2, 4, u) for u in UPSAMPLERS), Discriminator3D(4, (9, 6, 5))]
)
def test_gradients_reach_every_parameter(network):
    shape = (9, 6, 5)
    network(torch.rand(2, 1, *shape)).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any()
        for p in network.parameters()
    )


@torch.no_grad()
def test_weights_start_as_published():
    torch.manual_seed(0)
    for network in (*(SRGAN3D(8, 2, 4, u) for u in UPSAMPLERS), Discriminator3D(8, 16)):
        kernels = [
            m
            for m in network.modules()
            if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)
        ]
        assert torch.cat([m.weight.flatten() for m in kernels]).std().item() == pytest.approx(
            0.02, rel=0.03
        )
        assert not any(m.bias.any() for m in kernels if m.bias is not None)


@pytest.mark.parametrize("size", [5, 16, 24, (20, 9, 33)])
@pytest.mark.parametrize("mode", [True, False])
def test_discriminators_of_any_patch_size(size, mode):
    torch.manual_seed(0)
    shape = (size,) * 3 if isinstance(size, int) else size
    network = Discriminator3D(4, size).train(mode)
    scores = network(torch.rand(1, 1, *shape)), network(torch.randn(1, 1, *shape))
    assert all(s.shape == (1,) and s.isfinite().all() for s in scores)
    assert scores[0] != scores[1]
