"""Pictures for notebooks, results and the README: planes of scans, difference maps, training curves, box plots."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srlib.core.paths import InputError, atomic, choose, make_dir
from srlib.evaluation.views import (
    difference,
    extent,
    filled,
    letters,
    middle,
    pixel_mm,
    pixels,
    section,
    upright,
    windows,
)
from srlib.scans.volume import Volume

GREYS = colormaps["gray"].with_extremes(bad="darkslateblue")
DIFFERENCES = colormaps["RdBu_r"].with_extremes(bad="0.6")
SCORES = {
    "val_psnr": "validation PSNR (dB, range 1)",
    "val_dice": "validation Dice",
}  # columns of history.csv
METRICS = {
    "psnr": "PSNR (dB)\ndata range = maximum - minimum of the truth",
    "ssim3d": "SSIM (7³ uniform windows)",
    "sharpness": "gradient energy over the truth's",
}


class Picture(Figure):
    """A figure that a notebook shows, without pyplot, whose backends keep figures and may open windows."""

    def png(self, dpi: float = 90) -> bytes:
        """A PNG without dates or versions in it, so that the same picture is the same bytes."""
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def triplanar(
    volumes: Mapping[str, Volume], reference: str | None = None, zoom: float = 1.0
) -> Picture:
    """One column per scan; axial, coronal and sagittal middle slices, a row each, or the one plane of single slices.

    Right is on the right (neurological convention), as the letters say. Each scan has the window that stands under its
    name (``views.window``). ``reference``, a name among them, makes all of them versions of one scan: they are cut in
    its planes of the world and shown in its window, and each plane is followed by their differences to it, all on one
    symmetric scale. ``zoom`` > 1 shows the middle of each slice only. NaN and what lies beyond a scan are blue.
    """
    return planes(volumes, reference, (zoom,))


def slices(volumes: Mapping[str, Volume], reference: str, zoom: float = 2.0) -> Picture:
    """The first slice of 2-D images, y downwards, as ``triplanar`` shows scans: whole, then its middle."""
    return planes(
        {name: v.with_data(v.data[:, :, :1]) for name, v in volumes.items()}, reference, (1.0, zoom)
    )


def planes(
    volumes: Mapping[str, Volume],
    reference: str | None,
    zooms: Sequence[float],
    cubic: Collection[str] = (),
    differences: bool = True,
) -> Picture:
    """All planes at one zoom after the other, as by ``triplanar``; scans named in ``cubic`` by cubic splines.

    Raises InputError when there is no scan, none of the name ``reference``, and for one without voxels.
    """
    truth = None if reference is None else choose(volumes, reference, "scan")
    grids = {name: upright(truth or volume) for name, volume in volumes.items()}
    others = [
        name for name, volume in volumes.items() if differences and truth and volume is not truth
    ]
    rows = list(product(zooms, sorted(set().union(*map(filled, grids.values())), reverse=True)))
    step = 2 if others else 1
    figure, panels = _subplots(step * len(rows), len(volumes), (1, 1))
    for (name, volume), column in zip(volumes.items(), panels.T, strict=True):
        grid, (limits, own) = grids[name], windows(truth or volume, volume)
        note = _range(*limits) if name == reference or truth is None else ""
        note = note if own == limits else f"(its own window: {_range(*own)})"
        for panel in column:
            panel.set_axis_off()
        column[0].set_title(f"{_text(name)}\n{note}", fontsize=9, parse_math=False)
        finest, centre = min(map(pixel_mm, volumes.values() if truth else [grid])), middle(grid)
        for place, (zoom, axis) in enumerate(rows):
            field = np.inf if zoom <= 1 else max(np.multiply(grid.shape, grid.spacing_mm)) / zoom
            plane = pixels(grid, axis, centre, field, max(1, round(pixel_mm(grid) / finest)))
            if axis in filled(grid):
                image = section(volume, *plane, 3 if name in cubic else 0)
                _show(column[step * place], image, GREYS, limits, letters(grid, axis))
            if axis in filled(grid) and name in others:
                _show(
                    column[step * place + 1], difference(volume, truth, *plane), DIFFERENCES, limits
                )
    if others:
        _one_scale(figure, panels[1::2], f"difference to {_text(reference)}, in its units")
    _fit(figure, panels)
    return figure


def _one_scale(figure: Picture, panels: np.ndarray, label: str) -> None:
    """One symmetric scale for differences, which stand in the scans' own window before, and a bar of it."""
    images = [[panel.images[0] for panel in column if panel.images] for column in panels.T]
    each = [
        extent([i.get_array().filled(np.nan) for i in column], column[0].get_clim())
        for column in images
        if column
    ]
    most = np.percentile(each, 50, method="lower")  # not that of one bad scan
    for image in chain(*images):
        image.set_clim(-most, most)
    bar = figure.colorbar(image, ax=figure.axes, extend="both", shrink=0.5, aspect=40, pad=0.01)
    bar.set_label(label, fontsize=9, parse_math=False)


