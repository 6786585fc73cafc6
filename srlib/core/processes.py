"""Count the cores for worker processes, and end them with their parent."""

import multiprocessing
import os
import threading


def cores() -> int:
    """Cores that this process may use."""
    bound = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1


def end_with_parent(*_: object) -> None:
    """Make this process end at once when its parent was killed; it might wait for it for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()
