"""SynthSR's prediction: where things lie, what the network sees, the units that come back, and the warnings."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_foreign import make, theirs

from srlib.core.paths import InputError
from srlib.inference.isotropic import isotropic, reliability
from srlib.inference.prediction import Request, Setup
from srlib.scans.volume import Volume, axcodes, reorient
from srlib.synthesis.settings import Acquisition, Generation
from srlib.systems.registry import EXPERIMENTS
from srlib.systems.synthsr import SYNTHSR_HYPERFINE, SYNTHSR_PUBLISHED
from srlib.systems.trained import Model, load_model, super_resolve


class Fake(torch.nn.Module):
    """A network that keeps what it saw and gives what a function makes of it."""

    halo, live_channels = 0, 2

    def __init__(self, function=lambda x: x[:, :1]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.function, self.seen = function, []

    def forward(self, x):
        self.seen.append(x[0].numpy().copy())
        return self.function(x)


def fake(function=lambda x: x[:, :1], base=SYNTHSR_PUBLISHED, **changes) -> Model:
    return Model(Fake(function).eval(), base.changed(**{"output": "scan", **changes}))


def test_a_blob_stays_where_it_is(affine, blob, centre_of_mass):
    for shape, spacing in product([(25, 24, 23), (22, 27, 21)], [1.0, 1.5, 0.6]):
        scan = blob(shape, affine)
        sr = super_resolve(scan.with_data(scan.data * 3000), fake(spacing_mm=spacing))
        assert axcodes(sr) == "RAS"
        np.testing.assert_allclose(sr.spacing_mm, spacing, rtol=1e-6)
        assert np.abs(centre_of_mass(sr) - centre_of_mass(scan)).max() < 0.05
        assert 1200 < sr.data.max() <= 3000
        # one corner of the field of view stays, and the other is at most a voxel away
        corners = (-0.5,) * 3, np.subtract(shape, 0.5)
        first, last = (np.linalg.solve(sr.affine, affine @ [*corner, 1])[:3] for corner in corners)
        ends = np.array([np.full(3, -0.5), np.subtract(sr.shape, 0.5)])
        assert np.abs(first - ends).min(0).max() < 1e-6
        assert np.abs(last - ends).min(0).max() < 1


def test_axes_are_permuted_and_flipped_but_never_turned(oblique, blob):
    sr = super_resolve(blob((20, 21, 22), oblique), fake())
    old, new = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (oblique, sr.affine))
    np.testing.assert_allclose(np.abs(old.T @ new).max(1), 1, atol=1e-9)


def test_a_scan_of_1_mm_keeps_its_shape_though_its_header_is_rounded(noise):
    scan = Volume(noise((40, 41, 42)), np.diag([1.0000001, 0.9999999, 1, 1]))
    assert super_resolve(scan, fake()).shape == scan.shape


def test_voxels_finer_than_the_target_are_blurred_first(noise):
    scan = Volume(noise((60, 20, 20)), np.diag([0.5, 1, 3, 1]))
    blurred = ndimage.gaussian_filter(
        scan.data, (0.5, 0.25, 0)
    )  # a quarter of the new voxel, also where it is the old
    x = np.linspace(0.5, 58.5, 30)[:, None, None]
    between = (blurred[::2] + blurred[1::2]) / 2
    assert x[0] == 0.5
    z = np.arange(60) / 3 - 1 / 3  # slices in the middle of three voxels
    low = np.clip(np.floor(z), 0, 18).astype(int)
    share = np.clip(z - low, 0, 1)
    expected = between[..., low] * (1 - share) + between[..., low + 1] * share
    np.testing.assert_allclose(isotropic(scan, 1.0).data, expected, atol=1e-5)


def by_hand(scan: Volume, network: torch.nn.Module, flip: bool = True) -> np.ndarray:
    """The published pipeline for a RAS scan of 1 mm, written out."""
    data = ndimage.gaussian_filter(scan.data, 0.25)
    data = (data - data.min()) / (data.max() - data.min())
    wide = [int(np.ceil(n / 32) * 32) for n in data.shape]
    at = [(w - n) // 2 for w, n in zip(wide, data.shape, strict=True)]
    inside = tuple(slice(a, a + n) for a, n in zip(at, data.shape, strict=True))
    padded = np.zeros(wide, np.float32)
    padded[inside] = data

    def through(x):
        with torch.inference_mode():
            return network(torch.from_numpy(x.copy())[None, None])[0, 0].numpy()

    out = through(padded)
    if flip:
        out = 0.5 * out + 0.5 * np.flip(through(np.flip(padded, 0)), 0)
    return np.clip(255 * out[inside], 0, 128)


@pytest.fixture
def scan(noise) -> Volume:
    """A smooth RAS scan of 1 mm and odd sizes, in units of a scanner."""
    data = ndimage.gaussian_filter(noise((45, 50, 39)), 2)
    return Volume(
        data * 4000 + 100, np.array([[1, 0, 0, -20], [0, 1, 0, 5], [0, 0, 1, 9.5], [0, 0, 0, 1.0]])
    )


def check_published(path, scan):
    model = load_model(path, device="cpu")
    assert model.experiment.prediction.spacing_mm == 1.0 and not model.network.training
    for flip in (True, False):
        sr, expected = super_resolve(scan, model, flip=flip), by_hand(scan, model.network, flip)
        assert expected.std() > 1 and (expected > 0).any() and (expected < 128).any()
        np.testing.assert_allclose(sr.data, expected, atol=0.02)
        np.testing.assert_allclose(sr.affine, scan.affine, atol=1e-9)
    assert np.abs(by_hand(scan, model.network) - expected).max() > 0.5


def test_keras_weights_run_the_published_pipeline(tmp_path, scan):
    layers = theirs(width=4, levels=3)
    rng = np.random.default_rng(1)
    for name, arrays in layers.items():
        for part in arrays if "conv" in name or "likelihood" in name else ():
            arrays[part] = rng.normal(0, 0.15, arrays[part].shape).astype("f4")
    check_published(make(tmp_path / "mine.h5", layers), scan)


def test_the_fixture_of_keras_runs_the_published_pipeline(published_dir, scan):
    path = published_dir / "synthsr_unet_f6_random.h5"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand")
    check_published(path, scan)


def test_keras_weights_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.delenv("SRLIB_PUBLISHED", raising=False)
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path))
    (tmp_path / "published").mkdir()
    make(tmp_path / "published" / "SynthSR_any.h5", theirs())
    assert load_model("SynthSR_any.h5", device="cpu").experiment.name == "synthsr_published"


UNITS = {
    "scan": [-50, 150, 350],
    "unit": [0, 127.5, 255],
    "synthsr": [0, 127.5, 128],
    "hyperfine": [0, 150, 350],
}


@pytest.mark.parametrize("output", UNITS)
def test_units(output):
    data = np.full((32, 32, 32), 150.0)
    data[:, :16], data[:, :8] = 350, -50
    base = SYNTHSR_HYPERFINE if output == "hyperfine" else SYNTHSR_PUBLISHED
    scan = Volume(data, np.eye(4))
    sr = super_resolve(
        scan, fake(base=base, output=output), reference=scan if base.reference else None
    )
    np.testing.assert_allclose(
        [sr.data[5, y, 5] for y in (3, 25, 12)], UNITS[output], rtol=1e-4, atol=1e-3
    )


def test_hyperfine_weights_add_to_the_t1_and_see_the_t2_in_its_place(
    tmp_path, blob, centre_of_mass
):
    layers = theirs(channels=2)
    for part in layers["unet_likelihood"]:
        layers["unet_likelihood"][part] *= 0
    file = make(tmp_path / "SynthSR_v10_210712_hyperfine.h5", layers)
    t1 = blob((40, 40, 12), np.diag([1.5, 1.5, 5, 1]))
    t1 = t1.with_data(t1.data * 900 - 20)
    model = load_model(file, device="cpu")
    shifted = t1.affine.copy()
    shifted[:3, 3] = 4, 0, 0
    t2 = Volume(t1.data + 60, shifted)
    np.testing.assert_allclose(
        super_resolve(t1, model, reference=t2).data,
        np.maximum(isotropic(t1, 1.0).data, 0),
        atol=0.01,
    )  # the network gives zero, so the T1 comes back, clipped at 0
    spy = Model(Fake(), model.experiment)
    super_resolve(t1, spy, reference=t2)
    (seen,) = spy.network.seen  # one pass
    assert seen.shape == (2, 64, 64, 64)
    assert seen.max((1, 2, 3)) == pytest.approx([3, 2], rel=1e-3)
    first, second = (np.array(ndimage.center_of_mass(c)) for c in seen)
    np.testing.assert_allclose(second - first, (4, 0, 0), atol=0.1)
    with pytest.raises(InputError, match=r"this model takes a reference \(t2\), got none"):
        super_resolve(t1, model)
    with pytest.raises(InputError, match="this model takes no reference, got one"):
        super_resolve(t1, fake(), reference=t2)


def test_ct_is_clipped_to_soft_tissue(noise):
    hu = Volume(noise((33, 32, 31)) * 2000 - 1000, np.eye(4))
    clipped = isotropic(hu.with_data(np.clip(hu.data, 0, 80)), 1.0)
    np.testing.assert_allclose(super_resolve(hu, fake(), ct=True).data, clipped.data, atol=1e-3)
    with pytest.raises(InputError, match="constant"):
        super_resolve(hu.with_data(hu.data - 2000), fake(), ct=True)


def test_the_mirrored_pass_is_mirrored_back(noise):
    scan = Volume(noise((32, 32, 32)), np.eye(4))
    model, same = fake(lambda x: x.roll(1, 2)), isotropic(scan, 1.0).data
    right, left = np.roll(same, 1, 0), np.roll(same, -1, 0)
    np.testing.assert_allclose(super_resolve(scan, model).data, (right + left) / 2, atol=1e-5)
    np.testing.assert_allclose(super_resolve(scan, model, flip=False).data, right, atol=1e-5)


def comb(n: int, step: float, first: float) -> np.ndarray:
    at = first + step * np.arange(-1, n)
    return np.maximum(1 - np.abs(np.arange(n)[:, None] - at), 0).max(1)


def test_thick_slices_come_with_a_map_of_where_they_were_measured(noise):
    affine = np.array(
        [[0, 0, -2.5, 90], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]]
    )  # voxel axes A, S, L
    model = fake(base=EXPERIMENTS["synthsr_thick"])
    sr = super_resolve(Volume(noise((32, 10, 12)), affine), model, flip=False)
    image, measured = model.network.seen[0]
    assert sr.shape == (30, 32, 30) and image.max() == pytest.approx(1)
    expected = comb(30, 2.5, 0.75)[::-1, None, None] * np.ones((1, 32, 1)) * comb(30, 3, 1)
    np.testing.assert_allclose(measured[1:31, :, 1:31], expected, atol=1e-6)
    assert measured.max() <= 1 and not measured[0].any()


def test_a_scan_as_fine_as_the_output_was_measured_everywhere(noise):
    scan = Volume(noise((20, 20, 20)), np.diag([0.7, 1, 1.005, 1]))
    assert (reliability(scan, isotropic(scan, 1.0)) == 1).all()


def test_the_map_of_a_turned_reference_follows_its_slices(oblique, blob):
    grid, reference = Volume(np.zeros((50, 50, 50)), np.eye(4)), blob((30, 31, 9))
    turned = oblique.copy()
    turned[:3, :3] = turned[:3, :3] / np.linalg.norm(turned[:3, :3], axis=0) * (1, 1, 4)
    turned[:3, 3] = (24.5,) * 3 - turned[:3, :3] @ (14.5, 15, 4)
    measured = reliability(Volume(reference.data, turned), grid)
    normal = turned[:3, 2] / 4
    height = (
        np.indices(grid.shape).reshape(3, -1).T - turned[:3, 3]
    ) @ normal  # mm above the first slice
    distance = np.abs(height[:, None] - 4 * np.arange(9)).min(1).reshape(grid.shape)
    np.testing.assert_allclose(measured, np.maximum(1 - distance, 0), atol=1e-5)


def test_a_second_scan_has_its_own_map(noise):
    two = (Acquisition("t1_lr", (1.0, 1.0, 3.0)), Acquisition("t2", (1.0, 4.0, 1.0)))
    model = fake(generation=Generation(two), reference="t2")
    t1 = Volume(noise((32, 32, 10)), np.diag([1, 1, 3, 1]))
    t2 = Volume(noise((32, 8, 32)), np.diag([1.0, 4, 1, 1]))
    super_resolve(t1, model, reference=t2, flip=False)
    maps = model.network.seen[0][1::2, :, :, 1:31]
    np.testing.assert_allclose(maps[0], np.broadcast_to(comb(30, 3, 1), (32, 32, 30)), atol=1e-6)
    # the T2's first slice lies on the first voxel; beyond its field of view nothing was measured
    np.testing.assert_allclose(maps[1, 7, :, 9], comb(32, 4, 0), atol=1e-6)


FLIPPED = np.array([[0, 0, 1.0, -8.0], [-1, 0, 0, 40.0], [0, 1, 0, -3.0], [0, 0, 0, 1]])


def test_a_prediction_lies_on_the_grid_of_the_truth_voxel_by_voxel(noise):
    hr = Volume(noise((22, 20, 23)), FLIPPED)
    model = fake(base=EXPERIMENTS["synthsr_thick"])
    pair = model.experiment.pairs.degrade(hr)
    sr = model.predict_pair(pair)
    assert sr.shape == hr.shape and np.array_equal(sr.affine, hr.affine)
    alone = reorient(super_resolve(pair.lr, model), axcodes(hr))
    assert np.array_equal(sr.data, alone.data[:22, :20, :23])


def test_a_prediction_in_units_of_its_own_is_measured_in_the_range_of_the_truth(blob):
    hr = blob((32, 33, 36), np.eye(4), sigma=3)
    hr = hr.with_data(300 + 700 * hr.data)
    scan, unit = (fake(base=EXPERIMENTS["synthsr_case1"], output=o) for o in ("scan", "unit"))
    pair = scan.experiment.pairs.degrade(hr)
    seen, made = isotropic(pair.lr, 1.0).data, unit.predict_pair(pair).data
    share = (scan.predict_pair(pair).data - seen.min()) / np.ptp(seen)
    np.testing.assert_allclose(made, hr.data.min() + share * np.ptp(hr.data), rtol=1e-4)
    assert made.max() > 980 and unit.predict(pair.lr).image.data.max() <= 255.001


def test_a_prediction_of_another_spacing_is_interpolated_there(oblique, blob, centre_of_mass):
    affine = oblique.copy()
    affine[:3, :3] *= 0.8 / np.linalg.norm(affine[:3, :3], axis=0)
    hr = blob((45, 44, 46), affine, sigma=4)
    model = fake(base=EXPERIMENTS["synthsr_thick"])
    sr = model.predict_pair(model.experiment.pairs.degrade(hr))
    assert sr.shape == hr.shape and np.abs(centre_of_mass(sr) - centre_of_mass(hr)).max() < 0.05
    assert np.abs(sr.data - hr.data).max() < 0.15


def test_uncertainty_is_the_mean_of_both_passes_in_the_units_of_the_image(noise):
    scan = Volume(noise((32, 33, 34)) * 500, np.eye(4))
    ramp = torch.linspace(-1, 1, 32).view(1, 1, -1, 1, 1)
    model = fake(
        lambda x: torch.cat([x[:, :1], ramp + 0 * x[:, :1]], 1), EXPERIMENTS["synthsr_laplace"]
    )
    scale = np.ptp(isotropic(scan, 1.0).data)
    made = model.predict(scan)
    sr, b = made.image, made.uncertainty
    np.testing.assert_allclose(sr.data, super_resolve(scan, model).data)
    up, down = (1e-5 + 0.02 * np.exp(s * ramp.flatten().numpy()) for s in (1, -1))
    np.testing.assert_allclose(b.data[:, 7, 9], scale * (up + down) / 2, rtol=1e-4)
    once = model.predict(scan, Request(flip=False)).uncertainty
    np.testing.assert_allclose(once.data[:, 7, 9], scale * up, rtol=1e-4)
    assert np.array_equal(b.affine, sr.affine)
    assert fake(base=EXPERIMENTS["synthsr_thick"]).predict(scan).uncertainty is None


def test_a_segmenter_and_another_grid_are_refused(scan):
    with pytest.raises(InputError, match="gives no image"):
        super_resolve(scan, fake(base=EXPERIMENTS["synthsr_segmenter"]))
    for asked in ({"factor": (1, 1, 2)}, {"spacing_mm": (1, 1, 1)}, {"align": "corners"}):
        with pytest.raises(InputError, match="; it takes ct, flip"):
            super_resolve(scan, fake(), **asked)
    with pytest.raises(InputError, match="this model takes no ct"):
        super_resolve(scan, Model(Fake(), EXPERIMENTS["mdcsrn_res"]), ct=True)


def warned(scan: Volume, experiment, reference: Volume | None = None) -> list[str]:
    """What is said of the headers."""
    setup = Setup(torch.nn.Identity(), experiment.pairs, reference=reference)
    return experiment.prediction.header_warnings(scan, setup)


def empty(shape, spacing) -> Volume:
    return Volume(np.zeros(shape), np.diag([*spacing, 1.0]))


HEADERS = [
    (SYNTHSR_PUBLISHED, (200, 200, 30), (0.9, 0.9, 5), []),
    (SYNTHSR_PUBLISHED, (200, 200, 30), (0.9, 0.9, 1), ["covers 30 mm along S", "no resolution to gain"]),
    (SYNTHSR_PUBLISHED, (200, 200, 30), (0.9, 2.5, 5), ["covers 500 mm along A"]),
    (SYNTHSR_PUBLISHED, (200, 200, 30), (0.09, 0.9, 5), ["spacing of 0.09 mm along R"]),
    (SYNTHSR_PUBLISHED, (200, 200, 12), (0.9, 0.9, 13), ["13 mm along S", "trained on 1 to 9 mm"]),
    (SYNTHSR_PUBLISHED, (200, 200, 15), (0.9, 0.9, 10), ["0.9 x 0.9 x 10 mm along R, A and S"]),
    (SYNTHSR_PUBLISHED, (200, 200, 170), (1, 1, 1), ["1 mm or less along all axes: no resolution to gain"]),
    (EXPERIMENTS["synthsr_any"], (200, 200, 15), (1, 1, 9), []),
    (EXPERIMENTS["synthsr_thick"], (200, 220, 60), (0.8, 1.1, 3), []),
    (EXPERIMENTS["synthsr_thick"], (60, 220, 200), (3, 1, 1), ["this model was trained on 1 x 1 x 3 mm"]),
    (EXPERIMENTS["mdcsrn_res"], (200, 200, 30), (1, 1, 1), ["covers 30 mm along S"]),
    (EXPERIMENTS["srresnet_us"], (200, 200, 1), (0.3, 0.3, 1), []),
]  # fmt: skip


def test_headers_are_warned_of():
    for experiment, shape, spacing, words in HEADERS:
        found = warned(empty(shape, spacing), experiment)
        assert len(found) == len(words), found
        for line, word in zip(found, words, strict=True):
            assert word in line and "the scan" in line


def test_warnings_know_turned_axes_and_references():
    affine = np.array(
        [[0, 0, -3.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    )  # voxel axes A, S, L
    scan = Volume(np.zeros((200, 200, 60)), affine)
    (line,) = warned(scan, EXPERIMENTS["synthsr_thick"])
    assert "3 x 1 x 1 mm along R, A and S" in line
    good = empty((200, 200, 30), (1.5, 1.5, 5))
    assert not warned(good, SYNTHSR_HYPERFINE, good)
    lines = warned(good, SYNTHSR_HYPERFINE, empty((200, 200, 30), (1, 1, 1)))
    assert len(lines) == 2 and all("the reference" in line for line in lines)
    assert "trained on 1.5 x 1.5 x 5 mm" in lines[1]


def test_a_scan_is_described():
    scan = Volume(np.linspace(-3, 1234, 24).reshape(2, 3, 4), FLIPPED * [1.5, 1, 1, 1])
    assert repr(scan) == "2 x 3 x 4 voxels of 1.5 x 1 x 1 mm, axes PSR, intensities -3 to 1234"


MEASURE = """
import sys
from pathlib import Path
import numpy as np, torch
from srlib.systems.synthsr import SYNTHSR_PUBLISHED
from srlib.systems.trained import Model, super_resolve
from srlib.models.unet3d import UNet3D
from srlib.scans.volume import Volume

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def scan(*shape):
    return Volume(np.random.default_rng(0).random(shape, dtype=np.float32), np.eye(4))

torch.set_num_threads(1)
model = Model(UNet3D(width=16).to(memory_format=torch.channels_last_3d).eval(), SYNTHSR_PUBLISHED)
super_resolve(scan(32, 32, 32), model)
before = peak()
super_resolve(scan(160, 160, 64), model, max_memory_gb=float(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak is read from /proc")
def test_a_whole_scan_keeps_within_what_it_is_said_to_need():
    def run(gb):
        return subprocess.run(
            [sys.executable, "-c", MEASURE, str(gb)], capture_output=True, text=True
        )

    said = run(0.1).stderr.strip().splitlines()[-1]
    assert "needs" in said and "--max-memory" in said
    needed = float(said.split("tile and ")[1].split(" GB")[0])
    assert int(run(needed).stdout) < needed * 1e9
    assert (
        needed * 1e9 < 4 * 3.5 * 16 * 160 * 160 * 64
    )  # three and a half maps of the width, at most
