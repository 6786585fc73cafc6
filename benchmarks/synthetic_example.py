"""A synthetic example of 128^3 from a label map: SynthSR's generation against TorchIO's."""

import numpy as np
import torch
from common import interleaved, main, row

from srlib import systems
from srlib.core.paths import root
from srlib.data.cohorts import read_template
from srlib.scans.volume import Volume, central
from srlib.synthesis.priors import read_classes
from srlib.synthesis.simulation import encode

EXPERIMENT = "synthsr_training"


def label_map() -> Volume:
    """The tissues of the MNI152 template, 1 mm: 0 background, 1 CSF, 2 grey, 3 white matter."""
    template, tissues = read_template()
    return template.with_data(tissues.argmax(0).numpy())


def torchio_example(labels: Volume, size: int):
    """TorchIO's transforms in SynthSR's order, as a function that gives an input and its target.

    They deform, at SynthSR's strengths, only the middle that becomes the example.
    """
    import torchio as tio

    middle = central(labels, size)
    map_ = tio.LabelMap(tensor=torch.from_numpy(middle.data)[None], affine=middle.affine)
    subject = tio.Subject(labels=map_)
    brightness, spread = [(25, 225)] * 4, [(5, 25)] * 4
    crisp = tio.Compose(
        [
            tio.RandomAffine(scales=0.15, degrees=15, translation=5),
            tio.RandomElasticDeformation(num_control_points=8, max_displacement=6),
            tio.RandomLabelsToImage("labels", range(4), "image", brightness, spread),
            tio.RandomBiasField(0.3),
            tio.RescaleIntensity(),
            tio.RandomGamma(0.5),
            tio.RandomBlur(0.5),
        ]
    )
    slices = tio.Compose([tio.RandomBlur((0, 0, 0, 0, 1.1, 1.4)), tio.RandomAnisotropy(2, 3)])

    def example() -> tuple[np.ndarray, np.ndarray]:
        target = crisp(subject)
        return slices(target).image.numpy(), target.image.numpy()

    return example


def run() -> None:
    """One example of each, on one process."""
    experiment, labels = systems.get(EXPERIMENT), label_map()
    part, size = experiment.examples, experiment.examples.patch_size
    encoded = encode(labels, read_classes(root() / "csv" / "classes_tissue.csv"))
    rng = np.random.default_rng(0)
    peer = torchio_example(labels, size)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return part.draw(rng, encoded, {}, None)[0]

    for made in (ours(), peer()):
        assert [array.shape[-3:] for array in made] == [(size,) * 3] * 2
        assert all(np.isfinite(array).all() and array.std() > 0.01 for array in made)
    seconds = interleaved(ours, peer, warm=False)
    what = f"{EXPERIMENT}, {size}^3"
    row("synthetic_example", what, "TorchIO transforms", seconds, packages=("torchio",))


if __name__ == "__main__":
    main(run)
