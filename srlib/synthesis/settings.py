"""Settings of SynthSR's generative model: what is acquired, and the bounds of random draws."""

from dataclasses import dataclass
from typing import ClassVar

from srlib.core.parts import Length, Number, Part, Share, Whole

Bound = Number | tuple[Number, Number, Number]  # of all axes, or of each


@dataclass(frozen=True)
class Acquisition(Part):
    """How a synthetic scan is acquired: an input channel of the network."""

    prior: str  # modality in the table of intensity priors; "t1_lr" falls back on "t1"
    spacing_mm: tuple[Length, Length, Length] = (1.0, 1.0, 1.0)  # of its slices along the RAS axes
    thickness_mm: tuple[Length, Length, Length] | None = None  # of its slices; None: the spacing
    random_mm: Length | None = None  # draw each axis's spacing up to it, thickness up to that
    downsampled: bool = True  # False: blurred alone
    misplaced: bool = True  # as a further input; False: it lies as the first one does


@dataclass(frozen=True)
class Generation(Part):
    """How SynthSR draws training examples from label maps; bounds of uniform draws by default.

    ``target``: "input" (the first one before its acquisition), "real" (a scan), "classes" (of
    labels), or a modality of the priors. ``rules``: "srlib", or "lab2im", as SynthSR's code has
    them. Scaling then comes after shear and rotation. Coarse points start at the first voxel. Half
    the size is rounded down, and the flow in its voxels is taken for one in whole voxels. Beyond
    the label map its edge is repeated. A kernel ends at about 1.25 sigma, and beyond an image's
    edge it reads zero. Registration errors are those of the misplaced axes.
    """

    choices: ClassVar = {
        "distribution": ("normal", "uniform"),
        "maps": ("reliability", "distance"),
        "rules": ("srlib", "lab2im"),
    }

    inputs: tuple[Acquisition, ...]
    target: str = "input"
    distribution: str = "normal"  # of the priors' means and stds, or "uniform"
    scaling: Bound = 0.15  # +- of 1, per axis
    rotation_deg: Bound = 15.0  # +-, about each axis
    shear: Number = 0.012  # +-
    translation_mm: Bound = 0.0  # +-, per axis
    warp_std: Number = 3.0  # most std of the velocity at the coarse points, voxels
    warp_grid: Number = 0.0625  # coarse points per voxel
    flip: bool = True  # left and right, in half of all examples
    bias_std: Number = 0.3  # most std of the log bias at the coarse points
    bias_grid: Number = 0.025  # coarse points per voxel
    bias_share: Share = 1.0  # of the channels that have a bias field
    clip: Number = 300.0  # greatest intensity
    gamma_std: Number = 0.5  # std of the normal log exponent
    blur: Number = 0.5  # sigma of every channel, voxels
    profile: Number = 0.42  # sigma of a slice profile, per slice thickness
    blur_all: bool = True  # also axes whose slices are no farther apart than the output's voxels
    blur_range: Number = 1.15  # that sigma times a number from 1 / range to range ...
    blur_per_axis: bool = False  # ... for each axis, or one for all
    order: Whole = 1  # of the spline that brings slices on the output's voxels
    misplaced_deg: Number = 5.0  # +-, of further inputs against the first one ...
    misplaced_mm: Number = 5.0
    residual_deg: Number = 0.5  # ... and what remains of it after registration
    residual_mm: Number = 0.5
    reliability: bool = True  # each input is followed by a map of where it was measured:
    maps: str = "reliability"  # 1 there, fading to 0; or the "distance" to there in mm
    rules: str = "srlib"
