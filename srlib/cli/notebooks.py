"""Notebooks executed in order by papermill: what is finished and unchanged is skipped, the first error stops."""

import ast
import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from srlib.core.paths import (
    RESULTS_VERSION,
    InputError,
    atomic,
    built_in,
    checkout,
    choose,
    data_dir,
    locate,
    make_dir,
    published_dir,
    results_dir,
    sweep,
)  # fmt: skip
from srlib.data.manifest import read_manifest
from srlib.scans.formats import fingerprint
from srlib.systems.registry import PROFILES

SHIPPED = Path(__file__).parents[1] / "shipped"


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those of the given names (``10_mdcsrn`` or ``10``).

    Raises InputError for other names, and where srlib is installed without its notebooks.
    """
    folder = checkout()
    every = sorted((folder / "notebooks").glob("[0-9]*.ipynb")) if folder else []
    if not every:
        raise InputError(
            "srlib is installed without its notebooks; run them from a clone of its repository"
        )
    called = {name: p for p in every for name in (p.stem, p.stem.split("_")[0])}
    return sorted(choose(called, name, "notebook") for name in {*names}) if names else every


def run(
    profile: str = "quick",
    cohort: str | Path = "csv/example.csv",
    seed: int = 0,
    names: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    force: bool = False,
) -> Path:
    """Execute notebooks and return the results folder.

    A notebook runs into a hidden file in ``notebooks/`` of that folder, which is renamed when it ends, to ``NAME.ipynb``
    or, at an error, to ``NAME.failed.ipynb``. Beside a finished one ``NAME.json`` holds the key of all
    that it depends on; as long as that is unchanged and its outputs are there, it is skipped. ``parameters``
    are further notebook parameters. Relative paths are looked for in the working directory, then in the checkout. Raises
    InputError for an unknown profile, notebook or parameter, an unusable cohort or folder, and when a notebook fails.
    """
    choose(PROFILES, profile, "profile")
    path = locate(cohort)
    if not path.is_file():
        raise InputError(
            f"{cohort}: no such manifest; write one with 'srlib manifest', see csv/README.md"
        )
    if built_in(path) != "example":
        read_manifest(path)
    common = {"profile": profile, "cohort": str(path.absolute()), "seed": seed}
    given = dict(parameters or {})
    for name in common.keys() & given:
        raise InputError(f"-p {name}: also says where results go; give it as --{name}")
    todo = [_Book(book) for book in notebooks(names)]
    known = sorted({name for book in todo for name in book.defaults})
    for name in given.keys() - known:
        raise InputError(
            f"no notebook has a parameter {name!r}; expected one of {', '.join(known)}"
        )
    folder = results_dir(profile, path)
    books = make_dir(folder / "notebooks")
    for number, book in enumerate(todo, 1):
        values = {k: v for k, v in {**common, **given}.items() if k in book.defaults}
        used = {**book.defaults, **values}
        label = f"[{number}/{len(todo)}] {book.path.stem}"
        before = book.inputs(used, folder)
        if (
            not force
            and book.finished(folder)
            and _stored(books, book.path) == book.key(books, used, before)
        ):
            print(f"{label}: unchanged, skipped", flush=True)
            continue
        print(f"{label} ...", end="", flush=True)
        began = time.perf_counter()
        _execute(book.path, books, values)
        inputs = {
            **book.inputs(used, folder),
            **before,
        }  # the first notebooks make what was not there
        with atomic(books / f"{book.path.stem}.json") as temporary:
            temporary.write_text(
                json.dumps({"key": book.key(books, used, inputs)}), encoding="utf-8"
            )
        print(f" {time.perf_counter() - began:.0f} s", flush=True)
    return folder


class _Book:
    """A notebook: its parameters' defaults, its code, and which results it says it reads and writes."""

    def __init__(self, path: Path):
        import papermill  # half a second, needed by this command alone

        content = json.loads(path.read_text(encoding="utf-8"))
        parameters = papermill.inspect_notebook(str(path))
        self.path, self.declared = path, content["metadata"].get("srlib", {})
        self.defaults = {name: ast.literal_eval(p["default"]) for name, p in parameters.items()}
        self.code = [
            "".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"
        ]

    def inputs(self, used: Mapping[str, object], folder: Path) -> dict[str, str]:
        """SHA-256 of what it may read, by name: files that parameters name, scans of manifests, weights at hand.

        What is not there is left out.
        """
        files = {
            name: locate(v)
            for name, v in used.items()
            if isinstance(v, str) and v and locate(v).is_file()
        }
        for name, manifest in list(files.items()):
            with contextlib.suppress(InputError):  # another table, or scans that are not there yet
                files |= {
                    f"{name} {s.name} {c}": file
                    for s in read_manifest(manifest)
                    for c, file in s.files.items()
                }
        places = [(folder, pattern) for pattern in self.declared.get("reads", [])]
        places += [
            (published_dir(), "*"),
            (data_dir() / "synthsr", "*/*"),
            (SHIPPED, "*.safetensors"),
        ]
        for place, pattern in places:
            files |= {str(file): file for file in place.glob(pattern) if file.is_file()}
        return {name: _sum(file) for name, file in files.items()}

    def key(self, books: Path, used: Mapping[str, object], inputs: Mapping[str, str]) -> str:
        """Hash of everything its outcome depends on: code, parameters, contents of files, earlier notebooks."""
        upstream = [_stored(books, path) for path in notebooks() if path.stem < self.path.stem]
        parts = [self.code, used, inputs, upstream, RESULTS_VERSION]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def finished(self, folder: Path) -> bool:
        """Whether the executed notebook and all that it says it writes are there."""
        writes = [f"notebooks/{self.path.name}", *self.declared.get("writes", [])]
        return all(any(folder.glob(pattern)) for pattern in writes)


def _stored(books: Path, book: Path) -> str | None:
    path = books / f"{book.stem}.json"
    return json.loads(path.read_text(encoding="utf-8"))["key"] if path.is_file() else None


def _sum(path: Path) -> str:
    stat = path.stat()
    several = path.is_dir() or path.suffix in (".hdr", ".img")  # files, each of which may change
    return (
        fingerprint(path)
        if several
        else _sum_of(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    )


@functools.cache
def _sum_of(path: Path, *version: int) -> str:
    return fingerprint(path)


def _execute(book: Path, books: Path, values: Mapping[str, object]) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["JUPYTER_PREFER_ENV_PATH"] = (
        "1"  # this environment's kernel, not a stale one of the user's
    )
    failed = books / f"{book.stem}.failed.ipynb"
    sweep(books, [book.name])
    for old in (failed, books / f"{book.stem}.json"):
        old.unlink(missing_ok=True)
    with atomic(books / book.name) as running:
        try:
            papermill.execute_notebook(
                str(book), str(running), dict(values), kernel_name="python3", cwd=os.getcwd(), progress_bar=False,
                coalesce_streams=True, extra_arguments=["--IPKernelApp.log_level=40"],
            )  # fmt: skip
        except BaseException as err:
            if running.is_file():
                running.replace(failed)
            if not isinstance(err, Exception):
                raise
            known = isinstance(err, PapermillExecutionError)
            message = f"{err.ename}: {err.evalue}" if known else f"{type(err).__name__}: {err}"
            print(file=sys.stderr)
            raise InputError(
                f"{book.stem} failed: {message.strip()}; the executed notebook is {failed}"
            ) from err
