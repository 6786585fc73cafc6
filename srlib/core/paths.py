"""Find folders and files, write files atomically, and define the one error for bad input."""

import ast
import functools
import hashlib
import os
import re
import secrets
import subprocess
import tempfile
import time
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
StrPath = str | Path
RESULTS_VERSION = 1  # raise it when the same inputs give other results
# code that is part of a training's identity
COMPUTING = (
    "models/*.py", "degradations/*.py", "synthesis/*.py", "training/games.py", "training/losses.py",
)  # fmt: skip
BUILT_IN = (  # made by the project, in csv/
    "example.csv", "example_us.csv", "example_ct.csv",
    "study_mr.csv", "study_moved.csv", "study_us.csv", "study_ct.csv",
)  # fmt: skip
LINE = 1000  # characters of an error, at most
DAY = 86_400  # seconds after which an untouched temporary file counts as left behind


class InputError(ValueError):
    """Unusable user input: the message says what was expected, what was got and what to do.

    As text it is one line, whatever names and cells it quotes; the middle of a long one is left
    out.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        return line if len(line) < LINE else f"{line[: LINE - 200]} ... {line[-150:]}"


class ScanWarning(UserWarning):
    """A reason to check a result: the message says what was seen in the scan or the result."""


def first_line(err: Exception) -> str:
    """First line of an exception's message; its class when it has none."""
    return str(err).strip().partition("\n")[0] or type(err).__name__


@contextmanager
def explained(place: StrPath, what: str, advice: str = "copy it again") -> Iterator[None]:
    """Turn every exception into an InputError of one line: the place, ``what`` is wrong, what to do.

    Libraries raise exceptions of many kinds for damaged files. Their warnings are silenced: the
    callers judge files themselves.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError as err:
        raise InputError(f"{place}: {err}") from err
    except Exception as err:
        reason = getattr(err, "strerror", None) or first_line(err)
        raise InputError(f"{place}: {what} ({reason}); {advice}") from err


def choose(table: Mapping[str, T] | Collection[str], name: str, what: str) -> T:
    """The entry ``name`` of a table, or of names; InputError names the nearest and lists all.

    ``what``: its kind.
    """
    if name not in table:
        near = "".join(f"; did you mean {n!r}?" for n in get_close_matches(str(name), table, 1))
        raise InputError(f"unknown {what} {name!r}; expected one of {', '.join(table)}{near}")
    return table[name] if isinstance(table, Mapping) else name


def checkout() -> Path | None:
    """Folder of the checkout that this package lies in; None when it is installed without one."""
    folder = Path(__file__).resolve().parents[2]
    found = (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file()
    return folder if found else None


def file_name(name: str, where: str) -> str:
    """Return a name that can name a file in a folder; InputError, after ``where``, for any other.

    Refused are no name, a slash, a first dot, unprintable letters and more than 200 bytes.
    """
    letters = name.isprintable() and not set(name) & {"/", "\\"}
    if not name or name.startswith(".") or not letters or len(name.encode()) > 200:
        raise InputError(
            f"{where}: {name!r} cannot name a file; expected printable letters, no slash, no first "
            "dot, up to 200 bytes"
        )
    return name


def apart(outputs: Iterable[StrPath], inputs: Iterable[StrPath]) -> None:
    """Raise InputError for an output that is one of the inputs, however it is spelled."""
    there = [Path(p) for p in inputs if os.path.exists(p)]
    for output in filter(os.path.exists, outputs):
        if any(source.samefile(output) for source in there):
            raise InputError(
                f"{output} is an input; inputs and outputs must be different files, choose another "
                "place"
            )


def root() -> Path:
    """Folder of the checkout, or the working directory when srlib is installed outside one."""
    return checkout() or Path.cwd()


def locate(path: StrPath) -> Path:
    """A file as named; a relative one missing in the working directory is taken in the checkout."""
    return existing(Path(path), root() / path)


def existing(*places: Path) -> Path:
    """The first of some places where something is, else the first."""
    # os.path's has no error for a text too long to be a name
    return next(filter(os.path.exists, places), places[0])


def _place(variable, default):
    """The folder that an environment variable names, else the default."""
    return Path(os.environ.get(variable) or default).resolve()


def data_dir() -> Path:
    """Folder of created or fetched volumes: ``SRLIB_DATA``, else ``data/`` in the checkout."""
    return _place("SRLIB_DATA", root() / "data")


def cache_dir() -> Path:
    """Folder of what is measured once per machine: ``XDG_CACHE_HOME``/srlib, else ~/.cache/srlib."""
    return _place("XDG_CACHE_HOME", Path.home() / ".cache") / "srlib"


def published_dir() -> Path:
    """Folder of the authors' files: ``SRLIB_PUBLISHED``, else ``published/`` in the data folder."""
    return _place("SRLIB_PUBLISHED", data_dir() / "published")


