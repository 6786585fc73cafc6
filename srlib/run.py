"""Notebooks executed in order by papermill: what is finished and unchanged is skipped, the first error stops."""

import ast
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from srlib.data import read_manifest
from srlib.inputs import fingerprint
from srlib.paths import (
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
from srlib.systems import PROFILES


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those of the given names (``10_mdcsrn`` or ``10``).

    Raises InputError for other names, and where srlib is installed without its notebooks.
    """
    folder = checkout()
    every = sorted((folder / "notebooks").glob("[0-9]*.ipynb")) if folder else []
    if not every:
        raise InputError("srlib is installed without its notebooks; run them from a clone of its repository")
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

    A notebook runs into a hidden file in ``notebooks/`` of that folder, which is renamed when it ends, to ``NAME.ipynb``
    or, at an error, to ``NAME.failed.ipynb``. Beside a finished one ``NAME.json`` holds the key of all
    that it depends on; as long as that is unchanged and its outputs are there, it is skipped. ``parameters``
    are further notebook parameters. Relative paths are looked for in the working directory, then in the checkout. Raises
    InputError for an unknown profile, notebook or parameter, an unusable cohort or folder, and when a notebook fails.
    """
    choose(PROFILES, profile, "profile")
    path = locate(cohort)
    if not path.is_file():
        raise InputError(f"{cohort}: no such manifest; write one with 'srlib manifest', see csv/README.md")
    if built_in(path) != "example":
        read_manifest(path)
    common = {"profile": profile, "cohort": str(path.absolute()), "seed": seed}
    todo, given = notebooks(names), dict(parameters or {})
    accepted = {book: _defaults(book) for book in todo}
    known = sorted({name for defaults in accepted.values() for name in defaults})
    for name in given:
        if name not in known:
            raise InputError(f"no notebook has a parameter {name!r}; expected one of {', '.join(known)}")
        if name in common:
            raise InputError(f"-p {name}: also says where results go; give it as --{name}")
    folder, sums = results_dir(profile, path), {}
    books = make_dir(folder / "notebooks")
    for number, book in enumerate(todo, 1):
        values = {k: v for k, v in {**common, **given}.items() if k in accepted[book]}
        used = {**accepted[book], **values}
        label = f"[{number}/{len(todo)}] {book.stem}"
        before = _inputs(book, used, folder, sums)
        if not force and _finished(book, books, _key(book, books, used, before), folder):
            print(f"{label}: unchanged, skipped", flush=True)
            continue
        print(f"{label} ...", end="", flush=True)
        began = time.perf_counter()
        _execute(book, books, values)
        inputs = {**_inputs(book, used, folder, sums), **before}  # the first notebooks make what was not there
        with atomic(books / f"{book.stem}.json") as temporary:
            temporary.write_text(json.dumps({"key": _key(book, books, used, inputs)}), encoding="utf-8")
        print(f" {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def _defaults(book: Path) -> dict[str, object]:
    import papermill  # half a second, needed by this command alone

    return {n: ast.literal_eval(p["default"]) for n, p in papermill.inspect_notebook(str(book)).items()}


def _inputs(book: Path, used: Mapping[str, object], folder: Path, sums: dict[tuple, str]) -> dict[str, str]:
    """SHA-256 of what a notebook may read, by name: files that parameters name, scans of manifests, weights at hand.

    ``sums`` keeps those of unchanged files. What is not there is left out.
    """
    files = {name: locate(v) for name, v in used.items() if isinstance(v, str) and v and locate(v).is_file()}
    for name, manifest in list(files.items()):
        with contextlib.suppress(InputError):  # another table, or scans that are not there yet
            files |= {f"{name} {s.name} {c}": file for s in read_manifest(manifest) for c, file in s.files.items()}
    reads = _metadata(book).get("reads", [])
    others = [path for pattern in reads for path in folder.glob(pattern)]
    places = {published_dir(): "*", data_dir() / "synthsr": "*/*", Path(__file__).parent / "shipped": "*.safetensors"}
    others += [path for place, pattern in places.items() for path in place.glob(pattern) if path.is_file()]
    return {name: _sum(path, sums) for name, path in {**files, **{str(p): p for p in others}}.items()}


def _sum(path: Path, sums: dict[tuple, str]) -> str:
    stat = path.stat()
    version = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if path.is_dir() or path.suffix in (".hdr", ".img"):  # several files
        return fingerprint(path)
    return sums[version] if version in sums else sums.setdefault(version, fingerprint(path))


def _metadata(book: Path) -> dict[str, list[str]]:
    return json.loads(book.read_text(encoding="utf-8"))["metadata"].get("srlib", {})


def _key(book: Path, books: Path, used: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """Hash of everything a notebook's outcome depends on: code, parameters, contents of files, earlier notebooks."""
    cells = [c for c in json.loads(book.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    upstream = [_stored(books, p) for p in notebooks() if p.stem < book.stem]
    parts = [["".join(c["source"]) for c in cells], used, inputs, upstream, RESULTS_VERSION]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stored(books: Path, book: Path) -> str | None:
    path = books / f"{book.stem}.json"
    return json.loads(path.read_text(encoding="utf-8"))["key"] if path.is_file() else None


def _finished(book: Path, books: Path, key: str, folder: Path) -> bool:
    writes = _metadata(book).get("writes", [])
    there = (books / book.name).is_file() and all(any(folder.glob(pattern)) for pattern in writes)
    return there and _stored(books, book) == key


def _execute(book: Path, books: Path, values: Mapping[str, object]) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not a stale one of the user's
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
            raise InputError(f"{book.stem} failed: {message.strip()}; the executed notebook is {failed}") from err
