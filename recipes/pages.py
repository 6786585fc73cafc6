"""Make the tables of README.md and results/README.md anew, and the picture of docs/conventions.md.

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

from srlib.core.paths import InputError, root, write_file
from srlib.evaluation import claims, results
from srlib.evaluation.figures import Picture, save_figure
from srlib.evaluation.markdown import to_text
from srlib.scans.volume import Volume, coarse_grid

PAGES = ("README.md", "results/README.md", "docs/scale.md")
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
    lacking = parts["mean"].isna() | parts["seeds"].between(1, claims.SEEDS - 1)
    unmeasured = found["claim"].isin(parts["claim"][lacking])
    why = np.where(unmeasured, ": evidence is missing", ": too little beside the spread")
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


def put(page: str, name: str, table: str, folder: Path = ROOT) -> None:
    """Replace the table of a name in a page of the checkout by another one, in Markdown.

    Raises InputError for a page without such markers.
    """
    old = (folder / page).read_text(encoding="utf-8")
    head, found, rest = old.partition(f"<!-- table {name} -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    if not found or not end:
        raise InputError(f"{page}: expected <!-- table {name} --> and <!-- /table -->")
    write_file(folder / page, f"{head}{found}\n{table}\n\n{end}{after}")


def soak() -> pd.DataFrame:
    """What many small scans take, of ``recipes/soak.py``."""
    return pd.read_csv(ROOT / "benchmarks" / "soak.csv", dtype=str).fillna("")


TABLES = {"standing": standing, "verdicts": verdicts, "printed": printed, "soak": soak}


def update(folder: Path = ROOT, *, check: bool = False) -> list[str]:
    """Make the tables of the pages in a folder anew; return the names of pages that were stale.

    Raises InputError for a page without markers, and for one whose table has no end.
    """

    def table(match: re.Match) -> str:
        name, *words = match["words"].split()
        return f"{match['head']}\n{to_text(TABLES[name](*words))}\n{match['end']}"

    stale = []
    for page in PAGES:
        old = (folder / page).read_text(encoding="utf-8")
        new, found = MARKED.subn(table, old)
        if not found or found != old.count("<!-- table "):
            raise InputError(
                f"{page}: expected <!-- table NAME --> and <!-- /table --> around each"
            )
        if new != old:
            stale.append(page)
            if not check:
                write_file(folder / page, new)
    return stale


def draw_grids() -> Picture:
    """Ten fine voxels, and the coarse grids that the package and SciPy's zoom put on them."""
    fine = Volume(np.zeros((10, 1, 1), np.float32), np.eye(4))
    rows = {"fine: 1 mm, 10 voxels": fine}
    for factor, align in ((2, "center"), (3, "center"), (2.5, "center"), (2, "corners")):
        shape, affine = coarse_grid(fine, (factor, 1, 1), align=align)
        how = "same field of view" if align == "center" else "same first and last centre"
        name = f"×{factor:g}, {how}:\n{affine[0, 0]:.3g} mm from {affine[0, 3]:g} mm"
        rows[name] = Volume(np.zeros(shape, np.float32), affine)
    figure = Picture(figsize=(9, 3), layout="constrained")
    axis = figure.add_subplot()
    for place, grid in enumerate(rows.values()):
        step = grid.affine[0, 0]
        centres = grid.affine[0, 3] + step * np.arange(grid.shape[0])
        axis.barh(
            [-place] * len(centres),
            step,
            0.6,
            centres - step / 2,
            ec="k",
            fc=f"C{place}",
            alpha=0.4,
        )
        axis.plot(centres, [-place] * len(centres), "k.")
    axis.set_yticks(-np.arange(len(rows)), list(rows))
    axis.axvline(-0.5, color="grey", lw=0.8, ls=":")
    axis.axvline(9.5, color="grey", lw=0.8, ls=":")
    axis.set(
        xlabel="mm; dots are centres of voxels, dotted lines the faces of the volume",
        xlim=(-1.5, 12),
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


if __name__ == "__main__":
    only = "--check" in sys.argv[1:]
    found = update(check=only)
    if not only:
        save_figure(draw_grids(), ROOT / "docs" / "grids.png")
    print(f"stale: {', '.join(found)}" if found else "up to date")
    sys.exit(bool(found) and only)
