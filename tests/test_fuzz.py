"""Damaged files of every kind are read or refused in a line; ``python -m tests.fuzz`` reads more."""

import json
import os
import signal

import pytest

from srlib.core.paths import InputError
from srlib.models.weights import load_weights, save_weights
from srlib.systems.trained import load_network
from tests import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused(name):
    rows, broken = fuzz.fuzz([name], 6, seed=0)
    assert not broken and len(rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.READERS)
def test_many_damaged_files_are_read_or_refused(name):
    assert not fuzz.fuzz([name], 300, seed=1000)[1]


# what the command found once: reader, seed
FOUND = [
    ("manifest", 8), ("claims", 5), ("networks", 2), ("table of cohorts", 1026), ("matlab", 10188),
    ("matlab", 10319), ("nifti2 scan", 20106), ("dicom series", 1024), ("dicom file", 1008), ("safetensors", 1047),
    ("safetensors", 1052), ("keras hdf5", 1057), ("pytorch pth", 1010), ("patch store", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_what_was_found_once_stays_mended(name, seed):
    assert not fuzz.fuzz([name], 1, seed)[1]


@pytest.mark.parametrize(
    ("raised", "said"),
    [("ValueError", "ValueError: 'x'"), ("SystemExit", "SystemExit"), ("a signal", "crashed")],
)
def test_what_breaks_the_rule_is_seen(monkeypatch, raised, said):
    def read(path):
        if raised == "a signal":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"ValueError": ValueError, "SystemExit": SystemExit}[raised]("x")

    monkeypatch.setitem(fuzz.READERS, "png", fuzz.READERS["png"]._replace(read=read))
    (line,) = fuzz.fuzz(["png"], 1)[1]
    assert said in line and line.startswith("--reader 'png' --seed 0 --count 1")


def test_a_message_of_several_lines_or_without_the_file_is_seen(monkeypatch):
    def read(path):
        raise InputError("a line about no file")

    monkeypatch.setitem(fuzz.READERS, "png", fuzz.READERS["png"]._replace(read=read))
    assert "names the file" in fuzz.fuzz(["png"], 1)[1][0]


@pytest.mark.parametrize("setting", [{"blocks": 10**6}, {"units": 10**6}, {"width": 10**6}])
def test_weights_that_ask_for_a_larger_network_are_refused_before_it_is_built(tmp_path, setting):
    path, described = fuzz._weights(tmp_path), json.loads(fuzz.TINY.to_json())
    network = described["network"]
    (network if "width" in setting else network["model_args"]).update(setting)
    save_weights(load_weights(path), path, {"experiment": json.dumps(described)})
    with pytest.raises(InputError, match=r"fewer weights|allocate"):
        load_network(path)
