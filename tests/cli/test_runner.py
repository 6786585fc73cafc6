"""The runner: order, skipping, refusal, and what it leaves behind when a notebook fails."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner

from srlib import systems
from srlib.cli import notebooks as runner
from srlib.cli import progress
from srlib.cli.commands import main
from srlib.core import paths
from srlib.core.paths import InputError
from srlib.data.manifest import cohort_of, read_cohorts
from srlib.evaluation import results
from srlib.scans.volume import Volume, save_scan


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A checkout of two tiny notebooks; returns a function that replaces the code of one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    for module in (runner, paths):
        monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "runs"))
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("SRLIB_PUBLISHED", raising=False)
    given = 'profile: str = "quick"\ncohort: str = ""\nseed: int = 0  # of "all"\ntable: str = "table.txt"'

    def write(name, code, writes=(), reads=(), **declared):
        parameters = nbformat.v4.new_code_cell(given, metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        book.metadata = {
            "kernelspec": {"name": "python3", "display_name": "p", "language": "python"},
            "srlib": {"writes": list(writes), "reads": list(reads), **declared},
        }
        nbformat.write(book, folder / f"{name}.ipynb")

    log = tmp_path / "log"
    write("00_first", f"open({str(log)!r}, 'a').write('first ')")
    write("10_second", f"open({str(log)!r}, 'a').write(f'second{{seed}} ')")
    write.log, write.folder = log, tmp_path / "runs"
    return write


def test_in_order_once_and_again_when_something_changed(books, cohort, capsys):
    runner.run("smoke", cohort)
    runner.run("smoke", cohort)
    assert books.log.read_text() == "first second0 "
    assert capsys.readouterr().out.count("unchanged, skipped") == 2
    runner.run("smoke", cohort, seed=3)
    assert books.log.read_text() == "first second0 first second3 "
    books("00_first", f"open({str(books.log)!r}, 'a').write('changed ')")
    runner.run("smoke", cohort, seed=3)  # what comes after a changed notebook runs again
    assert books.log.read_text().endswith("changed second3 ")
    runner.run("smoke", cohort, seed=3, names=["10"], force=True)
    assert books.log.read_text().endswith("second3 second3 ")


def test_two_at_the_same_time_and_what_comes_after_both(books, cohort, tmp_path):
    """Each of two notebooks waits for the other's file, the third for neither."""
    wait = "import os, time\nfrom pathlib import Path\nhere, there = Path({!r}), Path({!r})\n" + (
        "here.touch()\nwhile not there.exists(): time.sleep(0.05)\n"
        "threads = os.environ['OMP_NUM_THREADS']\n"
    )
    for name, (here, there) in {"00_first": "ab", "10_second": "ba"}.items():
        code = wait.format(str(tmp_path / here), str(tmp_path / there))
        books(name, f"{code}open({str(books.log)!r}, 'a').write('one ')", after=[])
    books("20_third", f"open({str(books.log)!r}, 'a').write('third ')", after=["00", "10"])
    runner.run("smoke", cohort, workers=2)
    assert books.log.read_text() == "one one third "
    books("10_second", "1", after=[])  # the first does not come after it
    runner.run("smoke", cohort, workers=2)
    assert books.log.read_text() == "one one third third "


def test_what_runs_beside_a_failure_is_finished_and_nothing_else_begins(books, cohort, tmp_path):
    books("00_first", "import time; time.sleep(1); raise ValueError('too bad')", after=[])
    books("10_second", f"import time; time.sleep(3); open({str(books.log)!r}, 'w')", after=[])
    books("20_third", "1", after=["10"])
    with pytest.raises(InputError, match="00_first failed"):
        runner.run("smoke", cohort, workers=2)
    left = sorted(p.name for p in (books.folder / "smoke_mine" / "notebooks").iterdir())
    assert left == ["00_first.failed.ipynb", "10_second.ipynb", "10_second.json"]


