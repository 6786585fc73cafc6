"""Training: the supervised loop on Lightning Fabric, with exact resume and a history."""

import csv
import math
import pickle
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from srlib import experiments, results
from srlib.data import Subject, read_manifest
from srlib.dataset import PairDataset, ahead, batches, patch_stream
from srlib.device import choose_device, keep_freed_memory, layout
from srlib.experiments import Experiment
from srlib.patches import per_axis
from srlib.paths import InputError, atomic, first_line, make_dir, results_dir, sha256, source_hash
from srlib.phases import learning_rate, make_phase
from srlib.priors import read_classes, read_priors
from srlib.store import PatchStore
from srlib.synthetic import SyntheticDataset, example_stream, fingerprint, with_classes
from srlib.validate import board_writer, fixed_examples, fixed_patches, snapshot_writer, validation
from srlib.weights import load_network, read_metadata, save_weights, start_from

ROWS = 20  # of history.csv, at most: one per 5 % of the steps


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
    start: str | Path | None = None,
    store: str | Path | None = None,
    snapshots: bool = False,
    start_critic: str | Path | None = None,
    tensorboard: bool = False,
    classes: str | Path | None = None,
    priors: str | Path | None = None,
    segmenter: str | Path | None = None,
) -> Path:
    """Train an experiment on the subjects' pairs and return the path of ``model.safetensors`` in ``folder``.

    An experiment that names another in its field ``start``, ``start_critic`` or ``segmenter`` needs that one's trained
    generator, critic or segmenter under the same name; with a critic, its weights are written beside the generator's as
    ``critic.safetensors``. With ``store``, patches are read from that HDF5 file (see ``store.write_store``) instead of
    being cut from ``train``. An experiment with a ``generation`` draws examples from label maps instead, those of
    ``val`` for validation, and needs the tables ``classes`` and ``priors`` (see ``priors``).

    A finished run of the same experiment, data, seed and source is returned as it is; an interrupted one
    goes on from ``checkpoint.pt`` (written every ``checkpoint_every`` steps; by default a fifth of the
    run, at most 1,000) and ends in the same weights, to the bit, as an uninterrupted one on one CPU process.
    ``history.csv``: step, learning rate, mean losses, validation PSNR (dB, data range 1, fixed patches of ``val``) or
    Dice (see ``validate``), the critic's mean score of their real minus their generated versions, patches per second,
    share of the time spent waiting for patches. With ``processes`` > 1 each takes its share of a batch (Fabric's DDP)
    and batch-norm statistics are the first process's. With ``snapshots`` each row also leaves what the network makes of
    one patch of ``val`` as ``snapshots/STEP_sr.nii.gz``, in its place in the world; with ``tensorboard`` it goes to that
    folder as scalars and an image.
    Raises InputError for unusable data, device or folder, and when the loss is no longer finite.
    """
    folder = make_dir(Path(folder))
    chosen = choose_device(device)
    starts = {"generator": start, "critic": start_critic, "segmenter": segmenter}
    named = (experiment.start, experiment.start_critic, experiment.segmenter)
    for (kind, given), name in zip(starts.items(), named, strict=True):
        if bool(name) != bool(given):
            wanted = f"the {kind} weights of {name!r}" if name else f"no {kind} weights"
            raise InputError(f"{experiment.name} expects {wanted}, got {given}")
    tables = {}
    if experiment.generation:
        if not (classes and priors) or store or snapshots:
            raise InputError(
                f"{experiment.name} draws its examples from label maps: give it a table of their classes and intensity "
                "priors, which csv/README.md describes and 'srlib priors' measures, and no store and no snapshots"
            )
        table, intensities = read_classes(classes), read_priors(priors)
        experiment, tables = with_classes(experiment, table), fingerprint(table, intensities)
        train, val = ([s for s in part if "labels" in s.files] for part in (train, val))
    elif classes or priors:
        raise InputError(f"{experiment.name} is trained on scans, not on label maps; leave out classes and priors")
    if segmenter and read_metadata(segmenter).get("classes") != tables["classes"]:
        raise InputError(f"{segmenter}: trained with another table of classes than {classes}; train it with this one")
    if not train and not store:
        filled = " and labels" if experiment.generation else ""
        raise InputError(f"no training subject: give at least one row of the manifest the split train{filled}")
    if experiment.batch_size % processes:
        raise InputError(f"a batch of {experiment.batch_size} cannot be shared evenly by {processes} processes")
    train = sorted(train, key=lambda s: s.name)[: experiment.n_train]
    if experiment.generation:
        dataset = SyntheticDataset(train, experiment, table, intensities, seed)
        columns = dataset.columns
    else:
        dataset = _read_store(store, experiment) if store else PairDataset(train, experiment)
        columns = [c for c in (experiment.contrast, experiment.reference) if c]
    identity = {
        "experiment": experiment.to_json(),
        "seed": str(seed),
        "source": source_hash(),
        "data": ",".join(f"{s.name}:{s.file(c).stat().st_size}" for s in [*train, *val] for c in columns),
        "store": sha256(store) if store else "",
        "start": ",".join(sha256(path) if path else "" for path in starts.values()),
        **tables,
    }
    if snapshots and not val:
        raise InputError("snapshots show a validation scan; give at least one row of the manifest the split val")
    final = folder / "model.safetensors"
    if not (final.is_file() and read_metadata(final) == identity):
        with keep_freed_memory() if chosen.type == "cpu" else nullcontext():
            shows = [snapshot_writer(val[0], experiment, folder / "snapshots")] if snapshots else []
            pairs = fixed_examples(val, dataset) if experiment.generation else fixed_patches(val, experiment)
            shows += [board_writer(pairs, experiment, folder / "tensorboard")] if tensorboard else []
            _train(
                experiment, dataset, pairs, folder, seed, identity, chosen, processes, checkpoint_every, progress,
                starts, shows,
            )  # fmt: skip
    return final


