"""Damaged files of every kind are read or refused in a line; ``python -m tests.fuzz`` reads more."""

import pytest

from tests import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused(name):
    rows, broken = fuzz.fuzz([name], 8, seed=0)
    assert not broken and len(rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.READERS)
def test_many_damaged_files_are_read_or_refused(name):
    assert not fuzz.fuzz([name], 300, seed=1000)[1]


# what the command found once: reader, seed
FOUND = [
    ("manifest", 8), ("claims", 5), ("networks", 2), ("table of cohorts", 1026), ("matlab", 10188),
    ("matlab", 10319), ("nifti2 scan", 20106), ("dicom series", 1024), ("safetensors", 1047),
    ("safetensors", 1052), ("keras hdf5", 1057), ("pytorch pth", 1010), ("patch store", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_what_was_found_once_stays_mended(name, seed):
    assert not fuzz.fuzz([name], 1, seed)[1]


@pytest.mark.parametrize(
    ("raised", "said"),
    [("ValueError", "ValueError: 'x'"), ("SystemExit", "SystemExit"), ("os.abort", "crashed")],
)
def test_what_breaks_the_rule_is_seen(monkeypatch, raised, said):
    import os

    def read(path):
        if raised == "os.abort":
            os.abort()
        raise {"ValueError": ValueError, "SystemExit": SystemExit}[raised]("x")

    monkeypatch.setitem(fuzz.READERS, "png", fuzz.READERS["png"]._replace(read=read))
    (line,) = fuzz.fuzz(["png"], 1)[1]
    assert said in line and line.startswith("--reader 'png' --seed 0 --count 1")


def test_a_message_of_several_lines_or_without_the_file_is_seen(monkeypatch):
    def read(path):
        raise fuzz.InputError("a line about no file")

    monkeypatch.setitem(fuzz.READERS, "png", fuzz.READERS["png"]._replace(read=read))
    assert "names the file" in fuzz.fuzz(["png"], 1)[1][0]
