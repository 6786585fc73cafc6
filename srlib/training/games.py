"""Update networks by one training step: alone, or against a critic."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from srlib.core.device import layout
from srlib.core.parts import Count, Number, Part, Size, Whole
from srlib.core.paths import InputError, first_line
from srlib.models.mdcsrn import Critic
from srlib.models.network import seeded
from srlib.models.srgan3d import Discriminator3D
from srlib.models.srresnet2d import Discriminator2D
from srlib.models.unet3d import PlainCritic
from srlib.scans.patches import per_axis
from srlib.training import losses

# name -> share of the learning rate at a step, given max_steps and the schedule_args
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": lambda step, max_steps: 1.0,
    "cosine": lambda step, max_steps: 0.5 * (1 + math.cos(math.pi * step / max_steps)),
    # the rate falls to ``factor`` of it after the share ``at`` of all steps
    "step": lambda step, max_steps, at, factor: 1.0 if step < at * max_steps else factor,
    # TensorFlow's inverse time decay
    "inverse": lambda step, max_steps, rate, every: 1 / (1 + rate * step / every),
    # torch's CyclicLR: from the share ``low`` to 1 in ``up`` steps, and back; ``per_cycle``
    # 0.5 is its triangular2, ``gamma`` below 1 its exp_range
    "cyclic": lambda step, max_steps, low, up, per_cycle=1.0, gamma=1.0: (
        low
        + (1 - low)
        * (1 - abs(step % (2 * up) / up - 1))
        * per_cycle ** (step // (2 * up))
        * gamma**step
    ),
}

# the methods of SRReCNN3D's solver generator, with Caffe's momentum and delta
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "nag": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": functools.partial(torch.optim.Adagrad, eps=1e-8),
    "adadelta": functools.partial(torch.optim.Adadelta, eps=1e-8),
}
Losses = dict[str, Tensor]  # by name


@dataclass(frozen=True)
class Training(Part):
    """How long and by which rule weights are updated."""

    choices: ClassVar = {
        "loss": losses.LOSSES,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "precision": ("32-true", "16-mixed", "bf16-mixed"),
    }

    max_steps: Count
    batch_size: Count  # patches per step
    learning_rate: Number
    loss: str = "l1"  # key of losses.LOSSES
    optimizer: str = "adam"  # key of OPTIMIZERS
    optimizer_args: Mapping[str, object] = field(default_factory=dict)
    bias_rate: Number = 1.0  # learning rate of biases, as a multiple of that of weights
    schedule: str = "constant"  # key of SCHEDULES
    schedule_args: Mapping[str, float] = field(default_factory=dict)
    precision: str = "32-true"  # by its name in Lightning Fabric
    loss_crop: Count | None = None  # voxels per axis in the middle of a patch that the loss sees
    loss_weight: Number = 1.0  # of that loss beside a segmenter's and a critic's
    dice_weight: Number = 0.0  # of a segmenter's Dice in the loss
    # class of each output of the segmenter, None: of none; (): each its own number
    dice_classes: tuple[Whole | None, ...] = ()

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        share = SCHEDULES[self.schedule](step, self.max_steps, **self.schedule_args)
        return self.learning_rate * share

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a network's weights and biases."""
        groups: list[dict] = [{"params": [], "rate": 1.0}, {"params": [], "rate": self.bias_rate}]
        for name, parameter in network.named_parameters():
            groups[name.endswith("bias")]["params"].append(parameter)
        return OPTIMIZERS[self.optimizer](groups, lr=self.learning_rate, **self.optimizer_args)

    def check(self, network: nn.Module) -> None:
        """Raise InputError for settings that the optimiser or the schedule does not take."""
        try:
            self.make_optimizer(network)
            rates = [self.rate(step) for step in (0, self.max_steps - 1)]
        except (TypeError, ValueError, ArithmeticError) as err:
            raise InputError(
                f"{self.optimizer} or {self.schedule} does not take its settings "
                f"({first_line(err)})"
            ) from err
        if not all(0 <= rate < math.inf for rate in rates):
            raise InputError(
                f"expected learning rates from 0 on, the schedule {self.schedule} gives {rates}"
            )


