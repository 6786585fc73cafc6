"""Random anatomy: smooth diffeomorphic warps and fields, drawn from a seeded generator and then applied."""

from collections.abc import Sequence

import numpy as np
import torch
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
