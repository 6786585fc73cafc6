"""Read files of other programs in a child process, with limits on time and memory."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from srlib.core.paths import StrPath, first_line

SECONDS, GIB = 60, 2  # limits of time and memory for a file


def isolated(module: str, path: StrPath, *words: str) -> bytes:
    """What a ``module`` that calls ``answer`` reads in a file.

    Raises ValueError with the reason when it cannot, crashes, or takes more than a minute or 2 GiB.
    """
    command = [sys.executable, "-m", module, Path(path).resolve(), *words]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, timeout=SECONDS, check=True
        ).stdout
    except subprocess.TimeoutExpired as err:
        raise ValueError(f"not read within {SECONDS} s") from err
    except subprocess.CalledProcessError as err:
        said = err.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(said[:200] or "its reader crashed") from err


def answer(read: Callable[..., bytes]) -> None:
    """In that process: write what ``read`` makes of the path and words of the command line.

    End with one line on an error.
    """
    path, *words = sys.argv[1:]
    with suppress(ImportError, OSError, ValueError):  # the system has no such limit
        import resource

        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        limit = pages * resource.getpagesize() + GIB * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        sys.stdout.buffer.write(read(Path(path), *words))
    except Exception as err:
        sys.exit(first_line(err))
