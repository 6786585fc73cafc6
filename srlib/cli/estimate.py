"""Estimate the time, memory and disk that trainings take here, from a step or two at full size."""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from srlib import systems
from srlib.core.device import layout
from srlib.core.paths import InputError, first_line
from srlib.scans.patches import per_axis
from srlib.systems.base import Experiment
from srlib.systems.training import build
from srlib.training.fit import Machine
from srlib.training.games import Players

LONG = 10.0  # seconds; a step that took less is measured again, as the first one has more to do
VOXELS = 64**3  # in the patches of a step that are enough without an accelerator
GB, DAY = 1e9, 86_400


def estimate(experiments: Sequence[Experiment]) -> Iterator[str]:
    """What each training takes and what all take, a line each.

    Each is measured on random arrays in a process of its own, whose memory is the training's
    without its scans.
    """
    context, rows = get_context("forkserver"), []
    context.set_forkserver_preload(["lightning_fabric", __name__])
    for experiment in experiments:
        name, steps = experiment.name, experiment.training.max_steps
        try:
            with ProcessPoolExecutor(1, context) as pool:
                device, *row = pool.submit(_measure, experiment.to_json()).result()
        except (MemoryError, RuntimeError, InputError) as err:  # a killed process is a RuntimeError
            yield f"{name}: not measured; is there enough memory? ({first_line(err)})"
            continue
        rows.append(row)
        days, memory, _ = row
        each = f"{steps} steps of {days * DAY / steps:.3g} s"
        yield f"{name}: {days:.3g} days, {each}, {memory:.3g} GB of memory"
    if rows:
        days, memory, weights = np.transpose(rows)
        disk = weights.sum() + 3 * weights.max()  # a checkpoint holds Adam's two moments, too
        yield (
            f"In all about {days.sum():.3g} days on {device}, {memory.max():.3g} GB of memory "
            f"beside the scans, {disk:.3g} GB of disk"
        )


def _measure(text):
    """The device, days of the whole training, GB of memory, GB of weights.

    Without an accelerator a part of a batch is measured, since all may take minutes there.
    """
    experiment = systems.from_json(text)
    training, game, networks = experiment.training, experiment.game, build(experiment, 0)
    fabric, generator = Machine().fabric(training.precision), networks["generator"]
    generator.to(memory_format=layout(generator))
    players, count = Players(networks, training, fabric, 0), training.batch_size
    truth = per_axis(experiment.examples.patch_size)
    if fabric.device.type == "cpu":
        count = min(count, max(VOXELS // math.prod(truth), 1))
    factor = generator.factor if experiment.pairs.coarse else (1, 1, 1)
    given = [n // f for n, f in zip(truth, factor, strict=True)]
    channels = experiment.network.model_args.get("in_channels", 1 + bool(experiment.reference))
    lr = torch.rand(count, channels, *given, device=fabric.device)
    hr = torch.rand(count, 1, *truth, device=fabric.device)
    weights = sum(4 * p.numel() for n in networks.values() for p in n.parameters()) / GB
    fixed, seconds = _peak() + 3 * weights, 0.0  # with gradients and Adam's two moments
    movers = [game.who_moves(step) for step in range(training.max_steps)]
    for mover, steps in Counter(movers).items():
        for _ in range(2):
            began = time.perf_counter()
            [float(loss) for loss in game.step(players, movers.index(mover), lr, hr).values()]
            spent = time.perf_counter() - began
            if spent > LONG:
                break
        seconds += steps * spent * training.batch_size / count
    memory = fixed + max(_peak() - fixed, 0) * training.batch_size / count
    if fabric.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / GB
    return str(fabric.device), seconds / DAY, memory, weights


def _peak():
    """The most memory that this process has had so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
