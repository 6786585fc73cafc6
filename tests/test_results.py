"""Tables keep one row per key, in one order and one format."""

import numpy as np
import pandas as pd
import pytest

from srlib import experiments, results
from srlib.paths import InputError
from srlib.volume import Volume

KEY = {"run_id": "r", "experiment": "cubic", "degradation": "gaussian_x2", "dataset": "d"}


def rows(subject, psnr, experiment="cubic", ssim=0.9):
    quality = {"psnr": psnr, "ssim3d": ssim, "ssim2d": 0.8, "nrmse": 0.1, "sharpness": 0.5}
    key = {**KEY, "experiment": experiment, "subject": subject, "region": "mask"}
    return [{**key, "metric": metric, "value": value} for metric, value in quality.items()]


def test_upsert_keeps_one_row_per_key_in_one_order(tmp_path):
    results.record_metrics(tmp_path, rows("b", 30.0))
    results.record_metrics(tmp_path, rows("a", 31.0))
    results.record_metrics(tmp_path, rows("b", 32.123456789))
    table = results.read_metrics(tmp_path)
    assert list(table[table["metric"] == "psnr"]["value"]) == [31.0, 32.123457]
    before = (tmp_path / "metrics.csv").read_bytes()
    results.record_metrics(tmp_path, [*rows("b", 32.123456789), *rows("a", 31.0)])
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_infinite_values_survive(tmp_path):
    results.record_metrics(tmp_path, rows("a", float("inf")))
    results.record_metrics(tmp_path, rows("b", 1.0))
    assert results.read_metrics(tmp_path)["value"].max() == float("inf")


def test_a_run_that_gives_the_same_again_keeps_its_row(tmp_path):
    cohort, weights = tmp_path / "c.csv", tmp_path / "w"
    cohort.write_text("x")
    weights.write_text("1")
    experiment = experiments.get("mdcsrn", "smoke")

    def record(seconds):
        results.record_run(tmp_path, experiment, "smoke", 0, cohort, weights, "2026-01-01T00:00:00", seconds, "cpu")
        return (tmp_path / "runs.csv").read_bytes()

    first = record(1.0)
    assert record(2.0) == first
    weights.write_text("2")
    assert record(3.0) != first
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 1


def test_summary_is_wide_and_ends_with_the_best(tmp_path):
    results.record_metrics(tmp_path, rows("a", 30.0))
    results.record_metrics(tmp_path, rows("a", 35.0, "net", 0.95))
    table = results.summary(results.read_metrics(tmp_path))
    assert list(table["experiment"]) == ["cubic", "net"]
    text = results.to_text(table, markdown=True)
    assert "| 35.00 |" in text and "0.9500" in text


def test_nothing_recorded_and_foreign_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="srlib run"):
        results.read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected the columns"):
        results.read_metrics(tmp_path)


def test_a_metric_that_no_row_has_is_left_out_of_the_text(tmp_path):
    results.record_metrics(tmp_path, [r | {"value": np.nan} if r["metric"] == "ssim3d" else r for r in rows("a", 30.0)])
    text = results.to_text(results.summary(results.read_metrics(tmp_path)), markdown=True)
    assert "ssim3d" not in text and "nan" not in text and "| 0.8000 |" in text


def test_a_region_without_rows_is_refused(tmp_path):
    results.record_metrics(tmp_path, rows("a", 30.0))
    with pytest.raises(InputError, match="no rows of the region 'centre'; expected one of mask"):
        results.summary(results.read_metrics(tmp_path), "centre")


def test_measured_rows_name_run_region_and_convention(noise):
    truth = Volume(noise((12, 13, 14)) * 5, np.eye(4))
    estimates = {"cubic": truth, "net": truth.with_data(truth.data + 0.1)}
    mask = truth.data > 1
    made = results.measured(truth, estimates, mask, "crop", runs={"net": "net-quick-s0"}, subject="a")
    table = pd.DataFrame(made).set_index(["experiment", "region", "metric"])
    assert set(table.index.get_level_values("region")) == {"crop", "mask"}
    assert set(table.loc["net"]["run_id"]) == {"net-quick-s0"} and set(table.loc["cubic"]["run_id"]) == {"cubic"}
    peak = np.ptp(truth.data)
    assert table.loc[("net", "crop", "psnr"), "value"] == pytest.approx(20 * np.log10(peak / 0.1), abs=1e-3)
    assert table.loc[("cubic", "mask", "psnr"), "value"] == np.inf
    wider = pd.DataFrame(results.measured(truth, estimates, data_range=2 * peak, subject="a"))
    psnr = wider[(wider["experiment"] == "net") & (wider["metric"] == "psnr")]["value"]
    assert psnr.item() == pytest.approx(20 * np.log10(2 * peak / 0.1), abs=1e-3)
