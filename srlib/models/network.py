"""Build the network of an experiment from a model's name, its width and its settings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock, get_ident

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from srlib.core.parts import Count, Part
from srlib.core.paths import InputError, choose, first_line
from srlib.models.registry import MODELS

_RANDOM = RLock()  # PyTorch's random state is that of all threads


@dataclass(frozen=True)
class Network(Part):
    """A model of MODELS; ``width`` is its base number of feature maps (growth rate, filters)."""

    model: str
    width: Count
    model_args: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = inspect.signature(choose(MODELS, self.model, "model")).parameters
        for name in self.model_args:
            choose(known, name, f"setting of {self.model}")

    def build(self, seed: int = 0) -> nn.Module:
        """The network with weights drawn from the seed; InputError as ``seeded``."""
        return seeded(
            lambda: MODELS[self.model](width=self.width, **self.model_args), seed, self.model
        )

    def filled(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """The network with the weights of a state dict, perhaps a hostile file's.

        Raises InputError as ``seeded``, before it is made much larger than the state, and
        RuntimeError where they do not fit.
        """
        left, own = 3 * sum(value.numel() for value in state.values()), get_ident()

        def count(_: nn.Module, __: str, weight: nn.Parameter) -> None:
            nonlocal left
            left -= (weight.numel() + 1) * (get_ident() == own)  # other threads build theirs
            if left < 0:
                raise ValueError("the file has fewer weights")

        counter = register_module_parameter_registration_hook(count)
        try:
            network = self.build()
        finally:
            counter.remove()
        network.load_state_dict(state)
        return network


def seeded(make: Callable[[], nn.Module], seed: int, name: str) -> nn.Module:
    """What ``make`` builds with weights drawn from the seed; global random state is left as it was.

    Raises InputError, with the network's ``name``, when it does not take its settings.
    """
    try:
        with _RANDOM, torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError, AssertionError) as err:
        raise InputError(f"{name} does not take its settings ({first_line(err)})") from err
