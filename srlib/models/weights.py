"""Read and write state dicts as safetensors, with metadata."""

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from srlib.core.paths import InputError, StrPath, atomic, explained, first_line


def save_weights(
    state: Mapping[str, torch.Tensor], path: StrPath, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a state dict as safetensors; the same input gives the same bytes.

    Its tensors may lie on any device and share memory, which each then takes for itself. Raises
    InputError as ``atomic``.
    """
    state = {
        name: part.cpu().clone(memory_format=torch.contiguous_format)
        for name, part in state.items()
    }
    # in one entry, since the library writes several in random order
    content = save(state, metadata={"srlib": json.dumps(metadata or {}, sort_keys=True)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: StrPath) -> dict[str, torch.Tensor]:
    """The state dict of a safetensors file; InputError when it is not one."""
    with explained(path, "not a readable safetensors file"):
        return load_file(path)


def start_from(network: torch.nn.Module, state: dict[str, torch.Tensor], error: str) -> None:
    """Load weights into a network; missing output channels of its layer ``last`` become zero.

    A ``last`` of more outputs, a segmenter's, is left out: the network keeps its own. Raises
    InputError, which begins with ``error``, when they do not fit.
    """
    state, own = dict(state), network.state_dict()
    for entry in {"last.weight", "last.bias"} & state.keys() & own.keys():
        part = state[entry]
        missing = len(own[entry]) - len(part)
        if missing < 0:
            state[entry] = own[entry]
        else:
            state[entry] = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
    try:
        network.load_state_dict(state)
    except RuntimeError as err:
        raise InputError(f"{error} ({first_line(err)})") from err


def read_metadata(path: StrPath) -> dict[str, object]:
    """The metadata that ``save_weights`` wrote; empty for another program's file.

    Raises InputError when the file is not safetensors.
    """
    with explained(path, "not a readable safetensors file"), safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get("srlib", "{}")))


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
