"""Make the built-in cohorts: the MNI152 template, subjects warped from it, simulated images."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from nibabel import affines
from numpy.random import Generator

from srlib.core.paths import data_dir, make_dir
from srlib.core.tables import write_table
from srlib.data import phantoms
from srlib.degradations.ultrasound import scan_convert
from srlib.scans.volume import Volume, save_scan
from srlib.synthesis.fields import band_noise, draw_warp, sample, smooth_field

TEMPLATE = "mni152"
LEARN = ("train",) * 5 + ("val",)  # splits of the synthetic subjects before those to test
LEARN_IMAGES = ("train",) * 6 + ("val",)  # of the 2-D cohorts
TESTS = 2
IMAGE_SLICES, IMAGE_SIZE = 4, 256
# mean intensity of (CSF, grey, white matter), of 1; drawn anew per subject with the std below
CONTRASTS = {"t1": (0.20, 0.55, 0.82), "t2": (0.95, 0.55, 0.38)}
CONTRAST_STD = 0.05
# the brain and about 10 mm around it, in template voxels
BOX_START, BOX_SHAPE = (14, 17, 0), (168, 203, 166)
FULL_SCALE = 4095  # 12-bit integers, as scanners write


def build(*, manifest: Path, tests: int = TESTS) -> None:
    """Write manifest and volumes of the cohort (T1, T2, label map per subject), always the same.

    ``tests`` synthetic subjects have the split test; more of them leave the others as they are.
    Volumes go to ``example/`` in the data folder. Row ``mni152`` is the MNI152 2009a T1 template
    that nilearn ships: the average of 152 real scans, in the test split and never trained on. The
    others share its anatomy up to a strong warp, with contrast, texture, bias and Rician noise of
    their own. Labels: 0 background, 1 CSF, 2 grey, 3 white matter. Raises InputError, before
    anything is written, where another manifest is there.
    """
    own = enumerate((*LEARN, *("test",) * tests), 1)
    splits = {TEMPLATE: "test"} | {f"syn{number:02d}": split for number, split in own}
    rows = []
    for name, split in splits.items():
        t1, t2, labels = (f"example/{name}_{kind}.nii.gz" for kind in ("t1", "t2", "labels"))
        rows.append((name, split, t1, "" if name == TEMPLATE else t2, labels, labels))
    write_table(manifest, ("subject", "split", "t1", "t2", "labels", "mask"), rows)
    folder = make_dir(data_dir() / "example")
    template, tissues = read_template()

    def write(index, name):
        if index:
            rng = np.random.default_rng([0, index - 1])
            scans, dtype = make_subject(template.affine, tissues, rng), np.int16
        else:
            labels = template.with_data(tissues.argmax(0).numpy())
            scans, dtype = {"t1": template, "labels": labels}, np.float32
        for kind, scan in scans.items():
            stored = np.uint8 if kind == "labels" else dtype
            save_scan(scan, folder / f"{name}_{kind}.nii.gz", dtype=stored)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        list(pool.map(write, range(len(splits)), splits))  # which raises what a thread raised


def build_images(kind: str, *, manifest: Path, tests: int = TESTS) -> None:
    """Write a cohort of 2-D images, ``ct`` or ``us``: stacks of IMAGE_SLICES independent images.

    CT slices in HU, whole numbers; ultrasound in [0, 1], scan-converted; both simulated, see
    ``phantoms``, and always the same. Raises InputError, before anything is written, where another
    manifest is there.
    """
    rows = []
    for number, split in enumerate((*LEARN_IMAGES, *("test",) * tests), 1):
        name = f"{kind}{number:02d}"
        rows.append((name, split, f"example_{kind}/{name}.nii.gz"))
    write_table(manifest, ("subject", "split", "image"), rows)
    make_dir(data_dir() / f"example_{kind}")
    draw, dtype = {"ct": (_ct, np.int16), "us": (_us, np.float32)}[kind]
    for index, (*_, file) in enumerate(rows):
        images = [draw(np.random.default_rng([0, index, number])) for number in range(IMAGE_SLICES)]
        stack = Volume(np.concatenate([i.data for i in images], axis=2), images[0].affine)
        save_scan(stack, data_dir() / file, dtype=dtype)


def _ct(rng):
    return Volume(phantoms.ct_slice(rng, IMAGE_SIZE)[..., None], np.eye(4))


def _us(rng):
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
    """The T1 template and its tissue probabilities (4, X, Y, Z), of 1 mm, without a network.

    Tissues: background, CSF, grey matter, white matter.
    """
    from nilearn import datasets  # slow to import, and needed by this function alone

    image = datasets.load_mni152_template(resolution=1)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    template = Volume(image.get_fdata(dtype=np.float32), image.affine)
    fluid = np.clip((template.data > 0) - grey - white, 0, 1)
    tissues = np.stack([np.clip(1 - grey - white - fluid, 0, 1), fluid, grey, white])
    return template, torch.from_numpy(tissues / tissues.sum(0))


def make_subject(affine: np.ndarray, tissues: torch.Tensor, rng: Generator) -> dict[str, Volume]:
    """One synthetic subject: label map, T1 and T2 (12-bit), on a part of the template's grid.

    ``affine`` and ``tissues`` (4, X, Y, Z) are the template's. Voxels mix the tissues by their
    probabilities, so partial volume stays; nothing is made from hard labels.
    """
    start = BOX_START + rng.integers(0, 5, 3) * (1, 1, 0)
    shape = tuple((BOX_SHAPE - rng.integers(0, 9, 3)).tolist())
    place = affine @ affines.from_matvec(np.eye(3), start)
    warp = draw_warp(rng, shape, points=9, std=5.0)
    warp -= warp.mean((1, 2, 3), keepdim=True)  # the brain stays inside its box
    offset = torch.tensor(start, dtype=torch.float32).view(3, 1, 1, 1)
    sharpness = rng.uniform(1.5, 3.0)  # sharper than an average of 152
    probability = sample(tissues, warp + offset) ** sharpness
    probability /= probability.sum(0)
    subject = {"labels": Volume(probability.argmax(0).numpy(), place)}
    texture = band_noise(rng, shape, 2.0) * 0.02 + band_noise(rng, shape, 4.0) * 0.02
    brain = 1 - probability[0]
    for kind, means in CONTRASTS.items():
        means = torch.tensor([0.0, *rng.normal(means, CONTRAST_STD)], dtype=torch.float32)
        image = torch.einsum("k,kxyz->xyz", means, probability) * (1 + texture)
        image = image * torch.exp(smooth_field(rng, shape, 4, 0.1)[0])
        noise = torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32)) * 0.008
        # Rician, skull-stripped as the template
        image = torch.hypot(image + noise[0], noise[1]) * (brain > 0.02)
        subject[kind] = Volume((image / image.max()).numpy() * FULL_SCALE, place)
    return subject
