"""Commands that are killed, or refused by the system, leave whole files and go on."""

import subprocess
from pathlib import Path

import pytest

crashes = pytest.importorskip("crashes", reason="needs Unix")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="signals and limits are of Linux"),
]


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    return crashes.prepare(tmp_path_factory.mktemp("inputs"))


QUICK = ["enhance a scan", "enhance a folder", "evaluate", "train", "store", "degrade"]


@pytest.mark.parametrize("name", QUICK)
def test_a_disturbed_command_leaves_whole_files_and_goes_on(name, operations, tmp_path):
    of = {"kill -9": 3, "SIGTERM": 1, "disk full": 2}
    assert crashes.trials(name, operations[name], of, 100, tmp_path) == of


@pytest.mark.parametrize("name", QUICK)
def test_a_folder_that_is_read_only_stays_as_it_is(name, operations, tmp_path):
    (tmp_path / "probe").mkdir()
    try:
        with crashes.read_only(tmp_path / "probe"):
            pass
    except subprocess.CalledProcessError:
        pytest.skip("needs the right to mount")
    of = {"read-only folder": 1}
    assert crashes.trials(name, operations[name], of, 0, tmp_path) == of


def test_what_is_half_written_is_seen(operations, tmp_path):
    operation = operations["degrade"]
    (tmp_path / "lr.nii.gz").write_bytes(b"half")
    assert "is not whole" in crashes.wrong(operation, tmp_path, {})
    (tmp_path / "lr.nii.gz").unlink()
    (tmp_path / ".1-ab.lr.nii.gz").touch()
    assert "left behind" in crashes.wrong(operation, tmp_path, {})
