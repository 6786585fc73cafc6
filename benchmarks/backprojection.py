"""Sparse-view CT of a slice: our projector and filtered back-projection against scikit-image."""

import itertools

import numpy as np
from common import interleaved, main, row
from skimage import transform
from skimage.data import shepp_logan_phantom

from srlib.degradations.tomography import fbp, radon

SIZE, STEP = 512, 16
ANGLES = np.linspace(0, 180, 1000, endpoint=False)[::STEP]  # 63 of 1,000, as in the CT system


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference over that of the peer."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def run() -> None:
    """Projection and reconstruction, then both of a geometry that was not seen before."""
    image = transform.resize(shepp_logan_phantom(), (SIZE, SIZE)).astype(np.float32)
    turned = itertools.count(1)

    def new_geometry() -> np.ndarray:
        angles = ANGLES + 1e-6 * next(turned)
        return fbp(radon(image, angles), angles, SIZE)

    def theirs() -> np.ndarray:
        sinogram = transform.radon(image, ANGLES, circle=False)
        return transform.iradon(sinogram, ANGLES, SIZE, circle=False)

    sinogram = transform.radon(image, ANGLES, circle=False)
    assert error(radon(image, ANGLES), sinogram.T) < 0.01
    assert error(fbp(sinogram.T, ANGLES, SIZE), theirs()) < 0.05
    pairs = {
        "radon": (
            lambda: radon(image, ANGLES),
            lambda: transform.radon(image, ANGLES, circle=False),
        ),
        "fbp": (
            lambda: fbp(sinogram.T, ANGLES, SIZE),
            lambda: transform.iradon(sinogram, ANGLES, SIZE, circle=False),
        ),
        "radon + fbp, new geometry": (new_geometry, theirs),
    }
    for name, calls in pairs.items():
        seconds = interleaved(*calls, warm=False)
        what = f"{name}, {SIZE} px, {len(ANGLES)} views"
        row("backprojection", what, "scikit-image", seconds, packages=("scikit-image",))


if __name__ == "__main__":
    main(run)
