"""Claims are decided by what seeds and scans show, no more and no less."""

import numpy as np
import pandas as pd
import pytest

from srlib.core.paths import InputError
from srlib.evaluation import claims, results
from srlib.evaluation.claims import FAILS, HOLDS, OPEN, PART

SCANS = [f"syn{n:02d}" for n in range(7, 19)]
SEEDS = [str(n) for n in range(claims.SEEDS)]
BETTER = "psnr: new@task > old@task by 0.1"


def make_rows(rng, effect=0.0, *, seeds=SEEDS, by_seed=0.1, by_scan=0.1, rest=0.05, second=SEEDS):
    """Rows of two networks; the difference varies with the seed, with the scan, and by itself."""
    found = []
    for network, own in (("new", seeds), ("old", second)):
        new = network == "new"
        shift = effect * new + by_seed / 2**0.5 * rng.standard_normal((len(own), 1))
        values = 30 + shift + by_scan * new * rng.standard_normal(len(SCANS))
        values = values + rest / 2**0.5 * rng.standard_normal((len(own), len(SCANS)))
        for seed, line in zip(own, values, strict=True):
            key = {"network": network, "seed": seed, "degradation": "task", "metric": "psnr"}
            found += [{**key, "subject": s, "value": v} for s, v in zip(SCANS, line, strict=True)]
    return pd.DataFrame(found)


def ledger(*criteria):
    return pd.DataFrame({"claim": [f"c{n}" for n in range(len(criteria))], "criterion": criteria})


def verdicts(rows, *criteria):
    table = ledger(*criteria)
    return [*claims.judged(table, claims.decide(table, rows))["verdict"]]


def test_a_planted_difference_is_found_and_a_planted_null_is_not():
    """0.3 dB, in 95 of 100 draws of five seeds (of 0.08 dB) and twelve scans (of 0.1 dB)."""
    criterion, found, false = "psnr: new@task > old@task by 0", 0, 0
    for draw in range(100):
        rng = np.random.default_rng(draw)
        found += verdicts(make_rows(rng, 0.3, by_seed=0.08), criterion) == [HOLDS]
        false += verdicts(make_rows(rng, 0.0, by_seed=0.08), criterion) == [HOLDS]
    assert found >= 95 and false <= 5


def test_the_mean_of_crossed_effects_has_the_error_that_many_draws_show():
    rng, means, errors = np.random.default_rng(0), [], []
    for _ in range(2000):
        values = 0.3 * rng.standard_normal((5, 1)) + 0.2 * rng.standard_normal(12)
        mean, error, _ = claims.crossed(values + 0.1 * rng.standard_normal((5, 12)))
        means.append(mean)
        errors.append(error)
    assert np.mean(np.square(errors)) == pytest.approx(np.var(means), rel=0.1)


@pytest.mark.parametrize("shape", [(1, 12), (5, 1)])
def test_one_seed_or_one_scan_leaves_an_ordinary_t_test(shape):
    values = np.random.default_rng(0).standard_normal(shape)
    mean, error, freedom = claims.crossed(values)
    assert mean == pytest.approx(values.mean()) and freedom == values.size - 1
    assert error == pytest.approx(values.std(ddof=1) / values.size**0.5)
    assert np.isnan(claims.crossed(values[:1, :1])[1])


def test_the_interval_holds_the_mean_about_as_often_as_it_says():
    """The bootstrap of few seeds is too narrow, as its docstring says, but not by much."""
    held = 0
    for draw in range(200):
        rng = np.random.default_rng(draw)
        values = 0.1 * rng.standard_normal((10, 1)) + 0.2 * rng.standard_normal(30)
        low, high = claims.interval(values + 0.1 * rng.standard_normal((10, 30)))
        held += low < 0 < high
    assert 0.85 <= held / 200 <= 0.98


def test_the_four_verdicts():
    rng = np.random.default_rng(0)
    better, worse = make_rows(rng, 1.0), make_rows(rng, -1.0)
    assert verdicts(better, BETTER) == [HOLDS]
    assert verdicts(worse, BETTER) == [FAILS]
    assert verdicts(better, f"{BETTER}; psnr: new@task > old@task by 3") == [PART]
    assert verdicts(make_rows(rng, 0.1), BETTER) == [OPEN]
    assert verdicts(better.query("network == 'new'"), BETTER) == [OPEN]  # no evidence
    assert verdicts(better.query("seed != '4'"), BETTER) == [OPEN]  # not enough


def test_the_same_means_within_the_margin():
    rng, same = np.random.default_rng(0), "psnr: new@task = old@task within 0.5"
    assert verdicts(make_rows(rng, 0.0), same) == [HOLDS]
    assert verdicts(make_rows(rng, 2.0), same) == verdicts(make_rows(rng, -2.0), same) == [FAILS]
    assert verdicts(make_rows(rng, 0.5), same) == [OPEN]


