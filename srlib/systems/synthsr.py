"""SynthSR: Iglesias et al., NeuroImage 2021, Science Advances 2023; its code's six cases."""

import dataclasses

from srlib.inference.isotropic import IsotropicSpacing
from srlib.models.network import Network
from srlib.synthesis.settings import Acquisition, Generation
from srlib.systems.base import Experiment
from srlib.training.games import FineTuning, Training, Wasserstein
from srlib.training.synthetic import SyntheticScans

_T1 = Acquisition("t1_hr", (1.0, 1.0, 3.0))
_T1_LR = Acquisition("t1_lr", (1.0, 1.0, 3.0))
_T2 = Acquisition("t2", (1.0, 4.5, 1.0), (1.0, 3.0, 1.0))
_ANY = (Acquisition("t1_lr", random_mm=9.0),)
# as the code draws
_CODE = {"rules": "lab2im", "bias_share": 0.95, "blur_per_axis": True}
_DEFAULTS = {**_CODE, "translation_mm": 5.0}  # of BrainGenerator
# of the cases 3 to 6
_MILD = {"scaling": 0.1, "rotation_deg": 8.0, "shear": 0.01, "warp_std": 2.0, "bias_std": 0.2}
_GENERATOR, _TRAINING, _MODEL, _FINE, _TUTORIAL_3, _TUTORIAL_7 = (
    f"code, {place}:"
    for place in (
        "brain_generator.py, BrainGenerator",
        "training.py, training",
        "labels_to_image_model.py, labels_to_image_model",
        "fine_tuning_with_adversary.py, training",
        "scripts/tutorials/3-synthesis_real.py",
        "scripts/tutorials/7-training.py",
    )
)
_SOURCES = {
    "task": "ours: on which it is compared with interpolation",
    "intensity": "code, scripts/predict_command_line.py: minimum to 0 and maximum to 1",
    "width": f"{_TRAINING} 24 features",
    "levels": f"{_TRAINING} 5",
    "initialisation": "code, models.py, conv_enc: Glorot uniform and zero, Keras's own",
    "batch_norm": "code, models.py, conv_enc: momentum 0.99 and epsilon 1e-3, Keras's own",
    "max_steps": f"{_TRAINING} 100 epochs of 1,000 steps",
    "n_train": "code, scripts/tutorials/1-SR_real.py: 5 label maps",
    "batch_size": f"{_TRAINING} 1",
    "patch_size": "code, scripts/tutorials/2-SR_synthetic.py: 128",
    "optimizer": "code, training.py, train_model: Adam, whose epsilon is 1e-7 in Keras",
    "learning_rate": f"{_TRAINING} 1e-4",
    "spacing_mm": f"{_GENERATOR} that of the label maps, 1 mm",
    "loss": f"{_TRAINING} absolute error",
    "generation.scaling": f"{_GENERATOR} 0.15",
    "generation.rotation_deg": f"{_GENERATOR} 15",
    "generation.shear": f"{_GENERATOR} 0.012",
    "generation.translation_mm": f"{_GENERATOR} 5 voxels",
    "generation.warp_std": f"{_GENERATOR} 3",
    "generation.warp_grid": f"{_GENERATOR} 1/16 of the shape",
    "generation.bias_std": f"{_GENERATOR} 0.3",
    "generation.bias_grid": f"{_GENERATOR} 1/40 of the shape",
    "generation.bias_share": "code, layers.py, BiasFieldCorruption: 0.95",
    "generation.clip": f"{_MODEL} 300",
    "generation.gamma_std": f"{_MODEL} 0.5",
    "generation.blur": f"{_MODEL} 0.5 voxels",
    "generation.profile": f"{_MODEL} 0.42",
    "generation.blur_range": f"{_GENERATOR} 1.15",
    "generation.order": "code, edit_tensors.py, resample_tensor: linear",
    "generation.misplaced_deg": f"{_MODEL} 5",
    "generation.misplaced_mm": f"{_MODEL} 5 voxels",
    "generation.residual_deg": f"{_MODEL} 0.5",
    "generation.residual_mm": f"{_MODEL} 0.5 voxels",
}
_LEVELS = {"levels": 5, "in_channels": 1, "out_channels": 1}
_SLICES = (
    "acquired slices and coarser targets keep the field of view, sampled linearly; in the code the "
    "first slice lies on the first voxel and the others on the nearest"
)
_GEOMETRY = (
    _SLICES,
    "blurs repeat the edge; in the code they fade to zero there",
    "scaling comes before shear and rotation, the elastic field spans the label map, kernels end "
    "at 4 sigma, and beyond the map all is background",
    "every channel has a bias field, one factor changes the blur of all axes, and nothing is "
    "translated",
)

