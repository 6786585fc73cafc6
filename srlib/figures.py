"""Pictures for notebooks, results and the README: planes of scans, difference maps, training curves, box plots.

A notebook shows a figure that a cell returns or displays; pyplot keeps none.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from srlib.paths import InputError, atomic, choose, make_dir
from srlib.views import PLANES, difference, extent, filled, letters, pixel_mm, pixels, section, upright, windows
from srlib.volume import Volume

GREYS = plt.get_cmap("gray").with_extremes(bad="darkslateblue")
DIFFERENCES = plt.get_cmap("RdBu_r").with_extremes(bad="0.6")
SCORES = {"val_psnr": "validation PSNR (dB, range 1)", "val_dice": "validation Dice"}  # columns of history.csv
METRICS = {
    "psnr": "PSNR (dB)\ndata range = maximum - minimum of the truth",
    "ssim3d": "SSIM (7³ uniform windows)",
    "sharpness": "gradient energy over the truth's",
}


def triplanar(volumes: Mapping[str, Volume], reference: str | None = None, zoom: float = 1.0) -> Figure:
    """One column per scan; axial, coronal and sagittal middle slices, a row each, or the one plane of single slices.

    Right is on the right (neurological convention), as the letters say. Each scan has the window that stands under its
    name (``views.window``). ``reference``, a name among them, makes all of them versions of one scan: they are cut in
    its planes of the world and shown in its window, and each plane is followed by their differences to it, all on one
    symmetric scale. ``zoom`` > 1 shows the middle of each slice only. NaN and what lies beyond a scan are blue.
    """
    return _compared(volumes, reference, (zoom,))


def slices(volumes: Mapping[str, Volume], reference: str, zoom: float = 2.0) -> Figure:
    """The first slice of 2-D images, y downwards, as ``triplanar`` shows scans: whole, then its middle."""
    return _compared({name: v.with_data(v.data[:, :, :1]) for name, v in volumes.items()}, reference, (1.0, zoom))


def _compared(volumes: Mapping[str, Volume], reference: str | None, zooms: Sequence[float]) -> Figure:
    truth = None if reference is None else choose(volumes, reference, "scan")
    grids = {name: upright(truth or volume) for name, volume in volumes.items()}
    axes_of = {name: filled(grid).values() for name, grid in grids.items()}
    rows = [(zoom, a) for zoom in zooms for a in PLANES.values() if any(a in axes for axes in axes_of.values())]
    images, errors = {}, {}
    for (row, (zoom, axis)), (name, grid) in product(enumerate(rows), grids.items()):
        if axis not in axes_of[name]:
            continue
        field = np.inf if zoom <= 1 else max(np.multiply(grid.shape, grid.spacing_mm)) / zoom
        finer = max(1, round(pixel_mm(grid) / pixel_mm(volumes[name])))
        plane = pixels(grid, axis, [n // 2 for n in grid.shape], field, finer)
        images[row, name] = section(volumes[name], *plane, outside=np.nan)
        if truth is not None and name != reference:
            errors[row, name] = difference(volumes[name], truth, *plane)
    tall = [max(i.shape[0] / i.shape[1] for (r, _), i in images.items() if r == row) for row in range(len(rows))]
    heights = np.clip(np.repeat(tall, 2 if errors else 1), 0.2, 2)
    size = 2.6 * len(volumes) + bool(errors), 2.6 * heights.sum() + 0.5
    figure, panels = _subplots(len(heights), len(volumes), size, height_ratios=heights)
    for axis in panels.flat:
        axis.set_axis_off()
    for column, (name, volume) in enumerate(volumes.items()):
        (low, high), own = windows(truth or volume, volume)
        note = _range(low, high) if name == reference or truth is None else ""
        note = note if own == (low, high) else f"(its own window: {_range(*own)})"
        panels[0, column].set_title(f"{_text(name)}\n{note}", fontsize=9, parse_math=False)
        for row, (_, across) in enumerate(rows):
            if (row, name) in images:
                axis = panels[2 * row if errors else row, column]
                _show(axis, images[row, name], GREYS, low, high, letters(grids[name], across))
    if errors:
        each = [[e for (_, n), e in errors.items() if n == name] for name in volumes if name != reference]
        most = np.percentile([extent(e, (low, high)) for e in each], 50, method="lower")  # not that of one bad scan
        for (row, name), error in errors.items():
            shown = _show(panels[2 * row + 1, list(volumes).index(name)], error, DIFFERENCES, -most, most)
        bar = figure.colorbar(shown, ax=panels, extend="both", shrink=0.5, aspect=40, pad=0.01)
        bar.set_label(f"difference to {_text(reference)}, in its units", fontsize=9, parse_math=False)
    return figure


def _text(name: str) -> str:
    """A name in lines that fit above a picture; of a file's, what is not text is spelt out."""
    return fill(name.encode(errors="backslashreplace").decode(), 34)


