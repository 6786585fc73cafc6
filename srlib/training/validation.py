"""What training looks at beside its loss: fixed patches of the validation scans, or examples of their label maps."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from srlib.core.paths import InputError, make_dir
from srlib.data.manifest import Subject
from srlib.data.pairs import ObservationModel
from srlib.scans.patches import extract
from srlib.scans.volume import Volume, crop_or_pad, save
from srlib.training.examples import Example, ScanPatches, fullest


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


def validation(
    pairs: Sequence[Example], loss: str
) -> Callable[[Mapping[str, torch.nn.Module], torch.device], dict[str, float]]:
    """A function that measures networks on fixed (input, truth) pairs (nan when there are none).

    ``val_psnr`` of the image in dB (data range 1 in the network's units) or, where classes are what it learns,
    ``val_dice``: the mean Dice of the most likely classes, over those but 0 that an example holds. With a critic,
    ``val_gap``: its mean score of real minus generated patches.
    """
    measure, name = (_dice, "val_dice") if loss == "dice" else (_psnr, "val_psnr")

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
        return {
            name: float(np.mean(values)) if values else math.nan for name, values in row.items()
        }

    return check


def _psnr(sr: torch.Tensor, hr: torch.Tensor) -> float:
    return float(-10 * torch.log10(functional.mse_loss(sr[:, :1], hr)))


def _dice(logits: torch.Tensor, classes: torch.Tensor) -> float:
    found = logits.argmax(1, keepdim=True)
    both = [(found == k, classes == k) for k in range(1, logits.shape[1])]
    return float(
        np.mean(
            [float(2 * (p & g).sum() / (p.sum() + g.sum())) for p, g in both if g.any()]
            or [math.nan]
        )
    )


Show = Callable[
    [Mapping[str, float], torch.nn.Module], None
]  # of a row of history.csv and the generator


def board_writer(pairs: Sequence[Example], loss: str, folder: Path) -> Show:
    """A function that logs to TensorBoard: a row's values, and the middle slice of the first of the validation's pairs.

    Input, output and truth as images, in the network's units; classes as greys. Raises InputError when tensorboard is
    not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise InputError(
            "tensorboard is not installed; pip install tensorboard, or leave its option out"
        ) from err
    board = SummaryWriter(str(make_dir(folder)))

    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, row["step"])
        for given, truth in pairs[:1]:
            with _looked_at(network):
                sr = (
                    network(torch.from_numpy(given[None]).to(next(network.parameters()).device))[0]
                    .cpu()
                    .numpy()
                )
            if loss == "dice":
                sr, truth = sr.argmax(0)[None] / (len(sr) - 1), truth / (len(sr) - 1)
            for name, side in (("input", given), ("output", sr), ("truth", truth)):
                middle = side[0, :, :, side.shape[3] // 2].T.clip(0, 1)
                board.add_image(name, middle, row["step"], dataformats="HW")
        board.flush()

    return write


def snapshot_writer(
    subject: Subject, part: ScanPatches, pairs: ObservationModel, folder: Path
) -> Show:
    """A function that writes what a network makes of a scan's fullest patch: ``STEP_sr.nii.gz``, in scan units.

    The truth and the network's input stand beside it as ``hr.nii.gz`` and ``input.nii.gz``; each lies where it lay.
    """
    make_dir(folder)
    dataset, (place,) = fullest(subject, part, pairs, 1)
    pair, target = pairs.make(subject), place.scaled(dataset.factor)
    for name, volume, at in (("input", pair.seen, place), ("hr", pair.hr, target)):
        save(crop_or_pad(volume, at.start, at.size), folder / f"{name}.nii.gz")
    affine = crop_or_pad(pair.hr, target.start, (1, 1, 1)).affine
    given = torch.from_numpy(extract(pair.network_input, place)[None])

    def write(row: Mapping[str, float], network: torch.nn.Module) -> None:
        with _looked_at(network):
            sr = network(given.to(next(network.parameters()).device))[0, 0]
        save(
            Volume(pair.scaling.invert(sr.cpu().numpy()), affine),
            folder / f"{row['step']:06d}_sr.nii.gz",
        )

    return write
