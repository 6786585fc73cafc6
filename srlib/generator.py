"""SynthSR's generative model: parameters are drawn, then a label map is painted, acquired and interpolated by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from srlib.fields import blur_matrix, integrate, linear_matrix, read, sampling_grid, separable
from srlib.generation import Acquisition, Generation
from srlib.patches import per_axis
from srlib.paths import InputError
from srlib.priors import UNDETERMINED, Label, Prior, known_labels, partners
from srlib.slices import ISOTROPIC, Axis
from srlib.volume import Volume, reorient

PROBABLY_FINE = 0.05  # share of examples of random resolution that keep that of the label map (code)
TARGETS = ("input", "real", "classes")  # any other target is a modality of the priors

Rigid = tuple[np.ndarray, np.ndarray]  # rotation (3, 3) and shift (3,) in mm, about the middle of a grid


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map in RAS axes, ready to be painted: of each voxel the place of its label in two tables."""

    index: torch.Tensor  # (X, Y, Z), 0 for background and for all that has no class
    class_of: np.ndarray  # (labels,)
    partner_of: np.ndarray  # (labels,): the same structure on the other side
    spacing_mm: float


def encode(labels: Volume, table: Sequence[Label]) -> LabelMap:
    """Check a label map against a table of classes and turn it to RAS axes.

    Raises InputError: numbers that are not whole, a label without a row, spacing that is not isotropic, a label with
    a side but without a partner.
    """
    labels = reorient(labels)
    if np.ptp(labels.spacing_mm) > ISOTROPIC * max(labels.spacing_mm):
        spacing = " x ".join(f"{s:.4g}" for s in labels.spacing_mm)
        raise InputError(f"a label map of {spacing} mm; expected one spacing for all axes, resample it first")
    class_of = {0: 0, **dict.fromkeys(UNDETERMINED), **{entry.label: entry.class_ for entry in table}}
    values, inverse = known_labels(labels, class_of)
    painted = [0, *(label for label, class_ in class_of.items() if label and class_ is not None)]
    place, other = {label: i for i, label in enumerate(painted)}, partners(table)
    dtype = np.uint8 if len(painted) < 256 else np.int16
    index = np.array([place.get(v, 0) for v in values], dtype)[inverse].reshape(labels.shape)
    return LabelMap(
        torch.from_numpy(np.ascontiguousarray(index)),
        np.array([class_of[label] or 0 for label in painted]),
        np.array([place.get(other.get(label, label), 0) for label in painted]),
        float(np.mean(labels.spacing_mm)),
    )


@dataclass(frozen=True, eq=False)
class Parameters:
    """All that is random in one example; the noise of its voxels follows from a seed."""

    size: tuple[int, int, int]  # voxels of the output
    spacing_mm: float  # of the output
    crop: tuple[int, int, int]  # voxels of the deformed label map that it covers
    start: tuple[int, int, int]  # first of them
    linear: np.ndarray  # (3, 3): where the voxels of the deformed map come from, about its middle
    translation: np.ndarray  # (3,) voxels
    velocity: np.ndarray  # (3, points...) voxels
    flip: bool
    means: np.ndarray  # (channels, classes): the inputs, then perhaps the target
    stds: np.ndarray  # (channels, classes)
    noise_seed: int
    bias: tuple[np.ndarray, ...]  # per input: log bias at coarse points
    exponent: np.ndarray  # (channels,)
    slices_mm: np.ndarray  # (inputs, 3): their spacing
    profile_mm: np.ndarray  # (inputs, 3): sigma of their profile
    misplaced: tuple[Rigid, ...]  # per further input: how it lay against the first one
    residual: tuple[Rigid, ...]  # and what registration left of it


@dataclass(frozen=True, eq=False)
class Example:
    """A training example on its output grid, intensities of about [0, 1]."""

    images: torch.Tensor  # (inputs, X, Y, Z)
    reliability: torch.Tensor  # (inputs, X, Y, Z): 1 where a slice was measured
    target: torch.Tensor  # (1, X, Y, Z)
    classes: torch.Tensor  # (1, X, Y, Z), whole numbers

    def network_input(self, reliability: bool = True) -> torch.Tensor:
        """What the network sees, (C, X, Y, Z): the images, each followed by its reliability map."""
        return torch.stack([self.images, self.reliability] if reliability else [self.images], 1).flatten(0, 1)


def volumes(example: Example, generation: Generation, spacing_mm: float) -> dict[str, Volume]:
    """An example's parts by name, to be looked at or saved: inputs, what of them was measured, target and classes."""
    parts = {}
    for acquisition, image, known in zip(generation.inputs, example.images, example.reliability, strict=True):
        parts |= {f"input {acquisition.prior}": image, f"measured {acquisition.prior}": known}
    parts |= {f"target ({generation.target})": example.target[0], "classes": example.classes[0]}
    place = np.diag([*[spacing_mm] * 3, 1.0])
    return {name: Volume(part.cpu().numpy(), place) for name, part in parts.items()}


