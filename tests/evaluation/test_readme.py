"""The README's tables are those of results/."""

import re
from pathlib import Path

import pytest

from srlib.core.paths import InputError
from srlib.evaluation import readme

ROOT = Path(__file__).parents[2]


def test_the_readme_is_not_stale():
    assert not readme.update(check=True, readme=ROOT / "README.md", results=ROOT / "results"), (
        "run 'make readme'"
    )


def test_a_stale_table_is_seen_and_mended(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(re.sub(r"mdcsrn_res", "other", (ROOT / "README.md").read_text()))
    assert readme.update(check=True, readme=copy, results=ROOT / "results")
    assert readme.update(readme=copy, results=ROOT / "results")
    assert not readme.update(check=True, readme=copy, results=ROOT / "results")


def test_a_table_of_one_subject_holds_its_rows_only(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text("<!-- results:quick:mask:syn07 -->\n<!-- /results -->\n")
    assert readme.update(readme=copy, results=ROOT / "results")
    lines = [line for line in copy.read_text().splitlines() if line.startswith("| gauss")]
    assert lines and all("syn07" in line for line in lines)


def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(InputError, match="marker"):
        readme.update(readme=tmp_path / "README.md", results=ROOT / "results")


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
