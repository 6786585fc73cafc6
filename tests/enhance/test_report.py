"""The page about an enhanced scan: one file, true geometry, pictures, warnings."""

import base64
import io
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage

from srlib.cli.commands import main
from srlib.core.paths import InputError
from srlib.enhance.report import write_report
from srlib.inference import checks
from srlib.inference.checks import gaps, header
from srlib.scans.volume import Volume, coarse_grid, resample, save_scan


def findings(before, after, finer=(np.inf,) * 3):
    return checks.findings(before, after, finer)


def pictures(path) -> dict[str, list[np.ndarray]]:
    """The pictures of a page by their captions, (rows, columns, RGBA)."""
    found = {}
    for caption, content in re.findall(
        r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"', path.read_text()
    ):
        found.setdefault(caption, []).append(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), float)
        )
    return found


@pytest.fixture
def scans(noise):
    """Maker of a textured head, brighter towards R, A and S, and of its thick slices."""

    def make(affine, shape=(40, 44, 36)):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        a, b, c = np.linalg.solve(affine[:3, :3], [1, 1, 1])
        brighter = (a * x + b * y + c * z) / (abs(a) + abs(b) + abs(c))
        texture = ndimage.gaussian_filter(noise(shape) - 0.5, 1)
        fine = Volume((x**2 + y**2 + z**2 < 0.8) * (500 + 400 * brighter + 500 * texture), affine)
        return resample(fine, *coarse_grid(fine, (1, 1, 4)), order=1), fine

    return make


