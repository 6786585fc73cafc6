"""Make the reference in results/ anew: the profile `quick`, three seeds (hours on two cores).

    python recipes/reference.py            # results/quick: with nothing at hand but the clone
    python recipes/reference.py published  # results/quick_published: what the authors' files add

The runs go to runs/reference/, one folder for each seed, so that an interrupted call goes on where
it was. The second form needs the first, and the files that csv/README.md names. The tables hold the
rows of all seeds; the figures are the first seed's.
"""

import os
import shutil
import sys
from pathlib import Path

import pandas as pd

from srlib.cli import notebooks
from srlib.core.paths import atomic, make_dir, root
from srlib.evaluation import readme, results

SEEDS = (0, 1, 2)
RUNS = root() / "runs" / "reference"
TRAINING = ("00", "10", "11", "12", "13", "15", "20", "40")  # what another seed changes
AUTHORS = ("00", "10", "12", "15", "20", "40")  # what their files change


def seed_runs() -> list[Path]:
    """Run the notebooks for each seed, without the authors' files."""
    os.environ["SRLIB_DATA"] = str(RUNS / "data")
    os.environ["SRLIB_PUBLISHED"] = str(RUNS / "none")
    folders = []
    for seed in SEEDS:
        os.environ["SRLIB_RESULTS"] = str(RUNS / f"seed{seed}")
        names = () if seed == SEEDS[0] else TRAINING
        folders.append(notebooks.run("quick", seed=seed, names=names))
    return folders


def authors_run() -> list[Path]:
    """Run the notebooks that use the authors' files, beside the first seed's."""
    os.environ["SRLIB_RESULTS"] = str(RUNS / "published")
    weights = RUNS / f"seed{SEEDS[0]}" / "quick" / "checkpoints"
    shutil.copytree(weights, RUNS / "published" / "quick" / "checkpoints", dirs_exist_ok=True)
    return [notebooks.run("quick", seed=SEEDS[0], names=AUTHORS)]


def gather(folders: list[Path], reference: Path, known: Path | None = None) -> None:
    """Write the tables of the reference: the rows of all folders that ``known`` has not."""
    for name, columns in (("metrics", results.METRIC_KEY), ("runs", ["run_id"])):
        tables = [_read(folder / f"{name}.csv") for folder in folders]
        table = pd.concat(tables).drop_duplicates(columns)
        if known:
            old = _read(known / f"{name}.csv")[columns]
            table = table.merge(old, how="left", indicator=True)
            table = table[table.pop("_merge") == "left_only"]
        with atomic(make_dir(reference) / f"{name}.csv") as temporary:
            rows = table.sort_values(columns, ignore_index=True)
            rows.to_csv(temporary, index=False, lineterminator="\n")


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


if __name__ == "__main__":
    quick = root() / "results" / "quick"
    if sys.argv[1:] == ["published"]:
        gather(authors_run(), quick.with_name("quick_published"), known=quick)
    else:
        found = seed_runs()
        gather(found, quick)
        shutil.rmtree(quick / "figures", ignore_errors=True)
        shutil.copytree(found[0] / "figures", quick / "figures")
    readme.update()
