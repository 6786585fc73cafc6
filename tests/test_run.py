"""The runner: order, skipping, refusal, and what it leaves behind when a notebook fails."""

import json

import nbformat
import pytest

from srlib import run as runner
from srlib.paths import InputError


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A checkout of two tiny notebooks; returns a function that replaces the code of one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "root", lambda: tmp_path)
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))

    def write(name, code, writes=()):
        parameters = nbformat.v4.new_code_cell(
            'profile: str = "quick"\nseed: int = 0', metadata={"tags": ["parameters"]}
        )
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        book.metadata = {
            "kernelspec": {"name": "python3", "display_name": "p", "language": "python"},
            "srlib": {"writes": list(writes)},
        }
        nbformat.write(book, folder / f"{name}.ipynb")

    log = tmp_path / "log"
    write("00_first", f"open({str(log)!r}, 'a').write('first ')")
    write("10_second", f"open({str(log)!r}, 'a').write(f'second{{seed}} ')")
    write.log, write.folder = log, tmp_path / "results"
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


def test_missing_outputs_run_again(books, cohort):
    folder = runner.run("smoke", cohort)
    books("00_first", f"open({str(folder / 'made')!r}, 'w').close()", writes=["made"])
    runner.run("smoke", cohort)
    (folder / "made").unlink()
    runner.run("smoke", cohort)
    assert (folder / "made").is_file()


def test_the_first_error_stops_and_is_kept_for_reading(books, cohort):
    books("00_first", "raise ValueError('too bad')")
    with pytest.raises(InputError, match=r"00_first failed: ValueError: too bad.*00_first\.failed\.ipynb"):
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
    folder = runner.run("smoke", cohort, names=["10_second"], parameters={"seed": 7})
    assert books.log.read_text() == "second7 "
    executed = json.loads((folder / "notebooks" / "10_second.ipynb").read_text())
    assert executed["metadata"]["papermill"]["parameters"] == {"profile": "smoke", "seed": 7}
    with pytest.raises(InputError, match="no notebook has a parameter 'sede'; expected one of profile, seed"):
        runner.run("smoke", cohort, parameters={"sede": 7})


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
