"""The viewer shows both scans at one place of the world, and moves (in a browser: test_jupyterlab)."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srlib.core.paths import InputError
from srlib.enhance import viewer
from srlib.evaluation.views import pixels, section
from srlib.scans.volume import Volume, coarse_grid, resample, save_scan

ROOT = Path(__file__).parents[2]


def controls(widget) -> dict:
    """The widget's parts by their descriptions, or by their kind."""
    found, todo = {}, [widget]
    while todo:
        part = todo.pop(0)
        todo += getattr(part, "children", ())
        if part.__class__.__name__ in ("Image", "ToggleButtons", "HTML"):
            found.setdefault(part.__class__.__name__, []).append(part)
        elif getattr(part, "description", ""):
            found[part.description] = part
    return found


def pictures(parts) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(image.value))).astype(float) for image in parts["Image"]
    ]


@pytest.fixture
def scans(blob, oblique):
    """A blob, sampled 2 x 1 x 3 times coarser in the same world, and the fine one."""
    fine = blob((50, 44, 46), oblique, 4.0, (6.3, -3.4, 4.2))
    return resample(fine, *coarse_grid(fine, (2, 1, 3))), fine


def brightest(image: np.ndarray) -> np.ndarray:
    """Centre of mass in the picture of what is brighter than half, away from letters."""
    inner = image[30:-30, 30:-30] * (image[30:-30, 30:-30] > 128)
    return (np.indices(inner.shape).reshape(2, -1) @ inner.ravel()) / inner.sum()


@pytest.mark.parametrize("spline", [0, 3])
def test_a_blob_is_at_the_same_place_in_both_scans(scans, spline):
    widget = viewer.compare(*scans)
    parts = controls(widget)
    shown, order = parts["ToggleButtons"]
    order.value = spline
    shown.value = "before"
    before = pictures(parts)
    shown.value = "after"
    after = pictures(parts)
    for one, two in zip(before, after, strict=True):
        assert one.shape == two.shape and (one != two).any()
        pixel = 330 / 50  # of the screen, in voxels
        assert (
            np.abs(brightest(one) - brightest(two)).max() < (0.8 if spline == 0 else 0.15) * pixel
        )


def test_every_control_changes_the_picture(scans):
    parts = controls(viewer.compare(*scans))
    last = pictures(parts)
    shown, _ = parts["ToggleButtons"]
    for name, value in (
        ("window", (0.1, 0.4)),
        ("to R", 20),
        ("to A", 15),
        ("to S", 18),
        ("swipe", 0.3),
        ("zoom", 3),
    ):
        parts[name].value = value
        now = pictures(parts)
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(last, now, strict=True)), (
            name
        )
        last = now
    shown.value = "after"
    assert any((a != b).any() for a, b in zip(last, pictures(parts), strict=True))


def test_the_place_is_that_of_the_world(scans, to_world):
    parts = controls(viewer.compare(*scans))
    for name, value in zip(("to R", "to A", "to S"), (7, 8, 9), strict=True):
        parts[name].value = value
    r, a, s = to_world(scans[1].affine, (7, 8, 9))
    assert parts["HTML"][0].value == f"R {r:.1f}, A {a:.1f}, S {s:.1f} mm"


def test_files_single_slices_and_other_units_are_taken(scans, tmp_path, noise):
    before, after = scans
    save_scan(before, tmp_path / "b.nii.gz")
    by_path, by_scan = (
        pictures(controls(viewer.compare(b, after))) for b in (tmp_path / "b.nii.gz", before)
    )
    assert all((a == b).all() for a, b in zip(by_path, by_scan, strict=True))
    other = pictures(controls(viewer.compare(before, after.with_data(after.data * 1000 + 300))))
    assert all(np.abs(a - b).mean() < 1 for a, b in zip(by_scan, other, strict=True))
    flat = Volume(noise((40, 30, 1)), np.eye(4))
    (only,) = pictures(controls(viewer.compare(flat, flat)))
    assert only.shape[0] < only.shape[1]


def test_a_wild_voxel_and_signed_units_leave_the_window_where_it_was(scans):
    before, after = (scan.with_data(scan.data * 1000 - 1000) for scan in scans)
    plain = controls(viewer.compare(before, after))
    wild = before.data.copy()
    wild[3, 3, 3] = -1e7
    parts = controls(viewer.compare(before.with_data(wild), after))
    assert parts["window"].value == pytest.approx(plain["window"].value, abs=30)
    assert (
        -1050 < parts["window"].value[0] < -950 and parts["window"].min < parts["window"].value[0]
    )
    assert all(
        np.abs(a - b).mean() < 8 for a, b in zip(pictures(plain), pictures(parts), strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 1, 5), (1, 30, 30)], ids=str)
def test_tiny_scans_and_nan_are_taken(shape, noise):
    scan = noise(shape)
    scan.flat[0] = np.nan
    assert all(
        np.isfinite(p).all()
        for p in pictures(controls(viewer.compare(*[Volume(scan, np.eye(4))] * 2)))
    )


def test_without_ipywidgets_one_line_says_what_to_do(scans, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match="pip install ipywidgets"):
        viewer.compare(*scans)


def test_the_package_does_not_need_ipywidgets():
    code = "import sys; sys.modules['ipywidgets'] = None; import srlib.enhance.viewer, srlib.enhance.report, srlib.cli.commands"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_section_is_that_of_the_whole_scan(noise, oblique):
    scan = Volume(noise((60, 50, 40)), oblique)
    plane = pixels(scan, 2, (30, 20, 25), finer=2)
    whole = np.rot90(resample(scan, *plane, order=3).data[:, :, 0])
    np.testing.assert_allclose(section(scan, *plane, 3)[4:-4, 4:-4], whole[4:-4, 4:-4], atol=1e-3)
