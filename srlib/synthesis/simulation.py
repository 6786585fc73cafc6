"""Simulate scans by SynthSR's generative model: draw parameters, then apply them to a label map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from srlib.core.paths import InputError
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume, coarse_grid, reorient, resample
from srlib.synthesis.fields import (
    blur_matrix,
    integrate,
    kernel_reach,
    linear_matrix,
    read,
    sampling_grid,
    separable,
)
from srlib.synthesis.priors import Label, Prior, classes_of, look_up, partners
from srlib.synthesis.settings import Acquisition, Bound, Generation
from srlib.synthesis.slices import ISOTROPIC, Axis, measured

PROBABLY_FINE = 0.05  # share of examples of random resolution at the label map's own spacing (code)
TARGETS = ("input", "real", "classes")  # any other target is a modality of the priors
# least and greatest mean and std of every class where there are no priors (code)
UNKNOWN = ((25.0, 225.0), (5.0, 25.0))

Rigid = tuple[np.ndarray, np.ndarray]  # rotation (3, 3), shift (3,) in mm; about a grid's middle


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map in RAS axes: each voxel holds a place in two tables."""

    index: torch.Tensor  # (X, Y, Z), 0 for background and for all that has no class
    class_of: np.ndarray  # (labels,)
    partner_of: np.ndarray  # (labels,): the same structure on the other side
    spacing_mm: float


def regular(labels: Volume) -> Volume:
    """A label map turned to RAS axes, all of its finest spacing, by the nearest neighbour."""
    labels = reorient(labels)
    finest = min(labels.spacing_mm)
    if max(labels.spacing_mm) <= finest * (1 + ISOTROPIC):
        return labels
    grid = coarse_grid(labels, np.divide(finest, labels.spacing_mm))
    return resample(labels, *grid, order=0, mode="nearest")


def encode(labels: Volume, table: Sequence[Label]) -> LabelMap:
    """Check a label map against a table of classes and make it ``regular``.

    Raises InputError: numbers that are not whole, a label without a row, a label with a side but
    without a partner.
    """
    labels = regular(labels)
    known = {0: 0, **classes_of(table)}
    used = [label for label, class_ in known.items() if class_ is not None or not label]
    other, place = partners(table), dict.fromkeys(known, 0)
    place.update({label: number for number, label in enumerate(used)})
    return LabelMap(
        torch.from_numpy(look_up(labels, place).astype(np.int16)),
        np.array([known[label] or 0 for label in used]),
        np.array([place[other.get(label, label)] for label in used]),
        float(np.mean(labels.spacing_mm)),
    )


@dataclass(frozen=True, eq=False)
class Parameters:
    """All that is random in one example; the noise of its voxels follows from a seed."""

    axes: Sequence[Axis]  # the part of the deformed label map, and the output's voxels in it
    start: Sequence[int]  # the part's first voxel
    linear: np.ndarray  # (3, 3): where the deformed map's voxels come from, about its middle
    translation: np.ndarray  # (3,) voxels
    velocity: np.ndarray  # (3, points...) voxels
    flip: bool
    means: np.ndarray  # (channels, classes): the inputs, then perhaps the target
    stds: np.ndarray  # (channels, classes)
    noise_seed: int
    bias: Sequence[np.ndarray]  # per channel: log bias at coarse points; none for a target
    exponent: np.ndarray  # (channels,)
    slices_mm: np.ndarray  # (inputs, 3): their spacing
    profile_mm: np.ndarray  # (inputs, 3): sigma of their profile
    reach: Sequence  # (inputs, 3): voxels where its kernel ends; or None
    # per further input: how it lay, how it was registered; None: as the first one
    moves: Sequence[tuple[Rigid, Rigid] | None]


@dataclass(frozen=True, eq=False)
class Example:
    """A training example on its output grid, intensities of about [0, 1]."""

    images: torch.Tensor  # (inputs, X, Y, Z)
    reliability: torch.Tensor  # (inputs, X, Y, Z): where a slice was measured, see ``measured``
    target: torch.Tensor  # (1, X, Y, Z)
    classes: torch.Tensor  # (1, X, Y, Z), whole numbers

    def network_input(self, reliability: bool = True) -> torch.Tensor:
        """The network's input, (C, X, Y, Z): the images, each followed by its reliability map."""
        if not reliability:
            return self.images
        return torch.stack([self.images, self.reliability], 1).flatten(0, 1)


