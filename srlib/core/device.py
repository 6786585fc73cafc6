"""Choose device and precision, and how the CPU's memory allocator keeps freed memory."""

import ctypes
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from srlib.core.paths import InputError, cache_dir, choose, explained, make_dir, write_file

FASTER = 1.3  # by which bfloat16 must be, or float32 is taken


def choose_device(name: str = "auto") -> torch.device:
    """The device ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises InputError when it cannot be used.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    with explained(f"device {name!r}", "cannot be used", "try --device cpu"):
        torch.empty(1, device=name)
    return torch.device(name)


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):  # only Linux has this file
        if found := re.search(
            r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text("utf-8"), re.M
        ):
            return found[1].strip()
    return platform.processor() or platform.machine()


def choose_precision(name: str, device: torch.device) -> str:
    """``32`` or ``bf16``; ``auto`` is bf16 where a convolution really is FASTER in it.

    That is measured once per machine and kept in its ``cache_dir``. InputError for another name.
    """
    choose(("auto", "32", "bf16"), name, "precision")
    if name != "auto":
        return name
    return "bf16" if device.type != "mps" and _bf16_gain(device) >= FASTER else "32"


def _bf16_gain(device):
    """How many times faster a convolution is in bfloat16 than in float32, the best of some."""
    kept = cache_dir() / f"bf16-{platform.node()}-{device.type}-torch-{torch.__version__}"
    with suppress(OSError, ValueError):
        return float(kept.read_text("utf-8"))
    layer = torch.nn.Conv3d(32, 32, 3).to(device, memory_format=torch.channels_last_3d)
    maps = torch.ones(1, 32, 40, 40, 40, device=device).to(memory_format=torch.channels_last_3d)
    best = {"32": float("inf"), "bf16": float("inf")}
    for precision in [*best] * 10:
        began = time.perf_counter()
        with torch.inference_mode(), autocast(device, precision):
            layer(maps)[0, 0, 0, 0, 0].item()  # waits for a GPU
        best[precision] = min(best[precision], time.perf_counter() - began)
        if 4 * best["32"] < best["bf16"] < float("inf"):  # emulated, and seconds a time
            break
    gain = best["32"] / best["bf16"]
    with suppress(InputError):
        write_file(make_dir(kept.parent) / kept.name, f"{gain:.2f}")
    return gain


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute in a precision, ``32`` or ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def evaluating(*networks: object) -> Iterator[None]:
    """Networks in evaluation mode, without gradients; afterwards each part is as it was."""
    known = [network for network in networks if isinstance(network, torch.nn.Module)]
    modes = {part: part.training for network in known for part in network.modules()}
    try:
        with torch.no_grad():
            for network in known:
                network.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def fabric_devices(device: torch.device, processes: int) -> int | list[int]:
    """The ``devices`` of Lightning Fabric: the index of one GPU, or the number of processes.

    Raises InputError when there are fewer devices than processes.
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
    """The memory format in which the convolutions of a network are fastest: channels last."""
    flat = max(p.dim() for p in network.parameters()) < 5
    return torch.channels_last if flat else torch.channels_last_3d


def return_freed_memory() -> None:
    """Make glibc return the large blocks that tensors free, so that a memory budget holds.

    By default glibc keeps blocks of up to 32 MB once one of that size was freed, by whichever
    import. Without glibc nothing changes.
    """
    _large_blocks(1 << 20)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this block glibc keeps the large blocks that tensors free for later tensors.

    Feature maps are allocated and freed at every layer, and page faults were half of a training
    step's time on a CPU. The heap fragments, though, so whole-scan inference, which has a memory
    budget, must not run inside. Without glibc nothing changes.
    """
    _large_blocks(1 << 30)
    try:
        yield
    finally:
        return_freed_memory()


def _large_blocks(size):
    """Set the size in bytes from which glibc returns freed blocks and the heap's free end."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(parameter, size)
        libc.malloc_trim(0)
