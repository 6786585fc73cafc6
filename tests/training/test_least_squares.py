"""The least-squares game: both networks move at every step, labels follow the paper or its code, resume is exact."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_players
from safetensors.torch import load_file
from scipy import ndimage

from srlib import data, systems
from srlib.models.mdcsrn import Critic
from srlib.models.srgan3d import Discriminator3D
from srlib.models.weights import read_metadata
from srlib.scans.volume import load_nifti
from srlib.systems import training
from srlib.systems.trained import load_model
from srlib.training import losses
from srlib.training.games import LeastSquares, _BothMove

GAME = LeastSquares(weight=0.1, slope=0.3)
SAME_GRID = systems.get("mdcsrn", "smoke").changed(game=GAME, batch_size=2)
FINER_GRID = SAME_GRID.changed(
    model="srgan3d", model_args={"blocks": 1, "factor": [1, 2, 4]}, loss="mse_gdl_sum", patch_size=8
)


def batches(count):
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.rand(2, 1, 8, 4, 2, generator=rng), torch.rand(2, 1, 8, 8, 8, generator=rng))
        for _ in range(count)
    ]


def test_the_game_decides_who_plays():
    assert isinstance(make_players(FINER_GRID).networks["critic"], Discriminator3D)
    assert isinstance(
        make_players(systems.get("mdcsrn_res_wgan", "smoke")).networks["critic"], Critic
    )
    assert set(make_players(systems.get("mdcsrn", "smoke")).networks) == {"generator"}


def test_both_networks_move_at_every_step():
    players = make_players(FINER_GRID)
    for index, batch in enumerate(batches(3)):
        before = {name: copy.deepcopy(n.state_dict()) for name, n in players.networks.items()}
        values = GAME.step(players, index, *batch)
        assert set(values) == {"loss", "adversarial", "critic_loss", "gap"}
        assert all(v.isfinite() and not v.requires_grad for v in values.values())
        for name, network in players.networks.items():
            same = {k for k, v in network.state_dict().items() if torch.equal(v, before[name][k])}
            assert not same, f"{name}: {same}"


def test_a_step_is_that_of_the_paper():
    """Discriminator first, on real and generated patches apart; then the generator, before the new discriminator."""
    players, (batch,) = make_players(FINER_GRID), batches(1)
    generator, critic = (copy.deepcopy(players.networks[name]) for name in ("generator", "critic"))
    rng = np.random.default_rng([0, 5, 0])
    real, fake = (torch.from_numpy(side) for side in losses.draw_labels(rng, 2))
    wish = torch.from_numpy(rng.uniform(0.7, 1.2, 2)).float()
    values = GAME.step(players, 5, *batch)
    lr, hr = batch
    sr = generator.train()(lr)
    on_real, on_fake = critic(hr), critic(sr)
    expected = (on_real - real).square().mean() + (on_fake - fake).square().mean()
    torch.testing.assert_close(values["critic_loss"], expected.detach())
    torch.testing.assert_close(values["gap"], (on_real.mean() - on_fake.mean()).detach())
    supervised = losses.LOSSES["mse_gdl_sum"](sr, hr)
    torch.testing.assert_close(values["loss"], supervised.detach())
    adversarial = (
        (players.networks["critic"](sr) - wish).square().mean()
    )  # the discriminator after its update
    torch.testing.assert_close(values["adversarial"], adversarial.detach())
    generator.zero_grad()
    (supervised + 0.1 * adversarial).backward()
    for ours, theirs in zip(
        players.networks["generator"].parameters(), generator.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("count", [2, 3])
def test_the_code_blurs_its_inputs_over_the_batch(count, monkeypatch):
    """Blur and sampling of the whole batch, as in its training loop; the truth is left alone."""
    experiment = systems.get("srgan3d_code", "smoke")
    hr = np.random.default_rng(0).random((count, 16, 16, 16, 1))
    alone = [experiment.pairs.degrade_alone(patch[..., 0], experiment.task)[0] for patch in hr]
    seen = []
    monkeypatch.setattr(_BothMove, "step", lambda *args: seen.append(args))
    batch = torch.from_numpy(np.stack(alone)[:, None]), torch.from_numpy(hr)
    experiment.game.step(None, 7, *batch)
    ((game, _, index, lr, truth),) = seen
    expected = ndimage.zoom(
        ndimage.gaussian_filter(hr, sigma=1), (1, 0.25, 0.25, 0.25, 1), order=0, prefilter=False
    )
    np.testing.assert_allclose(lr[:, 0], expected[..., 0], atol=1e-6)
    assert truth is batch[1] and index == 7 and game is experiment.game
    if count == 2:
        mixed = 0.646 * alone[0] + 0.354 * alone[1]
        np.testing.assert_allclose(lr[0, 0], mixed, atol=1e-3)
    systems.get("srgan3d", "smoke").game.step(None, 8, *batch)
    assert seen[1][3] is batch[0]  # the paper's form leaves the batch alone


def test_the_rate_decays_as_written_and_stays_in_the_code():
    for step, rate in ((0, 1e-4), (4920, 1e-4 / 1.5), (18_799, 3.4356e-5)):
        assert systems.get("srgan3d").training.rate(step) == pytest.approx(rate, rel=1e-4)
        assert systems.get("srgan3d_code").training.rate(step) == 1e-4


OPTIONS = {
    "as published": "",
    "nn": "network.upsampler=nn_resize",
    "subpixel_NN x2": "network.upsampler=subpixel_nn network.factor=2,2,2 degradation.factor=2,2,2",
    "nn x2 blocks feature_size": "network.upsampler=nn_resize network.factor=2,2,2 "
    "degradation.factor=2,2,2 network.blocks=2 network.width=8",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_options_of_the_original_reach_the_published_form(options, cohort, tmp_path):
    """From scans to weights, a snapshot and an estimate; then on from the finished run's weights."""
    parts = [data.read_manifest(cohort, part) for part in ("train", "val")]
    tiny = f"frame=32,32,32 training.max_steps=1 training.batch_size=2 {options}"
    experiment = systems.get("srgan3d", "smoke", tiny)
    settings = {"device": "cpu", "progress": False, "snapshots": True}
    first = training.train(experiment, *parts, tmp_path / "a", **settings)
    model = load_model(first, device="cpu")
    factor = 2 if "x2" in options or "factor=2" in options else 4
    assert model.network.factor == (factor,) * 3
    assert model.network.upsampling[0][0].weight.shape[options.count("subpixel_nn")] == 64
    shown = [load_nifti(tmp_path / "a" / "snapshots" / f"{n}.nii.gz") for n in ("input", "hr")]
    assert [s.shape for s in shown] == [(16 // factor,) * 3, (16,) * 3]
    ends = [s.affine @ [*np.subtract(s.shape, 1), 1] for s in shown]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)  # the corners of the same patch
    pair = model.experiment.pairs.make(parts[1][0], f"gaussian_x{factor}_smoothed")  # its test
    sr = model.predict_pair(pair)
    assert sr.shape == pair.hr.shape == (32, 32, 32)
    if "nn_resize" in options:  # tanh: within [-1, 1], so within 0 and the input's maximum
        assert sr.data.min() >= 0 and sr.data.max() <= pair.lr.data.max() * 1.001
    start = {"start": first, "start_critic": first.parent / "critic.safetensors"}
    more = training.train(experiment, *parts, tmp_path / "b", **start, device="cpu", progress=False)
    assert set(read_metadata(more)["starts"]) == {"generator", "critic"}
    for name in ("model", "critic"):
        before, after = (load_file(f.parent / f"{name}.safetensors") for f in (first, more))
        for key in (k for k in before if k.endswith("weight")):
            moved = (after[key] - before[key]).abs().max()
            assert 0 < moved < 1.5e-4, key  # Adam's first step, of at most the rate


def test_experiments_of_earlier_versions_keep_their_networks():
    fields = json.loads(systems.get("srgan3d_res_gan", "quick").to_json())
    for name in ("critic_width", "batch_sigma"):
        del fields["game"][name]
    assert systems.from_json(json.dumps(fields)) == systems.get("srgan3d_res_gan", "quick")


def test_a_resumed_run_is_the_whole_run_to_the_bit():
    whole, first, second = (make_players(FINER_GRID) for _ in range(3))
    todo = list(enumerate(batches(4)))
    expected = [GAME.step(whole, i, *batch) for i, batch in todo]
    for i, batch in todo[:2]:
        GAME.step(first, i, *batch)
    for kind in ("networks", "optimizers"):
        for name, part in getattr(second, kind).items():
            part.load_state_dict(copy.deepcopy(getattr(first, kind)[name].state_dict()))
    np.random.seed(3)  # global random state plays no part
    torch.manual_seed(3)
    again = [GAME.step(second, i, *batch) for i, batch in todo[2:]]
    assert again == expected[2:]
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, second.networks[name].state_dict()[key]), (name, key)


