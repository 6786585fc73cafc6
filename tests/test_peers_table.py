"""The table of other people's tools: its geometry, a tool that works, and tools that do not."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from srlib.scans.volume import Volume

# a tool that keeps each voxel's value, moves the scan by a millimetre and halves its intensities
HALF = """
import sys, nibabel, numpy
image = nibabel.load(sys.argv[1])
data = image.get_fdata().repeat(2, 0).repeat(2, 1).repeat(2, 2) / 2
affine = image.affine @ numpy.diag([0.5, 0.5, 0.5, 1])
affine[:3, 3] += 1 - 0.5
nibabel.save(nibabel.Nifti1Image(data, affine), sys.argv[2])
"""


@pytest.fixture
def head():
    """A smooth scan of 32 voxels of 1 mm, turned in the world."""
    noise = np.random.default_rng(0).standard_normal((32, 32, 32))
    turned = np.array([[0, -1, 0, 9], [1, 0, 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]])
    return Volume(100 * ndimage.gaussian_filter(noise, 1.5) + 50, turned)


def test_a_known_shift_is_found(script, head):
    geometry = script("geometry")
    moved = head.with_data(ndimage.shift(head.data, (0, 0.5, 0), order=3, mode="mirror"))
    found = geometry.displacement(moved, head)
    assert found[:3, 3] == pytest.approx([0, 0.5, 0], abs=0.02)
    assert geometry.error_mm(moved, head) == pytest.approx(0.5, abs=0.05)
    dull = head.with_data(3 * ndimage.gaussian_filter(head.data, 0.6) - 7)
    assert geometry.error_mm(dull, head) < 0.05
    far = head.affine.copy()
    far[:3, 3] += (30, 0, 40)
    assert geometry.error_mm(head, head, far) == pytest.approx(50, abs=0.05)


def test_a_stretch_about_the_middle_is_found(script, head):
    data = ndimage.affine_transform(head.data, [1 / 1.02] * 3, 15.5 * (1 - 1 / 1.02), mode="mirror")
    found = script("geometry").displacement(head.with_data(data), head)
    assert np.diag(found)[:3] == pytest.approx(1.02, abs=0.003)


@pytest.fixture
def case(script, head):
    return script("peers_table").degraded("ball", head, "gaussian_x2", 32)


def tool(script, command, **more):
    """A tool that needs no environment of its own."""
    return script("outside").Tool("1", "MIT", command, takes=any, **more)


def test_a_tool_is_run_measured_and_mended(script, case, tmp_path):
    table, outside = script("peers_table"), script("outside")
    (tmp_path / "half.py").write_text(HALF)
    fake = tool(
        script, f"{{python}} {tmp_path}/half.py {{given}} {{made}}", align="center", rescale=True
    )
    places = outside.install("fake", fake, tmp_path)
    rows = table.run_tool(fake, case, places, 60)
    assert [row["state"] for row in rows] == ["as it is", "mended", "registered"]
    assert all(row["mended"] == "grid and intensities" for row in rows[1:])
    before, mended, registered = rows
    # the first fine voxel belongs half a voxel before the coarse one, not half a mm to the right,
    # which is the same along the one axis that points to the left
    assert float(before["geometry_mm"]) == pytest.approx(np.sqrt(2), abs=0.1)
    assert float(mended["geometry_mm"]) < 0.1 and registered["geometry_mm"] == "0.00"
    assert float(before["psnr"]) < float(mended["psnr"]) - 3
    assert float(mended["gain_db"]) < 0 < float(before["memory_gb"])


@pytest.mark.parametrize(
    ("reason", "command", "patience"),
    [
        ("failed: OSError: no weights", "{python} -c 'raise OSError(\"no weights\")'", 600),
        ("ended after its budget of 1 s", "sh -c 'while :; do :; done'", 600),
        ("ended after 2 s by the clock", "sleep 60", 2),
        ("made no file", "true", 600),
    ],
)
def test_a_tool_that_fails_is_one_row(
    script, case, tmp_path, monkeypatch, reason, command, patience
):
    table, outside = script("peers_table"), script("outside")
    monkeypatch.setattr(outside, "PATIENCE", patience)
    fake = tool(script, command)
    places = outside.install("fake", fake, tmp_path)
    assert table.run_tool(fake, case, places, 1) == [{"notes": reason}]


def test_what_pip_refuses_is_one_row(script, case, tmp_path, monkeypatch):
    table = script("peers_table")
    missing = tool(script, "true", pip=("install --no-index no-such-package-at-all",))
    monkeypatch.setattr(table, "TOOLS", {"missing": missing})
    monkeypatch.setattr(table, "ENVIRONMENTS", tmp_path)
    path = tmp_path / "peers.csv"
    table.run(["missing"], [case], path=path)
    (row,) = table.read(path)
    assert row["notes"].startswith("cannot be installed: ERROR: No matching distribution")
    assert not row["scan"] and tuple(row) == table.COLUMNS


def test_rows_of_a_cell_are_replaced_and_others_stay(script, case, tmp_path, monkeypatch):
    table, path = script("peers_table"), tmp_path / "peers.csv"
    fake = tool(script, "true")
    monkeypatch.setattr(table, "TOOLS", {"one": fake, "two": fake})
    other = dataclasses.replace(case, scan="cube")

    def write(name, gains, where):
        rows = [{"gain_db": gain, "notes": ""} for gain in gains]
        table.keep(table.signed(rows, name, fake, where), path)

    write("two", ["1", "2"], case)
    write("one", ["3"], other)
    write("one", ["4"], case)
    write("two", ["5"], case)
    kept = [(row["tool"], row["scan"], row["gain_db"]) for row in table.read(path)]
    assert kept == [("one", "ball", "4"), ("one", "cube", "3"), ("two", "ball", "5")]
    assert table.unmeasured(table.read(path), [case, other]) == ["two cube gaussian_x2"]


def test_the_kept_table_is_whole(script):
    table = script("peers_table")
    rows = table.read()
    assert rows and tuple(rows[0]) == table.COLUMNS
    for row in rows:
        assert row["tool"] in table.TOOLS and row["licence"] and row["date"]
        assert row["gain_db"] or row["notes"], "a row without numbers says why"
