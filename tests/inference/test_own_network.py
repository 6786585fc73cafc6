"""Networks of one's own, not of srlib: any callable, in tiles, on scans and in the benchmark."""

import numpy as np
import pytest
import torch
from torch import nn

import srlib
from srlib import systems
from srlib.core.paths import InputError
from srlib.data.manifest import read_manifest
from srlib.data.pairs import ObservationModel
from srlib.evaluation import benchmark, quality
from srlib.inference.tiles import LIVE_CHANNELS, run_tiled, sight
from srlib.models import Critic, load_weights, save_weights
from srlib.scans.volume import Volume
from srlib.systems.trained import super_resolve


class Pooling(nn.Module):
    """A U-Net of two levels, which takes even sizes alone."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = (nn.Conv3d(n, 4, 3, padding=1) for n in (1, 4))
        self.up, self.last = nn.ConvTranspose3d(4, 4, 2, 2), nn.Conv3d(8, 1, 3, padding=1)

    def forward(self, x):
        fine = self.first(x).relu()
        below = self.deep(nn.functional.max_pool3d(fine, 2)).relu()
        return self.last(torch.cat([fine, self.up(below)], 1))


def two():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, (3, 5, 3), padding=(1, 2, 1))
    )


def finer():
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(4, 1, 2, 2))


def smooth(x):
    return nn.functional.avg_pool3d(x, 5, 1, 2)


def normalised(x):
    return (x - x.mean()) / x.std()


NETWORKS = {"two": two, "function": lambda: smooth, "finer": finer, "pooling": Pooling}
SEEN = {"two": (3, 1), "function": (2, 1), "finer": (1, 1), "pooling": (6, 2)}


def budget(shape, voxels, factor=1):
    """Of memory, so that a tile has so many voxels."""
    return (3 * 4 * np.prod(shape) * factor**3 + 4 * LIVE_CHANNELS * voxels) / 1e9


@pytest.mark.parametrize("kind", NETWORKS)
def test_tiles_of_any_network_give_what_it_gives(kind, noise):
    torch.manual_seed(0)
    network, data, seen = NETWORKS[kind](), noise((48, 36, 40)), []
    with torch.no_grad():
        whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()

    def watched(x):
        seen.append(tuple(x.shape[2:]))
        return network(x)

    factor = whole.shape[0] // data.shape[0]
    for halo in (None, SEEN[kind][0]) if kind != "pooling" else (None,):
        tiled = run_tiled(watched, data, budget(data.shape, 24_000, factor), halo=halo)
        assert seen[-1] != data.shape
        np.testing.assert_allclose(tiled, whole, atol=1e-5 * np.abs(whole).max())
    assert sight(network, 1) == SEEN[kind]


@pytest.mark.parametrize("network", [normalised, lambda x: x + torch.linspace(0, 1, x.shape[-1])])
def test_what_sees_everything_or_where_it_is_runs_in_one_piece(network, noise):
    data = noise((30, 31, 32))
    whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(run_tiled(network, data, budget(data.shape, data.size)), whole)
    with pytest.raises(InputError, match=r"smallest tile and 0\.04 GB in one piece") as error:
        run_tiled(network, data, budget(data.shape, 20_000))
    assert "\n" not in str(error.value)


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(
        InputError, match=r"makes \(1, 18, 18, 18\) of \(20, 20, 20\) voxels"
    ) as error:
        run_tiled(nn.Conv3d(1, 1, 3), np.zeros((20, 20, 20), np.float32))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"makes \(20, 20, 20\) of"):
        run_tiled(lambda x: x[0], np.zeros((20, 20, 20), np.float32))
    with pytest.raises(InputError, match=r"makes scans \(2, 2, 2\) times finer"):
        systems.Model(finer(), degradation="gaussian_x3")


def test_a_scan_of_any_network_stays_in_its_place(noise, oblique, to_world):
    scan = Volume(500 * noise((16, 15, 14)) + 20, oblique)
    corners = (-0.5,) * 3, np.array(scan.shape) - 0.5
    for network in (smooth, finer()):
        sr = srlib.super_resolve(scan, network)
        assert sr.shape == (32, 30, 28)
        ends = (-0.5,) * 3, np.array(sr.shape) - 0.5
        for ours, given in zip(ends, corners, strict=True):
            np.testing.assert_allclose(
                to_world(sr.affine, ours), to_world(oblique, given), atol=1e-9
            )
    same = srlib.super_resolve(scan, nn.Identity(), factor=(1, 1, 1))
    np.testing.assert_allclose(same.data, scan.data, rtol=1e-5)


def test_any_network_is_benchmarked_and_evaluated(cohort, tmp_path):
    subject = read_manifest(cohort, "test")[0]
    shipped = srlib.load_model(device="cpu")
    models = {"own": lambda x: x, "finer": finer(), "robust": shipped}
    rows, _ = benchmark.measure(subject, models, 16, dataset="d")
    found = {(r["degradation"], r["experiment"]): r["value"] for r in rows if r["metric"] == "psnr"}
    for task in benchmark.BENCHMARK:
        assert found[task, "own"] == pytest.approx(found[task, "cubic"], abs=1e-3)
    assert {task for task, name in found if name == "finer"} == {
        "gaussian_x2", "gaussian_x2_sigma0.5", "gaussian_x2_sigma2", "gaussian_x2_noise", "block_x2"
    }  # fmt: skip
    own = systems.Model(smooth, degradation=ObservationModel("gaussian_x3", intensity="halfmax"))
    assert own.name == "smooth" and own.experiment is None
    table = quality.evaluate(own, [subject], tmp_path)
    assert np.isfinite(table["psnr"]).all()


MODULE = "import torch\nnet = torch.nn.Dropout(0.9)\ndef plain(x):\n    return x\n"


def test_the_notebooks_extra_networks_are_imported_or_loaded(tmp_path, monkeypatch, tiny, noise):
    (tmp_path / "mine_of_the_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # puts the path back
    names = f"mine_of_the_test:net mine_of_the_test:plain {tiny}"
    found = benchmark.others(names)
    assert list(found) == names.split() and benchmark.others("") == {}
    data = noise((8, 8, 8))
    assert np.array_equal(run_tiled(found["mine_of_the_test:net"].network, data), data)  # eval
    assert found[str(tiny)].experiment.name == "mdcsrn_res"
    with pytest.raises(InputError, match="no such weights"):
        benchmark.others("lost")


def test_a_loaded_network_can_be_trained_on(tiny):
    frozen, ours = (
        srlib.load_model(tiny, device="cpu", trainable=t).network for t in (False, True)
    )
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert ours.training and all(p.requires_grad for p in ours.parameters())


def test_any_state_dict_is_saved(tmp_path):
    critic = Critic(width=2, patch_size=16)
    whole = torch.arange(12.0).reshape(3, 4)
    states = critic.state_dict(), {"a": whole, "b": whole, "turned": whole.T, "row": whole[1]}
    for number, state in enumerate(states):
        save_weights(state, tmp_path / f"{number}.safetensors")
        found = load_weights(tmp_path / f"{number}.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_result_that_is_not_finite_is_refused(blob):
    with pytest.raises(InputError, match="not finite"):
        super_resolve(blob(), lambda x: x * float("nan"))
    hurt = blob()
    hurt.data[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="1 voxels are NaN"):
        super_resolve(hurt)


def test_a_network_in_training_mode_is_run_in_evaluation_mode_and_left_as_it_was():
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.BatchNorm3d(1), nn.Dropout(0.5))
    network[1].eval()  # frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scan = Volume(np.random.default_rng(0).random((16, 16, 16)), np.eye(4))
    one, two = (super_resolve(scan, network) for _ in range(2))
    np.testing.assert_array_equal(one.data, two.data)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [part.training for part in network.modules()] == [True, True, False, True]


def test_the_default_type_of_pytorch_changes_nothing(tiny):
    scan = Volume(np.random.default_rng(0).random((16, 16, 16)), np.eye(4))
    expected = super_resolve(scan, tiny)
    torch.set_default_dtype(torch.float64)
    try:
        found = super_resolve(scan, tiny)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.data, expected.data)
