"""Smooth random fields, diffeomorphic warps, and blurs and interpolations as one matrix per axis."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional


def smooth_field(
    rng: np.random.Generator, shape: Sequence[int], points: int, std: float, channels: int = 1
) -> torch.Tensor:
    """Normal values of the given std on ``points`` per axis, interpolated linearly to (channels, X, Y, Z)."""
    coarse = torch.from_numpy(rng.normal(0, std, (1, channels, *(points,) * 3)).astype(np.float32))
    return functional.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def sample(image: torch.Tensor, displacement: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """``image`` (C, X, Y, Z) read at x + displacement(x), displacement (3, ...) in voxels; edges are repeated."""
    axes = [torch.arange(n, dtype=torch.float32) for n in displacement.shape[1:]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    half = torch.tensor([max(n - 1, 1) / 2 for n in image.shape[1:]]).view(3, 1, 1, 1)
    grid = (position / half - 1).flip(0).movedim(0, -1)  # grid_sample wants (z, y, x) in [-1, 1]
    return functional.grid_sample(image[None], grid[None], mode=mode, padding_mode="border", align_corners=True)[0]


def integrate(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """Displacement at time 1 of a stationary velocity field (3, X, Y, Z), in voxels, by scaling and squaring.

    The flow of a smooth velocity is invertible (Arsigny et al., MICCAI 2006): its Jacobian stays positive.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample(displacement, displacement)
    return displacement


def draw_warp(rng: np.random.Generator, shape: Sequence[int], points: int, std: float) -> torch.Tensor:
    """A random diffeomorphic displacement (3, X, Y, Z) in voxels, integrated at half size.

    ``std`` is that of the velocity at the coarse points, in voxels of the full size.
    """
    half = [-(-n // 2) for n in shape]
    displacement = integrate(smooth_field(rng, half, points, std / 2, channels=3)) * 2
    return functional.interpolate(displacement[None], size=tuple(shape), mode="trilinear", align_corners=True)[0]


def band_noise(rng: np.random.Generator, shape: Sequence[int], width: float) -> torch.Tensor:
    """Unit-variance noise (X, Y, Z) whose finest wavelength is about ``width`` voxels; its local mean is zero."""
    small = [max(int(np.ceil(2 * n / width)), 3) for n in shape]
    white = torch.from_numpy(rng.standard_normal(small, dtype=np.float32))[None, None]
    fine = white - functional.avg_pool3d(white, 3, 1, 1)
    fine = functional.interpolate(fine, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return fine / fine.std()


def blur_matrix(n: int, sigma: float) -> np.ndarray | None:
    """Gaussian blur of ``n`` voxels as a matrix (n, n), cut at 4 sigma; the edge is repeated. None where sigma is 0."""
    if sigma <= 0:
        return None
    reach = np.arange(-int(np.ceil(4 * sigma)), int(np.ceil(4 * sigma)) + 1)
    weights = np.exp(-((reach / sigma) ** 2) / 2)
    rows, matrix = np.arange(n)[:, None], np.zeros((n, n))
    np.add.at(
        matrix, (np.broadcast_to(rows, (n, len(reach))), np.clip(rows + reach, 0, n - 1)), weights / weights.sum()
    )
    return matrix


def linear_matrix(n: int, places: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``n`` voxels at places (m,) in voxels as a matrix (m, n); the edge is repeated."""
    places = np.clip(places, 0, n - 1)
    low = np.minimum(places.astype(int), max(n - 2, 0))
    matrix, rows = np.zeros((len(places), n)), np.arange(len(places))
    matrix[rows, low] = 1 - (places - low)
    matrix[rows, np.minimum(low + 1, n - 1)] += places - low
    return matrix


def spline_matrix(n: int, places: np.ndarray, order: int) -> np.ndarray:
    """Spline interpolation of ``n`` voxels at places (m,) in voxels, mirrored at the edges, as a matrix (m, n)."""
    if order == 1:
        return linear_matrix(n, places)
    columns = ndimage.spline_filter1d(np.eye(n), order, axis=0, mode="mirror").T
    read_one = partial(ndimage.map_coordinates, coordinates=[places], order=order, mode="mirror", prefilter=False)
    return np.stack([read_one(column) for column in columns], 1)


def separable(image: torch.Tensor, matrices: Sequence[np.ndarray | None]) -> torch.Tensor:
    """A matrix (m, n) along each of the last three axes of ``image`` (..., X, Y, Z); None leaves an axis as it is."""
    x, y, z = (m if m is None else torch.from_numpy(m).to(image) for m in matrices)
    if z is not None:
        image = image @ z.T
    if y is not None:
        image = y @ image
    if x is not None:
        image = (x @ image.flatten(-2)).unflatten(-1, image.shape[-2:])
    return image


def sampling_grid(
    shape: Sequence[int],
    axes: Sequence[np.ndarray],
    linear: np.ndarray,
    shift: np.ndarray,
    warp: torch.Tensor | None = None,
    finer: Sequence[np.ndarray] = (),
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Where to read an image of ``shape`` for each voxel x of three axes: at ``linear`` (x + warp(x)) + shift, in its voxels.

    ``warp`` (3, ...) may be coarse, ``finer`` are then the matrices that bring it on the axes. The result (1, X, Y, Z, 3)
    is for ``read``.
    """
    unit = 2 / np.maximum(np.asarray(shape) - 1, 1)  # grid_sample counts from -1 to 1, in the order z, y, x
    linear, shift = (unit[:, None] * linear)[::-1], (unit * shift - 1)[::-1]
    x, y, z = (torch.tensor(np.outer(linear[:, j], axis), dtype=torch.float32) for j, axis in enumerate(axes))
    plane = (x[:, :, None] + y[:, None] + torch.tensor(shift.copy(), dtype=torch.float32)[:, None, None]).to(device)
    grid = plane[..., None] + z[:, None, None].to(device)
    if warp is not None:
        turned = torch.tensordot(torch.tensor(linear.copy(), dtype=torch.float32), warp, 1).to(device)
        grid += separable(turned, finer)
    return grid.movedim(0, -1)[None]


def read(image: torch.Tensor, grid: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """``image`` (C, X, Y, Z) read on a ``sampling_grid``; zero beyond it."""
    return functional.grid_sample(image[None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0]
