"""SynthSR's examples: a function of their parameters, in their place, and as the priors say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from srlib import systems
from srlib.core.paths import InputError, data_dir
from srlib.degradations.resolution import GaussianDownsample
from srlib.inference import isotropic
from srlib.scans.volume import Volume, load_nifti
from srlib.synthesis import simulation
from srlib.synthesis.fields import separable
from srlib.synthesis.priors import Label, estimate_priors, partners, read_classes, read_priors
from srlib.synthesis.settings import Acquisition, Generation
from srlib.synthesis.slices import Axis, measured

ROOT = Path(__file__).parents[2]
TABLE = (Label(0, 0), Label(2, 1, "Left-White"), Label(41, 2, "Right-White"), Label(16, 3, "Stem"))
MEANS, STDS = (
    np.array([[0.0, 100, 160, 220], [0, 5, 5, 5]]),
    np.array([[0.0, 4, 4, 4], [0, 1, 1, 1]]),
)
PRIORS = {"t1": (MEANS, STDS), "t2": (MEANS[:, [0, 3, 2, 1]], STDS)}
STILL = dict.fromkeys(
    ("scaling", "rotation_deg", "shear", "warp_std", "bias_std", "gamma_std", "blur", "profile"), 0.0
) | {"flip": False, "blur_range": 1.0}  # fmt: skip
THICK = Acquisition("t1", (1.0, 1.0, 3.0))


@pytest.fixture(scope="module")
def labels():
    data = np.zeros((40, 48, 36))
    data[6:19, 8:40, 6:30] = 41  # right is where x is small in LAS, but this map is RAS
    data[21:34, 8:40, 6:30] = 2
    data[17:23, 18:26, 2:20] = 16
    return Volume(data, np.diag([1.0, 1, 1, 1]))


@pytest.fixture(scope="module")
def encoded(labels):
    return simulation.encode(labels, TABLE)


def example(encoded, generation, seed=0, size=32, spacing=None, priors=PRIORS, **more):
    parameters = simulation.draw(
        np.random.default_rng(seed),
        encoded,
        generation,
        priors=priors,
        patch_size=size,
        spacing_mm=spacing,
    )
    return simulation.apply(encoded, parameters, generation, **more)


def parts(ex):
    return [ex.images, ex.reliability, ex.target, ex.classes]


def test_the_same_parameters_give_the_same_bytes(encoded):
    generation = Generation(
        (THICK, Acquisition("t2", (1.0, 4.5, 1.0), (1.0, 3.0, 1.0))), target="t1"
    )
    first = example(encoded, generation)
    torch.manual_seed(5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(parts(first), parts(example(encoded, generation)), strict=True)
    )
    assert not torch.equal(first.images, example(encoded, generation, seed=1).images)


@pytest.mark.parametrize("name", [f"synthsr_case{n}" for n in range(1, 7)] + ["synthsr_any"])
def test_every_use_case_gives_its_channels(encoded, labels, name):
    experiment = systems.get(name)
    generation, spacing = experiment.examples.generation, experiment.examples.spacing_mm
    real = labels.data if generation.target == "real" else None
    ex = example(encoded, generation, size=(24, 32, 16), spacing=spacing, real=real)
    assert ex.network_input().shape == (experiment.network.model_args["in_channels"], 24, 32, 16)
    assert ex.target.shape == ex.classes.shape == (1, 24, 32, 16)
    assert torch.isfinite(ex.reliability).all() and ex.reliability.min() >= 0
    most = 9 if generation.maps == "distance" else 1  # mm
    for part in (ex.images, ex.reliability / most, ex.target):
        assert torch.isfinite(part).all() and part.min() >= -1e-6 and part.max() <= 1 + 1e-6
    assert ex.target.std() > 0.05


def test_nothing_random_gives_the_label_map_back(encoded, labels):
    ex = example(encoded, Generation((Acquisition("t1"),), **STILL), size=labels.shape)
    expected = np.vectorize({0: 0, 2: 1, 41: 2, 16: 3}.get)(labels.data)
    np.testing.assert_array_equal(ex.classes[0].numpy(), expected)
    assert torch.equal(ex.reliability, torch.ones(1, *labels.shape))
    means = [ex.target[0][torch.from_numpy(expected) == k].mean() for k in range(4)]
    assert means == sorted(means)


def test_maps_in_other_axes_are_turned(encoded, labels):
    turned = simulation.encode(Volume(labels.data[::-1].swapaxes(1, 2), np.array(
        [[-1.0, 0, 0, 39], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    )), TABLE)  # fmt: skip
    assert torch.equal(turned.index, encoded.index)


def test_a_flip_keeps_left_structures_left(encoded, labels):
    """Left label 2 lies at large x here; mirrored anatomy still has its left class there."""
    generation = Generation((Acquisition("t1"),), **STILL)
    parameters = simulation.draw(
        np.random.default_rng(0), encoded, generation, priors=PRIORS, patch_size=labels.shape
    )
    plain = simulation.apply(encoded, parameters, generation).classes[0]
    flipped = simulation.apply(
        encoded, dataclasses.replace(parameters, flip=True), generation
    ).classes[0]
    for k in (1, 2):
        assert torch.equal(
            flipped == k, plain == k
        )  # the two halves mirror each other, but for the stem
    stem = torch.from_numpy(labels.data == 16)
    assert torch.equal(flipped == 3, stem.flip(0))


def test_a_real_target_is_deformed_with_its_labels(encoded, labels):
    real = np.vectorize({0: 0, 2: 1, 41: 1, 16: 2}.get)(labels.data).astype(
        np.float32
    )  # both sides look alike
    generation = Generation((THICK,), target="real", rotation_deg=10, warp_std=2.0)
    for seed in range(4):
        ex = example(encoded, generation, seed, labels.shape, real=real)
        high, low = (
            torch.nn.functional.max_pool3d(sign * ex.classes, 5, 1, 2) * sign for sign in (1, -1)
        )
        inside = high == low  # away from borders
        expected = torch.tensor([0.0, 1, 1, 2])[ex.classes.long()]
        torch.testing.assert_close(ex.target[inside] * 2, expected[inside], atol=0.02, rtol=0)


def test_intensities_follow_the_priors(encoded):
    """Means of classes over many draws: those of a normal prior, or between the rows of a uniform one."""

    def drawn(generation, priors):
        draws = [
            simulation.draw(
                np.random.default_rng(i), encoded, generation, priors=priors, patch_size=8
            )
            for i in range(400)
        ]
        return np.stack([p.means[0] for p in draws])

    means = drawn(Generation((Acquisition("t1_hr"),)), PRIORS)
    np.testing.assert_allclose(means.mean(0), MEANS[0], atol=1)
    np.testing.assert_allclose(means.std(0), MEANS[1], rtol=0.15)
    low, high = np.full((2, 4), 10.0), np.array([[2.0] * 4, [3.0] * 4])
    low[1] = [20, 30, 40, 50]
    uniform = drawn(Generation((Acquisition("t1"),), distribution="uniform"), {"t1": (low, high)})
    assert (uniform.min(0) >= 10).all() and (uniform.max(0) <= low[1]).all()
    np.testing.assert_allclose(uniform.mean(0), low.mean(0), rtol=0.05)
    with pytest.raises(InputError, match="lowest and the greatest"):
        drawn(Generation((Acquisition("t1"),), distribution="uniform"), PRIORS)


def test_a_crop_is_a_part_of_the_whole(encoded, labels):
    """The flow is integrated about the crop alone; what comes of it is what the whole map would give."""
    generation = Generation((Acquisition("t1"),), **STILL | {"warp_std": 3.0, "rotation_deg": 10.0})
    for seed in range(3):
        whole = simulation.draw(
            np.random.default_rng(seed), encoded, generation, priors=PRIORS, patch_size=labels.shape
        )
        axes = [Axis(n, n, 1.0, 1.0) for n in (16, 17, 12)]
        part = dataclasses.replace(whole, axes=axes, start=(9, 20, 15))
        expected = simulation.apply(encoded, whole, generation).classes[0][9:25, 20:37, 15:27]
        assert (
            simulation.apply(encoded, part, generation).classes[0] != expected
        ).float().mean() < 1e-3


def test_priors_of_synthetic_scans_are_those_they_were_drawn_with():
    """SynthSR's T1 priors where they are at hand; scans of several label maps, units back from the clip."""
    folder = data_dir() / "synthsr"
    if (folder / "labels").is_dir():
        maps = [load_nifti(path) for path in sorted((folder / "labels").glob("*.nii.gz"))[:2]]
        table = read_classes(folder / "priors" / "generation_labels.npy")
        means, stds = read_priors(folder / "priors" / "prior_means_t1_hr.npy")["t1_hr"]
    else:
        print("SynthSR's label maps are not at hand: three drawn structures instead")
        data = np.zeros((60, 60, 60))
        data[10:50, 10:50, 10:30], data[10:50, 10:50, 30:40], data[10:50, 10:50, 40:50] = 2, 41, 16
        maps, table = [Volume(data, np.eye(4))], TABLE
        means, stds = (
            np.array([[0, 226.4, 130.2, 58.8], [0] * 4]),
            np.array([[0, 15.4, 18.5, 20], [0] * 4]),
        )
    alike = {"t1": tuple(part * [[1], [0]] for part in (means, stds))}  # every subject has the mean
    generation, synthetic = Generation((Acquisition("t1"),), **STILL, clip=255.0), []
    for number, labels in enumerate(maps):
        ex = example(
            simulation.encode(labels, table), generation, number, labels.shape, priors=alike
        )
        synthetic.append((str(number), labels.with_data(ex.images[0].numpy() * 255), labels))
    found = estimate_priors(synthetic, table, rescale=False)
    np.testing.assert_allclose(found[0][0][1:], means[0][1:], rtol=0.02)
    np.testing.assert_allclose(found[1][0][1:], stds[0][1:], rtol=0.1)