def volumes(example: Example, generation: Generation, spacing_mm: float) -> dict[str, Volume]:
    """An example's parts by name, for figures: inputs, measured voxels, target, classes."""
    names = [f"{part} {scan.prior}" for scan in generation.inputs for part in ("input", "measured")]
    names += [f"target ({generation.target})", "classes"]
    parts = torch.cat([example.network_input(), example.target, example.classes]).cpu().numpy()
    affine = np.diag([spacing_mm] * 3 + [1.0])
    return {name: Volume(part, affine) for name, part in zip(names, parts, strict=True)}


def draw(
    rng: Generator,
    label_map: LabelMap,
    generation: Generation,
    *,
    priors: Mapping[str, Prior],
    patch_size: int | Sequence[int],
    spacing_mm: float | None = None,
) -> Parameters:
    """Draw the parameters of one example of ``patch_size`` voxels of ``spacing_mm``.

    The spacing is that of the label map when None. Iglesias et al., NeuroImage 2021; bounds in
    ``Generation``. Without any priors all classes are alike, between the bounds of ``UNKNOWN``.
    Raises InputError for priors without a modality or of another number of classes.
    """
    g, voxel, shape = generation, label_map.spacing_mm, label_map.index.shape
    spacing = spacing_mm or voxel
    axes = [Axis(round(n * spacing / voxel), n, voxel, spacing) for n in per_axis(patch_size)]
    crop = [axis.n for axis in axes]
    start = [rng.integers(room + 1) if room > 0 else room // 2 for room in np.subtract(shape, crop)]
    shear = np.eye(3)
    shear[shear == 0] = rng.uniform(-g.shear, g.shear, 6)
    rotation, scale = _rotation(rng, g.rotation_deg), 1 + _uniform(rng, g.scaling)
    lab2im = g.rules == "lab2im"
    linear = scale[:, None] * (shear @ rotation) if lab2im else rotation @ shear * scale
    velocity = _coarse(rng, g.warp_std, shape, g.warp_grid, 3)
    names = [scan.prior for scan in g.inputs] + [g.target] * (g.target not in TARGETS)
    classes = label_map.class_of.max() + 1
    chosen = np.stack([_prior(name, priors, classes) for name in names], axis=1)
    first, second = chosen[:, :, 0], chosen[:, :, 1]  # (means or stds, channels, classes)
    distribution = g.distribution if priors else "uniform"
    if distribution == "uniform" and (first > second).any():
        raise InputError("uniform priors hold the lowest and the greatest value of each class")
    means, stds = np.maximum(getattr(rng, distribution)(first, second), 0)
    acquired = np.array([_acquired(rng, scan, voxel) for scan in g.inputs])
    slices = acquired[:, 0]
    profile = g.profile * acquired.min(1)
    profile *= g.blur_all | (slices > spacing * (1 + ISOTROPIC))
    # one kernel for all resolutions (code)
    widest = [
        [0.75 * scan.random_mm] * 3 if scan.random_mm else sigma
        for scan, sigma in zip(g.inputs, profile, strict=True)
    ]
    return Parameters(
        axes,
        start,
        linear,
        velocity=velocity,
        means=means,
        stds=stds,
        slices_mm=np.where([[scan.downsampled] for scan in g.inputs], slices, voxel),
        reach=kernel_reach(np.divide(widest, voxel)) if lab2im else [[None] * 3] * len(slices),
        moves=[_misplaced(rng, g) if scan.misplaced else None for scan in g.inputs[1:]],
        translation=_uniform(rng, g.translation_mm) / voxel,
        flip=bool(g.flip and rng.random() < 0.5),
        noise_seed=int(rng.integers(2**62)),
        bias=[*(_bias(rng, g, crop) for _ in g.inputs), np.zeros((1, 1, 1))],
        exponent=np.exp(rng.normal(0, g.gamma_std, len(names))),
        profile_mm=profile
        * rng.uniform(1 / g.blur_range, g.blur_range, (len(slices), 3 if g.blur_per_axis else 1)),
    )


def apply(
    label_map: LabelMap,
    parameters: Parameters,
    generation: Generation,
    *,
    real: np.ndarray | None = None,
) -> Example:
    """The example of a label map and drawn parameters; the same bytes each time.

    ``real`` is the subject's scan (X, Y, Z) on the label map's grid, which a real target needs:
    InputError where it is missing, of another shape or not wanted. Slices keep the field of view,
    as everywhere in this package (the code puts the first one on the first voxel).
    """
    p, g, axes = parameters, generation, parameters.axes
    wanted = tuple(label_map.index.shape) if g.target == "real" else ()
    got = () if real is None else real.shape
    if got != wanted:
        raise InputError(
            f"target {g.target!r}: expected {'a' if wanted else 'no'} real scan {wanted}, got {got}"
        )
    lab2im = g.rules == "lab2im"
    beyond = "border" if lab2im else "zeros"
    grid, class_of = _grid(p, label_map.index.shape, lab2im), label_map.class_of
    if p.flip:  # left labels become right ones, so that left structures stay left
        grid, class_of = grid.flip(1), class_of[label_map.partner_of]
    index = read(label_map.index.float(), grid, "nearest", beyond).long()
    classes = torch.from_numpy(class_of)[index]

    noise, crisp = torch.Generator().manual_seed(p.noise_seed), []
    means, stds = torch.from_numpy(np.stack([p.means, p.stds])).float()
    for mean, std, bias, exponent in zip(means, stds, p.bias, p.exponent, strict=False):
        image = torch.randn(classes.shape, generator=noise)
        image = image * std[classes] + mean[classes]
        coarse = zip(bias.shape, axes, strict=True)
        finer = [linear_matrix(n, _spread(axis.n, n, lab2im)) for n, axis in coarse]
        image *= separable(torch.from_numpy(bias).float(), finer).exp()
        image = _unit(image.clamp(0, g.clip)) ** float(exponent)
        reach = kernel_reach(g.blur) if lab2im else None
        crisp.append(separable(image, [blur_matrix(axis.n, g.blur, reach) for axis in axes]))

    images, maps = [], []
    for image, slices, profile, reach, move in zip(
        crisp, p.slices_mm, p.profile_mm, p.reach, [None, *p.moves], strict=False
    ):
        if move:
            image = _moved(image, move[0], axes[0].voxel, beyond)
        image = separable(image, map(Axis.acquire, axes, slices, profile, [g.order] * 3, reach))
        gaps = np.ix_(*map(Axis.gap, axes, slices))
        known = torch.from_numpy(measured(gaps, axes[0].spacing, g.maps))
        if move:
            image, known = (
                _moved(part, move[1], axes[0].spacing, beyond) for part in (image, known)
            )
        images.append(image)
        maps.append(known)

    if real is not None:
        whole = torch.from_numpy(real.astype(np.float32))
        crisp.append(_unit(read(whole, grid, beyond=beyond)))
    nearest = [np.rint(axis.places).astype(int).clip(0, axis.n - 1) for axis in axes]
    classes = target = classes[np.ix_(*nearest)].float()
    if g.target != "classes":
        image = crisp[0 if g.target == "input" else -1]
        target = separable(image, [axis.shrink(lab2im) for axis in axes])
    return Example(torch.stack(images), torch.stack(maps), target[None], classes[None])


def _spread(n: int, points: int, lab2im: bool) -> np.ndarray:
    """Places of ``n`` voxels among coarse points, that span them or begin with them (lab2im)."""
    return np.arange(n) * points / n if lab2im else np.linspace(0, points - 1, n)


def _grid(p: Parameters, shape: Sequence[int], lab2im: bool = False) -> torch.Tensor:
    """Where each voxel of the crop comes from in the label map.

    The warp is integrated at half size (code), and no farther from the crop than it flows.
    """
    at = [start + np.arange(axis.n) for start, axis in zip(p.start, p.axes, strict=True)]
    ratios, smooth, finer = [], [], []
    for n, points, x in zip(shape, p.velocity.shape[1:], at, strict=True):
        half = max(n // 2 if lab2im else -(-n // 2), points)
        ratio = half / n if lab2im else (half - 1) / max(n - 1, 1)
        x = x * ratio
        ratios.append(1.0 if lab2im else ratio)
        reach = np.abs(p.velocity).max() * ratios[-1] + 2
        low, high = max(int(x[0] - reach), 0), int(x[-1] + reach) + 2
        smooth.append(linear_matrix(points, _spread(half, points, lab2im)[low:high]))
        finer.append(linear_matrix(len(smooth[-1]), x - low))
    ratio = torch.tensor(ratios).view(3, 1, 1, 1)
    warp = integrate(separable(torch.from_numpy(p.velocity).float(), smooth) * ratio) / ratio
    middle = (np.array(shape) - 1) / 2
    shift = middle - p.linear @ middle + p.translation
    return sampling_grid(shape, at, p.linear, shift, warp, finer)


def _moved(image: torch.Tensor, rigid: Rigid, voxel: float, beyond: str) -> torch.Tensor:
    """Read an image (X, Y, Z) at a rigid motion of its voxels about its middle."""
    rotation, shift = rigid
    middle = (np.array(image.shape) - 1) / 2
    axes = [np.arange(-m, m + 1) for m in middle]
    grid = sampling_grid(image.shape, axes, rotation, shift / voxel + middle)
    return read(image, grid, beyond=beyond)


def _misplaced(rng: Generator, g: Generation) -> tuple[Rigid, Rigid]:
    """How a further input lay against the first one, and how it came back by registration."""
    rotation = _rotation(rng, g.misplaced_deg)
    shift = rng.uniform(-g.misplaced_mm, g.misplaced_mm, 3)
    turned, rest = _rotation(rng, g.residual_deg), rng.uniform(-g.residual_mm, g.residual_mm, 3)
    if g.rules == "lab2im":
        back = turned @ rotation.T
        return (rotation, shift), (back, rest - back @ shift)
    return (rotation, shift), (rotation.T @ turned, rotation.T @ (rest - shift))


def _uniform(rng: Generator, bound: Bound) -> np.ndarray:
    """Uniform numbers within +- a bound, one per axis."""
    return rng.uniform(-np.array(bound), bound, 3)


def _rotation(rng: Generator, degrees: Bound) -> np.ndarray:
    """Rotations about x, y and z by uniform angles within +- ``degrees``, (3, 3)."""
    angles = _uniform(rng, degrees)
    angles[1] *= -1  # either sign is as likely; this one the results were drawn with
    return Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()


def _coarse(
    rng: Generator, most: float, shape: Sequence[int], points: float, *channels: int
) -> np.ndarray:
    """Normal values at ``points`` per voxel, (channels..., x, y, z), of a std drawn up to most."""
    size = np.maximum(np.ceil(np.multiply(shape, points)), 2).astype(int)
    return rng.normal(0, rng.uniform(0, most), (*channels, *size))


def _bias(rng: Generator, g: Generation, shape: Sequence[int]) -> np.ndarray:
    """A channel's log bias at coarse points; zeros where it has none."""
    field = _coarse(rng, g.bias_std, shape, g.bias_grid)
    return field if g.bias_share == 1 or rng.random() < g.bias_share else 0 * field


def _acquired(
    rng: Generator, scan: Acquisition, voxel: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Spacing and thickness of an acquisition's slices in mm."""
    if scan.random_mm is None:
        return scan.spacing_mm, scan.thickness_mm or scan.spacing_mm
    fine = rng.random() < PROBABLY_FINE
    spacing = [voxel] * 3 if fine else rng.uniform(voxel, scan.random_mm, 3)
    return spacing, rng.uniform(voxel, spacing)


def _prior(name: str, priors: Mapping[str, Prior], classes: int) -> Prior:
    """The prior of a modality, or of what stands before its underscore: "t1" for "t1_lr"."""
    if not priors:
        return tuple(np.repeat(np.array(part)[:, None], classes, axis=1) for part in UNKNOWN)
    found = priors.get(name, priors.get(name.partition("_")[0]))
    if found is None:
        raise InputError(f"no intensity priors for {name!r}; the table has {', '.join(priors)}")
    count = found[0].shape[1]
    if count != classes:
        raise InputError(
            f"priors of {name!r} for {count} classes; the label table has {classes}: measure them "
            "with it ('srlib priors --classes')"
        )
    return found


def _unit(image: torch.Tensor) -> torch.Tensor:
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp(min=1e-7)
