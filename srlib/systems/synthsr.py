"""SynthSR: Iglesias et al., NeuroImage 2021, Science Advances 2023; its code's six cases."""

from srlib.inference.isotropic import IsotropicSpacing
from srlib.models.network import Network
from srlib.synthesis.settings import Acquisition, Generation
from srlib.systems.base import Experiment
from srlib.training.games import Training, Wasserstein
from srlib.training.synthetic import SyntheticScans

_PAPER = "Iglesias et al., NeuroImage 2021; Science Advances 2023"
_T1 = Acquisition("t1_hr", (1.0, 1.0, 3.0))
_T1_LR = Acquisition("t1_lr", (1.0, 1.0, 3.0))
_T2 = Acquisition("t2", (1.0, 4.5, 1.0), (1.0, 3.0, 1.0))
_ANY = (Acquisition("t1_lr", random_mm=9.0),)
# of the cases 3 to 6
_MILD = {"scaling": 0.1, "rotation_deg": 8.0, "shear": 0.01, "warp_std": 2.0, "bias_std": 0.2}
_SOURCES = {
    "task": "ours: on which it is compared with interpolation",
    "width": "paper: 24 features",
    "max_steps": "code: 100 epochs of 1,000 steps",
    "n_train": "code: 5 label maps in its tutorial",
    "batch_size": "code: 1",
    "patch_size": "code: 128 in its tutorial",
    "learning_rate": "code: Adam, 1e-4",
    "spacing_mm": "paper: 1 mm label maps",
    "loss": "code: absolute error",
    "generation.scaling": "code: 0.15, in the cases 3 to 6 0.1",
    "generation.rotation_deg": "code: 15, in the cases 3 to 6 8",
    "generation.shear": "code: 0.012, in the cases 3 to 6 0.01",
    "generation.translation_mm": "code: none, since the crop is random",
    "generation.warp_std": "code: 3, in the cases 3 to 6 2",
    "generation.warp_grid": "code: 1/16 of the shape",
    "generation.bias_std": "code: 0.3, in the cases 3 to 6 0.2",
    "generation.bias_grid": "code: 1/40 of the shape",
    "generation.clip": "code: 300",
    "generation.gamma_std": "code: 0.5",
    "generation.blur": "code: 0.5 voxels",
    "generation.profile": "code: 0.42",
    "generation.blur_range": "code: 1.15",
    "generation.misplaced_deg": "code: 5",
    "generation.misplaced_mm": "code: 5",
    "generation.residual_deg": "code: 0.5",
    "generation.residual_mm": "code: 0.5",
}
_LEVELS = {"levels": 5, "in_channels": 1, "out_channels": 1}
_GEOMETRY = (
    "acquired slices keep the field of view, sampled linearly; in the code the first slice lies on "
    "the first voxel and the others on the nearest",
    "blurs repeat the edge; in the code they fade to zero there",
)

_CASE_1 = Generation((_T1,), target="real")
# tutorial 1: super-resolution of T1 to real scans
SYNTHSR_1 = Experiment(
    name="synthsr_case1",
    paper=_PAPER,
    task="thick_1x1x3",
    network=Network("unet3d", 24, {**_LEVELS, "in_channels": 2}),
    examples=SyntheticScans((160, 192, 160), n_train=5, generation=_CASE_1, spacing_mm=1.0),
    training=Training(max_steps=100_000, batch_size=1, learning_rate=1e-4),
    prediction=IsotropicSpacing(_CASE_1, spacing_mm=1.0, output="unit"),
    sources={
        **_SOURCES,
        "patch_size": "code: whole label maps; ours: these in a frame that the network halves 5 "
        "times",
    },
    deviations=_GEOMETRY,
)
# 2: synthetic T1 of 1.5 mm from T1
SYNTHSR_2 = SYNTHSR_1.variant(
    "synthsr_case2",
    patch_size=128,
    generation=Generation((_T1_LR,)),
    spacing_mm=1.5,
    output="scan",
    sources={**_SOURCES, "spacing_mm": "code: 1.5 mm in its tutorial"},
)
# real and synthetic T1, 3 and 4 from T2, 5 and 6 from T1 and T2
SYNTHSR_3, SYNTHSR_4, SYNTHSR_5, SYNTHSR_6 = (
    SYNTHSR_1.variant(
        f"synthsr_case{number}",
        patch_size=128,
        generation=Generation(inputs, target=target, **_MILD),
        reference="t2" if len(inputs) > 1 else "",
        model_args={"in_channels": 2 * len(inputs), **more},
        sources=_SOURCES,
    )
    for number, inputs, target, more in (
        (3, (_T2,), "real", {}),
        (4, (_T2,), "t1_hr", {}),
        (5, (_T1_LR, _T2), "real", {}),
        (6, (_T1_LR, _T2), "t1_hr", {"residual_channel": 0}),
    )
)

