"""SSIM of a head-sized volume: srlib.metrics against scikit-image, equal to 1e-6."""

from functools import partial

import numpy as np
from common import interleaved, main, row
from scipy import ndimage
from skimage.metrics import structural_similarity

from srlib import metrics

SHAPE = (192, 224, 192)


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """A smooth volume in [0, 1] and a noisy copy, float32."""
    rng = np.random.default_rng(0)
    hr = ndimage.zoom(rng.random([n // 8 for n in SHAPE], np.float32), 8, order=1)
    noise = rng.standard_normal(SHAPE, np.float32)
    return hr, np.clip(hr + 0.05 * noise, 0, 1, dtype=np.float32)


def slices(hr: np.ndarray, sr: np.ndarray) -> float:
    """The mean over axial slices, by scikit-image."""
    return structural_similarity(hr, sr, data_range=1.0, channel_axis=2)


def run() -> None:
    """Cubic windows, then those of slices."""
    pair = volumes()
    whole = partial(structural_similarity, *pair, data_range=1.0)
    for kind, peer in (("3d", whole), ("2d", partial(slices, *pair))):
        ours = partial(metrics.ssim, *pair, 1.0, kind=kind)
        difference = abs(ours() - peer())
        assert difference <= 1e-6, f"{kind}: {difference}"
        seconds = interleaved(ours, peer, repeats=3, warm=False)
        row(
            "ssim", f"ssim {kind}, 192x224x192", "scikit-image", seconds, packages=("scikit-image",)
        )


if __name__ == "__main__":
    main(run)
