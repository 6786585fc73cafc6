"""Measure and show networks on fixed validation patches during training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from srlib.core.device import evaluating
from srlib.core.paths import explained, make_dir
from srlib.data.manifest import Subject
from srlib.data.pairs import ObservationModel
from srlib.models.weights import save_weights
from srlib.scans.patches import PatchLocation, extract
from srlib.scans.volume import Volume, crop_or_pad, save_scan
from srlib.training.examples import ScanPatches, fullest
from srlib.training.streams import Check, Patch, Show


def validation(pairs: Sequence[Patch], loss: str) -> Check:
    """A function that measures networks on fixed (input, truth) pairs; nan when there are none.

    ``val_psnr``: PSNR of the image in dB (data range 1 in the network's units). For the loss
    ``dice`` it is ``val_dice``: the mean Dice of the most likely classes, over the classes but 0
    that an example holds. With a critic, ``val_gap``: its mean score of real minus generated
    patches, and ``val_auc``: the area under its ROC curve.
    """
    measure, name = (_dice, "val_dice") if loss == "dice" else (_psnr, "val_psnr")

    def check(networks, device):
        generator, critic = networks["generator"], networks.get("critic")
        found, scores = [], []  # scores of real and generated patches
        with evaluating(*networks.values()):
            for pair in pairs:
                lr, hr = (torch.from_numpy(side)[None].to(device) for side in pair)
                sr, hr = generator(lr), hr[:, :1]  # classes may follow the image
                found.append(measure(sr, hr))
                if critic:
                    scores.append((float(critic(hr)), float(critic(sr[:, :1]))))
        row = {name: float(np.mean(found or math.nan))}
        if not critic:
            return row
        real, fake = np.transpose(scores or [(math.nan, math.nan)])
        above = np.sign(np.subtract.outer(real, fake))
        return row | {
            "val_gap": float(np.mean(real - fake)),
            "val_auc": float((1 + above).mean() / 2),
        }

    return check


def _psnr(sr, hr):
    """PSNR in dB of the image, data range 1."""
    return float(-10 * torch.log10(functional.mse_loss(sr[:, :1], hr)))


def _dice(logits, classes):
    """Mean Dice of the most likely classes, over the classes but 0 that are there."""
    found, scores = logits.argmax(1, keepdim=True), []
    for k in range(1, logits.shape[1]):
        p, g = found == k, classes == k
        if g.any():
            scores.append(float(2 * (p & g).sum() / (p.sum() + g.sum())))
    return float(np.mean(scores or math.nan))


def _run(network, given):
    """The output (C, X, Y, Z) for one input, in evaluation mode."""
    with evaluating(network):
        device = next(network.parameters()).device
        return network(torch.from_numpy(given[None]).to(device))[0].cpu().numpy()


def board_writer(pairs: Sequence[Patch], loss: str, folder: Path) -> Show:
    """A function that logs rows of values and images to TensorBoard.

    The images are the middle slices of the first pair's input, output and truth, in the network's
    units; classes are greys. Raises InputError when tensorboard is not installed.
    """
    advice = "pip install tensorboard, or leave its option out"
    with explained("--tensorboard", "tensorboard is not installed", advice):
        from torch.utils.tensorboard import SummaryWriter
    board = SummaryWriter(make_dir(folder))

    def write(row, network):
        for name, value in row.items():
            board.add_scalar(name, value, row["step"])
        for given, truth in pairs[:1]:
            sr = _run(network, given)
            if loss == "dice":
                sr, truth = sr.argmax(0)[None] / (len(sr) - 1), truth / (len(sr) - 1)
            for name, side in (("input", given), ("output", sr), ("truth", truth)):
                middle = side[0, :, :, side.shape[3] // 2].T.clip(0, 1)
                board.add_image(name, middle, row["step"], dataformats="HW")
        board.flush()

    return write


def snapshot_writer(
    subject: Subject,
    part: ScanPatches,
    pairs: ObservationModel,
    folder: Path,
    facts: Mapping[str, object],
) -> Show:
    """A function that writes ``STEP.safetensors``, the network's weights with the run's ``facts``,
    and ``STEP_sr.nii.gz``, the output for a scan's fullest patch.

    ``hr.nii.gz`` and ``input.nii.gz`` beside it are the truth and the input. Affines keep each file
    in its place in the world.
    """
    make_dir(folder)
    dataset, (place,) = fullest(subject, part, pairs, 1)
    pair, target = pairs.make(subject), place.scaled(dataset.factor)
    if part.per_patch:  # the patch by itself, as in training
        pair = pairs.degrade(crop_or_pad(pair.hr, target.start, target.size))
        place, target = (PatchLocation((0, 0, 0), box.size) for box in (place, target))
    for name, volume, at in (("input", pair.seen, place), ("hr", pair.hr, target)):
        save_scan(crop_or_pad(volume, at.start, at.size), folder / f"{name}.nii.gz")
    affine = crop_or_pad(pair.hr, target.start, (1, 1, 1)).affine
    given = extract(pair.network_input, place)

    def write(row, network):
        step, sr = f"{row['step']:06d}", pair.scaling.invert(_run(network, given)[0])
        save_scan(Volume(sr, affine), folder / f"{step}_sr.nii.gz")
        save_weights(network.state_dict(), folder / f"{step}.safetensors", facts)

    return write