def test_the_page_is_whole_escaped_and_the_same_each_time(scans, tmp_path, oblique):
    before, after = scans(oblique)
    words = {"title": "a <b> & c", "lines": ["model <x>"], "warnings": ["mind <this>"]}
    page = write_report(
        before, after, tmp_path / "one.html", **words, uncertainty=after.with_data(after.data * 0.1)
    )
    text = page.read_text()
    assert (
        "a &lt;b&gt; &amp; c" in text and "model &lt;x&gt;" in text and "mind &lt;this&gt;" in text
    )
    assert not re.search(r"<script|https?:|<link|url\(", text)
    assert all(
        source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', text)
    )
    assert "the model's estimate" in text
    assert "40 x 44 x 9 " in text and "40 x 44 x 36 " in text and "Uncertainty" in text
    again = write_report(
        before, after, tmp_path / "two.html", **words, uncertainty=after.with_data(after.data * 0.1)
    )
    assert again.read_bytes() == page.read_bytes()
    assert (
        "Uncertainty"
        not in write_report(
            before, after, tmp_path / "three.html", title="t", warnings=[]
        ).read_text()
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.html", "three.html", "two.html"]
    with pytest.raises(InputError, match="does not exist"):
        write_report(before, after, tmp_path / "none" / "page.html", title="t", warnings=[])


def test_both_scans_have_one_window_unless_their_units_differ(scans, tmp_path):
    """In one window the page shows their difference; of other units there is none."""
    before, after = scans(np.eye(4))
    one = write_report(before, after, tmp_path / "one.html", title="t", warnings=[])
    other = write_report(
        before, after.with_data(after.data * 0.01), tmp_path / "other.html", title="t", warnings=[]
    )
    assert "One window" in one.read_text() and "a window of its own" in other.read_text()
    red = [
        (p[..., 0] > p[..., 2] + 60).any()
        for page in (one, other)
        for p in pictures(page)["planes"]
    ]
    assert red == [True, False]
    wild = after.data.copy()
    wild[15:18, 15:18, 15:18] = 1e6
    assert (
        "One window"
        in write_report(
            before, after.with_data(wild), tmp_path / "wild.html", title="t", warnings=[]
        ).read_text()
    )


def test_pictures_are_large_enough_to_be_judged(scans, tmp_path):
    shown = pictures(write_report(*scans(np.eye(4)), tmp_path / "r.html", title="t", warnings=[]))
    assert set(shown) == {"planes", "details"}
    assert all(picture.shape[1] >= 3 * 350 for picture in (*shown["planes"], *shown["details"]))


def test_a_single_slice_an_empty_scan_and_nan_have_a_page(scans, tmp_path, noise):
    image = Volume(noise((60, 50, 1)), np.eye(4))
    assert set(
        pictures(write_report(image, image, tmp_path / "a.html", title="image", warnings=[]))
    ) >= {
        "planes",
        "details",
    }
    empty = Volume(np.zeros((20, 20, 20)), np.eye(4))
    page = write_report(empty, empty, tmp_path / "b.html", title="empty", warnings=[])
    assert "No warnings" in page.read_text()
    before, after = scans(np.eye(4))
    data = after.data.copy()
    data[20] = np.nan
    page = write_report(
        before,
        after.with_data(data),
        tmp_path / "r.html",
        title="caf\udce9 <b>.nii",
        warnings=["\udce9"],
    )
    assert "caf\\udce9 &lt;b&gt;.nii" in page.read_text("utf-8"), "names of files need not be text"


def head(shape, spacing=(1.0, 1.0, 1.0)) -> Volume:
    return Volume(
        np.random.default_rng(0).normal(500, 100, shape).clip(0), np.diag([*spacing, 1.0])
    )


@pytest.mark.parametrize("shape, spacing, change, thickness, words", [
    ((100, 100, 100), (1, 1, 1), None, None, []),
    ((100, 100, 100), (1, 1, 20), None, None, ["20 mm along S; check its header", "a stack of 100 slices, 20 mm"]),
    ((160, 160, 30), (1, 1, 5), None, None, ["a stack of 30 slices, 5 mm apart along S"]),
    ((30, 160, 160), (5, 1, 1), None, None, ["a stack of 30 slices, 5 mm apart along R"]),
    ((100, 100, 60), (1, 1, 3), None, 2.0, ["2 mm thick and 3 mm apart along S"]),
    ((100, 100, 60), (1, 1, 3), None, 3.0, []),
    ((100, 100, 100), (1, 1, 1), lambda d: d.clip(0, 700), None, ["very maximum, 700"]),
    ((100, 100, 100), (1, 1, 1), lambda d: d.clip(400, None), None, ["very minimum, 400"]),
    ((100, 100, 100), (1, 1, 1), lambda d: d.clip(400, None) - 400, None, []),
    ((300, 200, 1), (0.05, 0.05, 1), None, None, []),
])  # fmt: skip
def test_findings(shape, spacing, change, thickness, words):
    scan = head(shape, spacing)
    scan = scan.with_data(change(scan.data)) if change else scan
    found = [*([] if 1 in shape else header(scan)), *gaps(scan, thickness), *findings(scan, scan)]
    assert len(found) == len(words), found
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_intensities_that_were_never_measured_are_told():
    scan = head((100, 100, 100))
    assert not findings(scan, scan.with_data(scan.data * 1.05))
    wild = scan.data.copy()
    wild[:10, :10, :10] = 5000
    (line,) = findings(scan, scan.with_data(wild))
    assert line.startswith("0.1 % of the voxels after lie far outside")
    (line,) = findings(scan, scan.with_data(scan.data - 5000))
    assert line.startswith("100 % of")


def test_a_few_voxels_that_were_never_measured_are_told():
    """A small lesion that comes back hotter; what sharpening adds to a border does not count."""
    scan = head((100, 100, 100))
    low, high = scan.data.min(), scan.data.max()
    for value, told in (
        (high + 0.05 * (high - low), False),
        (high + 0.35 * (high - low), True),
        (low - 0.4 * high, True),
    ):
        after = scan.data.copy()
        after[50:52, 50:52, 50:52] = value
        assert bool(findings(scan, scan.with_data(after))) == told


def test_thick_slices_count_where_they_become_thinner():
    stack = head((160, 160, 30), (1, 1, 5))
    assert not findings(stack, stack, (4, 1, 1)) and findings(stack, stack, (1, 1, 5))


@pytest.mark.parametrize("change, words", [
    (lambda d, rng: d, None),
    (lambda d, rng: d + rng.normal(0, 0.05 * d.max(), d.shape), None),
    (lambda d, rng: np.where(d > 0.1 * d.max(), d, -4e-16), None),  # what a resampled scan has in air
    (lambda d, rng: ndimage.zoom(d[::2, ::2, ::2], 2, order=3), None),
    (lambda d, rng: np.where(np.arange(60) < 20, -1000, d - 480), "as in a CT"),
    (lambda d, rng: ndimage.gaussian_filter(rng.normal(0, 3, d.shape), 1), "a statistical or difference map"),
    (lambda d, rng: np.abs(rng.normal(0, 1, d.shape)), "this is noise"),
])  # fmt: skip
def test_a_scan_unlike_the_training_is_told_why(change, words):
    scan = head((60, 60, 60))
    data = ndimage.gaussian_filter(scan.data, 0.7)
    found = checks.unlike(scan.with_data(change(data, np.random.default_rng(0))))
    assert [words in line for line in found] == [True] * bool(words), found


def test_names_of_files_are_escaped_on_the_page(tmp_path, tiny, noise):
    """Through the command, which puts them into the title and the warnings."""
    name = "\"'<b>&\n.nii.gz"
    data = noise((12, 12, 12))
    data[3, 4, 5] = 1e6  # which is warned of
    save_scan(Volume(data, np.eye(4)), tmp_path / name.replace("/", ""))
    (tmp_path / "in").mkdir()
    (tmp_path / name).rename(tmp_path / "in" / name)
    words = ["enhance", tmp_path / "in", tmp_path / "out", "--weights", tiny, "--report"]
    result = CliRunner().invoke(main, [*map(str, words), str(tmp_path / "pages")])
    assert result.exit_code == 0, result.output
    (page,) = (tmp_path / "pages").iterdir()
    text = page.read_text()
    assert "&quot;&#x27;&lt;b&gt;&amp;\n.nii.gz, enhanced</h1>" in text
    assert "<b>" not in text and "few voxels take most of the range" in text
    assert len(re.findall("<title>", text)) == 1
