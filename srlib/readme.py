"""The README's result tables, generated from results between markers."""

import re
from pathlib import Path

from srlib.paths import InputError, atomic, root
from srlib.results import read_metrics, summary, to_text

MARKER = re.compile(
    r"(?P<head><!-- results:(?P<profile>\w+):(?P<region>\w+)(:(?P<subject>\w+))? -->\n).*?(?P<end><!-- /results -->)",
    re.DOTALL,
)


def render(text: str, results: Path) -> str:
    """The README with every marked table (profile, region, perhaps one subject) made anew.

    Tables that are not of profile ``paper`` say so.
    """

    def table(match: re.Match) -> str:
        profile, region = match["profile"], match["region"]
        note = "" if profile == "paper" else f"Profile `{profile}`: shows that the code learns; not a replication.\n"
        rows = summary(read_metrics(results / profile), region)
        chosen = rows[rows["subject"] == match["subject"]] if match["subject"] else rows
        return f"{match['head']}{note}\n{to_text(chosen, markdown=True)}\n{match['end']}"

    if not MARKER.search(text):
        raise InputError("the README has no <!-- results:PROFILE:REGION --> marker")
    return MARKER.sub(table, text)


def update(check: bool = False, readme: Path | None = None, results: Path | None = None) -> bool:
    """Rewrite the README's tables; returns whether they were stale. With ``check`` nothing is written."""
    path = readme or root() / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old, results or root() / "results")
    if new != old and not check:
        with atomic(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old
