"""Where things lie, how files are written whole or not at all, and the one error for bad input."""

import functools
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DAY = 86_400  # seconds after which a temporary file that nobody has touched is taken for left behind


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was expected, what was got, what to do."""


class ScanWarning(UserWarning):
    """A result should not be trusted without a look: the message says what was seen in the scan or in the result."""


def first_line(err: Exception) -> str:
    """First line of an exception's message; its class when it has none."""
    return str(err).strip().partition("\n")[0] or type(err).__name__


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry ``name`` of a table; InputError that lists what there is when it has none. ``what`` names the kind."""
    if name not in table:
        raise InputError(f"unknown {what} {name!r}; expected one of {', '.join(table)}")
    return table[name]


def file_name(name: str, where: str) -> str:
    """The name itself, where it can be that of a file within a folder; InputError, which begins with ``where``, otherwise."""
    if name in ("", ".", "..") or any(c in "/\\" or c < " " for c in name) or len(os.fsencode(name)) > 200:
        raise InputError(f"{where}: {name!r} cannot name a file; expected a name without slashes, up to 200 bytes long")
    return name


def apart(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raise InputError for an output that is one of the inputs, whatever links or spelling lead there."""
    sources = [Path(p) for p in inputs if os.path.exists(p)]
    for output in outputs:
        if os.path.exists(output) and any(source.samefile(output) for source in sources):
            raise InputError(f"{output} is an input; inputs and outputs must be different files, choose another place")


def root() -> Path:
    """Folder of the checkout, or the working directory when srlib is installed outside one."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def data_dir() -> Path:
    """Folder of made or fetched volumes: ``SRLIB_DATA``, else ``data/`` in the checkout."""
    return Path(os.environ.get("SRLIB_DATA") or root() / "data").resolve()


def published_file(name: str) -> Path | None:
    """A file that the original authors published, in ``published/`` of the data folder or of ``shared/`` beside the checkout.

    None when it is not at hand.
    """
    places = (data_dir() / "published" / name, root().parent / "shared" / "published" / name)
    return next((path for path in places if path.is_file()), None)


def shipped_file(name: str) -> Path | None:
    """Weights that come with the package, by their name; None where there are none of it."""
    file = Path(__file__).parent / "shipped" / f"{name}.safetensors"
    return file if file.is_file() else None


def results_root() -> Path:
    """Folder of all results: ``SRLIB_RESULTS``, else ``results/`` in the checkout."""
    return Path(os.environ.get("SRLIB_RESULTS") or root() / "results").resolve()


def results_dir(profile: str, cohort: str | Path = "csv/example.csv") -> Path:
    """Folder of one profile's results; cohorts other than the built-in one get a folder of their own."""
    stem = Path(cohort).stem
    return results_root() / (profile if stem == "example" else f"{profile}_{stem}")


def make_dir(path: Path) -> Path:
    """Create a folder that must be writable; InputError names it when it is not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as err:
        raise InputError(
            f"cannot write to {path}: {err.strerror}; choose another folder or change its permissions"
        ) from err
    return path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on failure.

    The suffixes are kept, since writers choose the format by them. No two writers share a temporary path, so the last
    one to end wins. Raises InputError, naming ``path``, for what the system refuses: no folder, no right, no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{_machine()}{secrets.token_hex(4)}.{_tail(path.name)}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as err:
        missing = isinstance(err, FileNotFoundError) and not path.parent.is_dir()
        reason = (
            f"the folder {path.parent} does not exist; create it first"
            if missing
            else f"{err.strerror or err}; choose another place"
        )
        raise InputError(f"cannot write {path}: {reason}") from err
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Eight letters for where a process number names one process: a container on a machine since it started.

    Empty where the system does not say that.
    """
    try:
        boot, numbers = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
        return hashlib.sha256(f"{os.uname().nodename} {boot} {numbers}".encode()).hexdigest()[:8]
    except OSError:
        return ""


def _tail(name: str) -> str:
    """The end of a file's name that leaves room for a prefix within 255 bytes."""
    return os.fsencode(name)[-200:].decode("utf-8", "ignore")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that writers of files of these names left in a folder when they were killed.

    A process of this machine is asked whether it lives; one of another machine counts as ended when it has not touched
    its file for a day.
    """
    tails = set(map(_tail, names))
    for path in folder.glob(".*-*.*"):
        left = re.fullmatch(r"\.(\d{1,9})-(\w+)\.(.+)", path.name)
        if left and left[3] in tails:
            with suppress(OSError):
                if _ended(int(left[1]), left[2]) or time.time() - path.stat().st_mtime > DAY:
                    path.unlink()


def _ended(process: int, token: str) -> bool:
    if not _machine() or not token.startswith(_machine()):
        return False
    try:
        os.kill(process, 0)
        return not Path(f"/proc/{process}/cmdline").read_bytes()  # a zombie
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_hash() -> str:
    """Hash of the package's own source, by which stale results are told from fresh ones."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
