"""Count the cores and the memory for worker processes, and end them with their parent."""

import multiprocessing
import os
import threading
from contextlib import suppress
from pathlib import Path

import psutil


def cores() -> int:
    """Cores that this process may use."""
    bound = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1


def free_memory_gb() -> float:
    """Memory in GB that processes may still take, of the machine and of a container's limit."""
    free, group = float(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max", or no such limit
        limit, taken = (int((group / f"memory.{n}").read_text("utf-8")) for n in ("max", "current"))
        free = min(free, limit - taken)
    return free / 1e9


def end_with_parent(*_: object) -> None:
    """Make this process end at once when its parent was killed; it might wait for it for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()
