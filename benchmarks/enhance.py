"""A thick-slice head with the shipped weights: seconds per million voxels, and of the command."""

import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from common import interleaved, main, row
from scipy import ndimage

from srlib import systems
from srlib.core.device import choose_device
from srlib.core.paths import ScanWarning
from srlib.data.cohorts import read_template
from srlib.degradations.resolution import BlockAverage
from srlib.scans.volume import Volume, save_scan

THICK = 4  # mm
PRECISIONS = ("32", "bf16")


def thick_head() -> Volume:
    """The MNI152 T1 of 1 mm (197x233x189) in slices of 4 mm."""
    return BlockAverage((1, 1, THICK))(read_template()[0])


def run() -> None:
    """Each precision against SciPy's cubic interpolation, then the whole command once."""
    warnings.simplefilter("ignore", ScanWarning)  # that slices are far apart
    device, scan = choose_device(), thick_head()
    shape = (*scan.shape[:2], scan.shape[2] * THICK)
    step = np.array([1, 1, 1 / THICK])

    def cubic() -> np.ndarray:
        place = step, (step - 1) / 2, shape, np.float32
        return ndimage.affine_transform(scan.data, *place, order=3, mode="mirror")

    for precision in PRECISIONS:
        model = systems.load_model(precision=precision)
        ours = partial(systems.super_resolve, scan, model, factor=(1, 1, THICK))
        seconds = interleaved(ours, cubic, repeats=1, warm=device.type != "cpu", device=device)
        millions = np.prod(shape) / 1e6
        print(f"{seconds[0] / millions:.2f} s per million voxels, {millions:.2f} of them")
        what = "super_resolve, head of 4 mm slices"
        row("enhance", what, "scipy cubic", seconds, precision=precision, device=device)
    with tempfile.TemporaryDirectory() as folder:
        given, made = (str(Path(folder) / name) for name in ("scan.nii.gz", "sr.nii.gz"))
        save_scan(scan, given)
        command = [sys.executable, "-m", "srlib", "enhance", given, made]
        whole = partial(subprocess.run, command, check=True, capture_output=True)
        seconds = interleaved(whole, cubic, repeats=1, warm=False)
        what = "srlib enhance, head of 4 mm slices"
        row("enhance", what, "scipy cubic", seconds, precision="auto", device=device)


if __name__ == "__main__":
    main(run)