def _fit(figure: Picture, panels: np.ndarray) -> None:
    """The size of a figure in which all pictures are equally wide."""
    shapes = [
        [panel.images[0].get_array().shape for panel in row if panel.images] for row in panels
    ]
    heights = np.clip([max(height / width for height, width in row) for row in shapes], 0.2, 2)
    panels[0, 0].get_gridspec().set_height_ratios(heights)
    figure.set_size_inches(
        2.6 * panels.shape[1] + (len(figure.axes) > panels.size), 2.6 * heights.sum() + 0.5
    )


def _text(name: str) -> str:
    """A name in lines that fit above a picture; of a file's, what is not text is spelt out."""
    return fill(name.encode(errors="backslashreplace").decode(), 34)


def _range(low: float, high: float) -> str:
    return f"{low:.5g} to {high:.5g}"


def _show(
    axis: Axes,
    image: np.ndarray,
    colours: Colormap,
    limits: Sequence[float],
    directions: Sequence[str] = (),
) -> None:
    """A picture, whatever the host's defaults are, with its directions to the left, right, top and bottom."""
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[])
    box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1}
    for letter, (x, y) in zip(
        directions, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=False
    ):
        axis.text(
            x,
            y,
            letter,
            ha="center",
            va="center",
            transform=axis.transAxes,
            fontsize=8,
            color="white",
            bbox=box,
        )
    norm = {"vmin": limits[0], "vmax": limits[1]}
    axis.imshow(image, colours, **norm, aspect="equal", interpolation="nearest", origin="upper")


def _subplots(
    rows: int, columns: int, size: tuple[float, float], **options: object
) -> tuple[Picture, np.ndarray]:
    """A figure and its panels (rows, columns); InputError for none."""
    if not rows * columns:
        raise InputError("there is nothing to show: no scan, no run, no measured row")
    figure = Picture(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _near(values: Iterable[float]) -> tuple[float, float]:
    """Least and greatest of the values, without those far off where these would take more than half of an axis.

    Far is farther than ten median deviations from the median.
    """
    values = np.array([*values], float)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    off = np.abs(values - np.median(values))
    near = values[off <= 10 * np.median(off)]
    near = near if 0 < np.ptp(near) < 0.5 * np.ptp(values) else values
    return near.min(), near.max()


def _limit(
    axis: Axes, along: str, groups: Mapping[str, pd.Series], typical: Mapping[str, float]
) -> None:
    """Limits of an axis (``along`` x or y) for groups of values; those whose typical value is far off are told above."""
    low, high = _near(typical.values())
    near = np.concatenate(
        [[low, high], *(groups[n] for n, value in typical.items() if low <= value <= high)]
    )
    near = near[np.isfinite(near)]
    pad = 0.05 * np.ptp(near) or 0.05
    axis.set(**{f"{along}lim": (near.min() - pad, near.max() + pad)})
    far = [f"{name}: {value:.3g}" for name, value in typical.items() if not low <= value <= high]
    if far:
        words = fill(f"beyond the axis: {', '.join(far)}", 60)
        axis.set_title(
            f"{axis.get_title()}\n{words}".strip(), fontsize=8, color="tab:red", parse_math=False
        )


def curves(histories: Mapping[str, pd.DataFrame]) -> Picture:
    """Mean training loss, and validation PSNR or Dice, over steps, one line per run; from ``history.csv`` files.

    A run that ends far from the others does not take their scale: it is named above.
    """
    shown = {"loss": "training loss"} | {
        n: s for n, s in SCORES.items() if any(n in h for h in histories.values())
    }
    figure, axes = _subplots(1, len(shown) if histories else 0, (4.5 * len(shown), 3.2))
    for axis, (column, label) in zip(axes[0], shown.items(), strict=True):
        known = {
            n: h[np.isfinite(h[column])].set_index("step")[column]
            for n, h in histories.items()
            if column in h
        }
        known = {
            n: values for n, values in known.items() if len(values)
        }  # where only a critic moved there is no loss
        for name, values in known.items():
            colour = f"C{list(histories).index(name)}"
            axis.plot(values, color=colour, label=name, marker="." if len(values) == 1 else "")
        axis.set(xlabel="step", ylabel=label)
        if column == "loss" and all(
            (values > 0).all() for values in known.values()
        ):  # a likelihood's may be negative
            axis.set_yscale("log")
        else:
            _limit(axis, "y", known, {name: values.iloc[-1] for name, values in known.items()})
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8)
    return figure