_CASE_1 = Generation((_T1,), target="real", **_DEFAULTS)
# tutorial 1: super-resolution of T1 to real scans
SYNTHSR_1 = Experiment(
    name="synthsr_case1",
    paper="Iglesias et al., NeuroImage 2021; Science Advances 2023",
    task="thick_1x1x3",
    network=Network("unet3d", 24, {**_LEVELS, "in_channels": 2}),
    examples=SyntheticScans((160, 192, 160), n_train=5, generation=_CASE_1, spacing_mm=1.0),
    training=Training(
        max_steps=100_000, batch_size=1, learning_rate=1e-4, optimizer_args={"eps": 1e-7}
    ),
    prediction=IsotropicSpacing(_CASE_1, spacing_mm=1.0, output="unit"),
    sources={
        **_SOURCES,
        "patch_size": "ours: a frame for whole label maps, which the network halves 5 times",
    },
    deviations=(
        _SLICES,
        "label maps are cut or padded to one frame; the code takes each whole, less what a "
        "multiple of 32 leaves over",
    ),
)
# 2: synthetic T1 of 1.5 mm from T1
SYNTHSR_2 = SYNTHSR_1.variant(
    "synthsr_case2",
    patch_size=128,
    generation=Generation((_T1_LR,), **_DEFAULTS),
    spacing_mm=1.5,
    output="scan",
    sources={**_SOURCES, "spacing_mm": "code, scripts/tutorials/2-SR_synthetic.py: 1.5 mm"},
    deviations=(_SLICES,),
)
_MILD_SOURCES = {
    f"generation.{name}": f"{_TUTORIAL_3} {value}, as in 4 to 7"
    for name, value in {**_MILD, "translation_mm": "none"}.items()
}
_FROM_T2 = {"contrast": "t2", "truth": "t1", "task": "thick_1x4.5x1"}
_FROM_BOTH = {"reference": "t2", "reference_task": "thick_1x4.5x1"}
# real and synthetic T1, 3 and 4 from T2, 5 and 6 from T1 and T2
SYNTHSR_3, SYNTHSR_4, SYNTHSR_5, SYNTHSR_6 = (
    SYNTHSR_2.variant(
        f"synthsr_case{number}",
        generation=Generation(inputs, target=target, **_CODE, **_MILD),
        spacing_mm=1.0,
        output="unit",
        model_args={"in_channels": 2 * len(inputs), **more},
        sources={
            **_SOURCES,
            **_MILD_SOURCES,
            "task": "ours: the slices of its training, which it is measured on",
            **dict.fromkeys(more, f"{_TUTORIAL_7} the T1"),
        },
        **scans,
    )
    for number, inputs, target, scans, more in (
        (3, (_T2,), "real", _FROM_T2, {}),
        (4, (_T2,), "t1_hr", _FROM_T2, {}),
        (5, (_T1_LR, _T2), "real", _FROM_BOTH, {}),
        (6, (_T1_LR, _T2), "t1_hr", _FROM_BOTH, {"residual_channel": 0, "zero_start": False}),
    )
)
_COARSE = {"warp_grid": 0.03125, "bias_grid": 0.03125}
_COARSE_SOURCES = {f"generation.{name}": f"{_TRAINING} 1/32 of the shape" for name in _COARSE}
# tutorial 7 trains case 6 with the elastic and bias fields of training()
SYNTHSR_TUTORIAL_7 = SYNTHSR_6.variant(
    "synthsr_tutorial7",
    generation=dataclasses.replace(SYNTHSR_6.examples.generation, **_COARSE),
    sources=_COARSE_SOURCES,
)
# all that training() has by default, on the inputs of case 2
SYNTHSR_TRAINING = SYNTHSR_2.variant(
    "synthsr_training",
    generation=Generation((_T1_LR,), **_DEFAULTS, **_COARSE, shear=0.02, warp_std=4.0),
    spacing_mm=1.0,
    sources={
        **_COARSE_SOURCES,
        "spacing_mm": _SOURCES["spacing_mm"],
        "generation.shear": f"{_TRAINING} 0.02",
        "generation.warp_std": f"{_TRAINING} 4",
    },
)

