"""SOUP-GAN on a file whose slices lie across z: python soupgan.py SOURCE IN OUT FACTOR.

SOURCE is the folder of KevinSR's source archive, the only one of its files that holds weights: those
of "thin to thin". The others lie on a server, and are not used. The tool takes and returns an
array; the grid that is written here keeps the field of view.
"""

import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np

source, given, made, factor = sys.argv[1:]
archive = next(Path(source).glob("*.tar.gz"))
with tarfile.open(archive) as files:
    files.extractall(".", filter="data")
(root,) = Path(".").glob("KevinSR-*")
sys.path.insert(0, str(root.resolve()))
# it looks for both models in the working directory, and loads the one that is asked for
Path("Thin-to-thin").symlink_to(root / "KevinSR" / "Thin-to-thin")
Path("Thick-to-thin").mkdir()

from KevinSR import SOUP_GAN  # noqa: E402

image, step = nib.load(given), float(factor)
thin = SOUP_GAN(image.get_fdata(), int(step) if step.is_integer() else step, 1)
move = np.diag([1, 1, 1 / step, 1])
move[2, 3] = (1 / step - 1) / 2
nib.save(nib.Nifti1Image(np.asarray(thin, np.float32), image.affine @ move), made)
