"""The 2-D networks: sizes, places, parameters, and what an output pixel sees."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from srlib.core.paths import InputError
from srlib.models.registry import MODELS
from srlib.models.srresnet2d import Discriminator2D, SRResNet2D
from srlib.scans.patches import tiles

FORMS = ("ultrasound", "ct")


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def conv(a: int, b: int, k: int = 3) -> int:
    return k * k * a * b + b


def randomised(*args, **settings) -> SRResNet2D:
    """Every weight, slope and batch-norm statistic off its initial value, in evaluation mode."""
    torch.manual_seed(0)
    network = SRResNet2D(*args, **settings)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value += 0.1 * torch.rand(value.shape)
    return network.eval()


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (9, 12), (12, 9)])
@pytest.mark.parametrize("residual", [False, True])
def test_shapes(factor, size, residual):
    for form, grow in (("ultrasound", (factor, 1)), ("ct", (1, 1))):
        network, x = SRResNet2D(2, 1, factor, form, residual).eval(), torch.rand(2, 1, *size)
        y = network(x)
        assert y.shape == (2, 1, size[0] * grow[0], size[1] * grow[1])
        assert network.factor == (*grow, 1)
        assert torch.equal(network(x[..., None]), y[..., None])


def test_a_stack_is_its_slices():
    stack = torch.rand(2, 1, 10, 11, 3)
    network, judge = randomised(2, 1, 2), Discriminator2D(2).eval()
    y, scores = network(stack), judge(stack)
    assert y.shape == (2, 1, 20, 11, 3)
    assert scores.shape == (6,)
    for k in range(3):
        torch.testing.assert_close(y[..., k], network(stack[..., k]))
        torch.testing.assert_close(scores.view(2, 3)[:, k], judge(stack[..., k]))


@pytest.mark.parametrize(
    "settings",
    [{"factor": 3}, {"factor": 1}, {"factor": 0}, {"factor": 4.5}, {"form": "isotropic"}],
)
def test_other_factors_and_forms_are_refused(settings):
    with pytest.raises(InputError, match="expected factor"):
        SRResNet2D(2, 1, **settings)


def test_images_too_small_to_be_reflected_are_refused():
    network = SRResNet2D(2, 1, 16, "ct").eval()
    assert network(torch.rand(1, 1, 9, 9)).shape == (1, 1, 9, 9)
    with pytest.raises(InputError, match="at least 9 pixels"):
        network(torch.rand(1, 1, 9, 8))


@pytest.mark.parametrize(("width", "blocks", "steps"), [(64, 5, 2), (64, 5, 4), (8, 3, 1)])
def test_parameters(width, blocks, steps):
    w = width
    block = 2 * conv(w, w) + 2 * 2 * w + w  # convolutions, batch norms, PReLU
    middle = w + blocks * block + conv(w, w) + 2 * w  # after the first convolution
    tail = steps * (conv(w, 4 * w) + w) + conv(w, 1, 9)
    head = conv(1, w) + (steps - 1) * conv(4 * w, w) + steps * 4 * w + conv(4 * w, w)
    for form in FORMS:
        expected = (head if form == "ct" else conv(1, w, 9)) + middle + tail
        assert parameters(SRResNet2D(w, blocks, 2**steps, form)) == expected
    assert MODELS["srresnet2d"] is SRResNet2D


@pytest.mark.parametrize(
    ("form", "factor", "lr", "millions"), [("ultrasound", 4, 128, 51), ("ct", 16, 512, 46)]
)
def test_slopes_per_pixel_would_give_the_codes_number_of_parameters(form, factor, lr, millions):
    network, more = SRResNet2D(factor=factor, form=form), []
    for layer in network.modules():
        if isinstance(layer, nn.PReLU):
            layer.register_forward_hook(
                lambda _, __, out: more.append(out[0].numel() - out.shape[1])
            )
    network.to("meta").eval()(torch.rand(1, 1, lr, 512, device="meta"))
    more += [
        2 * layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)
    ]
    assert (parameters(network) + sum(more)) // 1_000_000 == millions


def test_discriminator_has_the_codes_number_of_parameters():
    with torch.device("meta"):
        judge = Discriminator2D(shape=(512, 512))
    statistics = sum(b.numel() for name, b in judge.named_buffers() if "running" in name)
    assert parameters(judge) + statistics == 541_564_609
    assert parameters(Discriminator2D()) == parameters(judge) - (32 * 32 - 1) * 512 * 1024


def test_discriminator_judges_any_size_or_its_own():
    for size in ((33, 50), (16, 16), (64, 40)):
        assert Discriminator2D(2).eval()(torch.rand(3, 1, *size)).shape == (3,)
        assert Discriminator2D(2, size).eval()(torch.rand(3, 1, *size, 1)).shape == (3,)
    with pytest.raises(RuntimeError):
        Discriminator2D(2, (64, 40))(torch.rand(3, 1, 64, 64))


def test_batch_norm_and_start_are_keras_where_asked():
    """Moving statistics keep 0.99 of their old values; Glorot's limit is sqrt(6 / (in + out))."""
    settings = {"momentum": 0.01, "epsilon": 1e-3, "keras_start": True}
    networks = SRResNet2D(8, 1, 4, **settings), Discriminator2D(8, (32, 32), **settings)
    for network in networks:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all((n.eps, n.momentum) == (1e-3, 0.01) for n in norms)
        for name, weight in network.named_parameters():
            if name.endswith("bias"):
                assert not weight.any(), name
            elif weight.dim() > 1:
                a, b = weight.shape[:2]
                limit = (6 / ((a + b) * weight[0, 0].numel())) ** 0.5
                assert 0.8 * limit < weight.abs().max() <= limit, name
    norm = nn.BatchNorm2d(1, eps=1e-3, momentum=0.01)
    norm(torch.full((1, 1, 4, 4), 5.0))
    assert norm.running_mean.item() == pytest.approx(0.99 * 0 + 0.01 * 5)
    default = next(m for m in SRResNet2D(2, 1, 2).modules() if isinstance(m, nn.BatchNorm2d))
    assert (default.eps, default.momentum) == (1e-5, 0.1)  # of weights trained before