# the mode that the published weights were trained in: any resolution
SYNTHSR_ANY = SYNTHSR_2.variant(
    "synthsr_any",
    generation=Generation(_ANY, target="t1_hr", maps="distance", **_DEFAULTS),
    spacing_mm=1.0,
    output="unit",
    sources={
        "task": "ours: for comparison; each axis of its inputs has a spacing from 1 to 9 mm",
        "spacing_mm": _SOURCES["spacing_mm"],
    },
)
_WILD = {
    "scaling": 0.2,
    "rotation_deg": 20.0,
    "shear": 0.03,
    "translation_mm": 5.0,
    "warp_std": 5.0,
    "warp_grid": 0.04,
    "bias_std": 0.4,
    "bias_grid": 0.04,
    "blur_range": 1.03,
}
_CRITIC = {
    "game.weight": f"{_FINE} 0.01",
    "game.per_generator": f"{_FINE} 10",
    "game.extra_every": "ours: one generator step and its 10 of the critic; nothing extra",
    "game.extra": "ours: none",
    "game.strength": f"{_FINE} 10",
}
# any resolution to real scans, judged by a segmenter and a critic at once
SYNTHSR_FINETUNE = SYNTHSR_1.variant(
    "synthsr_finetune",
    patch_size=128,
    max_steps=1_100_090,
    generation=Generation(_ANY, target="real", reliability=False, **_CODE, **_WILD),
    model_args={"in_channels": 1},
    segmenter="synthsr_segmenter",
    with_classes=True,
    dice_weight=0.25,
    loss_weight=0.74,
    game=FineTuning(weight=0.01, critic_steps=90, per_generator=10, extra_every=11),
    sources={
        "patch_size": "ours: 128; the code takes whole label maps unless told otherwise",
        "max_steps": f"{_FINE} 100 epochs of 1,000 steps, each 10 of the critic and one of the "
        "generator, and 90 of the critic more at first",
        **{f"generation.{name}": f"{_FINE} {value:g}" for name, value in _WILD.items()},
        "dice_weight": f"{_FINE} 0.25",
        "loss_weight": "code, fine_tuning_with_adversary.py, build_generator_loss: what the other "
        "two leave of 1; 0.99 without a segmenter",
        "critic_steps": f"{_FINE} 100 steps of the critic before the first of the generator",
        **_CRITIC,
        "game.slope": "code, fine_tuning_with_adversary.py, discriminator_block: 0.2",
    },
    deviations=(
        _SLICES,
        "the segmenter sees the output clipped to [0, 1]; the code clips it to percentiles of the "
        "raw scan",
        "the segmenter judges classes of tissue; in the code it judges labels",
    ),
)

