"""The tutorial runs as it stands, from the network to its row of the benchmark."""

import re
import warnings
from pathlib import Path

import numpy as np

import srlib
from srlib import systems
from srlib.core.paths import ScanWarning
from srlib.models.registry import MODELS

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-system.md"


def test_the_tutorial_runs(cohort, tmp_path, monkeypatch):
    (tmp_path / "csv").mkdir()
    rows = ["subject,split,t1"]
    rows += [f"{s.name},{s.split},{s.file('t1')}" for s in srlib.read_manifest(cohort)]
    (tmp_path / "csv" / "mine.csv").write_text("\n".join(rows) + "\n")
    truth = srlib.load_scan(srlib.read_manifest(cohort, "test")[0].file("t1"))
    srlib.save_scan(truth, tmp_path / "hr.nii.gz")
    srlib.save_scan(srlib.degrade(truth, "gaussian_x2"), tmp_path / "lr.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "vdsr", None)  # both are as before in the end
    monkeypatch.setitem(systems.EXPERIMENTS, "vdsr", None)
    names = {"__name__": "tutorial"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
    made, lr = srlib.load_scan("sr.nii.gz"), srlib.load_scan("lr.nii.gz")
    assert made.shape == tuple(2 * n for n in lr.shape)
    np.testing.assert_allclose(made.spacing_mm, truth.spacing_mm, rtol=0.05)
    before = srlib.load_model("runs/vdsr/model.safetensors").experiment
    assert before == names["small"]
    of_vdsr = [row for row in names["rows"] if row["experiment"] == "vdsr"]
    assert len({row["degradation"] for row in of_vdsr}) > 5
