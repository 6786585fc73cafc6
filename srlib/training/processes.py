"""Train on several processes and nodes: each takes its own part of every batch."""

import dataclasses
import inspect
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from srlib.core.device import choose_device, fabric_devices
from srlib.core.paths import InputError, explained
from srlib.training.games import Losses, Players, Supervised, Training
from srlib.training.streams import Own

PATIENCE = 3  # seconds in which the first process says an error of all, and ends the others
BY_HAND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")  # what tells nodes of each other


def is_first() -> bool:
    """Whether this process is the only one of its training or the first."""
    return not (distributed.is_initialized() and distributed.get_rank())


@dataclass(frozen=True)
class Machine:
    """Where a training runs: a device, and ``processes`` on each of ``nodes`` that share batches."""

    device: str = "auto"
    processes: int = 1
    nodes: int = 1

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes

    def check(self) -> None:
        """Raise InputError when the device is not there, and unless what starts the processes
        (torchrun, SLURM, else Fabric itself) starts as many.
        """
        fabric_devices(choose_device(self.device), self.processes)
        starter, count = _started()
        if count not in (0, self.world):
            raise InputError(
                f"{starter} starts {count} processes, and --processes {self.processes} x --nodes "
                f"{self.nodes} is {self.world}; make --processes those of one node, --nodes the "
                "number of nodes, or start as many"
            )
        missing = [name for name in BY_HAND if name not in os.environ]
        if self.nodes > 1 and not count and missing:
            raise InputError(
                f"{self.nodes} nodes: start the training on each by srun or torchrun, or set "
                f"{', '.join(missing)} there"
            )

    def own(self, size: int, rank: int = 0) -> Own:
        """The patches of each batch of ``size`` that a process takes.

        Raises InputError, with what can be given instead, for a batch that cannot be shared evenly.
        """
        if size % self.world == 0:
            count = size // self.world
            return Own(size, rank * count, count)
        fine = [f"{n}" for n in range(1, size + 1) if size % (n * self.nodes) == 0]
        some = f"--processes {' or '.join(fine)}, or " if fine else ""
        raise InputError(
            f"a batch of {size} cannot be shared by {self.world} processes; use {some}"
            f"training.batch_size={-(-size // self.world) * self.world}"
        )

    def fabric(self, precision: str) -> Any:
        """Lightning's Fabric on the device, launched.

        Raises InputError when several processes do not come together.
        """
        from lightning_fabric import Fabric  # three seconds of import that only training needs
        from lightning_fabric.strategies import DDPStrategy

        # a critic sees two batches before it moves: no buffer may change between them
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        chosen, what = choose_device(self.device), f"{self.world} processes"
        advice = "start as many by torchrun or srun, or leave out --processes and --nodes"
        alone = self.world == 1
        with nullcontext() if alone else explained(what, "do not come together", advice):
            fabric = Fabric(
                accelerator=chosen.type,
                devices=fabric_devices(chosen, self.processes),
                num_nodes=self.nodes,
                strategy="auto" if alone else DDPStrategy(**{buffers: False}),
                precision=precision,
            )
            fabric.launch()
        return fabric


ONE = Machine()


def _started():
    """Who starts the processes, and how many, as Fabric sees it; 0 when Fabric starts them."""
    if distributed.is_torchelastic_launched():
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return "", 0
    return "SLURM", int(os.environ.get("SLURM_NTASKS", 0))


@contextmanager
def together(fabric: Any) -> Iterator[None]:
    """End this process, one of several, when another one ends within this block.

    Raises InputError when it is lost. An error of all is the first one's to say: the others wait,
    and end with what started them.
    """
    parent, done = os.getppid(), threading.Event()

    def watch():
        while not done.wait(1):
            if os.getppid() != parent:
                os._exit(1)

    if fabric.world_size > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except (InputError, RuntimeError) as err:
        if fabric.global_rank:
            time.sleep(PATIENCE)
        # NCCL's class, gloo's words
        lost = isinstance(err, distributed.DistError) or "gloo" in str(err).lower()
        if fabric.world_size > 1 and lost:
            raise InputError(
                "another process of this training ended, and so do all; start it again, and it "
                "goes on from its last checkpoint"
            ) from err
        raise
    finally:
        done.set()