def test_a_warp_does_not_fold_where_the_published_bounds_are_greatest():
    """Jacobian of the whole deformation, positive at every voxel: affine and warp, at the largest std."""
    encoded = simulation.LabelMap(
        torch.zeros(96, 112, 88, dtype=torch.uint8), np.zeros(1, int), np.zeros(1, int), 1.0
    )
    for seed in range(4):
        rng = np.random.default_rng(seed)
        p = simulation.draw(
            rng,
            encoded,
            Generation((THICK,)),
            priors={"t1": (MEANS[:, :1], STDS[:, :1])},
            patch_size=(96, 112, 88),
        )
        p = dataclasses.replace(p, velocity=p.velocity / p.velocity.std() * 4.0)
        grid = simulation._grid(p, (96, 112, 88))[0].movedim(-1, 0).flip(0)
        grid = grid.double() * torch.tensor([(n - 1) / 2 for n in (96, 112, 88)]).view(3, 1, 1, 1)
        matrix = torch.stack([torch.stack(torch.gradient(c)) for c in grid]).movedim(
            (0, 1), (-2, -1)
        )
        determinant = torch.linalg.det(matrix)[1:-1, 1:-1, 1:-1]
        assert determinant.min() > 0
        assert determinant.std() > 0.05


@pytest.mark.parametrize(
    "size, spacing", [((30, 41, 36), 1.0), ((20, 28, 24), 1.5), ((32, 33, 34), None)]
)
def test_slices_lie_where_they_were_measured(encoded, size, spacing):
    """A ramp that is acquired and interpolated comes back as it was, away from the edges, on any output spacing."""
    out = spacing or 1.0
    for axis, (n, step) in enumerate(zip((30, 42, 36), (3.0, 4.5, 2.0), strict=True)):
        line = Axis(n, size[axis], 1.0, out)
        ramp, middle = (
            torch.arange(n, dtype=torch.float32).view(1, 1, n),
            slice(int(10 / out), -int(10 / out)),
        )
        for order in (1, 3):
            got = separable(ramp, [None, None, line.acquire(step, 0.42 * step, order, None)])[
                0, 0
            ].numpy()
            np.testing.assert_allclose(
                got[middle], line.places[middle], atol=0.05 if order == 1 else 0.3
            )  # edges ring


