"""Simulate 2-D images of random anatomy: CT slices of a head and ultrasound frames."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage, signal

from srlib.synthesis.fields import band_noise, draw_warp, smooth_field

AIR, CSF, GREY, WHITE, SOFT, BONE = -1000.0, 8.0, 38.0, 28.0, 45.0, 1000.0  # HU
DYNAMIC_RANGE_DB = 60.0


def ct_slice(rng: Generator, size: int) -> np.ndarray:
    """A simulated axial head CT in HU, float32 (size, size) with x first.

    It shows air, scalp, skull, brain, ventricles and lesions: ellipses and the distance to the
    brain's border, under a smooth random warp. Edges are one pixel wide, so there is partial
    volume. One to four lesions are 20 to 60 HU above or below their surroundings; texture, white
    noise of 4 HU. Ours; it follows no measured statistics.
    """
    index = np.indices((size, size), dtype=np.float32)
    moved = index + draw_warp(rng, (size, size, 1), points=5, std=size / 80)[:2, ..., 0].numpy()
    at = (moved - (size - 1) / 2) * (2 / size)  # -1 to 1 across the slice
    axes, turn = rng.uniform((0.5, 0.62), (0.6, 0.75)), rng.uniform(-0.15, 0.15)
    inside = _ellipse(at, rng.uniform(-0.05, 0.05, 2), axes, turn) > 0.5
    signed = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    depth = signed - np.where(inside, 0.5, -0.5)  # pixels from the brain's border
    depth = ndimage.gaussian_filter(depth, 1.5)  # smooth along it
    folds = 1 + 0.4 * _texture(rng, size, size / 12)
    white = _edge(depth - 0.035 * size * folds)
    fluid, place = np.zeros_like(white), rng.uniform((0.08, -0.1), (0.13, 0.1))
    for side in (-1, 1):
        axes, tilt = rng.uniform((0.03, 0.12), (0.07, 0.24)), rng.uniform(0.1, 0.3)
        fluid = np.maximum(fluid, _ellipse(at, place * (side, 1), axes, side * tilt))
    brain = _edge(depth)
    gap, bone, scalp = size * rng.uniform((0.006, 0.015, 0.012), (0.012, 0.03, 0.02))
    image = np.full((size, size), AIR, dtype=np.float32)
    for cover, value in (
        (_edge(depth + gap + bone + scalp), SOFT),
        (_edge(depth + gap + bone), BONE + 150 * _texture(rng, size, 6)),
        (_edge(depth + gap), CSF),
        (brain, GREY),
        (white, WHITE),
        (fluid, CSF),
    ):
        image += cover * (value - image)
    middle = np.argwhere(depth >= 0.4 * depth.max())
    for _ in range(rng.integers(1, 5)):
        centre = at[:, *middle[rng.integers(len(middle))]]
        lesion = _ellipse(at, centre, rng.uniform(0.02, 0.12, 2), rng.uniform(0, np.pi))
        image += lesion * rng.choice([-1, 1]) * rng.uniform(20, 60)
    uneven = smooth_field(rng, (size, size, 1), 6, 3.0)[0, ..., 0].numpy()
    image += brain * (uneven + 3 * _texture(rng, size, 3))
    return np.maximum(image + rng.normal(0, 4, image.shape), -1024).astype(np.float32)


def bmode(
    rng: Generator, beams: int = 128, depth: int = 512
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A simulated B-mode frame (beams, depth) in [0, 1], its radii in mm, its angles in radians.

    Gaussian random scatterers, see ``echoes``: anechoic cysts and hyperechoic targets, round in mm,
    in uneven tissue, and single point targets. Drawn by us.
    """
    radii, angles = np.linspace(40, 140, depth), np.linspace(-0.6, 0.6, beams)
    scatterers = rng.standard_normal((beams, depth)) * _targets(rng, radii, angles)
    points = rng.integers((beams, depth), size=(rng.integers(4, 9), 2))
    scatterers[tuple(points.T)] = rng.uniform(20, 60, len(points))
    return echoes(scatterers), radii, angles


def echoes(scatterers: np.ndarray) -> np.ndarray:
    """The image in [0, 1] of the amplitudes of scatterers (beams, depth), of any unit, float32.

    They are seen through a pulse of four samples per cycle and a lateral Gaussian that widens with
    depth at constant power; then envelope and log compression, 0 lying 60 dB below the brightest
    echo. A linear model: no attenuation, shadows or reverberation.
    """
    sigmas = np.linspace(0.8, 2.0, scatterers.shape[1])  # in beams
    lines = [
        ndimage.gaussian_filter1d(line, sigma)
        for line, sigma in zip(scatterers.T, sigmas, strict=True)
    ]
    same_variance = np.sqrt(2 * np.sqrt(np.pi) * sigmas)  # as before, of white noise
    seen = np.stack(lines, axis=1) * same_variance
    time = np.arange(-10, 11)
    pulse = np.exp(-((time / 3) ** 2) / 2) * np.cos(np.pi / 2 * time)
    envelope = np.abs(signal.hilbert(ndimage.convolve1d(seen, pulse, axis=1), axis=1))
    decibels = 20 * np.log10(np.maximum(envelope / envelope.max(), 1e-9))
    return np.clip(1 + decibels / DYNAMIC_RANGE_DB, 0, 1).astype(np.float32)


def _targets(rng, radii, angles):
    """Amplitude of echoes (beams, depth): tissue of about 1, cysts of 0, targets of 3 to 5."""
    shape = (len(angles), len(radii))
    amplitude = np.exp(smooth_field(rng, (*shape, 1), 7, 0.35)[0, ..., 0].numpy())
    x, y = radii * np.sin(angles)[:, None], radii * np.cos(angles)[:, None]
    for low, high, count in ((0.0, 0.0, rng.integers(2, 5)), (3.0, 5.0, rng.integers(1, 4))):
        for _ in range(count):
            beam, sample = (int(n * rng.uniform(0.1, 0.9)) for n in shape)
            inside = np.hypot(x - x[beam, sample], y - y[beam, sample]) < rng.uniform(3, 10)  # mm
            amplitude[inside] = rng.uniform(low, high)
    return amplitude


def _ellipse(at, centre, axes, turn):
    """How much of each pixel an ellipse covers, from the distance to its border to first order."""
    x, y = (a - c for a, c in zip(at, centre, strict=True))
    u = (np.cos(turn) * x + np.sin(turn) * y) / axes[0]
    v = (np.cos(turn) * y - np.sin(turn) * x) / axes[1]
    radius = np.hypot(u, v)
    slope = np.hypot(u / axes[0], v / axes[1]) / np.maximum(radius, 1e-6)
    return _edge((1 - radius) / np.maximum(slope, 1e-6) * at.shape[1] / 2)


def _edge(distance):
    """Share of a pixel on the positive side of a border, by its centre's distance in pixels."""
    return np.clip(distance + 0.5, 0, 1)


def _texture(rng, size, width):
    """Random texture (size, size) of details as wide as ``width`` pixels."""
    return band_noise(rng, (size, size, 1), width)[..., 0].numpy()
