"""The README's tables are those of results/."""

import re
from pathlib import Path

import pytest

from srlib.core.paths import InputError
from srlib.evaluation import readme

ROOT = Path(__file__).parents[2]


def test_the_readme_is_not_stale():
    assert not readme.update(check=True), "run 'make readme'"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A README beside the results, in another checkout."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.setattr(readme, "checkout", lambda: tmp_path)
    return tmp_path / "README.md"


def test_a_stale_table_is_seen_and_mended(copy):
    copy.write_text(re.sub(r"mdcsrn_res", "other", (ROOT / "README.md").read_text()))
    assert readme.update(check=True)
    assert readme.update()
    assert not readme.update(check=True)


def test_a_table_of_one_subject_holds_its_rows_only(copy):
    copy.write_text("<!-- results:quick:mask:syn07 -->\n<!-- /results -->\n")
    assert readme.update()
    lines = [line for line in copy.read_text().splitlines() if line.startswith("| gauss")]
    assert lines and all("syn07" in line for line in lines)


def test_a_readme_without_markers_is_refused(copy):
    copy.write_text("nothing")
    with pytest.raises(InputError, match="marker"):
        readme.update()


def test_outside_a_checkout_there_is_no_readme_to_update(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(
        "<!-- results:quick:mask -->\n<!-- /results -->\n"
    )  # somebody's own
    with pytest.raises(InputError, match="without its README"):
        readme.update()


def test_every_command_in_the_readme_exists():
    from srlib.cli.commands import main

    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^srlib (\w+)", text, re.MULTILINE)) <= set(main.commands)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets
