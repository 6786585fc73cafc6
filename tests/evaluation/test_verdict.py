"""The verdict on a run: what it calls reproduced, what it calls wrong, and the certificate."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from srlib import metrics
from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.data.manifest import read_manifest
from srlib.degradations import tasks
from srlib.evaluation import benchmark, certificate, figures, results, verdict

TRAINED = ("mdcsrn_res", "srgan3d_res_subpixel", "srgan3d_res_nn_resize")


def numbers(seed, *, shift=0.0, names=TRAINED, spread=0.2):
    """Rows as a run of one seed records them: an interpolation, and networks that depend on it."""
    rng, rows = np.random.default_rng(int(seed)), []
    key = {"degradation": "gaussian_x2", "dataset": "mine", "region": "crop"}
    for place, name in enumerate(("cubic", *names)):
        own = 0 if name == "cubic" else rng.normal(0, spread)
        run = name if name == "cubic" else f"{name}-quick-s{seed}-example"
        for scan in ("a", "b"):
            for metric, value in (("psnr", 28 + place + own), ("ssim3d", 0.9 + own / 100)):
                value += shift * (metric == "psnr")
                place_of = {"run_id": run, "experiment": name, "subject": scan, "metric": metric}
                rows.append({**key, **place_of, "value": value})
    return rows


def write(folder, *seeds, **how):
    for seed in seeds:
        results.record_metrics(folder, numbers(seed, **how))
    return folder


@pytest.fixture
def reference(tmp_path):
    return write(tmp_path / "reference", 0, 1, 2)


def test_the_reference_reproduces_itself_and_says_so(reference):
    table = verdict.compare(reference, [reference])
    assert table["reproduced"].all()
    assert verdict.verdict(table) == ["verdict: 40 of 40 numbers reproduced"]


def test_another_seed_is_reproduced_as_often_as_the_interval_says(tmp_path):
    """Of 200 tasks' further seeds 99 % lie inside; the interval is no wider than that."""
    drawn = np.random.default_rng(0).normal(0, 0.3, (200, 4, len(TRAINED)))
    where = {"dataset": "e", "subject": "s", "region": "crop", "metric": "psnr"}
    rows = [
        {"run_id": f"{n}-quick-s{seed}-e", "experiment": n, "degradation": f"t{task}", **where}
        | {"value": 30 + drawn[task, seed, place]}
        for task, seed in np.ndindex(200, 4)
        for place, n in enumerate(TRAINED)
    ]
    rows = pd.DataFrame(rows)[results.METRIC_COLUMNS]
    for name, part in rows.groupby(rows["run_id"].str.contains("-s3-")):
        (tmp_path / f"{name}").mkdir()
        part.to_csv(tmp_path / f"{name}" / "metrics.csv", index=False)
    inside = verdict.compare(tmp_path / "True", [tmp_path / "False"])["reproduced"]
    assert len(inside) == 600 and 0.975 < inside.mean() < 1


def test_what_needs_no_training_must_agree_closely(reference, tmp_path):
    for shift, good in ((0.004, True), (0.006, False)):
        run = write(tmp_path / f"{shift}", 0, names=(), shift=shift)
        table = verdict.compare(run, [reference]).dropna(subset="value")
        assert table.query("metric == 'psnr'")["reproduced"].eq(good).all()
        assert table.query("metric == 'ssim3d'")["reproduced"].all()
    lines = verdict.verdict(verdict.compare(run, [reference]))
    assert lines[0] == "verdict: 2 of 4 numbers reproduced; 2 are not:"
    assert "cubic, gaussian_x2, a, crop, psnr: 28.0060, reference 28.0000" in lines[1]
    assert lines[-1] == "12 numbers of the reference are missing in this run"


@pytest.mark.parametrize(
    "name, form",
    [("mdcsrn", "image"), ("mdcsrn_res", "residual"), ("srgan3d_x2", "image")]
    + [(name, "residual") for name in ("recnn_x2", "recnn_x2_t2", "synthsr_thick", "srgan_us_res")],
)
def test_networks_that_add_to_their_input_are_of_one_form(name, form):
    rows = pd.DataFrame(numbers(0, names=(name,)))
    assert {*verdict._keyed(rows)["form"]} == {"untrained", form}


def test_three_seeds_that_agree_by_chance_do_not_make_an_interval_of_nothing(tmp_path):
    reference = write(tmp_path / "reference", 0, 1, 2, spread=0.0)
    run = write(tmp_path / "run", 7, spread=0.02)
    assert verdict.compare(run, [reference]).dropna(subset="value")["reproduced"].all()
    far = write(tmp_path / "far", 7, spread=0.0, shift=1.0)
    wrong = verdict.compare(far, [reference]).query("metric == 'psnr' and seed == '7'")
    assert not wrong["reproduced"].any()


def test_what_only_one_side_has_is_counted_and_not_judged(reference, tmp_path):
    run = write(tmp_path / "run", 0, names=(*TRAINED, "mine"))
    lines = verdict.verdict(verdict.compare(run, [reference]))
    assert lines == [
        "verdict: 16 of 16 numbers reproduced",
        "4 numbers of this run are not in the reference",
    ]
    other = tmp_path / "other"
    rows = [{**row, "dataset": "other"} for row in numbers(0)]
    results.record_metrics(other, rows)
    (line,) = verdict.verdict(verdict.compare(other, [reference]))[:1]
    assert line == "verdict: no number of this run is in the reference"


def broken_gaussian(monkeypatch):
    wide = "gaussian", {"factor": (3, 3, 3), "sigma": 1.2}
    monkeypatch.setitem(tasks.TASKS, "gaussian_x3", wide)


def broken_ssim(monkeypatch):
    monkeypatch.setattr(metrics, "RADIUS", 4)  # windows of 9


@pytest.mark.parametrize("fault", [None, broken_gaussian, broken_ssim])
def test_a_deliberate_fault_turns_rows_red(cohort, tmp_path, monkeypatch, fault):
    """A Gaussian of sigma 1.2 for 1.0 and an SSIM of another window: the numbers that they touch."""

    def measure(folder):
        subject = read_manifest(cohort, "test")[0]
        rows, _ = benchmark.measure(subject, {}, 24, dataset="mine")
        results.record_metrics(folder, rows)
        return folder

    reference = measure(tmp_path / "reference")
    if fault:
        fault(monkeypatch)
    table = verdict.compare(measure(tmp_path / "run"), [reference])
    wrong = table[~table["reproduced"]]
    if fault is None:
        assert wrong.empty
    elif fault is broken_ssim:
        similarity = table[table["metric"].str.startswith("ssim")]
        assert {*wrong["metric"]} == {"ssim3d", "ssim2d"} and len(wrong) > 0.8 * len(similarity)
    else:
        assert {*wrong["degradation"]} == {"gaussian_x3"}
        assert {"psnr", "ssim3d", "nrmse"} <= {*wrong["metric"]}


@pytest.fixture
def run(reference, tmp_path, cohort):
    """A certified run of a further seed."""
    folder = write(tmp_path / "run", 4)
    weights = folder / "checkpoints" / "net-quick-s4-example" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    certificate.write(folder, cohort)
    return folder


def test_a_certificate_travels_and_sees_what_was_changed(run, cohort, tmp_path):
    content = json.loads((run / "certificate.json").read_text())
    assert {"commit", "dirty", "processor", "threads", "versions", "manifest"} <= content.keys()
    listed = {entry["comment"] for entry in content["manifest"]}
    assert listed == {"rows", "trainings", "weights", "manifest", "scan"} - {"trainings"}
    scans = sum(len(subject.files) for subject in read_manifest(cohort))
    assert len(content["manifest"]) == scans + 3
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "run"))
    (line,) = certificate.check(moved)
    assert line.endswith(f"{scans + 3} of {scans + 3} files are here")
    (moved / "checkpoints" / "net-quick-s4-example" / "model.safetensors").write_bytes(b"other")
    shutil.rmtree(moved / "rows")
    _, second = certificate.check(moved)
    assert "model.safetensors differs" in second
    for damaged in ("{", "[]", '{"manifest": [1]}', "\udcff"):
        (moved / "certificate.json").write_text(damaged, errors="surrogateescape")
        with pytest.raises(InputError, match="damaged certificate") as caught:
            certificate.check(moved)
        assert "\n" not in str(caught.value)


def test_the_command_prints_the_verdict_and_fails_only_when_strict(run, reference, tmp_path):
    def call(*words):
        return CliRunner().invoke(main, ["compare", *map(str, words)])

    good = call(run, reference, "--strict")
    assert good.exit_code == 0, good.output
    assert "verdict: 16 of 16 numbers reproduced" in good.output
    bad = write(tmp_path / "bad", 3, shift=3.0)
    assert call(bad, reference).exit_code == 0
    strict = call(bad, reference, "--strict")
    assert strict.exit_code == 1 and "8 are not:" in strict.output
    assert "no certificate.json" in strict.output
    nothing = call(tmp_path / "none", reference)
    assert nothing.exit_code == 1 and "nothing was measured yet" in nothing.output
    unknown = call(tmp_path / "run_x")
    assert unknown.exit_code == 1


def test_the_figure_shows_each_network_against_its_interval(run, reference):
    table = verdict.compare(run, [reference])
    figure = figures.intervals(verdict.means(table), "PSNR (dB)")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        f"gaussian_x2 (crop)  {name}" for name in sorted(["cubic", *TRAINED])
    ]
    assert figure.png().startswith(b"\x89PNG")


def test_ranks_are_shared_by_what_the_seeds_cannot_tell_apart():
    rows = pd.DataFrame([row for seed in (0, 1, 2) for row in numbers(seed, spread=0.01)])
    table = results.standing(rows.drop_duplicates(results.METRIC_KEY), "crop")
    assert [*table["experiment"]] == [*reversed(TRAINED), "cubic"]
    assert [*table["rank"]] == ["1", "2", "3", "4"]
    assert table["gain"].iloc[:3].to_numpy() == pytest.approx([3, 2, 1], abs=0.05)
    assert [*table["seeds"]] == [3, 3, 3, 1] and [*table["scans"]] == [2] * 4
    rows = pd.DataFrame([row for seed in (0, 1, 2) for row in numbers(seed, spread=3.0)])
    tied = results.standing(rows.drop_duplicates(results.METRIC_KEY), "crop")
    assert "1-2" in [*tied["rank"]] or "1-3" in [*tied["rank"]]


def test_the_seed_is_the_runs_own_and_not_a_part_of_the_manifests_name():
    runs = [f"mdcsrn_res-quick-s{seed}-adni-s1-x" for seed in (0, 3)]
    found = verdict._keyed(pd.DataFrame({"run_id": runs, "experiment": "mdcsrn_res"}))
    assert [*found["seed"]] == ["0", "3"] and found["run_id"].nunique() == 1