def fit_all(
    names: Sequence[str],
    profile: str,
    cohort: str | Path,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    classes: str | Path | None = None,
    priors: str | Path | None = None,
) -> dict[str, Path]:
    """Train experiments one after the other, each from those that it needs, and record them in ``runs.csv``.

    Returns the weights by experiment; their folders are ``checkpoints/<run_id>/`` of ``folder``, by default the cohort's
    results; ``classes`` and ``priors`` go to those that draw examples from label maps. Raises InputError as ``fit``, and
    when an experiment stands before one that it needs.
    """
    folder, subjects = Path(folder or results_dir(profile, cohort)), read_manifest(cohort)
    split = {part: [s for s in subjects if s.split == part] for part in ("train", "val")}
    weights: dict[str, Path | None] = {"": None}
    tables = {"classes": classes, "priors": priors}
    for name in names:
        experiment = experiments.get(name, profile)
        for first in (experiment.start, experiment.start_critic, experiment.segmenter):
            if first not in weights:
                raise InputError(f"{name} needs {first}, which must be trained before it")
        run = folder / "checkpoints" / results.run_id(name, profile, seed, cohort)
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        start, critic = weights[experiment.start], weights[experiment.start_critic]
        critic = critic and critic.with_name("critic.safetensors")
        weights[name] = fit(
            experiment, split["train"], split["val"], run, seed, device, start=start, start_critic=critic,
            segmenter=weights[experiment.segmenter], **(tables if experiment.generation else {}),
        )  # fmt: skip
        seconds, where = time.perf_counter() - clock, str(choose_device(device))
        trained = experiments.from_json(read_metadata(weights[name])["experiment"])  # its number of classes is known
        results.record_run(folder, trained, profile, seed, cohort, weights[name], started, seconds, where)
    del weights[""]
    return weights


def _train(
    experiment, dataset, pairs, folder, seed, identity, chosen, processes, checkpoint_every, progress, starts, shows
) -> None:
    from lightning_fabric import Fabric  # three seconds of import that only training needs

    checkpoint = folder / "checkpoint.pt"
    fabric = Fabric(
        accelerator=chosen.type, devices=processes, strategy="ddp" if processes > 1 else "auto",
        precision=experiment.precision,
    )  # fmt: skip
    fabric.launch()
    segmenter = None
    if starts["segmenter"]:
        segmenter = load_network(starts["segmenter"])[0].eval().requires_grad_(False)
        segmenter.to(fabric.device, memory_format=layout(segmenter))
    phase = make_phase(experiment, fabric, seed, segmenter)
    for kind, network in phase.networks.items():
        if starts[kind]:
            start_from(network, starts[kind], f"the {kind} of {experiment.name}")
    step, history, pending = _resume(checkpoint, identity, phase)
    check = validation(pairs, experiment)
    share, first = experiment.batch_size // processes, step * experiment.batch_size
    stream = example_stream(dataset, first) if experiment.generation else patch_stream(dataset, seed, first)
    source = ahead(batches(stream, experiment.batch_size, share * fabric.global_rank, share))
    del stream  # it ends with the source
    checkpoint_every = checkpoint_every or min(1000, -(-experiment.max_steps // 5))
    row_every = -(-experiment.max_steps // ROWS)
    waited, since, began = 0.0, step, time.perf_counter()
    bar = tqdm(
        total=experiment.max_steps, initial=step, desc=experiment.name, unit="step",
        disable=not progress or fabric.global_rank > 0, mininterval=0.5 if sys.stderr.isatty() else 15,
    )  # fmt: skip
    with closing(source), bar:
        while step < experiment.max_steps:
            asked = time.perf_counter()
            lr, hr = (torch.from_numpy(a).to(fabric.device) for a in next(source))
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
                    **check(phase.networks, fabric.device),
                    "patches_per_s": speed, "wait_share": waited / seconds,
                })  # fmt: skip
                bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}", patches=f"{speed:.1f}/s", refresh=False)
                for show in shows if fabric.global_rank == 0 else ():
                    show(history[-1], phase.networks["generator"])
                pending, waited, since, began = [], 0.0, step, time.perf_counter()
            if fabric.global_rank == 0 and step % checkpoint_every == 0 and step < experiment.max_steps:
                _save_checkpoint(checkpoint, identity, phase, step, history, pending)
    if fabric.global_rank == 0:
        _write_history(folder / "history.csv", history)
        for name, network in reversed(phase.networks.items()):  # the generator last: its file says that all is done
            weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
            with atomic(folder / f"{'model' if name == 'generator' else name}.safetensors") as temporary:
                save_weights(weights, temporary, identity)
        checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def _read_store(path: str | Path, experiment: Experiment) -> PatchStore:
    store = PatchStore(path)
    expected = (1 + bool(experiment.reference), *per_axis(experiment.patch_size))
    if store.shapes[0][1:] != expected:
        raise InputError(
            f"{path}: {experiment.name} expects patches (C, x, y, z) of {expected}, got {store.shapes[0][1:]}"
        )
    return store


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
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history)
