"""How each metric answers to eight distortions of the MNI152 T1 and a phantom: docs/metrics.csv."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from srlib.data.cohorts import read_template
from srlib.degradations import degrade
from srlib.degradations.resolution import KSpaceTruncation, rician
from srlib.evaluation.quality import consistency, measure
from srlib.scans.volume import Volume

TABLE = Path(__file__).parents[1] / "docs" / "metrics.csv"
TASK = "gaussian_x2"  # of data consistency
METRICS = ["psnr", "ssim3d", "ssim2d", "nrmse", "sharpness", "hfen", "haarpsi"]
METRICS += ["resolution_x", "resolution_y", "resolution_z", "consistency"]


def phantom(size: int = 96) -> Volume:
    """A head of odd sizes and 1 x 1 x 1.5 mm: an ellipsoid of blobs with sharp borders, in [0, 1]."""
    shape = (size + 1, size - 1, 2 * size // 3)
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    blobs = ndimage.gaussian_filter(rng.standard_normal(shape), (2, 2, 4 / 3))
    fine = ndimage.gaussian_filter(rng.standard_normal(shape), 0.6)
    tissue = np.digitize(blobs / blobs.std(), (-0.5, 0.5)) * 0.25 + 0.3 + 0.03 * fine / fine.std()
    head = np.where(x * x + y * y + z * z < 1, tissue, 0)
    return Volume(ndimage.gaussian_filter(head, 0.5), np.diag([1, 1, 1.5, 1]))


def with_lesion(scan: Volume) -> Volume:
    """The scan with a bright ball of 3 mm radius, a third of the way from its middle to a face."""
    centre = [n * c for n, c in zip(scan.shape, (0.5, 0.5, 2 / 3), strict=True)]
    away = np.ogrid[tuple(map(slice, scan.shape))]
    distance = sum(
        ((a - c) * mm) ** 2 for a, c, mm in zip(away, centre, scan.spacing_mm, strict=True)
    )
    return scan.with_data(np.where(distance < 3**2, 0.9 * scan.data.max(), scan.data))


def distorted(scan: Volume) -> Iterator[tuple[str, Volume, Volume]]:
    """Name, truth and estimate of each distortion."""
    truth, rng = with_lesion(scan), np.random.default_rng(0)
    data, (i, j, k) = truth.data, np.indices(truth.shape, sparse=True)
    field = 0.2 * np.sin(np.pi * (i / len(data) - 0.5))
    made = {
        "blur: Gaussian of sigma 1 voxel": ndimage.gaussian_filter(data, 1),
        "noise: Rician 3 % of the maximum": rician(truth, 0.03, rng).data,
        "shift: half a voxel along x": ndimage.shift(data, (0.5, 0, 0), mode="nearest"),
        "ringing: two thirds of k-space per axis": KSpaceTruncation((1.5, 1.5, 1.5))(truth).data,
        "checkerboard: 5 % more and less": data * (1 + 0.05 * (-1.0) ** (i + j + k)),
        "bias field: 20 % along x": data * (1 + field),
        "lost lesion: ball of 3 mm radius": scan.data,
        "wrong scale: 10 % too bright": data * 1.1,
    }
    for name, estimate in made.items():
        yield name, truth, scan.with_data(estimate)


def rows(name: str, scan: Volume) -> Iterator[list[str]]:
    """The table's rows of one scan."""
    for distortion, truth, estimate in distorted(scan):
        found = measure(truth, estimate, extended=True)["volume"]
        found["consistency"] = consistency(degrade(truth, TASK), estimate, TASK)
        yield [name, distortion, *(f"{found[metric]:.4g}" for metric in METRICS)]


def run() -> None:
    """Write and print the table."""
    scans = {"mni152": read_template()[0], "phantom": phantom()}
    table = [["scan", "distortion", *METRICS], *(row for s in scans.items() for row in rows(*s))]
    TABLE.write_text("".join(f"{','.join(row)}\n" for row in table), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run()
