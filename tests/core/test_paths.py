"""Names stay in their folder, no output is an input, and what killed writers left is swept away."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from srlib.core import paths
from srlib.core.paths import InputError, apart, atomic, file_name, sweep, unspoilt


@pytest.mark.parametrize("name", ["a", "sub-01", "a.b c", "größe", "x" * 200])
def test_a_name_of_a_file_is_left_as_it_is(name):
    assert file_name(name, "row 2") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "..a", "\udce9", "../escaped", "/abs", "a/b", "a\\b", "a\nb", "a\0", "x" * 201],
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(InputError, match=r"^row 2: .* cannot name a file"):
        file_name(name, "row 2")


def test_no_output_is_an_input_however_it_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "scan").write_text("a")
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "scan", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("scan")
    monkeypatch.chdir(tmp_path / "folder")
    apart(["../new", tmp_path / "folder"], ["../scan", "gone"])
    for output in ("../scan", "../hard", tmp_path / "soft", "../folder/../scan"):
        with pytest.raises(InputError, match="different files"):
            apart(["../new", output], [tmp_path / "scan"])


def test_a_bit_that_changed_in_a_file_of_pytorch_is_seen(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"a": torch.zeros(400)}, path)
    assert unspoilt(path) == path
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1  # among the numbers, where PyTorch does not look
    path.write_bytes(whole)
    with pytest.raises(OSError, match=r"checksum|CRC"):
        unspoilt(path)


KILLED = """
import os, sys
from srlib.core.paths import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os._exit(9)
"""


@pytest.mark.parametrize("name", ["sr.nii.gz", "x" * 240 + "_sr.nii.gz", "λ" * 120 + "_sr.nii.gz"])
def test_what_a_killed_writer_left_is_swept_and_nothing_of_living_ones(name, tmp_path):
    path, root = tmp_path / name, Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=root)
    (left,) = tmp_path.iterdir()
    sweep(tmp_path, ["other.nii.gz"])
    assert left.exists()
    with atomic(path) as mine:
        mine.write_bytes(b"more")
        sweep(tmp_path, [name])
        assert list(tmp_path.iterdir()) == [mine]
    assert path.read_bytes() == b"more"


def test_what_may_be_of_a_living_process_elsewhere_is_swept_after_a_day(tmp_path):
    with atomic(tmp_path / "a") as temporary:
        temporary.touch()
    number = temporary.name.split("-")[0].lstrip(".")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    elsewhere = [tmp_path / f".{n}-0123456789abcdef.a" for n in (dead.pid, number)]
    for path in elsewhere:
        path.touch()
    sweep(tmp_path, ["a"])
    assert all(path.exists() for path in elsewhere)
    os.utime(elsewhere[0], (time.time() - 2 * paths.DAY,) * 2)
    sweep(tmp_path, ["a"])
    assert [path.exists() for path in elsewhere] == [False, True]
    sweep(tmp_path / "gone", ["a"])


def test_the_hash_of_a_source_is_that_of_its_code_alone(tmp_path, monkeypatch):
    """So that a run goes on after a change in a docstring."""
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "core" / "paths.py"))
    file = tmp_path / "training" / "losses.py"
    file.parent.mkdir()

    def hashed(text):
        file.write_text(text)
        return paths.sources.__wrapped__()["training/losses.py"]

    code = '"""One."""\n\ndef loss(x):\n    """Two."""\n    return x\n'
    same = ('"""1."""\ndef loss(x):  # why\n    "2"\n    return x\n', code + "\n# more\n")
    assert {hashed(text) for text in same} == {hashed(code)}
    assert hashed(code.replace("return x", "return -x")) != hashed(code)


def test_all_code_that_computes_is_part_of_an_identity():
    folder = Path(paths.__file__).parents[1]
    wings = [
        p for wing in ("models", "degradations", "synthesis") for p in folder.glob(f"{wing}/*.py")
    ]
    files = [*wings, folder / "training" / "losses.py", folder / "training" / "games.py"]
    assert paths.sources().keys() == {p.relative_to(folder).as_posix() for p in files}


def test_a_message_is_one_line_of_bounded_length():
    error = InputError("a\nb.nii:\x85  wrong\r\u2028; rename it")
    assert str(error) == "a b.nii: wrong ; rename it"
    long = str(InputError("scan.nii: " + "x" * 10_000 + "; rename it"))
    assert len(long) < paths.LINE and long.startswith("scan.nii: x")
    assert long.endswith("; rename it")


def test_a_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """So that a power cut leaves the old file or the new one."""
    calls, replace, fsync = [], os.replace, os.fsync

    def synced(handle):
        calls.append(("fsync", Path(f"/proc/self/fd/{handle}").resolve().name))
        fsync(handle)

    def replaced(old, new):
        calls.append(("replace", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"new")
    assert calls == [("fsync", temporary.name), ("replace", "a.txt"), ("fsync", tmp_path.name)]


def test_a_content_that_does_not_reach_the_disk_is_not_published(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")

    def refuse(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: Input/output error"):
        paths.write_file(tmp_path / "a.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_writer_sweeps_what_killed_writers_of_its_name_left(tmp_path):
    path, root = tmp_path / "sr.nii.gz", Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=root)
    assert len([*tmp_path.iterdir()]) == 1
    paths.write_file(path, "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["sr.nii.gz"]
