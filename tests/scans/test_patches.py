"""Patches and tiles cover a volume, and put back what was cut out."""

import numpy as np
import pytest

from srlib.core.paths import InputError
from srlib.scans.patches import (
    PatchLocation,
    extract,
    grid_locations,
    random_locations,
    stitch,
    tiles,
)


def roundtrip(data, shape, patch_size, stride=None, margin=0):
    places = grid_locations(shape, patch_size, stride=stride)
    return stitch([extract(data, p) for p in places], places, shape, margin=margin)


@pytest.mark.parametrize(
    ("shape", "patch_size", "stride", "margin"),
    [
        ((12, 12, 12), 4, None, 0),
        ((13, 11, 9), 4, None, 0),
        ((13, 11, 9), 4, 3, 0),
        ((13, 11, 9), 6, 2, 2),
        ((5, 20, 7), 8, 4, 2),
        ((3, 2, 1), 8, None, 0),
        ((3, 2, 1), 8, 4, 2),
        ((17, 19, 1), (8, 8, 1), (4, 6, 1), 0),
        ((17, 19), 8, 4, 1),
        ((64, 70, 66), 64, 58, 3),
    ],
)
def test_stitching_the_patches_of_a_volume_gives_the_volume(
    shape, patch_size, stride, margin, noise
):
    data = noise(shape)
    np.testing.assert_array_equal(roundtrip(data, shape, patch_size, stride, margin), data)


def test_a_scan_of_the_hcp_has_a_hundred_patches_in_the_order_of_its_axes():
    places = grid_locations((256, 320, 320), 64)
    assert [place.start for place in places] == [
        (64 * x, 64 * y, 64 * z) for x in range(4) for y in range(5) for z in range(5)
    ]


