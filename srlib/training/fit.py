"""Train networks on Lightning Fabric, with exact resume and a history."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from srlib.core.device import keep_freed_memory, layout
from srlib.core.paths import InputError
from srlib.training import checkpoints
from srlib.training.games import Players, Supervised, Training
from srlib.training.processes import ONE, Machine, Sharing, go_on, together
from srlib.training.streams import Check, Show, ahead, batches

ROWS = 20  # of history.csv, at most: one per 5 % of the steps


def fit(
    networks: Mapping[str, nn.Module],
    stream: Callable[..., Iterable],
    training: Training,
    game: Supervised,  # or a kind of it
    folder: Path,
    *,
    identity: checkpoints.Identity,
    check: Check,
    machine: Machine = ONE,
    seed: int = 0,
    segmenter: nn.Module | None = None,
    shows: Sequence[Show] = (),
    checkpoint_every: int | None = None,
    progress: bool = True,
    restart: bool = False,
    name: str = "",
) -> Path:
    """Train networks, ``generator`` and perhaps ``critic``; return ``model.safetensors``'s path.

    ``stream(first, own=own)`` yields the process's own patches from number ``first`` on. An
    interrupted training goes on from ``checkpoint.pt`` (written every ``checkpoint_every`` steps;
    by default a fifth of the run, at most 1,000) and, on one CPU process, ends in the same weights
    to the bit as an uninterrupted one. ``identity`` tells runs apart. ``history.csv`` holds step,
    learning rate, mean losses, what ``check`` measures, patches per second, and the share of the
    time spent waiting for patches; each row is also given to ``shows``. Several processes share
    each batch and do what one does, but for batch norm (``Sharing``); their number may be another
    one when a training goes on. Raises InputError when training diverges, before anything that is
    not finite is saved, when a process is lost, and for another run's checkpoint.
    """
    checkpoint = folder / "checkpoint.pt"
    state = None if restart else checkpoints.read(checkpoint, identity)
    fabric = machine.fabric(training.precision)
    with together(fabric):
        first = fabric.global_rank == 0
        if restart and first:
            checkpoints.read(checkpoint, identity, restart)
        go_on(fabric, state, checkpoint)
        generator = networks["generator"]
        generator.to(memory_format=layout(generator))
        several = machine.world > 1
        players = (Sharing if several else Players)(networks, training, fabric, seed, segmenter)
        move = partial(players.step, game) if several else partial(game.step, players)
        step, history, pending = checkpoints.resume(state, players, fabric.device, checkpoint)
        size, last = training.batch_size, training.max_steps
        cuda = fabric.device.type == "cuda"
        torch.backends.cudnn.benchmark |= cuda  # all patches are of one size
        own = machine.own(size, fabric.global_rank)
        # here, since its processes are not to start in a thread
        patches = iter(stream(step * size, own=own))
        source = ahead(batches(patches, own.count, cuda))
        save_every = checkpoint_every or min(1000, -(-last // 5))
        row_every = -(-last // ROWS)
        bar = tqdm(
            total=last,
            initial=step,
            desc=name,
            unit="step",
            disable=not (progress and first),
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        row_step, began, waited = step, time.perf_counter(), 0.0
        with keep_freed_memory(), closing(source), bar:
            while step < last:
                asked = time.perf_counter()
                lr, hr = (side.to(fabric.device, non_blocking=cuda) for side in next(source))
                waited += time.perf_counter() - asked
                pending.append(move(step, lr, hr))
                step += 1
                bar.update()
                save = step % save_every == 0 and step < last
                row = step % row_every == 0 or step == last
                if save or row:
                    checkpoints.require_finite(players, pending, step, checkpoint)
                if row:
                    seconds = time.perf_counter() - began
                    means = _means(pending)
                    facts = {"step": step, "learning_rate": training.rate(step - 1), **means}
                    facts |= check(networks, fabric.device)
                    facts["patches_per_s"] = (step - row_step) * size / seconds
                    facts["wait_share"] = waited / seconds
                    history.append(facts)
                    bar.set_postfix(means, refresh=False)
                    for show in shows if first else ():
                        show(facts, generator)
                    row_step, began, waited, pending = step, time.perf_counter(), 0.0, []
                if save and first:
                    made = {
                        "step": step,
                        "history": history,
                        "pending": pending,
                        "processes": machine.world,
                    }
                    checkpoints.save(checkpoint, identity, made, players)
        if first:
            checkpoints.finish(folder, identity, players, history)
            checkpoints.remove(checkpoint, identity)
        fabric.barrier()
    return folder / "model.safetensors"


def _means(pending):
    """The mean of each loss over the steps that have it."""
    names = sorted({name for losses in pending for name in losses})
    return {
        name: float(torch.stack([step[name] for step in pending if name in step]).mean())
        for name in names
    }


def check_numbers(**numbers: int | None) -> None:
    """Raise InputError for a number below 1 (``seed``: below 0), of 2**63 or more, or not whole.

    None passes.
    """
    for name, value in numbers.items():
        least = 0 if name == "seed" else 1
        if value is not None and not (isinstance(value, Integral) and least <= value < 2**63):
            raise InputError(
                f"{name} must be a whole number of {least} or more, below 2**63, got {value!r}"
            )
