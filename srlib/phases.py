"""What one training step does: a supervised update, or a move in the game between critic and generator."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from srlib import losses
from srlib.device import layout
from srlib.experiments import Experiment
from srlib.models import MODELS
from srlib.models.mdcsrn import Critic
from srlib.models.srgan3d import Discriminator3D
from srlib.models.srresnet2d import Discriminator2D
from srlib.patches import per_axis
from srlib.paths import InputError, choose, first_line

# name -> share of the learning rate at a step of max_steps, given the experiment's schedule_args
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": lambda step, max_steps: 1.0,
    "cosine": lambda step, max_steps: 0.5 * (1 + math.cos(math.pi * step / max_steps)),
    # the rate falls to ``factor`` of it after the share ``at`` of all steps
    "step": lambda step, max_steps, at, factor: 1.0 if step < at * max_steps else factor,
    # TensorFlow's inverse time decay
    "inverse": lambda step, max_steps, rate, every: 1 / (1 + rate * step / every),
    # torch's triangular CyclicLR: from the share ``low`` to 1 in ``up`` steps, and back
    "cyclic": lambda step, max_steps, low, up: low + (1 - low) * (1 - abs(step % (2 * up) / up - 1)),
}

# the methods of SRReCNN3D's solver generator, with Caffe's momentum
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "nag": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


def learning_rate(experiment: Experiment, step: int) -> float:
    """Learning rate of a step, counted from 0: a pure function, so that resuming needs no scheduler state."""
    share = SCHEDULES[experiment.schedule](step, experiment.max_steps, **experiment.schedule_args)
    return experiment.learning_rate * share


def who_moves(experiment: Experiment, step: int) -> str:
    """``critic`` or ``generator``: the network that a step of adversarial training updates, steps counted from 0.

    Chen et al., MICCAI 2018: the critic alone at first, then a fixed number of critic steps for each
    generator step, and after every so many of these steps a run of extra critic steps.
    """
    game = experiment.adversarial
    if step < experiment.critic_steps:
        return "critic"
    place = (step - experiment.critic_steps) % (game.extra_every + game.extra)
    turn = place % (game.per_generator + 1)
    return "generator" if place < game.extra_every and turn == game.per_generator else "critic"


def build_model(experiment: Experiment, seed: int = 0) -> torch.nn.Module:
    """The experiment's network with weights drawn from the seed; global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[experiment.model](width=experiment.width, **experiment.model_args)


def build_critic(experiment: Experiment, seed: int = 0) -> torch.nn.Module:
    """The critic of the experiment's game, as wide beside the generator as in its paper (64 to 16; in the least-squares
    game 32 to 32, in that of cross-entropy 64 to 64), weights from the seed."""
    game = experiment.adversarial
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if game.game == "least_squares":
            critic = Discriminator3D(experiment.width, experiment.patch_size, game.slope)
            return critic.to(memory_format=layout(critic))
        if game.game == "cross_entropy":
            critic = Discriminator2D(experiment.width, per_axis(experiment.patch_size)[:2])
            return critic.to(memory_format=layout(critic))
        return Critic(4 * experiment.width, experiment.patch_size, game.slope)


def check_parts(experiment: Experiment) -> None:
    """Raise InputError for a name that is in no table, and for settings that what it names does not take.

    Networks are built without their weights, so this costs nothing.
    """
    tables = {"model": MODELS, "loss": losses.LOSSES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    for what, table in tables.items():
        choose(table, getattr(experiment, what), what)
    try:
        with torch.device("meta"):
            network = build_model(experiment)
            if experiment.adversarial:
                build_critic(experiment)
        _optimizer(network, experiment)
        rates = [learning_rate(experiment, step) for step in (0, experiment.max_steps - 1)]
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError, AssertionError) as err:
        raise InputError(
            f"{experiment.name}: its network, optimizer or schedule does not take its settings ({first_line(err)})"
        ) from err
    if not all(0 <= rate < math.inf for rate in rates):
        raise InputError(f"{experiment.name}: expected learning rates from 0 on, its schedule gives {rates}")