# the mode that the published weights were trained in: any resolution
SYNTHSR_ANY = SYNTHSR_4.variant(
    "synthsr_any",
    generation=Generation(_ANY, target="t1_hr"),
    sources={"task": "ours, for comparison: each axis of its inputs has a spacing from 1 to 9 mm"},
)

_SQUARED = (
    "absolute error + 20 squared error: in few steps the synthetic target's noise hides edges from "
    "the "
    "absolute error, and the squared one leaves a veil on the empty background"
)
_OURS = (
    "the network predicts the difference to its interpolated input (global residual), starting at "
    "zero",
    "Adam starts at 1e-3 and falls to zero by a cosine",
    "batch norm follows the last 50 batches; Keras's 100 take thousands of steps to settle",
    "slices are interpolated by cubic splines, where the code does it linearly",
    "only the slice axis is blurred, as the truth of its rows is no sharper along the others",
)
_CONTINUED = (*_GEOMETRY, _OURS[0], *_OURS[2:])

# super-resolution of thick slices in the scan's own contrast, on the task of its rows
SYNTHSR_THICK = SYNTHSR_2.variant(
    "synthsr_thick",
    max_steps=20_000,
    patch_size=96,
    learning_rate=1e-3,
    loss="l1_l2",
    schedule="cosine",
    generation=Generation((_T1,), blur_all=False, order=3),
    spacing_mm=1.0,
    model_args={"residual_channel": 0, "momentum": 0.02},
    sources={
        **_SOURCES,
        "patch_size": "ours: 96",
        "learning_rate": "ours: 1e-3, cosine to zero",
        "loss": "ours: absolute and squared error",
        "max_steps": "ours: 20,000",
    },
    deviations=(*_GEOMETRY, _SQUARED, *_OURS),
)
SYNTHSR_LAPLACE = SYNTHSR_THICK.variant(
    "synthsr_laplace",
    start="synthsr_thick",
    learning_rate=5e-4,
    model_args={"out_channels": 2},
    loss="laplace",
    laplace=True,
    sources={
        "loss": "code: likelihood of a Laplace distribution",
        "learning_rate": "ours: 5e-4, cosine to zero",
    },
    deviations=(
        *_CONTINUED,
        "training goes on from the network without uncertainty, at 5e-4",
    ),
)
# segments synthetic T1 of 1 mm; out_channels is the number of classes, known when it is trained
SYNTHSR_SEGMENTER = SYNTHSR_THICK.variant(
    "synthsr_segmenter",
    network=Network("unet3d", 24, {**_LEVELS, "out_channels": 0, "momentum": 0.02}),
    loss="dice",
    generation=Generation((Acquisition("t1_hr"),), target="classes", reliability=False),
    sources={"loss": "code: Dice"},
    deviations=(
        *_GEOMETRY,
        *_OURS[1:3],
        "the code takes a segmenter that others trained; this one is trained on the same synthetic "
        "scans",
    ),
)
SYNTHSR_DICE = SYNTHSR_THICK.variant(
    "synthsr_dice",
    start="synthsr_thick",
    segmenter="synthsr_segmenter",
    with_classes=True,
    dice_weight=0.25,
    loss="l1",
    learning_rate=1e-4,
    sources={
        "dice_weight": "code: 0.25",
        "loss": _SOURCES["loss"],
        "learning_rate": "code: Adam, 1e-4; ours: cosine to zero",
    },
    deviations=(
        *_CONTINUED,
        "training goes on from the network trained without the term, at 1e-4",
    ),
)
SYNTHSR_GAN = SYNTHSR_THICK.variant(
    "synthsr_gan",
    start="synthsr_thick",
    loss="l1",
    learning_rate=1e-4,
    game=Wasserstein(weight=0.01, critic_steps=100, per_generator=10, extra_every=11),
    sources={
        "loss": _SOURCES["loss"],
        "learning_rate": "code: Adam, 1e-4; ours: cosine to zero",
        "critic_steps": "code: 100",
        "game.weight": "code: 0.01",
        "game.per_generator": "code: 10 steps of the critic for each of the generator",
        "game.extra_every": "ours: one generator step and its 10 of the critic; nothing extra",
        "game.extra": "ours: none",
        "game.strength": "code: 10",
        "game.slope": "ours: that of mDCSRN's critic",
    },
    deviations=(
        *_CONTINUED,
        "the critic is mDCSRN's",
        "training goes on from the network trained without a critic, at 1e-4",
    ),
)

