"""Trained weights as safetensors files, with the experiment that they belong to."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from srlib.experiments import Experiment, from_json
from srlib.models import MODELS
from srlib.paths import InputError, atomic, first_line


def save_weights(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors; equal weights and metadata give equal bytes."""
    # in one entry, since the library writes several in random order
    save_file(state, path, metadata={"srlib": json.dumps(metadata, sort_keys=True)})


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a safetensors file; InputError when it is not one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({first_line(err)})") from err


def save_mean(first: str | Path, second: str | Path, path: str | Path, share: float = 0.5) -> None:
    """Write the mean of two trainings of one network, of which the second, with its ``share``, went on from the first.

    The metadata are those of the second. Wortsman et al., CVPR 2022: it keeps what the first learned and most of what
    the second added. Raises InputError as ``load_weights``, and when their tensors differ in name or shape.
    """
    one, other = load_weights(first), load_weights(second)
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in other.items()}:
        raise InputError(f"{first} and {second} hold weights of two different networks; give two stages of one")
    with atomic(path) as temporary:
        save_weights({k: v.lerp(other[k], share) for k, v in one.items()}, temporary, read_metadata(Path(second)))


def start_from(network: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load weights into a network; output channels of its layer ``last`` that they lack begin at zero.

    Raises InputError, with the network's ``name``, when they do not fit.
    """
    state, own = load_weights(path), network.state_dict()
    for part in {"last.weight", "last.bias"} & state.keys() & own.keys():
        missing = len(own[part]) - len(state[part])
        if missing > 0:
            state[part] = torch.cat([state[part], state[part].new_zeros(missing, *state[part].shape[1:])])
    try:
        network.load_state_dict(state)
    except RuntimeError as err:
        raise InputError(f"{path}: does not fit {name} ({first_line(err)})") from err


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that ``save_weights`` wrote, empty for a foreign file; InputError when it is not safetensors."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("srlib", "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({err})") from err


def load_network(path: str | Path) -> tuple[torch.nn.Module, Experiment]:
    """The trained network of a file that training wrote, and its experiment.

    Raises InputError when the file is missing, damaged or of another kind.
    """
    metadata = read_metadata(path)
    if "experiment" not in metadata:
        raise InputError(f"{path}: no experiment is written in it; expected weights made by 'srlib train'")
    experiment = from_json(metadata["experiment"])
    network = MODELS[experiment.model](width=experiment.width, **experiment.model_args)
    try:
        network.load_state_dict(load_weights(path))
    except RuntimeError as err:
        raise InputError(f"{path}: its weights do not fit {experiment.model} ({first_line(err)})") from err
    return network, experiment