def test_stitching_gives_the_volume_for_random_settings(noise):
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(1, 20, 3).tolist())
        size = tuple(rng.integers(1, 12, 3).tolist())
        margin = int(rng.integers(0, (min(size) - 1) // 2 + 1))
        stride = tuple(int(rng.integers(1, n - 2 * margin + 1)) for n in size)
        data = noise((2, *shape))  # leading axes, such as channels, are kept
        out = roundtrip(data, shape, size, stride, margin)
        np.testing.assert_array_equal(out, data, err_msg=f"{shape} {size} {stride} {margin}")


def test_the_margin_of_a_patch_is_not_used_inside():
    shape, places = (20,), grid_locations((20,), 8, stride=4)
    patches = [np.pad(np.ones(4), 2, constant_values=-1) for _ in places]
    out = stitch(patches, places, shape, margin=2)
    np.testing.assert_array_equal(out, [-1, -1] + [1] * 16 + [-1, -1])


def test_holes_are_refused(noise):
    data, places = noise((12, 12, 12)), grid_locations((12, 12, 12), 4)
    with pytest.raises(InputError, match="64 voxels"):
        stitch([extract(data, p) for p in places[1:]], places[1:], data.shape)
    with pytest.raises(InputError, match="stride"):
        stitch([extract(data, p) for p in places], places, data.shape, margin=1)
    with pytest.raises(InputError):
        stitch([], [], data.shape)


@pytest.mark.parametrize(
    ("patch_size", "stride"), [(4, 5), (4, 0), (0, None), (-1, None), (2.5, None), ((4, 4), None)]
)
def test_impossible_sizes_are_refused(patch_size, stride):
    with pytest.raises(InputError):
        grid_locations((12, 12, 12), patch_size, stride=stride)


def test_a_patch_beyond_the_volume_is_padded_with_zeros():
    out = extract(np.ones((3, 2, 2)), PatchLocation((1, 0, 0), (4, 2, 3)))
    assert out.shape == (4, 2, 3)
    assert out.sum() == 2 * 2 * 2 == out[:2, :, :2].sum()


def test_random_patches_lie_inside_everywhere_and_follow_the_seed():
    def draw(seed):
        return random_locations((9, 5, 3), (4, 5, 6), 200, np.random.default_rng(seed))

    assert draw(0) == draw(0) != draw(1)
    assert {p.start[0] for p in draw(0)} == set(range(6))
    assert {p.start[1:] for p in draw(0)} == {(0, 0)}


def test_a_scaled_location_is_the_same_box_on_the_finer_grid(noise):
    coarse, location = noise((6, 5, 4)), PatchLocation((1, 2, 0), (3, 2, 4))
    fine = np.kron(coarse, np.ones((2, 1, 3)))
    part = extract(fine, location.scaled((2, 1, 3)))
    np.testing.assert_array_equal(part, np.kron(extract(coarse, location), np.ones((2, 1, 3))))


@pytest.mark.parametrize(
    ("shape", "halo", "max_voxels", "multiple"),
    [
        ((40, 33, 27), 3, 40 * 33 * 27, 1),
        ((40, 33, 27), 3, 9000, 1),
        ((40, 33, 27), 0, 1000, 1),
        ((31, 17, 5), 4, 1500, 1),
        ((50, 1, 40), 2, 600, 1),
        ((40, 48, 37), 4, 16000, 8),
    ],
)
def test_tiles_share_out_the_volume_with_full_halos_inside(shape, halo, max_voxels, multiple):
    written = np.zeros(shape, dtype=int)
    todo, largest = tiles(shape, halo, max_voxels, multiple=multiple)
    assert largest == max(np.prod(t.outer.size) for t in todo)
    for tile in todo:
        written[tile.core.slices] += 1
        assert np.prod(tile.outer.size) <= max_voxels
        for axis, n in enumerate(shape):
            low, high = tile.outer.start[axis], tile.outer.start[axis] + tile.outer.size[axis]
            start, stop = tile.core.start[axis], tile.core.start[axis] + tile.core.size[axis]
            assert start % multiple == low % multiple == 0
            assert max(start - halo, 0) - multiple < low <= max(start - halo, 0)
            assert high == min(stop + halo, n)
        index = np.arange(np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(
            index[tile.outer.slices][tile.inner.slices], index[tile.core.slices]
        )
    assert (written == 1).all()
    assert (len(todo) == 1) == (np.prod(shape) <= max_voxels)


def test_a_whole_head_is_computed_with_little_in_vain():
    todo, _ = tiles((256, 320, 320), 10, 4_100_000)
    assert len(todo) == 8
    assert sum(np.prod(t.outer.size) for t in todo) <= 1.25 * 256 * 320 * 320


def test_the_longest_axis_is_halved():
    todo, _ = tiles((40, 60, 50), 0, 40 * 30 * 50)
    assert [(t.core.start, t.core.size) for t in todo] == [
        ((0, 0, 0), (40, 30, 50)),
        ((0, 30, 0), (40, 30, 50)),
    ]


def test_a_budget_below_the_smallest_tile_has_none():
    assert tiles((30, 30, 30), 5, 11**3)[1] == 11**3
    for budget in (11**3 - 1, 0, -1, np.nan):
        assert tiles((30, 30, 30), 5, budget) == ([], 11**3)
    assert tiles((30, 40, 5), (4, 8, 0), 0, multiple=(4, 8, 1)) == ([], 12 * 24 * 1)


def test_a_border_is_left_out_as_far_as_a_patch_fits():
    places = grid_locations((40, 21, 30), 10, stride=7, border=(5, 8, 0))
    starts = [sorted({p.start[axis] for p in places}) for axis in range(3)]
    assert starts[0] == [5, 12, 19, 25] and starts[2] == [0, 7, 14, 20]  # 5 to 35, and all
    assert starts[1] == [5, 6]  # 21 voxels hold a patch of 10 with 5 off each face, not 8
    assert all(
        p.start[a] >= 0 and p.start[a] + 10 <= n for p in places for a, n in enumerate((40, 21, 30))
    )


def test_a_patch_may_begin_before_the_volume():
    line = np.arange(1.0, 6)
    for start, size, expected in (
        (-3, 2, [0, 0]), (-1, 3, [0, 1, 2]), (-2, 9, [0, 0, 1, 2, 3, 4, 5, 0, 0]), (7, 2, [0, 0]),
    ):  # fmt: skip
        found = extract(np.stack([line, line]), PatchLocation((start,), (size,)))
        np.testing.assert_array_equal(found, [expected, expected])


def test_patches_narrower_than_their_margins_leave_holes():
    places = grid_locations((6, 4, 4), (1, 4, 4))
    with pytest.raises(InputError, match="lie in no patch"):
        stitch((np.ones(place.size) for place in places), places, (6, 4, 4), margin=2)
