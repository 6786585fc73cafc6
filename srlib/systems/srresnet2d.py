"""SRResNet and SRGAN for ultrasound and CT: Ledig et al., CVPR 2017, replicated code, and ours."""

import dataclasses

from srlib.inference.prediction import CoarseToFine, SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import CrossEntropy, Supervised, Training

_KERAS = {"momentum": 0.01, "epsilon": 1e-3, "keras_start": True}
# L1 x 1000 + cross-entropy x 0.001 in the code's configuration, here relative to L1
SRGAN = CrossEntropy(weight=1e-6, critic_args=_KERAS)

_CHANNEL = (
    "PReLU has one slope per channel; the code's has one per pixel, which fixes the image size"
)
_BACK = "results are scaled back by the input's minimum and maximum, since the truth's are unknown"
_PUBLISHED = (
    _CHANNEL,
    "images of other sizes than 512 x 512 are cut into patches of it, with zeros beyond; the code "
    "reflects them",
    "at stride 2 padding lies before the first pixel, in Keras behind the last: the same networks "
    "for mirrored images",
    "the order of the training images is drawn anew in each epoch; the code's is fixed",
    "training ends with the weights of the last step; the code keeps those of each epoch or the "
    "best one, as --snapshots does",
    _BACK,
)

SRRESNET_US = Experiment(
    name="srresnet_us",
    paper="Ledig et al., CVPR 2017 (arXiv 1609.04802), for ultrasound",
    task="scanline_x4",
    contrast="image",
    fitted_on="each",
    network=Network("srresnet2d", 64, {"blocks": 5, "factor": 4, "form": "ultrasound", **_KERAS}),
    examples=ScanPatches(patch_size=(512, 512, 1), n_train=2_556),
    training=Training(
        max_steps=51_120,
        batch_size=1,
        learning_rate=1e-4,
        loss="l2",
        optimizer_args={"betas": (0.9, 0.999), "eps": 1e-7},
    ),
    prediction=CoarseToFine(),
    sources={
        "task": "code, sisr_ultrasound.py, get_LR_HR_pair: every 4th column of the scan-converted "
        "image",
        "intensity": "code, sisr_ultrasound.py, normalize: to [0, 1]",
        "fitted_on": "code, sisr_ultrasound.py, get_LR_HR_pair: input and truth each by itself",
        "width": "code, models.py, MySRResNet: 64 filters",
        "blocks": "code, models.py, MySRResNet: 5; the paper has 16",
        "factor": "code, sisr_ultrasound.py, duke_ultrasound_lr_hr_pair: 4 by default",
        "initialisation": "code, models.py: Keras's default, Glorot's uniform weights, zero "
        "biases; slopes 0",
        "batch_norm": "code, models.py: Keras's default, moving statistics of momentum 0.99",
        "momentum": "code, models.py: 0.99 of the old statistics, so 0.01 of the batch's",
        "epsilon": "code, models.py: Keras's default",
        "n_train": "code, sisr_ultrasound.py, duke_ultrasound_lr_hr_pair: 2,556 images",
        "max_steps": "code, config.py: 20 epochs of 2,556 images",
        "batch_size": "code, config.py: 1 image",
        "patch_size": "code, config.py: 512 x 512, one slice",
        "loss": "code, srresnet_task.py: mean squared error",
        "optimizer": "code, srresnet_task.py: Adam",
        "optimizer_args": "code, srresnet_task.py: beta1 0.9; beta2 and epsilon are Keras's "
        "defaults",
        "learning_rate": "code, config.py: 1e-4",
    },
    deviations=_PUBLISHED,
)

SRRESNET_CT = SRRESNET_US.variant(
    "srresnet_ct",
    "a stack of CT slices is scaled as one image",
    paper="Ledig et al., CVPR 2017 (arXiv 1609.04802), for CT",
    task="sparse_view_x16",
    model_args={"factor": 16, "form": "ct"},
    intensity="hu_minmax",
    prediction=SameGrid(),
    sources={
        "task": "code, sisr_ct.py, get_LR_HR_pair: FBP of 63 of 1,000 views; the truth is the FBP "
        "of all",
        "intensity": "code, sisr_ct.py, deeplesion: HU from -1024 to 200, to [0, 1] by the "
        "extremes",
        "fitted_on": "code, sisr_ct.py, deeplesion_lr_hr_pair: input and truth each by itself",
        "factor": "code, config.py: 16",
        "n_train": "code, sisr_ct.py, deeplesion_lr_hr_pair: 2,556 images",
    },
)