EXPERIMENTS = (
    SYNTHSR_1, SYNTHSR_2, SYNTHSR_3, SYNTHSR_4, SYNTHSR_5, SYNTHSR_6, SYNTHSR_ANY, SYNTHSR_THICK,
    SYNTHSR_LAPLACE, SYNTHSR_SEGMENTER, SYNTHSR_DICE, SYNTHSR_GAN,
)  # fmt: skip

_SMALL = {"width": 8, "n_train": 4, "patch_size": 64, "max_steps": 400}
QUICK = {e.name: _SMALL for e in EXPERIMENTS} | {
    "synthsr_laplace": {**_SMALL, "max_steps": 150},
    "synthsr_segmenter": {**_SMALL, "max_steps": 150},
    "synthsr_dice": {**_SMALL, "max_steps": 50},
    "synthsr_gan": {**_SMALL, "max_steps": 80, "critic_steps": 14},
}

# what the notebooks train, in this order
RUNS = {
    "paper": (
        "synthsr_case1",
        "synthsr_case2",
        "synthsr_case3",
        "synthsr_case4",
        "synthsr_case5",
        "synthsr_case6",
        "synthsr_thick",
    ),
    "quick": (
        "synthsr_thick",
        "synthsr_laplace",
        "synthsr_segmenter",
        "synthsr_dice",
        "synthsr_gan",
    ),
}

# not among EXPERIMENTS: it describes weights that others trained
SYNTHSR_PUBLISHED = SYNTHSR_1.changed(
    name="synthsr_published",
    max_steps=200_000,
    patch_size=128,
    generation=Generation(_ANY, target="real", reliability=False),
    output="synthsr",
    model_args=_LEVELS,
    sources={
        "task": "ours, for comparison with other systems: these weights take scans of any contrast "
        "and "
        "resolution",
        "width": "paper: 24 features",
        "max_steps": "code: 200 epochs of 1,000 steps, as its tutorial advises; that of the "
        "weights is "
        "not stated",
        "n_train": "code: 5 label maps in its tutorial; those behind the weights are not public",
        "batch_size": "code: 1",
        "patch_size": "code: 128 in its tutorial",
        "learning_rate": "code: Adam, 1e-4",
        "loss": "code: absolute error",
    },
    deviations=(
        "the weights were trained by their authors, on synthetic scans drawn from label maps, not "
        "on pairs",
    ),
)
# T1 and T2 of a 64 mT scanner; the network's output is added to the T1
SYNTHSR_HYPERFINE = SYNTHSR_PUBLISHED.variant(
    "synthsr_hyperfine",
    generation=Generation(
        tuple(Acquisition(contrast, (1.5, 1.5, 5.0)) for contrast in ("t1", "t2")),
        target="real",
        reliability=False,
    ),
    reference="t2",
    output="hyperfine",
    model_args={"in_channels": 2, "residual_channel": 0},
)
