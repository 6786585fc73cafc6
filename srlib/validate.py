"""What training looks at beside its loss: fixed patches of the validation scans."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from srlib.data import Subject, make_pair, network_input
from srlib.dataset import PairDataset
from srlib.experiments import Experiment
from srlib.patches import PatchLocation, extract
from srlib.paths import InputError, make_dir
from srlib.volume import Volume, crop_or_pad, save


def _fullest(subject: Subject, experiment: Experiment, count: int) -> tuple[PairDataset, list[PatchLocation]]:
    """A scan's patches with the most foreground, under the experiment's own task."""
    dataset = PairDataset([subject], dataclasses.replace(experiment, stride=None, samples=None))
    hr = dataset[0][1]
    share = {p: np.mean(hr[p.scaled(dataset.factor).slices] > 0.05) for p in dataset.grid(0)}
    return dataset, sorted(share, key=lambda p: -share[p])[:count]


def validation(
    subjects: Sequence[Subject], experiment: Experiment
) -> Callable[[Mapping[str, torch.nn.Module], torch.device], dict[str, float]]:
    """A function that measures networks on fixed patches of the subjects (nan when there are none).

    ``val_psnr`` in dB (data range 1 in the network's units) and, with a critic, ``val_gap``: its mean score of real
    minus generated patches.
    """
    pairs = []
    for subject in subjects[:2]:
        dataset, places = _fullest(subject, experiment, 4)
        pairs += [[torch.from_numpy(side)[None] for side in dataset.read(0, p)] for p in places]

    @torch.no_grad()
    def check(networks: Mapping[str, torch.nn.Module], device: torch.device) -> dict[str, float]:
        psnr, gap = [], []
        generator, critic = networks["generator"].eval(), networks.get("critic")
        for lr, hr in ((a.to(device), b.to(device)) for a, b in pairs):
            sr = generator(lr)
            psnr.append(float(-10 * torch.log10(functional.mse_loss(sr, hr))))
            gap += [float(critic(hr) - critic(sr))] if critic else []
        row = {"val_psnr": psnr, "val_gap": gap} if critic else {"val_psnr": psnr}
        return {name: float(np.mean(values)) if values else math.nan for name, values in row.items()}

    return check


Show = Callable[[Mapping[str, float], torch.nn.Module], None]  # of a row of history.csv and the generator


def board_writer(subjects: Sequence[Subject], experiment: Experiment, folder: Path) -> Show:
    """A function that logs to TensorBoard: a row's values, and the middle slice of the first scan's fullest patch.

    Input, output and truth as images, in the network's units. Raises InputError when tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise InputError("tensorboard is not installed; pip install tensorboard, or leave its option out") from err
    board, pair = SummaryWriter(str(make_dir(folder))), None
    if subjects:
        dataset, (place,) = _fullest(subjects[0], experiment, 1)
        pair = dataset.read(0, place)

    @torch.no_grad()
    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, row["step"])
        if pair:
            sr = network.eval()(torch.from_numpy(pair[0][None]).to(next(network.parameters()).device))[0].cpu().numpy()
            for name, side in (("input", pair[0]), ("output", sr), ("truth", pair[1])):
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

    @torch.no_grad()
    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        sr = network.eval()(given.to(next(network.parameters()).device))[0, 0]
        save(Volume(pair.scaling.invert(sr.cpu().numpy()), affine), folder / f"{row['step']:06d}_sr.nii.gz")

    return write
