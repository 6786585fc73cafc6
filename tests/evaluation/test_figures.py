"""Figures: tissue is neither black nor white, sides are as named, differences comparable."""

import io
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from srlib.core.paths import InputError
from srlib.evaluation import figures
from srlib.evaluation.views import window
from srlib.models.srgan3d import SRGAN3D
from srlib.models.unet3d import UNet3D
from srlib.scans.volume import Volume, coarse_grid, resample

SCALES = {
    "0 to 1": (0, 1),
    "0 to 4095": (0, 4095),
    "HU": (-1024, 4024),
    "z-scores": (-0.8, 3.5),
    "negative": (-9, 8),
}
WILD = {"": None, "hot": 1e3, "cold": -1e3}


def phantom(shape=(24, 30, 20), scale=(0, 1), wild=None) -> tuple[Volume, dict[str, float]]:
    """Air, three tissues and a wild voxel in the units of a scale, and the tissues' intensities."""
    x, y, _ = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    parts = np.select([x < 0.2, x < 0.5, y < 0.5], [0, 1, 2], 3)
    values = np.array([0, 0.25, 0.5, 1.0]) * scale[1] + scale[0]
    data = values[parts].astype(np.float32)
    if wild:
        data[tuple(n // 2 for n in shape)] = wild * np.abs(values).max()
    return Volume(data, np.eye(4)), dict(
        zip(("air", "dark", "grey", "bright"), np.float32(values), strict=True)
    )


def panels(figure, colours="gray") -> list:
    """The pictures of a figure in one map of colours."""
    return [i for axis in figure.axes for i in axis.images if i.cmap.name == colours]


def grey(image, value) -> float:
    """How bright a picture shows an intensity that is in it: 0 is black, 1 is white."""
    assert (image.get_array() == value).any()
    return float(np.clip(image.norm(value), 0, 1))


@pytest.mark.parametrize("shape", [(24, 30, 20), (40, 50, 1), (9, 10, 1)], ids=str)
@pytest.mark.parametrize("wild", WILD)
def test_scans_of_any_units_are_seen_beside_each_other(shape, wild):
    scans = {name: phantom(shape, scale, WILD[wild]) for name, scale in SCALES.items()}
    figure = figures.triplanar({name: scan for name, (scan, _) in scans.items()})
    shown = panels(figure)
    assert len(shown) == len(SCALES) * (1 if shape[2] == 1 else 3)
    for axis, (name, (_, tissues)) in zip(figure.axes, scans.items(), strict=False):
        assert axis.get_title().startswith(name)
        air, *rest = (grey(axis.images[0], value) for value in tissues.values())
        assert all(0.05 < value < 0.95 for value in rest) and air < 0.06 < rest[0] - 0.1
        assert np.diff(rest).min() > 0.15, "tissues are told apart"


def test_versions_of_one_scan_share_the_window_of_the_reference():
    scan, tissues = phantom()
    figure = figures.triplanar(
        {
            "dim": scan.with_data(scan.data * 0.7),
            "HR": scan,
            "dead": Volume(scan.data * 1e-3, np.eye(4)),
        },
        "HR",
    )
    assert len({image.get_clim() for image in panels(figure)}) == 1
    assert 0.05 < grey(panels(figure)[1], tissues["grey"]) < 0.95
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert "-0.06 to 1.06" in titles[1] and "own window" in titles[2] and "window" not in titles[0]


@pytest.mark.parametrize("shape", [(24, 30, 20), (40, 50, 1)], ids=str)
@pytest.mark.parametrize("draw", [figures.triplanar, figures.slices])
def test_differences_are_in_every_plane_on_one_symmetric_scale_with_a_bar(shape, draw):
    scan, _ = phantom(shape, SCALES["HU"], wild=1e3)
    noise = np.random.default_rng(0).standard_normal(scan.shape)
    estimates = {f"{n} HU": scan.with_data(scan.data + n * noise) for n in (10, 20, 30)} | {
        "bad": Volume(noise, np.eye(4))
    }
    figure = draw({"HR": scan, **estimates}, "HR")
    shown = panels(figure, "RdBu_r")
    assert len(shown) == 4 * (len(panels(figure)) // 5), "one for each picture of an estimate"
    assert {image.get_clim() for image in shown} == {
        (-shown[0].get_clim()[1], shown[0].get_clim()[1])
    }
    (bar,) = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert bar.get_ylim() == shown[0].get_clim() and "HR" in bar.get_ylabel()
    assert 20 < bar.get_ylim()[1] < 200, "neither the wild voxel nor the bad system takes the scale"
    second = next(image for image in shown if image.axes.get_subplotspec().colspan.start == 2)
    assert np.std(second.get_array()) == pytest.approx(20, rel=0.2)


def test_what_is_compared_meets_in_the_world(blob, oblique):
    """Another grid, other axes: the same scan differs little; beyond it nothing is drawn."""
    scan = blob((30, 28, 26), oblique, 5.0)
    coarse = resample(scan, *coarse_grid(scan, (2, 2, 1)))
    turned = Volume(
        scan.data[::-1].transpose(1, 0, 2),
        scan.affine @ [[0, -1, 0, 29], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    part = Volume(
        scan.data[:, 14:], scan.affine @ [[1, 0, 0, 0], [0, 1, 0, 14], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    figure = figures.triplanar({"HR": scan, "coarse": coarse, "turned": turned, "part": part}, "HR")
    errors = [np.ma.masked_invalid(image.get_array()) for image in panels(figure, "RdBu_r")]
    assert len(errors) == 9 and max(abs(e).max() for e in errors) < 0.03
    assert (
        0.3 < np.ma.getmaskarray(errors[2]).mean() < 0.7 and not np.ma.getmaskarray(errors[0]).any()
    )


def test_right_is_on_the_right_and_the_letters_say_so(affine, to_world):
    """A voxel right of, before and above the middle is found there in each plane."""
    shape = (21, 23, 25)
    middle = to_world(affine, [n // 2 for n in shape])
    planes = {"RA": (0, 1), "RS": (0, 2), "AS": (1, 2)}
    for row, (directions, (right, up)) in enumerate(planes.items()):
        towards = np.zeros(3)
        towards[[right, up]] = 1
        steps = np.rint(
            np.linalg.inv(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)) @ towards * 4
        )
        axes = np.abs(affine[:3, :3]).argmax(0)
        steps[axes == 3 - right - up] = 0  # the nearest plane of an oblique scan
        data = np.zeros(shape)
        data[tuple(int(n // 2 + s) for n, s in zip(shape, steps, strict=True))] = 1
        assert ((to_world(affine, np.array(shape) // 2 + steps) - middle)[[right, up]] > 0).all()
        axis = figures.triplanar({"scan": Volume(data, affine)}).axes[row]
        image = axis.images[0].get_array()
        rows, columns = np.nonzero(image == 1)
        assert rows.mean() < image.shape[0] / 2 - 1 and columns.mean() > image.shape[1] / 2 + 1
        places = {text.get_text(): text.get_position() for text in axis.texts}
        assert places[directions[0]][0] > 0.9 and places[directions[1]][1] > 0.9
        assert axis.images[0].origin == "upper" and axis.get_aspect() == 1


def test_splines_are_asked_for_by_name_and_a_scan_has_no_difference_to_itself():
    fine = Volume(np.random.default_rng(0).random((24, 24, 24)), np.eye(4))
    coarse = resample(fine, *coarse_grid(fine, (1, 1, 4)), order=1)
    scans = {"coarse": coarse, "cubic": coarse, "fine": fine}
    figure = figures.triplanar(scans, "coarse", cubic={"cubic"})
    voxels, cubic, _ = (image.get_array() for image in panels(figure)[3:6])  # coronal
    assert (
        np.mean(np.diff(voxels, axis=0) == 0) > 0.7 and np.mean(np.diff(cubic, axis=0) == 0) < 0.1
    )
    assert len(panels(figure, "RdBu_r")) == 3
    assert not panels(figures.triplanar(scans, "coarse", differences=False), "RdBu_r")


def test_proportions_are_those_of_the_world():
    scan = Volume(np.random.default_rng(0).random((20, 30, 4)), np.diag([0.5, 0.5, 8, 1]))
    shapes = [image.get_array().shape for image in panels(figures.triplanar({"scan": scan}))]
    assert [rows / columns for rows, columns in shapes] == [15 / 10, 32 / 10, 32 / 15]


LONG, THIN = np.diag([0.1, 1, 100, 1]), np.diag([1, 1, 1e-4, 1])


@pytest.mark.parametrize(("scan", "affine"), [
    (np.zeros((8, 8, 8)), np.eye(4)), (np.full((8, 8, 8), -3), np.eye(4)), (np.full((8, 8, 8), np.nan), np.eye(4)),
    (np.where(np.arange(512).reshape(8, 8, 8) == 7, np.inf, 1), np.eye(4)), (np.ones((1, 1, 1)), THIN),
    (np.arange(8).reshape(2, 2, 2), LONG), (np.arange(5).reshape(1, 1, 5), LONG), (np.arange(400).reshape(20, 20, 1), THIN),
    (np.arange(400).reshape(1, 20, 20), LONG),
], ids=["zero", "constant", "nan", "inf", "one voxel", "tiny", "a line", "thin", "a sagittal slice"])  # fmt: skip
def test_odd_scans_are_drawn_without_a_complaint(scan, affine, tmp_path):
    scan = Volume(scan, affine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            figures.triplanar({"a": scan, "$\\frac b": scan}),
            figures.slices({"a": scan, "b\udcff": scan}, "b\udcff"),
        ):
            figures.save_figure(figure, tmp_path / "f.png")
            assert figure.get_figwidth() * figure.get_figheight() < 1000
            assert all(low < high for low, high in (image.get_clim() for image in panels(figure)))


def test_nan_is_neither_black_nor_white():
    scan, _ = phantom()
    data = scan.data.copy()
    data[:8] = np.nan
    image = panels(figures.triplanar({"a": scan.with_data(data)}))[0]
    red, _, blue, _ = image.cmap(image.norm(np.ma.masked_invalid(image.get_array())))[0, 0]
    assert blue > red + 0.2


def test_what_cannot_be_drawn_is_one_line():
    scan, _ = phantom()
    for call in (
        lambda: figures.triplanar({}), lambda: figures.triplanar({"a": scan}, "b"), lambda: figures.slices({"a": scan}, "b"),
        lambda: figures.curves({}), lambda: figures.intervals(dots([]), ""), lambda: figures.triplanar({"a": Volume(np.ones((0, 4, 4)), np.eye(4))}),
        lambda: figures.save_figure(figures.triplanar({"a": scan}), "/dev/null/f.png"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()


def test_nothing_is_left_behind(tmp_path):
    """No open figures, no changed defaults; the host's defaults turn no picture upside down."""
    scan, _ = phantom()
    history = pd.DataFrame(
        {"step": [1, 2], "loss": [1.0, 0.5], "gap": [0.1, 0.2], "val_gap": [0.1, 0.1]}
    )
    gains = pd.DataFrame({"task": [1.0, -2.0]}, index=["a", "b"])
    with matplotlib.rc_context(
        {"image.origin": "lower", "image.aspect": "auto", "image.cmap": "jet"}
    ):
        before, backend, open_figures = (
            dict(matplotlib.rcParams),
            matplotlib.get_backend(),
            plt.get_fignums(),
        )
        made = [
            figures.triplanar({"a": scan, "b": scan}, "a"), figures.slices({"a": scan, "b": scan}, "a"),
            figures.curves({"a": history}), figures.game(history, ["critic", "generator"]),
            figures.intervals(dots([0.5, -20]), "dB"), figures.heat_map(gains, baseline=pd.Series(dtype=float), home=()),
        ]  # fmt: skip
        assert all(figures.save_figure(f, tmp_path / "figure.png") is f for f in made)
        assert plt.get_fignums() == open_figures and dict(matplotlib.rcParams) == before
        assert matplotlib.get_backend() == backend
    np.testing.assert_array_equal(made[0].axes[0].images[0].get_array()[0], scan.data[:, -1, 10])
    assert all(image.origin == "upper" for image in panels(made[0]))


@pytest.mark.parametrize("air", [True, False], ids=["whole", "cut out of a head"])
def test_a_window_follows_the_units_and_cuts_no_tissue(air):
    scan, _ = phantom()
    data = scan.data if air else scan.data[5:]
    low, high = window(Volume(data, np.eye(4)))
    assert (
        0.05
        < (data.min() - low) / (high - low)
        < 0.1
        < 0.9
        < (data.max() - low) / (high - low)
        < 0.95
    )
    for scale, offset in ((4095, 0), (4, -2), (4024, -1024), (100, 32768), (1e-6, 0)):
        found = window(Volume(data * np.float64(scale) + offset, np.eye(4)))
        assert found == pytest.approx((low * scale + offset, high * scale + offset), rel=1e-4)


def test_a_few_wild_voxels_leave_the_window_where_it_was():
    scan, _ = phantom()
    data = scan.data + 0.02 * np.random.default_rng(0).standard_normal(scan.shape)
    low, high = window(scan.with_data(data))
    data[8:13, 10:15, 8:13] *= (
        1000  # more than the percentiles leave out: what an interpolation makes of one
    )
    wild = window(scan.with_data(data))
    assert abs(wild[0] - low) < 0.06 * (wild[1] - wild[0]) and high <= wild[1] < 5 * high
    mask = np.zeros((20, 20, 20))
    mask[10, 10, 10:12] = 1
    low, high = window(scan.with_data(mask))
    assert low < high and abs(1 - low) / (high - low) > 0.9 and low < 0 < high


def dots(values: list[float]) -> pd.DataFrame:
    """Rows of ``figures.intervals``."""
    values = pd.Series(values, [f"net {n}" for n in range(len(values))], dtype=float)
    return pd.DataFrame(
        {"value": values, "low": values - 1, "high": values + 1, "good": values > 0}
    )


def test_a_failed_system_does_not_take_the_scale_of_the_intervals():
    axis = figures.intervals(dots([0.5, 1, 2, -20]), "dB", linear=6).axes[0]
    places = axis.transScale.transform([(x, 0) for x in (-21, 0.5, 2, 3)])[:, 0]
    assert (places[2] - places[1]) / (places[3] - places[0]) > 0.1
    assert [t.get_text() for t in axis.get_yticklabels()] == [f"net {n}" for n in range(4)]
    assert axis.get_xlabel() == "dB"


def test_a_failed_run_does_not_take_the_scale_of_the_curves():
    def history(*psnr):
        return pd.DataFrame(
            {"step": range(len(psnr)), "loss": [1e-3] * len(psnr), "val_psnr": psnr}
        )

    runs = {
        "a": history(28, 29, 30),
        "b": history(29, 30, 31),
        "c": history(30, 30.5, 31.5),
        "failed": history(-7, -6, -5),
    }
    axis = figures.curves(runs).axes[1]
    assert 26 < axis.get_ylim()[0] < 28 and "failed: -5" in axis.get_title()
    alone = figures.curves({"failed": runs["failed"], "once": history(31)}).axes[1]
    assert alone.get_ylim()[0] < -7 and alone.get_ylim()[1] > 31 and not alone.get_title()
    assert alone.lines[1].get_marker() not in ("", "None"), "a single value is seen"
    critic = pd.DataFrame({"step": [1, 2], "loss": [np.nan, np.nan], "gap": [0.1, 0.2]})
    assert len(figures.curves({"critic": critic, "a": runs["a"]}).axes[0].lines) == 1


def test_one_score_does_not_take_the_scale_of_the_game():
    gaps = np.random.default_rng(0).normal(0.5, 0.1, 40)
    gaps[7] = 1e6
    history = pd.DataFrame({"step": range(40), "gap": gaps, "val_gap": np.nan})
    axis = figures.game(history, ["critic"] * 40).axes[0]
    low, zero, usual, high = axis.transScale.transform([(0, y) for y in (-1, 0, 0.5, 1e6)])[:, 1]
    assert (usual - zero) / (high - low) > 0.03


def test_a_figure_is_the_same_file_each_time(tmp_path):
    scan, _ = phantom()
    written = []
    for name in ("one.png", "two.png"):
        figures.save_figure(
            figures.triplanar({"a": scan, "b": scan.with_data(scan.data * 0.9)}, "a"),
            tmp_path / name,
        )
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and plt.imread(io.BytesIO(written[0])).ndim == 3
    assert len(list(tmp_path.iterdir())) == 2


def drawn(network, shape):
    """The boxes (kernel, feature maps, place) of a drawing, and from where to where lines bend."""
    (axis,) = figures.architecture(network, shape).axes
    boxes = [(*t.get_text().split("\n"), *t.get_position()) for t in axis.texts if t.get_text()]
    bent = {
        (*line.xyann, *line.xy)
        for line in axis.findobj(Annotation)
        if not line.arrowprops["connectionstyle"].endswith("rad=0.0")
    }
    return axis.get_title(), sorted(boxes, key=lambda box: box[2]), bent


def test_a_drawing_shows_kernels_grids_and_what_goes_around_them():
    network = SRGAN3D(width=8, blocks=1, upsampler="subpixel_nn", residual=True)
    title, boxes, bent = drawn(network, (1, 6, 5, 4))
    assert title == f"{sum(p.numel() for p in network.parameters()):,} parameters"
    chain = ["3×3×3"] * 4
    assert [kernel for kernel, *_ in boxes] == ["input", *chain, "6×6×6", "3×3×3"]
    assert [maps for _, maps, *_ in boxes] == ["1", "8", "8", "8", "8", "16", "1"]
    assert [voxels for *_, voxels in boxes] == [6, 6, 6, 6, 6, 12, 12]
    assert bent == {(1, 6, 3, 6), (1, 6, 4, 6), (0, 6, 6, 12)}  # a block, all blocks, the residual
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_drawing_of_a_u_net_has_its_skips():
    _, boxes, bent = drawn(UNet3D(width=4, levels=3, in_channels=2), (2, 8, 8, 8))
    assert {voxels for *_, voxels in boxes} == {8, 4, 2}
    assert {(start, end) for _, start, _, end in bent} == {(8, 8), (4, 4)}