def test_the_discriminator_learns_unless_its_labels_are_those_of_the_code():
    """The code labels both sides as real, so that scores draw near each other instead of apart."""
    lr, hr = batches(1)[0]
    gaps = {}
    for rule in ("per_step", "code"):
        experiment = FINER_GRID.changed(labels=rule, learning_rate=1e-3, width=8)
        players = make_players(experiment)
        gaps[rule] = [float(experiment.game.step(players, i, lr, hr)["gap"]) for i in range(30)]
    assert np.mean(gaps["per_step"][-5:]) > 0.4
    assert abs(np.mean(gaps["code"][-5:])) < 0.15


def test_labels_of_the_paper():
    draws = [losses.draw_labels(np.random.default_rng([7, step, 0]), 3) for step in range(4000)]
    swapped = 0
    for real, fake in draws:
        assert real.dtype == fake.dtype == np.float32 and real.shape == fake.shape == (3,)
        swap = real.max() < 0.5
        swapped += swap
        high, low = (fake, real) if swap else (real, fake)
        assert ((high >= 0.7) & (high <= 1.2)).all() and ((low >= 0) & (low <= 0.3)).all()
    assert 0.08 < swapped / len(draws) < 0.12
    assert len({tuple(real) for real, _ in draws}) == len(draws)  # new ones at every step
    high = np.concatenate([np.maximum(*pair) for pair in draws])
    assert high.mean() == pytest.approx(0.95, abs=0.01) and high.std() == pytest.approx(
        0.5 / 12**0.5, rel=0.03
    )
    again = losses.draw_labels(np.random.default_rng([7, 11, 0]), 3)
    assert all(np.array_equal(a, b) for a, b in zip(again, draws[11], strict=True))


def test_labels_of_the_code_never_tell_real_from_generated():
    for step in range(200):
        for side in losses.draw_labels(np.random.default_rng([7, step, 0]), 3, "code"):
            assert ((side >= 0.7) & (side <= 1.2)).all()
    with pytest.raises(KeyError):
        losses.draw_labels(np.random.default_rng(0), 3, "constant")


def test_training_writes_both_networks_and_their_gap(cohort, tmp_path):
    parts = [data.read_manifest(cohort, part) for part in ("train", "val")]
    training.train(SAME_GRID, *parts, tmp_path, device="cpu", progress=False)
    history = pd.read_csv(tmp_path / "history.csv")
    assert {"loss", "adversarial", "critic_loss", "gap", "val_psnr", "val_gap"} <= set(history)
    assert np.isfinite(history).all(axis=None)
    new = Discriminator3D(SAME_GRID.network.width, SAME_GRID.examples.patch_size)
    new.load_state_dict(load_file(tmp_path / "critic.safetensors"))
