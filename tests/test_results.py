"""Tables keep one row per key, in one order and one format."""

import pandas as pd
import pytest

from srlib import experiments, results
from srlib.paths import InputError

KEY = {"run_id": "r", "experiment": "cubic", "degradation": "gaussian_x2", "dataset": "d"}


def rows(subject, psnr):
    quality = {"mask": {"psnr": psnr, "ssim3d": 0.9, "ssim2d": 0.8, "nrmse": 0.1, "sharpness": 0.5}}
    return results.metric_rows(quality, **KEY, subject=subject)


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
    better = results.metric_rows(
        {"mask": {"psnr": 35.0, "ssim3d": 0.95, "ssim2d": 0.9, "nrmse": 0.05, "sharpness": 0.7}},
        **{**KEY, "experiment": "net"},
        subject="a",
    )
    results.record_metrics(tmp_path, better)
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
