"""SRReCNN3D and SRCNN3D: their networks, the published weights, and the published task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from scipy import ndimage

from srlib import systems
from srlib.core.paths import InputError, published_dir
from srlib.degradations.tasks import degradation_of
from srlib.inference.prediction import AboveMinimum, SameGrid
from srlib.inference.tiles import run_tiled
from srlib.metrics import psnr
from srlib.models.recnn import SRCNN3D, ReCNN
from srlib.scans.patches import tiles
from srlib.scans.volume import Volume
from srlib.systems.published import load_published
from srlib.systems.registry import EXPERIMENTS, PROFILES, get
from srlib.systems.trained import Model, load_model, super_resolve
from srlib.training.games import Players

PUBLISHED = published_dir()
MONO = "SRReCNN3D_10Layers_IsoScalex2.caffemodel"
MULTI = "MultiSRReCNN3D_10Layers_IsoScalex2.caffemodel"
SRCNN = "SRCNN3D_iter_470000.caffemodel"


def published(name: str) -> Path:
    if not (PUBLISHED / name).is_file():
        pytest.skip(f"{name} is not at hand; SRLIB_PUBLISHED names its folder")
    return PUBLISHED / name


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Central 112^3 voxels of the MNI152 T1 template in [0, 1], and the same degraded and interpolated back."""
    from nilearn import datasets

    data = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    box = tuple(slice((n - 112) // 2, (n - 112) // 2 + 112) for n in data.shape)
    hr = Volume((data[box] - data[box].min()) / np.ptp(data[box]), np.eye(4))
    degradation = degradation_of("gaussian_x2_corners")
    return hr.data, degradation.to_grid(degradation(hr), hr.shape).data


def inner_psnr(hr: np.ndarray, sr: np.ndarray) -> float:
    inside = (slice(8, -8),) * 3
    return psnr(hr[inside], sr[inside], data_range=1.0)


def test_published_sizes():
    assert parameters(ReCNN()) == 888_769
    assert parameters(ReCNN(in_channels=2)) == 888_769 + 27 * 64
    assert parameters(SRCNN3D()) == 9**3 * 64 + 64 + 64 * 32 + 32 + 32 * 5**3 + 1


@pytest.mark.parametrize("in_channels", [1, 2])
def test_weights_start_as_in_the_code(in_channels):
    torch.manual_seed(0)
    network = ReCNN(in_channels=in_channels)
    for index, conv in enumerate(network.children()):
        fan_in = 27 * (64 if index else in_channels)
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06)
        assert abs(conv.weight.mean().item()) < 0.1 * conv.weight.std().item()
        assert not conv.bias.any()
    for conv in SRCNN3D().children():
        assert conv.weight.std().item() == pytest.approx(0.001, rel=0.06)
        assert not conv.bias.any()


def test_residual_is_added_to_channel_0_alone():
    x = torch.rand(2, 2, 6, 7, 8)
    with_residual, without = ReCNN(4, 3, in_channels=2), ReCNN(4, 3, in_channels=2, residual=False)
    without.load_state_dict(with_residual.state_dict())
    torch.testing.assert_close(with_residual(x), without(x) + x[:, :1])
    assert with_residual(x).shape == (2, 1, 6, 7, 8)


def test_ours_starts_from_the_interpolated_scan():
    x = torch.rand(1, 2, 6, 7, 8)
    assert torch.equal(ReCNN(4, 3, in_channels=2, zero_last=True)(x), x[:, :1])


def test_relu_after_all_but_the_last():
    network = ReCNN(1, 2, kernel=1, residual=False)
    with torch.no_grad():
        for conv in network.children():
            conv.weight.fill_(-1)
    x = torch.tensor([-2.0, 3.0]).view(1, 1, 1, 1, 2)
    assert network(x).flatten().tolist() == [-2.0, 0.0]


def test_input_is_left_as_it_was():
    x = torch.randn(1, 1, 5, 5, 5)
    before = x.clone()
    with torch.inference_mode():
        ReCNN(4, 2)(x)
        ReCNN(4, 1)(x)
        SRCNN3D(4)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "network",
    [ReCNN(4, 10), ReCNN(4, 3, kernel=5, residual=False), SRCNN3D(4), SRCNN3D(4, (9, 5, 5))],
)
def test_halo_is_the_receptive_field(network):
    network = network.double()
    for conv in network.children():  # positive, so that no ReLU hides a voxel
        torch.nn.init.uniform_(conv.weight, 0.1, 1)
    n = 2 * network.halo + 5
    x = torch.rand(1, 1, n, 3, 3, dtype=torch.float64, requires_grad=True)
    network(x)[0, 0, n // 2, 1, 1].backward()
    seen = x.grad[0, 0].abs().amax((1, 2)).nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (n // 2 - network.halo, n // 2 + network.halo)


@pytest.mark.parametrize("network", [ReCNN(8, 4), SRCNN3D(8)])
def test_tiles_give_the_whole(network):
    torch.manual_seed(1)
    for conv in network.children():
        torch.nn.init.kaiming_normal_(conv.weight)
    network = network.to(memory_format=torch.channels_last_3d).eval()
    data = np.random.default_rng(0).random((37, 30, 41), dtype=np.float32)
    voxels = 12_000  # of a tile: about a quarter of the scan, and its halo
    assert len(tiles(data.shape, network.halo, voxels)[0]) > 4
    budget = (3 * data.nbytes + 4 * network.live_channels * voxels) / 1e9
    np.testing.assert_allclose(
        run_tiled(network, data, budget), run_tiled(network, data, 1.0), atol=1e-5
    )


def test_faces_repeat_in_srcnn3d():
    network = SRCNN3D(4)
    for conv in network.children():
        torch.nn.init.uniform_(conv.weight)
    y = network(torch.full((1, 1, 9, 9, 9), 0.5))
    torch.testing.assert_close(
        y, y[:, :, 4:5, 4:5, 4:5].expand_as(y)
    )  # a constant scan has no edge


def test_gradients_reach_every_layer():
    for network, channels in ((ReCNN(4, 4), 1), (ReCNN(4, 4, in_channels=2), 2), (SRCNN3D(4), 1)):
        network(torch.rand(1, channels, 8, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_loss_of_srcnn3d_is_that_of_a_convolution_without_padding():
    """The code's label is the inner 21^3 voxels of a patch of 33^3, all that such a network gives."""
    experiment = systems.get("srcnn3d", "paper", "network.width=4")
    network, patch = experiment.network.build(), torch.rand(1, 1, 33, 33, 33)
    truth, valid = torch.rand(1, 1, 33, 33, 33), patch
    for index, conv in enumerate(network.children()):
        torch.nn.init.normal_(conv.weight, std=0.1)
        valid = torch.nn.functional.conv3d(valid.relu() if index else valid, conv.weight, conv.bias)
    assert valid.shape[2:] == (21, 21, 21) and experiment.training.loss_crop == 21
    machine = Fabric(accelerator="cpu", devices=1)
    players = Players({"generator": network}, experiment.training, machine, 0)
    loss = players.supervised(network(patch), truth)["loss"]
    expected = (valid - truth[..., 6:27, 6:27, 6:27]).square().sum() / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def halving(base: str, *overrides: str) -> Model:
    """A model that takes half of its input and subtracts 0.1."""
    network = ReCNN(1, 1, kernel=1, residual=False)
    with torch.no_grad():
        network.conv1.weight.fill_(0.5)
        network.conv1.bias.fill_(-0.1)
    return Model(network.eval().requires_grad_(False), systems.get(base, "smoke", overrides))


@pytest.mark.parametrize("order", [1, 3])
def test_published_forms_are_applied_as_the_test_scripts_do(order, noise):
    """Divided by the maximum, zoomed, estimated, multiplied back, nowhere below the minimum."""
    data = noise((9, 8, 10)).astype(np.float64) * 700
    data[0, 0, 0] = 0
    scan = Volume(data, np.eye(4))
    inside = ndimage.zoom(data / data.max(), 2, order=order)
    expected = (inside * 0.5 - 0.1) * data.max()
    assert expected.min() < -10
    model = halving("recnn", f"degradation.order_up={order}")
    request = {"factor": (2, 2, 2), "align": "corners"}
    sr = super_resolve(scan, model, **request).data
    np.testing.assert_allclose(sr, np.maximum(expected, 0), atol=0.01)
    # ours: a scan that does not begin at 0 is estimated as it would be if it did
    shifted = super_resolve(Volume(data - 250, np.eye(4)), model, **request).data
    np.testing.assert_allclose(shifted, sr - 250, atol=0.01)
    free = super_resolve(scan, halving("recnn_x2"), **request).data
    assert free.min() < -10  # common forms are not clipped


def test_weights_of_before_keep_the_observation_model_and_scaling_of_their_record(noise):
    fields = json.loads(systems.get("recnn").to_json())
    for settings in (settings for _, settings in fields["task_settings"].values()):
        del settings["blur_first"]
    old = systems.from_json(json.dumps(fields | {"prediction": {"kind": "SameGrid"}}))
    hr = Volume(noise((13, 15, 16)), np.eye(4))
    cut = hr.data[:12, :14].astype(np.float64)
    down = ndimage.zoom(ndimage.gaussian_filter(cut, 1), 0.5, order=3, mode="mirror")
    np.testing.assert_allclose(old.pairs.degrade(hr).lr.data, down, atol=1e-5)
    assert old.prediction == SameGrid() and systems.get("recnn").prediction == AboveMinimum()


def test_the_input_may_be_left_out_of_the_result(noise):
    """As the test script's --residual False; the file does not say it."""
    model = halving("recnn")
    model.network.residual = True
    scan = Volume(noise((6, 6, 6)), np.eye(4))
    with_input = super_resolve(scan, model, factor=(1, 1, 1)).data
    model.network.residual = False
    np.testing.assert_allclose(
        super_resolve(scan, model, factor=(1, 1, 1)).data,
        np.maximum(with_input - scan.data + scan.data.min(), scan.data.min()),
        atol=1e-3,
    )


@pytest.mark.parametrize("name", ["recnn", "recnn_multi", "srcnn3d"])
def test_experiments_fit_their_networks(name):
    for profile in PROFILES:
        experiment = get(name, profile)
        network = experiment.network.build()
        shape = (1, experiment.network.model_args.get("in_channels", 1), 5, 5, 5)
        assert network(torch.rand(shape)).shape == (1, 1, 5, 5, 5)


def test_interpolation_at_the_published_task(scan):
    assert inner_psnr(*scan) == pytest.approx(28.87, abs=0.02)


@pytest.mark.parametrize(
    ("file", "experiment", "expected"),
    [(MONO, "recnn", 34.20), (SRCNN, "srcnn3d", 32.42)],
    ids=["recnn", "srcnn3d"],
)
def test_published_weights_at_the_published_task(scan, file, experiment, expected):
    model = load_model(published(file), device="cpu")
    assert model.experiment is EXPERIMENTS[experiment]
    hr, on_grid = scan
    assert inner_psnr(hr, run_tiled(model.network, on_grid)) == pytest.approx(expected, abs=0.02)


def test_published_multimodal_weights(scan):
    network, experiment = load_published(published(MULTI))
    assert experiment.name == "recnn_multi"
    assert network.conv1.weight.shape == (64, 2, 3, 3, 3)
    crop = np.stack(
        [side[40:72, 40:70, 40:73] for side in reversed(scan)]
    )  # degraded scan, then its reference
    with torch.inference_mode():
        sr = network(torch.from_numpy(crop)[None])
    assert sr.shape == (1, 1, *crop.shape[1:])
    assert sr.isfinite().all()


def test_weights_of_another_network_are_refused(tmp_path):
    for name, content in (
        (MONO, published(MULTI).read_bytes()),
        (SRCNN, published(MONO).read_bytes()),
        (MULTI, b"?"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as error:
            load_published(tmp_path / name)
        assert "\n" not in str(error.value)
