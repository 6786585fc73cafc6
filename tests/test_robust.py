"""The network for every factor: what it is told, what it does not depend on, what it was trained on, and its weights."""

import dataclasses

import numpy as np
import pytest
import torch

from srlib import experiments, mixture
from srlib.adapt import adapt
from srlib.degrade import GaussianDownsample
from srlib.generator import encode
from srlib.infer import Model, super_resolve
from srlib.metrics import psnr
from srlib.models.robust import RobustSR, Told, pack, unpack
from srlib.paths import InputError
from srlib.priors import Label
from srlib.tiled import run_tiled
from srlib.volume import Volume

SMOKE = experiments.get("robust", "smoke")
TABLE = [Label(0, 0), *(Label(k, k) for k in (1, 2, 3))]
PRIORS = {"t1": (np.array([[0, 80, 140, 220], [0, 8, 8, 8.0]]), np.array([[0, 8, 14, 22], [0, 2, 2, 2.0]]))}
PRIORS["t2"] = PRIORS["t1"]


@pytest.fixture(scope="module")
def network():
    """One with random weights wherever training would have put some."""
    torch.manual_seed(0)
    network = RobustSR(width=8, blocks=2)
    for layer, std in ((network.last, 0.05), (network.filters[-1], 0.02), (network.gains[-1], 0.05)):
        torch.nn.init.normal_(layer.weight, 0, std)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def balls():
    """A label map of nested balls, in RAS axes of 1 mm."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 56, 58)), indexing="ij")
    radius = sum((g / 0.9) ** 2 for g in grid) ** 0.5 + 0.1 * np.sin(9 * grid[0])
    return encode(Volume(np.select([radius < 0.4, radius < 0.7, radius < 1], [1, 2, 3], 0), np.eye(4)), TABLE)


def told_network(network, data, factor=(2, 2, 2)):
    return Told(network, torch.from_numpy(mixture.told(data, factor)))


def test_packed_voxels_come_back():
    x = torch.arange(4 * 6 * 2.0).reshape(1, 1, 4, 6, 2)
    assert torch.equal(pack(x)[0, :, 0, 0, 0], x[0, 0, :2, :2, :2].flatten())
    assert torch.equal(unpack(pack(x)), x)


def test_before_training_the_scan_comes_out_as_it_went_in(noise):
    data = noise((12, 13, 15))
    assert np.array_equal(run_tiled(told_network(RobustSR(width=4).eval(), data), data), data)


@pytest.mark.parametrize("shape", [(20, 22, 24), (17, 21, 9), (16, 18, 1)])
def test_units_and_window_of_a_scan_do_not_matter(network, noise, shape):
    data = noise(shape)
    sr = run_tiled(told_network(network, data), data)
    assert np.abs(sr - data).max() > 0.01
    other = (300 * data - 50).astype(np.float32)
    np.testing.assert_allclose(run_tiled(told_network(network, other), other), 300 * sr - 50, atol=0.05)


@pytest.mark.parametrize("shape", [(90, 41, 44), (83, 75, 9)])
def test_tiles_give_what_the_whole_scan_gives(network, noise, shape):
    data = noise(shape)
    told = told_network(network, data)
    whole = told(torch.from_numpy(data)[None, None])[0, 0].numpy()
    assert np.abs(run_tiled(told, data, 0.02) - whole).max() < 1e-5 * np.abs(whole).max()


def test_it_is_told_the_factor_and_shown_the_kernel(noise):
    scan = Volume(noise((48, 48, 48)), np.eye(4))
    sharp, blurred = (GaussianDownsample((2, 2, 2), s) for s in (0.5, 2.0))
    looks = [d.to_grid(d(scan), scan.shape).data for d in (sharp, blurred)]
    facts = [mixture.told(look, (2, 1, 1)).reshape(3, -1) for look in looks]
    assert [list(f[:, 0]) for f in facts] == [[0.5, 1, 1]] * 2
    assert (facts[0][:, 1] > facts[1][:, 1] + 0.5).all()
    white = mixture.told(np.random.default_rng(0).standard_normal((64, 64, 64)).astype(np.float32), (1, 1, 1))
    assert np.abs(white.reshape(3, -1)[:, 1:]).max() < 0.05
    np.testing.assert_allclose(mixture.told(7 * looks[0] + 3, (2, 1, 1)), facts[0].ravel(), atol=1e-3)
    assert np.isfinite(mixture.told(np.zeros((20, 20, 3), np.float32), (1, 1, 1))).all()


def test_patches_are_those_of_one_degraded_scan(balls):
    patches = mixture.paint_patches(np.random.default_rng(3), balls, SMOKE, PRIORS)
    assert len(patches) == SMOKE.samples == 8
    for given, truth in patches:
        assert given.shape == (16, 16, 16, 16) and truth.shape == (1, 16, 16, 16)
        assert given.dtype == truth.dtype == np.float32
        assert (np.ptp(given[1:], axis=(1, 2, 3)) == 0).all()
        assert np.array_equal(given[1:, 0, 0, 0], patches[0][0][1:, 0, 0, 0])
    again = mixture.paint_patches(np.random.default_rng(3), balls, SMOKE, PRIORS)
    assert all(
        np.array_equal(a, b) for one, other in zip(patches, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    with pytest.raises(InputError, match="cube"):
        mixture.paint_patches(np.random.default_rng(0), balls, dataclasses.replace(SMOKE, samples=9), PRIORS)


def test_what_is_drawn_covers_the_mixture(balls):
    rng, factors = np.random.default_rng(0), []
    hr = mixture.paint(rng, balls, SMOKE, PRIORS, [32] * 3)
    assert hr.shape == (32, 32, 32) and 0 <= hr.data.min() < hr.data.max() < 2
    for _ in range(60):
        lr, factor = mixture.degrade(rng, hr, SMOKE.mixture)
        assert lr.shape == hr.shape and np.isfinite(lr.data).all()
        assert 12 < psnr(hr.data, lr.data, float(np.ptp(hr.data))) < 80
        factors.append(factor)
    coarse = np.sum(np.array(factors) > 1, axis=1)
    assert {1, 2, 3} == set(coarse)
    assert {(2.0, 2.0, 2.0)} <= set(factors) and max(map(max, factors)) > 4


def thick(name="robust", factor=(1, 1, 4), size=64):
    """A textured scan with slices of 4 mm, and the truth; the texture is alike along all axes."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.arange(size),) * 3, indexing="ij")
    data = np.zeros((size,) * 3)
    for _ in range(150):
        centre, radius, value = rng.uniform(0, size, 3), rng.uniform(3, 9), rng.uniform(0, 1)
        data[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2] = value
    hr = Volume(data, np.eye(4))
    return GaussianDownsample(factor, 0.42 * factor[2])(hr), hr


