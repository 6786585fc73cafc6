"""Names stay in their folder, and no output is an input."""

import os

import pytest

from srlib.paths import InputError, apart, file_name


@pytest.mark.parametrize("name", ["a", "sub-01", "a.b c", "größe", "\udce9", "..a", "x" * 200])
def test_a_name_of_a_file_is_left_as_it_is(name):
    assert file_name(name, "row 2") == name


@pytest.mark.parametrize("name", ["", ".", "..", "../escaped", "/abs", "a/b", "a\\b", "a\nb", "a\0", "x" * 201])
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
