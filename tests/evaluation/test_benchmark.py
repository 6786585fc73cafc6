"""The benchmark: which systems belong, which cannot run, and its statistics by hand."""

import dataclasses
import filecmp

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from srlib import metrics, systems
from srlib.data.manifest import read_manifest
from srlib.evaluation import benchmark, figures, results
from srlib.models.weights import save_weights
from srlib.scans.volume import central
from srlib.systems.trained import Model, load_model

KEY = {"run_id": "r", "dataset": "d", "region": "middle", "metric": "psnr"}
FINE, COARSE, SECOND = "recnn_x2", "srgan3d_res_subpixel", "recnn_x2_t2"


def untrained(name: str) -> Model:
    experiment = systems.get(name, "smoke")
    network = experiment.network.build(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01 * torch.randn(p.shape))  # or residual networks would give their input back
    return Model(network.eval().requires_grad_(False), experiment)


def table(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Rows of metrics.csv from PSNR by degradation, experiment and subject."""
    return pd.DataFrame(
        {**KEY, "degradation": task, "experiment": name, "subject": f"s{i}", "value": value}
        for task, systems in values.items()
        for name, scans in systems.items()
        for i, value in enumerate(scans)
    )


@pytest.fixture(scope="module")
def measured(cohort):
    """Rows and costs of the first test scan, twice."""
    models = {name: untrained(name) for name in (FINE, COARSE, SECOND)}
    subject = read_manifest(cohort, "test")[0]
    return [
        benchmark.measure(subject, models, 16, runs={FINE: "a run"}, dataset="mine")
        for _ in range(2)
    ]


def test_what_has_no_place_in_the_table():
    names = {n for n, e in systems.EXPERIMENTS.items() if benchmark.belongs(e)}
    assert {"mdcsrn", "recnn_x2x3", "recnn_x2_t2", "srgan3d_res_gan", "synthsr_thick"} <= names
    assert not names & {
        "srresnet_us", "srgan_ct",  # 2-D
        "synthsr_segmenter",  # classes
        "synthsr_case1", "synthsr_case4", "synthsr_any",  # other units, another contrast
        "srgan3d_res_x4", "mdcsrn_f25", "recnn",  # for degradations that are not in it
        "robust", "robust_base",  # comes as shipped
    }  # fmt: skip


def test_systems_without_weights_are_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path))
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path))
    monkeypatch.setattr(benchmark, "published_file", lambda name: None)
    monkeypatch.setattr(benchmark, "shipped_file", lambda name: None)
    found = benchmark.systems(tmp_path / "smoke", "smoke")
    assert set(found.values()) == {None}
    assert (
        next(iter(found)) == "robust"
        and list(found)[-1] == "srcnn3d_published"
        and "mdcsrn_res" in found
    )


def test_systems_take_the_runs_of_their_profile_and_seed_and_published_files(tmp_path, monkeypatch):
    file = tmp_path / "published"
    monkeypatch.setattr(
        benchmark, "published_file", lambda name: file if name.startswith("SRCNN3D") else None
    )
    for run in (
        "recnn_x2-smoke-s0-mine",
        "recnn_x2-smoke-s1-mine",
        "recnn_x2-quick-s0-mine",
        "recnn_x2x3-smoke-s0-m",
    ):
        folder = tmp_path / "checkpoints" / run
        folder.mkdir(parents=True)
        model = untrained(run.split("-")[0])
        save_weights(
            model.network.state_dict(),
            folder / "model.safetensors",
            {"experiment": model.experiment.to_json()},
        )
    found = benchmark.systems(tmp_path, "smoke")
    assert found["recnn_x2"].parent.name == "recnn_x2-smoke-s0-mine" and found["mdcsrn"] is None
    assert found["srcnn3d_published"] == file and found["recnn_published"] is None
    assert load_model(found["recnn_x2x3"], device="cpu").experiment.name == "recnn_x2x3"


def test_each_system_runs_where_it_applies_and_nowhere_else(measured):
    rows = pd.DataFrame(measured[0][0])
    have = rows.groupby("experiment")["degradation"].agg(set)
    assert have[FINE] == have["cubic"] == have["linear"] == set(benchmark.BENCHMARK)
    assert have[COARSE] == {
        "gaussian_x2", "gaussian_x2_sigma0.5", "gaussian_x2_sigma2", "gaussian_x2_noise", "block_x2"
    }  # fmt: skip
    assert SECOND not in have  # these scans have no T2
    assert set(rows["region"]) == {"middle"} and set(rows["run_id"]) == {
        "a run",
        "linear",
        "cubic",
        COARSE,
    }
    psnr = rows[rows["metric"] == "psnr"].pivot(
        index="degradation", columns="experiment", values="value"
    )
    kspace = psnr.index.str.startswith("kspace")
    assert (psnr.loc[kspace, "linear"] == psnr.loc[kspace, "cubic"]).all()
    assert (psnr.loc[~kspace, "linear"] != psnr.loc[~kspace, "cubic"]).all()
    assert psnr["cubic"].nunique() == len(psnr), "every degradation does something else"


def test_the_inner_three_quarters_of_the_cut_are_measured_or_the_whole_scan(measured, cohort):
    subject = read_manifest(cohort, "test")[0]
    whole, _ = benchmark.measure(subject, {}, dataset="mine")
    for rows, middle, inner, region in (
        (measured[0][0], 16, 12, "middle"),
        (whole, 0, 99, "whole"),
    ):
        pair = systems.get(FINE).pairs.make(subject, "gaussian_x3", middle=middle)
        hr, cubic = (central(v, inner).data for v in (pair.hr, pair.on_grid))
        found = {
            r["region"]: r["value"]
            for r in rows
            if (r["degradation"], r["experiment"]) == ("gaussian_x3", "cubic")
            and r["metric"] == "psnr"
        }
        assert found == {region: metrics.psnr(hr, cubic, float(np.ptp(hr)))}


def test_a_second_contrast_runs_where_the_subject_has_it(cohort):
    subject = read_manifest(cohort, "test")[0]
    both = dataclasses.replace(subject, files={**subject.files, "t2": subject.files["t1"]})
    rows, _ = benchmark.measure(
        both, {SECOND: untrained(SECOND), FINE: untrained(FINE)}, 12, dataset="mine"
    )
    assert {r["degradation"] for r in rows if r["experiment"] == SECOND} == set(benchmark.BENCHMARK)


def test_the_same_bytes_twice_and_other_regions_untouched(measured, tmp_path):
    for name, (rows, _) in zip(("one", "two"), measured, strict=True):
        results.record_metrics(tmp_path / name, [{**measured[0][0][0], "region": "volume"}])
        results.record_metrics(tmp_path / name, rows)
        gains = results.paired(results.read_metrics(tmp_path / name).query("region == 'middle'"))
        wide = gains.pivot(index="experiment", columns="degradation", values="mean").reindex(
            ["linear", FINE, "x"]
        )
        figure = figures.heat_map(
            wide,
            baseline=wide.loc[FINE],
            home={(FINE, "gaussian_x2")},
        )
        texts = [t.get_text() for t in figure.axes[0].texts]
        assert len(texts) == 2 * len(benchmark.BENCHMARK)
        figures.save_figure(figure, tmp_path / name / "map.png")
    for file in ("metrics.csv", "map.png"):
        assert filecmp.cmp(tmp_path / "one" / file, tmp_path / "two" / file, shallow=False)
    assert (results.read_metrics(tmp_path / "one")["region"] == "volume").sum() == 1


def test_costs_are_those_of_the_runs(measured):
    costs = pd.DataFrame(measured[0][1])
    assert (costs["s_per_mvoxel"] > 0).all() and costs["experiment"].value_counts()[FINE] == len(
        benchmark.BENCHMARK
    )


def test_paired_differences_by_hand():
    values = {
        "a": {
            "cubic": [30.0, 31.0, 32.0],
            "net": [31.0, 33.0, 35.0],
            "t2": [29.0, 30.5],
            "one": [31.0],
        }
    }
    found = results.paired(table(values)).set_index("experiment")
    assert list(found["n"]) == [3, 3, 2, 1]
    assert (
        found.loc["net", "mean"] == 2
        and found.loc["t2", "mean"] == -0.75
        and found.loc["cubic", "mean"] == 0
    )
    assert (
        found.loc["net", "p"] == 2 ** (1 - 3)
        and found.loc["t2", "p"] == 0.5
        and found.loc["one", "p"] == 1
    )
    assert tuple(found.loc["net", ["low", "high"]]) == (
        1,
        3,
    )  # of 3 scans it is their range: 1/27 > 2.5 %
    assert found.loc["one", ["low", "high"]].isna().all() and np.isnan(found.loc["cubic", "p"])


def test_paired_differences_against_scipy():
    rng = np.random.default_rng(5)
    base, net = rng.normal(30, 2, 12), rng.normal(30.7, 2, 12)
    found = results.paired(table({"a": {"cubic": list(base), "net": list(net)}})).iloc[1]
    interval = stats.bootstrap(
        (net - base,), np.mean, method="percentile", n_resamples=99_999
    ).confidence_interval
    assert found["low"] == pytest.approx(interval.low, abs=0.05)
    assert found["high"] == pytest.approx(interval.high, abs=0.05)
    assert found["p"] == stats.wilcoxon(net, base).pvalue


def test_ranks_by_hand():
    values = {
        "a": {
            "cubic": [30.0, 30.0],
            "net": [33.0, 33.0],
            "linear": [28.0, 28.0],
            "coarse": [40.0, 40.0],
        },
        "b": {"cubic": [30.0, 30.0], "net": [26.0, 26.0], "linear": [30.0, 30.0]},
    }
    found = results.ranks(results.paired(table(values)))
    assert list(found.index) == ["cubic", "net", "linear", "coarse"]
    # in b, cubic and linear share the ranks 1 and 2; coarse does not apply there and has no rank
    assert list(found["mean_rank"][:3]) == [(2 + 1.5) / 2, (1 + 3) / 2, (3 + 1.5) / 2]
    assert np.isnan(found.loc["coarse", "mean_rank"]) and found.loc["coarse", "degradations"] == 1
    assert tuple(found.loc["net", ["mean", "worst", "worst_at"]]) == (-0.5, -4.0, "b")
    assert found.loc["cubic", "worst"] == 0
