"""Whole scans: tiles change nothing, memory stays within its budget, and voxels stay in place."""

import json
import os
import re
import subprocess
import sys
import warnings
from itertools import product

import numpy as np
import pytest
import torch

from srlib import systems
from srlib.core.paths import InputError, ScanWarning, shipped_file
from srlib.inference.tiles import run_patches, run_tiled
from srlib.models.mdcsrn import MDCSRN
from srlib.models.weights import save_weights
from srlib.scans.volume import Volume, save_scan
from srlib.systems.trained import Model, find_weights, load_model, super_resolve


def make_model(name="mdcsrn_res", **settings):
    network = MDCSRN(width=2, residual=True, **settings).eval().requires_grad_(False)
    return Model(network, systems.get(name))


@pytest.mark.parametrize("shape", [(40, 41, 44), (43, 70, 9)])
@torch.inference_mode()
def test_tiles_give_what_the_whole_scan_gives(shape, noise):
    torch.manual_seed(0)
    network, data = MDCSRN(width=4, blocks=2, units=2).eval(), noise(shape)
    whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()
    fits = (3 * data.nbytes + 4 * network.live_channels * data.size) / 1e9
    for share in (1.01, 0.4, 0.2):
        tiled = run_tiled(network, data, fits * share)
        assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()


@torch.inference_mode()
def test_tiles_of_the_full_depth_give_what_the_whole_scan_gives(noise):
    torch.manual_seed(0)
    network, data = MDCSRN(width=4).eval(), noise((75, 38, 36))
    whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()
    tiled = run_tiled(
        network, data, (3 * data.nbytes + 4 * network.live_channels * 60 * 38 * 36) / 1e9
    )
    assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()


def test_a_budget_below_the_scan_or_its_smallest_tile_is_refused(noise):
    network, data = MDCSRN(width=4).eval(), noise((40, 40, 40))
    for budget in (1e-4, 3.2 * data.nbytes / 1e9, 0, -1):
        with pytest.raises(InputError, match="memory"):
            run_tiled(network, data, budget)


class Two(torch.nn.Conv3d):
    """Two output channels, and as much memory as is said."""

    halo = 1

    def __init__(self, live_channels):
        super().__init__(1, 2, 3, padding=1)
        self.live_channels = live_channels


@torch.inference_mode()
def test_several_output_channels_come_back_in_tiles(noise):
    network, data = Two(3), noise((30, 31, 32))
    whole = network(torch.from_numpy(data)[None, None])[0].numpy()
    for budget in (1.0, 0.01):
        np.testing.assert_allclose(run_tiled(network, data, budget), whole, atol=1e-5)


def test_the_memory_that_a_scan_is_said_to_need_is_enough(noise):
    network, data = Two(1_000_000), noise((5, 4, 6))
    with pytest.raises(
        InputError, match=r"needs 0\.11 GB .* smallest tile and 0\.49 GB in one piece, 0\.1 GB"
    ) as error:
        run_tiled(network, data, 0.1)
    assert "--max-memory" in str(error.value)
    whole = run_tiled(network, data, 0.49)
    np.testing.assert_allclose(run_tiled(network, data, 0.11), whole, atol=1e-5)


