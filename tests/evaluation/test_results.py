"""Tables keep one row per key, in one order and one format."""

import contextlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srlib import systems
from srlib.core import paths
from srlib.core.paths import InputError
from srlib.degradations.tasks import TASKS
from srlib.evaluation import results
from srlib.evaluation.markdown import to_text
from srlib.scans.volume import Volume

ROOT = Path(__file__).parents[2]
KEY = {"run_id": "r", "experiment": "cubic", "degradation": "gaussian_x2", "dataset": "d"}


def rows(subject, psnr, experiment="cubic", ssim=0.9):
    quality = {"psnr": psnr, "ssim3d": ssim, "ssim2d": 0.8, "nrmse": 0.1, "sharpness": 0.5}
    key = {**KEY, "experiment": experiment, "subject": subject, "region": "mask"}
    return [{**key, "metric": metric, "value": value} for metric, value in quality.items()]


def subjects(folder, **where):
    table = results.read_metrics(folder)
    for column, value in where.items():
        table = table[table[column] == value]
    return sorted(set(table["subject"]))


def test_what_is_measured_again_replaces_all_that_stood_there_and_nothing_else(tmp_path):
    """A subject that is not measured again, moved to another split or deleted, is gone."""
    others = [r | {"region": "crop"} for r in rows("a", 9.0)] + [
        r | {"degradation": "x3"} for r in rows("a", 9.0)
    ]
    results.record_metrics(
        tmp_path, [*rows("b", 30.0), *rows("a", 31.0), *others, *rows("a", 33.0, "net")]
    )
    results.record_metrics(tmp_path, rows("b", 32.123456789))
    table = results.read_metrics(tmp_path)
    again = table[
        (table["metric"] == "psnr")
        & (table["region"] == "mask")
        & (table["degradation"] == "gaussian_x2")
    ]
    found = list(zip(again["experiment"], again["subject"], again["value"], strict=True))
    assert found == [("cubic", "b", 32.123457), ("net", "a", 33.0)]
    assert subjects(tmp_path, region="crop") == subjects(tmp_path, degradation="x3") == ["a"]
    before = (tmp_path / "metrics.csv").read_bytes()
    results.record_metrics(tmp_path, rows("b", 32.123456789))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    volume = [r | {"region": "volume"} for r in rows("b", 30.0)]
    results.record_metrics(tmp_path, volume)  # without its mask, which was measured with the volume
    assert subjects(tmp_path, region="volume", degradation="gaussian_x2") == ["b"]
    assert subjects(tmp_path, region="mask", degradation="gaussian_x2", experiment="cubic") == []


def test_rows_of_a_fresh_clone_stay_until_they_are_measured_again(tmp_path):
    mine, clone = tmp_path / "mine", tmp_path / "clone"
    results.record_metrics(
        mine, [*rows("a", 30.0), *rows("a", 33.0, "net"), *rows("b", 33.0, "net")]
    )
    clone.mkdir()
    (clone / "metrics.csv").write_bytes((mine / "metrics.csv").read_bytes())
    results.record_metrics(clone, rows("a", 30.0))
    assert (clone / "metrics.csv").read_bytes() == (mine / "metrics.csv").read_bytes()
    results.record_metrics(clone, [r | {"run_id": "r2"} for r in rows("a", 30.0)])
    assert subjects(clone, experiment="net") == ["a", "b"]


def test_rows_of_many_processes_and_threads_all_arrive(tmp_path):
    """Processes record from several threads into one folder; nothing is lost, no lock is left."""
    code = (
        "import sys, threading; from srlib.evaluation import results\n"
        "def record(thread):\n"
        "    for i in range(5):\n"
        "        name = f'run{sys.argv[2]}{thread}{i}'\n"
        "        key = dict(run_id=name, experiment='e', degradation='d', dataset='s', subject='a', region='volume')\n"
        "        results.record_metrics(sys.argv[1], [dict(key, metric='psnr', value=1)])\n"
        "threads = [threading.Thread(target=record, args=(t,)) for t in 'ab']\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
    )
    folder = tmp_path / "one"
    work = [subprocess.Popen([sys.executable, "-c", code, folder, str(n)]) for n in range(3)]
    assert [process.wait(timeout=120) for process in work] == [0, 0, 0]
    names = list(pd.read_csv(folder / "metrics.csv")["run_id"])
    assert names == sorted(f"run{n}{t}{i}" for n in range(3) for t in "ab" for i in range(5))
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.csv", "rows"]
    assert not [
        p
        for p in (folder / "rows" / "metrics").iterdir()
        if p.suffix != ".csv" or p.name.startswith(".")
    ]