def test_a_verdict_that_one_seed_carries_holds_in_part_at_most():
    rows = make_rows(np.random.default_rng(0), 1.0, by_seed=0.02)
    parts = claims.decide(ledger(BETTER), rows)
    assert parts["steady"].all()
    parts["steady"] = False
    assert [*claims.judged(ledger(BETTER), parts)["verdict"]] == [PART]
    rows.loc[(rows["seed"] == "2") & (rows["network"] == "new"), "value"] -= 5
    assert not claims.decide(ledger(BETTER), rows)["steady"].any()


def test_an_untrained_method_needs_no_seeds_and_stands_beside_every_one():
    rng = np.random.default_rng(0)
    one = make_rows(rng, 1.0, second=[""])
    assert verdicts(one, BETTER) == [HOLDS]
    assert verdicts(make_rows(rng, 1.0, seeds=[""], second=[""]), BETTER) == [HOLDS]
    parts = claims.decide(ledger(BETTER), one)
    assert parts[["seeds", "scans"]].to_numpy().tolist() == [[5, 12]]


def test_real_heads_are_apart_from_synthetic_ones():
    rows = make_rows(np.random.default_rng(0), 1.0)
    real = rows[rows["subject"] == SCANS[0]].assign(subject="mni152")
    worse = real.assign(value=real["value"] - 10 * (real["network"] == "new"))
    both = pd.concat([rows, worse])
    assert verdicts(both, BETTER, f"{BETTER} on mni152") == [HOLDS, FAILS]
    assert claims.decide(ledger(BETTER), both)["scans"].item() == 12


def test_a_spread_over_seeds_is_compared():
    rng = np.random.default_rng(0)
    rows = make_rows(rng, by_seed=0.02, rest=0.01)
    wild = rows["network"] == "new"
    rows.loc[wild, "value"] += rows.loc[wild, "seed"].map(
        dict(zip(SEEDS, [-3, -2, 0, 2, 3], strict=True))
    )
    table = claims.differences(claims.parse("spread of psnr: new@task > old@task by 0")[0], rows)
    np.testing.assert_allclose(table.mean(axis=1), [3, 2, 0, 2, 3], atol=0.1)


def test_holm_is_that_of_its_definition():
    np.testing.assert_allclose(claims.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert claims.holm(np.array([0.5, 0.9])).max() == 1


@pytest.mark.parametrize(
    "text",
    ["psnr: a@t > b@t", "psnr: a@t > b@t within 1", "psnr: a > b by 1", "psnr: a@t < b@t by 1"],
)
def test_a_criterion_of_another_form_is_refused(text):
    with pytest.raises(InputError, match="expected 'METRIC: NETWORK@TASK"):
        claims.parse(text)


def test_the_ledger_and_the_networks_name_each_other():
    known, table = claims.networks(), claims.ledger()
    assert len(table) >= 22 and table["claim"].is_unique
    measured = {(name, task) for name, row in known.iterrows() for task in row["measured"].split()}
    tasks = {task for _, task in measured}
    used = set()
    for text in table["criterion"]:
        for part in claims.parse(text):
            for network, task in ((part["first"], part["task"]), (part["second"], part["other"])):
                used.add(network)
                untrained = network in results.BASELINES and task in tasks
                assert untrained or (network, task) in measured, part["text"]
    assert set(known.index) <= used  # no network is trained for nothing


def test_the_tracked_evidence_is_of_these_networks_and_a_changed_value_changes_a_verdict():
    known, rows, table = claims.networks(), claims.read_evidence(), claims.ledger()
    assert {*rows["network"]} <= {*known.index, *results.BASELINES, "linear"}
    parts = claims.decide(table, rows)
    gains = parts["criterion"].str.startswith("psnr: robust@")
    assert gains.sum() == 6 and parts[gains]["verdict"].eq(HOLDS).any()
    spoilt = rows["network"].eq("robust") & rows["metric"].eq("psnr")
    worse = claims.decide(table, rows.assign(value=rows["value"] - 20 * spoilt))
    assert worse[gains]["verdict"].eq(FAILS).all()


def test_evidence_that_is_no_table_of_values_is_one_line(tmp_path):
    file = tmp_path / "evidence.csv"
    file.write_text("network,seed,degradation,subject,metric,value\na,0,t,s,psnr,high\n")
    with pytest.raises(InputError, match=r"evidence\.csv: its values are no numbers"):
        claims.read_evidence(file)


def test_evidence_that_stands_twice_and_margins_of_two_points_are_refused(tmp_path):
    text = "network,seed,degradation,subject,metric,value\n" + 2 * "a,0,x,s,psnr,30.0\n"
    (tmp_path / "evidence.csv").write_text(text)
    with pytest.raises(InputError, match="a value stands twice"):
        claims.read_evidence(tmp_path / "evidence.csv")
    with pytest.raises(InputError, match="criterion"):
        claims.parse("psnr: a@b > c@d by 1.2.3")
