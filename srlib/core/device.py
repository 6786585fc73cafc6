"""The one place where a device is chosen and the CPU's memory allocator is told how to behave."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from srlib.core.paths import InputError


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``; InputError when
    it is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as err:
        raise InputError(
            f"device {name!r} cannot be used ({str(err).splitlines()[0]}); try --device cpu"
        ) from err
    return torch.device(name)


def fabric_devices(device: torch.device, processes: int = 1) -> int | list[int]:
    """What Lightning Fabric must be told: that very GPU, or how many processes; InputError when it
    cannot be done.
    """
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, processes)
    if not isinstance(processes, int) or not 1 <= processes <= max(most, 1):
        raise InputError(
            f"processes: expected a whole number from 1 on, a GPU for each, got {processes!r}"
        )
    if device.type != "cuda" or device.index is None:
        return processes
    if processes > 1:
        raise InputError(
            f"{processes} processes take the first GPUs; give the device as cuda, not {device}"
        )
    return [device.index]


def layout(network: torch.nn.Module) -> torch.memory_format:
    """The memory format in which a network's convolutions are fastest: channels last, in their
    rank.
    """
    flat = max(p.dim() for p in network.parameters()) < 5
    return torch.channels_last if flat else torch.channels_last_3d


def return_freed_memory() -> None:
    """From here on glibc gives the large blocks that tensors free back at once, so that a memory
    budget holds.

    By itself it keeps blocks of up to 32 MB once one of that size was freed, by whichever import.
    Does nothing elsewhere than on glibc.
    """
    _large_blocks(1 << 20)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this block glibc keeps the large blocks that tensors free, instead of asking for
    zeroed pages anew.

    Feature maps are allocated and freed at every layer, and page faults were half of a training
    step's time on a CPU. The heap fragments, though, so whole-scan inference, which has a memory
    budget, must not run inside. Does nothing elsewhere than on glibc.
    """
    _large_blocks(1 << 30)
    try:
        yield
    finally:
        _large_blocks(1 << 20)


def _large_blocks(size: int) -> None:
    """From which size on, in bytes, glibc maps blocks of their own, and gives the heap's free end
    back.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(parameter, size)
        libc.malloc_trim(0)
