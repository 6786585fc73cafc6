"""Training: the supervised loop on Lightning Fabric, with exact resume and a history."""

import csv
import itertools
import json
import math
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm

from srlib.data import PairDataset, Subject, patch_stream
from srlib.device import choose_device, keep_freed_memory
from srlib.experiments import Experiment
from srlib.losses import LOSSES
from srlib.models import MODELS
from srlib.patches import extract, grid_locations
from srlib.paths import InputError, atomic, first_line, make_dir, source_hash

ROWS = 20  # of history.csv, at most: one per 5 % of the steps
AHEAD = 4  # batches that wait for the network


def learning_rate(experiment: Experiment, step: int) -> float:
    """Learning rate of a step, counted from 0: a pure function, so that resuming needs no scheduler state."""
    if experiment.schedule == "constant":
        return experiment.learning_rate
    return experiment.learning_rate * 0.5 * (1 + math.cos(math.pi * step / experiment.max_steps))


def build_model(experiment: Experiment, seed: int = 0) -> torch.nn.Module:
    """The experiment's network with weights drawn from the seed; global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[experiment.model](width=experiment.width, **experiment.model_args)


class SupervisedPhase:
    """One network, one optimiser, one loss between its output and the truth."""

    def __init__(self, experiment: Experiment, fabric, seed: int) -> None:
        self.experiment, self.fabric = experiment, fabric
        network = build_model(experiment, seed).to(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.Adam(network.parameters(), lr=experiment.learning_rate)
        self.model, optimizer = fabric.setup(network, optimizer)
        self.networks, self.optimizers = {"generator": network}, {"generator": optimizer}

    def step(self, index: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update; returns the losses by name."""
        optimizer = self.optimizers["generator"]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.experiment, index)
        optimizer.zero_grad()
        loss = LOSSES[self.experiment.loss](self.model(lr), hr)
        self.fabric.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}