@pytest.mark.parametrize("order", [1, 3])
def test_inputs_are_what_prediction_makes_of_a_thick_scan(encoded, labels, order):
    """The matrices of training do what ``resample`` does from the scan's own grid."""
    generation = Generation((THICK,), **{**STILL, "profile": 0.42, "blur_all": False}, order=order)
    ex = example(encoded, generation, size=labels.shape)
    thick = GaussianDownsample((1, 1, 3), (0, 0, 1.26))
    lr = thick(labels.with_data(ex.target[0].numpy()))
    np.testing.assert_allclose(ex.reliability[0], isotropic.reliability(lr, labels), atol=1e-6)
    expected = thick.to_grid(lr, labels.shape, order=order)
    difference = np.abs(ex.images[0].numpy() - expected.data)[..., 5:-5]
    assert difference.max() < 0.01


def reliability(axis, slices_mm):
    return measured([axis.gap(slices_mm)], axis.spacing, "reliability")


def test_reliability_marks_slices_and_fades():
    np.testing.assert_allclose(reliability(Axis(7, 7, 1, 1), 3), [0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(reliability(Axis(6, 6, 1, 1), 2.0), [0.5] * 6)
    np.testing.assert_allclose(reliability(Axis(6, 6, 1, 1), 4.5), [0, 0.25, 0.75, 0, 0, 0])
    np.testing.assert_allclose(reliability(Axis(5, 5, 1, 1), 1.0), np.ones(5))
    ex_sum = reliability(Axis(3000, 3000, 1, 1), 4.5).sum()
    assert ex_sum == pytest.approx(3000 / 4.5, rel=1e-3)  # as many as there are slices


def test_thick_slices_lose_detail_across_and_keep_it_within(encoded):
    quiet = {**STILL, "profile": 0.42, "blur_all": False}
    ex = example(encoded, Generation((THICK,), **quiet), size=(32, 32, 33))
    image, truth = ex.images[0], ex.target[0]
    measured = ex.reliability[0] == 1
    assert measured.float().mean() == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(measured, measured[:1, :1].expand_as(measured))
    lost = [(truth.diff(dim=a) ** 2).sum() / (image.diff(dim=a) ** 2).sum() for a in range(3)]
    assert lost[2] > 3 * max(lost[0], lost[1])


def test_misplaced_inputs_come_back_up_to_the_residual(encoded):
    moved = Generation((THICK, Acquisition("t1")), **STILL, residual_deg=0.0, residual_mm=0.0)
    ex = example(encoded, moved, size=(40, 48, 36))
    one = example(
        encoded, dataclasses.replace(moved, misplaced_deg=0.0, misplaced_mm=0.0), size=(40, 48, 36)
    )
    inside = (slice(8, -8),) * 3
    away = (ex.images[1] - one.images[1])[inside].abs()
    assert 0 < away.mean() < 0.03
    wrong = dataclasses.replace(moved, residual_mm=5.0, residual_deg=5.0)
    assert (example(encoded, wrong, size=(40, 48, 36)).images[1] - one.images[1])[
        inside
    ].abs().mean() > 3 * away.mean()


def test_random_resolutions_stay_in_their_range(encoded):
    generation = Generation((Acquisition("t1", random_mm=9.0),))
    drawn = [
        simulation.draw(np.random.default_rng(i), encoded, generation, priors=PRIORS, patch_size=8)
        for i in range(300)
    ]
    spacing = np.array([p.slices_mm[0] for p in drawn])
    assert spacing.min() >= 1 and 8.5 < spacing.max() <= 9
    assert 0.01 < (spacing == 1).all(1).mean() < 0.1
    assert all((p.profile_mm[0] <= 0.42 * 1.15 * p.slices_mm[0] + 1e-9).all() for p in drawn)


def test_partners_are_found_by_side_or_name():
    assert partners(TABLE) == {2: 41, 41: 2}
    assert partners((Label(1, 0, "Thalamus", "left"), Label(5, 1, "thalamus", "right"))) == {
        1: 5,
        5: 1,
    }
    assert partners((Label(1, 0, "Left-Thalamus"), Label(5, 1, "Stem"))) == {}
    with pytest.raises(InputError, match=r"label 1 .* left side"):
        partners((Label(1, 0, "Thalamus", "left"), Label(5, 1, "Stem")))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.with_data(v.data + 0.5), "not whole"),
        (lambda v: v.with_data(np.where(v.data == 16, 99, v.data)), "label 99 .* has no class"),
    ],
)
def test_label_maps_that_cannot_be_used(labels, change, message):
    with pytest.raises(InputError, match=message):
        simulation.encode(change(labels), TABLE)


@pytest.mark.parametrize(
    "generation, real, message",
    [
        (Generation((Acquisition("flair"),)), None, "no intensity priors for 'flair'"),
        (Generation((THICK,), target="real"), None, "expected a real scan"),
        (Generation((THICK,), target="real"), np.zeros((3, 3, 3)), r"got \(3, 3, 3\)"),
        (Generation((THICK,)), np.zeros((40, 48, 36)), "no real scan"),
    ],
)
def test_examples_that_cannot_be_made(encoded, generation, real, message):
    with pytest.raises(InputError, match=message):
        example(encoded, generation, real=real)


def test_priors_for_another_number_of_classes_are_refused(encoded):
    """Also for more: those of the first classes are not those of this table."""
    more = tuple(np.concatenate([part, part[:, :1]], axis=1) for part in (MEANS, STDS))
    for prior, count in (((MEANS[:, :3], STDS[:, :3]), 3), (more, 5)):
        with pytest.raises(InputError, match=f"{count} classes; the label table has 4"):
            simulation.draw(
                np.random.default_rng(0),
                encoded,
                Generation((THICK,)),
                priors={"t1": prior},
                patch_size=8,
            )
