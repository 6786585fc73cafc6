"""Notebooks executed in order by papermill: what is finished and unchanged is skipped, the first error stops."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from srlib.data import read_manifest
from srlib.experiments import PROFILES
from srlib.paths import InputError, atomic, make_dir, results_dir, root, source_hash


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those of the given names (``10_mdcsrn`` or ``10``)."""
    every = sorted((root() / "notebooks").glob("[0-9]*.ipynb"))
    for name in names:
        if not any(name in (p.stem, p.stem.split("_")[0]) for p in every):
            raise InputError(f"no notebook {name!r}; expected one of {', '.join(p.stem for p in every)}")
    return [p for p in every if not names or p.stem in names or p.stem.split("_")[0] in names]


def run(
    profile: str = "quick",
    cohort: str | Path = "csv/example.csv",
    seed: int = 0,
    names: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    force: bool = False,
) -> Path:
    """Execute notebooks and return the results folder.

    A notebook runs into ``notebooks/NAME.running.ipynb`` of that folder and is renamed when it ends, to
    ``NAME.ipynb`` or, at an error, to ``NAME.failed.ipynb``. Beside a finished one ``NAME.json`` holds the key of all
    that it depends on; as long as that is unchanged and its outputs are there, it is skipped. ``parameters``
    are further notebook parameters. Raises InputError for an unknown profile, notebook or parameter, an unusable
    cohort or folder, and when a notebook fails.
    """
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; expected one of {', '.join(PROFILES)}")
    cohort = Path(cohort)
    path = cohort if cohort.is_file() else root() / cohort
    if not path.is_file():
        raise InputError(f"{cohort}: no such manifest; write one with 'srlib manifest', see csv/README.md")
    if path.stem != "example":
        read_manifest(path)
    common = {"profile": profile, "cohort": str(path.absolute()), "seed": seed}
    todo, given = notebooks(names), dict(parameters or {})
    accepted = {book: _parameters(book) for book in todo}
    for name in given:
        if not any(name in known for known in accepted.values()):
            known = sorted({n for names in accepted.values() for n in names})
            raise InputError(f"no notebook has a parameter {name!r}; expected one of {', '.join(known)}")
    folder = results_dir(profile, path)
    books = make_dir(folder / "notebooks")
    for number, book in enumerate(todo, 1):
        values = {k: v for k, v in {**common, **given}.items() if k in accepted[book]}
        label = f"[{number}/{len(todo)}] {book.stem}"
        if not force and _finished(book, books, values, path, folder):
            print(f"{label}: unchanged, skipped", flush=True)
            continue
        print(f"{label} ...", end="", flush=True)
        began = time.perf_counter()
        _execute(book, books, values)
        with atomic(books / f"{book.stem}.json") as temporary:
            temporary.write_text(json.dumps({"key": _key(book, books, values, path)}), encoding="utf-8")
        print(f" {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def _parameters(book: Path) -> set[str]:
    import papermill  # half a second, needed by this command alone

    return set(papermill.inspect_notebook(str(book)))


def _key(book: Path, books: Path, values: Mapping[str, object], manifest: Path) -> str:
    """Hash of everything a notebook's outcome depends on: code, parameters, data, earlier notebooks, the package."""
    cells = [c["source"] for c in json.loads(book.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    upstream = [_stored(books, p) for p in notebooks() if p.stem < book.stem]
    manifests, files = [manifest, *(Path(v) for v in values.values() if str(v).endswith(".csv"))], []
    manifests = [path for path in dict.fromkeys(manifests) if path.is_file()]
    with contextlib.suppress(InputError):  # volumes that are not there yet are made by the first notebook
        stats = [(f, f.stat()) for path in manifests for s in read_manifest(path) for f in s.files.values()]
        files = [(str(f), s.st_size, s.st_mtime_ns) for f, s in stats]
    parts = [
        cells,
        values,
        [path.read_text(encoding="utf-8", errors="replace") for path in manifests],
        files,
        upstream,
        source_hash(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stored(books: Path, book: Path) -> str | None:
    path = books / f"{book.stem}.json"
    return json.loads(path.read_text(encoding="utf-8"))["key"] if path.is_file() else None


def _finished(book: Path, books: Path, values: Mapping[str, object], manifest: Path, folder: Path) -> bool:
    writes = json.loads(book.read_text(encoding="utf-8"))["metadata"].get("srlib", {}).get("writes", [])
    there = (books / book.name).is_file() and all(any(folder.glob(pattern)) for pattern in writes)
    return there and _stored(books, book) == _key(book, books, values, manifest)


def _execute(book: Path, books: Path, values: Mapping[str, object]) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not a stale one of the user's
    running, failed = books / f"{book.stem}.running.ipynb", books / f"{book.stem}.failed.ipynb"
    for old in (failed, books / f"{book.stem}.json"):
        old.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(book), str(running), dict(values), kernel_name="python3", cwd=str(root()), progress_bar=False,
            coalesce_streams=True, extra_arguments=["--IPKernelApp.log_level=40"],
        )  # fmt: skip
    except BaseException as err:
        if running.is_file():
            running.replace(failed)
        if not isinstance(err, Exception):
            raise
        message = (
            f"{err.ename}: {err.evalue}" if isinstance(err, PapermillExecutionError) else f"{type(err).__name__}: {err}"
        )
        print(file=sys.stderr)
        raise InputError(f"{book.stem} failed: {message.strip()}; the executed notebook is {failed}") from err
    running.replace(books / book.name)
