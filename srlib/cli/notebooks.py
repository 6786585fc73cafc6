"""Execute notebooks in order with papermill; skip finished, unchanged ones and stop at an error."""

import ast
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import psutil

from srlib import systems
from srlib.cli.progress import Progress
from srlib.core.paths import (
    RESULTS_VERSION,
    InputError,
    StrPath,
    atomic,
    built_in,
    checkout,
    choose,
    data_dir,
    digest,
    locate,
    make_dir,
    published_dir,
    results_dir,
    write_file,
)
from srlib.core.processes import cores
from srlib.data.manifest import read_cohorts, read_manifest
from srlib.evaluation import results
from srlib.scans.formats import files_of, fingerprint, once
from srlib.systems.base import Experiment

SHIPPED = Path(__file__).parents[1] / "shipped"
COHORTS = {"paper": "csv/paper.csv"}  # by profile; of others the built-in one
WORKERS = {"smoke": 2, "quick": 2}  # notebooks at the same time, by profile; of others one

_hash_file = once(fingerprint)


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those of the given names (``10_mdcsrn`` or ``10``).

    Raises InputError for other names, and if srlib is installed without its notebooks.
    """
    folder = checkout()
    every = sorted((folder / "notebooks").glob("[0-9]*.ipynb")) if folder else []
    if not every:
        raise InputError(
            "srlib is installed without its notebooks; run them from a clone of its repository"
        )
    called = {name: p for p in every for name in (p.stem, _number(p))}
    return sorted({choose(called, name, "notebook") for name in names}) or every


def run(
    profile: str = "quick",
    cohort: StrPath = "csv/example.csv",
    *,
    seed: int = 0,
    names: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    workers: int | None = None,
    force: bool = False,
    estimate: bool = False,
) -> Path:
    """Execute notebooks and return the results folder.

    ``workers`` notebooks run at the same time, each on its share of the cores, by default two in
    ``smoke`` and ``quick``. A notebook begins when those of ``after`` in its metadata have ended;
    without them, when all earlier ones have. After a failure none begins.

    ``cohort`` is a manifest, or a table of one for each system (``read_cohorts``): a notebook of
    systems that the table leaves out is left out. In ``paper`` an estimate of what the trainings
    take is printed first; with ``estimate`` that is all. A notebook runs in a hidden file in
    ``notebooks/`` of that folder. The file is renamed at the end to ``NAME.ipynb`` or, after an
    error, to ``NAME.failed.ipynb``.
    ``NAME.json`` beside a finished notebook holds the key of everything that it depends on, and its
    outputs. The notebook is skipped as long as its key is unchanged and its outputs exist.
    ``parameters`` are further notebook parameters. Relative paths are looked up in the working
    directory, then in the checkout. Raises InputError for an unknown profile, notebook or
    parameter, for a bad cohort or folder, and if a notebook fails.
    """
    choose(systems.PROFILES, profile, "profile")
    path = locate(cohort)
    table = _check_cohort(path)
    todo = [_Notebook(notebook) for notebook in notebooks(names)]
    given = {"profile": profile, "cohort": str(path.absolute()), "seed": seed}
    known = sorted({name for notebook in todo for name in notebook.defaults})
    for name in parameters or {}:
        if name in given:
            raise InputError(f"-p {name}: also says where results go; give it as --{name}")
        choose(known, name, "notebook parameter")
    given |= parameters or {}
    folder = results_dir(profile, path)
    if estimate or profile == "paper":
        from srlib.cli.estimate import estimate as lines_of

        runs = results.read_runs(folder)["run_id"]
        done = {run.rpartition(f"-{profile}-s{seed}-")[0] for run in runs}
        for line in lines_of(planned(names, profile, given.get("overrides", ""), table, done)):
            print(line, flush=True)
        if estimate:
            return folder
    make_dir(folder / "notebooks")
    titles = {n.number: f"[{k}/{len(todo)}] {n.path.stem}" for k, n in enumerate(todo, 1)}
    for notebook in [*todo]:
        if table and notebook.trains and not table.keys() & notebook.trains:
            print(f"{titles[notebook.number]}: left out by {path.name}")
            todo.remove(notebook)
    workers = workers or min(WORKERS.get(profile, 1), cores())
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // workers, 1)))
    progress = Progress({n.path.stem: n.seconds for n in todo}, workers)

    def execute(notebook):
        with progress.about(notebook.path.stem, titles[notebook.number]) as report:
            report.ran = notebook.run(folder, given, force, report)

    _in_order(todo, execute, workers)
    return folder


def _in_order(todo, execute, workers):
    """Execute notebooks; several ``workers`` begin with the longest of those that can begin.

    An interruption ends the kernels.
    """
    waiting, going = {notebook.number: notebook for notebook in todo}, {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or going:
                pending = {*waiting, *going.values()}
                ready = [n for n in waiting.values() if not pending & n.after]
                if workers > 1:
                    ready.sort(key=lambda n: -n.seconds)
                for notebook in ready[: workers - len(going)]:
                    going[pool.submit(execute, waiting.pop(notebook.number))] = notebook.number
                for ended in wait(going, return_when=FIRST_COMPLETED).done:
                    del going[ended]
                    ended.result()
        except KeyboardInterrupt:
            for kernel in psutil.Process().children():
                kernel.kill()
            raise


def _check_cohort(path):
    """Refuse a manifest, or one in a table of cohorts, that cannot be used; return the table."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such manifest; write one with 'srlib manifest', see csv/README.md"
        )
    table = read_cohorts(path)
    for manifest in table.values() or [path]:
        if manifest.is_file() and built_in(manifest) != "example":
            read_manifest(manifest)
    return table