MEASURE = """
from pathlib import Path
import numpy as np, torch
from srlib.models.mdcsrn import MDCSRN
from srlib.inference.tiles import run_tiled

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

torch.set_num_threads(2)
network = MDCSRN(width=4, blocks=2, units=2).eval()
run_tiled(network, np.zeros((24, 24, 24), np.float32))
before, scan = peak(), np.ones((100, 110, 90), np.float32)
for budget in (0.2, 0.4):
    run_tiled(network, scan, budget)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is read from /proc")
def test_peak_memory_stays_within_the_budget():
    # not ru_maxrss, which a child inherits from the process that started it
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    used = [int(line) for line in done.stdout.split()]
    assert used[0] < 0.2e9
    assert used[1] < 0.4e9
    assert used[1] > 1.2 * used[0]  # a larger budget is used


FACTORS = [(2, 2, 2), (1, 2, 3), (2.5, 1.5, 1), (1, 1, 1)]


def test_a_blob_stays_where_it_is(affine, blob, centre_of_mass, to_world):
    for factor, shape in product(FACTORS, [(25, 21, 23), (24, 22, 20)]):
        scan = blob(shape, affine)
        scan = scan.with_data(scan.data * 3000)
        out = super_resolve(scan, make_model(blocks=1, units=1), factor=factor)
        assert out.shape == tuple(round(n * f) for n, f in zip(shape, factor, strict=True))
        moved = np.linalg.solve(affine[:3, :3], centre_of_mass(out) - centre_of_mass(scan))
        assert np.abs(moved).max() < 0.05
        far = (
            to_world(out.affine, np.array(out.shape) - 0.5),
            to_world(affine, np.array(shape) - 0.5),
        )
        np.testing.assert_allclose(
            to_world(out.affine, (-0.5,) * 3), to_world(affine, (-0.5,) * 3), atol=1e-9
        )
        np.testing.assert_allclose(*far, atol=1e-9)
        np.testing.assert_allclose(
            out.spacing_mm, np.divide(scan.spacing_mm, factor), rtol=0.5 / min(out.shape)
        )
        assert out.data.max() == pytest.approx(scan.data.max(), rel=0.05)


def test_a_spacing_is_a_factor(oblique, blob):
    scan, model = blob((11, 12, 13), oblique), make_model(blocks=1, units=1)
    by_factor = super_resolve(scan, model, factor=(1, 2, 2.5))
    by_spacing = super_resolve(scan, model, spacing_mm=np.divide(scan.spacing_mm, (1, 2, 2.5)))
    np.testing.assert_allclose(by_spacing.data, by_factor.data, atol=1e-5)
    np.testing.assert_allclose(by_spacing.affine, by_factor.affine)


@pytest.mark.parametrize(("name", "factor"), [("mdcsrn_res", 2), ("mdcsrn_res_kspace", 1)])
def test_the_default_factor_is_that_of_the_models_task(name, factor, blob):
    scan = blob((11, 12, 13))
    assert super_resolve(scan, make_model(name, blocks=1, units=1)).shape == tuple(
        factor * n for n in scan.shape
    )


def test_bad_factors_and_spacings_are_refused(blob):
    model, scan = make_model(blocks=1, units=1), blob((9, 9, 9))
    wrong = [
        {"factor": f} for f in ((0.5, 1, 1), (2, 2), (2, np.nan, 2), (2, np.inf, 2), (2, -2, 2))
    ]
    wrong += [{"spacing_mm": mm} for mm in ((1, 1, 2), (1, 1, 0), (1, 1), (1, 1, -1))]
    for settings in (*wrong, {"factor": (2, 2, 2), "spacing_mm": (0.5, 0.5, 0.5)}):
        with pytest.raises(InputError, match=r"factor|spacing"):
            super_resolve(scan, model, **settings)


def test_a_constant_scan_is_refused():
    with pytest.raises(InputError, match="constant"):
        super_resolve(Volume(np.ones((9, 9, 9)), np.eye(4)), make_model(blocks=1, units=1))


@pytest.fixture
def weights(tmp_path):
    """Maker of a weights file as training writes it."""

    def make(name="model.safetensors", metadata=None, drop=0):
        experiment = systems.get("mdcsrn_res", "smoke")
        torch.manual_seed(0)
        network = MDCSRN(width=experiment.network.width, **experiment.network.model_args)
        state = dict(list(network.state_dict().items())[drop:])
        save_weights(
            state,
            tmp_path / name,
            {"experiment": experiment.to_json()} if metadata is None else metadata,
        )
        return tmp_path / name, network, experiment

    return make


def test_a_model_is_loaded_as_it_was_saved(weights):
    path, network, experiment = weights()
    model = load_model(path, device="cpu")
    assert model.experiment.to_json() == experiment.to_json()
    assert not model.network.training
    for name, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value)


def test_a_truncated_model_is_refused(weights):
    path = weights()[0]
    whole = path.read_bytes()
    for size in (0, 5, 200, 20_000, -1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=path.name):
            load_model(path, device="cpu")


def test_weights_that_are_not_of_an_experiment_are_refused(weights):
    for metadata in (
        {},
        {"experiment": "?"},
        {"experiment": "{}"},
        {"experiment": "[]"},
        {"a": "b"},
    ):
        with pytest.raises(InputError, match="experiment"):
            load_model(weights(metadata=metadata)[0], device="cpu")


def test_experiments_that_were_damaged_are_refused():
    whole = json.loads(systems.get("mdcsrn_res").to_json())
    sigma = {"task_settings": {whole["task"]: ["gaussian", {"factor": [2, 2, "?"]}]}}
    for change in (
        {"schema": 99}, {"prediction": whole["game"]}, {"network": {"kind": "x"}}, {"task": "none"}, {"name": None}, sigma
    ):  # fmt: skip
        with pytest.raises(InputError, match="not the description of an experiment"):
            systems.from_json(json.dumps(whole | change))


def test_other_files_are_refused_with_their_name(weights, tmp_path):
    (tmp_path / "text.safetensors").write_text("not weights at all")
    (tmp_path / "folder").mkdir()
    lacking = weights("lacking.safetensors", drop=1)[0]
    for path in (
        tmp_path / "missing.safetensors",
        tmp_path / "text.safetensors",
        tmp_path / "folder",
        lacking,
    ):
        with pytest.raises(InputError, match=path.name) as error:
            load_model(path, device="cpu")
        assert "\n" not in str(error.value)


def test_published_weights_are_loaded_by_their_name(published_dir):
    path = published_dir / "mDCSRN_pretrained_G_step250000.pth"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {published_dir}; get it from its authors")
    model = load_model(path, device="cpu")
    assert model.experiment.name == "mdcsrn"


def test_a_device_that_is_not_there_is_refused(weights):
    with pytest.raises(InputError, match="device"):
        load_model(weights()[0], device="cuda:99")


def test_stitched_patches_equal_the_whole_where_the_margin_covers_what_the_network_sees():
    torch.manual_seed(0)
    network = MDCSRN(width=2, blocks=1, units=2).eval().requires_grad_(False)
    data = np.random.default_rng(0).random((21, 19, 17), dtype=np.float32)
    whole = network(torch.from_numpy(data)[None, None])[0, 0].numpy()
    covered = run_patches(network, data, patch_size=12, margin=network.halo)
    np.testing.assert_allclose(covered, whole, atol=1e-5)
    assert np.abs(run_patches(network, data, patch_size=12, margin=1) - whole).max() > 1e-3


@pytest.mark.parametrize("shape, frame", [((21, 19, 18), (5, 6, 3)), ((6, 12, 7), (3, 3, 6))])
def test_a_frame_of_zeros_is_that_of_the_replicated_evaluation(shape, frame):
    """Zeros around the scan, patches at every stride, margins cut, put side by side, frame cut.

    The replicated code's frame of a 256 x 320 x 320 scan is 20, 17, 17 voxels: (58 k - n) / 2 + 3.
    """
    torch.manual_seed(0)
    network = MDCSRN(width=2, blocks=1, units=2).eval().requires_grad_(False)
    data = np.random.default_rng(0).random(shape, dtype=np.float32)
    padded = np.pad(data, [(f, f + 6) for f in frame])  # at the end more than is needed
    merged = np.zeros(np.add(padded.shape, 12), np.float32)
    counts = [-(-n // 6) for n in shape]
    for i, j, k in np.ndindex(*counts):
        patch = padded[6 * i : 6 * i + 12, 6 * j : 6 * j + 12, 6 * k : 6 * k + 12]
        out = network(torch.from_numpy(patch.copy())[None, None])[0, 0].numpy()
        place = tuple(slice(6 * n, 6 * n + 6) for n in (i, j, k))
        merged[place] = out[3:-3, 3:-3, 3:-3]
    start = [f - 3 for f in frame]
    expected = merged[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    framed = run_patches(network, data, patch_size=12, margin=3, frame=True)
    np.testing.assert_allclose(framed, expected, atol=1e-6)
    assert np.abs(run_patches(network, data, patch_size=12, margin=3) - expected).max() > 1e-3


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Maker of a run's folder in the results, with a weights file of the given age in seconds."""
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SRLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.chdir(tmp_path)

    def make(run, folder="quick", age=0):
        file = tmp_path / "results" / folder / "checkpoints" / run / "model.safetensors"
        file.parent.mkdir(parents=True)
        file.write_text(run)
        os.utime(file, (2e9 - age, 2e9 - age))
        return file

    return make