def test_who_writes_the_table_looks_again_for_rows_that_came_meanwhile(tmp_path, monkeypatch):
    """Rows that another process records while the table is being written are in it afterwards."""
    atomic, others = paths.atomic, [rows("late", 31.0, "net")]

    @contextlib.contextmanager
    def slow(path):
        with atomic(path) as temporary:
            yield temporary
            if path.name == "metrics.csv" and others:
                results.record_metrics(tmp_path, others.pop())

    monkeypatch.setattr(paths, "atomic", slow)
    results.record_metrics(tmp_path, rows("a", 30.0))
    assert set(pd.read_csv(tmp_path / "metrics.csv")["subject"]) == {"a", "late"}


def test_a_table_that_was_not_written_any_more_is_not_missed(tmp_path):
    results.record_metrics(tmp_path, rows("a", 30.0))
    (tmp_path / "metrics.csv").unlink()
    assert subjects(tmp_path) == ["a"]


def test_infinite_values_survive(tmp_path):
    results.record_metrics(tmp_path, [*rows("a", float("inf")), *rows("b", 1.0)])
    assert results.read_metrics(tmp_path)["value"].max() == float("inf")


def test_a_run_that_gives_the_same_again_keeps_its_row(tmp_path):
    cohort, weights = tmp_path / "c.csv", tmp_path / "w"
    cohort.write_text("x")
    weights.write_text("1")
    experiment = systems.get("mdcsrn", "smoke")

    def record(seconds):
        results.record_run(
            tmp_path,
            experiment,
            cohort=cohort,
            checkpoint=weights,
            run_id="mdcsrn-smoke-s0-c",
            profile="smoke",
            seed=0,
            started="2026-01-01T00:00:00",
            seconds=seconds,
            device="cpu",
        )
        return (tmp_path / "runs.csv").read_bytes()

    first = record(1.0)
    assert record(2.0) == first
    weights.write_text("2")
    assert record(3.0) != first
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 1
    assert not (tmp_path / "metrics.csv").exists()


def test_what_was_measured_of_a_run_goes_with_its_old_weights(tmp_path):
    """Trained to other weights, a run has no rows until it is measured, also in a fresh clone."""
    cohort, weights, experiment = tmp_path / "c.csv", tmp_path / "w", systems.get("mdcsrn", "smoke")
    cohort.write_text("x")
    for folder in (tmp_path / "mine", tmp_path / "clone"):
        weights.write_text("1")
        record = partial(
            results.record_run,
            folder,
            experiment,
            cohort=cohort,
            checkpoint=weights,
            run_id=(name := "mdcsrn-smoke-s0-c"),
            profile="smoke",
            seed=0,
            started="2026-01-01",
            seconds=1.0,
            device="cpu",
        )
        record()
        old = [r | {"run_id": name} for r in rows("a", 30.0, "mdcsrn")]
        results.record_metrics(folder, [*old, *rows("a", 30.0)])
        if folder.name == "clone":
            shutil.rmtree(folder / "rows")
        record()
        assert subjects(folder, run_id=name) == ["a"]
        weights.write_text("2")
        record()
        assert subjects(folder, run_id=name) == [] and subjects(folder) == ["a"]
        assert name not in (folder / "metrics.csv").read_text()
        results.record_metrics(folder, old)
        assert subjects(folder, run_id=name) == ["a"]


