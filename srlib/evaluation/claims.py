"""Decide what papers claim: paired differences over seeds and scans, each held against a criterion.

``csv/claims.csv`` is the ledger, one claim a row; ``csv/study.csv`` the networks whose rows decide.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy

from srlib import systems
from srlib.core.paths import InputError, StrPath, explained, locate
from srlib.core.tables import read_table

SEEDS = 5  # that a claim about a trained network needs
ERROR = 0.05  # chance of a wrong verdict in the whole ledger
REAL = ("mni152", "ch2")  # scans of people; a criterion names them, or is about all others
DRAWS = 2000  # of the bootstrap
EVIDENCE = ("network", "seed", "degradation", "subject", "metric", "value")
VERDICTS = ("holds", "holds in part", "does not hold", "cannot be told here")
HOLDS, PART, FAILS, OPEN = VERDICTS

_PART = re.compile(
    r"(?P<spread>spread of )?(?P<metric>\w+): (?P<first>\S+?)@(?P<task>\S+) (?P<kind>[>=]) "
    r"(?P<second>\S+?)@(?P<other>\S+) (?P<word>by|within) (?P<margin>\d+(?:\.\d+)?)(?: on (?P<on>\w+))?"
)


def parse(text: str) -> list[dict[str, Any]]:
    """The criteria of a claim, which semicolons separate, as dicts of their parts.

    Such as ``psnr: recnn@gaussian_x2 > cubic@gaussian_x2 by 0.1``: ``first`` exceeds ``second`` by
    more than ``margin``, or, with ``=``, lies ``within`` it. ``on`` names a real scan; without it
    all synthetic ones count. With ``spread of`` the values are distances from the mean over the
    seeds. Raises InputError for another form.
    """
    found = []
    for part in map(str.strip, text.split(";")):
        match = _PART.fullmatch(part)
        if not match or (match["kind"] == ">") != (match["word"] == "by"):
            raise InputError(
                f"criterion {part!r}: expected 'METRIC: NETWORK@TASK > NETWORK@TASK by MARGIN', or "
                "'... = ... within MARGIN', perhaps with 'on SCAN' behind it"
            )
        found.append({**match.groupdict(), "text": part, "margin": float(match["margin"])})
    return found


def differences(criterion: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """What a criterion's first network has more than its second: a row per seed, a column per scan.

    ``rows`` have the columns of EVIDENCE. What was not trained has the same value for every seed.
    Seeds and scans that one side lacks are left out.
    """
    on, scans = criterion["on"], rows["subject"]
    rows = rows[
        (rows["metric"] == criterion["metric"]) & (scans == on if on else ~scans.isin(REAL))
    ]
    sides = []
    for network, task in (("first", "task"), ("second", "other")):
        chosen = (rows["network"] == criterion[network]) & (rows["degradation"] == criterion[task])
        side = rows[chosen].pivot(index="seed", columns="subject", values="value")
        sides.append((side - side.mean()).abs() if criterion["spread"] else side)
    seeds = max((side.index for side in sides), key=lambda index: index.tolist() != [""])
    first, second = (
        side.reindex([""] * len(seeds)).set_axis(seeds) if side.index.tolist() == [""] else side
        for side in sides
    )
    return (first - second).dropna(how="all").dropna(axis="columns")


def crossed(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, its standard error and degrees of freedom, of seeds (rows) by scans (columns).

    Both are random effects: the variance of the mean is (MS_seeds + MS_scans - MS_rest) / (seeds
    x scans), at least that of either alone, with Satterthwaite's degrees of freedom (Cornfield and
    Tukey, Annals of Mathematical Statistics 27, 1956). One seed or one scan leaves the other
    effect; with one of both the error is nan.
    """
    seeds, scans = values.shape
    by_seed, by_scan = values.mean(axis=1), values.mean(axis=0)
    mean = float(values.mean())
    squares, freedom = [], []
    for means, each in ((by_seed, scans), (by_scan, seeds)):
        if len(means) > 1:
            squares.append(each * means.var(ddof=1))
            freedom.append(len(means) - 1)
    if not squares:
        return mean, np.nan, np.nan
    rest = values - by_seed[:, None] - by_scan + mean
    if len(squares) == 2:
        squares.append((rest**2).sum() / np.prod(freedom))
        freedom.append(np.prod(freedom))
        both = squares[0] + squares[1] - squares[2]
        if both > max(squares[:2]):
            within = sum(s**2 / f for s, f in zip(squares, freedom, strict=True))
            return mean, np.sqrt(both / values.size), both**2 / within
    largest = np.argmax(squares[:2])
    return mean, np.sqrt(squares[largest] / values.size), freedom[largest]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Hierarchical BCa bootstrap interval (95 %) of the mean of seeds (rows) by scans (columns).

    Seeds and scans are drawn anew, each with replacement (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 14). It is narrow for few seeds: the tests, not this, decide. One
    number, or equal ones, give themselves.
    """
    if np.ptp(values) == 0:
        return values.flat[0], values.flat[0]
    places = [np.arange(n) for n in values.shape if n > 1]

    def mean(*drawn, axis):
        first, *second = drawn
        at = (first[..., None], second[0][..., None, :]) if second else drawn
        return values.squeeze()[at].mean(tuple(range(-len(drawn), 0)))

    found = scipy.stats.bootstrap(places, mean, vectorized=True, n_resamples=DRAWS, rng=0)
    return tuple(found.confidence_interval)


def networks(table: StrPath = "csv/study.csv") -> pd.DataFrame:
    """The networks of a study, a row each, indexed by ``network``.

    To the columns of the table comes ``name``, that of the experiment with its overrides. Raises
    InputError for a network that stands twice, and as ``read_table`` and ``systems.get``.
    """
    columns = ("network", "experiment", "overrides", "cohort", "measured", "changed")
    rows = pd.DataFrame(read_table(locate(table), columns, ()))
    if twice := [*rows["network"][rows["network"].duplicated()]]:
        raise InputError(f"{table}: network {twice[0]!r} stands twice; give it another name")
    last = rows["experiment"].str.split().str[-1]
    with explained(table, "a network cannot be made"):
        pairs = zip(last, rows["overrides"], strict=True)
        made = [systems.get(name, "study", overrides).name for name, overrides in pairs]
    return rows.assign(name=made).set_index("network")


def ledger(table: StrPath = "csv/claims.csv") -> pd.DataFrame:
    """The claims, a row each; InputError for one whose criterion cannot be read."""
    columns = ("claim", "system", "says", "where", "reported", "criterion", "note")
    rows = pd.DataFrame(read_table(locate(table), columns, ()))
    with explained(table, "a criterion cannot be read"):
        rows["criterion"].map(parse)
    return rows


def read_evidence(table: StrPath = "results/study/evidence.csv") -> pd.DataFrame:
    """The measured values of a study, with the columns of EVIDENCE; InputError as ``read_table``.

    ``seed`` is empty where nothing was trained.
    """
    rows = pd.DataFrame(read_table(locate(table), EVIDENCE, ()))
    if rows.duplicated([*EVIDENCE[:-1]]).any():
        raise InputError(f"{table}: a value stands twice; make it anew with 'make study'")
    with explained(table, "its values are no numbers", "make it anew with 'make study'"):
        return rows.astype({"value": float})


def decide(claims: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Every criterion of a ledger with its evidence and its verdict, a row each.

    Columns: ``claim``; ``criterion``; ``seeds`` and ``scans``; ``mean`` difference, ``low`` and
    ``high`` (``interval``); ``alone``, twice the one-sided p value of the likelier side; ``p``, the
    same corrected for all criteria by Holm's method; ``verdict``; ``steady``: whether without any
    one seed the same side is as likely, at ERROR and uncorrected. ``rows`` have the columns of
    EVIDENCE. Raises InputError as ``parse``.
    """
    found = []
    for claim, text in zip(claims["claim"], claims["criterion"], strict=True):
        for part in parse(text):
            table = differences(part, rows)
            trained = [seed for seed in table.index if seed]
            side, p = chance(part, table, SEEDS)
            others = [chance(part, table.drop(index=seed), SEEDS - 1) for seed in trained]
            low, high = interval(table.to_numpy()) if table.size else (np.nan, np.nan)
            found.append(
                {
                    "claim": claim,
                    "criterion": part["text"],
                    "seeds": len(trained),
                    "scans": table.shape[1],
                    "low": low,
                    "high": high,
                    "mean": table.to_numpy().mean() if table.size else np.nan,
                    "alone": p,
                    "verdict": side,
                    "steady": all(other == side and q < ERROR for other, q in others),
                }
            )
    result = pd.DataFrame(found).assign(p=lambda t: holm(t["alone"].to_numpy()))
    return result.assign(verdict=result["verdict"].where(result["p"] < ERROR, OPEN))