class Players:
    """The networks of a training, ``generator`` and perhaps ``critic``, with their optimisers.

    A ``segmenter``, frozen in evaluation mode, adds the Dice of the segmented output to the loss.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        training: Training,
        fabric: Any,
        seed: int,
        segmenter: nn.Module | None = None,
    ) -> None:
        self.networks, self.training, self.fabric = dict(networks), training, fabric
        self.seed, self.segmenter = seed, segmenter
        if segmenter is not None:
            segmenter.eval().requires_grad_(False).to(
                fabric.device, memory_format=layout(segmenter)
            )
        self.models, self.optimizers = {}, {}
        for name, network in self.networks.items():
            made = fabric.setup(network, training.make_optimizer(network))
            self.models[name], self.optimizers[name] = made

    def draw(self, index: int) -> np.random.Generator:
        """Random numbers of a step: a function of the seed, the step and the process alone."""
        return np.random.default_rng([self.seed, index, self.fabric.global_rank])

    def supervised(self, output: Tensor, truth: Tensor) -> Losses:
        """Losses against the truth (B, 1 or 2, X, Y, Z), by name.

        With a segmenter the truth's second channel holds classes; the weighted Dice of the
        segmented output is part of the loss, and is also given on its own.
        """
        loss = losses.LOSSES[self.training.loss](self._middle(output), self._middle(_image(truth)))
        loss = self.training.loss_weight * loss
        if self.segmenter is None:
            return {"loss": loss}
        found = self.segmenter(_image(output).clamp(0, 1))
        judged = self._middle(found), self._middle(truth[:, 1:])
        dice = losses.dice(*judged, self.training.dice_classes)
        return {"loss": loss + self.training.dice_weight * dice, "dice_loss": dice}

    def _middle(self, x: Tensor) -> Tensor:
        """The part of a patch that the loss sees."""
        size = self.training.loss_crop
        if size is None:
            return x
        starts = [max(n - size, 0) // 2 for n in x.shape[2:]]
        return x[(..., *(slice(start, start + size) for start in starts))]

    def update(self, name: str, index: int, loss: Tensor) -> None:
        """One step of a network's optimiser."""
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self.training.rate(index) * group["rate"]
        optimizer.zero_grad()
        self.fabric.backward(loss)
        optimizer.step()


def _image(x: Tensor) -> Tensor:
    """The first channel of an output or a truth; uncertainty or classes may follow."""
    # a slice's gradient has another layout, and rounds differently
    return x if x.shape[1] == 1 else x[:, :1]


def _detached(terms: Losses) -> Losses:
    return {name: term.detach() for name, term in terms.items()}