def test_the_commit_is_that_of_the_checkout_alone(tmp_path, monkeypatch):
    """The working directory's repository, one around the package or in GIT_DIR is not taken."""
    git = partial(subprocess.run, check=True, capture_output=True, text=True)
    git(["git", "init", "-q", str(tmp_path)])
    words = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-q",
        "--allow-empty",
    ]
    git([*words, "-m", "my thesis"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    (tmp_path / "srlib").mkdir()
    for own in (None, tmp_path / "srlib"):
        monkeypatch.setattr(paths, "checkout", lambda own=own: own)
        assert paths.source_commit() == {"commit": "unknown", "dirty": "unknown"}
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    head = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    assert paths.source_commit() == {"commit": head, "dirty": "no"}


def test_datasets_are_told_apart_and_never_averaged():
    table = pd.DataFrame([*rows("a", 30.0), *({**r, "dataset": "d2"} for r in rows("a", 20.0))])
    found = results.standing(table)
    assert [*found["degradation"]] == ["gaussian_x2, d", "gaussian_x2, d2"]
    assert [*found["psnr"]] == [30.0, 20.0] and [*found["scans"]] == [1, 1]


def test_a_table_shows_of_each_dataset_its_masks_else_whole_scans_else_the_middle_of_images():
    """And no crop, which stands beside whole scans, nor a dataset's scan without a mask."""
    every = [
        *rows("a", 30.0),
        *({**r, "region": "volume"} for r in [*rows("a", 29.0), *rows("b", 28.0)]),
        *({**r, "dataset": "hcp", "region": "volume"} for r in rows("c", 27.0)),
        *({**r, "dataset": "us", "region": "centre"} for r in rows("d", 26.0)),
        *({**r, "region": "crop"} for r in rows("c", 25.0)),
    ]
    shown = results.shown(pd.DataFrame(every)).query("metric == 'psnr'")
    assert dict(zip(shown["subject"], shown["value"], strict=True)) == {"a": 30, "c": 27, "d": 26}
    crops = results.standing(pd.DataFrame(every[-len(rows("c", 25.0)) :]))
    assert [*crops["psnr"]] == [25]


def test_values_that_stand_twice_are_refused_with_what_they_differ_in():
    here = [*rows("a", 30.0), *({**r, "region": "volume"} for r in rows("a", 29.0))]
    with pytest.raises(
        InputError, match=r"a.*cubic.*: more than one region .mask, volume.; choose one"
    ):
        results.wide(here, ["subject", "experiment"])
    assert results.wide([*rows("a", 30.0), *rows("a", 30.0)], ["subject"]).loc["a", "psnr"] == 30.0
    with pytest.raises(InputError, match=r"more than one value .*; choose one of them"):
        results.wide([*rows("a", 30.0), *rows("a", 31.0)], ["subject"])


@pytest.mark.parametrize(
    "column, other", [("region", "volume"), ("dataset", "d2"), ("run_id", "net-quick-s1-d")]
)
def test_paired_differences_are_of_one_region_dataset_and_run(column, other):
    """Also where no value stands twice: the mean over the scans would be of two things."""
    table = [*rows("a", 30.0), *rows("b", 31.0), *rows("a", 33.0, "net")]
    table += [{**r, column: other} for r in rows("b", 33.0, "net")]
    with pytest.raises(InputError, match=f"more than one {column} .*{other}.*choose one"):
        results.paired(pd.DataFrame(table))
    with pytest.raises(
        InputError, match="unknown baseline of psnr 'linear'; expected one of cubic"
    ):
        results.paired(pd.DataFrame(rows("a", 30.0)), "linear")


def test_tables_of_a_cohort_are_of_its_test_subjects_and_of_one_seed(tmp_path):
    (tmp_path / "d.csv").write_text("subject,split,t1\na,test,1\nmoved,train,2\n")
    table = [*rows("a", 30.0), *rows("moved", 30.0), *rows("deleted", 30.0)]
    table += [
        {**r, "run_id": f"net-quick-s{seed}-d"}
        for seed in (0, 1, 10)
        for r in rows("a", 33.0, "net")
    ]
    table += [{**r, "dataset": "images"} for r in rows("image", 30.0)]
    found = results.tested(pd.DataFrame(table), tmp_path / "d.csv")
    assert set(found["subject"]) == {"a", "image"} and found["run_id"].nunique() == 4
    assert set(results.tested(pd.DataFrame(table), tmp_path / "d.csv", 1)["run_id"]) == {
        "r",
        "net-quick-s1-d",
    }


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Maker of manifests in folders; the results of all lie in ``tmp_path / "results"``."""
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))

    def make(place):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("subject,split\n")
        return tmp_path / place

    return make


def test_two_manifests_of_one_name_share_nothing(at, tmp_path, monkeypatch):
    one, two = at("a/mine.csv"), at("b/mine.csv")
    assert paths.results_dir("quick", one).name == "quick_mine"
    other = paths.results_dir("quick", two).name
    assert re.fullmatch(r"quick_mine-[0-9a-f]{8}", other)
    monkeypatch.chdir(tmp_path / "a")
    for _ in range(2):  # for good, and however it is spelled
        for spelled in (one, "mine.csv", "../a/mine.csv", tmp_path / "b" / ".." / "a" / "mine.csv"):
            assert paths.results_dir("smoke", spelled).name == "smoke_mine"
            assert results.run_id("net", "smoke", 1, spelled) == "net-smoke-s1-mine"
        assert results.run_id("net", "quick", 0, two) == "net-quick-s0-" + other.removeprefix(
            "quick_"
        )
    missing = [paths.cohort_label(f"/data/site{site}/cohort.csv") for site in "ab"]
    assert (
        all(re.fullmatch(r"cohort-[0-9a-f]{8}", label) for label in missing)
        and missing[0] != missing[1]
    )


def test_the_first_of_many_at_once_keeps_the_name(at, tmp_path):
    manifests = [at(f"{n}/mine.csv") for n in range(8)]
    (tmp_path / "results").mkdir()
    with ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(paths.cohort_label, manifests * 3))
    assert (
        labels[:8] == labels[8:16] == labels[16:]
        and labels[:8].count("mine") == 1
        and len(set(labels)) == 8
    )


def test_the_built_in_cohort_is_the_checkouts_own_and_no_other_example(at, tmp_path, monkeypatch):
    own = ROOT / "csv" / "example.csv"
    (tmp_path / "link.csv").symlink_to(own)
    for place in (ROOT, ROOT / "notebooks", tmp_path):
        monkeypatch.chdir(place)
        for spelled in ("csv/example.csv", own, tmp_path / "link.csv"):
            assert paths.results_dir("quick", spelled) == tmp_path / "results" / "quick", (
                place,
                spelled,
            )
            assert results.run_id("net", "quick", 0, spelled) == "net-quick-s0-example"
        assert (
            paths.cohort_label("csv/example_us.csv")
            == paths.built_in("csv/example_us.csv")
            == "example_us"
        )
    mine = at("mine/example.csv")
    assert paths.built_in(mine) == "" and paths.results_dir("quick", mine) != paths.results_dir(
        "quick"
    )
    assert re.fullmatch(r"example-[0-9a-f]{8}", paths.cohort_label(mine))
    at("csv/example.csv")  # in the working directory, as a user's project may have it
    assert paths.built_in("csv/example.csv") == ""


def test_a_name_is_not_taken_where_nothing_is_written(at, tmp_path):
    assert results.run_id("net", "quick", 0, at("a/mine.csv")) == "net-quick-s0-mine"
    assert not (tmp_path / "results").exists()


def test_published_files_lie_where_a_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("SRLIB_PUBLISHED", raising=False)
    for folder in (tmp_path / "data" / "published", tmp_path / "theirs"):
        assert paths.published_file("net.h5") is None
        folder.mkdir(parents=True)
        (folder / "net.h5").write_text("")
        assert paths.published_file("net.h5") == folder / "net.h5"
        monkeypatch.setenv("SRLIB_PUBLISHED", str(tmp_path / "theirs"))


def test_the_table_is_wide_and_begins_with_the_best(tmp_path):
    results.record_metrics(tmp_path, [*rows("a", 30.0), *rows("a", 35.0, "net", 0.95)])
    table = results.standing(results.read_metrics(tmp_path))
    assert list(table["experiment"]) == ["net", "cubic"] and list(table["gain"]) == [5.0, 0.0]
    text = to_text(table)
    assert "| 35.00 |" in text and "0.9500" in text


def test_nothing_recorded_and_foreign_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="srlib run"):
        results.read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected the columns"):
        results.read_metrics(tmp_path)
    results.record_metrics(tmp_path / "b", rows("a", 30.0))
    table = tmp_path / "b" / "metrics.csv"
    shutil.rmtree(tmp_path / "b" / "rows")
    whole = table.read_bytes()
    for damaged, said in (
        (whole.replace(b"30.0", b"3O.0"), "no number"),
        (b"\xff\xfe\x00" + whole, "no table|expected the columns"),
        (b"", "no table"),
        (whole + b'"', "no table|no number"),
    ):
        table.write_bytes(damaged)
        with pytest.raises(InputError, match=said) as caught:
            results.read_metrics(tmp_path / "b")
        assert "\n" not in str(caught.value)


def test_a_metric_that_no_row_has_is_left_out_of_the_text(tmp_path):
    results.record_metrics(
        tmp_path, [r | {"value": np.nan} if r["metric"] == "ssim3d" else r for r in rows("a", 30.0)]
    )
    text = to_text(results.standing(results.read_metrics(tmp_path)))
    assert "ssim3d" not in text and "nan" not in text and "| 0.8000 |" in text


def test_a_region_without_rows_is_refused(tmp_path):
    results.record_metrics(tmp_path, rows("a", 30.0))
    with pytest.raises(InputError, match="unknown region 'centre'; expected one of mask"):
        results.standing(results.read_metrics(tmp_path), "centre")


def test_measured_rows_name_run_region_and_convention(noise):
    truth = Volume(noise((12, 13, 14)) * 5, np.eye(4))
    estimates = {"cubic": truth, "net": truth.with_data(truth.data + 0.1)}
    mask = truth.data > 1
    made = results.measured(
        truth, estimates, mask=mask, region="crop", runs={"net": "net-quick-s0"}, subject="a"
    )
    table = pd.DataFrame(made).set_index(["experiment", "region", "metric"])
    assert set(table.index.get_level_values("region")) == {"crop", "mask"}
    assert set(table.loc["net"]["run_id"]) == {"net-quick-s0"} and set(
        table.loc["cubic"]["run_id"]
    ) == {"cubic"}
    peak = np.ptp(truth.data)
    assert table.loc[("net", "crop", "psnr"), "value"] == pytest.approx(
        20 * np.log10(peak / 0.1), abs=1e-3
    )
    assert table.loc[("cubic", "mask", "psnr"), "value"] == np.inf
    wider = pd.DataFrame(results.measured(truth, estimates, data_range=2 * peak, subject="a"))
    psnr = wider[(wider["experiment"] == "net") & (wider["metric"] == "psnr")]["value"]
    assert psnr.item() == pytest.approx(20 * np.log10(2 * peak / 0.1), abs=1e-3)


def test_printed_figures_stand_beside_ours_with_both_conventions(tmp_path):
    key = {"dataset": "d", "run_id": "r", "degradation": "kspace_x5_inplane_12bit"}
    rows = [
        {**key, "experiment": name, "subject": s, "region": region, "metric": "psnr", "value": v}
        for name, region, s, v in (
            ("mdcsrn_published", "crop_printed", "a", 30.0),
            ("mdcsrn_published", "crop_printed", "b", 32.0),
            ("mdcsrn_published", "crop", "a", 11.0),
            ("mdcsrn_wgan_clip", "volume", "a", 12.0),
        )
    ]
    assert results.beside_printed(tmp_path, "mDCSRN")["ours_mean"].isna().all()
    results.record_metrics(tmp_path, rows)
    table = results.beside_printed(tmp_path, "mDCSRN").set_index(["method", "metric"])
    first = table.loc[("generator at 250k steps", "psnr")]
    assert (first["mean"], first["ours_mean"], first["ours_scans"]) == (30.02, 31.0, 2)
    assert "14.2" in first["conventions"] and "range 1" in first["ours_conventions"]
    assert np.isnan(table.loc[("generator at 250k steps", "ssim"), "ours_mean"])
    assert set(table.loc["independent re-run", "ours_conventions"].isna()) == {True}
    every = pd.read_csv(paths.root() / "csv" / "reported.csv")["ours"].dropna().str.split()
    assert set(every.str[2]) <= set(results.CONVENTIONS)
    for name, task in zip(every.str[0], every.str[1], strict=True):
        assert name in {*systems.EXPERIMENTS, "cubic", "sparse_fbp"} or name.endswith("_published")
        assert task in TASKS


def test_two_values_of_one_number_are_refused(tmp_path):
    row = rows("one", 30.0, "net")[0]
    with pytest.raises(InputError, match="more than one value"):
        results.record_metrics(tmp_path, [row, {**row, "value": 31.0}])
    results.record_metrics(tmp_path, [row, row])


def test_without_interpolation_psnr_ranks_and_without_psnr_a_line_says_so():
    both = (("good", 40.0), ("bad", 20.0))
    found = [row for name, psnr in both for k in range(3) for row in rows(f"s{k}", psnr + k, name)]
    table = pd.DataFrame(found)
    standing = results.standing(table)
    assert [*zip(standing["experiment"], standing["rank"], strict=True)] == [
        ("good", "1"),
        ("bad", "2"),
    ]
    with pytest.raises(InputError, match="psnr"):
        results.standing(table[table["metric"] != "psnr"])
