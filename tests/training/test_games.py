"""Who moves when, and that only the one who moves changes."""

import copy
import itertools

import pytest
import torch
from conftest import make_players

from srlib import systems
from srlib.core.paths import InputError
from srlib.models.mdcsrn import Critic
from srlib.training.games import OPTIMIZERS

SMOKE = systems.get("mdcsrn_res_wgan", "smoke")


def test_the_schedule_of_the_paper():
    paper = systems.get("mdcsrn_wgan")
    moves = [paper.game.who_moves(step) for step in range(10_000 + 3 * 700)]
    assert set(moves[:10_000]) == {"critic"}
    for period in range(3):
        part = moves[10_000 + 700 * period :][:700]
        assert part[:8] == ["critic"] * 7 + ["generator"]
        assert part[:500].count("generator") == 62  # 7 : 1, whole turns of 500 steps
        assert set(part[500:]) == {"critic"}


def test_a_generator_moves_in_every_profile():
    games = [e.name for e in systems.EXPERIMENTS.values() if hasattr(e.game, "critic_steps")]
    assert "mdcsrn_wgan" in games and "synthsr_gan" in games
    for name, profile in itertools.product(games, systems.PROFILES):
        shrunk = systems.get(name, profile)
        assert "generator" in map(
            shrunk.game.who_moves, range(min(shrunk.training.max_steps, 20_000))
        )


def changed(before, network):
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("constraint, strength", [("penalty", 10.0), ("clip", 0.01)])
def test_one_network_moves_and_the_other_is_left_alone(constraint, strength):
    experiment = SMOKE.changed(constraint=constraint, strength=strength)
    players = make_players(experiment)
    with torch.no_grad():  # a trained network's last convolution is not zero
        players.networks["generator"].last.weight.normal_(0, 0.01)
    lr, hr = torch.rand(2, 2, 1, 16, 16, 16).unbind(0)
    for index in range(SMOKE.training.max_steps):
        before = {name: copy.deepcopy(n.state_dict()) for name, n in players.networks.items()}
        losses = experiment.game.step(players, index, lr, hr)
        assert all(torch.isfinite(v) for v in losses.values())
        mover = SMOKE.game.who_moves(index)
        other = "generator" if mover == "critic" else "critic"
        assert not changed(
            before[other], players.networks[other]
        )  # weights and batch-norm statistics
        moved = changed(before[mover], players.networks[mover])
        if mover == "generator":
            assert any("running_mean" in name for name in moved)
        assert {name for name, _ in players.networks[mover].named_parameters()} - moved <= {
            "score.2.bias"
        }
    if constraint == "clip":
        assert max(p.abs().max() for p in players.networks["critic"].parameters()) <= 0.01


@pytest.mark.parametrize("size", [9, 16, 24])
def test_critics_of_any_patch_size(size):
    critic = Critic(width=4, patch_size=size)
    assert critic(torch.rand(2, 1, size, size, size)).shape == (2,)


def test_the_critic_has_the_published_parameters_and_a_non_linearity():
    assert sum(p.numel() for p in Critic().parameters()) == 31_155_777
    x = torch.rand(1, 1, 16, 16, 16)
    for slope, linear in ((0.2, False), (1.0, True)):
        score = Critic(4, 16, slope).score
        y = torch.randn(3, 32)
        both = score(y) + score(-y) - 2 * score(torch.zeros_like(y))
        assert torch.allclose(both, torch.zeros_like(both), atol=1e-5) == linear
    assert torch.isfinite(Critic(4, 16)(x)).all()


def test_the_critic_starts_as_in_the_replicated_code():
    """N(0, 0.02), layer normalisation N(1, 0.02), biases as PyTorch draws them."""
    plain, ours = (
        systems.get(name).game.critic(16, 16).state_dict()
        for name in ("mdcsrn_res_wgan", "mdcsrn_wgan_clip")
    )
    for name, value in ours.items():
        if name.endswith("bias"):
            assert torch.equal(value, plain[name])
        else:
            norm = value.ndim == 4
            assert value.std() == pytest.approx(0.02, rel=0.05)
            assert value.mean() == pytest.approx(float(norm), abs=0.002)
            assert bool((plain[name] == 1).all()) == norm  # PyTorch's own start
    assert systems.get("mdcsrn_wgan").game.critic_std == 0.02