def test_of_an_experiments_runs_the_best_profile_counts_then_the_newest(trained, capsys):
    trained("mdcsrn-smoke-s0-mine", age=0)
    only = trained("mdcsrn_res-smoke-s0-mine", age=1)
    assert find_weights("mdcsrn_res") == only and not capsys.readouterr().err
    trained("mdcsrn-quick-s0-mine", age=1)
    trained("mdcsrn-study-s0-mine", age=2)
    trained("mdcsrn-paper-s0-mine", age=4)
    newest = trained("mdcsrn-paper-s1-mine", "paper_mine", age=3)
    assert find_weights("mdcsrn") == newest
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "mdcsrn-paper-s0-mine" in line and "mdcsrn_res" not in line
    find_weights("mdcsrn")
    assert not capsys.readouterr().err, "said once"


def test_a_run_is_found_by_its_id_and_by_its_folder(trained, tmp_path):
    one, two = (
        trained("mdcsrn_res-quick-s0-mine.v2"),
        trained("mdcsrn_res-quick-s0-mine.v2-1a2b3c4d"),
    )
    assert find_weights("mdcsrn_res-quick-s0-mine.v2") == one
    assert (
        find_weights(str(two.parent)) == find_weights(f"{two.parent}/") == find_weights(two) == two
    )
    assert find_weights("results/quick/checkpoints/mdcsrn_res-quick-s0-mine.v2").resolve() == one
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_text("")
    assert find_weights("mine") == find_weights(tmp_path / "mine").relative_to(tmp_path)


