"""What training looks at beside its loss: fixed patches of the validation scans, or examples of their label maps."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from srlib.data import Subject, make_pair, network_input
from srlib.dataset import PairDataset, foreground
from srlib.experiments import Experiment
from srlib.patches import PatchLocation, extract
from srlib.paths import InputError, make_dir
from srlib.synthetic import SyntheticDataset
from srlib.volume import Volume, crop_or_pad, save

LOOKED_AT = 2  # scans
VALIDATION_SEED = 2_000_000_011  # its examples are those of no likely seed of a training
Pair = tuple[np.ndarray, np.ndarray]  # input (C, X, Y, Z) and truth (1 or more, X', Y', Z') of a network


@contextmanager
def _looked_at(*networks: torch.nn.Module) -> Iterator[None]:
    """Networks in evaluation mode, without gradients, so that a look changes nothing of them; then as they were."""
    modes = [network.training for network in networks]
    try:
        with torch.no_grad():
            for network in networks:
                network.eval()
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _fullest(subject: Subject, experiment: Experiment, count: int) -> tuple[PairDataset, list[PatchLocation]]:
    """A scan's patches with the most foreground, under the experiment's own task."""
    dataset = PairDataset([subject], dataclasses.replace(experiment, stride=None, samples=None))
    shown = foreground(dataset[0][1])
    share = {p: np.mean(shown[p.scaled(dataset.factor).slices]) for p in dataset.grid(0)}
    return dataset, sorted(share, key=lambda p: -share[p])[:count]


def fixed_patches(subjects: Sequence[Subject], experiment: Experiment) -> list[Pair]:
    """The four patches with the most foreground of each of the first two subjects, as (input, truth)."""
    chosen = (_fullest(subject, experiment, 4) for subject in subjects[:LOOKED_AT])
    return [dataset.read(0, place) for dataset, places in chosen for place in places]


def fixed_examples(subjects: Sequence[Subject], like: SyntheticDataset) -> list[Pair]:
    """Four examples of the subjects' label maps, as ``like`` makes them of its own; none without a label map.

    Where degradations are drawn, the first patch of each of 16 scans.
    """
    dataset = SyntheticDataset(subjects, like.experiment, like.table, like.priors, VALIDATION_SEED)
    count = (16 if like.experiment.mixture else 4) if dataset.subjects else 0
    return [dataset[index * dataset.group] for index in range(count)]


def validation(
    pairs: Sequence[Pair], experiment: Experiment
) -> Callable[[Mapping[str, torch.nn.Module], torch.device], dict[str, float]]:
    """A function that measures networks on fixed (input, truth) pairs (nan when there are none).

    ``val_psnr`` of the image in dB (data range 1 in the network's units) or, where classes are what it learns,
    ``val_dice``: the mean Dice of the most likely classes, over those but 0 that an example holds. With a critic,
    ``val_gap``: its mean score of real minus generated patches.
    """
    measure, name = (_dice, "val_dice") if experiment.loss == "dice" else (_psnr, "val_psnr")

    def check(networks: Mapping[str, torch.nn.Module], device: torch.device) -> dict[str, float]:
        generator, critic = networks["generator"], networks.get("critic")
        row = {name: [], "val_gap": []} if critic else {name: []}
        with _looked_at(*networks.values()):
            for pair in pairs:
                lr, hr = (torch.from_numpy(side)[None].to(device) for side in pair)
                sr, hr = generator(lr), hr[:, :1]  # classes may follow the image
                row[name].append(measure(sr, hr))
                if critic:
                    row["val_gap"].append(float(critic(hr) - critic(sr[:, :1])))
        return {name: float(np.mean(values)) if values else math.nan for name, values in row.items()}

    return check


def _psnr(sr: torch.Tensor, hr: torch.Tensor) -> float:
    return float(-10 * torch.log10(functional.mse_loss(sr[:, :1], hr)))


def _dice(logits: torch.Tensor, classes: torch.Tensor) -> float:
    found = logits.argmax(1, keepdim=True)
    both = [(found == k, classes == k) for k in range(1, logits.shape[1])]
    return float(np.mean([float(2 * (p & g).sum() / (p.sum() + g.sum())) for p, g in both if g.any()] or [math.nan]))


Show = Callable[[Mapping[str, float], torch.nn.Module], None]  # of a row of history.csv and the generator


def board_writer(pairs: Sequence[Pair], experiment: Experiment, folder: Path) -> Show:
    """A function that logs to TensorBoard: a row's values, and the middle slice of the first of the validation's pairs.

    Input, output and truth as images, in the network's units; classes as greys. Raises InputError when tensorboard is
    not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise InputError("tensorboard is not installed; pip install tensorboard, or leave its option out") from err
    board = SummaryWriter(str(make_dir(folder)))

    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, row["step"])
        for given, truth in pairs[:1]:
            with _looked_at(network):
                sr = network(torch.from_numpy(given[None]).to(next(network.parameters()).device))[0].cpu().numpy()
            if experiment.loss == "dice":
                sr, truth = sr.argmax(0)[None] / (len(sr) - 1), truth / (len(sr) - 1)
            for name, side in (("input", given), ("output", sr), ("truth", truth)):
                middle = side[0, :, :, side.shape[3] // 2].T.clip(0, 1)
                board.add_image(name, middle, row["step"], dataformats="HW")
        board.flush()

    return write


def snapshot_writer(subject: Subject, experiment: Experiment, folder: Path) -> Show:
    """A function that writes what a network makes of a scan's fullest patch: ``STEP_sr.nii.gz``, in scan units.

    The truth and the network's input stand beside it as ``hr.nii.gz`` and ``input.nii.gz``; each lies where it lay.
    """
    make_dir(folder)
    dataset, (place,) = _fullest(subject, experiment, 1)
    pair, target = make_pair(subject, experiment), place.scaled(dataset.factor)
    scan = pair.lr if experiment.lr_grid else pair.on_grid
    for name, volume, at in (("input", scan, place), ("hr", pair.hr, target)):
        save(crop_or_pad(volume, at.start, at.size), folder / f"{name}.nii.gz")
    affine = crop_or_pad(pair.hr, target.start, (1, 1, 1)).affine
    given = torch.from_numpy(extract(network_input(scan, pair.reference, experiment.intensity), place)[None])

    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        with _looked_at(network):
            sr = network(given.to(next(network.parameters()).device))[0, 0]
        save(Volume(pair.scaling.invert(sr.cpu().numpy()), affine), folder / f"{row['step']:06d}_sr.nii.gz")

    return write
