"""SRResNet and SRGAN for ultrasound and CT: Ledig et al., CVPR 2017, replicated code, and ours."""

import dataclasses

from srlib.inference.prediction import CoarseToFine, SameGrid
from srlib.models.network import Network
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import CrossEntropy, Supervised, Training

# L1 x 1000 + cross-entropy x 0.001 in the code's configuration, here relative to L1
SRGAN = CrossEntropy(weight=1e-6)

_PUBLISHED = (
    "PReLU has one slope per channel; the code's has one per pixel, which fixes the image size",
    "images of other sizes than 512 x 512 are cut into patches of it, with zeros beyond; the code "
    "reflects them",
    "losses are divided by the code's L1 weight of 1,000; Adam's steps are the same but for its "
    "epsilon",
)

SRRESNET_US = Experiment(
    name="srresnet_us",
    paper="Ledig et al., CVPR 2017 (arXiv 1609.04802), for ultrasound",
    task="scanline_x4",
    contrast="image",
    network=Network("srresnet2d", 64, {"blocks": 5, "factor": 4, "form": "ultrasound"}),
    examples=ScanPatches(patch_size=(512, 512, 1), n_train=2_000),
    training=Training(
        max_steps=40_000,
        batch_size=1,
        learning_rate=1e-4,
        optimizer_args={"betas": (0.9, 0.999)},
    ),
    prediction=CoarseToFine(),
    sources={
        "task": "code: every 4th column of the scan-converted image",
        "width": "code: 64 filters",
        "max_steps": "code: 20 epochs, of 2,000 images (ours: the number that its page names for "
        "CT)",
        "n_train": "ours: 2,000 images, or stacks of them",
        "batch_size": "code: 1 image",
        "patch_size": "code: 512 x 512, one slice",
        "learning_rate": "code: Adam, 1e-4, beta1 0.9",
    },
    deviations=(
        *_PUBLISHED,
        "intensities are scaled to [0, 1] by the minimum and maximum of the input",
    ),
)

SRRESNET_CT = SRRESNET_US.variant(
    "srresnet_ct",
    paper="Ledig et al., CVPR 2017 (arXiv 1609.04802), for CT",
    task="sparse_view_x16",
    model_args={"factor": 16, "form": "ct"},
    intensity="hu",
    prediction=SameGrid(),
    sources={
        "task": "code: FBP of 63 of 1,000 views; the truth is the FBP of all",
        "intensity": "code: HU from -1024 to 200, to [0, 1]",
    },
    deviations=_PUBLISHED,
)


def _variants(base: Experiment) -> tuple[Experiment, ...]:
    """The three tasks of the code and its options, on one modality, and ours."""
    name = base.name.removeprefix("srresnet_")
    critic = base.variant(
        f"srgan_{name}_critic",
        "the discriminator gives logits",
        start=base.name,
        game=dataclasses.replace(SRGAN, moves="critic"),
        sources={"game.weight": "code: its configuration's 0.001 beside L1 x 1,000"},
    )
    joint = critic.variant(f"srgan_{name}", start_critic=critic.name, game=SRGAN)
    used = joint.variant(
        f"srgan_{name}_code",
        game=dataclasses.replace(SRGAN, weight=1e-3),
        sources={
            "game.weight": "code: in fact 1 beside L1 x 1,000, the configured 0.001 is not used"
        },
    )
    factor = base.network.model_args["factor"] if base.prediction.coarse else 1
    residual = base.variant(
        f"{base.name}_res",
        "the blocks stand on the input's grid, one convolution behind them gives the difference to "
        "the (cubically interpolated) input, starting at zero; no steps down or up",
        "random patches in batches of 16; Adam starts at 1e-3 and falls to zero by a cosine",
        network=Network("srresnet2d_res", 64, {"blocks": 5, "factor": factor}),
        batch_size=16,
        patch_size=(96, 96, 1),
        sampling="random",
        min_foreground=0.3,
        learning_rate=1e-3,
        schedule="cosine",
        sources={
            "batch_size": "ours: 16 patches",
            "patch_size": "ours: 96 x 96, drawn at random",
            "min_foreground": "ours: patches that are mostly dark teach nothing",
            "learning_rate": "ours: 1e-3, cosine to zero",
        },
    )
    fooled = residual.variant(
        f"srgan_{name}_res",
        start=residual.name,
        game=dataclasses.replace(SRGAN, weight=1e-3),
        learning_rate=1e-4,
        schedule="constant",
        sources={"learning_rate": "code: 1e-4", "game.weight": "code: as srgan_*_code"},
        deviations=(
            *residual.deviations[:-1],
            "random patches in batches of 16",
            "the discriminator is a new one",
        ),
    )
    similar = base.variant(
        f"{base.name}_ssim",
        loss="ssim_l1_l2",
        sources={"loss": "code's option: 0.8 SSIM + 0.1 L1 + 0.1 L2"},
    )
    cyclic = base.variant(
        f"{base.name}_cyclic",
        schedule="cyclic",
        schedule_args={"low": 0.1, "up": 4_000},
        sources={"schedule_args": "ours: code's option, from a tenth up in two epochs and back"},
    )
    return base, critic, joint, used, residual, fooled, similar, cyclic


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
