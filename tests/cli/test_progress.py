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
    with shown.about("a", "[1/3] a") as ran:
        shown.write("mdcsrn:  45%|####     | 27/60\r")
        time.sleep(0.3)
        ran.append(True)
    first = capsys.readouterr().out
    assert "\r" not in first and "45%|####" in first and "left" not in first
    assert first.splitlines()[0] == "[1/3] a" and first.splitlines()[-1] == "[1/3] a: 0 s"
    with shown.about("b", "[2/3] b") as ran:
        time.sleep(0.2)
        ran.append(False)
    second = capsys.readouterr().out
    assert "left about 0.0 min, in all 0 min" in second and "45%" not in second
    assert second.splitlines()[-1] == "[2/3] b: unchanged, skipped"
    assert shown.pace["weight"] == 100 and [*shown.weights] == ["c"]


def test_the_time_left_follows_the_pace_of_what_has_run():
    shown = Progress({"a": 100.0, "b": 300.0})
    shown.pace = {"weight": 50.0, "seconds": 100.0}  # twice as slow as elsewhere
    assert shown._left("b", 0.0) == ", left about 10.0 min, in all 13 min"
    assert shown._left("b", 240.0) == ", left about 6.0 min, in all 9 min"


def test_a_terminal_has_one_line_that_is_replaced(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = Progress({"a": 1.0})
    with shown.about("a", "[1/1] a") as ran:
        ran.append(True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("\r\033[K[1/1] a")


def test_an_error_ends_the_reports(often, capsys):
    shown = Progress({"a": 1.0})
    with pytest.raises(ValueError, match="bad"), shown.about("a", "[1/1] a"):
        raise ValueError("bad")
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().out == ""