def go_on(fabric: Any, state: Mapping[str, Any] | None, checkpoint: Path) -> None:
    """Say what changes when a training goes on in another number of processes.

    Raises InputError unless all processes go on from the same checkpoint.
    """
    state, world = state or {}, fabric.world_size
    step, before = state.get("step", 0), state.get("processes", 1)
    if fabric.broadcast(step) != step:
        raise InputError(
            f"{checkpoint}: another one than the first process's; all nodes must see one folder, "
            "so give --out on a disk that they share"
        )
    if step and before != world and fabric.global_rank == 0:
        print(
            f"{checkpoint} is of {before} processes, now {world}: where a network has batch norm, "
            "it takes its statistics over other parts of each batch; nothing else changes",
            file=sys.stderr,
        )


class _OwnDraws(np.random.Generator):
    """The numbers that one process draws for a whole batch; of them a process's own."""

    def __init__(self, seed: list[int], rank: int, world: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self._rank, self._world = rank, world

    def random(self, size=None, dtype=np.float64):
        """One number of all, or one for each own patch."""
        if size is None:
            return super().random()
        return super().random(size * self._world, dtype)[self._rank * size :][:size]

    def uniform(self, low=0.0, high=1.0, size=1):
        """One number for each own patch."""
        return super().uniform(low, high, size * self._world)[self._rank * size :][:size]


class Sharing(Players):
    """The players in one of several processes, each with its own patches of every batch.

    Gradients are the mean over processes (PyTorch's DDP), so losses are means over the batch; a sum
    counts as many times as there are processes. Random numbers are those that one process draws.
    With networks without batch norm a step is that of one process, but for rounding. Batch norm
    normalises the patches of each process by themselves, and the statistics that are kept are the
    first process's.
    """

    def __init__(self, networks: Mapping, training: Training, fabric: Any, *rest: Any) -> None:
        if training.loss.endswith("_sum"):
            weight = training.loss_weight * fabric.world_size
            training = dataclasses.replace(training, loss_weight=weight)
        super().__init__(networks, training, fabric, *rest)
        self.own = training.batch_size // fabric.world_size
        self.models["generator"].register_forward_pre_hook(self._own_of)

    def _own_of(self, _, given):
        """The own patches of a batch, where it is a whole one."""
        (lr,) = given
        return lr[self.fabric.global_rank * self.own :][: self.own] if len(lr) > self.own else lr

    def draw(self, index: int) -> np.random.Generator:
        """Random numbers of a step: the process's own of those that one process draws."""
        seed = [self.seed, index, 0]
        return _OwnDraws(seed, self.fabric.global_rank, self.fabric.world_size)

    def step(self, game: Supervised, index: int, lr: Tensor, hr: Tensor) -> Losses:
        """One step of a game on the own patches; returns the losses of the whole batch by name."""
        if getattr(game, "batch_sigma", 0):  # it blurs the whole batch
            parts = [torch.empty_like(lr) for _ in range(self.fabric.world_size)]
            distributed.all_gather(parts, lr)
            lr = torch.cat(parts)
        terms = game.step(self, index, lr, hr)
        self._take_statistics()
        means = self.fabric.all_reduce(torch.stack([*terms.values()]))
        return dict(zip(terms, means, strict=True))

    def _take_statistics(self):
        """Take the first process's batch-norm statistics."""
        parts = [network.buffers() for network in self.networks.values()]
        held = [b for buffers in parts for b in buffers if b.is_floating_point()]
        if held:
            vector = parameters_to_vector(held)
            distributed.broadcast(vector, 0)
            sizes = [buffer.numel() for buffer in held]
            for buffer, values in zip(held, vector.split(sizes), strict=True):
                buffer.copy_(values.view_as(buffer))