NOWHERE = (
    "/no/such/folder/mdcsrn_res", "./mdcsrn_res", "~/no-such/mdcsrn_res", "mdcsrn_res.safetensors", "mdcsrn", "mdcsrn_r",
    "mdcsrn_res-quick", "mdcsrn_res-quick-s0", "*", "mdcsrn_re[s]", "results/quick", "./SRCNN3D_iter_470000.caffemodel",
)  # fmt: skip


def test_what_leads_nowhere_is_never_another_run(trained, tmp_path):
    trained("mdcsrn_res-quick-s0-mine")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "SRCNN3D_iter_470000.caffemodel").write_text("")
    for name in NOWHERE:
        with pytest.raises(InputError, match=re.escape(name)) as error:
            find_weights(name)
        assert "\n" not in str(error.value)
    assert find_weights("SRCNN3D_iter_470000.caffemodel").is_file()


def test_ones_own_robust_is_reached_while_robust_is_the_shipped_one(trained, capsys):
    own = trained("robust-paper-s0-mine")
    assert find_weights("robust") == shipped_file("robust") and str(own) in capsys.readouterr().err
    assert find_weights("robust-paper-s0-mine") == find_weights(own.parent) == own


def test_each_scan_is_warned_of_once_at_the_user_s_line(tmp_path, blob):
    """Also where the words are the same, and where Python's own filter would take the second scan for the first."""
    model = make_model(blocks=1, units=1)
    spike = blob((70, 70, 66), sigma=15.0)
    spike.data[3, 4, 5] = 5000
    save_scan(spike, tmp_path / "spike.nii")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for scan in (spike, Volume(spike.data.copy(), spike.affine), tmp_path / "spike.nii"):
            super_resolve(scan, model, factor=(1, 1, 1))
    told = [w for w in caught if w.category is ScanWarning]
    assert len(told) == 3 and {w.filename for w in told} == {__file__}
    assert str(told[0].message).startswith("few voxels take most of the range: 1 of 323400")
    assert str(told[2].message).startswith(f"{tmp_path / 'spike.nii'}: few voxels")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScanWarning)
        super_resolve(blob((70, 70, 66), sigma=15.0), model, factor=(1, 1, 1))
        with pytest.raises(ScanWarning):
            super_resolve(spike, model, factor=(1, 1, 1))