def _variants(base):
    """The three tasks of the code on one modality, and ours."""
    name, ct = base.name.removeprefix("srresnet_"), not base.prediction.coarse
    critic = base.variant(
        f"srgan_{name}_critic",
        "the discriminator gives logits; the code's a sigmoid of them, to the same loss",
        "the discriminator sees a true and a generated image at each step; in the code's task of "
        "its own it sees one of them, drawn at random",
        start=base.name,
        game=dataclasses.replace(SRGAN, moves="critic"),
        sources={
            "game.weight": "code, config.py: cross-entropy x 0.001 beside L1 x 1,000",
            "critic_args": "code, models.py, Discriminator: Keras's defaults, as the generator",
        },
    )
    joint = base.variant(
        f"srgan_{name}",
        critic.deviations[-2],
        "losses are divided by the code's L1 weight of 1,000, and Adam's epsilon with them, also "
        "for the discriminator",
        "each network has its own Adam; the code's one counts the steps of both",
        "the network that rests normalises by the batch, too; Keras's by its moving statistics",
        game=SRGAN,
        loss="l1",
        optimizer_args={"betas": (0.9, 0.999), "eps": 1e-10},
        sources={
            **critic.sources,
            "loss": "code, gan.py, l1_loss: L1",
            "optimizer": "code, srgan_task.py: Adam",
            "optimizer_args": "code, srgan_task.py: beta1 0.9; Keras's epsilon of 1e-7, divided as "
            "the losses",
        },
    )
    used = joint.variant(
        f"srgan_{name}_code",
        game=dataclasses.replace(SRGAN, weight=1e-3),
        sources={
            "game.weight": "code, gan.py, compile: cross-entropy x 1 beside L1 x 1,000; the "
            "configured 0.001 is not used"
        },
    )
    residual = base.changed(
        name=f"{base.name}_res",
        network=Network(
            "srresnet2d_res", 64, {"blocks": 5, "factor": 1 if ct else base.number("factor")}
        ),
        intensity="hu" if ct else "minmax",
        fitted_on="input",
        n_train=2_000,
        max_steps=40_000,
        batch_size=16,
        patch_size=(96, 96, 1),
        sampling="random",
        min_foreground=0.3,
        learning_rate=1e-3,
        loss="l1",
        optimizer_args={"betas": (0.9, 0.999)},
        schedule="cosine",
        sources={
            **{name: base.sources[name] for name in ("task", "width", "blocks")},
            "intensity": "ours: HU from -1024 to 200, to [0, 1]" if ct else "ours: to [0, 1]",
            "fitted_on": "ours: the input's range scales both sides",
            "factor": "ours: the input's grid for CT" if ct else base.sources["factor"],
            "initialisation": "ours: PyTorch's default; slopes of the blocks 0",
            "batch_norm": "ours: PyTorch's default, momentum 0.1 and epsilon 1e-5",
            "n_train": "ours: 2,000 stacks, at most",
            "max_steps": "ours: 40,000",
            "batch_size": "ours: 16 patches",
            "patch_size": "ours: 96 x 96, drawn at random",
            "min_foreground": "ours: patches that are mostly dark teach nothing",
            "loss": "ours: L1, as in the code's joint task",
            "optimizer": "ours: Adam",
            "optimizer_args": "ours: PyTorch's defaults",
            "learning_rate": "ours: 1e-3, cosine to zero",
        },
        deviations=(
            _CHANNEL,
            "intensities are scaled by the input's range alone",
            "the blocks stand on the input's grid, one convolution behind them gives the "
            "difference to the (cubically interpolated) input, starting at zero; no steps down or "
            "up",
            "random patches in batches of 16",
            "Adam starts at 1e-3 and falls to zero by a cosine",
        ),
    )
    fooled = residual.variant(
        f"srgan_{name}_res",
        start=residual.name,
        game=CrossEntropy(weight=1e-3),
        learning_rate=1e-4,
        schedule="constant",
        sources={
            "learning_rate": "code, config.py: 1e-4",
            "game.weight": used.sources["game.weight"],
        },
        deviations=(*residual.deviations[:-1], "the discriminator is a new one"),
    )
    return base, critic, joint, used, residual, fooled


EXPERIMENTS = (*_variants(SRRESNET_US), *_variants(SRRESNET_CT))

_SMALL = {"width": 16, "n_train": 6, "patch_size": (64, 64, 1)}
QUICK = {
    e.name: {
        **_SMALL,
        "batch_size": min(e.training.batch_size, 4),
        "max_steps": 200 if e.game == Supervised() else 40,
    }
    for e in EXPERIMENTS
}
QUICK["srresnet_us_res"] |= {"width": 24, "max_steps": 450}
QUICK["srgan_us_res"] |= {"width": 24}
# what the notebooks train, in this order
RUNS = {
    "paper": (
        "srresnet_us",
        "srgan_us_critic",
        "srgan_us",
        "srresnet_ct",
        "srgan_ct_critic",
        "srgan_ct",
    ),
    "quick": (
        "srresnet_us",
        "srgan_us_critic",
        "srgan_us",
        "srresnet_us_res",
        "srgan_us_res",
        "srresnet_ct",
        "srgan_ct_critic",
        "srgan_ct",
        "srresnet_ct_res",
        "srgan_ct_res",
    ),
}
