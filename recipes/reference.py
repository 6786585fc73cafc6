"""Make the reference in results/ anew: the profile `quick`, three seeds (hours on two cores).

    python recipes/reference.py            # results/quick: with nothing at hand but the clone
    python recipes/reference.py published  # results/quick_published: what the authors' files add
    python recipes/reference.py notebooks runs/quick  # results/quick/notebooks, of that run alone

The runs go to runs/reference/, one folder, log and process of one thread for each seed; an
interrupted call goes on where it was. The second form needs the first, and the files that
csv/README.md names. The tables hold the rows of all seeds; the figures, those that pages show, and
the executed notebooks are the first seed's.
"""

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import pages
import pandas as pd
from PIL import Image

from srlib.cli.notebooks import notebooks
from srlib.core.paths import atomic, make_dir, root, write_file
from srlib.evaluation import results

SEEDS = (0, 1, 2)
RUNS = root() / "runs" / "reference"
TRAINING = ("10", "11", "12", "13", "15", "20", "40")  # what another seed changes
SHOWN = ("benchmark.png", "gaussian_x2.png", "synthsr_thick.png")  # figures that pages show
COLOURS = 60  # of pictures in notebooks, so that all of these are small
AUTHORS = ("00", "10", "12", "15", "20", "40")  # what their files change


def run(place: str, seed: int, names: Sequence[str], **environment: Path) -> Path:
    """Run notebooks on one thread, in ``runs/reference/PLACE``; return the folder of the rows."""
    folder = make_dir(RUNS / place)
    words = [sys.executable, "-m", "srlib", "run", *names, "--seed", str(seed), "--workers", "1"]
    own = {"SRLIB_RESULTS": folder, "OMP_NUM_THREADS": 1, **environment}
    with open(RUNS / f"{place}.log", "a", encoding="utf-8") as log:
        where = {**os.environ, **{name: str(value) for name, value in own.items()}}
        subprocess.run(words, env=where, stdout=log, stderr=log, check=True)
    return folder / "quick"


def seed_runs() -> list[Path]:
    """Run the notebooks for all seeds at once, without the authors' files."""
    clone = {"SRLIB_DATA": RUNS / "data", "SRLIB_PUBLISHED": RUNS / "none"}
    run("seed0", 0, ["00"], **clone)  # one makes the scans that all read
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        names = [() if seed == 0 else TRAINING for seed in SEEDS]
        places = [f"seed{seed}" for seed in SEEDS]
        return [*pool.map(partial(run, **clone), places, SEEDS, names)]


def authors_run() -> list[Path]:
    """Run the notebooks that use the authors' files, with the weights of the first seed."""
    own = Path("quick") / "checkpoints"
    shutil.copytree(RUNS / "seed0" / own, RUNS / "published" / own, dirs_exist_ok=True)
    return [run("published", 0, AUTHORS)]


def gather(folders: list[Path], reference: Path, known: Path | None = None) -> None:
    """Write the tables of the reference: the rows of all folders.

    Of what ``known`` has only interpolation is kept, where there are other rows to compare it with.
    """
    for name, key in (("metrics", results.METRIC_KEY), ("runs", ["run_id"])):
        tables = [_read(folder / f"{name}.csv") for folder in folders]
        table = pd.concat(tables).drop_duplicates(key)
        if known:
            old = pd.MultiIndex.from_frame(_read(known / f"{name}.csv")[key])
            new = ~pd.MultiIndex.from_frame(table[key]).isin(old)
            if name == "metrics":
                group = [table[column] for column in ("degradation", "dataset", "region")]
                compared = pd.Series(new, table.index).groupby(group).transform("any")
                new |= table["experiment"].isin(results.BASELINES) & compared
            table = table[new]
        with atomic(make_dir(reference) / f"{name}.csv") as temporary:
            rows = table.sort_values(key, ignore_index=True)
            rows.to_csv(temporary, index=False, lineterminator="\n")


def keep_notebooks(run: Path, folder: Path) -> None:
    """Write the notebooks of the checkout with the outputs that they had in a run, to be read.

    Pictures get few colours. What names a place on this machine, and what is there twice, is left
    out.
    """
    for path in notebooks():
        book = nbformat.read(path, as_version=4)
        ran = nbformat.read(run / "notebooks" / path.name, as_version=4)
        known = {cell.id: cell for cell in ran.cells}
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs = known[cell.id].outputs
                cell.execution_count = known[cell.id].execution_count
                for output in cell.outputs:
                    output.get("metadata", {}).clear()
                    if picture := output.get("data", {}).get("image/png"):
                        output.data["image/png"] = _smaller(picture)
        text = nbformat.writes(book).replace(f"{root()}{os.sep}", "")
        write_file(make_dir(folder) / path.name, f"{text}\n")


def _smaller(picture: str) -> str:
    content = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    few = image.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE)  # greys stay grey
    few.save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


if __name__ == "__main__":
    quick = root() / "results" / "quick"
    if sys.argv[1:2] == ["notebooks"]:
        keep_notebooks(Path(sys.argv[2]), quick / "notebooks")
    elif sys.argv[1:] == ["published"]:
        gather(authors_run(), quick.with_name("quick_published"), known=quick)
    else:
        found = seed_runs()
        gather(found, quick)
        for name in SHOWN:
            shutil.copy(found[0] / "figures" / name, make_dir(quick / "figures") / name)
        keep_notebooks(found[0], quick / "notebooks")
    pages.update()