def published_file(name: str) -> Path | None:
    """A file that the original authors published, by its name; None where it is missing."""
    file = published_dir() / Path(name).name
    return file if file.is_file() else None


def shipped_file(name: str) -> Path | None:
    """Weights that come with the package, by their name; None where there are none."""
    file = Path(__file__).parents[1] / "shipped" / f"{name}.safetensors"
    return file if file.is_file() else None


def results_root() -> Path:
    """Folder of all runs: ``SRLIB_RESULTS``, else ``runs/`` in the checkout."""
    return _place("SRLIB_RESULTS", root() / "runs")


def results_dir(profile: str, cohort: StrPath = "csv/example.csv") -> Path:
    """Folder of one profile's runs; any cohort but the built-in one has a folder of its own."""
    with suppress(OSError):  # whoever writes there reports why it cannot
        results_root().mkdir(parents=True, exist_ok=True)
    label = cohort_label(cohort)
    return results_root() / (profile if label == "example" else f"{profile}_{label}")


def built_in(manifest: StrPath) -> str:
    """Name of a manifest in the checkout's ``csv/`` that the project makes; "" for any other."""
    path, folder = locate(manifest).resolve(), checkout()
    return path.stem if folder and path.parent == folder / "csv" and path.name in BUILT_IN else ""


def cohort_label(cohort: StrPath) -> str:
    """Name of a manifest in folders, run_ids and tables, unique within the results.

    The first manifest of a name keeps it: the link ``cohorts/NAME`` in the folder of all results
    leads to it, and is made here, where that folder exists. Other and missing manifests get a part
    of their path's hash. Delete the link to set a name free.
    """
    path = locate(cohort)
    if name := built_in(path):
        return name
    path = path.parent.resolve() / path.name
    link = results_root() / "cohorts" / path.stem
    target = os.path.relpath(path, link.parent)  # so that a project can move as a whole
    if path.is_file() and f"{path.stem}.csv" not in BUILT_IN:
        with suppress(OSError):  # the name is taken, or nothing can be written there
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target)
        if not os.path.lexists(link) or (link.is_symlink() and os.readlink(link) == target):
            return path.stem
    return f"{path.stem}-{digest(os.fsencode(path))[:8]}"