class SupervisedPhase:
    """One network, one optimiser, one loss between its output and the truth.

    A ``segmenter``, a frozen network in evaluation mode, adds the Dice of what it makes of the output.
    """

    def __init__(self, experiment: Experiment, fabric, seed: int, segmenter: torch.nn.Module | None = None) -> None:
        self.experiment, self.fabric, self.segmenter = experiment, fabric, segmenter
        network = build_model(experiment, seed)
        self.networks = {"generator": network.to(memory_format=layout(network))}
        self.models, self.optimizers = _setup(fabric, self.networks, experiment)

    def step(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update; returns the losses by name."""
        self.networks["generator"].train()
        terms = _supervised(self, self.models["generator"](lr), hr)
        _update(self, "generator", index, terms["loss"])
        return {name: term.detach() for name, term in terms.items()}


class AdversarialPhase:
    """A generator and a Wasserstein critic, of which each step updates one; the other stays as it is.

    While the critic moves, the generator is in evaluation mode: not even its batch-norm statistics change, and
    the critic judges what users would get.
    """

    def __init__(self, experiment: Experiment, fabric, seed: int, segmenter: torch.nn.Module | None = None) -> None:
        self.experiment, self.fabric, self.seed, self.segmenter = experiment, fabric, seed, segmenter
        generator = build_model(experiment, seed)
        generator.to(memory_format=layout(generator))
        self.networks = {"generator": generator, "critic": build_critic(experiment, seed)}
        self.models, self.optimizers = _setup(fabric, self.networks, experiment)

    def step(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update of either network; returns its losses by name."""
        return (self._critic if who_moves(self.experiment, index) == "critic" else self._generator)(index, lr, hr)

    def _critic(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        game = self.experiment.adversarial
        self.networks["generator"].eval()
        self.networks["critic"].requires_grad_(True)
        with torch.no_grad():
            hr, sr = _image(hr), _image(self.networks["generator"](lr)).contiguous()
        if game.constraint == "clip":
            real, fake = self.models["critic"](torch.cat([hr, sr])).split(len(hr))
            loss = distance = losses.wasserstein_critic(real, fake)
        else:
            draw = np.random.default_rng([self.seed, index, self.fabric.global_rank])
            points = losses.mix(hr, sr, torch.from_numpy(draw.random(len(hr), dtype=np.float32)))
            real, fake, between = self.models["critic"](torch.cat([hr, sr, points])).split(len(hr))
            distance = losses.wasserstein_critic(real, fake)
            loss = distance + game.strength * losses.gradient_penalty(between, points)
        _update(self, "critic", index, loss)
        if game.constraint == "clip":
            losses.clip_weights(self.networks["critic"], game.strength)
        return {"critic_loss": loss.detach(), "gap": -distance.detach()}

    def _generator(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        self.networks["generator"].train()
        self.networks["critic"].requires_grad_(False)
        sr = self.models["generator"](lr)
        terms = _supervised(self, sr, hr)
        adversarial = losses.wasserstein_generator(self.networks["critic"](_image(sr).contiguous()))
        _update(self, "generator", index, terms["loss"] + self.experiment.adversarial.weight * adversarial)
        return {name: term.detach() for name, term in (*terms.items(), ("adversarial", adversarial))}


class LeastSquaresPhase(AdversarialPhase):
    """A generator and a least-squares discriminator, both updated at every step, the discriminator first.

    Sanchez & Vilaplana, MIDL 2018. The labels are a function of the seed, the step and the process alone. In the
    game of cross-entropy the critic may be the only one that moves.
    """

    against = staticmethod(losses.least_squares)  # scores and labels to a loss

    def step(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update of each network; returns their losses by name."""
        game, critic = self.experiment.adversarial, self.networks["critic"]
        draw = np.random.default_rng([self.seed, index, self.fabric.global_rank])
        real, fake = losses.draw_labels(draw, len(hr), game.labels)
        self.networks["generator"].train(game.moves == "both")
        with torch.set_grad_enabled(game.moves == "both"):
            output = self.models["generator"](lr)
        truth, hr, sr = hr, _image(hr), _image(output)
        critic.requires_grad_(True)
        on_real, on_fake = (self.models["critic"](side) for side in (hr, sr.detach()))  # apart, for their batch norm
        critic_loss = self.against(on_real, real) + self.against(on_fake, fake)
        _update(self, "critic", index, critic_loss)
        gap = on_real.mean() - on_fake.mean()
        if game.moves == "critic":
            return {"critic_loss": critic_loss.detach(), "gap": gap.detach()}
        critic.requires_grad_(False)
        terms = _supervised(self, output, truth)
        adversarial = self.against(critic(sr), losses.wished_labels(draw, len(hr), game.labels))
        _update(self, "generator", index, terms["loss"] + game.weight * adversarial)
        terms |= {"adversarial": adversarial, "critic_loss": critic_loss, "gap": gap}
        return {name: term.detach() for name, term in terms.items()}


class CrossEntropyPhase(LeastSquaresPhase):
    """The same moves with binary cross-entropy: SRGAN (Ledig et al., CVPR 2017)."""

    against = staticmethod(losses.cross_entropy)


def make_phase(
    experiment: Experiment, fabric: object, seed: int, segmenter: torch.nn.Module | None = None
) -> SupervisedPhase | AdversarialPhase:
    """The phase that an experiment asks for, with new networks, on Lightning's ``fabric``."""
    games = {"wasserstein": AdversarialPhase, "least_squares": LeastSquaresPhase, "cross_entropy": CrossEntropyPhase}
    kind = games[experiment.adversarial.game] if experiment.adversarial else SupervisedPhase
    return kind(experiment, fabric, seed, segmenter)


def _setup(fabric, networks: dict[str, torch.nn.Module], experiment: Experiment) -> tuple[dict, dict]:
    """Each network and its optimiser, made ready for the device and the processes by Fabric."""
    models, optimizers = {}, {}
    for name, network in networks.items():
        models[name], optimizers[name] = fabric.setup(network, _optimizer(network, experiment))
    return models, optimizers


def _optimizer(network: torch.nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    named = list(network.named_parameters())
    groups = [
        {"params": [p for n, p in named if n.endswith("bias") == biases], "rate": rate}
        for biases, rate in ((False, 1.0), (True, experiment.bias_rate))
    ]
    make = OPTIMIZERS[experiment.optimizer]
    return make(groups, lr=experiment.learning_rate, **experiment.optimizer_args)


def _image(x: torch.Tensor) -> torch.Tensor:
    """The first channel of a network's output or of the truth; an uncertainty or classes may follow."""
    return x if x.shape[1] == 1 else x[:, :1]  # the gradient of a slice has another layout, and rounds differently


def _supervised(
    phase: SupervisedPhase | AdversarialPhase, output: torch.Tensor, truth: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Loss against the truth (B, 1, X, Y, Z); with a segmenter the truth's second channel holds classes, and the
    weighted Dice of the segmented output is part of the loss, beside which it stands."""
    experiment = phase.experiment

    def middle(x: torch.Tensor) -> torch.Tensor:
        size = experiment.loss_crop
        if size is None:
            return x
        return x[(..., *(slice(max(n - size, 0) // 2, max(n - size, 0) // 2 + size) for n in x.shape[2:]))]

    loss = losses.LOSSES[experiment.loss](middle(output), middle(_image(truth)))
    if phase.segmenter is None:
        return {"loss": loss}
    dice = losses.dice(middle(phase.segmenter(_image(output).clamp(0, 1))), middle(truth[:, 1:]))
    return {"loss": loss + experiment.dice_weight * dice, "dice_loss": dice}


def _update(phase: SupervisedPhase | AdversarialPhase, name: str, index: int, loss: torch.Tensor) -> None:
    optimizer = phase.optimizers[name]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(phase.experiment, index) * group["rate"]
    optimizer.zero_grad()
    phase.fabric.backward(loss)
    optimizer.step()
