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


def test_a_table_has_a_row_for_each_experiment_with_its_rank(copy):
    copy.write_text("<!-- results:quick:centre -->\n<!-- /results -->\n")
    assert readme.update()
    head, _, *rows = [x for x in copy.read_text().splitlines() if x.startswith("|")]
    names = [row.split("|")[2].strip() for row in rows]
    assert len(names) == len({*names, "cubic"}) and "sparse_fbp" in names
    cells = [cell.strip() for cell in head.split("|")[1:-1]]
    assert cells[:5] == ["degradation", "experiment", "rank", "gain", "spread"]


def test_a_readme_without_markers_is_refused(copy):
    copy.write_text("nothing")
    with pytest.raises(InputError, match="marker"):
        readme.update()


def test_outside_a_checkout_there_is_no_readme_to_update(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(
        "<!-- results:quick:crop -->\n<!-- /results -->\n"
    )  # somebody's own
    with pytest.raises(InputError, match="without its README"):
        readme.update()


def test_every_command_in_the_readme_exists():
    from srlib.cli.commands import main

    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^srlib (\w+)", text, re.MULTILINE)) <= set(main.commands)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets
