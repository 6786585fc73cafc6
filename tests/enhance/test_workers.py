"""Jobs shared among processes: one that dies does not stop the others."""

import os
import time
from pathlib import Path

import pytest

from srlib.enhance.workers import ENDED, STOPPED, share


def begin(folder: Path):
    """Each try of a job adds a letter to its file; some jobs kill their process."""

    def work(job: str) -> str:
        with open(folder / job, "a") as file:
            file.write("x")
        if job == "deadly" or (job == "unlucky" and (folder / job).stat().st_size == 1):
            os._exit(9)  # as the system does for want of memory
        return job.upper()

    return work


def refuse() -> None:
    raise ValueError("no such weights\nfor a reason")


def die() -> None:
    os._exit(9)


def test_a_job_that_kills_its_process_is_tried_twice_and_stops_no_other(tmp_path):
    todo = ["deadly", "a", "unlucky", "b", "c", "d"]
    results = dict(share(todo, 2, None, begin, tmp_path))
    assert results == {
        "deadly": ENDED,
        "unlucky": "UNLUCKY",
        "a": "A",
        "b": "B",
        "c": "C",
        "d": "D",
    }
    assert {p.name: len(p.read_text()) for p in tmp_path.iterdir()} == {
        "deadly": 2, "unlucky": 2, "a": 1, "b": 1, "c": 1, "d": 1,
    }  # fmt: skip


@pytest.mark.parametrize("begins, line", [(refuse, "no such weights"), (die, ENDED)])
def test_processes_that_cannot_begin_end_in_a_line_per_job(begins, line):
    assert sorted(share(["a", "b", "c"], 2, None, begins)) == [
        ("a", line),
        ("b", line),
        ("c", line),
    ]


def test_processes_end_with_the_iterator(tmp_path):
    jobs = share(["a", "b", "c"], 2, None, begin, tmp_path)
    next(jobs)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.is_file():
        pytest.skip("needs Linux's /proc")
    workers = [Path(f"/proc/{n}/cmdline") for n in children.read_text().split()]
    workers = [p for p in workers if "spawn_main" in p.read_text()]
    assert workers
    begun = time.perf_counter()
    jobs.close()
    assert not any(p.exists() for p in workers) and time.perf_counter() - begun < 5


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_at_hand_is_told_before_an_interrupt_goes_on(tmp_path, workers, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    jobs = share(["a", "b", "c", "d"], workers, begin(tmp_path), begin, tmp_path)
    seen = dict([next(jobs)])
    monkeypatch.setattr("srlib.enhance.workers.wait" if workers > 1 else "builtins.open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        seen.update(jobs)
    assert STOPPED in seen.values() and all(
        result in (STOPPED, job.upper()) for job, result in seen.items()
    )
