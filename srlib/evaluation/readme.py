"""Result tables in Markdown, and the README's, which stand between markers."""

import re

import pandas as pd

from srlib.core.paths import InputError, checkout, write_file
from srlib.evaluation import claims
from srlib.evaluation.results import DIGITS, read_metrics, standing, tested

MARKER = re.compile(
    r"(?P<head><!-- results:(?P<reference>\w+):(?P<region>\w+) -->\n).*?(?P<end><!-- /results -->)",
    re.DOTALL,
)
SHOWN = {"gain": 2, "spread": 2, "scans": 0, "seeds": 0, **DIGITS}  # digits of numbers


def to_text(table: pd.DataFrame) -> str:
    """A table as aligned Markdown, numbers with the digits of SHOWN, empty columns left out."""
    columns = []
    for name, values in table.dropna(axis="columns", how="all").items():
        number = name in SHOWN and pd.api.types.is_numeric_dtype(values)
        cells = [name, *(_cell(v, SHOWN[name]) if number else v for v in values)]
        width = max(map(len, cells))
        cells.insert(1, "-" * (width - 1) + (":" if number else "-"))
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))


def _cell(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def update(check: bool = False) -> bool:
    """Make every marked table of the README (folder of the reference; region, or ``claims``) anew.

    Returns whether they were stale. ``check`` writes nothing. Raises InputError outside a checkout
    and for a README without markers.
    """
    own = checkout()
    if own is None:
        raise InputError(
            "srlib is installed without its README; make its tables in a clone of the repository"
        )

    def table(match: re.Match) -> str:
        place = own / "results" / match["reference"]
        if match["region"] == "claims":
            said, rows = claims.ledger(), claims.read_evidence(place / "evidence.csv")
            parts = claims.decide(said, rows)
            text = to_text(claims.by_verdict(claims.judged(said, parts), parts))
        else:
            rows = tested(read_metrics(place), "csv/example.csv")
            text = to_text(standing(rows, match["region"]))
        return f"{match['head']}\n{text}\n{match['end']}"

    path = own / "README.md"
    old = path.read_text(encoding="utf-8")
    new, found = MARKER.subn(table, old)
    if not found:
        raise InputError("the README has no <!-- results:FOLDER:REGION --> marker; add one")
    if new != old and not check:
        write_file(path, new)
    return new != old
