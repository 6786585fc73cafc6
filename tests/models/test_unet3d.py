"""SynthSR's U-Net: its published size, the order of its layers, and tiles that give the whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from srlib.models.registry import MODELS
from srlib.models.unet3d import PlainCritic, UNet3D, _joined
from srlib.scans.patches import extract, tiles


@pytest.fixture
def lively():
    """Maker of a network in evaluation mode whose batch norms do something."""

    def make(**settings) -> UNet3D:
        torch.manual_seed(0)
        network = UNet3D(**settings)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                for values in (module.weight, module.bias, module.running_mean, module.running_var):
                    torch.nn.init.uniform_(values, 0.2, 1)
            elif isinstance(module, torch.nn.Conv3d):
                torch.nn.init.normal_(module.bias, std=0.3)
        return network.eval()

    return make


@pytest.mark.parametrize(
    "width, channels, expected", [(24, 1, 13_242_049), (24, 2, 13_242_697), (6, 1, 828_997)]
)
def test_published_sizes_count_the_moving_statistics(width, channels, expected):
    with torch.device("meta"):
        state = MODELS["unet3d"](width=width, in_channels=channels).state_dict()
    assert sum(v.numel() for name, v in state.items() if "num_batches" not in name) == expected


@torch.no_grad()
def test_layers_stand_in_the_published_order(lively):
    """Written out for two levels: the skip is taken before the batch norm, and comes first."""
    network = lively(width=3, levels=2, in_channels=2, out_channels=2).double()
    x = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64)

    def convolved(level, y):
        for conv in (level.conv1, level.conv2):
            y = functional.conv3d(y, conv.weight, conv.bias, padding=1)
            y = torch.where(y > 0, y, y.exp() - 1)
        return y

    def normed(level, y):
        mean, var, gamma, beta = (
            v.view(1, -1, 1, 1, 1)
            for v in (
                level.norm.running_mean,
                level.norm.running_var,
                level.norm.weight,
                level.norm.bias,
            )
        )
        return gamma * (y - mean) / (var + 1e-3).sqrt() + beta

    top, bottom, up = network.down[0], network.down[1], network.up[0]
    skip = convolved(top, x)
    pooled = normed(top, skip).unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2, -3))
    below = normed(bottom, convolved(bottom, pooled))
    for axis in (2, 3, 4):
        below = below.repeat_interleave(2, axis)
    joined = normed(up, convolved(up, torch.cat([skip, below], dim=1)))
    expected = torch.einsum("bcxyz,oc->boxyz", joined, network.last.weight[:, :, 0, 0, 0])
    expected += network.last.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(network(x), expected, atol=1e-12, rtol=1e-12)


def test_the_coarse_grid_is_joined_as_if_it_were_made_finer_first():
    """Values and gradients, to rounding, at the faces too."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(5, 4, 3, padding=1).double()
    skip, below = (
        torch.randn(2, 2, 6, 4, 8).double(),
        torch.randn(2, 3, 3, 2, 4).double().requires_grad_(),
    )
    finer = functional.interpolate(below, scale_factor=2, mode="nearest")
    results = _joined(conv, skip, below), conv(torch.cat([skip, finer], dim=1))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    wanted = below, conv.weight, conv.bias
    gradients = [torch.autograd.grad(y.square().sum(), wanted, retain_graph=True) for y in results]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 16, 9), (8, 8, 8)])
@torch.no_grad()
def test_any_shape_is_padded_at_its_end_and_cut_back(lively, shape):
    network = lively(width=2, levels=3, out_channels=2)
    assert network.multiple == 4
    x = torch.randn(2, 1, *shape)
    padded = torch.zeros(2, 1, *(-(-n // 4) * 4 for n in shape))
    inside = (..., *(slice(n) for n in shape))
    padded[inside] = x
    y = network(x)
    assert y.shape == (2, 2, *shape)
    torch.testing.assert_close(y, network(padded)[inside])


@torch.no_grad()
def test_the_residual_is_that_channel_added_to_the_first_output(lively):
    x = torch.randn(1, 3, 5, 6, 7)
    for outputs in (1, 2):
        with_residual = lively(
            width=2, levels=2, in_channels=3, out_channels=outputs, residual_channel=1
        )
        with_residual.last.bias.zero_()
        assert not with_residual.last.weight.any()  # starts at its input
        assert torch.equal(with_residual(x)[:, :1], x[:, 1:2])
        without = lively(width=2, levels=2, in_channels=3, out_channels=outputs)
        with_residual.load_state_dict(without.state_dict())
        expected = without(x)
        expected[:, 0] += x[:, 1]
        torch.testing.assert_close(with_residual(x), expected)


def test_weights_start_as_in_keras():
    torch.manual_seed(0)
    network = UNet3D(width=8, levels=3)
    conv = network.up[0].conv1  # 48 to 16 features
    limit = (6 / (27 * (48 + 16))) ** 0.5
    assert 0.95 * limit < conv.weight.abs().max() <= limit
    assert conv.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.03)
    assert not conv.bias.any()
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)} == {1e-3}