def test_the_replicated_wgan_moves_the_generators_statistics_alone():
    """Critic steps to the end, generator in training mode: what the printed 442k row went through."""
    steps = {"game.critic_steps": systems.get("mdcsrn_wgan_clip").training.max_steps}
    experiment = systems.get("mdcsrn_wgan_clip", "smoke", steps)
    assert {experiment.game.who_moves(step) for step in range(3000)} == {"critic"}
    players = make_players(experiment)
    generator, critic = players.networks["generator"], players.networks["critic"]
    before, expected = copy.deepcopy(generator.state_dict()), copy.deepcopy(generator).train()
    for index in range(3):
        weights = copy.deepcopy(critic.state_dict())
        lr, hr = torch.rand(2, 2, 1, 16, 16, 16).unbind(0)
        experiment.game.step(players, index, lr, hr)
        expected(lr)
        assert changed(weights, critic)
    assert max(p.abs().max() for p in critic.parameters()) <= 0.01
    moved = changed(before, generator)
    assert moved == {name for name, _ in generator.named_buffers()} != set()
    assert not changed(expected.state_dict(), generator)


def test_the_losses_of_the_game_by_hand():
    """The critic's is D(fake) - D(real), the generator's L1 - weight * D(fake)."""
    experiment = systems.get("mdcsrn_wgan_clip", "smoke").changed(
        weight=0.5, critic_steps=1, per_generator=0
    )
    players = make_players(experiment)
    lr, hr = torch.rand(2, 2, 1, 16, 16, 16).unbind(0)
    generator, critic = (copy.deepcopy(players.networks[n]) for n in ("generator", "critic"))
    found = experiment.game.step(players, 0, lr, hr)
    expected = critic(generator.train()(lr)).mean() - critic(hr).mean()
    torch.testing.assert_close(found["critic_loss"], expected.detach(), rtol=1e-4, atol=1e-6)
    generator, critic = (copy.deepcopy(players.networks[n]) for n in ("generator", "critic"))
    experiment.game.step(players, 1, lr, hr)
    sr = generator(lr)
    ((sr - hr).abs().mean() - 0.5 * critic(sr).mean()).backward()
    for one, other in zip(
        players.networks["generator"].parameters(), generator.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


RECNN = systems.get("recnn", "smoke")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_of_the_solver_generator_learns(name):
    rate = {"adam": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2, "adadelta": 1.0}.get(name, 1e-2)
    players = make_players(RECNN.changed(optimizer=name, learning_rate=rate))
    lr = torch.rand(2, 1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    losses = [float(RECNN.game.step(players, 0, lr, lr * 0.5)["loss"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_optimisers_have_caffes_numbers_and_take_others():
    network = RECNN.network.build()
    caffe = {
        "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0},
        "sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0},
        "nag": {"momentum": 0.9, "nesterov": True, "weight_decay": 0},
        "rmsprop": {"alpha": 0.99, "eps": 1e-8, "momentum": 0},
        "adagrad": {"eps": 1e-8, "lr_decay": 0},
        "adadelta": {"rho": 0.9, "eps": 1e-8},
    }
    for name, numbers in caffe.items():
        defaults = RECNN.changed(optimizer=name).training.make_optimizer(network).defaults
        assert numbers.items() <= defaults.items()
    texts = [
        "training.optimizer_args.betas=0.8,0.99",
        "training.optimizer_args.weight_decay=1e-4",
    ]
    chosen = systems.get("recnn", "smoke", texts).training.make_optimizer(network).defaults
    assert chosen["betas"] == (0.8, 0.99) and chosen["weight_decay"] == 1e-4
    with pytest.raises(InputError, match="does not take its settings"):
        wrong = systems.get("recnn", "smoke", "training.optimizer_args.momentum2=0.99")
        wrong.training.check(network)


def test_biases_learn_at_a_tenth_of_the_rate():
    players = make_players(RECNN.changed(optimizer="sgd", optimizer_args={"momentum": 0}))
    network = players.networks["generator"]
    before = copy.deepcopy(network.state_dict())
    RECNN.game.step(players, 0, *torch.rand(2, 1, 1, 9, 9, 9).unbind(0))
    for name, parameter in network.named_parameters():
        rate = RECNN.training.learning_rate * (0.1 if name.endswith("bias") else 1)
        torch.testing.assert_close(
            before[name] - parameter.detach(), rate * parameter.grad, rtol=1e-3, atol=1e-7
        )


def test_the_step_schedule_falls_to_a_tenth_half_way():
    paper = systems.get("recnn")
    assert [paper.training.rate(step) for step in (0, 9_999, 10_000, 19_999)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4]
    )
    quick = systems.get("recnn", "quick")  # shrunk in proportion
    assert quick.training.rate(quick.training.max_steps // 2) == pytest.approx(1e-4)