@torch.inference_mode()
def test_padding_at_stride_2_is_keras_for_the_mirrored_image():
    """Keras pads an even size behind its last pixel alone (TensorFlow's SAME)."""
    critic, image = Discriminator2D(3, (32, 48)).eval(), torch.rand(2, 1, 32, 48)
    theirs = image.flip(2, 3)
    for layer in critic.features[:-1]:
        if isinstance(layer, nn.Conv2d):
            halved = layer.stride == (2, 2)
            around = (0, 1, 0, 1) if halved else (1, 1, 1, 1)
            weight = layer.weight.flip(2, 3)
            theirs = functional.conv2d(
                functional.pad(theirs, around), weight, layer.bias, layer.stride
            )
        else:
            theirs = layer(theirs)
    torch.testing.assert_close(critic.features[:-1](image), theirs.flip(2, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_residual_begins_at_its_input(training, factor):
    x = torch.rand(2, 1, 14, 15)
    assert torch.equal(SRResNet2D(2, 1, factor, "ct", residual=True).train(training)(x), x)
    y = SRResNet2D(2, 1, factor, "ultrasound", residual=True).train(training)(x)
    assert torch.equal(y[:, :, ::factor], x)  # the kept beams lie where they were
    assert not torch.allclose(SRResNet2D(2, 1, factor, "ct").train(training)(x), x, atol=0.05)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_ramp_stays_in_place(factor):
    n, m = 12 * factor, 11 * factor
    ramp = 3.0 * torch.arange(n)[:, None] + 2.0 * torch.arange(m)
    y = SRResNet2D(2, 1, factor, "ultrasound", residual=True)(ramp[None, None, ::factor])[0, 0]
    torch.testing.assert_close(
        y[factor : -2 * factor], ramp[factor : -2 * factor], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("factor", [2, 4])
def test_a_blob_stays_in_place(factor):
    centre = np.array([20.3 * factor, 17.6])

    def blob(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along, across = (x[:, None] - centre[0]) / factor, y - centre[1]
        return np.exp(-(along**2 + across**2) / (2 * 2.5**2))

    hr_x, y_axis = np.arange(41 * factor), np.arange(35)
    network = SRResNet2D(2, 1, factor, residual=True)
    lr = torch.from_numpy(blob(hr_x[::factor], y_axis)).float()
    y = network(lr[None, None]).detach()[0, 0].double().numpy()
    assert y.shape == (len(hr_x), len(y_axis))
    found = np.array([(y.sum(1) * hr_x).sum(), (y.sum(0) * y_axis).sum()]) / y.sum()
    assert np.abs(found - centre).max() < 0.02
    assert np.abs(y - blob(hr_x, y_axis)).max() < 0.02


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("factor", "blocks"), [(2, 2), (4, 1), (8, 0)])
def test_halo_is_what_an_output_pixel_sees(form, factor, blocks):
    network = SRResNet2D(1, blocks, factor, form, residual=True).eval().double()
    with torch.no_grad():
        for p in network.parameters():  # positive, so that no PReLU hides a pixel
            p.copy_(0.1 + torch.rand_like(p) / p.numel())
    grow, seen = network.factor, []
    n = -(-(2 * network.halo[0] + 5) // 16) * 16
    home = n // 2 // 8 * 8
    x = torch.rand(1, 1, n, n, dtype=torch.float64, requires_grad=True)
    y = network(x)[0, 0]
    for phase in range(factor):
        at = [home * f + phase for f in grow[:2]]
        (gradient,) = torch.autograd.grad(y[tuple(at)], x, retain_graph=True)
        places = gradient[0, 0].nonzero()
        for axis in (0, 1):
            own = at[axis] // grow[axis]
            seen += [own - places[:, axis].min().item(), places[:, axis].max().item() - own]
    assert max(seen) == network.halo[0]


@torch.inference_mode()
def test_skips():
    network, x = randomised(2, 2, 2), torch.rand(1, 2, 8, 9)
    block, norm = network.body[0], network.body[-1]
    for layer in (block.layers[-1], norm):
        layer.weight.zero_()
        layer.bias.zero_()
    assert torch.equal(block(x), x)
    image = x[:, :1]
    torch.testing.assert_close(
        network(image), network.last(network.up(network.first(image)))[..., :9]
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [(131, 107), (77, 163)])
@torch.inference_mode()
def test_tiles_give_the_whole(form, residual, size):
    network, data = randomised(2, 1, 4, form, residual), torch.rand(size)
    whole = network(data[None, None])[0, 0]
    out = torch.full_like(whole, torch.nan)
    todo, _ = tiles(
        data.shape,
        network.halo[:2],
        11_000 if form == "ct" else 4_000,
        multiple=network.multiple[:2],
    )
    assert len(todo) > 1
    for tile in todo:
        part = network(data[tile.outer.slices][None, None])[0, 0]
        inner = tile.inner.scaled(network.factor[:2])
        out[tile.core.scaled(network.factor[:2]).slices] = part[inner.slices]
    assert (out - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_everything(form):
    torch.manual_seed(0)
    for network in (SRResNet2D(4, 2, 4, form), Discriminator2D(2), Discriminator2D(2, (20, 20))):
        network(torch.randn(2, 1, 20, 20, 1)).square().sum().backward()
        for name, p in network.named_parameters():
            assert p.grad.isfinite().all(), name
            assert p.grad.any() or name.endswith("bias"), (
                name
            )  # a batch norm takes the bias before it away


def test_a_residual_network_learns_from_its_start():
    torch.manual_seed(0)
    hr = torch.rand(2, 1, 16, 12, 1)
    network = SRResNet2D(4, 1, 2, residual=True)
    optimizer, errors = torch.optim.Adam(network.parameters(), 3e-3), []
    for _ in range(30):
        error = (network(hr[:, :, ::2]) - hr).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]