def test_a_scan_with_thick_slices_teaches_its_own_network():
    model = Model(RobustSR(width=8, blocks=1).eval().requires_grad_(False), experiments.get("robust"))
    lr, hr = thick()
    adapted, line = adapt(lr, model, (1, 1, 4), steps=40)
    assert line.startswith(
        ("adapted: slice profile of sigma 0.42 slices", "adapted: slice profile of sigma 0.3 slices")
    )
    before, after = (super_resolve(lr, m, (1, 1, 4)) for m in (model, adapted))
    peak = float(np.ptp(hr.data))
    assert psnr(hr.data, after.data, peak) > psnr(hr.data, before.data, peak) + 0.2
    assert not any(p.requires_grad for p in adapted.network.parameters())
    again, same = adapt(lr, model, (1, 1, 4), steps=40)
    assert same == line
    for one, other in zip(adapted.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_does_not_help_is_not_kept(monkeypatch):
    monkeypatch.setattr("srlib.adapt.RATE", 10.0)  # training that ruins the network
    model = Model(RobustSR(width=4, blocks=1).eval().requires_grad_(False), experiments.get("robust"))
    kept, line = adapt(thick()[0], model, (1, 1, 4), steps=2)
    assert kept is model and line.startswith("not adapted")


def test_adapting_needs_thick_slices_and_the_right_model(noise):
    model = Model(RobustSR(width=4, blocks=1).eval(), experiments.get("robust"))
    scan = Volume(noise((40, 40, 40)), np.eye(4))
    with pytest.raises(InputError, match="coarser along one axis"):
        adapt(scan, model, (2, 2, 2))
    with pytest.raises(InputError, match="voxels per axis"):
        adapt(Volume(noise((20, 40, 40)), np.eye(4)), model, (1, 1, 3))
    with pytest.raises(InputError, match="use the model robust"):
        adapt(scan, Model(model.network, experiments.get("mdcsrn_res")), (1, 1, 3))