def _range(low: float, high: float) -> str:
    """Two numbers, to about a thousandth of their distance."""
    digits = 3 - int(np.floor(np.log10(high - low)))
    return f"{round(low, digits) + 0:g} to {round(high, digits) + 0:g}"


def _show(
    axis: plt.Axes, image: np.ndarray, colours: Colormap, low: float, high: float, directions: Sequence[str] = ()
) -> AxesImage:
    """A picture, whatever the host's defaults are, with its directions to the left, right, top and bottom."""
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[])
    box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1}
    for letter, (x, y) in zip(directions, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=False):
        axis.text(x, y, letter, ha="center", va="center", transform=axis.transAxes, fontsize=8, color="white", bbox=box)
    return axis.imshow(image, colours, vmin=low, vmax=high, aspect="equal", interpolation="nearest", origin="upper")


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: object) -> tuple[Figure, np.ndarray]:
    """A figure that pyplot does not keep, and its panels (rows, columns); InputError for none."""
    if not rows * columns:
        raise InputError("there is nothing to show: no scan, no run, no measured row")
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    plt.close(figure)
    return figure, panels


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest of the values, without those far off where these would take more than half of an axis.

    Far is farther than ten median deviations from the median.
    """
    values = np.asarray(values, float)[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    off = np.abs(values - np.median(values))
    near = values[off <= 10 * np.median(off)]
    near = near if np.ptp(near) < 0.5 * np.ptp(values) and np.ptp(near) else values
    return near.min(), near.max()


def _limit(axis: plt.Axes, near: Sequence[float], far: Sequence[str]) -> None:
    """An axis upwards for the values that are ``near``; what was left out is told above."""
    if len(near):
        pad = 0.05 * np.ptp(near) or 0.05 * abs(near[0]) or 0.05
        axis.set_ylim(min(near) - pad, max(near) + pad)
    if far:
        axis.set_title(f"beyond the axis: {', '.join(far)}", fontsize=8, color="tab:red", parse_math=False)


def curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean training loss, and validation PSNR or Dice, over steps, one line per run; from ``history.csv`` files.

    A run that ends far from the others does not take their scale: it is named above.
    """
    shown = {"loss": "training loss"} | {n: s for n, s in SCORES.items() if any(n in h for h in histories.values())}
    figure, axes = _subplots(1, len(shown) if histories else 0, (4.5 * len(shown), 3.2))
    for axis, (column, label) in zip(axes[0], shown.items(), strict=True):
        known = {n: h[np.isfinite(h[column])] for n, h in histories.items() if column in h}
        known = {n: h for n, h in known.items() if len(h)}  # steps in which only a critic moved have no loss
        for name, history in known.items():
            dot, colour = "." if len(history) == 1 else "", f"C{list(histories).index(name)}"
            axis.plot(history["step"], history[column], color=colour, label=name, marker=dot)
        axis.set(xlabel="step", ylabel=label)
        if column == "loss" and all((h[column] > 0).all() for h in known.values()):  # a likelihood's may be negative
            axis.set_yscale("log")
            continue
        ends = {name: history[column].iloc[-1] for name, history in known.items()}
        low, high = _spread(list(ends.values()))
        near = [h[column] for n, h in known.items() if low <= ends[n] <= high]
        far = [f"{n}: {end:.3g}" for n, end in ends.items() if not low <= end <= high]
        _limit(axis, np.concatenate([[], *near]), far)
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8)
    return figure


def game(history: pd.DataFrame, movers: list[str]) -> Figure:
    """Adversarial training: who moved at each step, and by how much the critic tells real from generated patches."""
    figure, panels = _subplots(2, 1, (9, 4), sharex=True, height_ratios=(1, 3))
    top, low = panels[:, 0]
    for place, name in enumerate(("critic", "generator")):
        steps = [step for step, mover in enumerate(movers) if mover == name]
        top.plot(steps, [place] * len(steps), "|", markersize=9)
    top.set(yticks=(0, 1), yticklabels=("critic", "generator"), ylim=(-0.6, 1.6), title="who moves")
    low.plot(history["step"], history["gap"], label="training patches")
    low.plot(history["step"], history["val_gap"], label="validation patches")
    low.axhline(0, color="grey", linewidth=0.8)
    low.set(xlabel="step", ylabel="score of real - generated")
    low.legend(fontsize=8)
    gaps = history[["gap", "val_gap"]].to_numpy(float)
    gaps = gaps[~np.isnan(gaps)]
    least, most = _spread(gaps)
    near = (gaps >= least) & (gaps <= most)
    far = [f"{len(gaps[~near])} scores, {gaps[~near].min():.3g} to {gaps[~near].max():.3g}"] if not near.all() else []
    _limit(low, [0, *gaps[near]], far)
    return figure