def test_gradients_reach_every_parameter():
    network = UNet3D(width=2, levels=3, in_channels=2, out_channels=2)
    x = torch.rand(1, 2, 9, 8, 8)
    before = x.clone()
    network(x).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if not name.endswith("bias"):
            assert p.grad.any(), name
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "levels, settings", [*((n, {}) for n in (1, 2, 3, 4)), (2, {"kernel": 5}), (3, {"convs": 3})]
)
def test_halo_is_the_receptive_field(levels, settings):
    """Positive weights hide no voxel; pooling passes on the largest of a pair, so both are tried."""
    network = UNet3D(width=1, levels=levels, **settings).double().eval()
    for conv in network.modules():
        if isinstance(conv, torch.nn.Conv3d):
            torch.nn.init.uniform_(conv.weight, 0.1, 1)
    n = 4 * -(-network.halo // network.multiple) * network.multiple
    seen = 0
    for place in range(n // 2, n // 2 + network.multiple):
        for x in (torch.linspace(0, 1, n), torch.linspace(1, 0, n)):
            x = x.double().view(1, 1, n, 1, 1).requires_grad_()
            network(x)[0, 0, place, 0, 0].backward()
            touched = x.grad.flatten().nonzero().flatten()
            seen = max(seen, place - touched.min().item(), touched.max().item() - place)
    assert seen == network.halo


def test_the_published_networks_halo():
    with torch.device("meta"):
        assert (UNet3D().halo, UNet3D().multiple) == (107, 16)


@torch.inference_mode()
def test_tiles_give_the_whole(lively):
    network = lively(width=3, levels=2).to(memory_format=torch.channels_last_3d)
    data = np.random.default_rng(0).random((71, 40, 75), dtype=np.float32)
    whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()
    todo, _ = tiles(data.shape, network.halo, data.size // 4, multiple=network.multiple)
    assert len(todo) > 4
    out = np.full_like(data, np.nan)
    for tile in todo:
        part = torch.from_numpy(extract(data, tile.outer).copy())[None, None]
        out[tile.core.slices] = network(part)[0, 0].numpy()[tile.inner.slices]
    assert whole.std() > 0.1
    np.testing.assert_allclose(out, whole, atol=1e-5)


@torch.no_grad()
def test_other_convolutions_and_activations_are_written_out(lively):
    network = lively(width=4, levels=2, convs=1, kernel=5, growth=1.5, activation="relu").double()
    x = torch.randn(1, 1, 4, 6, 8, dtype=torch.float64)
    assert [tuple(m.conv1.weight.shape[:3]) for m in (*network.down, *network.up)] == [
        (4, 1, 5), (6, 4, 5), (4, 4 + 6, 5)
    ]  # fmt: skip

    def convolved(level, y):
        return functional.conv3d(y, level.conv1.weight, level.conv1.bias, padding=2).clamp(min=0)

    skip = convolved(network.down[0], x)
    below = network.down[1].norm(
        convolved(network.down[1], functional.max_pool3d(network.down[0].norm(skip), 2))
    )
    for axis in (2, 3, 4):
        below = below.repeat_interleave(2, axis)
    joined = network.up[0].norm(convolved(network.up[0], torch.cat([skip, below], 1)))
    torch.testing.assert_close(network(x), network.last(joined))


def test_a_residual_may_start_as_in_keras():
    assert not UNet3D(width=2, levels=2, residual_channel=0).last.weight.any()
    assert UNet3D(width=2, levels=2, residual_channel=0, zero_start=False).last.weight.all()


def test_the_critic_of_the_fine_tuning_has_the_codes_layers():
    """Two convolutions per level of 32, 64, 128 and 256 filters, one of stride 2; 512 units; one score."""
    maps = [1, 32, 32, 64, 64, 128, 128, 256, 256]
    convolutions = sum(27 * a * b + b for a, b in pairwise(maps))
    dense = 256 * 2**3 * 512 + 512 + 512 + 1
    critic = PlainCritic(32, 32)
    assert sum(p.numel() for p in critic.parameters()) == convolutions + dense
    strides = [m.stride[0] for m in critic.modules() if isinstance(m, torch.nn.Conv3d)]
    assert strides == [1, 2] * 4 and critic(torch.rand(3, 1, 32, 32, 32)).shape == (3,)
