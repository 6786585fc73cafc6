"""Draw smooth random fields and warps; blur and interpolate by matrices."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch.nn import functional

from srlib.scans.separable import along_axes, spline


def smooth_field(
    rng: Generator, shape: Sequence[int], points: int, std: float, channels: int = 1
) -> torch.Tensor:
    """Normal values of the given std on ``points`` per axis, brought to (channels, X, Y, Z)."""
    coarse = rng.normal(0, std, (channels, points, points, points))
    return _enlarge(torch.from_numpy(coarse).float(), shape)


def _enlarge(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Interpolate an image (C, x, y, z) linearly to (C, X, Y, Z), corner on corner."""
    size = tuple(shape)
    return functional.interpolate(image[None], size, mode="trilinear", align_corners=True)[0]


def sample(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Read ``image`` (C, X, Y, Z) at x + displacement(x); the edges are repeated.

    The displacement (3, ...) is in voxels.
    """
    position = torch.from_numpy(np.indices(displacement.shape[1:], np.float32)) + displacement
    half = torch.tensor([max(n - 1, 1) / 2 for n in image.shape[1:]]).view(3, 1, 1, 1)
    grid = (position / half - 1).flip(0).movedim(0, -1)  # grid_sample wants (z, y, x) in [-1, 1]
    place = grid[None]
    return functional.grid_sample(image[None], place, padding_mode="border", align_corners=True)[0]


def integrate(velocity: torch.Tensor) -> torch.Tensor:
    """Displacement at time 1 of a stationary velocity field (3, X, Y, Z), in voxels.

    By scaling and squaring in 7 steps. The flow of a smooth velocity is invertible (Arsigny et al.,
    MICCAI 2006): its Jacobian stays positive.
    """
    displacement = velocity / 2**7
    for _ in range(7):
        displacement = displacement + sample(displacement, displacement)
    return displacement


def draw_warp(rng: Generator, shape: Sequence[int], points: int, std: float) -> torch.Tensor:
    """A random diffeomorphic displacement (3, X, Y, Z) in voxels, integrated at half size.

    ``std`` is that of the velocity at the coarse points, in voxels of the full size.
    """
    half = [-(-n // 2) for n in shape]
    return _enlarge(integrate(smooth_field(rng, half, points, std / 2, channels=3)) * 2, shape)


def band_noise(rng: Generator, shape: Sequence[int], width: float) -> torch.Tensor:
    """Unit-variance noise (X, Y, Z) with a local mean of zero.

    Its finest wavelength is about ``width`` voxels.
    """
    small = [max(int(np.ceil(2 * n / width)), 3) for n in shape]
    white = torch.from_numpy(rng.standard_normal((1, *small), dtype=np.float32))
    fine = _enlarge(white - functional.avg_pool3d(white, 3, 1, 1), shape)[0]
    return fine / fine.std()


def blur_matrix(n: int, sigma: float, reach: int | None) -> np.ndarray | None:
    """Gaussian blur of ``n`` voxels as a matrix (n, n); None where sigma is 0.

    The kernel is cut at 4 sigma; the edge is repeated. With a ``reach`` it is cut there, and the
    voxels beyond the edge are zero.
    """
    if sigma <= 0:
        return None
    mode, radius = ("nearest", int(np.ceil(4 * sigma))) if reach is None else ("constant", reach)
    return ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, mode=mode, radius=radius)


def kernel_reach(sigma: float | np.ndarray) -> int | np.ndarray:
    """Voxels from the middle of a kernel to its end in lab2im, which halves ceil(2.5 sigma)."""
    return (np.ceil(2.5 * np.asarray(sigma)) // 2).astype(int)


def linear_matrix(n: int, places: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``n`` voxels at places (m,) in voxels as a matrix (m, n).

    The edge is repeated.
    """
    distance = np.abs(np.clip(places, 0, n - 1)[:, None] - np.arange(n))
    return np.maximum(1 - distance, 0)


def spline_matrix(n: int, places: np.ndarray, order: int) -> np.ndarray:
    """Spline interpolation of ``n`` voxels at places (m,) in voxels as a matrix (m, n).

    The voxels are mirrored at the edges; for order 1 the edge is repeated.
    """
    if order == 1:
        return linear_matrix(n, places)
    return spline(n, places, order=order, mode="mirror")


def separable(image: torch.Tensor, matrices: Iterable[np.ndarray | None]) -> torch.Tensor:
    """Apply a matrix (m, n) along each of the last three axes of ``image`` (..., X, Y, Z).

    None leaves an axis as it is.
    """
    leading = [None] * (image.ndim - 3)
    return torch.from_numpy(along_axes(image.numpy(), [*leading, *matrices]))


def sampling_grid(
    shape: Sequence[int],
    axes: Sequence[np.ndarray],
    linear: np.ndarray,
    shift: np.ndarray,
    warp: torch.Tensor | None = None,
    finer: Sequence[np.ndarray] = (),
) -> torch.Tensor:
    """Where to read an image of ``shape`` for each voxel x of three axes, for ``read``.

    It is ``linear`` (x + warp(x)) + shift in the image's voxels. ``warp`` (3, ...) may be coarse:
    ``finer`` are the matrices that bring it on the axes. Returns (1, X, Y, Z, 3).
    """
    unit = 2 / np.maximum(np.array(shape) - 1, 1)[:, None]
    linear = (unit * linear)[::-1]  # grid_sample counts from -1 to 1, in the order z, y, x
    shift = (unit * shift[:, None] - 1)[::-1, :, None, None]
    parts = map(np.multiply.outer, linear.T, np.ix_(*axes))
    x, y, z, shift = (part.astype(np.float32) for part in (*parts, shift))
    grid = torch.from_numpy(x + y + shift + z)
    if warp is not None:
        turned = torch.tensordot(torch.from_numpy(linear.astype(np.float32)), warp, 1)
        grid += separable(turned, finer)
    return grid.movedim(0, -1)[None]


def read(
    image: torch.Tensor, grid: torch.Tensor, mode: str = "bilinear", beyond: str = "zeros"
) -> torch.Tensor:
    """Read ``image`` (X, Y, Z) on a ``sampling_grid``; beyond it zero, or its edge ("border")."""
    return functional.grid_sample(image[None, None], grid, mode, beyond, align_corners=True)[0, 0]