def test_an_interruption_ends_the_kernels(books, cohort, tmp_path, monkeypatch):
    stop = f"import os, signal, time; open({str(books.log)!r}, 'w').write(str(os.getpid()))\n"
    books("00_first", stop + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(300)")
    began, before = time.perf_counter(), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run("smoke", cohort)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.perf_counter() - began < 60
    assert not psutil.pid_exists(int(books.log.read_text()))


def test_a_log_file_says_what_a_notebook_does_at_present(books, cohort, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.2)
    books("00_first", "import time; print('step 3 of 9', flush=True); time.sleep(1)")
    runner.run("smoke", cohort, names=["00"])
    lines = capsys.readouterr().out.splitlines()
    assert any(x.startswith("[1/1] 00_first: ") and x.endswith("step 3 of 9") for x in lines)


def test_a_whole_run_ends_with_its_certificate_and_a_verdict(books, cohort, tmp_path):
    books(
        "10_second",
        "from srlib.core.paths import results_dir\n"
        "from srlib.evaluation import results\n"
        "row = dict.fromkeys(results.METRIC_KEY, 'x') | {'metric': 'psnr', 'value': 30.0 + seed}\n"
        "results.record_metrics(results_dir(profile, cohort), [row])",
    )

    def run(*words):
        call = ["run", "--profile", "smoke", "--cohort", str(cohort), *words]
        return CliRunner().invoke(main, call, catch_exceptions=False).output

    folder = books.folder / "smoke_mine"
    assert "there is no reference of this profile and cohort" in run()
    assert (folder / "certificate.json").is_file()
    reference = tmp_path / "results" / "smoke_mine"
    reference.mkdir(parents=True)
    shutil.copy(folder / "metrics.csv", reference)
    assert "verdict: 1 of 1 numbers reproduced\n" in run()  # all is skipped, and judged again
    assert "verdict: 0 of 1 numbers reproduced; 1 are not:\n" in run("--seed", "3")
    assert "verdict" not in run("10")  # of a part of the notebooks nothing is said


def test_missing_outputs_run_again(books, cohort):
    folder = runner.run("smoke", cohort)
    books("00_first", f"open({str(folder / 'made')!r}, 'w').close()", writes=["made"])
    runner.run("smoke", cohort)
    (folder / "made").unlink()
    runner.run("smoke", cohort)
    assert (folder / "made").is_file()


def test_the_first_error_stops_and_is_kept_for_reading(books, cohort):
    books("00_first", "raise ValueError('too bad')")
    with pytest.raises(
        InputError, match=r"00_first failed: ValueError: too bad.*00_first\.failed\.ipynb"
    ):
        runner.run("smoke", cohort)
    left = sorted(p.name for p in (books.folder / "smoke_mine" / "notebooks").iterdir())
    assert left == ["00_first.failed.ipynb"]
    assert not books.log.exists()
    books("00_first", "1")
    runner.run("smoke", cohort)
    left = sorted(p.name for p in (books.folder / "smoke_mine" / "notebooks").iterdir())
    assert left == ["00_first.ipynb", "00_first.json", "10_second.ipynb", "10_second.json"]


def test_a_dead_kernel_is_a_failure(books, cohort):
    books("00_first", "import os; os._exit(3)")
    with pytest.raises(InputError, match="00_first failed"):
        runner.run("smoke", cohort)
    assert not (books.folder / "smoke_mine" / "notebooks" / "00_first.json").exists()


def test_parameters_reach_the_notebook_and_typos_are_refused(books, cohort):
    books("10_second", f"open({str(books.log)!r}, 'a').write(f'{{table}} ')")
    folder = runner.run("smoke", cohort, seed=7, names=["10_second"], parameters={"table": "other"})
    assert books.log.read_text() == "other "
    executed = json.loads((folder / "notebooks" / "10_second.ipynb").read_text())
    expected = {"profile": "smoke", "cohort": str(cohort), "seed": 7, "table": "other"}
    assert executed["metadata"]["papermill"]["parameters"] == expected
    with pytest.raises(
        InputError,
        match="unknown notebook parameter 'sede'; expected one of cohort, profile, seed",
    ):
        runner.run("smoke", cohort, parameters={"sede": 7})


@pytest.mark.parametrize(
    "name, value", [("seed", 7), ("profile", "quick"), ("cohort", "other.csv")]
)
def test_what_says_where_results_go_is_no_further_parameter(books, cohort, name, value):
    """Else one run's numbers would stand in the folder, and under the name, of another."""
    with pytest.raises(InputError, match=f"-p {name}: .*--{name}"):
        runner.run("smoke", cohort, parameters={name: value})
    assert not books.folder.exists()


@pytest.fixture
def scans(tmp_path, noise):
    """A manifest of two scans of one size, uncompressed."""
    rows = ["subject,split,t1"]
    for number, split in enumerate(("train", "test")):
        save_scan(Volume(noise((6, 6, 6), number), np.eye(4)), tmp_path / f"{number}.nii")
        rows.append(f"s{number},{split},{number}.nii")
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "mine.csv"


def test_contents_count_and_neither_times_nor_comments(books, scans, tmp_path, noise, monkeypatch):
    """Other content makes a notebook run again, though size and time are the same."""

    def count():
        runner.run("smoke", scans)
        return books.log.read_text().count("second")

    books("10_second", f"open({str(books.log)!r}, 'a').write('second ')", reads=["checkpoints/*/w"])
    (tmp_path / "table.txt").write_text(
        "1"
    )  # found in the checkout, from another working directory
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    weights = tmp_path / "runs" / "smoke_mine" / "checkpoints" / "run" / "w"
    weights.parent.mkdir(parents=True)
    weights.write_text("1")
    assert (count(), count()) == (1, 1)

    def replace(path, content):
        before = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size

    other = save_scan(Volume(noise((6, 6, 6), 9), np.eye(4)), tmp_path / "other.nii").read_bytes()
    for number, (path, content) in enumerate(
        ((tmp_path / "1.nii", other), (tmp_path / "table.txt", b"2"), (weights, b"2")), 2
    ):
        path.touch()
        assert count() == number - 1, f"{path} was only touched"
        replace(path, content)
        assert (count(), count()) == (number, number), path
    monkeypatch.setattr(runner, "RESULTS_VERSION", 2)
    assert count() == 5


def test_a_scan_replaced_while_a_notebook_runs_is_seen_the_next_time(books, scans, tmp_path):
    scan, other = tmp_path / "1.nii", tmp_path / "0.nii"
    books("00_first", f"import shutil; shutil.copy({str(other)!r}, {str(scan)!r})")
    runner.run("smoke", scans)
    runner.run("smoke", scans)
    assert books.log.read_text() == "second0 second0 "
    runner.run("smoke", scans)
    assert books.log.read_text() == "second0 second0 "


def test_two_runs_into_one_folder_do_not_harm_each_other(books, cohort):
    with ThreadPoolExecutor(2) as both:
        folders = set(both.map(lambda _: runner.run("smoke", cohort), range(2)))
    (folder,) = folders
    assert {p.name for p in (folder / "notebooks").iterdir()} == {
        f"{name}.{kind}" for name in ("00_first", "10_second") for kind in ("ipynb", "json")
    }


def test_without_notebooks_nothing_is_called_done(books, cohort, monkeypatch, tmp_path):
    """As after the installation of a wheel; the working directory's own notebooks do not count."""
    monkeypatch.setattr(runner, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="without its notebooks"):
        runner.run("smoke", cohort)
    assert not books.log.exists() and not books.folder.exists()


def test_a_kernel_starts_where_one_stands_and_relative_paths_mean_the_same(
    books, scans, monkeypatch, tmp_path
):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("SRLIB_RESULTS", "here")
    books(
        "00_first",
        "from srlib.core import paths; import os; print(os.getcwd(), paths.results_root())",
    )
    folder = runner.run("smoke", "../mine.csv", names=["00"])
    assert folder == tmp_path / "sub" / "here" / "smoke_mine"
    text = (folder / "notebooks" / "00_first.ipynb").read_text()
    assert f"{tmp_path / 'sub'} {tmp_path / 'sub' / 'here'}" in text


def test_bad_names_are_refused_before_anything_is_written(books, cohort, tmp_path):
    for wrong in ({"profile": "fast"}, {"names": ["11"]}, {"cohort": tmp_path / "none.csv"}):
        with pytest.raises(InputError):
            runner.run(**{"profile": "smoke", "cohort": cohort, **wrong})
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match=r"empty\.csv: expected a header"):
        runner.run("smoke", tmp_path / "empty.csv")
    assert not books.folder.exists()


