"""The pages say what is tracked: tables, links and commands."""

import re
from pathlib import Path

import pages
import pandas as pd
import pytest

from srlib.cli.commands import main
from srlib.core.paths import InputError

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("docs/*.md"),
    *(ROOT / name / "README.md" for name in ("csv", "results", "benchmarks")),
]


def test_the_tables_are_those_of_results():
    assert not pages.update(check=True), "run 'make pages'"


def test_a_stale_table_is_seen_and_mended(tmp_path):
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    for page in pages.PAGES:
        text = (ROOT / page).read_text().replace("| mdcsrn_res ", "| other ")
        (tmp_path / page).write_text(text.replace("| two processes ", "| other "))
    assert pages.update(tmp_path, check=True) == [*pages.PAGES]
    assert pages.update(tmp_path) == [*pages.PAGES]
    assert pages.update(tmp_path, check=True) == []
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


@pytest.mark.parametrize("text", ["nothing", "<!-- table verdicts -->\n"])
def test_a_page_without_whole_markers_is_refused(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(InputError, match=r"README\.md: expected <!-- table"):
        pages.update(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_tables_have_the_rows_that_their_markers_name():
    table = pages.standing("quick", "centre")
    assert [*table.columns[:5]] == ["degradation", "experiment", "rank", "gain", "spread"]
    assert table["experiment"].eq("sparse_fbp").sum() == 1
    common = pages.standing("quick", "crop", "gaussian_x2")
    assert common["experiment"].is_unique and len(common) <= 12
    assert len(pages.verdicts()) <= 25
    assert {"mDCSRN", "SRReCNN3D", "SRResNet2D"} == {*pages.printed()["system"]}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_numbers_outside_the_readme_s_tables_are_quoted():
    """Speeds are ratios of the tracked benchmark; a verdict is one that results/README.md has."""
    text = (ROOT / "README.md").read_text()
    ratios = pd.read_csv(ROOT / "benchmarks" / "results.csv")["ratio"]
    speeds = re.findall(r"([\d.]+) times as ", text)
    assert len(speeds) == 3
    for said in speeds:
        digits = len(said.partition(".")[2])
        assert said in {f"{ratio:.{digits}f}" for ratio in ratios}
    (verdict,) = re.findall(r"[\d,]+ of [\d,]+ numbers reproduced", text)
    assert verdict in (ROOT / "results" / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page):
    text = page.read_text()
    assert {*re.findall(r"^srlib (\w+)", text, re.MULTILINE)} <= {*main.commands}
    targets = {*re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    assert {*re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)} <= targets
