"""Compare other people's tools with the shipped weights and the cubic spline: peers.csv."""

import argparse
import csv
import datetime
import hashlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from common import processor
from geometry import INNER, displacement, error_mm
from outside import Failed, Tool, call, install, threads

import srlib
from srlib.core.paths import InputError, ScanWarning, root, shipped_file
from srlib.data.cohorts import build
from srlib.degradations.tasks import degradation_of
from srlib.evaluation.benchmark import BENCHMARK, MIDDLE
from srlib.scans.formats import load_scan
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume, central, fine_grid, save_scan

TABLE = Path(__file__).with_name("peers.csv")
ENVIRONMENTS = root() / ".peers"
COLUMNS = (
    "tool", "version", "licence", "scan", "middle", "degradation", "state", "mended", "gain_db",
    "psnr", "ssim", "seconds", "memory_gb", "geometry_mm", "notes", "processor", "threads", "date",
)  # fmt: skip
CELL = ("tool", "scan", "middle", "degradation")
SCANS = ("mni152", "syn07", "syn08")  # the test rows of the built-in cohort, as in notebook 40
# the columns of notebook 40 whose coarse scan is thicker along z or twice as coarse along all axes
TASKS = tuple(
    task for task in BENCHMARK if degradation_of(task).coarser in ((1, 1, 3), (1, 1, 5), (2, 2, 2))
)
SLOW = (("syn08", "thick_1x1x3"), ("syn08", "gaussian_x2"))  # cells of the slow tools
TENSORFLOW = "install tensorflow-cpu==2.15.1 nibabel tqdm"
OURS = "{python} -m srlib enhance {given} {made} --factor {x} {y} {z} --precision 32"
Row = dict[str, str]


def thick(factor: Sequence[float]) -> bool:
    """Whether only the last axis is coarser."""
    return factor[0] == factor[1] == 1 < factor[2]


def doubled(factor: Sequence[float]) -> bool:
    """Whether all axes are twice as coarse."""
    return all(f == 2 for f in factor)


def edition() -> str:
    """The version of the package and of the shipped weights, which changes with any of them."""
    weights = shipped_file("robust")
    parts = [file.read_bytes() for file in sorted(weights.parent.iterdir()) if file.suffix != ".md"]
    return f"{srlib.__version__}, weights {hashlib.sha256(b''.join(parts)).hexdigest()[:8]}"