def test_an_unwritable_results_folder_is_refused(books, cohort, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write"):
        runner.run("smoke", cohort)


@pytest.fixture
def table(books, scans, tmp_path):
    """A table of cohorts, of a system with scans and of one without; returns its path."""
    path, other = tmp_path / "table.csv", tmp_path / "other.csv"
    other.write_text(scans.read_text().replace("s1,test,1.nii", "s9,test,1.nii"))
    path.write_text(f"system,cohort,scans\nmdcsrn,{scans.name},\nrecnn,other.csv,\nsynthsr,,\n")
    for name, trains in (("00_first", ["recnn"]), ("10_second", ["synthsr"])):
        file = tmp_path / "notebooks" / f"{name}.ipynb"
        book = nbformat.read(file, as_version=4)
        book.metadata["srlib"]["trains"] = trains
        nbformat.write(book, file)
    return path


def test_a_table_of_cohorts_gives_each_system_its_own(table, books, scans, tmp_path, capsys):
    assert read_cohorts(table) == {"mdcsrn": scans, "recnn": tmp_path / "other.csv"}
    places = [cohort_of(table, system) for system in ("recnn", "", "synthsr", "absent")]
    assert places == [tmp_path / "other.csv", scans, "", ""]
    assert read_cohorts(scans) == {} and cohort_of(scans, "recnn") == scans
    assert cohort_of(scans, "recnn", "mine") == "mine"
    folder = runner.run("smoke", table)
    assert folder.name == "smoke_table" and books.log.read_text() == "first "
    assert "10_second: left out by table.csv" in capsys.readouterr().out
    runner.run("smoke", table)
    assert books.log.read_text() == "first "
    scans.write_text(scans.read_text().replace("1.nii", "0.nii"))  # not of the notebook's systems
    runner.run("smoke", table)
    assert books.log.read_text() == "first "
    save_scan(Volume(np.ones((6, 6, 6)), np.eye(4)), tmp_path / "1.nii")
    runner.run("smoke", table)
    assert books.log.read_text() == "first first "


def test_a_missing_cohort_says_how_to_make_it_or_to_leave_the_system_out(table, books):
    table.write_text("system,cohort,layout,scans\nmdcsrn,hcp.csv,hcp,srlib manifest hcp HCP\n")
    with pytest.raises(InputError) as refused:
        runner.run("smoke", table)
    said = str(refused.value)
    assert "row 2: mdcsrn needs" in said and "hcp.csv, which is missing" in said
    assert "make it (srlib manifest hcp HCP), or empty the cell cohort" in said
    assert "\n" not in said and not books.folder.exists()


def test_tables_show_the_test_rows_of_every_cohort(table, scans, tmp_path):
    one, two = (paths.cohort_label(path) for path in (scans, tmp_path / "other.csv"))
    rows = [(one, "s1"), (one, "s0"), (two, "s9"), (two, "s1"), ("elsewhere", "s1")]
    metrics = pd.DataFrame(rows, columns=["dataset", "subject"]).assign(run_id="cubic")
    kept = results.tested(metrics, table)
    assert [*kept.itertuples(index=False, name=None)] == [
        (*rows[index], "cubic") for index in (0, 2, 4)
    ]


def test_paper_says_first_what_trainings_take_and_not_of_those_that_are_done(
    table, books, capsys, monkeypatch
):
    monkeypatch.setattr(
        "srlib.cli.estimate.estimate", lambda plan: [" ".join(e.name for e in plan)]
    )
    runs = ["recnn-paper-s0-other", "recnn_20-paper-s1-other", "srcnn3d-quick-s0-other"]
    done = pd.DataFrame({"run_id": runs, "experiment": ""})
    monkeypatch.setattr(results, "read_runs", lambda folder: done)
    runner.run("paper", table)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == " ".join(n for n in systems.runs("recnn", "paper") if n != "recnn")