def make_dir(path: Path) -> Path:
    """Create a folder that must be writable; InputError names it when it is not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as err:
        raise InputError(
            f"cannot write to {path}: {err.strerror}; choose another folder or change its "
            "permissions"
        ) from err
    return path


@contextmanager
def atomic(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on failure.

    It keeps the suffixes, since writers choose the format by them. No two writers share a temporary
    path, so the last one to end wins. The content is on the disk before its name is, and the name
    when this returns, so that a power cut leaves the old file or the new one. What writers of this
    name left that were killed before this process first wrote into the folder goes (``sweep``).
    Raises InputError, naming ``path``, where the folder is missing or the system refuses to write.
    """
    path = Path(path)
    unique = f"{os.getpid()}-{_machine()}{secrets.token_hex(4)}"
    temporary = path.with_name(f".{unique}.{_tail(path.name)}")
    sweep(path.parent, [path.name], _hidden(path.parent.absolute()))
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # some systems cannot do that to a folder
            _sync(path.parent)
    except OSError as err:
        reason = f"{err.strerror or err}; choose another place"
        if not path.parent.is_dir():
            reason = f"the folder {path.parent} does not exist; create it first"
        raise InputError(f"cannot write {path}: {reason}") from err
    except UnicodeEncodeError as err:
        name = ascii(err.object[max(err.start - 20, 0) : err.end + 20])
        raise InputError(f"cannot write {path}: {name} is not UTF-8; rename it") from err
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path):
    """Wait until a file or the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: StrPath, content: str | bytes) -> Path:
    """Write a whole file, text as UTF-8, as ``atomic``; return its path."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def unspoilt(path: StrPath) -> StrPath:
    """Return the path; an error for a ZIP archive with a damaged part, or one that PyTorch, which
    packs nothing, did not write.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if sum(part.file_size for part in parts.infolist()) > os.path.getsize(path):
                raise OSError("its parts are larger than the file")
            if damaged := parts.testzip():
                raise OSError(f"{damaged} differs from its checksum")
    return path


@functools.cache
def _machine():
    """Eight letters that name where process numbers are unique: a container or a running Linux.

    Empty on other systems.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
        numbers = os.readlink("/proc/self/ns/pid")
        return digest(f"{os.uname().nodename} {boot} {numbers}")[:8]
    return ""


def _tail(name):
    """The end of a file's name that leaves room for a prefix within 255 bytes."""
    return os.fsencode(name)[-200:].decode("utf-8", "ignore")


@functools.cache
def _hidden(folder):
    """What may be temporary files, when this process first asks: folders of many scans are long."""
    return [*folder.glob(".*-*.*")]


def sweep(folder: Path, names: Iterable[str], among: Iterable[Path] | None = None) -> None:
    """Delete the temporary files that killed writers of files of these names left in a folder.

    A file of this machine goes when its process has ended; a file of another machine when it has
    not been touched for a day. ``among``: the hidden files of the folder, where they are known.
    """
    tails = set(map(_tail, names))
    for path in folder.glob(".*-*.*") if among is None else among:
        left = re.fullmatch(r"\.(\d{1,9})-(\w+)\.(.+)", path.name)
        if left and left[3] in tails:
            here = _machine() and left[2].startswith(_machine())
            with suppress(OSError):
                if (here and _ended(int(left[1]))) or time.time() - path.stat().st_mtime > DAY:
                    path.unlink()


def _ended(process):
    """Whether no process of this number runs on this machine; a zombie does not."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.Error as err:  # such as one of another user
        return isinstance(err, psutil.NoSuchProcess)


def digest(content: str | bytes) -> str:
    """Hexadecimal SHA-256 of a text or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256(path: StrPath) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def sources() -> dict[str, str]:
    """Hashes of the code that decides what a training computes, by file.

    Comments, docstrings and layout do not count.
    """
    found, package = {}, Path(__file__).parents[1]
    for path in sorted(p for pattern in COMPUTING for p in package.glob(pattern)):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # a docstring, which does nothing
        found[path.relative_to(package).as_posix()] = digest(ast.dump(tree))
    return found


def source_commit() -> dict[str, str]:
    """Commit of the checkout that this package lies in, and whether its sources differ from it."""
    own = checkout()
    # a hook's GIT_ variables name another repository
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*words):
        return subprocess.check_output(
            ["git", *words], cwd=own, env=environment, stderr=subprocess.DEVNULL, encoding="utf-8"
        ).strip()

    with suppress(OSError, subprocess.CalledProcessError):
        if own and Path(git("rev-parse", "--show-toplevel")).samefile(own):
            sources = ("srlib", "notebooks", "csv", "pyproject.toml")
            changed = git("status", "--porcelain", "--", *sources)
            commit = git("rev-parse", "--short=12", "HEAD")
            return {"commit": commit, "dirty": "yes" if changed else "no"}
    return {"commit": "unknown", "dirty": "unknown"}
