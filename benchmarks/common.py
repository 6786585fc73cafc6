"""Time ours and a peer in turn, print the row of a figure and keep it in results.csv."""

import csv
import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from srlib.core.device import processor

RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = (
    "benchmark", "ours", "peer", "ratio", "seconds_ours", "seconds_peer", "processor", "threads",
    "precision", "device", "versions", "date",
)  # fmt: skip
# a row with the same values here is replaced
KEY = ("benchmark", "ours", "peer", "processor", "threads", "precision", "device")
PACKAGES = ("numpy", "scipy", "torch")  # whose versions every row tells
Row = dict[str, str]


def interleaved(
    *calls: Callable[[], object],
    repeats: int = 5,
    warm: bool = True,
    device: torch.device | str = "cpu",
) -> list[float]:
    """The median seconds of each call; they take turns, after a round that is not timed."""
    for call in calls if warm else ():
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, found in zip(calls, seconds, strict=True):
            _finish(device)
            began = time.perf_counter()
            call()
            _finish(device)
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]


def _finish(device: torch.device | str) -> None:
    """Wait for a GPU, whose work goes on when a call has returned."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def row(
    benchmark: str,
    ours: str,
    peer: str,
    seconds: tuple[float, float],
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    packages: tuple[str, ...] = (),
    path: Path = RESULTS,
) -> Row:
    """Print and keep what ours and the peer took, in seconds; the ratio is above 1 where ours is
    faster. ``packages``: the peer's.
    """
    cuda = torch.device(device).type == "cuda"
    made = {
        "benchmark": benchmark,
        "ours": ours,
        "peer": peer,
        "ratio": f"{seconds[1] / seconds[0]:.3g}",
        "seconds_ours": f"{seconds[0]:.4g}",
        "seconds_peer": f"{seconds[1]:.4g}",
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "versions": versions(packages),
        "date": datetime.date.today().isoformat(),
    }
    show(made)
    upsert(made, path)
    return made


def show(made: Mapping[str, str]) -> None:
    """Print a row of the table, at once."""
    cells = (made["benchmark"], made["ratio"], made["seconds_ours"], made["seconds_peer"])
    print("{:<17} {:>7} {:>9} {:>9}".format(*cells), end="  ")
    print(f"{made['ours']} | {made['peer']} | {made['precision']}, {made['device']}", flush=True)


def header() -> None:
    """Print the head of the table."""
    print(
        f"{'benchmark':<17} {'ratio':>7} {'ours (s)':>9} {'peer (s)':>9}  ours | peer", flush=True
    )


def read(path: Path = RESULTS) -> list[Row]:
    """The kept rows; none where there is no file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def upsert(made: Row, path: Path = RESULTS) -> None:
    """Add a row to a table, or put it in the place of the one with the same KEY."""
    key = [made[name] for name in KEY]
    rows = read(path)
    at = [index for index, old in enumerate(rows) if [old[name] for name in KEY] == key]
    rows[slice(at[0], at[0] + 1) if at else slice(len(rows), None)] = [made]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def versions(packages: tuple[str, ...] = ()) -> str:
    """The versions of Python, of PACKAGES and of a peer's packages, where they are installed."""
    found = [f"python {platform.python_version()}"]
    for name in (*PACKAGES, *packages):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(dict.fromkeys(found))


def busy(seconds: float = 0.5) -> float:
    """The share of the machine's cores that other processes use now; 0 where it cannot be told."""
    stat, ticks = Path("/proc/stat"), []
    for wait in (seconds, 0) if stat.exists() else ():
        ticks.append([int(n) for n in stat.read_text(encoding="utf-8").split()[1:9]])
        time.sleep(wait)
    if not ticks:
        return 0.0
    spent = [after - before for before, after in zip(*ticks, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(sum(spent), 1)  # idle, and waiting for a disk


def main(run: Callable[[], None]) -> None:
    """Run a script: the head of the table, then its rows."""
    if (share := busy()) > 0.1:
        print(f"others use {100 * share:.0f} % of this machine now; these figures are rough")
    header()
    try:
        run()
    except ModuleNotFoundError as err:
        raise SystemExit(f"{err}; the peers come with: pip install -e '.[bench]'") from err