@dataclass(frozen=True)
class Supervised(Part):
    """One network, and a loss between its output and the truth; the base of all games."""

    make_critic: ClassVar[Any] = None  # builds the critic from the generator's width and a size

    def critic(self, width: int, patch_size: Size, seed: int = 0) -> nn.Module | None:
        """The critic of patches, weights drawn from the seed; None where the game has none."""
        make = self.make_critic
        return make and seeded(lambda: make(width, patch_size), seed, "the critic")

    def who_moves(self, step: int) -> str:
        """The network that a step updates, or ``both``; steps count from 0."""
        return "generator"

    def step(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> Losses:
        """One update; returns the losses by name."""
        players.networks["generator"].train()
        terms = players.supervised(players.models["generator"](lr), hr)
        players.update("generator", index, terms["loss"])
        return _detached(terms)


@dataclass(frozen=True)
class Wasserstein(Supervised):
    """A generator and a Wasserstein critic; each step updates one of them.

    Chen et al., MICCAI 2018: the critic alone at first, then a fixed number of critic steps for
    each generator step, and after every so many of these steps a run of extra critic steps. While
    the critic moves, the generator is by default in evaluation mode: its batch-norm statistics do
    not change, and the critic judges what users would get.
    """

    choices: ClassVar = {"constraint": ("penalty", "clip"), "generator_mode": ("eval", "train")}

    weight: Number  # of the adversarial term in the generator's loss
    critic_steps: Whole = 0  # steps of the critic alone, at first
    per_generator: Whole = 0  # critic steps for each generator step
    extra_every: Count = 1  # after so many steps ...
    extra: Whole = 0  # ... so many more critic steps
    constraint: str = "penalty"  # gradient penalty, or "clip" the critic's weights
    strength: Number = 10.0  # of the penalty; the bound of the weights where they are clipped
    slope: Number = 0.2  # of the critic's LeakyReLU
    critic_std: Number | None = None  # of the critic's first weights; None: PyTorch's own start
    generator_mode: str = "eval"  # while the critic moves; in "train" batch-norm statistics move

    def make_critic(self, width: int, patch_size: Size) -> nn.Module:
        """The critic, four times as wide as the generator, as in the paper (64 to 16)."""
        return Critic(4 * width, patch_size, self.slope, self.critic_std)

    def who_moves(self, step: int) -> str:
        """The network that a step updates, ``critic`` or ``generator``; steps count from 0."""
        if step < self.critic_steps:
            return "critic"
        place = (step - self.critic_steps) % (self.extra_every + self.extra)
        turn = place % (self.per_generator + 1)
        return "generator" if place < self.extra_every and turn == self.per_generator else "critic"

    def step(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> Losses:
        """One update of either network; returns its losses by name."""
        move = self._move_critic if self.who_moves(index) == "critic" else self._move_generator
        return _detached(move(players, index, lr, hr))

    def _move_critic(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> dict:
        generator, critic = players.networks["generator"], players.models["critic"]
        generator.train(self.generator_mode == "train")
        players.networks["critic"].requires_grad_(True)
        with torch.no_grad():
            hr, sr = _image(hr), _image(generator(lr)).contiguous()
        points = []
        if self.constraint == "penalty":
            share = players.draw(index).random(len(hr), dtype=np.float32)
            points = [losses.mix(hr, sr, torch.from_numpy(share))]
        real, fake, *between = critic(torch.cat([hr, sr, *points])).split(len(hr))
        loss = distance = fake.mean() - real.mean()
        if points:
            loss = distance + self.strength * losses.gradient_penalty(*between, *points)
        players.update("critic", index, loss)
        if self.constraint == "clip":  # Arjovsky et al., ICML 2017
            with torch.no_grad():
                for parameter in players.networks["critic"].parameters():
                    parameter.clamp_(-self.strength, self.strength)
        return {"critic_loss": loss, "gap": -distance}

    def _move_generator(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> dict:
        players.networks["generator"].train()
        players.networks["critic"].requires_grad_(False)
        sr = players.models["generator"](lr)
        terms = players.supervised(sr, hr)
        adversarial = -players.networks["critic"](_image(sr).contiguous()).mean()
        players.update("generator", index, terms["loss"] + self.weight * adversarial)
        return {**terms, "adversarial": adversarial}


@dataclass(frozen=True)
class FineTuning(Wasserstein):
    """SynthSR's game: Wasserstein's, with a critic of its own (BBillot/SynthSR)."""

    def make_critic(self, width: int, patch_size: Size) -> nn.Module:
        """The critic, 32 filters to a generator's 24, as in the code."""
        return PlainCritic(round(width * 4 / 3), patch_size, self.slope)


class _BothMove(Supervised):
    """A generator and a discriminator, both updated at every step, the discriminator first."""

    choices: ClassVar = {"labels": ("per_step", "code", "hard"), "moves": ("both", "critic")}
    moves: ClassVar = "both"
    weight: Number
    labels: str

    against: ClassVar  # (scores (B,), labels (B,)) to a loss

    def who_moves(self, step: int) -> str:
        """Both networks at every step, or the critic alone."""
        return self.moves

    def critic(self, width: int, patch_size: Size, seed: int = 0) -> nn.Module:
        """The discriminator, as wide as the generator, as in both papers."""
        critic = super().critic(width, patch_size, seed)
        return critic.to(memory_format=layout(critic))

    def step(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> Losses:
        """One update of each network; returns their losses by name."""
        critic, draw, both = players.networks["critic"], players.draw(index), self.moves == "both"
        real, fake = losses.draw_labels(draw, len(hr), self.labels)
        players.networks["generator"].train(both)
        with torch.set_grad_enabled(both):
            output = players.models["generator"](lr)
        truth, hr, sr = hr, _image(hr), _image(output)
        critic.requires_grad_(True)
        # apart, for their batch norm
        on_real, on_fake = (players.models["critic"](side) for side in (hr, sr.detach()))
        critic_loss = self.against(on_real, real) + self.against(on_fake, fake)
        players.update("critic", index, critic_loss)
        terms = {"critic_loss": critic_loss, "gap": on_real.mean() - on_fake.mean()}
        if not both:
            return _detached(terms)
        critic.requires_grad_(False)
        supervised = players.supervised(output, truth)
        adversarial = self.against(critic(sr), losses.wished_labels(draw, len(hr), self.labels))
        players.update("generator", index, supervised["loss"] + self.weight * adversarial)
        return _detached({**supervised, "adversarial": adversarial, **terms})


@dataclass(frozen=True)
class LeastSquares(_BothMove):
    """3D-SRGAN's game (Sanchez & Vilaplana, MIDL 2018)."""

    against: ClassVar = staticmethod(losses.least_squares)

    weight: Number  # of the adversarial term in the generator's loss
    labels: str = "per_step"  # rule of losses.draw_labels
    slope: Number = 0.2  # of the discriminator's LeakyReLU
    critic_width: Count | None = None  # its feature maps at first; None: the generator's
    batch_sigma: Number = 0.0  # std, in patches, of a blur of the inputs over the batch (code)

    def make_critic(self, width: int, patch_size: Size) -> nn.Module:
        """3D-SRGAN's discriminator."""
        return Discriminator3D(self.critic_width or width, patch_size, self.slope)

    def step(self, players: Players, index: int, lr: Tensor, hr: Tensor) -> Losses:
        """One update of each network; returns their losses by name."""
        if self.batch_sigma:
            shares = ndimage.gaussian_filter1d(np.eye(len(lr)), self.batch_sigma, axis=0)
            lr = torch.tensordot(torch.from_numpy(shares).to(lr), lr, 1)
        return super().step(players, index, lr, hr)


@dataclass(frozen=True)
class CrossEntropy(_BothMove):
    """SRGAN's game (Ledig et al., CVPR 2017)."""

    against: ClassVar = staticmethod(losses.cross_entropy)

    weight: Number  # of the adversarial term in the generator's loss
    labels: str = "hard"  # rule of losses.draw_labels
    moves: str = "both"  # or the "critic" alone
    critic_args: Mapping[str, object] = field(default_factory=dict)  # of Discriminator2D

    def make_critic(self, width: int, patch_size: Size) -> nn.Module:
        """SRGAN's discriminator of images."""
        settings = {"shape": per_axis(patch_size)[:2], **self.critic_args}
        return Discriminator2D(width, **settings)
