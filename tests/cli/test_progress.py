"""What a run shows while a notebook works, on a terminal and in a log file."""

import sys
import time

import pytest

from srlib.cli import progress
from srlib.cli.progress import Progress


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)


def test_a_log_file_gets_lines_with_the_notebooks_own_bar_and_the_time_left(often, capsys):
    shown = Progress({"a": 100.0, "b": 300.0, "c": 60.0})
    with shown.about("a", "[1/3] a") as report:
        report.write("mdcsrn:  45%|####     | 27/60\r")
        time.sleep(0.3)
        report.ran = True
    first = capsys.readouterr().out
    assert "\r" not in first and "45%|####" in first and "left" not in first
    assert first.splitlines()[0] == "[1/3] a" and first.splitlines()[-1] == "[1/3] a: 0 s"
    with shown.about("b", "[2/3] b") as report:
        time.sleep(0.2)
        report.ran = False
    second = capsys.readouterr().out
    assert "left about 0.0 min, in all 0 min" in second and "45%" not in second
    assert second.splitlines()[-1] == "[2/3] b: unchanged, skipped"
    assert shown.pace["weight"] == 100 and [*shown.weights] == ["c"]


def test_the_time_left_follows_the_pace_of_what_has_run():
    shown = Progress({"a": 100.0, "b": 300.0})
    shown.pace = {"weight": 50.0, "seconds": 100.0}  # twice as slow as elsewhere
    with shown.about("b", "[1/2] b") as report:
        assert shown.left(report) == ", left about 10.0 min, in all 13 min"
        report.began -= 240.0
        assert shown.left(report) == ", left about 6.0 min, in all 9 min"
        shown.workers = 2
        assert shown.left(report) == ", left about 6.0 min, in all 5 min"


def test_a_terminal_has_one_line_that_is_replaced(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = Progress({"a": 1.0})
    with shown.about("a", "[1/1] a") as report:
        report.ran = True
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("\r\033[K[1/1] a")


def test_two_notebooks_share_a_terminals_line_and_have_their_own_in_a_file(
    often, capsys, monkeypatch
):
    shown = Progress({"a": 1.0, "b": 1.0}, workers=2)
    with shown.about("a", "[1/2] a") as one, shown.about("b", "[2/2] b") as two:
        one.write("of a")
        two.write("of b")
        time.sleep(0.3)
        lines = capsys.readouterr().out.splitlines()
        assert {"[1/2] a: 0 s; of a", "[2/2] b: 0 s; of b"} <= {*lines}
        one.ran = two.ran = True
        assert shown.line() == "[1/2] a: 0 s; of a | [2/2] b: 0 s; of b"


def test_an_error_ends_the_reports(often, capsys):
    shown = Progress({"a": 1.0})
    with pytest.raises(ValueError, match="bad"), shown.about("a", "[1/1] a"):
        raise ValueError("bad")
    assert capsys.readouterr().out.splitlines()[-1] == "[1/1] a: failed"
    time.sleep(0.2)
    assert capsys.readouterr().out == ""
