"""The built-in cohorts: the MNI152 template, synthetic subjects warped from it, and simulated CT and ultrasound."""

from pathlib import Path

import numpy as np
import torch
from nibabel import affines

from srlib.core.paths import data_dir, make_dir
from srlib.core.tables import write_table
from srlib.data import phantoms
from srlib.degradations.ultrasound import scan_convert
from srlib.scans.volume import Volume, save
from srlib.synthesis.fields import band_noise, draw_warp, sample, smooth_field

TEMPLATE = "mni152"
SPLITS = ("train",) * 5 + ("val",) + ("test",) * 2
IMAGE_SPLITS, IMAGE_SLICES, IMAGE_SIZE = (
    ("train",) * 6 + ("val",) + ("test",) * 2,
    4,
    256,
)  # of the 2-D cohorts
# mean intensity of (CSF, grey, white matter), of 1; drawn anew per subject with the std below
CONTRASTS = {"t1": (0.20, 0.55, 0.82), "t2": (0.95, 0.55, 0.38)}
CONTRAST_STD = 0.05
BOX_START, BOX_SHAPE = (
    (14, 17, 0),
    (168, 203, 166),
)  # the brain and about 10 mm around it, in template voxels
FULL_SCALE = 4095  # 12-bit integers, as scanners write


def build(manifest: Path | None = None) -> Path:
    """Write manifest and volumes of the cohort (T1, T2, label map per subject), always the same bytes.

    Volumes go to ``example/`` in the data folder. Row ``mni152`` is the MNI152 2009a T1 template
    that nilearn ships: the average of 152 real scans, in the test split and never trained on. The
    others share its anatomy up to a strong warp, with contrast, texture, bias and Rician noise of
    their own. Labels: 0 background, 1 CSF, 2 grey, 3 white matter. Raises InputError, before
    anything is written, for a manifest that is there and another.
    """
    splits = {f"syn{number:02d}": split for number, split in enumerate(SPLITS, 1)}
    rows = []
    for name, split in {TEMPLATE: "test", **splits}.items():
        t1, t2, labels = (f"example/{name}_{kind}.nii.gz" for kind in ("t1", "t2", "labels"))
        rows.append((name, split, t1, "" if name == TEMPLATE else t2, labels, labels))
    manifest = manifest or data_dir() / "example.csv"
    write_table(manifest, ("subject", "split", "t1", "t2", "labels", "mask"), rows)
    folder = make_dir(data_dir() / "example")
    template, tissues = read_template()
    save(template, folder / f"{TEMPLATE}_t1.nii.gz")
    save(
        template.with_data(tissues.argmax(0).numpy()),
        folder / f"{TEMPLATE}_labels.nii.gz",
        dtype=np.uint8,
    )
    for index, name in enumerate(splits):
        for kind, volume in make_subject(
            template.affine, tissues, np.random.default_rng([0, index])
        ).items():
            save(
                volume,
                folder / f"{name}_{kind}.nii.gz",
                dtype=np.uint8 if kind == "labels" else np.int16,
            )
    return manifest


def build_images(kind: str, manifest: Path | None = None) -> Path:
    """Write a cohort of 2-D images, ``ct`` or ``us``: stacks of IMAGE_SLICES independent simulated images.

    CT slices in HU, whole numbers; ultrasound in [0, 1], scan-converted; see phantoms. No
    patient's, and always the same bytes. Raises InputError, before anything is written, for a
    manifest that is there and another.
    """
    names = [f"{kind}{number:02d}" for number in range(1, len(IMAGE_SPLITS) + 1)]
    rows = [
        (n, split, f"example_{kind}/{n}.nii.gz")
        for n, split in zip(names, IMAGE_SPLITS, strict=True)
    ]
    manifest = manifest or data_dir() / f"example_{kind}.csv"
    write_table(manifest, ("subject", "split", "image"), rows)
    folder = make_dir(data_dir() / f"example_{kind}")
    draw, dtype = {"ct": (_ct, np.int16), "us": (_us, np.float32)}[kind]
    for index, name in enumerate(names):
        images = [draw(np.random.default_rng([0, index, number])) for number in range(IMAGE_SLICES)]
        stack = Volume(np.concatenate([i.data for i in images], axis=2), images[0].affine)
        save(stack, folder / f"{name}.nii.gz", dtype=dtype)
    return manifest


def _ct(rng: np.random.Generator) -> Volume:
    return Volume(phantoms.ct_slice(rng, IMAGE_SIZE)[..., None], np.eye(4))


def _us(rng: np.random.Generator) -> Volume:
    polar, radii, angles = phantoms.bmode(rng)
    return scan_convert(
        polar,
        initial_radius=radii[0],
        final_radius=radii[-1],
        initial_angle=angles[0],
        final_angle=angles[-1],
        shape=(IMAGE_SIZE, IMAGE_SIZE),
    )


def read_template() -> tuple[Volume, torch.Tensor]:
    """The T1 template and its tissue probabilities (4, X, Y, Z): background, CSF, grey, white; 1 mm, offline."""
    from nilearn import datasets  # slow to import, and needed by this function alone

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    images = [load(resolution=1) for load in loaders]
    t1, grey, white = (image.get_fdata(dtype=np.float32) for image in images)
    template = Volume(t1, images[0].affine)
    fluid = np.clip((template.data > 0) - grey - white, 0, 1)
    tissues = np.stack([np.clip(1 - grey - white - fluid, 0, 1), fluid, grey, white])
    return template, torch.from_numpy(tissues / tissues.sum(0))


def make_subject(
    affine: np.ndarray, tissues: torch.Tensor, rng: np.random.Generator
) -> dict[str, Volume]:
    """One synthetic subject: T1 and T2 (12-bit) and its label map, on a grid of odd size cut from the template's.

    Voxels mix the tissues by their probabilities, so partial volume stays; nothing is made from hard labels.
    """
    start = BOX_START + rng.integers(0, 5, 3) * (1, 1, 0)
    shape = tuple((BOX_SHAPE - rng.integers(0, 9, 3)).tolist())
    place = affine @ affines.from_matvec(np.eye(3), start)
    warp = draw_warp(rng, shape, points=9, std=5.0)
    warp -= warp.mean((1, 2, 3), keepdim=True)  # the brain stays inside its box
    offset = torch.tensor(start, dtype=torch.float32).view(3, 1, 1, 1)
    probability = sample(tissues, warp + offset) ** float(
        rng.uniform(1.5, 3.0)
    )  # sharper than an average of 152
    probability /= probability.sum(0)
    subject = {"labels": Volume(probability.argmax(0).numpy(), place)}
    texture = band_noise(rng, shape, 2.0) * 0.02 + band_noise(rng, shape, 4.0) * 0.02
    brain = 1 - probability[0]
    for kind, means in CONTRASTS.items():
        means = torch.tensor([0.0, *rng.normal(means, CONTRAST_STD)], dtype=torch.float32)
        image = torch.einsum("k,kxyz->xyz", means, probability) * (1 + texture)
        image = image * torch.exp(smooth_field(rng, shape, 4, 0.1)[0])
        noise = torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32)) * 0.008
        image = torch.hypot(image + noise[0], noise[1]) * (
            brain > 0.02
        )  # Rician, skull-stripped as the template
        subject[kind] = Volume((image / image.max()).numpy() * FULL_SCALE, place)
    return subject
