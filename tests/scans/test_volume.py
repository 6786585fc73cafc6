"""Scans keep their values and their place through files, grids and orientations."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from srlib.core.paths import InputError
from srlib.degradations import degrade
from srlib.scans import volume
from srlib.scans.formats import read_grid
from srlib.scans.intensity import fit_scaling
from srlib.scans.space import covered, resample_to, same_lattice
from srlib.scans.volume import (
    Volume,
    coarse_grid,
    crop_or_pad,
    fine_grid,
    load_nifti,
    reorient,
    resample,
    save_scan,
)

SUFFIXES = (".nii", ".nii.gz", ".mgz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_then_load_gives_the_same_scan(tmp_path, affine, noise, suffix):
    scan = Volume(noise((7, 6, 5)) * 1000 - 300, affine)
    back = load_nifti(save_scan(scan, tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(back.data, scan.data)
    assert back.data.dtype == np.float32
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)
    assert read_grid(tmp_path / f"a{suffix}")[0] == (7, 6, 5)
    np.testing.assert_allclose(back.spacing_mm, scan.spacing_mm, rtol=1e-5)


def test_integers_are_rounded_and_clipped(tmp_path):
    scan = Volume(np.array([[[-5.0, 0.6, 254.7, 300.0]]]), np.eye(4))
    np.testing.assert_array_equal(
        load_nifti(save_scan(scan, tmp_path / "a.nii", dtype=np.uint8)).data[0, 0], [0, 1, 255, 255]
    )
    scan = Volume(np.array([[[-4e4, -1.6, 4095.4, 4e4]]]), np.eye(4))
    path = save_scan(scan, tmp_path / "b.nii.gz", dtype=np.int16)
    np.testing.assert_array_equal(load_nifti(path).data[0, 0], [-32768, -2, 4095, 32767])
    assert nib.load(path).get_data_dtype() == np.int16


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slope_and_intercept_are_applied(tmp_path, oblique, suffix):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    raw = bytearray(nib.Nifti1Image(stored, oblique).to_bytes())
    raw[112:120] = np.array([2.5, -10], dtype="<f4").tobytes()
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    back = load_nifti(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back.data, stored * 2.5 - 10)
    np.testing.assert_allclose(back.affine, oblique, atol=1e-5)


def test_a_trailing_single_axis_is_dropped(tmp_path, noise):
    nib.save(nib.Nifti1Image(noise((4, 5, 6, 1)), np.eye(4)), tmp_path / "a.nii")
    assert load_nifti(tmp_path / "a.nii").shape == read_grid(tmp_path / "a.nii")[0] == (4, 5, 6)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 1, 1)])
def test_an_image_of_two_axes_has_one_slice(tmp_path, noise, shape):
    image = noise(shape)
    nib.save(nib.Nifti1Image(image, np.diag([0.5, 0.7, 1, 1])), tmp_path / "a.nii.gz")
    scan = load_nifti(tmp_path / "a.nii.gz")
    assert scan.shape == read_grid(tmp_path / "a.nii.gz")[0] == (6, 5, 1)
    np.testing.assert_array_equal(scan.data[..., 0], image.reshape(6, 5))
    np.testing.assert_allclose(scan.spacing_mm[:2], (0.5, 0.7), rtol=1e-6)


@pytest.mark.parametrize("name", ["a.nii.gz", "A.NII.GZ", "a.mgz", "a.img.gz", "a.nii.bz2"])
def test_a_bit_that_changed_in_a_compressed_file_is_seen(tmp_path, name):
    rng, path = np.random.default_rng(0), tmp_path / name
    scan = (1000 * ndimage.gaussian_filter(rng.standard_normal((16, 16, 16)), 2)).astype(np.int16)
    kind = {"mgz": nib.MGHImage, "img.gz": nib.Nifti1Pair}.get(
        name.partition(".")[2], nib.Nifti1Image
    )
    nib.save(kind(scan, np.eye(4)), path.with_name(name.lower()))
    path.with_name(name.lower()).rename(path)
    whole, refused = path.read_bytes(), 0
    np.testing.assert_array_equal(load_nifti(path).data, scan)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole) // 4, len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load_nifti(path).data, scan)  # as in a file's padding
        except InputError as err:
            refused += str(path) in str(err) and "\n" not in str(err)
    assert refused > 35
    for missing in (1, 5, 100):
        path.write_bytes(whole[:-missing])
        with pytest.raises(InputError, match=name):
            load_nifti(path)


def test_what_stands_around_a_whole_compressed_scan_is_let_pass(tmp_path, noise):
    scan = noise((7, 6, 5))
    raw = nib.Nifti1Image(scan, np.eye(4)).to_bytes()
    files = {
        "zeros": gzip.compress(raw) + bytes(700),
        "letters": gzip.compress(raw) + b"copied by somebody " * 40,
        "parts": gzip.compress(raw[:500]) + gzip.compress(raw[500:]),
        "more": gzip.compress(raw + bytes(100_000)),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
        np.testing.assert_array_equal(load_nifti(tmp_path / f"{name}.nii.gz").data, scan)


def test_nibabel_is_silent_within_our_own_reading_alone(tmp_path, caplog):
    raw = bytearray(nib.Nifti1Image(ONES, None).to_bytes())
    raw[84:88] = np.float32(0).tobytes()  # the spacing along y, which nibabel mends
    raw[44:46] = np.int16(1).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    nib.imageglobals.logger.propagate = True
    load_nifti(tmp_path / "a.nii")
    assert not caplog.records
    nib.load(tmp_path / "a.nii")
    assert caplog.records


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_scan_gives_the_same_bytes(tmp_path, noise, suffix, monkeypatch):
    scan = Volume(noise((7, 6, 5)), np.eye(4))
    first = save_scan(scan, tmp_path / f"a{suffix}").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1.0)
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert save_scan(scan, tmp_path / f"b{suffix}").read_bytes() == first


def nifti(path, data, affine=None):
    image = nib.Nifti1Image(data, np.eye(4))
    if affine is not None:
        image.header.set_sform(affine, 1)
        image.header["qform_code"] = 0
        image = nib.Nifti1Image(data, None, image.header)
    nib.save(image, path)


def truncated(path):
    nifti(path, np.random.default_rng(0).random((9, 9, 9), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-1500])


def unknown_voxel_type(path):
    save_scan(Volume(np.ones((4, 4, 4)), np.eye(4)), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[23] = 99
    path.write_bytes(gzip.compress(bytes(raw)))


def huge(path):
    nifti(path, np.ones((4, 4, 4), dtype=np.float32))
    raw = bytearray(path.read_bytes())
    raw[42:48] = b"\xff\x7f" * 3
    path.write_bytes(raw)


ONES = np.ones((4, 4, 4), dtype=np.float32)
BAD = {
    "missing.nii.gz": lambda path: None,
    "empty.nii.gz": lambda path: path.write_bytes(b""),
    "truncated.nii.gz": truncated,
    "truncated.nii": truncated,
    "huge.nii": huge,
    "four.nii": lambda path: nifti(path, np.ones((4, 4, 4, 2), dtype=np.float32)),
    "one.nii": lambda path: nifti(path, np.ones(4, dtype=np.float32)),
    "complex.nii": lambda path: nifti(path, ONES.astype(np.complex64)),
    "nan.nii": lambda path: nifti(path, ONES * np.float32("nan")),
    "inf.nii": lambda path: nifti(path, ONES * np.float32("inf")),
    "overflow.nii": lambda path: nifti(path, np.full((4, 4, 4), 1e300)),
    "text.nii": lambda path: path.write_text("not a scan\n" * 100),
    "text.mgz": lambda path: path.write_text("not a scan\n" * 100),
    "type.mgz": unknown_voxel_type,
    "singular.nii": lambda path: nifti(path, ONES, np.diag([1.0, 1.0, 0.0, 1.0])),
    "nowhere.nii": lambda path: nifti(path, ONES, np.diag([1.0, 1.0, np.nan, 1.0])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_with_its_name(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(InputError) as error:
        load_nifti(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["missing.nii.gz", "four.nii", "text.nii", "type.mgz", "empty.nii.gz"]
)
def test_a_bad_header_is_refused_without_reading_the_voxels(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(InputError, match=name) as error:
        read_grid(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_failed_save_leaves_everything_as_it_was(tmp_path, noise, monkeypatch):
    scan = Volume(noise((4, 4, 4)), np.eye(4))
    before = save_scan(scan, tmp_path / "a.nii.gz").read_bytes()

    def fill_the_disk(image, path):
        path.write_bytes(b"half a scan")
        raise OSError("no space left")

    monkeypatch.setattr(volume.nib, "save", fill_the_disk)
    for name in ("a.nii.gz", "b.mgz"):
        with pytest.raises(InputError, match="no space"):
            save_scan(scan.with_data(scan.data + 1), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == before


@pytest.mark.parametrize("name", ["a.png", "a.nii.bz2", "a", "nowhere/a.nii"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="a"):
        save_scan(Volume(ONES, np.eye(4)), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_reorient_moves_no_voxel_in_the_world(affine, blob, centre_of_mass, axes):
    scan = blob((9, 8, 7), affine, sigma=1.0)
    turned = reorient(scan, axes)
    assert "".join(nib.aff2axcodes(turned.affine)) == axes
    np.testing.assert_array_equal(np.sort(turned.data.ravel()), np.sort(scan.data.ravel()))
    np.testing.assert_allclose(centre_of_mass(turned), centre_of_mass(scan), atol=1e-5)
    back = resample(turned, scan.shape, scan.affine, order=1)
    np.testing.assert_allclose(back.data, scan.data, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        ((2, 1, 3), (5, 6, 4)),
        ((-3, -2, -1), (20, 18, 16)),
        ((-2, 3, 0), (9, 20, 7)),
        ((-9, -9, -9), (5, 5, 5)),
    ],
)
def test_crop_or_pad_moves_no_voxel_in_the_world(affine, noise, to_world, start, shape):
    scan = Volume(noise((11, 12, 13)) + 1, affine)
    box = crop_or_pad(scan, start, shape)
    assert box.shape == shape
    np.testing.assert_allclose(to_world(box.affine, (0, 0, 0)), to_world(affine, start))
    for index in np.ndindex(*shape):
        source = np.add(index, start)
        inside = (source >= 0).all() and (source < scan.shape).all()
        assert box.data[index] == (scan.data[tuple(source)] if inside else 0)


FACTORS = [(2, 2, 2), (1, 2, 3), (2.5, 1.5, 1), (1.25, 4, 1.7)]


@pytest.mark.parametrize("factor", FACTORS)
def test_a_coarse_grid_keeps_the_field_of_view(affine, to_world, factor):
    shape, factor = (21, 24, 25), np.array(factor)
    coarse, placed = coarse_grid(Volume(np.zeros(shape), affine), factor)
    assert coarse == tuple(np.ceil(np.divide(shape, factor)).astype(int))
    np.testing.assert_allclose(to_world(placed, (0, 0, 0)), to_world(affine, (factor - 1) / 2))
    np.testing.assert_allclose(
        to_world(placed, (-0.5,) * 3), to_world(affine, (-0.5,) * 3), atol=1e-9
    )
    np.testing.assert_allclose(placed[:3, :3], affine[:3, :3] * factor)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("align", ["center", "corners"])
def test_fine_and_coarse_grids_undo_each_other(affine, factor, align):
    scan = Volume(np.zeros((20, 40, 10)), affine)
    shape, finer = fine_grid(scan, factor, align=align)
    coarse, placed = coarse_grid(Volume(np.zeros(shape), finer), factor, align=align)
    assert coarse == scan.shape
    np.testing.assert_allclose(placed, affine, atol=1e-9)


def test_an_unknown_alignment_is_refused():
    for call in (
        lambda: coarse_grid(Volume(ONES, np.eye(4)), (2, 2, 2), align="edges"),
        lambda: fine_grid(Volume(ONES, np.eye(4)), (2, 2, 2), align="edges"),
    ):
        with pytest.raises(InputError, match="edges"):
            call()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_corners_grid_is_that_of_scipy_zoom(noise, oblique, factor, order):
    scan = Volume(noise((21, 24, 25)), oblique)
    down = resample(scan, *coarse_grid(scan, factor, align="corners"), order=order)
    zoomed = ndimage.zoom(scan.data, 1 / np.array(factor), order=order)
    if order:  # nearest neighbours may differ where a sample lies half-way
        np.testing.assert_allclose(down.data, zoomed, atol=2e-5)
    assert down.shape == zoomed.shape
    up = resample(scan, *fine_grid(scan, factor, align="corners"), order=order)
    assert up.shape == ndimage.zoom(scan.data, factor, order=order).shape
    if order:
        np.testing.assert_allclose(up.data, ndimage.zoom(scan.data, factor, order=order), atol=2e-5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("direction", ["coarse", "fine"])
def test_a_ramp_stays_where_it_is(affine, factor, direction):
    def millimetres(shape, affine):
        return np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(
            3, 1, 1, 1
        )

    slope = np.array([0.6, -0.7, 0.4]) / np.linalg.norm([0.6, -0.7, 0.4])
    shape = (31, 45, 33)
    ramp = Volume(np.tensordot(slope, millimetres(shape, affine), 1), affine)
    out = resample(
        ramp,
        *(coarse_grid if direction == "coarse" else fine_grid)(ramp, factor),
    )
    error = np.abs(out.data - np.tensordot(slope, millimetres(out.shape, out.affine), 1))
    voxel = millimetres(out.shape, np.linalg.inv(affine) @ out.affine)
    inside = ((voxel > 6) & (voxel < np.reshape(shape, (3, 1, 1, 1)) - 7)).all(
        0
    )  # mirroring bends it at the faces
    assert inside.sum() > 100
    assert error[inside].max() < 0.05 * min(ramp.spacing_mm)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_blob_stays_where_it_is(affine, blob, centre_of_mass, factor):
    scan = blob((31, 30, 29), affine, sigma=3.0)
    finest = min(scan.spacing_mm)
    for grid in (coarse_grid(scan, factor), fine_grid(scan, factor)):
        moved = centre_of_mass(resample(scan, *grid)) - centre_of_mass(scan)
        assert np.linalg.norm(moved) < 0.05 * finest


def test_a_blob_stays_where_it_is_on_a_turned_grid(blob, oblique, centre_of_mass):
    scan = blob((31, 30, 29), np.diag([1.0, 1.0, 1.0, 1.0]), sigma=2.0)
    grid = oblique.copy()
    grid[:3, 3] += centre_of_mass(scan) - (oblique @ [16, 15, 10, 1])[:3]
    out = resample(scan, (33, 31, 21), grid)
    inner = Volume(
        np.where(out.data > 0.02, out.data, 0), grid
    )  # mirrored copies lie beyond the scan
    assert np.linalg.norm(centre_of_mass(inner) - centre_of_mass(scan)) < 0.05


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
@pytest.mark.parametrize(
    "box", [((0, 0, 0), None), ((1, 2, 0), (5, 4, 3)), ((-2, -1, 3), (9, 12, 5))]
)
def test_voxels_of_one_lattice_are_taken_as_they_are(affine, noise, axes, box):
    scan = Volume(noise((7, 8, 9)) + 1, affine)
    turned = reorient(scan, axes)
    grid = crop_or_pad(turned, box[0], box[1] or turned.shape)
    brought = resample_to(scan, grid.with_data(grid.data * 0), outside=0)
    assert same_lattice(scan, grid) and same_lattice(grid, scan)
    np.testing.assert_array_equal(brought.data, grid.data)
    np.testing.assert_array_equal(brought.affine, grid.affine)
    filled = resample_to(scan, grid, outside=-3).data
    np.testing.assert_array_equal(filled, np.where(grid.data, grid.data, -3))
    assert covered(scan, grid) == np.count_nonzero(grid.data) / grid.data.size
    mirrored = resample_to(scan, grid).data  # beyond the field of view, as a spline goes on
    np.testing.assert_allclose(mirrored[grid.data > 0], grid.data[grid.data > 0], atol=1e-5)
    assert mirrored.min() > 0.5


def test_a_scan_on_its_own_grid_is_itself(affine, noise):
    scan = Volume(noise((7, 8, 9)), affine)
    rounded = Volume(scan.data, affine.astype(np.float32) + 1e-6)
    assert resample_to(scan, rounded) is scan


def test_other_lattices_are_interpolated(affine, blob, centre_of_mass):
    scan = blob((25, 24, 23), affine)
    for grid in (
        fine_grid(scan, (1.5, 2, 1)),
        coarse_grid(scan, (1, 1, 1.2)),
        (scan.shape, moved(affine)),
    ):
        grid = Volume(np.zeros(grid[0]), grid[1])
        brought = resample_to(scan, grid)
        assert not same_lattice(scan, grid)
        np.testing.assert_array_equal(brought.data, resample(scan, grid.shape, grid.affine).data)
        assert np.linalg.norm(centre_of_mass(brought) - centre_of_mass(scan)) < 0.05 * min(
            scan.spacing_mm
        )


def moved(affine, voxels=0.4):
    return affine @ np.block([[np.eye(3), np.full((3, 1), voxels)], [0, 0, 0, 1]])


def test_fields_of_view_that_do_not_meet_or_not_enough_are_refused(affine, noise):
    scan = Volume(noise((7, 8, 9)), affine)
    with pytest.raises(InputError, match="the mask shows nothing in the scan's field of view"):
        resample_to(scan, Volume(scan.data, moved(affine, 40)), what="the mask")
    larger = crop_or_pad(scan, (0, 0, 0), (7, 8, 10))
    with pytest.raises(InputError, match=r"covers 90 % of the scan's field of view"):
        resample_to(scan, larger, least=1)
    assert resample_to(scan, larger, least=0.9).shape == (7, 8, 10)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("minmax", (0, 1)), ("max", (0.1, 1)), ("12bit", (100 / 4095, 1000 / 4095))],
)
def test_scaling_is_undone_exactly_enough(rule, expected):
    data = np.linspace(100, 1000, 60, dtype=np.float32).reshape(3, 4, 5)
    scaling = fit_scaling(data, rule)
    scaled = scaling.apply(data)
    np.testing.assert_allclose((scaled.min(), scaled.max()), expected, rtol=1e-6)
    np.testing.assert_allclose(scaling.invert(scaled), data, rtol=1e-6)
    assert scaled.dtype == scaling.invert(scaled).dtype == np.float32


def test_a_constant_scan_and_an_unknown_rule_are_refused(noise):
    with pytest.raises(InputError, match="constant"):
        fit_scaling(np.full((3, 3, 3), 7.0))
    with pytest.raises(InputError, match="zscore"):
        fit_scaling(noise((3, 3, 3)), "zscore")


def test_a_volume_has_three_axes():
    with pytest.raises(InputError, match="3 axes"):
        Volume(np.zeros((3, 3)), np.eye(4))


@pytest.mark.parametrize("rule", ["max", "12bit", "halfmax"])
def test_rules_for_scans_that_begin_at_0_refuse_others(rule, noise):
    scan = 1000 * noise((6, 7, 8))
    assert fit_scaling(scan - 100, rule) == fit_scaling(
        np.maximum(scan - 100, 0), rule
    )  # a spline's overshoot
    for signed in (scan - 500, 2 * scan - 1500, scan - 2000, -scan):
        with pytest.raises(InputError, match="begin at 0"):
            fit_scaling(signed, rule)
        fit_scaling(signed)


@pytest.mark.parametrize(("level", "low"), [(-1000, -1000), (0, -40), (0, 0), (-1.2, -3)])
def test_beyond_a_scan_lies_its_background(level, low, noise):
    data = np.full((8, 8, 8), level, np.float32)
    data[2:6, 2:6, 2:6] = low + (50 - low) * noise((4, 4, 4))
    scan = Volume(data, np.eye(4))
    framed = volume.framed(scan, (12, 8, 6))
    assert np.array_equal(framed.data[2:10], scan.data[:, :, 1:7])
    assert (framed.data[:2] == np.float32(level)).all() and (
        framed.data[10:] == np.float32(level)
    ).all()


@pytest.mark.parametrize("mode", ["mirror", "nearest"])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("prefilter", [True, False])
def test_splines_are_scipys(noise, mode, order, prefilter):
    """On grids of the same axes, of any size, flipped ones and single slices among them."""
    for shape, count, step, first in (
        ((17, 70, 5), (40, 33, 5), (0.43, 2.1, 1.0), (-0.285, 0.55, 0.0)),
        ((9, 1, 30), (9, 3, 21), (-1.0, 1.0, 1.37), (8.0, -1.0, -2.2)),
    ):
        scan = Volume(1000 * noise(shape) - 300, np.eye(4))
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = first
        made = resample(scan, count, affine, order=order, mode=mode, prefilter=prefilter)
        settings = {"order": order, "mode": mode, "prefilter": prefilter, "output": np.float32}
        expected = ndimage.affine_transform(scan.data, step, first, count, **settings)
        assert np.abs(made.data - expected).max() <= 1e-5 * np.ptp(scan.data)
        flat = resample(
            Volume(np.full(shape, 0.1), np.eye(4)), count, affine, order=order, mode=mode
        )
        assert np.ptp(flat.data) == 0


@pytest.mark.parametrize("order", [0, 3])
def test_a_voxel_at_the_edge_of_the_field_of_view_counts_however_the_scan_is_stored(noise, order):
    """Voxel centres of the grid lie exactly half a voxel from those of the scan."""
    scan, grid = Volume(noise((8, 9, 10)), np.eye(4)), np.eye(4)
    grid[0, 3] = -0.5
    found = [
        resample(reorient(scan, axes), (9, 9, 10), grid, order=order, outside=-7.0).data
        for axes in ("RAS", "LPS", "SAR")
    ]
    assert found[0].min() > -7
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def test_what_is_not_finite_is_neither_written_nor_degraded(tmp_path, noise):
    scan = Volume(noise((8, 9, 10)), np.eye(4))
    scan.data[1, 2, 3] = np.nan
    for name, dtype in (("a.nii", np.int16), ("a.nii.gz", np.float32), ("a.mgz", np.float32)):
        with pytest.raises(InputError, match="1 voxels are NaN"):
            save_scan(scan, tmp_path / name, dtype=dtype)
    with pytest.raises(InputError, match="1 voxels are NaN"):
        degrade(scan, "gaussian_x2")
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_is_named_once(tmp_path, noise):
    for name in ("a.png", "a.nii", "a.mgz"):
        with pytest.raises(InputError) as error:
            save_scan(Volume(noise((8, 9, 1)), np.eye(4)), tmp_path / "none" / name)
        assert str(error.value).count(name) == 1


def test_types_are_named_as_numpy_does_and_others_refused(tmp_path, noise):
    scan = Volume(noise((8, 9, 10)), np.eye(4))
    for name in ("a.mgz", "a.nii"):
        save_scan(scan, tmp_path / name, dtype="int16")
        with pytest.raises(InputError, match="float16"):
            save_scan(scan, tmp_path / name, dtype=np.float16)


def test_other_arrays_are_no_volume():
    with pytest.raises(InputError, match="real numbers, got complex"):
        Volume(np.full((4, 4, 4), 3 + 4j), np.eye(4))
    for affine in (np.eye(3), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan)):
        with pytest.raises(InputError, match="an affine is 4x4 and can be inverted"):
            Volume(np.zeros((4, 4, 4)), affine)
