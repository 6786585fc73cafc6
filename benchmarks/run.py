"""Run all benchmarks, or those named, each in a process of its own; print one table."""

import subprocess
import sys
import time
from pathlib import Path

import common

SCRIPTS = (
    "training_step", "ssim", "backprojection", "interpolation", "synthetic_example",
    "tiled_inference", "networks", "enhance", "mirrored", "patch_stream", "distortions",
)  # fmt: skip


def run(names: list[str]) -> int:
    """The number of scripts that failed; the table holds the rows of the others."""
    folder, began, failed = Path(__file__).parent, time.perf_counter(), []
    for name in names:
        print(f"-- {name}", flush=True)
        if subprocess.run([sys.executable, folder / f"{name}.py"]).returncode:
            failed.append(name)
    print(f"\n{common.processor()}, {common.versions()}")
    common.header()
    for row in common.read():
        if row["benchmark"] in names and row["benchmark"] not in failed:
            common.show(row)
    print(f"{time.perf_counter() - began:.0f} s" + "".join(f"; {name} failed" for name in failed))
    return len(failed)


if __name__ == "__main__":
    asked = sys.argv[1:] or list(SCRIPTS)
    if unknown := [name for name in asked if name not in (*SCRIPTS, "gpu")]:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(SCRIPTS)} and gpu")
    sys.exit(run(asked) and 1)
