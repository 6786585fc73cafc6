"""Predict with one network for every factor (ours)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage

from srlib.core.parts import Number
from srlib.data.pairs import ObservationModel, network_input
from srlib.degradations.kernels import Kernel, estimated
from srlib.inference.checks import content
from srlib.inference.prediction import Factor, Plan, SameGrid, Setup
from srlib.models.conditioning import describe_degradation
from srlib.models.robust import Conditioned
from srlib.scans.intensity import fit_scaling, usual_range
from srlib.scans.volume import Volume, resample

THICK = 1.2  # an axis is thick from so many times the finest spacing on


@dataclass(frozen=True)
class AnyFactor(SameGrid):
    """A network for every factor: it is given a description of what the scan resolves (ours).

    The result is the mean with that of the scan mirrored along all axes, which is better and
    cannot move anything to one side.
    """

    takes: ClassVar = (*SameGrid.takes, "zero_filled", "flip")

    isotropic: Number  # greatest factor of two or all axes in the training
    thick: Number  # greatest factor of a single axis

    def default_factor(self, scan: Volume, pairs: ObservationModel) -> Factor:
        """Thick axes come to the finest spacing; without any, the task's factor counts."""
        spacing = np.array(scan.spacing_mm)
        ratio = spacing / spacing.min()
        thick = spacing > THICK * spacing.min()
        if not thick.any():
            return super().default_factor(scan, pairs)
        return tuple(np.where(thick, ratio, 1).tolist())

    def on_grid(self, scan: Volume, setup: Setup, factor: Factor | None, lr: Volume) -> Volume:
        """As ``SameGrid``; by default the factor is the task's.

        The network never sees wild voxels (``intensity.usual_range``) of ``lr``. What they add to
        the interpolated scan is added to the result.
        """
        calm, calm_lr = without_wild(scan, lr)
        scaling = fit_scaling(calm.data, setup.pairs.intensity)
        given = network_input(calm, None, setup.pairs.intensity)
        facts = describe_degradation(given[0], factor or setup.pairs.degradation().coarser)
        device = next(setup.network.parameters()).device
        setup = replace(
            setup, network=Conditioned(setup.network, torch.from_numpy(facts).to(device))
        )
        made = setup.run(given)
        if setup.request.flip:
            made += setup.run(given[:, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
            made /= 2
        image = self.consistent(scan.with_data(scaling.invert(made)), calm, calm_lr, setup, factor)
        return image if calm is scan else scan.with_data(image.data + (scan.data - calm.data))

    def kernel(self, scan: Volume, setup: Setup, coarser: Factor, same_grid: bool) -> Kernel | None:
        """What the scan's voxels measured, told or estimated; zero-filled ones the middle of
        k-space.
        """
        if given := super().kernel(scan, setup, coarser, same_grid):
            return given
        if same_grid:
            return Kernel(coarser, told=False) if max(coarser) > 1 else None
        return estimated(scan.data, coarser)

    def content_warnings(self, scan: Volume, setup: Setup, plan: Plan) -> list[str]:
        """Factors beyond the training, few slices, smooth content."""
        found, greatest = [], max(plan.coarser)
        alone = sum(factor > 1 for factor in plan.coarser) == 1
        if greatest > (self.thick if alone else self.isotropic):
            found.append(
                f"a factor of {greatest:.3g}; this model was trained on up to {self.isotropic:g}, "
                f"or {self.thick:g} along one axis"
            )
        return found + content(scan, plan.finer, setup.request.zero_filled or (1, 1, 1))


def without_wild(on_grid: Volume, lr: Volume) -> tuple[Volume, Volume]:
    """A scan on the output grid and before, with medians for wild voxels and their neighbours.

    Wild voxels (``usual_range``) are those of ``lr``, the scan before it was interpolated. Without
    any, the results are ``on_grid`` and ``lr`` themselves.
    """
    data = lr.data
    for _ in range(4):  # without the wildest, others of a hot slice are found wild
        held = np.clip(data, *usual_range(data))
        if np.array_equal(held, data):
            break
        near = ndimage.maximum_filter(held != data, 3)  # the dark end of a hot line is as wrong
        data = np.where(near, ndimage.median_filter(held, 3), data)
    if data is lr.data:
        return on_grid, lr
    calm = lr.with_data(data)
    same = lr.shape == on_grid.shape and np.allclose(lr.affine, on_grid.affine)
    return calm if same else resample(calm, on_grid.shape, on_grid.affine), calm
