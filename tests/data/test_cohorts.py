"""The synthetic subjects are scans of a head like the template's, the same ones for the same seed."""

import numpy as np
import pytest
from scipy import ndimage

from srlib.core.paths import InputError, root
from srlib.data import cohorts
from srlib.data.cohorts import FULL_SCALE, make_subject, read_template


@pytest.fixture(scope="module")
def template():
    return read_template()


@pytest.fixture(scope="module")
def subject(template):
    return make_subject(template[0].affine, template[1], np.random.default_rng([0, 0]))


def test_a_manifest_of_a_user_is_never_written_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))
    mine = tmp_path / "example.csv"
    mine.write_text("subject,split,t1\n")
    for build in (cohorts.build, lambda manifest: cohorts.build_images("ct", manifest=manifest)):
        with pytest.raises(InputError, match=r"example\.csv exists"):
            build(manifest=mine)
    assert mine.read_text() == "subject,split,t1\n"
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_the_tracked_manifest_is_the_one_that_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path))
    monkeypatch.setattr(cohorts, "read_template", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cohorts.build(manifest=tmp_path / "example.csv")
    assert (tmp_path / "example.csv").read_bytes() == (root() / "csv" / "example.csv").read_bytes()


def test_the_template_and_its_tissues_share_a_grid(template):
    scan, tissues = template
    assert tissues.shape == (4, *scan.shape)
    np.testing.assert_allclose(tissues.sum(0).numpy(), 1, atol=1e-5)
    assert tissues.min() >= 0
    np.testing.assert_allclose(scan.spacing_mm, 1)
    means = ndimage.mean(scan.data, tissues.argmax(0).numpy(), range(4)).tolist()
    assert means == sorted(means)  # background, fluid, grey, white in a T1


def test_the_same_seed_gives_the_same_subject_and_another_index_another(template, subject):
    again = make_subject(template[0].affine, template[1], np.random.default_rng([0, 0]))
    other = make_subject(template[0].affine, template[1], np.random.default_rng([0, 1]))
    for kind in ("t1", "t2", "labels"):
        assert subject[kind].data.tobytes() == again[kind].data.tobytes()
        assert subject[kind].data.tobytes() != other[kind].data.tobytes()
    small = tuple(
        min(a, b) for a, b in zip(subject["labels"].shape, other["labels"].shape, strict=True)
    )
    box = tuple(slice(n) for n in small)
    head = (subject["labels"].data[box] > 0) | (other["labels"].data[box] > 0)
    assert np.mean(subject["labels"].data[box][head] != other["labels"].data[box][head]) > 0.2


def test_contrasts_and_labels_share_a_grid(subject):
    assert set(subject) == {"t1", "t2", "labels"}
    for kind in ("t1", "t2"):
        assert subject[kind].shape == subject["labels"].shape
        np.testing.assert_array_equal(subject[kind].affine, subject["labels"].affine)
        assert subject[kind].data.min() >= 0
        assert subject[kind].data.max() == pytest.approx(FULL_SCALE)


def test_the_brain_lies_inside_its_box(subject):
    brain = subject["labels"].data > 0
    assert 0.2 < brain.mean() < 0.6
    for axis in range(3):
        faces = np.moveaxis(brain, axis, 0)[[0, -1]]
        assert faces.mean() < 0.01
    pieces = np.bincount(ndimage.label(brain)[0].ravel())[1:]
    assert pieces.max() > 0.98 * brain.sum()


def test_the_head_is_where_the_templates_is(template, subject, centre_of_mass):
    scan, tissues = template
    theirs = scan.with_data((tissues.argmax(0) > 0).numpy())
    ours = subject["labels"].with_data(subject["labels"].data > 0)
    assert np.linalg.norm(centre_of_mass(ours) - centre_of_mass(theirs)) < 15


def test_tissues_have_their_contrast_and_partial_volume_between_them(subject):
    labels, t1, t2 = (subject[kind].data for kind in ("labels", "t1", "t2"))
    inner = [ndimage.binary_erosion(labels == k, iterations=2) for k in (2, 3)]
    grey, white = (float(np.median(t1[m])) for m in inner)
    assert grey < 0.9 * white
    assert np.median(t2[inner[0]]) > 1.1 * np.median(t2[inner[1]])
    near = ndimage.binary_dilation(labels == 2) & ndimage.binary_dilation(labels == 3)
    low, high = grey + 0.25 * (white - grey), grey + 0.75 * (white - grey)
    between = (t1 > low) & (t1 < high)
    assert between[near].mean() > 1.5 * between[inner[1]].mean()
    assert between[near].mean() > 0.3


def test_air_is_empty_and_the_brain_noisy(subject):
    t1, labels = subject["t1"].data, subject["labels"].data
    outside = ~ndimage.binary_dilation(labels > 0, iterations=6)
    assert (t1[outside] == 0).mean() > 0.99
    white = ndimage.binary_erosion(labels == 3, iterations=2)
    rough = t1 - ndimage.gaussian_filter(t1, 1)
    assert 0.002 < rough[white].std() / np.median(t1[white]) < 0.1
