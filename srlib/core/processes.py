"""End worker processes with their parent."""

import multiprocessing
import os
import threading


def end_with_parent(*_: object) -> None:
    """Make this process end at once when its parent was killed; it might wait for it for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()
