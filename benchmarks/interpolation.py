"""Cubic interpolation on a finer grid: srlib.scans.volume.resample against SciPy, equal to 1e-5."""

import numpy as np
from common import interleaved, main, row
from scipy import ndimage

from srlib.scans.volume import Volume, resample

# of the scan, of the finer grid, and how much finer it is
GRIDS = {
    "slices x4": ((197, 233, 48), (197, 233, 189), (1, 1, 4)),
    "in plane x2": ((256, 160, 160), (256, 320, 320), (1, 2, 2)),
}


def run() -> None:
    """Thick slices to a head's grid, then a k-space scan's in-plane axes."""
    for name, (coarse, fine, factor) in GRIDS.items():
        noise = np.random.default_rng(0).random(coarse, np.float32)
        scan = Volume(ndimage.uniform_filter(noise, 3), np.eye(4))
        step = np.divide(1, factor)
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = (step - 1) / 2  # the same field of view

        def ours(scan: Volume = scan, fine: tuple = fine, affine: np.ndarray = affine):
            return resample(scan, fine, affine, order=3).data

        def peer(scan: Volume = scan, fine: tuple = fine, step: np.ndarray = step):
            return ndimage.affine_transform(
                scan.data, step, (step - 1) / 2, fine, np.float32, order=3, mode="mirror"
            )

        theirs = peer()
        difference = np.abs(ours() - theirs).max() / np.ptp(theirs)
        assert difference <= 1e-5, f"{name}: {difference}"
        seconds = interleaved(ours, peer, repeats=3, warm=False)
        what = f"{name} to {'x'.join(map(str, fine))}"
        row("interpolation", what, "scipy affine_transform", seconds)


if __name__ == "__main__":
    main(run)
