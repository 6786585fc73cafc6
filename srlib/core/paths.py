"""Where things lie, how files are written whole or not at all, and the one error for bad input."""

import functools
import hashlib
import os
import re
import secrets
import subprocess
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
RESULTS_VERSION = 1  # raise it when the same inputs give other results
BUILT_IN = (
    "example.csv",
    "example_us.csv",
    "example_ct.csv",
)  # manifests in the checkout's csv/ that the project makes
DAY = (
    86_400  # seconds after which a temporary file that nobody has touched is taken for left behind
)


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


def checkout() -> Path | None:
    """Folder of the checkout that this package lies in; None when it is installed without one."""
    folder = Path(__file__).resolve().parents[2]
    return (
        folder
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file()
        else None
    )


def file_name(name: str, where: str) -> str:
    """The name itself, where it can be that of a file within a folder; InputError, which begins with ``where``, otherwise."""
    if (
        name in ("", ".", "..")
        or any(c in "/\\" or c < " " for c in name)
        or len(os.fsencode(name)) > 200
    ):
        raise InputError(
            f"{where}: {name!r} cannot name a file; expected a name without slashes, up to 200 bytes long"
        )
    return name


def apart(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raise InputError for an output that is one of the inputs, whatever links or spelling lead there."""
    there = [Path(p) for p in inputs if os.path.exists(p)]
    for output in filter(os.path.exists, outputs):
        if any(source.samefile(output) for source in there):
            raise InputError(
                f"{output} is an input; inputs and outputs must be different files, choose another place"
            )


def root() -> Path:
    """Folder of the checkout, or the working directory when srlib is installed outside one."""
    return checkout() or Path.cwd()


def locate(path: str | Path) -> Path:
    """A file as named; a relative one that is not in the working directory is looked for in the checkout."""
    path, beside = Path(path), root() / path
    return beside if beside.exists() and not path.exists() else path


def _place(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).resolve()


def data_dir() -> Path:
    """Folder of made or fetched volumes: ``SRLIB_DATA``, else ``data/`` in the checkout."""
    return _place("SRLIB_DATA", root() / "data")


def published_dir() -> Path:
    """Folder of original authors' files: ``SRLIB_PUBLISHED``, else ``published/`` of the data folder."""
    return _place("SRLIB_PUBLISHED", data_dir() / "published")


def published_file(name: str) -> Path | None:
    """A file that the original authors published, by its name; None when it is not at hand."""
    file = published_dir() / Path(name).name
    return file if file.is_file() else None


def shipped_file(name: str) -> Path | None:
    """Weights that come with the package, by their name; None where there are none of it."""
    file = Path(__file__).parents[1] / "shipped" / f"{name}.safetensors"
    return file if file.is_file() else None


def results_root() -> Path:
    """Folder of all results: ``SRLIB_RESULTS``, else ``results/`` in the checkout."""
    return _place("SRLIB_RESULTS", root() / "results")


def results_dir(profile: str, cohort: str | Path = "csv/example.csv") -> Path:
    """Folder of one profile's results; cohorts other than the built-in one get a folder of their own."""
    with suppress(OSError):  # what is to be written there says why it cannot be
        results_root().mkdir(parents=True, exist_ok=True)
    label = cohort_label(cohort)
    return results_root() / (profile if label == "example" else f"{profile}_{label}")


def built_in(manifest: str | Path) -> str:
    """Name of the manifest in the checkout's ``csv/`` that the project makes itself, however it is spelled; or ""."""
    path, folder = locate(manifest).resolve(), checkout()
    return path.stem if folder and path.parent == folder / "csv" and path.name in BUILT_IN else ""


def cohort_label(cohort: str | Path) -> str:
    """What folders, run_ids and tables call a manifest: its name, of which no second one in the results has the like.

    The first manifest of a name keeps it: the link ``cohorts/NAME`` in the folder of all results leads to it, and is
    made here, where that folder is there. Others get a part of their path's hash, as does a manifest that is not there.
    Delete the link to set a name free.
    """
    path = locate(cohort)
    if name := built_in(path):
        return name
    path = path.parent.resolve() / path.name
    link = results_root() / "cohorts" / path.stem
    target = os.path.relpath(path, link.parent)  # so that a project can move as a whole
    if path.is_file() and f"{path.stem}.csv" not in BUILT_IN:
        with suppress(OSError):  # it is taken, or nothing can be written there
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target)
        if not os.path.lexists(link) or (link.is_symlink() and os.readlink(link) == target):
            return path.stem
    return f"{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


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
    temporary = path.with_name(
        f".{os.getpid()}-{_machine()}{secrets.token_hex(4)}.{_tail(path.name)}"
    )
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as err:
        reason = f"{err.strerror or err}; choose another place"
        if not path.parent.is_dir():
            reason = f"the folder {path.parent} does not exist; create it first"
        raise InputError(f"cannot write {path}: {reason}") from err
    except UnicodeEncodeError as err:
        name = ascii(err.object[max(err.start - 20, 0) : err.end + 20])
        raise InputError(
            f"cannot write {path}: {name} is not UTF-8; rename what is called so"
        ) from err
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unspoilt(path: str | Path) -> str | Path:
    """The path itself; OSError where it is a ZIP archive, as PyTorch writes, with a part that is not as its checksum."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as parts:
                damaged = parts.testzip()
        except (zipfile.BadZipFile, NotImplementedError, zlib.error) as err:
            raise OSError(first_line(err)) from err
        if damaged:
            raise OSError(f"{damaged} is not what its checksum says")
    return path


@functools.cache
def _machine() -> str:
    """Eight letters for where a process number names one process: a container on a Linux machine since it started.

    Empty where the system does not say that.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        numbers = os.readlink("/proc/self/ns/pid")
        return hashlib.sha256(f"{os.uname().nodename} {boot} {numbers}".encode()).hexdigest()[:8]
    return ""


def _tail(name: str) -> str:
    """The end of a file's name that leaves room for a prefix within 255 bytes."""
    return os.fsencode(name)[-200:].decode("utf-8", "ignore")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that writers of files of these names left in a folder when they were killed.

    A process of this machine is asked whether it lives; one of another machine counts as ended when
    it has not touched its file for a day.
    """
    tails = set(map(_tail, names))
    for path in folder.glob(".*-*.*"):
        left = re.fullmatch(r"\.(\d{1,9})-(\w+)\.(.+)", path.name)
        if left and left[3] in tails:
            here = _machine() and left[2].startswith(_machine())
            with suppress(OSError):
                if (here and _ended(int(left[1]))) or time.time() - path.stat().st_mtime > DAY:
                    path.unlink()


def _ended(process: int) -> bool:
    """Whether no process of this number lives on this Linux machine; a zombie's command is empty."""
    try:
        os.kill(process, 0)
        return not Path(f"/proc/{process}/cmdline").read_bytes()
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
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def source_commit() -> dict[str, str]:
    """Commit of the checkout that this package lies in, and whether what computes results differs from it."""
    own = checkout()
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("GIT_")
    }  # a hook's name another repository

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=own,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return done.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        if own and Path(git("rev-parse", "--show-toplevel")).samefile(own):
            changed = git(
                "status", "--porcelain", "--", "srlib", "notebooks", "csv", "pyproject.toml"
            )
            return {
                "commit": git("rev-parse", "--short=12", "HEAD"),
                "dirty": "yes" if changed else "no",
            }
    return {"commit": "unknown", "dirty": "unknown"}
