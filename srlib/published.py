"""Readers of the weights that the original authors published, into our networks."""

import pickle
from pathlib import Path

import torch

from srlib.experiments import MDCSRN, Experiment
from srlib.models import MODELS
from srlib.paths import InputError, first_line


def _mdcsrn(path: Path) -> tuple[torch.nn.Module, Experiment]:
    """hz2538/E6040-super-resolution-project: a PyTorch state dict of 85 tensors."""
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as err:
        raise InputError(f"{path}: not a PyTorch state dict, or damaged ({first_line(err)})") from err
    network = MODELS["mdcsrn"](width=MDCSRN.width, **MDCSRN.model_args)
    ours = {}
    for name, value in theirs.items():
        for old, new in (("conv0.", "first."), ("recon.", "last."), ("comp", "compress."), ("block", "blocks.")):
            name = name.replace(old, new, 1) if name.startswith(old) else name
        head, _, tail = name.partition(".denselayer")  # units are counted from 1 there
        ours[f"{head}.{int(tail[0]) - 1}{tail[1:]}" if tail else name] = value
    network.load_state_dict(ours, strict=True)
    return network, MDCSRN


PUBLISHED = {"mDCSRN_pretrained_G_step250000.pth": _mdcsrn}


def load_published(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """Network and experiment from a published file, known by its name; InputError when unknown or damaged."""
    path = Path(path)
    if path.name not in PUBLISHED:
        raise InputError(f"{path.name} is not a published file known here; expected one of {', '.join(PUBLISHED)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; get it from its authors (see csv/README.md)")
    try:
        return PUBLISHED[path.name](path)
    except InputError:
        raise
    except (RuntimeError, AttributeError, ValueError) as err:
        raise InputError(f"{path}: its tensors do not fit the published network ({first_line(err)})") from err
