"""Tables as text, and the README's, generated from results between markers."""

import re
from pathlib import Path

import pandas as pd

from srlib.core.paths import InputError, atomic, checkout
from srlib.evaluation.results import DIGITS, read_metrics, summary, tested

MARKER = re.compile(
    r"(?P<head><!-- results:(?P<profile>\w+):(?P<region>\w+)(:(?P<subject>\w+))? -->\n).*?(?P<end><!-- /results -->)",
    re.DOTALL,
)


def to_text(table: pd.DataFrame, markdown: bool = False) -> str:
    """A summary as aligned text or as a Markdown table, metrics to fixed digits."""
    table = table.dropna(axis="columns", how="all")  # single slices have no 3-D SSIM
    columns = []
    for name, values in table.items():
        number = name in DIGITS
        cells = [name, *(f"{v:.{DIGITS[name]}f}" if number else v for v in values)]
        width = max(map(len, cells))
        if markdown:
            cells.insert(1, "-" * (width - 1) + (":" if number else "-"))
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    rows = zip(*columns, strict=True)
    return "".join(
        f"| {' | '.join(row)} |\n" if markdown else "  ".join(row).rstrip() + "\n" for row in rows
    )


def render(text: str, results: Path) -> str:
    """The README with every marked table (profile, region, perhaps one subject) made anew.

    Tables that are not of profile ``paper`` say so.
    """

    def table(match: re.Match) -> str:
        profile, region = match["profile"], match["region"]
        note = (
            ""
            if profile == "paper"
            else f"Profile `{profile}`: shows that the code learns; not a replication.\n"
        )
        rows = summary(tested(read_metrics(results / profile), "csv/example.csv"), region)
        chosen = rows[rows["subject"] == match["subject"]] if match["subject"] else rows
        return f"{match['head']}{note}\n{to_text(chosen, markdown=True)}\n{match['end']}"

    if not MARKER.search(text):
        raise InputError("the README has no <!-- results:PROFILE:REGION --> marker")
    return MARKER.sub(table, text)


def update(check: bool = False, readme: Path | None = None, results: Path | None = None) -> bool:
    """Rewrite the README's tables; returns whether they were stale. With ``check`` nothing is written.

    Raises InputError outside a checkout.
    """
    own = checkout()
    if own is None and readme is None:
        raise InputError(
            "srlib is installed without its README; make its tables in a clone of the repository"
        )
    path = readme or own / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old, results or own / "results")
    if new != old and not check:
        with atomic(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old