_SQUARED = (
    "absolute error + 20 squared error: in few steps the synthetic target's noise hides edges from "
    "the absolute error, and the squared one leaves a veil on the empty background"
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
    optimizer_args={},
    sources={
        **_SOURCES,
        "patch_size": "ours: 96",
        "learning_rate": "ours: 1e-3, cosine to zero",
        "loss": "ours: absolute and squared error",
        "max_steps": "ours: 20,000",
        "optimizer": "ours: Adam as in PyTorch",
        "residual_channel": "ours: the interpolated input",
        "initialisation": "ours: Glorot uniform, the last layer zero",
        "momentum": "ours: 0.02",
        "batch_norm": "ours: the last 50 batches count",
        "generation.translation_mm": "ours: none, as the crop is random",
        "generation.bias_share": "ours: 1",
        "generation.order": "ours: cubic",
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
        "loss": "code, metrics_model.py, metrics_model: likelihood of a Laplace distribution",
        "learning_rate": "ours: 5e-4, cosine to zero",
    },
    deviations=(
        *_CONTINUED,
        "training goes on from the network without uncertainty, at 5e-4",
    ),
)
# segments synthetic T1 of 1 mm; out_channels is the number of classes, known when it is trained
_UNADDED = {k: v for k, v in SYNTHSR_THICK.sources.items() if k != "residual_channel"}
SYNTHSR_SEGMENTER = SYNTHSR_THICK.changed(
    name="synthsr_segmenter",
    network=Network("unet3d", 24, {**_LEVELS, "out_channels": 0, "momentum": 0.02}),
    loss="dice",
    generation=Generation((Acquisition("t1_hr"),), target="classes", reliability=False),
    sources={
        **_UNADDED,
        "loss": "code, layers.py, DiceLoss: Dice",
        "generation.order": _SOURCES["generation.order"],
    },
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
        "dice_weight": f"{_TRAINING} 0.25",
        "loss": _SOURCES["loss"],
        "learning_rate": f"{_TRAINING} 1e-4; here a cosine to zero",
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
        "learning_rate": f"{_TRAINING} 1e-4; here a cosine to zero",
        "critic_steps": f"{_FINE} 100",
        **_CRITIC,
        "game.slope": "ours: that of mDCSRN's critic",
    },
    deviations=(
        *_CONTINUED,
        "the critic is mDCSRN's",
        "training goes on from the network trained without a critic, at 1e-4",
    ),
)

EXPERIMENTS = (
    SYNTHSR_1, SYNTHSR_2, SYNTHSR_3, SYNTHSR_4, SYNTHSR_5, SYNTHSR_6, SYNTHSR_TUTORIAL_7,
    SYNTHSR_TRAINING, SYNTHSR_ANY, SYNTHSR_FINETUNE, SYNTHSR_THICK, SYNTHSR_LAPLACE,
    SYNTHSR_SEGMENTER, SYNTHSR_DICE, SYNTHSR_GAN,
)  # fmt: skip

_SMALL = {"width": 8, "n_train": 4, "patch_size": 64, "max_steps": 400}
QUICK = {e.name: _SMALL for e in EXPERIMENTS} | {
    "synthsr_laplace": {**_SMALL, "max_steps": 150},
    "synthsr_segmenter": {**_SMALL, "max_steps": 150},
    "synthsr_dice": {**_SMALL, "max_steps": 50},
    "synthsr_gan": {**_SMALL, "max_steps": 80, "critic_steps": 14},
    "synthsr_finetune": {**_SMALL, "max_steps": 80, "critic_steps": 14},
}

# what the notebooks train, in this order
RUNS = {
    "paper": (*(f"synthsr_case{number}" for number in range(1, 7)), "synthsr_thick"),
    "quick": (
        "synthsr_thick", "synthsr_laplace", "synthsr_segmenter", "synthsr_dice", "synthsr_gan",
    ),
}  # fmt: skip

# not among EXPERIMENTS: it describes weights that others trained
SYNTHSR_PUBLISHED = SYNTHSR_1.changed(
    name="synthsr_published",
    max_steps=200_000,
    patch_size=128,
    generation=Generation(_ANY, target="real", reliability=False),
    output="synthsr",
    model_args=_LEVELS,
    sources={
        **_SOURCES,
        "task": "ours: for comparison with other systems; these weights take scans of any contrast "
        "and resolution",
        "max_steps": f"{_TUTORIAL_7} 200 epochs of 1,000 steps are advised; that of the weights is "
        "not stated",
        "n_train": "code, scripts/tutorials/1-SR_real.py: 5 label maps; those behind the weights "
        "are not public",
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