def draw(
    rng: np.random.Generator,
    label_map: LabelMap,
    generation: Generation,
    priors: Mapping[str, Prior],
    patch_size: int | Sequence[int],
    spacing_mm: float | None = None,
) -> Parameters:
    """Parameters of one example of ``patch_size`` voxels of ``spacing_mm`` (that of the label map when None).

    Iglesias et al., NeuroImage 2021; bounds in ``Generation``. Raises InputError for priors without a modality or of
    another number of classes, and for an unknown distribution.
    """
    g, inputs, voxel, shape = generation, generation.inputs, label_map.spacing_mm, label_map.index.shape
    if g.distribution not in ("normal", "uniform"):
        raise InputError(f"distribution is 'normal' or 'uniform', got {g.distribution!r}")
    spacing, size = spacing_mm or voxel, per_axis(patch_size)
    crop = tuple(round(n * spacing / voxel) for n in size)
    start = tuple(int(rng.integers(n - c + 1)) if n > c else (n - c) // 2 for n, c in zip(shape, crop, strict=True))
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = rng.uniform(-g.shear, g.shear, 6)
    linear = _rotation(rng, g.rotation_deg) @ shear @ np.diag(1 + rng.uniform(-g.scaling, g.scaling, 3))
    velocity = rng.normal(0, rng.uniform(0, g.warp_std), (3, *_coarse(shape, g.warp_grid)))
    names = [a.prior for a in inputs] + [g.target] * (g.target not in TARGETS)
    chosen = [_prior(name, priors, int(label_map.class_of.max()) + 1) for name in names]
    if g.distribution == "uniform" and any((part[0] > part[1]).any() for prior in chosen for part in prior):
        raise InputError("uniform priors hold the lowest and the greatest value of each class; these are no such rows")
    means, stds = (np.stack([np.maximum(getattr(rng, g.distribution)(*p[part]), 0) for p in chosen]) for part in (0, 1))
    slices, thickness = (np.array(part) for part in zip(*(_acquired(rng, a, voxel) for a in inputs), strict=True))
    profile = g.profile * np.minimum(slices, thickness)
    if not g.blur_all:
        profile *= slices > spacing * (1 + ISOTROPIC)
    misplaced, residual = (
        tuple((_rotation(rng, deg), rng.uniform(-mm, mm, 3)) for _ in inputs[1:])
        for deg, mm in ((g.misplaced_deg, g.misplaced_mm), (g.residual_deg, g.residual_mm))
    )
    return Parameters(
        size, spacing, crop, start, linear,
        translation=rng.uniform(-g.translation_mm, g.translation_mm, 3) / voxel,
        velocity=velocity,
        flip=bool(g.flip and rng.random() < 0.5),
        means=means, stds=stds, noise_seed=int(rng.integers(2**62)),
        bias=tuple(rng.normal(0, rng.uniform(0, g.bias_std), _coarse(crop, g.bias_grid)) for _ in inputs),
        exponent=np.exp(rng.normal(0, g.gamma_std, len(names))),
        slices_mm=slices,
        profile_mm=profile * rng.uniform(1 / g.blur_range, g.blur_range, (len(inputs), 1)),
        misplaced=misplaced, residual=residual,
    )  # fmt: skip


def apply(
    label_map: LabelMap,
    parameters: Parameters,
    generation: Generation,
    real: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> Example:
    """Paint a label map by drawn parameters; the same ones give the same bytes on one device.

    ``real`` is the subject's scan (X, Y, Z) on the label map's grid, which a real target needs: InputError where it is
    missing, of another shape or not wanted. Slices keep the field of view, as everywhere in this package (the code
    puts the first one on the first voxel).
    """
    p, g, voxel, shape = parameters, generation, label_map.spacing_mm, tuple(label_map.index.shape)
    if (g.target == "real") != (real is not None) or (real is not None and real.shape != shape):
        wanted = f"a real scan on the label map's grid of {shape}" if g.target == "real" else "no real scan"
        raise InputError(f"target {g.target!r} takes {wanted}, got {'none' if real is None else real.shape}")
    grid = _grid(p, shape, device)
    index = read(label_map.index[None].to(device, torch.float32), grid, "nearest")[0].long()
    class_of = label_map.class_of[label_map.partner_of] if p.flip else label_map.class_of
    classes = torch.from_numpy(class_of).to(device)[index.flip(0) if p.flip else index]

    noise, crisp = torch.Generator(device).manual_seed(p.noise_seed), []
    for mean, std, bias, exponent in zip(p.means, p.stds, [*p.bias, None], p.exponent, strict=False):
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
        image = torch.randn(p.crop, generator=noise, device=device).mul_(std[classes]).add_(mean[classes])
        if bias is not None:
            onto = [linear_matrix(m, np.linspace(0, m - 1, n)) for m, n in zip(bias.shape, p.crop, strict=True)]
            image *= separable(torch.from_numpy(bias).to(image), onto).exp()
        image = _unit(image.clamp(0, g.clip)) ** float(exponent)
        crisp.append(separable(image, [blur_matrix(n, g.blur) for n in p.crop]))

    axes = [Axis(n, size, voxel, p.spacing_mm) for n, size in zip(p.crop, p.size, strict=True)]
    images, maps = [], []
    for k, (image, slices, profile) in enumerate(zip(crisp, p.slices_mm, p.profile_mm, strict=False)):
        if k:
            image = _moved(image, p.misplaced[k - 1], voxel)
        image = separable(
            image, [a.acquire(s, sigma, g.order) for a, s, sigma in zip(axes, slices, profile, strict=True)]
        )
        x, y, z = (torch.from_numpy(a.reliability(s)).to(image) for a, s in zip(axes, slices, strict=True))
        known = x[:, None, None] * y[:, None] * z
        if k:
            back = _undone(p.misplaced[k - 1], p.residual[k - 1])
            image, known = (_moved(part, back, p.spacing_mm) for part in (image, known))
        images.append(image)
        maps.append(known)

    nearest = [torch.from_numpy(np.rint(a.places)).long().clamp(0, a.n - 1).to(device) for a in axes]
    classes = classes[nearest[0]][:, nearest[1]][:, :, nearest[2]].float()
    if real is None:
        target = crisp[0 if g.target == "input" else -1]
    else:
        target = read(torch.from_numpy(np.ascontiguousarray(real, np.float32))[None].to(device), grid)[0]
        target = _unit(target.flip(0) if p.flip else target)
    target = classes if g.target == "classes" else separable(target, [a.shrink() for a in axes])
    return Example(torch.stack(images), torch.stack(maps), target[None], classes[None])


def _grid(p: Parameters, shape: Sequence[int], device: str | torch.device) -> torch.Tensor:
    """Where each voxel of the crop comes from in the label map; the warp is integrated at half size (code)."""
    at = [a + np.arange(n) for a, n in zip(p.start, p.crop, strict=True)]
    ratio, smooth, finer = [], [], []
    for n, m, x in zip(shape, p.velocity.shape[1:], at, strict=True):
        half = max(-(-n // 2), m)
        ratio.append((half - 1) / max(n - 1, 1))
        x = np.clip(x * ratio[-1], 0, half - 1)
        reach = np.abs(p.velocity).max() * ratio[-1] + 2  # farther off nothing flows into the crop
        low, high = max(int(x[0] - reach), 0), min(int(x[-1] + reach) + 2, half)
        smooth.append(linear_matrix(m, np.linspace(0, m - 1, half)[low:high]))
        finer.append(linear_matrix(high - low, x - low))
    ratio = torch.tensor(ratio).view(3, 1, 1, 1)
    warp = integrate(separable(torch.from_numpy(p.velocity.astype(np.float32)), smooth) * ratio) / ratio
    middle = (np.asarray(shape) - 1) / 2
    return sampling_grid(shape, at, p.linear, middle - p.linear @ middle + p.translation, warp, finer, device)


def _moved(image: torch.Tensor, rigid: Rigid, voxel: float) -> torch.Tensor:
    """An image (X, Y, Z) read at a rigid motion of its voxels about its middle; zero beyond it."""
    middle, (rotation, shift) = (np.array(image.shape) - 1) / 2, rigid
    axes = [np.arange(n) - m for n, m in zip(image.shape, middle, strict=True)]
    return read(image[None], sampling_grid(image.shape, axes, rotation, shift / voxel + middle, device=image.device))[0]


def _undone(moved: Rigid, residual: Rigid) -> Rigid:
    """The inverse of a rigid motion, followed by a small one."""
    inverse = moved[0].T
    return inverse @ residual[0], inverse @ (residual[1] - moved[1])


def _rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Rotations about x, y and z by uniform angles within +- ``degrees``, (3, 3)."""
    angles = rng.uniform(-degrees, degrees, 3) * (
        1,
        -1,
        1,
    )  # either sign is as likely; this one the results were drawn with
    return Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()


def _coarse(shape: Sequence[int], points: float) -> tuple[int, ...]:
    return tuple(max(int(np.ceil(n * points)), 2) for n in shape)


def _acquired(rng: np.random.Generator, acquisition: Acquisition, voxel: float) -> tuple[np.ndarray, np.ndarray]:
    """Spacing and thickness of an acquisition's slices in mm."""
    if acquisition.random_mm is None:
        spacing = np.array(acquisition.spacing_mm)
        return spacing, np.array(acquisition.thickness_mm or spacing)
    fine = rng.random() < PROBABLY_FINE
    spacing = np.full(3, voxel) if fine else rng.uniform(voxel, acquisition.random_mm, 3)
    return spacing, rng.uniform(voxel, spacing)


def _prior(name: str, priors: Mapping[str, Prior], classes: int) -> Prior:
    """The prior of a modality, or of what stands before its underscore: "t1" where there is no "t1_lr"."""
    found = priors.get(name, priors.get(name.partition("_")[0]))
    if found is None:
        raise InputError(f"no intensity priors for {name!r}; the table has {', '.join(priors)}")
    if found[0].shape[1] != classes:
        raise InputError(
            f"priors of {name!r} for {found[0].shape[1]} classes; the label table has {classes}: measure them with it "
            "('srlib priors --classes')"
        )
    return found


def _unit(image: torch.Tensor) -> torch.Tensor:
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-7)