TOOLS = {
    "spline": Tool(
        srlib.__version__,
        "Apache-2.0",
        "{python} {callers}/spline.py {given} {made} {x} {y} {z}",
        takes=any,
    ),
    "robust": Tool(edition(), "Apache-2.0", OURS, takes=any),
    "robust_told": Tool(
        edition(), "Apache-2.0", f"{OURS} --kernel {{kernel}}", takes=any, notes="told the kernel"
    ),
    "soupgan": Tool(
        "KevinSR 0.1.20",
        "MIT",
        "{python} {callers}/soupgan.py {home}/source {given} {made} {z}",
        takes=thick,
        pip=(
            f"{TENSORFLOW} scipy==1.11.4",
            "download --no-deps --no-binary :all: -d {home}/source KevinSR==0.1.20",
        ),
        align="corners",
        rescale=True,
        notes="thin-to-thin weights, the only ones in the package",
    ),
    "brainhance": Tool(
        "0.0.1",
        "GPL-3.0",
        "{home}/bin/brainhance {given} {made}",
        takes=doubled,
        pip=(TENSORFLOW, "install --no-deps brainhance==0.0.1"),
        align="corners",
        rescale=True,
        notes="network Generalist",
    ),
    "eclare": Tool(
        "1.0.1",
        "GPL-3.0",
        "{home}/bin/run-eclare --in-fpath {given} --out-dir {folder} --suffix _eclare "
        "--relative-slice-thickness 1 --n-patches 1000 --batch-size 16",
        takes=thick,
        pip=("install torch==2.13.0 eclare==1.0.1",),
        makes="*_eclare.nii.gz",
        slow=True,
        notes="told the slice profile; 1,000 of its 1,000,000 patches, in batches of 16",
    ),
    "unires": Tool(
        "0.3, a3c1f81",
        "MIT",
        "{home}/bin/unires --vx 1 --device cpu --dir_out {folder} {given}",
        takes=any,
        pip=(
            "install torch==2.13.0 numpy==1.26.0 setuptools<81 wheel",
            "install --no-build-isolation git+https://github.com/brudfors/UniRes@a3c1f81",
        ),
        makes="u_*.nii.gz",
        slow=True,
        least=112,
        notes="its estimate of the noise fails on smaller crops",
    ),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A scan under a degradation: the coarse scan, the truth and the cubic spline's result."""

    scan: str
    middle: int
    task: str
    lr: Volume
    truth: Volume
    spline: Volume


def load(scan: str, middle: int) -> tuple[str, Volume]:
    """Name and middle voxels of a test scan, or of a scan in a file; 0 takes all voxels."""
    if Path(scan).is_file():
        name, whole = re.sub(r"\.nii(\.gz)?$", "", Path(scan).name), load_scan(scan)
    else:
        manifest = root() / "csv" / "example.csv"
        subjects = {s.name: s for s in srlib.read_manifest(manifest, "test")}
        if scan not in subjects:
            raise InputError(f"{scan}: no such scan; give a file or one of {', '.join(subjects)}")
        name, whole = scan, load_scan(subjects[scan].file("t1"))
    return name, central(whole, middle) if middle else whole


def degraded(scan: str, hr: Volume, task: str, middle: int) -> Case:
    """The case of a scan under a task."""
    degradation = degradation_of(task)
    lr, truth = degradation.pair(hr)
    return Case(scan, middle, task, lr, truth, degradation.to_grid(lr, truth.shape))


def inner(volume: Volume) -> Volume:
    """The part of a scan that is measured, as in notebook 40."""
    return central(volume, round(INNER * max(volume.shape)))


def placed(estimate: Volume, truth: Volume) -> Volume:
    """An estimate where its file says it lies, on the truth's grid; its minimum beyond its field.

    An estimate that lies elsewhere is that minimum everywhere.
    """
    low = float(estimate.data.min())
    try:
        return resample_to(estimate, truth, outside=low)
    except InputError:
        return truth.with_data(np.full(truth.shape, low))


def mend(estimate: Volume, case: Case, tool: Tool) -> tuple[Volume, str]:
    """An estimate on the grid that its tool really computes, in the input's units; what was mended.

    The truth is not looked at. Intensities get the factor and the constant that bring them nearest
    to the cubic spline of the input.
    """
    what = []
    factor = degradation_of(case.task).coarser
    shape, affine = fine_grid(case.lr, factor, align=tool.align or "center")
    if tool.align and estimate.shape == shape and not np.allclose(affine, estimate.affine):
        estimate, what = Volume(estimate.data, affine), ["grid"]
    if tool.rescale:
        seen, spline = (inner(v).data for v in (placed(estimate, case.truth), case.spline))
        slope, constant = np.polyfit(seen.ravel().astype(float), spline.ravel().astype(float), 1)
        estimate = estimate.with_data(slope * estimate.data + constant)
        what.append("intensities")
    return estimate, " and ".join(what)


def measured(made: Volume, case: Case, tool: Tool) -> Iterator[Row]:
    """What is measured of an output: as it is and, where that helps, mended and registered.

    ``registered`` is mended, then shifted and stretched until it fits the truth best: what a tool
    would gain if its geometry were right.
    """
    mended, what = mend(made, case, tool)
    states = {"as it is": made}
    if what:
        back = case.truth.affine @ np.linalg.inv(
            case.truth.affine @ displacement(mended, case.truth)
        )
        states |= {"mended": mended, "registered": Volume(mended.data, back @ mended.affine)}
    truth = inner(case.truth)
    base = srlib.measure(truth, inner(case.spline))["volume"]["psnr"]
    for state, estimate in states.items():
        quality = srlib.measure(truth, inner(placed(estimate, case.truth)))["volume"]
        yield {
            "state": state,
            "mended": what if state != "as it is" else "",
            "gain_db": f"{quality['psnr'] - base:.2f}",
            "psnr": f"{quality['psnr']:.2f}",
            "ssim": f"{quality['ssim3d']:.4f}",
            "geometry_mm": f"{error_mm(mended, case.truth, estimate.affine):.2f}",
        }


def run_tool(tool: Tool, case: Case, places: dict[str, str], budget: float) -> list[Row]:
    """Rows of a tool on a case; a single one without numbers where it fails."""
    degradation = degradation_of(case.task)
    with tempfile.TemporaryDirectory() as folder:
        given, made = (Path(folder) / f"{name}.nii.gz" for name in ("given", "made"))
        save_scan(case.lr, given)
        factor = zip("xyz", (f"{f:g}" for f in degradation.coarser), strict=True)
        files = {"given": str(given), "made": str(made), "folder": folder}
        try:
            seconds, memory = call(
                tool.command,
                {**places, **files, **dict(factor), "kernel": degradation.kernel},
                budget,
            )
            if not (found := sorted(Path(folder).glob(tool.makes))):
                raise Failed("made no file")
            cost = {"seconds": f"{seconds:.1f}", "memory_gb": f"{memory:.2f}"}
            rows = [row | cost for row in measured(load_scan(found[0]), case, tool)]
        except (Failed, InputError) as err:
            return [{"notes": str(err)}]
    return [{"notes": tool.notes, **row} for row in rows]


def read(path: Path = TABLE) -> list[Row]:
    """The kept rows; none where there is no file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def keep(rows: Sequence[Row], path: Path = TABLE) -> None:
    """Put rows into the table; they replace those of their cells, and their tool's failure."""
    cells = {tuple(row[name] for name in CELL) for row in rows}
    cells |= {(row["tool"], "", "", "") for row in rows}
    kept = [row for row in read(path) if tuple(row[name] for name in CELL) not in cells]
    order = [*TOOLS]
    table = sorted(
        [*kept, *rows],
        key=lambda row: (order.index(row["tool"]), *(row[name] for name in CELL[1:])),
    )
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def signed(rows: Sequence[Row], name: str, tool: Tool, case: Case | None = None) -> list[Row]:
    """Rows with the columns that do not depend on what was measured."""
    where = {"scan": "", "middle": "", "degradation": ""}
    if case:
        where = {"scan": case.scan, "middle": str(case.middle), "degradation": case.task}
    own = {"tool": name, "version": tool.version, "licence": tool.licence}
    machine = {"processor": processor(), "threads": threads()}
    today = {"date": datetime.date.today().isoformat()}
    return [{**own, **where, **row, **machine, **today} for row in rows]


def show(rows: Sequence[Row]) -> None:
    """Print rows, at once."""
    widths = {"tool": 12, "scan": 8, "degradation": 21, "state": 11, "gain_db": 7, "ssim": 7}
    widths |= {"seconds": 8, "memory_gb": 6, "geometry_mm": 7, "notes": 0}
    for row in rows:
        cells = (f"{row.get(name, ''):<{width}}" for name, width in widths.items())
        print("".join(cells).rstrip(), flush=True)


def summary(rows: Sequence[Row], middle: int) -> pd.DataFrame:
    """The mean gain of each tool under each degradation over the scans; mended where it was."""
    table = pd.DataFrame([r for r in rows if r["gain_db"] and r["middle"] == str(middle)])
    table = table[table["state"] != "registered"].sort_values("state")
    last = table.drop_duplicates(CELL, keep="last").astype({"gain_db": float})
    wide = last.pivot_table("gain_db", "tool", "degradation", sort=False)
    return wide.reindex(
        index=[name for name in TOOLS if name in wide.index],
        columns=[task for task in TASKS if task in wide.columns],
    )


def unmeasured(rows: Sequence[Row], cases: Sequence[Case]) -> list[str]:
    """The cells that a tool is made for, but that the table lacks."""
    there = {tuple(row[name] for name in CELL) for row in rows}
    return [
        f"{name} {case.scan} {case.task}"
        for name, tool in TOOLS.items()
        for case in cases
        if fits(tool, case) and (name, case.scan, str(case.middle), case.task) not in there
    ]


def fits(tool: Tool, case: Case) -> bool:
    """Whether a tool is made for a case."""
    factor = degradation_of(case.task).coarser
    return tool.takes(factor) and min(case.truth.shape) >= tool.least


def run(
    names: Sequence[str],
    cases: Sequence[Case],
    *,
    every: bool = False,
    budget: float = 0,
    path: Path = TABLE,
) -> None:
    """Run tools on cases, slow ones on few of them unless ``every``; keep and print all rows."""
    for name in names:
        tool = TOOLS[name]
        try:
            places = install(name, tool, ENVIRONMENTS)
        except Failed as err:
            write(signed([{"notes": str(err)}], name, tool), path)
            continue
        for case in cases:
            affordable = every or not tool.slow or (case.scan, case.task) in SLOW
            if affordable and fits(tool, case):
                rows = run_tool(tool, case, places, budget or tool.budget)
                write(signed(rows, name, tool, case), path)


def write(rows: Sequence[Row], path: Path) -> None:
    """Keep and print rows."""
    keep(rows, path)
    show(rows)


def main() -> None:
    """Read the command line, run, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", nargs="*", help=f"of {', '.join(TOOLS)}; default: all")
    parser.add_argument("--scans", nargs="+", default=SCANS, help="test scans, or files")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    parser.add_argument("--middle", type=int, default=MIDDLE["quick"], help="voxels; 0: all")
    parser.add_argument("--every", action="store_true", help="slow tools on all cells, too")
    parser.add_argument("--budget", type=float, default=0, help="processor seconds per call")
    asked = parser.parse_args()
    if unknown := [name for name in asked.tools if name not in TOOLS]:
        parser.error(f"no such tool: {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    warnings.simplefilter("ignore", ScanWarning)
    if not (root() / "csv" / "example.csv").exists():
        build(manifest=root() / "csv" / "example.csv")
    scans = [load(scan, asked.middle) for scan in asked.scans]
    cases = [degraded(n, hr, task, asked.middle) for n, hr in scans for task in asked.tasks]
    run(asked.tools or [*TOOLS], cases, every=asked.every, budget=asked.budget)
    print(f"\n{summary(read(), asked.middle).round(2).to_string()}")
    print("not measured:", "; ".join(unmeasured(read(), cases)) or "nothing")


if __name__ == "__main__":
    main()