def boxes(table: pd.DataFrame, metric: str = "psnr") -> Figure:
    """One panel per degradation, one box per experiment over the subjects, a dot per subject.

    ``table`` as made by ``results.summary``. Experiments far from the others do not take their scale: they stand at
    the edge, with a red arrow and their median.
    """
    table = table.dropna(subset=metric)  # some metrics are not defined for small scans
    tasks = sorted(table["degradation"].unique())
    tallest = table.groupby("degradation")["experiment"].nunique().max() if tasks else 0
    figure, axes = _subplots(1, len(tasks), (5.2 * len(tasks), 1.2 + 0.27 * tallest))
    for axis, task in zip(axes[0], tasks, strict=True):
        groups = {n: g[metric].to_numpy() for n, g in table[table["degradation"] == task].groupby("experiment")}
        groups = dict(sorted(groups.items(), key=lambda item: np.median(item[1])))
        low, high = _spread(np.concatenate(list(groups.values())))
        edges = low - 0.15 * (high - low), high + 0.15 * (high - low)
        near = [np.clip(values, *edges) for values in groups.values()]
        axis.boxplot(near, tick_labels=list(groups), showfliers=False, orientation="horizontal", widths=0.6)
        for place, (values, at) in enumerate(zip(groups.values(), near, strict=True), 1):
            axis.plot(at, [place] * len(at), "o", color="tab:blue", alpha=0.6, markersize=4)
            if (far := values != at).any():
                beyond, below = np.median(values[far]), values[far][0] < low
                words, side = (f"◂ {beyond:.3g}", "left") if below else (f"{beyond:.3g} ▸", "right")
                axis.text(at[far][0], place + 0.1, words, color="tab:red", ha=side, va="bottom", fontsize=8)
        axis.set(title=task, xlabel=METRICS.get(metric, metric))
    return figure


def heat_map(
    gains: pd.DataFrame,
    missing: Mapping[str, str],
    baseline: pd.Series,
    home: Collection[tuple[str, str]] = (),
    most: float = 6.0,
) -> Figure:
    """Gain in dB of each experiment (rows) under each degradation (columns), blue above 0 and red below.

    Colours end at +-``most`` dB, numbers do not. What was not measured is grey: a row with the reason in ``missing``,
    single cells where the network takes another grid. ``baseline`` is the PSNR that gains are over, by degradation
    (other columns have none); cells in ``home`` (experiment, degradation), what a network was trained for, are framed.
    """
    rows, columns = gains.shape
    figure, ((axis,),) = _subplots(1, int(gains.size > 0), (2.3 + 0.72 * columns, 1.5 + 0.28 * rows))
    colours = plt.get_cmap("RdBu").with_extremes(bad="0.9")
    image = axis.imshow(np.ma.masked_invalid(gains.to_numpy(float)), cmap=colours, vmin=-most, vmax=most, aspect="auto")
    for row, (name, values) in enumerate(gains.iterrows()):
        if values.isna().all():
            axis.text((columns - 1) / 2, row, missing.get(name, ""), ha="center", va="center", fontsize=8, color="0.4")
            continue
        for column, (task, value) in enumerate(values.items()):
            text, colour = (f"{round(value, 1) + 0:+.1f}", "black") if pd.notna(value) else ("other grid", "0.4")
            colour = "white" if abs(value) > 0.7 * most else colour
            size = 8 if pd.notna(value) else 6
            axis.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
            if (name, task) in home:
                axis.add_patch(plt.Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, linewidth=2))
    labels = [f"{task}\n{baseline[task]:.1f} dB" if task in baseline else task for task in gains.columns]
    axis.xaxis.tick_top()
    axis.set_xticks(range(columns), labels, rotation=40, ha="left", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(rows), gains.index, fontsize=8)
    axis.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, extend="both", fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("PSNR over the cubic spline's (dB)", fontsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a PNG without dates or versions in it, so that the same picture is the same file; the figure is returned.

    Raises InputError when the place cannot be written to.
    """
    make_dir(Path(path).parent)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})
    return figure