def chance(criterion: Mapping[str, Any], table: pd.DataFrame, needed: int) -> tuple[str, float]:
    """The likelier verdict on a criterion, and twice its one-sided p value, at most 1.

    ``>``: a test of superiority by the margin, and of the lack of it. ``=``: two one-sided tests of
    equivalence (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987), and those of a difference beyond
    the margin. Nothing is likely with fewer than ``needed`` seeds of a trained network, and with a
    single number.
    """
    if not table.size or (any(table.index) and len(table) < needed):
        return OPEN, 1.0
    mean, error, freedom = crossed(table.to_numpy())
    if not error > 0:
        return OPEN, 1.0
    margin = criterion["margin"]
    above, below = (
        scipy.stats.t.sf((mean - bound) / error, freedom) for bound in (margin, -margin)
    )
    if criterion["kind"] == ">":
        sides = {HOLDS: above, FAILS: 1 - above}
    else:
        sides = {HOLDS: max(below, 1 - above), FAILS: 2 * min(above, 1 - below)}
    side = min(sides, key=lambda name: sides[name])
    return side, min(2 * sides[side], 1.0)


def holm(chances: np.ndarray) -> np.ndarray:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(chances, kind="stable")
    steps = chances[order] * np.arange(len(chances), 0, -1)
    corrected = np.empty(len(chances))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def judged(claims: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """The ledger with a ``verdict`` for each claim, from the criteria that ``decide`` found.

    ``holds``: all of its criteria do, steadily. ``holds in part``: some do, or not steadily.
    ``does not hold``: none does, and one fails steadily. Else it cannot be told here.
    """
    held = parts["verdict"] == HOLDS
    failed = (parts["verdict"] == FAILS) & parts["steady"]
    by_claim = parts.assign(whole=held & parts["steady"], held=held, failed=failed)
    whole = by_claim.groupby("claim")["whole"].all()
    some = by_claim.groupby("claim")[["held", "failed"]].any()
    verdict = np.select([whole, some["held"], some["failed"]], [HOLDS, PART, FAILS], OPEN)
    return claims.assign(verdict=claims["claim"].map(pd.Series(verdict, whole.index)))
