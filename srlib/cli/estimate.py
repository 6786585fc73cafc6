"""Estimate the time, memory and disk that trainings take here, from a step or two at full size."""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

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
VOXELS = 64**3  # in patches of a step that are enough without an accelerator
GB, DAY = 1e9, 86_400


def estimate(experiments: Sequence[Experiment]) -> Iterator[str]:
    """What each training takes and what all take, a line each; experiments of equal cost share one
    measurement, in a process of its own on random arrays.

    Scans are neither read nor held in memory.
    """
    known, days, disk, peaks = {}, 0.0, 0.0, [(0.0, 0.0)]
    for experiment in experiments:
        key, steps = str(_cost(experiment)), experiment.training.max_steps
        try:
            if key not in known:
                context = get_context("forkserver")
                context.set_forkserver_preload(["lightning_fabric", __name__])
                with ProcessPoolExecutor(1, context) as pool:
                    known[key] = pool.submit(_measure, experiment.to_json()).result()
        except (BrokenProcessPool, InputError, MemoryError, RuntimeError) as err:
            yield f"{experiment.name}: not measured; is there enough memory? ({first_line(err)})"
            continue
        seconds, memory, weights, device = known[key]
        movers = Counter(map(experiment.game.who_moves, range(steps)))
        own = sum(count * seconds[mover] for mover, count in movers.items()) / DAY
        days, disk = days + own, disk + weights
        peaks.append((memory, 3 * weights))  # of a checkpoint, with Adam's two moments
        each = " and ".join(f"{seconds[mover]:.3g} s ({mover})" for mover in movers)
        yield f"{experiment.name}: {own:.3g} days, {steps} steps of {each}; {memory:.3g} GB"
    memory, checkpoint = map(max, zip(*peaks, strict=True))
    if days:
        yield (
            f"In all about {days:.3g} days on {device}, {memory:.3g} GB of memory beside the "
            f"scans, {disk + checkpoint:.3g} GB of disk."
        )


def _cost(experiment: Experiment) -> tuple:
    """What decides the cost of a step: first the shapes of a patch, input and truth."""
    training, network, pairs = experiment.training, experiment.network, experiment.pairs
    truth = per_axis(experiment.examples.patch_size)
    factor = pairs.degradation().coarser if pairs.coarse else (1, 1, 1)
    given = (int(n / f) for n, f in zip(truth, factor, strict=True))
    channels = network.model_args.get("in_channels", 1 + bool(experiment.reference))
    rules = training.batch_size, training.loss, training.precision
    return ((channels, *given), (1, *truth)), network, experiment.game, rules


def _measure(text: str) -> tuple[dict[str, float], float, float, str]:
    """Seconds of a step by who moves; GB of memory, of weights; the device.

    Without an accelerator a part of a batch is measured, since all may take minutes there.
    """
    experiment = systems.from_json(text)
    training, game, networks = experiment.training, experiment.game, build(experiment, 0)
    fabric, (given, truth) = Machine().fabric(training.precision), _cost(experiment)[0]
    networks["generator"].to(memory_format=layout(networks["generator"]))
    players, count = Players(networks, training, fabric, 0), training.batch_size
    if fabric.device.type == "cpu":
        count = min(count, max(VOXELS // math.prod(truth), 1))
    lr, hr = (torch.rand(count, *shape, device=fabric.device) for shape in (given, truth))
    weights = 4 * sum(p.numel() for network in networks.values() for p in network.parameters()) / GB
    fixed, seconds = _peak() + 3 * weights, {}  # with gradients and Adam's two moments
    for index in {game.who_moves(i): i for i in reversed(range(training.max_steps))}.values():
        for _ in range(2):
            began = time.perf_counter()
            [float(loss) for loss in game.step(players, index, lr, hr).values()]
            spent = time.perf_counter() - began
            seconds[game.who_moves(index)] = spent * training.batch_size / count
            if spent > LONG:
                break
    memory = fixed + max(_peak() - fixed, 0) * training.batch_size / count
    if fabric.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / GB
    return seconds, memory, weights, str(fabric.device)


def _peak() -> float:
    """The most memory that this process has had so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
