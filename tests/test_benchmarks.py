"""The benchmarks: every script imports, times in turns and keeps whole rows; none is run at length."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = {"common", "peers", "geometry", "outside"}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_imports_without_the_peers_of_the_extra(script, monkeypatch, name):
    for peer in ("torchio", "monai"):
        monkeypatch.setitem(sys.modules, peer, None)
    module = script(name)
    assert module.__doc__
    assert callable(getattr(module, "run", None)) or name in SHARED


def test_all_scripts_are_run_and_described(script):
    runner = script("run")
    assert {*runner.SCRIPTS, *SHARED, "gpu", "peers_table", "run"} == set(SCRIPTS)
    for name in runner.SCRIPTS:
        assert (FOLDER / f"{name}.py").read_text(encoding="utf-8").count("\n") <= 80, name
    described = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.py`" in described for name in (*runner.SCRIPTS, "gpu", "peers_table"))


def test_calls_take_turns_and_the_median_counts(script):
    common, order = script("common"), []
    waits = iter([0, 0.2, 0, 0, 0, 0.05, 0, 0])

    def call(name):
        order.append(name)
        time.sleep(next(waits))

    seconds = common.interleaved(lambda: call("a"), lambda: call("b"), repeats=3)
    assert order == ["a", "b"] * 4
    assert seconds[0] < 0.04  # the slow rounds are the untimed one and one of three
    assert seconds[1] < 0.04


def test_a_row_is_whole_and_replaces_the_one_with_its_key(script, tmp_path, capsys):
    common, path = script("common"), tmp_path / "results.csv"
    made = common.row(
        "ssim", "ours", "theirs", (2.0, 5.0), packages=("pytest", "no-such"), path=path
    )
    assert made["ratio"] == "2.5"  # of the peer's time to ours
    assert "2.5" in capsys.readouterr().out
    assert "pytest" in made["versions"] and "no-such" not in made["versions"]
    common.row("ssim", "ours, too", "theirs", (1.0, 1.0), path=path)
    common.row("ssim", "ours", "theirs", (1.0, 3.0), path=path)
    first, second = common.read(path)
    assert first["ratio"] == "3" and second["ours"] == "ours, too"
    assert tuple(first) == common.COLUMNS and all(first.values())
    assert int(first["threads"]) == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first["date"])


def test_kept_results_have_every_column_and_one_row_per_key(script):
    common = script("common")
    assert (FOLDER / "results.csv").read_text(encoding="utf-8").startswith(",".join(common.COLUMNS))
    rows = common.read()
    for row in rows:
        assert all(row[name] for name in common.COLUMNS), row
        quotient = float(row["seconds_peer"]) / float(row["seconds_ours"])
        assert float(row["ratio"]) == pytest.approx(quotient, rel=0.02)
    assert len({tuple(row[name] for name in common.KEY) for row in rows}) == len(rows)


def test_the_plain_mdcsrn_is_the_same_network(script):
    plain, ours = script("peers").Plain(k=4), _mdcsrn(width=4)
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-4, atol=1e-4)


def _mdcsrn(width):
    from srlib.models.mdcsrn import MDCSRN

    return MDCSRN(width)


def test_the_plain_stream_cuts_what_ours_cuts(script, monkeypatch, tmp_path):
    from srlib import systems

    stream = script("patch_stream")
    monkeypatch.setattr(stream, "SHAPE", (16, 32, 32))
    monkeypatch.setattr(stream, "SIZE", 16)
    subjects = stream.write_scans(tmp_path)
    experiment = systems.get("mdcsrn").changed(patch_size=16)
    dataset = experiment.examples.open(subjects, experiment.pairs)
    theirs = list(script("peers").plain_patches([subjects[0].file("t1")], 16))
    assert len(theirs) == 4
    for patch, place in zip(theirs, dataset.grid(0), strict=True):
        for ours, other in zip(dataset.read(0, place), patch, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-4)


def test_torchio_makes_an_example_of_the_same_size(script):
    pytest.importorskip("torchio", reason="TorchIO is of the extra [bench]")
    from srlib.scans.volume import Volume

    labels = Volume(np.random.default_rng(0).integers(0, 4, (70, 70, 70)), np.eye(4))
    made = script("synthetic_example").torchio_example(labels, 64)()
    assert [array.shape for array in made] == [(1, 64, 64, 64)] * 2


def test_the_card_is_asked_for_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA card")
    command = [sys.executable, str(FOLDER / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "CUDA" in done.stderr


def test_a_card_would_time_a_step_and_a_head_of_each_system(script):
    gpu, cpu = script("gpu"), torch.device("cpu")
    assert gpu.speed("bf16-mixed", cpu, side=16) > 0
    for name in gpu.SYSTEMS:
        step, what = gpu.training_step(name, "smoke", "32-true", cpu)
        assert what.startswith(f"{name} step") and gpu.flops(step) > 0
        head, what = gpu.head(name, "smoke", cpu, middle=24)
        assert what.startswith(f"{name} head") and gpu.flops(head) > 0


def test_each_metric_answers_to_what_the_table_of_distortions_says(script):
    """On a small phantom: what a metric sees, and what it is blind to."""
    module = script("distortions")
    rows = [row[1:] for row in module.rows("small", module.phantom(48))]
    table = {
        d.partition(":")[0]: dict(zip(module.METRICS, map(float, v), strict=True)) for d, *v in rows
    }
    column = {m: {d: values[m] for d, values in table.items()} for m in module.METRICS}
    assert len(table) == 8
    assert max(column["psnr"], key=column["psnr"].get) == "lost lesion"
    assert column["psnr"]["wrong scale"] < column["psnr"]["ringing"]
    assert min(column["ssim3d"], key=column["ssim3d"].get) == "noise"
    assert column["ssim3d"]["wrong scale"] > 0.98
    assert column["sharpness"]["blur"] < 0.5 < 1.1 < column["sharpness"]["checkerboard"]
    assert column["hfen"]["checkerboard"] < 0.01 < 0.2 < column["hfen"]["blur"]
    assert column["haarpsi"]["blur"] < 0.8 < 0.99 < column["haarpsi"]["checkerboard"]
    axes = [f"resolution_{axis}" for axis in "xyz"]
    for blind in ("blur", "checkerboard", "bias field", "lost lesion", "wrong scale"):
        assert [table[blind][a] for a in axes] == pytest.approx([2, 2, 3], abs=0.1)
    assert [table["shift"][a] for a in axes] == pytest.approx([3, 2, 3], abs=0.2)
    assert [table["ringing"][a] for a in axes] == pytest.approx([3, 3, 4.5], rel=0.15)
    assert max(column["consistency"], key=column["consistency"].get) == "checkerboard"
    least = sorted(column["consistency"], key=column["consistency"].get)[:3]
    assert {*least} == {"noise", "bias field", "wrong scale"}
    kept = (FOLDER.parent / "docs" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert kept[0].split(",") == ["scan", "distortion", *module.METRICS]
    assert [line.split(",")[1] for line in kept[1:]] == [row[0] for row in rows] * 2
