"""Estimates are measured in the world or as arrays, and against the scan that they were made from."""

import numpy as np
import pytest
import torch

from srlib.core.paths import InputError
from srlib.degradations import degrade
from srlib.evaluation.quality import consistency, measure
from srlib.scans.volume import Volume, crop_or_pad, reorient


def test_volumes_are_measured_in_the_world_and_arrays_voxel_by_voxel(oblique, noise):
    truth = Volume(noise((15, 16, 17)), oblique)
    estimate = truth.with_data(truth.data + 0.1 * noise(truth.shape, 1))
    expected = measure(truth, estimate, extended=True)
    elsewhere = reorient(crop_or_pad(estimate, (-1, -1, -1), (18, 18, 19)), "LPS")
    assert measure(truth, elsewhere, extended=True) == expected
    tensor = torch.tensor(estimate.data, requires_grad=True)
    found = measure(truth.data, tensor, extended=True)
    for axis, mm in zip("xyz", truth.spacing_mm, strict=True):
        length = found["volume"].pop(f"resolution_{axis}")  # in voxels
        assert length * mm == pytest.approx(expected["volume"].pop(f"resolution_{axis}"), rel=1e-3)
    assert found == expected
    with pytest.raises(InputError, match="shape"):
        measure(truth, elsewhere.data[1:])
    integers = (200 * truth.data).astype(np.uint8)
    assert measure(integers, integers[::-1])["volume"] == pytest.approx(
        measure(integers.astype(float), integers[::-1].astype(float))["volume"], rel=1e-5
    )


def test_an_estimate_is_consistent_when_it_explains_its_input(blob):
    truth = blob((24, 24, 24), np.diag([1, 1, 2, 1]), sigma=2.0)
    for task in ("gaussian_x2", "kspace_x2_3d"):
        lr = degrade(truth, task)
        assert consistency(lr, truth, task) > 100
        moved = truth.with_data(np.roll(truth.data, 1, 0))
        assert consistency(lr, moved, task) < 35
    lr = degrade(truth, "gaussian_x2_noise")
    assert consistency(lr, truth, "gaussian_x2_noise") < 40  # its noise is not explained
    with pytest.raises(InputError, match="unknown task"):
        consistency(lr, truth, "no_such")
    with pytest.raises(InputError, match="covers"):
        consistency(lr, crop_or_pad(truth, (0, 0, 0), (24, 24, 12)), "gaussian_x2")
