"""Training patches of k-space pairs from compressed volumes: our stream against a plain loop."""

import inspect
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from common import interleaved, main, row
from peers import plain_patches
from scipy import ndimage

from srlib import systems
from srlib.data.manifest import Subject
from srlib.training.examples import PatchDataset

SHAPE, SIZE, SCANS = (256, 320, 320), 64, 4  # an HCP scan; 4x5x5 patches
PATCHES = SCANS * 100
EXPERIMENT = "mdcsrn"


def write_scans(folder: Path) -> list[Subject]:
    """Four subjects of two 12-bit scans on disk, smooth with a little noise."""
    files = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        smooth = ndimage.zoom(rng.random([n // 16 for n in SHAPE], np.float32), 16, order=1)
        noise = rng.random(SHAPE, np.float32)
        image = nib.Nifti1Image((4000 * smooth + 32 * noise).astype(np.int16), np.eye(4))
        files.append(folder / f"scan{seed}.nii.gz")
        nib.save(image, files[-1])
    return [Subject(f"s{i}", "train", {"t1": files[i % 2]}) for i in range(SCANS)]


def consume(patches: Iterator) -> float:
    """Take the first patches, from a cold start; the sum of their means."""
    total = 0.0
    for given, truth in itertools.islice(patches, PATCHES):
        total += float(given.mean() + truth.mean())
    return total


def run() -> None:
    """Ours per number of worker processes, where the stream takes them, and as it is by default."""
    with tempfile.TemporaryDirectory() as name:
        subjects, experiment = write_scans(Path(name)), systems.get(EXPERIMENT)

        def peer() -> float:
            return consume(plain_patches([subject.file("t1") for subject in subjects], SIZE))

        def ours(**options: int) -> float:
            dataset = experiment.examples.open(subjects, experiment.pairs)  # nothing is kept
            with closing(iter(dataset.stream(**options))) as stream:
                return consume(stream)

        takes = inspect.signature(PatchDataset.stream).parameters
        ways = [{"workers": n} for n in range(3)] if "workers" in takes else [{}]
        assert abs(ours() / peer() - 1) < 1e-3, "other patches"
        calls = (partial(ours, **way) for way in ways)
        *seconds, theirs = interleaved(*calls, peer, repeats=2, warm=False)
        for way, taken in zip(ways, seconds, strict=True):
            how = ", ".join(f"{key}={value}" for key, value in way.items()) or "one thread ahead"
            print(f"{PATCHES / taken:.1f} patches/s, {PATCHES / theirs:.1f} by the plain loop")
            what = f"{EXPERIMENT} stream, {PATCHES} patches, {how}"
            row("patch_stream", what, "plain loop", (taken, theirs), packages=("nibabel",))


if __name__ == "__main__":
    main(run)