def fit(
    experiment: Experiment,
    train: Sequence[Subject],
    val: Sequence[Subject],
    folder: str | Path,
    seed: int = 0,
    device: str = "auto",
    processes: int = 1,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Path:
    """Train an experiment on the subjects' pairs and return the path of ``model.safetensors`` in ``folder``.

    A finished run of the same experiment, data, seed and source is returned as it is; an interrupted one
    goes on from ``checkpoint.pt`` (written every ``checkpoint_every`` steps; by default a fifth of the
    run, at most 1,000) and ends in the same weights, to the bit, as an uninterrupted one on one CPU process.
    ``history.csv``: step, learning rate, mean losses, validation PSNR (dB, data range 1, fixed patches of
    ``val``), patches per second, share of the time spent waiting for patches. With ``processes`` > 1 each
    takes its share of a batch (Fabric's DDP) and batch-norm statistics are the first process's.
    Raises InputError for unusable data, device or folder, and when the loss is no longer finite.
    """
    folder = make_dir(Path(folder))
    chosen = choose_device(device)
    if not train:
        raise InputError("no training subject: give at least one row of the manifest the split train")
    if experiment.batch_size % processes:
        raise InputError(f"a batch of {experiment.batch_size} cannot be shared evenly by {processes} processes")
    train = sorted(train, key=lambda s: s.name)[: experiment.n_train]
    identity = {
        "experiment": experiment.to_json(),
        "seed": str(seed),
        "source": source_hash(),
        "data": ",".join(f"{s.name}:{s.file(experiment.contrast).stat().st_size}" for s in [*train, *val]),
    }
    final = folder / "model.safetensors"
    if not (final.is_file() and read_metadata(final) == identity):
        with keep_freed_memory() if chosen.type == "cpu" else nullcontext():
            _train(experiment, train, val, folder, seed, identity, chosen, processes, checkpoint_every, progress)
    return final


def _train(experiment, train, val, folder, seed, identity, chosen, processes, checkpoint_every, progress) -> None:
    from lightning_fabric import Fabric  # three seconds of import that only training needs

    final, checkpoint = folder / "model.safetensors", folder / "checkpoint.pt"
    fabric = Fabric(accelerator=chosen.type, devices=processes, strategy="ddp" if processes > 1 else "auto")
    fabric.launch()
    phase = SupervisedPhase(experiment, fabric, seed)
    step, history, pending = _resume(checkpoint, identity, phase)
    dataset, check = PairDataset(train, experiment), _validation(val, experiment)
    share = experiment.batch_size // processes
    patches = patch_stream(dataset, seed, step * experiment.batch_size)
    batches = _ahead(_batches(patches, experiment.batch_size, share * fabric.global_rank, share))
    checkpoint_every = checkpoint_every or min(1000, -(-experiment.max_steps // 5))
    row_every = -(-experiment.max_steps // ROWS)
    waited, since, began = 0.0, step, time.perf_counter()
    bar = tqdm(
        total=experiment.max_steps, initial=step, desc=experiment.name, unit="step",
        disable=not progress or fabric.global_rank > 0, mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    for network in phase.networks.values():
        network.train()
    while step < experiment.max_steps:
        asked = time.perf_counter()
        lr, hr = (torch.from_numpy(a).to(fabric.device) for a in next(batches))
        waited += time.perf_counter() - asked
        pending.append(phase.step(step, lr, hr))
        step += 1
        bar.update()
        if step % row_every == 0 or step == experiment.max_steps:
            seconds = time.perf_counter() - began
            names = sorted({name for losses in pending for name in losses})
            means = {name: float(torch.stack([p[name] for p in pending if name in p]).mean()) for name in names}
            if not all(map(math.isfinite, means.values())):
                raise InputError(f"training diverged at step {step} ({means}); lower the learning rate")
            speed = (step - since) * experiment.batch_size / seconds
            history.append({
                "step": step, "learning_rate": learning_rate(experiment, step - 1), **means,
                "val_psnr": check(phase.networks["generator"], fabric.device),
                "patches_per_s": speed, "wait_share": waited / seconds,
            })  # fmt: skip
            bar.set_postfix(loss=f"{means['loss']:.4f}", patches=f"{speed:.1f}/s", refresh=False)
            pending, waited, since, began = [], 0.0, step, time.perf_counter()
        if fabric.global_rank == 0 and step % checkpoint_every == 0 and step < experiment.max_steps:
            _save_checkpoint(checkpoint, identity, phase, step, history, pending)
    bar.close()
    if fabric.global_rank == 0:
        _write_history(folder / "history.csv", history)
        weights = {k: v.detach().cpu().contiguous() for k, v in phase.networks["generator"].state_dict().items()}
        with atomic(final) as temporary:
            save_weights(weights, temporary, identity)
        checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def save_weights(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors; equal weights and metadata give equal bytes."""
    # in one entry, since the library writes several in random order
    save_file(state, path, metadata={"srlib": json.dumps(metadata, sort_keys=True)})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that ``save_weights`` wrote, empty for a foreign file; InputError when it is not safetensors."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("srlib", "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({err})") from err


def _save_checkpoint(path: Path, identity: dict, phase, step: int, history: list, pending: list) -> None:
    state = {"identity": identity, "step": step, "history": history, "pending": pending}
    for kind in ("networks", "optimizers"):
        state[kind] = {name: part.state_dict() for name, part in getattr(phase, kind).items()}
    with atomic(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, identity: dict, phase) -> tuple[int, list, list]:
    """Load a checkpoint of this very run into the phase: (step, history, losses since its last row)."""
    if not path.is_file():
        return 0, [], []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as err:
        raise InputError(f"{path}: damaged checkpoint ({first_line(err)}); delete it to start again") from err
    if state["identity"] != identity:
        print(f"{path} belongs to other settings, data or source: training starts again", file=sys.stderr)
        return 0, [], []
    for kind in ("networks", "optimizers"):
        for name, part in getattr(phase, kind).items():
            part.load_state_dict(state[kind][name])
    return state["step"], state["history"], state["pending"]


def _write_history(path: Path, history: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in history for name in row))
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history)


def _batches(patches: Iterator, size: int, first: int, share: int) -> Iterator[list[np.ndarray]]:
    """Group patches into batches and keep this process's share of each."""
    while True:
        batch = list(itertools.islice(patches, size))[first : first + share]
        yield [np.stack(arrays) for arrays in zip(*batch, strict=True)]


def _ahead(items: Iterator) -> Iterator:
    """The same items, made by a thread that stays a few ahead; its errors are raised here."""
    ready: queue.Queue = queue.Queue(AHEAD)

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
        except Exception as err:  # handed to the consumer, whatever it is
            ready.put((None, err))

    threading.Thread(target=work, daemon=True).start()
    while True:
        item, error = ready.get()
        if error:
            raise error
        yield item


def _validation(
    subjects: Sequence[Subject], experiment: Experiment
) -> Callable[[torch.nn.Module, torch.device], float]:
    """A function that gives the mean PSNR over fixed patches of the subjects (nan when there are none)."""
    pairs = []
    for subject in subjects[:2]:
        lr, hr = PairDataset([subject], experiment)[0]
        places = grid_locations(hr.shape, experiment.patch_size)
        places = sorted(places, key=lambda p: -np.mean(hr[p.slices] > 0.05))[:4]
        pairs += [(extract(lr, p), extract(hr, p)) for p in places]
    tensors = [torch.from_numpy(np.stack(side)[:, None]) for side in zip(*pairs, strict=True)]

    def check(network: torch.nn.Module, device: torch.device) -> float:
        if not tensors:
            return math.nan
        network.eval()
        with torch.no_grad():
            error = [
                functional.mse_loss(network(a.to(device)), b.to(device))
                for a, b in zip(*(t.split(1) for t in tensors), strict=True)
            ]
        network.train()
        return float(-10 * torch.log10(torch.stack(error)).mean())

    return check
