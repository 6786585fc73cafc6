"""Layers that networks share."""

import pytest
import torch
from torch import nn

from srlib.models.layers import Conv3d


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_and_its_gradients_are_those_of_pytorch(batch, channels, stride, mode):
    """Also where one small volume is computed as two."""
    torch.manual_seed(0)
    how = {"stride": stride, "padding": 1, "padding_mode": mode}
    ours, theirs = Conv3d(channels, 4, 3, **how), nn.Conv3d(channels, 4, 3, **how)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        x = torch.randn(batch, channels, 7, 6, 9, generator=torch.Generator().manual_seed(1))
        y = layer(x.requires_grad_())
        (y**2).sum().backward()
        found.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
