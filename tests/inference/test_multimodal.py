"""A second contrast as reference: brought by its affine, wherever its grid lies, and never registered."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from srlib import data, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.data.manifest import Subject
from srlib.data.pairs import bring
from srlib.models.recnn import ReCNN
from srlib.scans import volume
from srlib.scans.volume import Volume, coarse_grid, resample
from srlib.systems import training
from srlib.systems.trained import Model, super_resolve

SMOKE = systems.get("recnn_x2_t2", "smoke").changed(patch_size=9, stride=7)


def turned(scan: Volume, rotate) -> Volume:
    """The same world seen on an oblique grid of 1.3 x 0.8 x 1.1 voxels of the scan, larger than its field of view."""
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] @ rotate * (1.3, 0.8, 1.1)
    shape = (28, 46, 34)
    middle = scan.affine @ [*(np.array(scan.shape) - 1) / 2, 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return resample(scan, shape, affine)


@pytest.fixture
def rotate() -> np.ndarray:
    angle = 0.2
    return np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )


def test_a_reference_on_another_grid_lands_where_it_lay(blob, affine, rotate, centre_of_mass):
    scan = blob((25, 24, 23), affine, sigma=2.5)
    brought = bring(turned(scan, rotate), scan)
    assert brought.shape == scan.shape and np.array_equal(brought.affine, scan.affine)
    moved = np.linalg.solve(affine[:3, :3], centre_of_mass(brought) - centre_of_mass(scan))
    assert np.abs(moved).max() < 0.05
    assert np.abs(brought.data - scan.data).max() < 0.05


def test_a_reference_on_the_grid_is_left_as_it_is(blob):
    scan = blob()
    assert bring(scan, scan) is scan


def test_where_a_reference_saw_nothing_it_is_its_minimum():
    grid = Volume(np.zeros((20, 10, 10)), np.eye(4))
    half = Volume(np.full((10, 10, 10), 7.0), np.eye(4))
    half.data[0, 0, 0] = 3
    brought = bring(half, grid).data
    assert (brought[10:] == 3).all() and brought[5:10].min() > 6.5


def test_a_reference_elsewhere_is_refused(blob):
    far = np.eye(4)
    far[:3, 3] = 500
    with pytest.raises(InputError, match="shows nothing in the scan's field of view"):
        bring(blob(affine=far), blob())


def adding() -> Model:
    """A network that gives the scan plus a tenth of the reference."""
    network = ReCNN(1, 1, kernel=1, in_channels=2)
    with torch.no_grad():
        network.conv1.weight[:] = torch.tensor([0.0, 0.1]).view(1, 2, 1, 1, 1)
    return Model(network.eval().requires_grad_(False), SMOKE)


def test_the_reference_is_the_second_channel(blob, rotate):
    scan, other = blob(offset=(-4, 0, 0)), blob(offset=(4, 0, 0))
    sr = super_resolve(scan, adding(), factor=(1, 1, 1), reference=turned(other, rotate))
    np.testing.assert_allclose(sr.data, scan.data + 0.1 * other.data, atol=0.006)


@pytest.mark.parametrize("align", ["center", "corners"])
def test_a_reference_may_be_finer_than_the_scan(blob, oblique, align):
    hr, other = (blob((25, 24, 23), oblique, sigma=3, offset=(x, 0, 0)) for x in (-2, 2))
    lr = resample(hr, *coarse_grid(hr, (2, 2, 2), align=align))
    sr = super_resolve(lr, adding(), factor=(2, 2, 2), reference=other, align=align)
    expected = resample(Volume(hr.data + 0.1 * other.data, oblique), sr.shape, sr.affine)
    inside = (slice(2, -3),) * 3
    np.testing.assert_allclose(sr.data[inside], expected.data[inside], atol=0.03)


def test_a_missing_or_unwanted_reference_is_refused(blob):
    with pytest.raises(InputError, match=r"this model takes a reference \(t2\), got none"):
        super_resolve(blob(), adding())
    mono = Model(ReCNN(2, 2).eval(), systems.get("recnn_x2", "smoke"))
    with pytest.raises(InputError, match="this model takes no reference, got one"):
        super_resolve(blob(), mono, reference=blob())


@pytest.fixture
def pairs(tmp_path, blob, oblique, rotate):
    """Manifest of three subjects whose T2 lies on another grid."""
    rows = ["subject,split,t1,t2"]
    for index, split in enumerate(("train", "val", "test")):
        scan = blob((25, 24, 23), oblique, offset=(index, 0, 0))
        volume.save_scan(scan, tmp_path / f"{index}_t1.nii.gz")
        volume.save_scan(
            turned(scan.with_data(1 - scan.data), rotate), tmp_path / f"{index}_t2.nii.gz"
        )
        rows.append(f"s{index},{split},{index}_t1.nii.gz,{index}_t2.nii.gz")
    (tmp_path / "two.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "two.csv"


def test_patches_have_both_channels_at_one_place(pairs):
    dataset = SMOKE.examples.open(data.read_manifest(pairs, "train"), SMOKE.pairs)
    given, truth = dataset.read(0, dataset.grid(0)[3])
    assert given.shape == (2, 9, 9, 9) and truth.shape == (1, 9, 9, 9)
    whole, _ = dataset.pair(0)
    assert whole.min((1, 2, 3)).tolist() == [0, 0] and whole.max((1, 2, 3)).tolist() == [1, 1]
    assert (
        np.corrcoef(whole[0].ravel(), whole[1].ravel())[0, 1] < -0.8
    )  # the negative, in its place


def test_training_and_enhancing_from_the_command_line(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path / "results"))
    subjects = data.read_manifest(pairs)
    split = {part: [s for s in subjects if s.split == part] for part in ("train", "val")}
    weights = training.train(
        SMOKE, split["train"], split["val"], tmp_path / "run", device="cpu", progress=False
    )
    words = ["enhance", tmp_path / "2_t1.nii.gz", tmp_path / "sr.nii.gz", "--weights", weights]
    run = CliRunner().invoke(main, [*map(str, words), "--reference", str(tmp_path / "2_t2.nii.gz")])
    assert run.exit_code == 0, run.output
    assert volume.load_nifti(tmp_path / "sr.nii.gz").shape == (50, 48, 46)
    run = CliRunner().invoke(main, [*map(str, words), "--force"])
    assert run.exit_code == 1 and "this model takes a reference (t2), got none" in run.stderr


def test_a_subject_without_the_contrast_is_named(pairs):
    subject = data.read_manifest(pairs)[0]
    with pytest.raises(InputError, match="subject s0 has no t2; add the column"):
        SMOKE.pairs.make(Subject("s0", "train", {"t1": subject.file("t1")}))


def test_synthsr_is_measured_on_the_contrasts_and_slices_of_each_case(tmp_path):
    """Cases 3 and 4 see thick T2 alone and are measured against T1; 5 and 6 see both, both thick."""
    rng, files = np.random.default_rng(0), {}
    for column, spacing in (("t1", 1.0), ("t2", 1.2)):
        scan = Volume(rng.random((36, 45, 33)) * 100, np.diag([spacing, 1, 1, 1]))
        files[column] = volume.save_scan(scan, tmp_path / f"{column}.nii.gz")
    subject = Subject("s", "test", files)
    t1, t2 = (volume.load_nifti(files[column]) for column in files)
    pairs = systems.get("synthsr_case3").pairs
    pair = pairs.make(subject)
    np.testing.assert_array_equal(pair.lr.data, data.pairs.degradation_of("thick_1x4.5x1")(t2).data)
    np.testing.assert_allclose(pair.lr.spacing_mm, (1.2, 4.5, 1))
    np.testing.assert_array_equal(pair.hr.data, t1.data)
    assert pair.on_grid.shape == t1.shape and pairs.baselines(pair) == {}
    both = systems.get("synthsr_case6").pairs.make(subject)
    np.testing.assert_allclose(both.lr.spacing_mm, (1, 1, 3))
    np.testing.assert_allclose(both.reference.spacing_mm, (1.2, 4.5, 1))
    np.testing.assert_array_equal(both.hr.data, t1.data)
    for name in ("synthsr_case4", "synthsr_case5"):
        experiment = systems.get(name, "smoke", "network.width=2")
        model = Model(experiment.network.build().eval(), experiment)
        estimate = model.predict_pair(experiment.pairs.make(subject))
        assert estimate.shape == t1.shape and np.isfinite(estimate.data).all()
        np.testing.assert_array_equal(estimate.affine, t1.affine)
    columns = systems.get("synthsr_case3").examples.columns(pairs, subject)
    assert columns == ("labels", "t1")  # its real target is the truth, not its input
