"""The README's result tables, generated from results between markers."""

import re
from pathlib import Path

from srlib.paths import InputError, atomic, root
from srlib.results import read_metrics, summary, to_text

MARKER = re.compile(r"(<!-- results:(?P<profile>\w+):(?P<region>\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def render(text: str, results: Path) -> str:
    """The README with every marked table made anew; tables that are not of profile ``paper`` say so."""

    def table(match: re.Match) -> str:
        profile, region = match["profile"], match["region"]
        note = "" if profile == "paper" else f"Profile `{profile}`: shows that the code learns; not a replication.\n"
        rows = to_text(summary(read_metrics(results / profile), region), markdown=True)
        return f"{match[1]}{note}\n{rows}\n{match[4]}"

    if not MARKER.search(text):
        raise InputError("the README has no <!-- results:PROFILE:REGION --> marker")
    return MARKER.sub(table, text)


def update(check: bool = False, readme: Path | None = None, results: Path | None = None) -> bool:
    """Rewrite the README's tables; returns whether they were stale. With ``check`` nothing is written."""
    path = readme or root() / "README.md"
    old = path.read_text()
    new = render(old, results or root() / "results")
    if new != old and not check:
        with atomic(path) as temporary:
            temporary.write_text(new)
    return new != old
