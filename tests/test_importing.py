"""The twelve tasks of docs/importing.md: short, and each runs as it stands."""

import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import srlib
from srlib.scans.volume import save_scan

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "importing.md").read_text()
TASKS = re.findall(r"^## (\d+\. [^\n]+)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_there_are_twelve_of_ten_lines_at_most():
    assert [int(title.partition(".")[0]) for title, _ in TASKS] == [*range(1, 13)]
    for title, code in TASKS:
        assert len(list(filter(None, code.splitlines()))) <= 10, title


@pytest.fixture(scope="session")
def home(cohort, tmp_path_factory):
    """A user's folder: scans, manifest, classes of labels, results; networks of a few steps."""
    home = tmp_path_factory.mktemp("home")
    (home / "csv").mkdir()
    rows = ["subject,split,t1,labels"]
    for subject in srlib.read_manifest(cohort):
        scan = srlib.load_scan(subject.file("t1"))
        labels = np.digitize(scan.data, [200, 900]) * 2
        labels = save_scan(scan.with_data(labels), home / f"{subject.name}_labels.nii", dtype="u1")
        rows.append(f"{subject.name},{subject.split},{subject.file('t1')},{labels}")
    (home / "csv" / "mine.csv").write_text("\n".join(rows) + "\n")
    (home / "classes.csv").write_text("label,class\n0,0\n2,1\n4,2\n")
    save_scan(scan, home / "hr.nii.gz")
    save_scan(scan.with_data(scan.data > 200), home / "mask.nii.gz", dtype="u1")
    save_scan(srlib.degrade(scan, "gaussian_x2"), home / "lr.nii.gz")
    save_scan(scan.with_data(scan.data * 0.9), home / "sr.nii.gz")
    for name in ("results", "notebooks"):
        (home / name).symlink_to(ROOT / name)
    train, val = (srlib.read_manifest(home / "csv" / "mine.csv", part) for part in ("train", "val"))
    few = "training.max_steps=2"
    for name, profile, tables in (
        ("mdcsrn_res", "quick", {}),
        ("synthsr_laplace", "smoke", {"classes": home / "classes.csv"}),
    ):
        size = 16 if name == "mdcsrn_res" else 32
        run = home / "trained" / profile / "checkpoints" / f"{name}-{profile}-s0-mine"
        chosen = srlib.systems.get(name, profile, few).changed(start="", patch_size=size)
        srlib.train(chosen, train, val, run, progress=False, **tables)
    return home


@pytest.mark.parametrize(("title", "code"), TASKS, ids=[title for title, _ in TASKS])
def test_a_task_runs_as_it_stands(title, code, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("SRLIB_RESULTS", str(home / "trained"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", srlib.core.paths.ScanWarning)
        exec(compile(code, title, "exec"), {"__name__": "task"})
    plt.close("all")


def test_the_readme_leads_there():
    assert "docs/importing.md" in (ROOT / "README.md").read_text()
