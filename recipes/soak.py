"""Enhance many small scans in three ways and write what it took to benchmarks/soak.csv (ours).

    python recipes/soak.py --count 2000

One process, stopped in the middle and resumed; two processes; a Dask cluster of two workers, one of
which is killed twice on the way (needs srlib[cluster]). All must give the same bytes.
"""

import argparse
import hashlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil

from srlib.core.device import processor
from srlib.core.paths import root
from srlib.core.processes import cores
from srlib.core.tables import read_table
from srlib.scans.formats import load_scan
from srlib.systems.trained import load_model

WEIGHTS, SIZE = "recnn_x2", 6
SRLIB = [sys.executable, "-m", "srlib", "enhance", "--weights", WEIGHTS, "--device", "cpu"]


def make(folder: Path, count: int) -> Path:
    """A folder of small scans of random voxels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        data = rng.integers(0, 1000, (SIZE,) * 3, dtype=np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1])), folder / f"s{number:05}.nii")
    return folder


def alone(folder: Path, count: int = 200) -> float:
    """Seconds that the network and its interpolation take for a scan."""
    model, scans = load_model(WEIGHTS, device="cpu"), sorted(folder.iterdir())[:count]
    volumes = [load_scan(path) for path in scans]
    model.predict(volumes[0])
    began = time.perf_counter()
    for volume in volumes:
        model.predict(volume)
    return (time.perf_counter() - began) / len(volumes)


class Watched:
    """A command with its seconds, its log, and its memory (MB) at each number of outputs."""

    def __init__(self, scans: Path, out: Path, *words: str) -> None:
        self.out, self.memory = out, {}
        self.log, self._began = out.with_suffix(".log"), time.perf_counter()
        with open(self.log, "w") as log:
            command = [*SRLIB, str(scans), str(out), *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        threading.Thread(target=self._watch, daemon=True).start()

    def done(self) -> int:
        """How many outputs there are."""
        return len(list(self.out.glob("[!.]*.nii.gz")))

    def _watch(self) -> None:
        while self.process.poll() is None:
            with suppress(psutil.Error):
                own = psutil.Process(self.process.pid)
                parts = [own, *own.children(recursive=True)]
                self.memory[self.done()] = sum(p.memory_info().rss for p in parts) / 1e6
            time.sleep(0.5)

    def wait_for(self, outputs: int) -> None:
        """Wait until so many outputs are there."""
        while self.done() < outputs and self.process.poll() is None:
            time.sleep(0.05)

    def end(self, expected: int = 0) -> float:
        """Wait for the end; seconds since the beginning. Raises where the exit code is another."""
        if self.process.wait() != expected:
            raise SystemExit(self.log.read_text()[-2000:])
        return time.perf_counter() - self._began

    def growth_mb(self, count: int) -> float:
        """Memory at the end less that after a tenth of the scans."""
        late = [mb for n, mb in self.memory.items() if n > 0.9 * count]
        early = [mb for n, mb in self.memory.items() if 0.1 * count < n < 0.2 * count]
        return max(late) - max(early) if late and early else np.nan


def digests(folder: Path) -> dict[str, str]:
    """Hashes of a folder's outputs."""
    files = sorted(folder.glob("[!.]*.nii.gz"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def on_cluster(scans: Path, out: Path, count: int, kills: int = 2) -> tuple[Watched, float, int]:
    """A cluster of two workers, of which one is killed; also how many scans were begun twice."""
    file, logs, parts = out.with_suffix(".json"), out.with_suffix(".workers"), []
    worker = ["dask_worker", "--nthreads", "1", "--local-directory", str(out.parent)]
    with open(logs, "w") as log:
        for name, *words in (["dask_scheduler", "--port", "0"], worker, worker):
            command = [sys.executable, "-m", f"distributed.cli.{name}", "--scheduler-file", file]
            parts.append(subprocess.Popen([*command, *words], stdout=log, stderr=log))
        try:
            run = Watched(scans, out, "--scheduler", str(file))
            for kill in range(1, kills + 1):
                run.wait_for(count * kill // (kills + 1))
                started = psutil.Process(parts[1].pid).children(recursive=True)
                max(started, key=lambda process: process.memory_info().rss).kill()
            spent = run.end()
        finally:
            for part in parts:
                part.terminate()
                part.wait()
    begun = re.findall(r"\] (s\d+\.nii): \d+ x", logs.read_text())
    return run, spent, len(begun) - len(set(begun))


def main() -> None:
    """Run the three ways, compare their bytes and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = make(folder / "scans", count)
        network = alone(scans)

        def row(how: str, run: Watched, seconds: float, workers: int, twice: int) -> None:
            status = [line["status"] for line in read_table(run.out / "summary.csv")]
            rows.append(
                {
                    "how": how,
                    "scans": len(status),
                    "failed": status.count("failed"),
                    "begun twice": twice,
                    "same bytes": "yes" if digests(run.out) == digests(folder / "one") else "no",
                    "ms a scan": 1000 * seconds * workers / count,
                    "ms of the network": 1000 * network,
                    "memory grew by MB": run.growth_mb(count),
                }
            )
            print(rows[-1], flush=True)

        first = Watched(scans, folder / "one")
        first.wait_for(count // 2)
        first.process.send_signal(signal.SIGTERM)
        spent = first.end(130)
        begun = first.done()
        second = Watched(scans, folder / "one")
        spent += second.end()
        kept = second.log.read_text().count("nii: done before")
        row("one process, stopped in the middle and resumed", second, spent, 1, begun - kept)
        two = Watched(scans, folder / "two", "--workers", "2")
        row("two processes", two, two.end(), 2, 0)
        run, spent, twice = on_cluster(scans, folder / "cluster", count)
        row("two workers of a cluster, one killed twice", run, spent, 2, twice)
    table = pd.DataFrame(rows).assign(processor=f"{processor()}, {cores()} cores")
    table.to_csv(root() / "benchmarks" / "soak.csv", index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
