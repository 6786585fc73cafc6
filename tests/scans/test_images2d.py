"""2-D images through the data path: ultrasound on two grids, CT on one, stacks, the cross-entropy game, TensorBoard."""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import LocalFabric
from pydicom.data import get_testdata_file
from skimage import io
from skimage.transform import iradon, radon

from srlib import data, metrics, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, ScanWarning
from srlib.data import cohorts, phantoms
from srlib.data.convert import square
from srlib.degradations.tasks import degradation_of
from srlib.degradations.ultrasound import scan_convert
from srlib.evaluation import results, runs
from srlib.inference.prediction import Request
from srlib.inference.tiles import run_tiled
from srlib.models.srresnet2d import SRResNet2D, SRResNet2DRes
from srlib.models.weights import load_weights
from srlib.scans import formats, volume
from srlib.scans.volume import Volume
from srlib.systems import trained as use
from srlib.systems import training
from srlib.systems.trained import Model
from srlib.training import losses
from srlib.training.games import Players


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Manifests of small stacks (50, 44, 3): ultrasound in [0, 1], CT in HU."""
    folder, found = tmp_path_factory.mktemp("images"), {}
    for kind in ("us", "ct"):
        rows = ["subject,split,image"]
        for index, split in enumerate(("train", "val", "test")):
            stack = np.random.default_rng(index).random((50, 44, 3)).cumsum(1).cumsum(0) / 2200
            scan = Volume(stack if kind == "us" else stack * 1500 - 1100, np.diag([0.5, 0.7, 3, 1]))
            volume.save_scan(scan, folder / f"{kind}{index}.nii.gz")
            rows.append(f"{kind}{index},{split},{kind}{index}.nii.gz")
        found[kind] = folder / f"{kind}.csv"
        found[kind].write_text("\n".join(rows) + "\n")
    return found


def parts(manifest):
    return [data.read_manifest(manifest, split) for split in ("train", "val")]


def smoke(name, **changes):
    return systems.get(name, "smoke").changed(**changes)


def test_ultrasound_patches_lie_on_one_another(manifests):
    experiment = smoke("srresnet_us_res")
    dataset = experiment.examples.open(parts(manifests["us"])[0], experiment.pairs)
    assert dataset.factor == (4, 1, 1)
    for place in dataset.grid(0):
        given, truth = dataset.read(0, place)
        assert given.shape == (1, 8, 32, 1) and truth.shape == (1, 32, 32, 1)
        np.testing.assert_array_equal(given, truth[:, ::4])


def own(image):
    """Scaled to [0, 1] by its own extremes."""
    return (image - image.min()) / np.ptp(image)


def test_published_ultrasound_sides_are_scaled_each_by_itself():
    image = np.random.default_rng(0).random((64, 60, 1), np.float32)
    image[5, 5] = 3  # the brightest echo lies on a column that is left out
    given, truth = smoke("srresnet_us").pairs.degrade(Volume(image, np.eye(4))).for_training()
    np.testing.assert_allclose(truth, own(image), atol=1e-6)
    np.testing.assert_allclose(given[0], own(image[::4]), atol=1e-6)
    assert given.max() == truth.max() == 1 and 2.9 < own(image[::4])[1, 0, 0] / truth[4, 0, 0] < 3.1


def test_the_printed_bicubic_image_lies_off_the_beams():
    """Half-pixel centres, as tf.image.resize has them, take column j of 4 at (j - 1.5) / 4."""
    polar, *_ = phantoms.bmode(np.random.default_rng(0), 70, 720)
    sector = {"initial_radius": 288, "final_radius": 1008, "initial_angle": -0.6}
    image = square(scan_convert(polar, **sector, final_angle=0.6))
    pair = systems.get("srresnet_us").pairs.degrade(image)
    half = volume.fine_grid(pair.lr, (4, 1, 1), align="center")[1]
    assert half[0, 3] == pair.hr.affine[0, 3] - 1.5
    printed = volume.resample(pair.lr, pair.hr.shape, half)
    for estimate, expected in ((pair.on_grid, 34.50), (printed, 30.36)):
        assert metrics.psnr(pair.hr.data, estimate.data, 1) == pytest.approx(expected, abs=0.05)


def test_published_ct_is_scaled_by_each_slices_own_extremes():
    """The code's rule step by step, with scikit-image's projections."""
    hu = phantoms.ct_slice(np.random.default_rng(0), 128).T
    angles = np.linspace(0, 180, 1000, endpoint=False)
    views = radon(own(np.clip(hu, -1024, 200)), theta=angles, circle=False)
    full = iradon(views, theta=angles, circle=False)
    sparse = iradon(views[:, ::16], theta=angles[::16], circle=False)
    scan = Volume(hu.T[..., None], np.eye(4))
    for name, lr, hr, printed in (
        ("srresnet_ct", own(sparse), own(full), 28.6),
        ("srresnet_ct_res", sparse, full, 35.2),
    ):
        given, truth = (x.squeeze().T for x in smoke(name).pairs.degrade(scan).for_training())
        if name == "srresnet_ct":
            assert (given.min(), given.max(), truth.min(), truth.max()) == (0, 1, 0, 1)
            assert np.linalg.norm(given - lr) < 0.03 * np.linalg.norm(lr)
            assert np.linalg.norm(truth - hr) < 0.03 * np.linalg.norm(hr)
        assert metrics.psnr(hr, lr, 1) == pytest.approx(printed, abs=0.1)
        assert metrics.psnr(truth, given, 1) == pytest.approx(printed, abs=0.7)


def test_the_truth_of_ct_is_the_reconstruction_from_all_views(manifests):
    subject = parts(manifests["ct"])[0][0]
    scan = volume.load_nifti(subject.file("image"))
    pair = smoke("srresnet_ct_res").pairs.make(subject)
    clipped = scan.with_data(np.clip(scan.data, -1024, 200))
    full = degradation_of("sparse_view_x16").pair(clipped)[1]
    np.testing.assert_allclose(pair.hr.data, full.data, atol=1e-3)
    assert list(smoke("srresnet_ct_res").pairs.baselines(pair)) == ["sparse_fbp"]
    assert metrics.psnr(pair.hr.data, pair.lr.data, 1224) < 50
    np.testing.assert_allclose(pair.scaling.apply(np.float32([-1024, 200])), [0, 1])


@pytest.mark.parametrize("make", [SRResNet2D, SRResNet2DRes, lambda *a: SRResNet2D(*a, "ct")])
def test_tiled_stacks_are_the_whole_stack(make):
    torch.manual_seed(0)
    network = make(4, 1, 4).eval().requires_grad_(False)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    stack = np.random.default_rng(0).random((150, 130, 3), dtype=np.float32)
    whole = network(torch.from_numpy(stack)[None, None])[0, 0].numpy()
    pixels = 3 * 105 * 100
    budget = (3 * stack.nbytes * np.prod(network.factor) + 4 * network.live_channels * pixels) / 1e9
    tiled = run_tiled(network, stack, budget)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()
    alone = run_tiled(network, stack[..., 1:2])
    np.testing.assert_allclose(alone[..., 0], whole[..., 1], atol=1e-5 * np.abs(whole).max())


def test_enhanced_columns_lie_where_the_beams_were(manifests):
    hr = volume.load_nifti(parts(manifests["us"])[0][0].file("image"))
    lr = degradation_of("scanline_x4")(hr)
    network = SRResNet2DRes(4, 1, 4).eval().requires_grad_(False)
    model = Model(network, smoke("srresnet_us_res"))
    sr = use.super_resolve(lr, model)
    np.testing.assert_allclose(sr.affine, hr.affine, atol=1e-9)
    np.testing.assert_allclose(sr.data[: hr.shape[0] : 4], lr.data, atol=1e-5)
    pair = model.experiment.pairs.make(parts(manifests["us"])[0][0])
    assert model.predict_pair(pair).shape == hr.shape == (50, 44, 3)  # 13 columns kept, 52 made


@pytest.mark.parametrize(
    ("mode", "more"),
    [("triangular", ""), ("triangular2", "per_cycle=0.5"), ("exp_range", "gamma=0.9")],
)
def test_the_cyclic_schedule_is_that_of_torch(mode, more):
    """And torch's modes are those of the code's CyclicLR, here from 0.001 to 0.006."""
    texts = "training.learning_rate=6e-3 training.schedule=cyclic"
    for setting in ("low=0.16666666666666666", "up=7", *more.split()):
        texts += f" training.schedule_args.{setting}"
    experiment = systems.get("srresnet_us", "paper", texts)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    rule = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 1e-3, 6e-3, step_size_up=7, mode=mode, gamma=0.9, cycle_momentum=False
    )
    for step in range(40):
        assert experiment.training.rate(step) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        rule.step()


@pytest.mark.parametrize("moves", ["both", "critic"])
def test_a_step_of_cross_entropy(moves):
    experiment = smoke("srgan_us", moves=moves, weight=0.01)
    game, width = experiment.game, experiment.network.width
    critic = game.critic(width, experiment.examples.patch_size, 0)
    networks = {"generator": experiment.network.build(0), "critic": critic}
    players = Players(networks, experiment.training, LocalFabric(), 0)
    lr, hr = torch.rand(2, 1, 8, 32, 1), torch.rand(2, 1, 32, 32, 1)
    before = {name: copy.deepcopy(n) for name, n in players.networks.items()}
    sr = before["generator"].train(moves == "both")(lr)
    critic = before["critic"].train()
    real, fake = critic(hr), critic(sr.detach())
    expected = -(torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean())
    values = game.step(players, 0, lr, hr)
    torch.testing.assert_close(values["critic_loss"], expected.detach())
    states = {n: (before[n].state_dict(), players.networks[n].state_dict()) for n in before}
    moved = {
        n
        for n, (a, b) in states.items()
        for k in a
        if "running" not in k and not torch.equal(a[k], b[k])
    }
    assert moved == ({"generator", "critic"} if moves == "both" else {"critic"})
    if moves == "critic":
        untouched = copy.deepcopy(players.networks["generator"].state_dict())
        game.step(players, 1, lr, hr)
        assert all(
            torch.equal(v, untouched[k])
            for k, v in players.networks["generator"].state_dict().items()
        )
    else:
        wish = -torch.log(torch.sigmoid(players.networks["critic"](sr))).mean()
        torch.testing.assert_close(values["adversarial"], wish.detach(), rtol=1e-4, atol=1e-5)


def test_hard_labels():
    real, fake = losses.draw_labels(np.random.default_rng(0), 3, "hard")
    assert (
        real.tolist()
        == losses.wished_labels(np.random.default_rng(0), 3, "hard").tolist()
        == [1, 1, 1]
    )
    assert fake.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["us", "ct"])
def test_three_tasks_from_saved_weights(manifests, tmp_path, kind):
    """Alone, the critic's turn leaves the generator's weights to the byte; both then go on from what was saved."""
    names = [f"srresnet_{kind}", f"srgan_{kind}_critic", f"srgan_{kind}"]
    chain = {f"{names[2]}:start": names[0], f"{names[2]}:start_critic": names[1]}
    weights = runs.train_all(
        names, "smoke", manifests[kind], device="cpu", folder=tmp_path, overrides=chain
    )
    assert all(path.is_relative_to(tmp_path) for path in weights.values())
    first, second, third = map(load_weights, weights.values())
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not all(torch.equal(v, third[k]) for k, v in first.items())
    history = pd.read_csv(weights[names[1]].parent / "history.csv")
    assert {"critic_loss", "gap", "val_psnr", "val_auc"} <= set(history) and "loss" not in history
    assert len(results.read_runs(tmp_path)) == 3
    with pytest.raises(InputError, match="srgan_us_critic"):
        training.train(
            systems.get("srgan_us", "smoke", "start_critic=srgan_us_critic"),
            *parts(manifests["us"]),
            tmp_path / "x",
            start=weights[names[0]],
        )


@pytest.mark.parametrize("kind", ["us", "ct"])
def test_the_joint_task_begins_from_scratch(manifests, tmp_path, kind):
    experiment = smoke(f"srgan_{kind}", max_steps=1)
    weights = training.train(
        experiment, *parts(manifests[kind]), tmp_path, device="cpu", progress=False
    )
    critic = experiment.game.critic(experiment.network.width, experiment.examples.patch_size)
    for name, network in (("model", experiment.network.build()), ("critic", critic)):
        made, begun = load_weights(weights.with_stem(name)), dict(network.named_parameters())
        steps = [(made[k] - v).abs().max().item() for k, v in begun.items()]
        assert 0.9e-4 < max(steps) < 1.1e-4  # Adam's first step is the learning rate
    history = pd.read_csv(tmp_path / "history.csv")
    assert {"loss", "adversarial", "critic_loss"} <= set(history)


def test_thin_stacks_have_no_3d_similarity():
    hr = Volume(np.random.default_rng(0).random((20, 20, 2)), np.eye(4))
    rows = results.measured(
        hr, {"same": hr}, degradation="d", dataset="e", subject="s", region="centre"
    )
    assert {row["metric"] for row in rows} == {"psnr", "ssim2d", "nrmse", "sharpness"}
    table = results.standing(
        pd.DataFrame([{**row, "value": min(row["value"], 99)} for row in rows])
    )
    assert table["ssim3d"].isna().all() and len(table) == 1
    assert metrics.evaluate(hr.data, hr.data, 1.0)["volume"]["ssim2d"] == pytest.approx(1)


def test_tensorboard_gets_scalars_and_images(manifests, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training.train(
        smoke("srresnet_us"),
        *parts(manifests["us"]),
        tmp_path,
        device="cpu",
        progress=False,
        tensorboard=True,
    )
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    history = pd.read_csv(tmp_path / "history.csv")
    assert [e.value for e in log.Scalars("loss")] == pytest.approx(list(history["loss"]), rel=1e-4)
    assert [e.step for e in log.Images("output")] == list(history["step"])
    truth, given = log.Images("truth")[0], log.Images("input")[0]
    assert (truth.width, truth.height, given.width, given.height) == (32, 32, 8, 32)


def test_missing_tensorboard_is_one_line(manifests, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard is not installed \(.*\); pip install"):
        training.train(
            smoke("srresnet_us"), *parts(manifests["us"]), tmp_path, device="cpu", tensorboard=True
        )


def test_the_built_in_images(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path))
    for kind, low, high in (("us", 0, 1), ("ct", -1024, 3000)):
        manifest = tmp_path / f"example_{kind}.csv"
        cohorts.build_images(kind, manifest=manifest)
        before = {p.name: p.read_bytes() for p in (tmp_path / f"example_{kind}").iterdir()}
        tracked = systems.__file__.rsplit("srlib", 1)[0] + f"csv/example_{kind}.csv"
        assert manifest.read_text() == Path(tracked).read_text()
        subjects = data.read_manifest(manifest)
        assert {s.split for s in subjects} == {"train", "val", "test"}
        stack = formats.load_scan(subjects[0].file("image"))
        assert stack.shape == (256, 256, 4) and low <= stack.data.min() < stack.data.max() <= high
        cohorts.build_images(kind, manifest=manifest)
        assert all((tmp_path / f"example_{kind}" / n).read_bytes() == b for n, b in before.items())


def test_cells_of_a_manifest_may_be_png_dicom_or_a_series(tmp_path):
    io.imsave(tmp_path / "a.png", np.arange(20, dtype=np.uint8).reshape(4, 5), check_contrast=False)
    ct = get_testdata_file("CT_small.dcm")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "one").write_bytes(Path(ct).read_bytes())
    (tmp_path / "IM1").write_bytes(Path(ct).read_bytes())
    text = f"subject,split,image,t1\na,test,a.png,\nb,test,{ct},\nc,test,series,\nd,test,,series\ne,test,,IM1\n"
    (tmp_path / "m.csv").write_text(text)
    files = [next(iter(s.files.values())) for s in data.read_manifest(tmp_path / "m.csv")]
    png, dicom, series, *as_t1 = map(formats.load_scan, files)
    assert png.shape == formats.read_grid(tmp_path / "a.png")[0] == (5, 4, 1)
    assert dicom.shape == (128, 128, 1)
    for other in (series, *as_t1):
        np.testing.assert_array_equal(dicom.data, other.data)


def test_a_ct_slice_in_dicom_is_degraded_enhanced_and_written(manifests, tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))
    weights = training.train(
        smoke("srresnet_ct_res"),
        *parts(manifests["ct"]),
        tmp_path / "w",
        device="cpu",
        progress=False,
    )

    def srlib(*words):
        result = CliRunner().invoke(main, [str(w) for w in words])
        assert result.exit_code == 0, result.output

    source, lr = get_testdata_file("CT_small.dcm"), tmp_path / "lr.nii.gz"
    srlib("degrade", source, lr, "--degradation", "sparse_view", "--window", -1024, 200)
    hr, sparse = formats.load_scan(source), formats.load_scan(lr)
    assert 15 < metrics.psnr(np.clip(hr.data, -1024, 200), sparse.data, 1224) < 40
    for name in ("sr.nii.gz", "sr.png"):
        srlib("enhance", lr, tmp_path / name, "--weights", weights)
    sr, png = formats.load_scan(tmp_path / "sr.nii.gz"), formats.load_scan(tmp_path / "sr.png")
    assert sr.shape == png.shape == hr.shape
    np.testing.assert_allclose(sr.affine, hr.affine, atol=1e-5)
    scaled = (sr.data - sr.data.min()) / np.ptp(sr.data)
    np.testing.assert_allclose(png.data / 65535, scaled, atol=1e-5)
    srlib("degrade", source, tmp_path / "us.nii.gz", "--degradation", "scanline", "--every", 4)
    assert formats.load_scan(tmp_path / "us.nii.gz").shape == (32, 128, 1)
    refused = CliRunner().invoke(
        main, ["degrade", source, str(lr), "--degradation", "scanline", "--factor", "2", "2", "2"]
    )
    assert refused.exit_code == 1 and "--factor does not belong" in refused.stderr
    with pytest.raises(InputError, match="one slice"):
        volume.save_scan(Volume(np.zeros((3, 3, 2)), np.eye(4)), tmp_path / "x.png")


class Seen(torch.nn.Module):
    """Gives back its input and remembers it."""

    halo, live_channels = 0, 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.given = x.clone()
        return x


def test_ct_is_clipped_alike_in_training_and_prediction(manifests):
    model = Model(Seen(), smoke("srresnet_ct"))
    scan = volume.load_nifti(parts(manifests["ct"])[0][0].file("image"))
    scan = scan.with_data(scan.data * 3 + 2500)  # bone and metal
    assert scan.data.max() > 1000
    with pytest.warns(ScanWarning, match=r"% of the voxels lay outside -1024 to 200 HU"):
        sr = use.super_resolve(scan, model)
    assert model.network.given.min() >= 0 and model.network.given.max() <= 1
    clipped = scan.with_data(np.clip(scan.data, -1024, 200))
    np.testing.assert_allclose(sr.data, clipped.data, atol=0.01)
    pair = smoke("srresnet_ct").pairs.degrade(scan)
    model.predict_pair(pair)
    trained = model.network.given.clone()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", ScanWarning
        )  # streaks of a reconstruction from few views are no reason
        warnings.filterwarnings("ignore", "(?s).*very (max|min)imum", ScanWarning)
        use.super_resolve(pair.lr, model)
    assert torch.equal(
        model.network.given, trained
    )  # what was reconstructed from few views keeps its streaks


def test_scan_lines_take_no_other_alignment(noise):
    experiment = systems.get("srresnet_us", "smoke")
    model, image = (
        Model(experiment.network.build(), experiment),
        Volume(noise((8, 32, 1)), np.eye(4)),
    )
    assert model.plan(image).finer == (4, 1, 1)
    with pytest.raises(InputError, match="takes no align"):
        model.plan(image, Request(align="corners"))
