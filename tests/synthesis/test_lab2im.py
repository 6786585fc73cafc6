"""The rules of SynthSR's code (lab2im), against numbers drawn, by hand, or by an independent computation."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_simulation import PRIORS, STILL, TABLE, THICK, example

from srlib import systems
from srlib.degradations.resolution import GaussianDownsample
from srlib.inference import isotropic
from srlib.scans.volume import Volume
from srlib.synthesis import simulation
from srlib.synthesis.fields import blur_matrix, kernel_reach
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.slices import Axis, measured
from srlib.training.synthetic import SyntheticScans

T1 = Acquisition("t1")


def block(shape, label=2):
    return simulation.encode(Volume(np.full(shape, float(label)), np.eye(4)), TABLE)


SMALL = block((12, 12, 12))


def draws(generation, count=1, label_map=SMALL, priors=PRIORS, size=8):
    return [
        simulation.draw(
            np.random.default_rng(i), label_map, generation, priors=priors, patch_size=size
        )
        for i in range(count)
    ]


def test_options_that_are_off_draw_no_numbers():
    """Numbers of the version before there were options: those of `robust` and of trained weights."""
    rng = np.random.default_rng(0)
    t2 = Acquisition("t2", (1.0, 4.5, 1.0), (1.0, 3.0, 1.0))
    p = simulation.draw(rng, SMALL, Generation((THICK, t2)), priors=PRIORS, patch_size=8)
    assert (p.noise_seed, rng.random()) == (4275745689304378275, 0.1487640122324979)


@pytest.mark.parametrize(
    "name, most", [("case1", 5), ("case2", 5), ("case3", 0), ("case6", 0), ("training", 5)]
)
def test_translation_blur_and_bias_are_drawn_as_in_the_code(name, most):
    generation = systems.get(f"synthsr_{name}").examples.generation
    drawn = draws(generation, 600)
    shifts = np.abs([p.translation for p in drawn])
    assert shifts.max() <= most and (not most or shifts.mean() == pytest.approx(2.5, abs=0.15))
    fine = [np.minimum(s.spacing_mm, s.thickness_mm or s.spacing_mm) for s in generation.inputs]
    factors = np.stack([p.profile_mm / (0.42 * np.array(fine)) for p in drawn])
    assert 1 / 1.15 <= factors.min() < 0.88 and 1.14 < factors.max() <= 1.15
    assert np.corrcoef(factors[:, 0, 0], factors[:, 0, 2])[0, 1] < 0.2
    without = [not p.bias[i].any() for p in drawn for i in range(len(generation.inputs))]
    assert np.mean(without) == pytest.approx(0.05, abs=0.02)


def test_scaling_comes_last():
    """Without shear L = S R, so that L L^T is the squared scales, but L^T L is not diagonal."""
    generation = Generation((T1,), rules="lab2im", shear=0.0)
    linear = draws(generation)[0].linear
    scales = linear @ linear.T
    assert np.abs(scales - np.diag(np.diag(scales))).max() < 1e-12
    assert np.abs(linear.T @ linear - np.diag(np.diag(linear.T @ linear))).max() > 0.01
    np.testing.assert_allclose(
        np.linalg.norm(draws(Generation((T1,), shear=0.0))[0].linear, axis=0),
        np.sqrt(np.diag(scales)),
    )


def resized(field, shape):
    """Resize of neuron: voxel i is read at i times the old size over the new one, the edge repeated."""
    places = np.meshgrid(
        *(np.arange(n) * old / n for n, old in zip(shape, field.shape[1:], strict=True)),
        indexing="ij",
    )
    return np.stack([ndimage.map_coordinates(f, places, order=1, mode="nearest") for f in field])


def test_the_elastic_field_is_that_of_the_code():
    """Start-aligned resizing to int(n / 2), seven squarings there, and resizing without doubling."""
    shape = (33, 40, 27)
    generation = Generation((T1,), rules="lab2im", warp_grid=0.125)
    p = draws(generation, label_map=block(shape), size=shape)[0]
    velocity = 3 * p.velocity / p.velocity.std()
    p = dataclasses.replace(p, velocity=velocity)
    flow = resized(
        velocity, [max(n // 2, m) for n, m in zip(shape, velocity.shape[1:], strict=True)]
    )
    flow = flow / 2**7
    for _ in range(7):
        places = np.indices(flow.shape[1:]) + flow
        flow = flow + np.stack(
            [ndimage.map_coordinates(f, places, order=1, mode="nearest") for f in flow]
        )
    warp = resized(flow, shape)
    middle = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    moved = np.einsum("ij,jxyz->ixyz", p.linear, np.indices(shape) - middle + warp)
    expected = moved + middle + p.translation.reshape(3, 1, 1, 1)
    got = simulation._grid(p, shape, lab2im=True)[0].movedim(-1, 0).flip(0).numpy()
    np.testing.assert_allclose((got + 1) * middle, expected, atol=2e-3)
    other = simulation._grid(p, shape)[0].movedim(-1, 0).flip(0).numpy()
    assert np.abs((other + 1) * middle - expected).max() > 0.5  # not the rule of "srlib"


@pytest.mark.parametrize("rules, outside", [("srlib", 0), ("lab2im", 1)])
def test_beyond_the_map_the_code_repeats_its_edge(rules, outside):
    label_map = block((24, 24, 24))
    generation = Generation((T1,), **STILL, rules=rules, target="real")
    (p,) = draws(generation, label_map=label_map, size=24)
    p = dataclasses.replace(p, translation=np.array([9.0, 0, 0]))
    ramp = np.arange(24.0).reshape(-1, 1, 1) * np.ones((24, 24, 24)) + 30
    made = simulation.apply(label_map, p, generation, real=ramp)
    assert torch.all(made.classes[0, :15] == 1) and torch.all(made.classes[0, 15:] == outside)
    # a real scan of 39 to 53, min-max scaled, either with its edge or with zeros beyond it
    assert made.target[0, -1].mean() == pytest.approx(outside)


def test_kernels_are_cut_as_in_the_code():
    """windowsize = int(ceil(2.5 sigma) / 2) * 2 + 1 taps, zero padding."""
    sigmas = np.array([0.0, 0.42, 0.5, 1.125, 1.26, 6.75])
    assert kernel_reach(sigmas).tolist() == [0, 1, 1, 1, 2, 8]
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.26**2))
    matrix = blur_matrix(11, 1.26, 2)
    np.testing.assert_allclose(matrix[5, 3:8], taps / taps.sum())
    assert matrix[0].sum() == pytest.approx(taps[2:].sum() / taps.sum())
    spread = {s: np.sqrt((blur_matrix(41, s, r)[20] * np.arange(-20, 21) ** 2).sum())
              for s, r in zip(sigmas[2:5], (1, 1, 2), strict=True)}  # fmt: skip
    assert list(spread.values()) == pytest.approx([0.4615, 0.7577, 1.1098], abs=1e-3)
    # the draw takes the kernel of the nominal sigma, that of 9 mm for any resolution
    (case,) = draws(systems.get("synthsr_case5").examples.generation)
    assert case.reach.tolist() == [[1, 1, 2], [1, 2, 1]]
    assert draws(systems.get("synthsr_any").examples.generation)[0].reach.tolist() == [[8, 8, 8]]


def test_registration_errors_are_those_of_the_misplaced_axes():
    """Reading at T, then at Terr T^-1, as in the code: T Terr T^-1, where "srlib" leaves Terr."""
    both = [Generation((T1, T1), rules=rules) for rules in ("srlib", "lab2im")]
    (plain, code) = (draws(g)[0].moves[0] for g in both)
    (turn, shift), (rest, left) = plain
    error, away = turn @ rest, turn @ left + shift
    np.testing.assert_allclose(code[0][0], turn)
    np.testing.assert_allclose(code[1][0], error @ turn.T)
    np.testing.assert_allclose(code[1][1], away - error @ turn.T @ shift)
    assert np.abs(away).max() <= 0.5
    one = dataclasses.replace(both[0], inputs=(T1, Acquisition("t1", misplaced=False)))
    assert draws(one)[0].moves == [None]


def test_the_distance_is_that_to_the_nearest_slice_in_mm():
    np.testing.assert_allclose(Axis(7, 7, 1, 1).gap(3), [1, 0, 1, 1, 0, 1, 1])
    np.testing.assert_allclose(Axis(6, 6, 1, 1).gap(4.5), [1.75, 0.75, 0.25, 1.25, 2.25, 1.25])
    assert not Axis(5, 5, 1, 1).gap(1.0).any()
    assert measured(np.ix_([3.0], [4.0], [12.0]), 1.5, "distance").item() == 1.5 * 13
    generation = Generation((THICK,), **STILL, maps="distance")
    data = np.zeros((20, 20, 21))
    data[5:15, 5:15, 5:15] = 2
    labels = Volume(data, np.eye(4))
    ex = example(simulation.encode(labels, TABLE), generation, size=labels.shape)
    np.testing.assert_allclose(ex.reliability[0, 4, 7, :6], [1, 0, 1, 1, 0, 1])
    lr = GaussianDownsample((1, 1, 3), (0, 0, 1.26))(labels)
    predicted = isotropic.reliability(lr, labels, "distance")
    inner = slice(1, -1)
    np.testing.assert_allclose(predicted[..., inner], ex.reliability[0, ..., inner], atol=1e-6)
    assert systems.get("synthsr_any").prediction.generation.maps == "distance"


def test_without_priors_classes_have_any_brightness():
    drawn = draws(Generation((T1,)), 300, priors={})
    means, stds = (np.stack([getattr(p, n)[0] for p in drawn]) for n in ("means", "stds"))
    for values, low, high in ((means, 25, 225), (stds, 5, 25)):
        assert low <= values.min() < low + 2 and high - 2 < values.max() <= high
        np.testing.assert_allclose(values.mean(0), (low + high) / 2, rtol=0.06)


def test_a_scan_that_is_not_downsampled_is_blurred_alone():
    data = np.zeros((20, 20, 30))
    data[5:15, 5:15, 10:20] = 2
    encoded = simulation.encode(Volume(data, np.eye(4)), TABLE)
    scan = dataclasses.replace(THICK, downsampled=False)
    quiet = {**STILL, "profile": 0.42, "blur_all": False}
    ex = example(encoded, Generation((scan,), **quiet), size=data.shape)
    expected = ndimage.gaussian_filter1d(ex.target[0].numpy(), 1.26, axis=2, mode="nearest")
    np.testing.assert_allclose(ex.images[0], expected, atol=2e-3)
    assert torch.all(ex.reliability == 1)


def test_bounds_may_differ_between_axes():
    generation = Generation((T1,), scaling=(0.0, 0.1, 0.2), rotation_deg=0.0, shear=0.0)
    scales = np.array([np.diag(p.linear) for p in draws(generation, 300)]) - 1
    assert np.abs(scales).max(0) == pytest.approx([0, 0.1, 0.2], abs=2e-3)


def test_padding_lets_patches_reach_beyond_the_map():
    data = np.random.default_rng(0).choice([2.0, 16, 41], (10, 11, 12))
    encoded = simulation.encode(Volume(data, np.eye(4)), TABLE)
    part = SyntheticScans((10, 11, 12), 1, Generation((T1,), **STILL), 1.0, padding=3)
    whole = np.pad(np.vectorize({2: 1, 41: 2, 16: 3}.get)(data), 3)
    seen = set()
    for seed in range(12):
        classes = part.example(np.random.default_rng(seed), encoded, PRIORS, None).classes[0]
        places = [
            at for at in np.ndindex(7, 7, 7)
            if np.array_equal(whole[tuple(map(slice, at, np.add(at, data.shape)))], classes)
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 6


def test_label_maps_of_thick_slices_take_their_finest_spacing():
    data = np.random.default_rng(0).choice([0.0, 2, 16, 41], (6, 5, 4))
    encoded = simulation.encode(Volume(data, np.diag([1.0, 1, 2, 1])), TABLE)
    assert encoded.index.shape == (6, 5, 8) and encoded.spacing_mm == 1
    fine = simulation.encode(Volume(data.repeat(2, 2), np.eye(4)), TABLE)
    assert torch.equal(encoded.index, fine.index)
