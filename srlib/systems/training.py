"""Train an experiment from its data and the weights that it starts from."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from srlib import systems
from srlib.core.paths import (
    RESULTS_VERSION,
    InputError,
    StrPath,
    explained,
    make_dir,
    sha256,
    sources,
)
from srlib.data.manifest import Subject
from srlib.models.weights import read_metadata, start_from, state_hash
from srlib.scans.patches import per_axis
from srlib.systems.base import Experiment
from srlib.systems.published import is_foreign
from srlib.systems.trained import load_network, read_state
from srlib.training import checkpoints
from srlib.training.fit import Machine, check_numbers, fit
from srlib.training.games import Supervised
from srlib.training.store import PatchStore
from srlib.training.validation import board_writer, snapshot_writer, validation

# kind of weights -> the field and the option that name them
STARTS = {"generator": "start", "critic": "start_critic", "segmenter": "segmenter"}


def train(
    experiment: Experiment,
    train: Sequence[Subject],
    val: Sequence[Subject],
    folder: StrPath,
    *,
    seed: int = 0,
    device: str = "auto",
    processes: int = 1,
    nodes: int = 1,
    store: StrPath | None = None,
    classes: StrPath | None = None,
    priors: StrPath | None = None,
    start: StrPath | None = None,
    start_critic: StrPath | None = None,
    segmenter: StrPath | None = None,
    snapshots: bool = False,
    tensorboard: bool = False,
    checkpoint_every: int | None = None,
    progress: bool = True,
    restart: bool = False,
) -> Path:
    """Train an experiment on subjects and return the path of ``model.safetensors`` in ``folder``.

    ``store``: the HDF5 file (see ``store.write_store``) to read patches from, instead of cutting
    them from ``train``. ``classes`` and ``priors``: the tables (see ``priors``) for examples that
    come from label maps. ``snapshots``: each row of ``history.csv`` also leaves the network's
    result for one patch of ``val`` as ``snapshots/STEP_sr.nii.gz``, in its place in the world, and
    its weights as ``snapshots/STEP.safetensors``. ``tensorboard``: each row goes to that folder as
    scalars and an image.

    ``start``, ``start_critic`` and ``segmenter`` are weights files, which an experiment needs that
    names another one in the field of that name. Any experiment goes on from ``start``, ours or a
    published file. ``checkpoint_every``, ``progress`` and ``restart`` are those of ``fit``. A
    critic's weights are written as ``critic.safetensors``. ``processes`` on each of ``nodes``
    share every batch (see ``fit``); they are no part of what a run is known by.

    A run is known by its experiment, seed, the content of all that is read, the code that computes
    (``paths.sources``), and ``paths.RESULTS_VERSION``. A finished run is returned as it is; an
    interrupted one goes on (see ``fit``). Another run's finished weights are kept beside the new
    ones, with a hash in their name. Another run's checkpoint is refused, or set aside with
    ``restart``. Raises InputError for unusable numbers, data, device or folder, and as ``fit``.
    """
    check_numbers(seed=seed, checkpoint_every=checkpoint_every, nodes=nodes)
    machine = Machine(device, processes, nodes)
    machine.check()
    machine.own(experiment.training.batch_size)
    starts = {"generator": start, "critic": start_critic, "segmenter": segmenter}
    _check_starts(experiment, starts)
    examples, pairs = experiment.examples, experiment.pairs
    tables = examples.read_tables(classes, priors, alone=not (store or snapshots))
    hashes = tables.hashes() if tables else {}
    if tables:
        experiment = experiment.changed(network=tables.complete(experiment.network))
    judge = segmenter and _segmenter(segmenter, experiment, hashes.get("classes"), classes)
    train, val = examples.select(train), examples.select_val(val)
    _check_amounts(experiment, len(train) or bool(store), len(val) or not snapshots)
    if store:
        dataset, train = _read_store(store, experiment, seed), []
    else:
        dataset = examples.open(train, pairs, seed=seed, tables=tables)
    columns = partial(examples.columns, pairs)
    facts = {
        "experiment": experiment.to_json(),
        "seed": int(seed),
        **hashes,
        "results_version": RESULTS_VERSION,
        "source": sources(),
        "train": checkpoints.contents(train, columns),
        "val": checkpoints.contents(val, columns),
        "store": sha256(store) if store else "",
        "starts": {kind: state_hash(read_state(path)) for kind, path in starts.items() if path},
    }
    identity = checkpoints.Identity(facts, lambda text: systems.from_json(text).to_json())
    networks = build(experiment, seed)
    folder = make_dir(Path(folder))
    final = folder / "model.safetensors"
    if final.is_file() and not identity.difference(read_metadata(final)):
        checkpoints.remove(folder / "checkpoint.pt", identity)  # it was stopped between the two
        if restart or snapshots or tensorboard:
            print(
                f"{final} is finished and stays as it is; train in another folder", file=sys.stderr
            )
        return final
    for kind, network in networks.items():
        if starts[kind]:
            misfit = f"{starts[kind]}: does not fit the {kind} of {experiment.name}"
            start_from(network, read_state(starts[kind]), misfit)
    loss = experiment.training.loss
    shown = examples.held_out(val, pairs, tables=tables)
    shows = []
    if snapshots:
        shows.append(snapshot_writer(val[0], examples, pairs, folder / "snapshots", facts))
    shows += [board_writer(shown, loss, folder / "tensorboard")] if tensorboard else []
    return fit(
        networks,
        dataset.stream,
        experiment.training,
        experiment.game,
        folder,
        identity=identity,
        check=validation(shown, loss),
        machine=machine,
        seed=seed,
        segmenter=judge,
        shows=shows,
        checkpoint_every=checkpoint_every,
        progress=progress,
        restart=restart,
        name=experiment.name,
    )


def _segmenter(path, experiment, known, classes):
    """A segmenter, ours or a published U-Net with an output per label.

    Raises InputError unless the class of each of its outputs is known.
    """
    network, theirs = load_network(path)
    if is_foreign(path):
        count, given = theirs.number("out_channels"), experiment.training.dice_classes
        if len(given) != count:
            raise InputError(
                f"{path}: it has {count} outputs, and the class of {len(given)} is given; set "
                "training.dice_classes to the class of each, None where it is not judged"
            )
    elif read_metadata(path).get("classes") != known:
        raise InputError(
            f"{path}: trained with another table of classes than {classes}; train it with this one"
        )
    return network


def _check_starts(experiment, starts):
    """Raise InputError for weights that are missing or not wanted; any generator may be given."""
    wanted = {
        "generator": True,
        "critic": experiment.game != Supervised(),
        "segmenter": bool(experiment.segmenter),
    }
    for kind, option in STARTS.items():
        name, given = getattr(experiment, option), starts[kind]
        flag = f"--{option.replace('_', '-')} (in Python: {option})"
        if given and not wanted[kind]:
            raise InputError(f"{experiment.name} has no {kind}; leave out {flag}")
        if name and not given:
            raise InputError(
                f"{experiment.name} starts from the {kind} weights of {name!r}; give {flag}, or "
                f"--set {option}= to train without"
            )


def build(experiment: Experiment, seed: int) -> dict[str, torch.nn.Module]:
    """The networks of an experiment, weights drawn from the seed.

    Raises InputError for settings that do not fit.
    """
    network, game = experiment.network, experiment.game
    with explained(experiment.name, "cannot be built", "give its parts other numbers"):
        generator = network.build(seed)
        experiment.training.check(generator)
        critic = game.critic(network.width, experiment.examples.patch_size, seed)
    return {"generator": generator} | ({"critic": critic} if critic else {})


def _read_store(path, experiment, seed):
    """Open a store; InputError for patches that the experiment is not trained on."""
    store = PatchStore(path, seed, experiment.examples.mixed)
    expected = (1 + bool(experiment.reference), *per_axis(experiment.examples.patch_size))
    found = (store.shapes[0][1], *store.shapes[1][2:])
    if found != expected:
        raise InputError(
            f"{path}: {experiment.name} expects patches (C, x, y, z) of {expected}, got {found}"
        )
    if store.pairs not in (None, repr(experiment.pairs)):
        raise InputError(
            f"{path}: its patches were made by {store.pairs}, {experiment.name} is trained on "
            f"{experiment.pairs}; write it again"
        )
    return store


def _check_amounts(experiment, train, val):
    """Raise InputError for missing subjects."""
    if not train:
        raise InputError(
            f"no training subject: {experiment.name} needs a row of the manifest with the split "
            f"train and with {experiment.examples.reads}"
        )
    if not val:
        raise InputError(
            "snapshots show a validation scan; give a row of the manifest with the split val"
        )
