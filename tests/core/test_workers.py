"""Jobs shared among processes: one that dies does not stop the others."""

import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from srlib.core.paths import InputError
from srlib.core.tables import read_table
from srlib.core.workers import ENDED, STOPPED, share
from srlib.scans.volume import Volume, save_scan

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def work(folder: Path, job: str) -> str:
    """Each try of a job adds a letter to its file; some jobs kill their process."""
    with open(folder / job, "a") as file:
        file.write("x")
    if job == "deadly" or (job == "unlucky" and (folder / job).stat().st_size == 1):
        os._exit(9)  # as the system does for want of memory
    if job == "slow":
        time.sleep(60)
    return job.upper()


class Refusing:
    def __reduce__(self):
        return print_and_raise, ()


def print_and_raise() -> None:
    raise ValueError("no such weights\nfor a reason")


class Dying:
    def __reduce__(self):
        return os._exit, (9,)


def test_a_job_that_kills_its_process_is_tried_twice_and_stops_no_other(tmp_path):
    todo = ["unlucky", "a", "b", "c", "deadly", "d"]
    results = dict(share(todo, functools.partial(work, tmp_path), workers=2))
    assert results == {"deadly": ENDED, "unlucky": "UNLUCKY", **{n: n.upper() for n in "abcd"}}
    tries = {p.name: len(p.read_text()) for p in tmp_path.iterdir()}
    assert tries["deadly"] == tries["unlucky"] == 2
    assert all(tries[name] <= 2 for name in "abcd")  # a neighbour of one that died begins again


@pytest.mark.parametrize("begins, line", [(Refusing(), "no such weights"), (Dying(), ENDED)])
def test_processes_that_cannot_begin_end_in_a_line_per_job(begins, line):
    assert sorted(share(["a", "b", "c"], begins, workers=2)) == [
        ("a", line),
        ("b", line),
        ("c", line),
    ]


def test_processes_end_with_the_iterator(tmp_path):
    before = multiprocessing.active_children()
    jobs = share(["a", "slow", "b", "slow", "c"], functools.partial(work, tmp_path), workers=2)
    next(jobs)
    assert len(multiprocessing.active_children()) == len(before) + 2
    begun = time.perf_counter()
    jobs.close()
    assert multiprocessing.active_children() == before and time.perf_counter() - begun < 5


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_at_hand_is_told_before_an_interrupt_goes_on(tmp_path, workers, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    jobs = share(["a", "b", "c", "d"], functools.partial(work, tmp_path), workers=workers)
    seen = dict([next(jobs)])
    where = "srlib.core.workers._result" if workers > 1 else "builtins.open"
    monkeypatch.setattr(where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        seen.update(jobs)
    assert STOPPED in seen.values()
    assert all(result in (STOPPED, job.upper()) for job, result in seen.items())


@pytest.fixture
def clusters(tmp_path):
    """Start a Dask cluster with workers in processes of their own; return its scheduler's file."""
    pytest.importorskip("distributed")
    processes = []

    def start(name: str, workers: int) -> Path:
        file = tmp_path / f"{name}.json"
        # each failure costs a start of seconds
        settings = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
        commands = [["dask_scheduler", "--port", "0", "--no-dashboard"]]
        commands += [["dask_worker", "--nthreads", "1", "--local-directory", tmp_path]] * workers
        for command, *rest in commands:
            words = ["-m", f"distributed.cli.{command}", "--scheduler-file", file, *rest]
            processes.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    env=settings,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        return file

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_cluster_does_the_jobs(tmp_path):
    distributed = pytest.importorskip("distributed")
    own = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**own) as cluster:
        address = cluster.scheduler_address
        results = dict(share(["a", "b"], functools.partial(work, tmp_path), scheduler=address))
        assert results == {"a": "A", "b": "B"}


def test_a_cluster_whose_workers_do_several_jobs_at_once_is_refused(tmp_path):
    distributed = pytest.importorskip("distributed")
    own = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with (
        distributed.LocalCluster(**own) as cluster,
        pytest.raises(InputError, match="--nthreads 1"),
    ):
        next(share(["a"], str.upper, scheduler=cluster.scheduler_address))


@pytest.mark.slow
def test_a_cluster_does_the_jobs_and_one_that_kills_workers_stops_no_other(clusters, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    todo = ["unlucky", "a", "b", "c", "deadly", "d"]
    results = dict(share(todo, functools.partial(work, folder), scheduler=str(clusters("one", 2))))
    assert results == {"deadly": ENDED, "unlucky": "UNLUCKY", **{n: n.upper() for n in "abcd"}}


def test_a_cluster_that_is_not_there_ends_in_a_line(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("srlib.core.workers.PATIENCE", 0.5)
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        next(share(["a"], str.upper, scheduler="tcp://127.0.0.1:1"))


@pytest.mark.slow
def test_two_clusters_on_one_folder_get_on_with_each_other(clusters, tmp_path, tiny, noise):
    """Each file is whole and the same as of one process, and stands once in the summary."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        scan = Volume(noise((12, 13, 14), number), np.eye(4))
        save_scan(scan, tmp_path / "in" / f"s{number:02}.nii.gz")
    command = [sys.executable, "-m", "srlib", "enhance", tmp_path / "in"]
    rest = ["--weights", tiny, "--device", "cpu"]
    schedulers = [clusters(name, 1) for name in ("one", "two")]
    runs = [
        subprocess.Popen([*command, tmp_path / "out", *rest, "--scheduler", file])
        for file in schedulers
    ]
    assert [run.wait(timeout=200) for run in runs] == [0, 0]
    subprocess.run([*command, tmp_path / "alone", *rest], check=True)
    names = [f"s{number:02}_sr.nii.gz" for number in range(12)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "summary.csv"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    rows = read_table(tmp_path / "out" / "summary.csv")
    assert sorted(Path(row["file"]).name for row in rows) == [f"s{n:02}.nii.gz" for n in range(12)]


@pytest.mark.slow
def test_the_page_s_script_for_slurm_does_the_jobs(tmp_path, tiny, noise):
    """With programs of SLURM's names that start a job on this machine and stop it."""
    pytest.importorskip("dask_jobqueue")
    (page,) = re.findall(r"```python\n(from dask_jobqueue.+?)```", PAGE.read_text(), re.DOTALL)
    for name, line in {"sbatch": 'setsid bash "$1" >&2 & echo Submitted batch job $!', "scancel": 'kill -- "-$1"'}.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    cluster = subprocess.Popen(
        [sys.executable, "-c", page.replace("jobs=50", "jobs=2")], cwd=tmp_path, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    for name in ("a.nii.gz", "b.nii.gz"):
        save_scan(Volume(noise((12, 13, 14)), np.eye(4)), tmp_path / name)
    address = cluster.stdout.readline().strip()
    words = ["enhance", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "out"]
    try:
        subprocess.run(
            [sys.executable, "-m", "srlib", *words, "--weights", tiny, "--scheduler", address],
            check=True,
            timeout=100,
        )
    finally:
        cluster.communicate("\n", timeout=60)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.gz")) == ["a_sr.nii.gz", "b_sr.nii.gz"]