def planned(
    names: Sequence[str],
    profile: str,
    overrides: str,
    table: Collection[str] = (),
    done: Collection[str] = (),
) -> list[Experiment]:
    """What notebooks train in a profile, without what is ``done``.

    Of all systems, or of those in a ``table`` of cohorts.
    """
    found = [system for path in notebooks(names) for system in _Notebook(path).trains]
    chosen = [system for system in found if not table or system in table]
    made = (systems.get(n, profile, overrides) for s in chosen for n in systems.runs(s, profile))
    return [experiment for experiment in made if experiment.name not in done]


class _Notebook:
    """A notebook with its parameters' defaults, its code, and the results it reads and writes."""

    def __init__(self, path):
        import papermill  # takes half a second, and only this command needs it

        content = json.loads(path.read_text(encoding="utf-8"))
        parameters = papermill.inspect_notebook(str(path))
        self.path, self.declared = path, content["metadata"].get("srlib", {})
        self.trains, self.seconds = self.declared.get("trains", []), self.declared.get("seconds", 0)
        self.number, earlier = _number(path), [p for p in notebooks() if p.stem < path.stem]
        self.after = {*self.declared.get("after", map(_number, earlier))}
        self.defaults = {name: ast.literal_eval(p["default"]) for name, p in parameters.items()}
        self.code = [
            "".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"
        ]

    def run(self, folder, given, force, report):
        """Execute the notebook unless it is finished and unchanged; return whether it ran."""
        books = folder / "notebooks"
        values = {k: v for k, v in given.items() if k in self.defaults}
        used = self.defaults | values
        before = self.inputs(used, folder)
        stored = _stored(books, self.path)
        finished = all((folder / name).is_file() for name in stored.get("made", []))
        # what a network of one's own depends on is not known
        force = force or used.get("extra")
        if finished and not force and stored.get("key") == self.key(books, used, before):
            return False
        _execute(self.path, books, values, report)
        # the first notebooks make files that were not there
        inputs = self.inputs(used, folder) | before
        writes = [f"notebooks/{self.path.name}", *self.declared.get("writes", [])]
        made = {str(p.relative_to(folder)) for pattern in writes for p in folder.glob(pattern)}
        key = {"key": self.key(books, used, inputs), "made": sorted(made)}
        write_file(books / f"{self.path.stem}.json", json.dumps(key))
        return True

    def inputs(self, used, folder):
        """Hashes of what the notebook may read: files and scans of manifests that parameters name,
        results and weights.

        Files that do not exist are left out.
        """
        named = [locate(value) for value in used.values() if isinstance(value, str) and value]
        files = {path.absolute() for path in named if os.path.isfile(path)}
        for table in [*files]:
            with suppress(InputError):  # another table, or scans that are not there yet
                for system, manifest in (read_cohorts(table) or {"": table}).items():
                    own = not (system and self.trains) or system.startswith(tuple(self.trains))
                    for subject in read_manifest(manifest) if own and manifest.is_file() else ():
                        files.update(subject.files.values())
        places = [(folder, pattern) for pattern in self.declared.get("reads", [])]
        places += [
            (published_dir(), "*"),
            (data_dir() / "synthsr", "*/*"),
            (SHIPPED, "*.safetensors"),
        ]
        for place, pattern in places:
            files.update(filter(os.path.isfile, place.glob(pattern)))
        return {str(file): _hash(file) for file in files}

    def key(self, books, used, inputs):
        """Hash of everything that the results depend on, earlier notebooks included."""
        earlier = [path for path in notebooks() if _number(path) in self.after]
        upstream = [_stored(books, path).get("key") for path in earlier]
        parts = [self.code, used, inputs, upstream, RESULTS_VERSION]
        return digest(json.dumps(parts, sort_keys=True, default=str))


def _number(path):
    return path.stem.split("_")[0]


def _stored(books, notebook):
    with suppress(Exception):  # whatever is wrong with the record, the notebook runs again
        return dict(json.loads((books / f"{notebook.stem}.json").read_text(encoding="utf-8")))
    return {}


def _hash(path):
    return _hash_file(path) if files_of(path) == [path] else fingerprint(path)


def _execute(notebook, books, values, report):
    import papermill

    # this environment's kernel, not an old one of the user's
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    failed = books / f"{notebook.stem}.failed.ipynb"
    for old in (failed, books / f"{notebook.stem}.json"):
        old.unlink(missing_ok=True)
    with atomic(books / notebook.name) as running:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(running),
                values,
                kernel_name="python3",
                cwd=os.getcwd(),
                progress_bar=False,
                coalesce_streams=True,
                stdout_file=report,
                stderr_file=report,
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
        except BaseException as err:
            with suppress(OSError, ValueError):  # a full disk cuts it off
                json.loads(running.read_text(encoding="utf-8"))
                running.replace(failed)
            if not isinstance(err, Exception):
                raise
            name = getattr(err, "ename", type(err).__name__)
            message = f"{name}: {getattr(err, 'evalue', err)}".strip()
            shown = f"; the executed notebook is {failed}" if failed.is_file() else ""
            raise InputError(f"{notebook.stem} failed: {message}{shown}") from err
