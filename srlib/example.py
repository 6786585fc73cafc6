"""The built-in cohorts: the MNI152 template, synthetic subjects warped from it, and simulated CT and ultrasound."""

from pathlib import Path

import numpy as np
import torch

from srlib import phantoms
from srlib.fields import band_noise, draw_warp, sample, smooth_field
from srlib.paths import atomic, data_dir, make_dir
from srlib.ultrasound import scan_convert
from srlib.volume import Volume, crop_or_pad, save

SPLITS = ("train",) * 5 + ("val",) + ("test",) * 2
IMAGE_SPLITS, IMAGE_SLICES, IMAGE_SIZE = ("train",) * 6 + ("val",) + ("test",) * 2, 4, 256  # of the 2-D cohorts
# mean intensity of (CSF, grey, white matter), of 1; drawn anew per subject with the std below
CONTRASTS = {"t1": (0.20, 0.55, 0.82), "t2": (0.95, 0.55, 0.38)}
CONTRAST_STD = 0.05
BOX_START, BOX_SHAPE = (14, 17, 0), (168, 203, 166)  # the brain and about 10 mm around it, in template voxels
FULL_SCALE = 4095  # 12-bit integers, as scanners write


def build(folder: Path | None = None, manifest: Path | None = None, seed: int = 0) -> Path:
    """Write volumes and manifest of the cohort (T1, T2, label map per subject); the same bytes for the same seed.

    Row ``mni152`` is the MNI152 2009a T1 template that nilearn ships: the average of 152 real scans, in the
    test split and never trained on. The others share its anatomy up to a strong warp, with contrast, texture,
    bias and Rician noise of their own. Labels: 0 background, 1 CSF, 2 grey, 3 white matter.
    """
    folder = make_dir(folder or data_dir() / "example")
    template, tissues = read_template()
    rows = ["subject,split,t1,t2,labels,mask"]
    save(template, folder / "mni152_t1.nii.gz")
    save(template.with_data(tissues.argmax(0).numpy()), folder / "mni152_labels.nii.gz", dtype=np.uint8)
    rows.append("mni152,test,example/mni152_t1.nii.gz,,example/mni152_labels.nii.gz,example/mni152_labels.nii.gz")
    for index, split in enumerate(SPLITS):
        name = f"syn{index + 1:02d}"
        files = {kind: f"{name}_{kind}.nii.gz" for kind in ("t1", "t2", "labels")}
        for kind, volume in make_subject(template.affine, tissues, np.random.default_rng([seed, index])).items():
            save(volume, folder / files[kind], dtype=np.uint8 if kind == "labels" else np.int16)
        cells = [f"example/{files[kind]}" for kind in ("t1", "t2", "labels", "labels")]
        rows.append(",".join([name, split, *cells]))
    manifest = manifest or data_dir() / "example.csv"
    with atomic(manifest) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def build_images(kind: str, folder: Path | None = None, manifest: Path | None = None, seed: int = 0) -> Path:
    """Write a cohort of 2-D images, ``ct`` or ``us``: stacks of IMAGE_SLICES independent simulated images; see phantoms.

    CT slices in HU, whole numbers; ultrasound in [0, 1], scan-converted. No patient's. The same bytes for the same seed.
    """
    folder = make_dir(folder or data_dir() / f"example_{kind}")
    rows, shape = ["subject,split,image"], (IMAGE_SIZE, IMAGE_SIZE)
    for index, split in enumerate(IMAGE_SPLITS):
        name, images = f"{kind}{index + 1:02d}", []
        for number in range(IMAGE_SLICES):
            rng = np.random.default_rng([seed, index, number])
            if kind == "ct":
                images.append(Volume(phantoms.ct_slice(rng, IMAGE_SIZE)[..., None], np.eye(4)))
            else:
                polar, radii, angles = phantoms.bmode(rng)
                images.append(scan_convert(polar, radii[0], radii[-1], angles[0], angles[-1], shape))
        stack = Volume(np.concatenate([i.data for i in images], axis=2), images[0].affine)
        save(stack, folder / f"{name}.nii.gz", dtype=np.int16 if kind == "ct" else np.float32)
        rows.append(f"{name},{split},example_{kind}/{name}.nii.gz")
    manifest = manifest or data_dir() / f"example_{kind}.csv"
    with atomic(manifest) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def read_template() -> tuple[Volume, torch.Tensor]:
    """The T1 template and its tissue probabilities (4, X, Y, Z): background, CSF, grey, white; 1 mm, offline."""
    from nilearn import datasets  # slow to import, and needed by this function alone

    image = datasets.load_mni152_template(resolution=1)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    template = Volume(image.get_fdata(dtype=np.float32), image.affine)
    fluid = np.clip((template.data > 0) - grey - white, 0, 1)
    tissues = np.stack([np.clip(1 - grey - white - fluid, 0, 1), fluid, grey, white])
    return template, torch.from_numpy(tissues / tissues.sum(0))


def make_subject(affine: np.ndarray, tissues: torch.Tensor, rng: np.random.Generator) -> dict[str, Volume]:
    """One synthetic subject: T1 and T2 (12-bit) and its label map, on a grid of odd size cut from the template's.

    Voxels mix the tissues by their probabilities, so partial volume stays; nothing is made from hard labels.
    """
    start = np.asarray(BOX_START) + rng.integers(0, 5, 3) * (1, 1, 0)
    shape = tuple(int(n) for n in np.asarray(BOX_SHAPE) - rng.integers(0, 9, 3))
    place = crop_or_pad(Volume(np.zeros((1, 1, 1)), affine), start, (1, 1, 1)).affine
    warp = draw_warp(rng, shape, points=9, std=5.0)
    warp -= warp.mean((1, 2, 3), keepdim=True)  # the brain stays inside its box
    offset = torch.tensor(start, dtype=torch.float32).view(3, 1, 1, 1)
    probability = sample(tissues, warp + offset) ** float(rng.uniform(1.5, 3.0))  # sharper than an average of 152
    probability /= probability.sum(0)
    subject = {"labels": Volume(probability.argmax(0).numpy(), place)}
    texture = band_noise(rng, shape, 2.0) * 0.02 + band_noise(rng, shape, 4.0) * 0.02
    brain = 1 - probability[0]
    for kind, means in CONTRASTS.items():
        means = torch.tensor([0.0, *rng.normal(means, CONTRAST_STD)], dtype=torch.float32)
        image = torch.einsum("k,kxyz->xyz", means, probability) * (1 + texture)
        image = image * torch.exp(smooth_field(rng, shape, 4, 0.1)[0])
        noise = torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32)) * 0.008
        image = torch.hypot(image + noise[0], noise[1]) * (brain > 0.02)  # Rician, skull-stripped as the template
        subject[kind] = Volume((image / image.max()).numpy() * FULL_SCALE, place)
    return subject
