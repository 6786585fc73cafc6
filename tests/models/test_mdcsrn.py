"""The network is the paper's, computed in a thriftier order."""

import pytest
import torch
from torch.nn import functional

from srlib.models.mdcsrn import MDCSRN
from srlib.models.registry import MODELS


def randomise(network, seed=0):
    """Weights and batch-norm statistics off their initial values, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("norm.weight", "norm.bias", "running_mean")):
                value += 0.3 * torch.randn(value.shape, generator=generator)
            elif name.endswith("running_var"):
                value += 0.5 * torch.rand(value.shape, generator=generator)
            elif name.endswith("weight"):
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    return network.eval()


def paper_forward(network, x):
    """Fig. 2, word by word: every feature map is kept and concatenated."""
    features = [network.first(x)]
    out = features[0]
    for i, block in enumerate(network.blocks):
        if i:
            out = network.compress[i - 1](torch.cat(features, 1))
        for unit in block:
            norm = unit.norm
            y = functional.batch_norm(
                out, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
            out = torch.cat(
                [out, functional.conv3d(functional.elu(y), unit.conv.weight, padding=1)], 1
            )
        features.append(out)
    y = network.last(torch.cat(features, 1))
    return x + y if network.residual else y


def test_the_number_of_parameters_is_the_papers():
    assert sum(p.numel() for p in MDCSRN().parameters()) == 411_648
    assert MODELS["mdcsrn"] is MDCSRN


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"width": 4, "residual": True},
        {"width": 3, "blocks": 1, "units": 2},
        {"width": 2, "blocks": 3, "units": 1},
    ],
)
@torch.no_grad()
def test_the_output_is_that_of_the_papers_concatenations(settings):
    network = randomise(MDCSRN(**settings))
    x = torch.randn(2, 1, 9, 11, 10, generator=torch.Generator().manual_seed(1))
    expected = paper_forward(network, x)
    kept = x.clone()
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        out = network.to(memory_format=memory_format)(x)
        assert out.shape == x.shape
        assert (out - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(x, kept)


def test_the_gradients_are_those_of_the_papers_concatenations():
    network = randomise(MDCSRN(width=3, blocks=3, units=2)).double()
    x = torch.randn(1, 1, 6, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    theirs = torch.autograd.grad(
        paper_forward(network, x).square().sum(), list(network.parameters())
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", [True, False])
def test_the_residual_form_begins_at_its_input(mode):
    x = torch.randn(2, 1, 8, 9, 7)
    assert torch.equal(MDCSRN(width=4, residual=True).train(mode)(x), x)
    assert not torch.allclose(MDCSRN(width=4).train(mode)(x), x, atol=0.1)


@pytest.mark.parametrize(
    "settings", [{"width": 1}, {"width": 3, "blocks": 2, "units": 2, "residual": True}]
)
@torch.no_grad()
def test_an_output_voxel_sees_exactly_the_halo(settings):
    network = randomise(MDCSRN(**settings)).double()
    n = 2 * network.halo + 5
    middle = n // 2
    x = torch.randn(1, 1, n, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = x.clone()
    other[0, 0, middle, middle, middle] += 10
    changed = (network(x) != network(other))[0, 0].nonzero()
    assert (changed - middle).abs().max() == network.halo
    assert (changed.min(0).values == middle - network.halo).all()
    assert (changed.max(0).values == middle + network.halo).all()