def game(history: pd.DataFrame, movers: list[str]) -> Picture:
    """Adversarial training: who moved at each step, and by how much the critic tells real from generated patches.

    Scores far from the others do not take the scale; the title says from where to where all of them are.
    """
    figure, panels = _subplots(2, 1, (9, 4), sharex=True, height_ratios=(1, 3))
    top, low = panels[:, 0]
    for place, name in enumerate(("critic", "generator")):
        steps = [step for step, mover in enumerate(movers) if mover == name]
        top.plot(steps, [place] * len(steps), "|", markersize=9)
    top.set(yticks=(0, 1), yticklabels=("critic", "generator"), ylim=(-0.6, 1.6), title="who moves")
    gaps = history.set_index("step")[["gap", "val_gap"]]
    low.plot(gaps, label=["training patches", "validation patches"])
    low.axhline(0, color="grey", linewidth=0.8)
    least, most = _near([0, *gaps.to_numpy(float).flat])
    pad = 0.05 * (most - least) or 0.05
    low.set(xlabel="step", ylabel="score of real - generated", ylim=(least - pad, most + pad))
    low.set_title(f"from {gaps.min(axis=None):.3g} to {gaps.max(axis=None):.3g}", fontsize=8)
    low.legend(fontsize=8)
    return figure


def boxes(table: pd.DataFrame, metric: str = "psnr") -> Picture:
    """One panel per degradation, one box per experiment over the subjects, a dot per subject.

    ``table`` as made by ``results.summary``. Experiments far from the others do not take their scale: their median
    stands above.
    """
    table = table.dropna(subset=metric)  # some metrics are not defined for small scans
    tasks = dict([*table.groupby("degradation")])
    tallest = max((task["experiment"].nunique() for task in tasks.values()), default=0)
    figure, axes = _subplots(1, len(tasks), (5.2 * len(tasks), 1.2 + 0.27 * tallest))
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        groups = dict([*task.groupby("experiment")[metric]])
        medians = task.groupby("experiment")[metric].median().sort_values().to_dict()
        finite = [groups[n][np.isfinite(groups[n])] for n in medians]
        axis.boxplot(
            finite,
            tick_labels=list(medians),
            showfliers=False,
            orientation="horizontal",
            widths=0.6,
        )
        for place, values in enumerate(finite, 1):
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=4)
        axis.set(title=name, xlabel=METRICS.get(metric, metric))
        _limit(axis, "x", groups, medians)
    return figure


def heat_map(
    gains: pd.DataFrame,
    missing: Mapping[str, str],
    baseline: pd.Series,
    home: Collection[tuple[str, str]] = (),
    most: float = 6.0,
) -> Picture:
    """Gain in dB of each experiment (rows) under each degradation (columns), blue above 0 and red below.

    Colours end at +-``most`` dB, numbers do not. What was not measured is grey: a row with the reason in ``missing``,
    single cells where the network takes another grid. ``baseline`` is the PSNR that gains are over, by degradation
    (other columns have none); cells in ``home`` (experiment, degradation), what a network was trained for, are framed.
    """
    rows, columns = gains.shape
    figure, ((axis,),) = _subplots(
        1, int(gains.size > 0), (2.3 + 0.72 * columns, 1.5 + 0.28 * rows)
    )
    colours = colormaps["RdBu"].with_extremes(bad="0.9")
    cells = np.ma.masked_invalid(gains.to_numpy(float))
    image = axis.pcolormesh(
        cells, cmap=colours, vmin=-most, vmax=most, edgecolors="white", linewidth=1.5
    )
    middle = {"ha": "center", "va": "center", "fontsize": 7}
    for (row, name), (column, task) in product(enumerate(gains.index), enumerate(gains.columns)):
        value = gains.iloc[row, column]
        text = "other grid" if np.isnan(value) else f"{round(value, 1) + 0:+.1f}"
        colour = "white" if abs(value) > 0.7 * most else "black"
        if gains.iloc[row].notna().any():
            axis.text(column + 0.5, row + 0.5, text, color=colour, **middle)
        elif column == 0:
            axis.text(columns / 2, row + 0.5, missing.get(name, ""), **middle)
        if (name, task) in home:
            axis.add_patch(
                Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, linewidth=2)
            )
    labels = [
        f"{task}\n{baseline[task]:.1f} dB" if task in baseline else task for task in gains.columns
    ]
    axis.xaxis.tick_top()
    axis.set_xticks(
        np.arange(columns) + 0.5, labels, rotation=40, ha="left", rotation_mode="anchor", fontsize=8
    )
    axis.set_yticks(np.arange(rows) + 0.5, gains.index, fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, extend="both", fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("PSNR over the cubic spline's (dB)", fontsize=8)
    return figure


def save_figure(figure: Picture, path: str | Path) -> Picture:
    """Write a figure's ``png``; the figure is returned.

    Raises InputError when the place cannot be written to.
    """
    make_dir(Path(path).parent)
    with atomic(path) as temporary:
        temporary.write_bytes(figure.png())
    return figure
