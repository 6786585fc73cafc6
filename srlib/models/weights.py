"""State dicts as safetensors, with metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from srlib.core.paths import InputError, atomic, first_line


def save_weights(
    state: dict[str, torch.Tensor], path: str | Path, metadata: Mapping[str, object]
) -> None:
    """Write a state dict as safetensors; equal weights and metadata give equal bytes. InputError as ``atomic``."""
    # in one entry, since the library writes several in random order
    content = save(state, metadata={"srlib": json.dumps(metadata, sort_keys=True)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


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
        raise InputError(
            f"{first} and {second} hold weights of two different networks; give two stages of one"
        )
    save_weights(
        {k: v.lerp(other[k], share) for k, v in one.items()}, path, read_metadata(Path(second))
    )


def start_from(network: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load weights into a network; output channels of its layer ``last`` that they lack begin at zero.

    Raises InputError, with the network's ``name``, when they do not fit.
    """
    state, own = load_weights(path), network.state_dict()
    for part in {"last.weight", "last.bias"} & state.keys() & own.keys():
        missing = len(own[part]) - len(state[part])
        if missing > 0:
            state[part] = torch.cat(
                [state[part], state[part].new_zeros(missing, *state[part].shape[1:])]
            )
    try:
        network.load_state_dict(state)
    except RuntimeError as err:
        raise InputError(f"{path}: does not fit {name} ({first_line(err)})") from err


def read_metadata(path: str | Path) -> dict[str, object]:
    """The metadata that ``save_weights`` wrote, empty for a foreign file; InputError when it is not safetensors."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("srlib", "{}"))
    except (SafetensorError, OSError, ValueError) as err:
        raise InputError(f"{path}: not a readable safetensors file ({err})") from err


def weights_hash(path: str | Path) -> str:
    """SHA-256 of the tensors of a safetensors file, whatever is written beside them; InputError as ``load_weights``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_weights(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
