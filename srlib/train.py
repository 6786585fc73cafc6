"""Training: the supervised loop on Lightning Fabric, with exact resume and a history."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path

import torch
from tqdm import tqdm

from srlib import experiments, results
from srlib.data import Subject, read_manifest
from srlib.dataset import PairDataset, ahead, batches, patch_stream
from srlib.device import choose_device, fabric_devices, keep_freed_memory, layout
from srlib.experiments import Experiment
from srlib.patches import per_axis
from srlib.paths import RESULTS_VERSION, InputError, make_dir, results_dir, sha256, source_hash
from srlib.phases import check_parts, learning_rate, make_phase
from srlib.priors import read_classes, read_priors
from srlib.store import PatchStore
from srlib.synthetic import SyntheticDataset, example_stream, table_hashes, with_classes
from srlib.validate import LOOKED_AT, board_writer, fixed_examples, fixed_patches, snapshot_writer, validation
from srlib.weights import (
    contents,
    difference,
    finish,
    load_network,
    read_checkpoint,
    read_metadata,
    remove_checkpoint,
    require_finite,
    resume,
    save_checkpoint,
    stamp,
    start_from,
    weights_hash,
)

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
    restart: bool = False,
) -> Path:
    """Train an experiment on the subjects' pairs and return the path of ``model.safetensors`` in ``folder``.

    An experiment that names another in its field ``start``, ``start_critic`` or ``segmenter`` needs that one's trained
    generator, critic or segmenter under the same name; with a critic, its weights are written beside the generator's as
    ``critic.safetensors``. With ``store``, patches are read from that HDF5 file (see ``store.write_store``) instead of
    being cut from ``train``. An experiment with a ``generation`` draws examples from label maps instead, those of
    ``val`` for validation, and needs the tables ``classes`` and ``priors`` (see ``priors``).

    A run is known by its experiment, seed, the content of all that is read, and ``paths.RESULTS_VERSION``. A finished
    one is returned as it is; an interrupted one goes on from ``checkpoint.pt`` (written every ``checkpoint_every``
    steps; by default a fifth of the run, at most 1,000) and ends in the same weights, to the bit, as an uninterrupted
    one on one CPU process. Another run's finished weights are kept beside the new ones, with a hash in their name;
    another run's checkpoint is refused, or set aside with ``restart``.
    ``history.csv``: step, learning rate, mean losses, validation PSNR (dB, data range 1, fixed patches of ``val``) or
    Dice (see ``validate``), the critic's mean score of their real minus their generated versions, patches per second,
    share of the time spent waiting for patches. With ``processes`` > 1 each takes its share of a batch (Fabric's DDP)
    and batch-norm statistics are the first process's. With ``snapshots`` each row also leaves what the network makes of
    one patch of ``val`` as ``snapshots/STEP_sr.nii.gz``, in its place in the world; with ``tensorboard`` it goes to that
    folder as scalars and an image.
    Raises InputError for unusable numbers, data, device or folder, and when training diverges: nothing that is not
    finite is ever saved.
    """
    chosen = choose_device(device)
    devices = fabric_devices(chosen, processes)
    for what, number, least in (("seed", seed, 0), ("checkpoint_every", checkpoint_every, 1)):
        if number is not None and not (isinstance(number, Integral) and number >= least):
            raise InputError(f"{what} must be a whole number of {least} or more, got {number!r}")
    starts = {"generator": start, "critic": start_critic, "segmenter": segmenter}
    options = ("start", "start_critic", "segmenter")
    for (kind, given), option in zip(starts.items(), options, strict=True):
        name, flag = getattr(experiment, option), f"--{option.replace('_', '-')}"
        if bool(name) != bool(given):
            wanted = f"the {kind} weights of {name!r}; give them by" if name else f"no {kind} weights; leave out"
            raise InputError(f"{experiment.name} expects {wanted} {flag} (in Python: {option})")
    tables = {}
    if experiment.generation:
        if not (classes and priors) or store or snapshots:
            raise InputError(
                f"{experiment.name} draws its examples from label maps: give it a table of their classes (--classes) and "
                "intensity priors (--priors), which csv/README.md describes and 'srlib priors' measures, and no store and "
                "no snapshots"
            )
        table, intensities = read_classes(classes), read_priors(priors)
        experiment, tables = with_classes(experiment, table), table_hashes(table, intensities)
        train, val = ([s for s in part if "labels" in s.files] for part in (train, val))
    elif classes or priors:
        raise InputError(f"{experiment.name} is trained on scans, not on label maps; leave out classes and priors")
    check_parts(experiment)
    if segmenter and read_metadata(segmenter).get("classes") != tables.get("classes"):
        raise InputError(f"{segmenter}: trained with another table of classes than {classes}; train it with this one")
    if not train and not store:
        filled = " and labels" if experiment.generation else ""
        raise InputError(f"no training subject: give at least one row of the manifest the split train{filled}")
    if experiment.batch_size % processes:
        raise InputError(f"a batch of {experiment.batch_size} cannot be shared evenly by {processes} processes")
    train = sorted(train, key=lambda s: s.name)[: experiment.n_train]
    if experiment.generation:
        dataset = SyntheticDataset(train, experiment, table, intensities, seed)
    else:
        dataset, val = _read_store(store, experiment) if store else PairDataset(train, experiment), val[:LOOKED_AT]
    identity = {
        "experiment": experiment.to_json(),
        "seed": int(seed),
        "results_version": RESULTS_VERSION,
        "train": {} if store else contents(train, experiment),
        "val": contents(val, experiment),
        "store": sha256(store) if store else "",
        "starts": {kind: weights_hash(path) for kind, path in starts.items() if path},
        **tables,
    }
    if snapshots and not val:
        raise InputError("snapshots show a validation scan; give at least one row of the manifest the split val")
    folder = make_dir(Path(folder))
    final, checkpoint = folder / "model.safetensors", folder / "checkpoint.pt"
    if final.is_file() and not difference(read_metadata(final), identity):
        if read_metadata(final)["source"] != source_hash():
            print(f"{final} is kept: the same run, by other source code", file=sys.stderr)
        remove_checkpoint(checkpoint, identity)  # it was stopped between the two
    else:
        seen, state = stamp(checkpoint), read_checkpoint(checkpoint, identity, restart)
        with keep_freed_memory() if chosen.type == "cpu" else nullcontext():
            shows = [snapshot_writer(val[0], experiment, folder / "snapshots")] if snapshots else []
            pairs = fixed_examples(val, dataset) if experiment.generation else fixed_patches(val, experiment)
            shows += [board_writer(pairs, experiment, folder / "tensorboard")] if tensorboard else []
            _train(
                experiment, dataset, pairs, folder, seed, identity, chosen.type, devices, processes, checkpoint_every,
                progress, starts, shows, state, seen if state else None,
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
    subjects = read_manifest(cohort)
    weights: dict[str, Path | None] = {"": None}
    tables = {"classes": classes, "priors": priors}
    for name in names:
        experiment = experiments.get(name, profile)
        for first in (experiment.start, experiment.start_critic, experiment.segmenter):
            if first not in weights:
                raise InputError(f"{name} needs {first}, which must be trained before it")
        critic = weights[experiment.start_critic]
        weights[name] = fit_recorded(
            name, profile, cohort, subjects, seed, device, folder, start=weights[experiment.start],
            start_critic=critic and critic.with_name("critic.safetensors"), segmenter=weights[experiment.segmenter],
            **(tables if experiment.generation else {}),
        )  # fmt: skip
    del weights[""]
    return weights


def fit_recorded(
    name: str,
    profile: str,
    cohort: str | Path,
    subjects: Sequence[Subject],
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    **options: object,
) -> Path:
    """Train an experiment on the subjects of a cohort, in its place under ``folder``, and record it in ``runs.csv``.

    Returns the weights; ``folder`` is by default the cohort's results, ``options`` are those of ``fit``, which says what
    it raises.
    """
    folder = Path(folder or results_dir(profile, cohort))
    run = folder / "checkpoints" / results.run_id(name, profile, seed, cohort)
    train, val = ([s for s in subjects if s.split == part] for part in ("train", "val"))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    weights = fit(experiments.get(name, profile), train, val, run, seed, device, **options)
    seconds, where = time.perf_counter() - clock, str(choose_device(device))
    trained = experiments.from_json(read_metadata(weights)["experiment"])  # its number of classes is known
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes that share the batches
        results.record_run(folder, trained, profile, seed, cohort, weights, started, seconds, where)
    return weights


def _train(
    experiment, dataset, pairs, folder, seed, identity, accelerator, devices, processes, checkpoint_every, progress,
    starts, shows, state, seen,
) -> None:  # fmt: skip
    from lightning_fabric import Fabric  # three seconds of import that only training needs

    checkpoint = folder / "checkpoint.pt"
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=experiment.precision)
    fabric.launch()
    segmenter = None
    if starts["segmenter"]:
        segmenter = load_network(starts["segmenter"])[0].eval().requires_grad_(False)
        segmenter.to(fabric.device, memory_format=layout(segmenter))
    phase = make_phase(experiment, fabric, seed, segmenter)
    for kind, network in phase.networks.items():
        if starts[kind]:
            start_from(network, starts[kind], f"the {kind} of {experiment.name}")
    step, history, pending = resume(state, phase, fabric.device, checkpoint) if state else (0, [], [])
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
            save = step % checkpoint_every == 0 and step < experiment.max_steps
            row = step % row_every == 0 or step == experiment.max_steps
            if save or row:
                require_finite(phase, pending, step, checkpoint)
            if row:
                seconds = time.perf_counter() - began
                names = sorted({name for losses in pending for name in losses})
                means = {name: float(torch.stack([p[name] for p in pending if name in p]).mean()) for name in names}
                speed = (step - since) * experiment.batch_size / seconds
                history.append({
                    "step": step, "learning_rate": learning_rate(experiment, step - 1), **means,
                    **check(phase.networks, fabric.device),
                    "patches_per_s": speed, "wait_share": waited / seconds,
                })  # fmt: skip
                shown = {name: f"{means[name]:.4f}" for name in ("loss", "critic_loss") if name in means}
                bar.set_postfix(**shown, patches=f"{speed:.1f}/s", refresh=False)
                for show in shows if fabric.global_rank == 0 else ():
                    show(history[-1], phase.networks["generator"])
                pending, waited, since, began = [], 0.0, step, time.perf_counter()
            if save and fabric.global_rank == 0:
                progressed = {"identity": identity, "step": step, "history": history, "pending": pending}
                seen = save_checkpoint(checkpoint, progressed, phase, seen)
    if fabric.global_rank == 0:
        finish(folder, identity, phase, history)
        remove_checkpoint(checkpoint, identity)
    fabric.barrier()


def _read_store(path: str | Path, experiment: Experiment) -> PatchStore:
    store = PatchStore(path)
    expected = (1 + bool(experiment.reference), *per_axis(experiment.patch_size))
    if store.shapes[0][1:] != expected:
        raise InputError(
            f"{path}: {experiment.name} expects patches (C, x, y, z) of {expected}, got {store.shapes[0][1:]}"
        )
    return store
