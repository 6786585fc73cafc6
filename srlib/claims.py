"""One process at a time writes a file, and what killed ones left is swept away."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from srlib.paths import InputError


@contextmanager
def claimed(path: str | Path) -> Iterator[None]:
    """Keep other processes from writing a file until this block, or the process, ends.

    By a lock on a file beside it, ``.NAME.lock``, which the system drops when a process dies. Raises InputError when
    another process holds it, and where nothing can be written.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    busy = InputError(f"{path}: another process is writing it; wait for it, or choose another place")
    try:
        held = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as err:
        missing = not path.parent.is_dir()
        reason = f"the folder {path.parent} does not exist; create it first" if missing else err.strerror
        raise InputError(f"cannot write {path}: {reason}") from err
    try:
        with suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(held).st_ino != os.stat(lock).st_ino:
                    raise busy  # its holder has just ended and taken it away
            except (BlockingIOError, FileNotFoundError) as err:
                raise busy from err
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(held)


def sweep(folder: Path, names: set[str]) -> None:
    """Delete what killed processes left of the files of these names: temporary files and locks."""
    for path in folder.iterdir():
        left = re.fullmatch(r"\.\d+-\w+\.(.+)|\.(.+)\.lock", path.name)
        if left and (name := left[1] or left[2]) in names:
            with suppress(InputError), claimed(folder / name):
                path.unlink(missing_ok=True)
