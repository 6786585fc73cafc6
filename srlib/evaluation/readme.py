"""Result tables in Markdown, and the README's, which stand between markers."""

import re

import pandas as pd

from srlib.core.paths import InputError, atomic, checkout
from srlib.evaluation.results import DIGITS, read_metrics, summary, tested

MARKER = re.compile(
    r"(?P<head><!-- results:(?P<profile>\w+):(?P<region>\w+)(:(?P<subject>\w+))? -->\n)"
    r".*?(?P<end><!-- /results -->)",
    re.DOTALL,
)


def to_text(table: pd.DataFrame) -> str:
    """A summary as an aligned Markdown table, metrics with fixed digits, empty columns left out."""
    columns = []
    for name, values in table.dropna(axis="columns", how="all").items():
        number = name in DIGITS
        cells = [name, *(f"{v:.{DIGITS[name]}f}" if number else v for v in values)]
        width = max(map(len, cells))
        cells.insert(1, "-" * (width - 1) + (":" if number else "-"))
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))


def update(check: bool = False) -> bool:
    """Make every marked table of the README (profile, region, perhaps one subject) anew.

    Returns whether they were stale. ``check`` writes nothing. Tables of profiles other than
    ``paper`` are marked as no replication. Raises InputError outside a checkout and for a README
    without markers.
    """
    own = checkout()
    if own is None:
        raise InputError(
            "srlib is installed without its README; make its tables in a clone of the repository"
        )

    def table(match: re.Match) -> str:
        profile, note = match["profile"], ""
        if profile != "paper":
            note = f"Profile `{profile}`: shows that the code learns; not a replication.\n"
        rows = tested(read_metrics(own / "results" / profile), "csv/example.csv")
        chosen = summary(rows, match["region"])
        if match["subject"]:
            chosen = chosen[chosen["subject"] == match["subject"]]
        return f"{match['head']}{note}\n{to_text(chosen)}\n{match['end']}"

    path = own / "README.md"
    old = path.read_text(encoding="utf-8")
    new, found = MARKER.subn(table, old)
    if not found:
        raise InputError("the README has no <!-- results:PROFILE:REGION --> marker; add one")
    if new != old and not check:
        with atomic(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old
