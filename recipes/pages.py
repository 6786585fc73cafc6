"""Make the tables of README.md and results/README.md anew, from results/ and csv/.

    python recipes/pages.py          # what `make pages` calls
    python recipes/pages.py --check  # write nothing; the exit code is 1 when a table is stale

A table stands between the markers <!-- table NAME WORDS... --> and <!-- /table -->. TABLES says
what each name stands for.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from srlib.core.paths import root, write_file
from srlib.evaluation import claims, results
from srlib.evaluation.markdown import to_text

PAGES = ("README.md", "results/README.md")
MARKED = re.compile(
    r"(?P<head><!-- table (?P<words>.+?) -->\n).*?(?P<end><!-- /table -->)", re.DOTALL
)
REFERENCES = ("quick", "quick_published")
ROOT = root()
RESULTS = ROOT / "results"
SYSTEMS = {
    "mdcsrn": "mDCSRN",
    "recnn": "SRReCNN3D",
    "srgan3d": "3D-SRGAN",
    "srresnet2d": "SRResNet/SRGAN",
    "synthsr": "SynthSR",
    "ours": "ours",
}


def standing(reference: str, region: str, degradation: str = "") -> pd.DataFrame:
    """The experiments of a reference in a region, under one degradation or all, best first."""
    rows = results.tested(results.read_metrics(RESULTS / reference), "csv/example.csv")
    table = results.standing(rows, region)
    if not degradation:
        return table
    short = ["experiment", "rank", "gain", "spread", "psnr", "ssim3d", "scans", "seeds"]
    return table.loc[table["degradation"] == degradation, short]


def verdicts() -> pd.DataFrame:
    """The claims of each system and verdict in one row."""
    said, rows = claims.ledger(), claims.read_evidence(RESULTS / "study" / "evidence.csv")
    parts = claims.decide(said, rows)
    found = claims.judged(said, parts)
    unmeasured = found["claim"].isin(parts["claim"][parts["mean"].isna()])
    why = np.where(unmeasured, ": not measured yet", ": too little beside the spread")
    found["rank"] = found["verdict"].map(claims.VERDICTS.index)
    found["verdict"] += np.where(found["verdict"] == claims.OPEN, why, "")
    found["system"] = pd.Categorical(found["system"].map(SYSTEMS), SYSTEMS.values())
    groups = found.groupby(["system", "rank", "verdict"], observed=True)["says"]
    return groups.agg("<br>".join).reset_index().drop(columns="rank")


def printed() -> pd.DataFrame:
    """The PSNR that others printed, and that of the same experiment in the reference."""
    every = pd.read_csv(ROOT / "csv" / "reported.csv")["system"].unique()
    tables = [results.beside_printed(RESULTS / r, system) for system in every for r in REFERENCES]
    found = pd.concat(tables).query("metric == 'psnr'").dropna(subset="ours_mean")
    found["dB here"] = found["ours_mean"].map("{:.2f}".format)
    found["dB printed"] = found["mean"].map("{:.2f}".format)
    found["row here"] = found["ours"].str.split().str[:2].str.join(", ")
    return found[["system", "method", "dataset", "dB printed", "row here", "dB here"]]


TABLES = {"standing": standing, "verdicts": verdicts, "printed": printed}


def update(folder: Path = ROOT, *, check: bool = False) -> list[str]:
    """Make the tables of the pages in a folder anew; return the names of pages that were stale."""

    def table(match: re.Match) -> str:
        name, *words = match["words"].split()
        return f"{match['head']}\n{to_text(TABLES[name](*words))}\n{match['end']}"

    stale = []
    for page in PAGES:
        old = (folder / page).read_text(encoding="utf-8")
        new = MARKED.sub(table, old)
        if new != old:
            stale.append(page)
            if not check:
                write_file(folder / page, new)
    return stale


if __name__ == "__main__":
    only = "--check" in sys.argv[1:]
    found = update(check=only)
    print(f"stale: {', '.join(found)}" if found else "up to date")
    sys.exit(bool(found) and only)
