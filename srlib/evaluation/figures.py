"""Figures for notebooks, results and reports: planes, training curves, intervals, a heat map."""

import copy
import functools
import io
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srlib.core.paths import InputError, StrPath, choose, make_dir, write_file
from srlib.evaluation.views import (
    filled,
    letters,
    middle,
    pixel_mm,
    pixels,
    section,
    upright,
    windows,
)
from srlib.scans.space import same_lattice
from srlib.scans.volume import Volume
from srlib.systems.registry import SYSTEMS

GREYS = colormaps["gray"].with_extremes(bad="darkslateblue")
DIFFERENCES = colormaps["RdBu_r"].with_extremes(bad="0.6")
SCORES = {  # columns of history.csv
    "loss": "training loss",
    "val_psnr": "validation PSNR (dB, range 1)",
    "val_dice": "validation Dice",
}
CENTRED = {"ha": "center", "va": "center"}  # about its place
MOST = 6.0  # dB that the colours of the heat map end at


class Picture(Figure):
    """A figure that a notebook shows. It needs no pyplot, which keeps figures and opens windows."""

    _made = 0.0, b""  # of the last PNG: dots per inch, content

    def png(self, dpi: float = 90) -> bytes:
        """A PNG without dates or versions, so that equal figures are equal bytes.

        A figure that has not changed since is not drawn again.
        """
        if self.stale or self._made[0] != dpi:
            buffer = io.BytesIO()
            self.savefig(buffer, dpi=dpi, metadata={"Software": None})
            self._made, self.stale = (dpi, buffer.getvalue()), False
        return self._made[1]

    _repr_png_ = png


def triplanar(
    volumes: Mapping[str, Volume],
    reference: str | None = None,
    *,
    zooms: Sequence[float] = (1.0,),
    cubic: Collection[str] = (),
    differences: bool = True,
) -> Picture:
    """One column per scan; rows of axial, coronal and sagittal middle planes, once per zoom.

    A single slice has one plane. Right is on the right (neurological convention); letters name the
    directions. Each scan has its own window (``views.window``), written under its name. A
    ``reference``, one of the names, makes the scans versions of one scan: they are cut in its
    planes of the world and shown in its window, and each plane is followed by the difference to it
    (unless ``differences`` is off), all on one symmetric scale. A zoom > 1 shows the middle only.
    Scans named in ``cubic`` are interpolated by cubic splines, others show their voxels. NaN and
    what lies beyond a scan are blue. Raises InputError for no scan, a scan without voxels, and an
    unknown ``reference``.
    """
    truth = None if reference is None else choose(volumes, reference, "scan")
    grids = {name: upright(truth or volume) for name, volume in volumes.items()}
    others = [name for name, v in volumes.items() if differences and truth and v is not truth]
    axes = sorted(set().union(*map(filled, grids.values())), reverse=True)
    rows = list(product(zooms, axes))
    step = 2 if others else 1
    figure, panels = _subplots(step * len(rows), len(volumes), (1, 1))
    for panel in panels.flat:
        panel.set_axis_off()
    for (name, volume), column in zip(volumes.items(), panels.T, strict=True):
        grid, (limits, own) = grids[name], windows(truth or volume, volume)
        note = _range(limits) if reference in (None, name) else ""
        if own != limits:
            note = f"(its own window: {_range(own)})"
        column[0].set_title(f"{_text(name)}\n{note}", fontsize=9, parse_math=False)
        finest, centre = min(map(pixel_mm, volumes.values() if truth else [grid])), middle(grid)
        finer = max(1, round(pixel_mm(grid) / finest))
        longest = max(np.multiply(grid.shape, grid.spacing_mm))
        for place, (zoom, axis) in enumerate(rows):
            if axis in filled(grid):
                field = longest / zoom if zoom > 1 else np.inf
                plane = pixels(grid, axis, centre, field, finer)
                image = section(volume, *plane, 3 if name in cubic else 0)
                _show(column[step * place], image, GREYS, limits, letters(grid, axis))
                if name in others:
                    order = 0 if same_lattice(volume, truth) else 3  # of splines
                    image = section(volume, *plane, order) - section(truth, *plane, order)
                    _show(column[step * place + 1], image, DIFFERENCES, limits)
    if others:
        _one_scale(figure, panels[1::2], f"difference to {_text(reference)}, in its units")
    _fit(figure, panels)
    return figure


def slices(volumes: Mapping[str, Volume], reference: str) -> Picture:
    """The first slice of 2-D images, y downwards, as by ``triplanar``: whole and zoomed."""
    first = {name: v.with_data(v.data[:, :, :1]) for name, v in volumes.items()}
    return triplanar(first, reference, zooms=(1, 2))


def _one_scale(figure, panels, label):
    """Give all differences one symmetric scale and a bar; before, they have the scans' windows.

    Of a scan it takes the percentile 99 of the absolute differences in all planes, at least 1 % of
    the window, so that wild voxels do not count (ours).
    """
    each = []
    for column in panels.T:
        images = [panel.images[0] for panel in column if panel.images]
        if images:
            sizes = np.abs(np.concatenate([image.get_array().compressed() for image in images]))
            least = 0.01 * np.ptp(images[0].get_clim())
            each.append(max(np.percentile(sizes, 99), least) if len(sizes) else least)
    most = np.percentile(each, 50, method="lower")  # not that of one bad scan
    for panel in panels.flat:
        for image in panel.images:
            image.set_clim(-most, most)
            last = image
    bar = figure.colorbar(last, ax=figure.axes, extend="both", shrink=0.5, aspect=40, pad=0.01)
    bar.set_label(label, fontsize=9, parse_math=False)


def _fit(figure, panels):
    """Set the figure's size so that all pictures are equally wide."""
    heights = []
    for row in panels:
        shapes = [panel.images[0].get_array().shape for panel in row if panel.images]
        heights.append(np.clip(max(height / width for height, width in shapes), 0.2, 2))
    panels[0, 0].get_gridspec().set_height_ratios(heights)
    width = 2.6 * panels.shape[1] + (len(figure.axes) > panels.size)
    figure.set_size_inches(width, 2.6 * sum(heights) + 0.5)


def _text(name):
    """A name in lines that fit above a picture, with escapes for undecodable bytes."""
    return fill(name.encode(errors="backslashreplace").decode(), 34)


def _range(limits):
    """The two ends of a window as text."""
    return "{:.5g} to {:.5g}".format(*limits)


def _show(axis, image, colours, limits, directions=()):
    """Show a picture, whatever matplotlib's defaults are, with letters at its four sides."""
    axis.imshow(
        image, colours, clim=limits, aspect="equal", interpolation="nearest", origin="upper"
    )
    box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1}
    places = (0.04, 0.5), (0.96, 0.5), (0.5, 0.96), (0.5, 0.04)
    for letter, place in zip(directions, places, strict=False):
        axis.text(
            *place,
            letter,
            transform=axis.transAxes,
            bbox=box,
            fontsize=8,
            color="white",
            **CENTRED,
        )


def _subplots(rows, columns, size):
    """A figure and its panels (rows, columns); InputError for none."""
    if not rows * columns:
        raise InputError("nothing to show: expected at least one scan, run or measured row")
    figure = Picture(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _near(axis, typical):
    """The groups to show on an axis, by a ``typical`` value of each; it names the others above.

    A group is left out when its value is farther from their median than ten median deviations, and
    when such groups would take more than half of the axis.
    """
    values = pd.Series(typical, dtype=float)
    finite = values[np.isfinite(values)]
    off = (finite - finite.median()).abs()
    near = finite[off <= 10 * off.median()]
    if not 0 < near.max() - near.min() < 0.5 * (finite.max() - finite.min()):
        near = finite
    far = [f"{name}: {value:.3g}" for name, value in values.drop(near.index).items()]
    if far:
        words = fill(f"beyond the axis: {', '.join(far)}", 60)
        title = f"{axis.get_title()}\n{words}".strip()
        axis.set_title(title, fontsize=8, color="tab:red", parse_math=False)
    return [*near.index]


def curves(histories: Mapping[str, pd.DataFrame]) -> Picture:
    """Mean training loss and validation PSNR or Dice over steps, one line per ``history.csv``.

    A run that ends far from the others is named above instead.
    """
    shown = [column for column in SCORES if any(column in h for h in histories.values())]
    figure, axes = _subplots(1, len(shown), (4.5 * len(shown), 3.2))
    for axis, column in zip(axes[0], shown, strict=True):
        known = {}
        for name, history in histories.items():
            values = history.reindex(columns=["step", column]).set_index("step")[column]
            values = values[np.isfinite(values)]
            if len(values):  # there is no loss where only a critic moved
                known[name] = values
        axis.set(xlabel="step", ylabel=SCORES[column])
        near = known
        if column == "loss" and all(values.min() > 0 for values in known.values()):
            axis.set_yscale("log")
        else:  # a likelihood may be negative
            near = _near(axis, {name: values.iloc[-1] for name, values in known.items()})
        for place, name in enumerate(histories):
            if name in near:
                marker = "." if len(known[name]) == 1 else ""
                axis.plot(known[name], color=f"C{place}", label=name, marker=marker)
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8)
    return figure


def game(history: pd.DataFrame, movers: Sequence[str]) -> Picture:
    """The critic's score of real - generated over steps, with a tick at each generator step.

    ``history`` is a ``history.csv``; ``movers`` names who moves at each step. The axis of scores is
    linear from -1 to 1 and logarithmic beyond.
    """
    figure, ((axis,),) = _subplots(1, 1, (9, 3.5))
    gaps = history.set_index("step")[["gap", "val_gap"]]
    axis.plot(gaps, label=["training patches", "validation patches"])
    axis.axhline(0, color="grey", linewidth=0.8)
    steps = [step for step, mover in enumerate(movers) if mover != "critic"]
    axis.plot(steps, [0] * len(steps), "k|", label="generator moves")
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xlabel="step", ylabel="score of real - generated")
    axis.legend(fontsize=8)
    return figure


def heat_map(
    gains: pd.DataFrame, *, baseline: pd.Series, home: Collection[tuple[str, str]]
) -> Picture:
    """Gain in dB of each experiment (rows) under each degradation (columns): blue > 0, red < 0.

    Colours end at ±``MOST`` dB, numbers do not. A grey cell has no value: the network takes another
    grid; experiments without any value are left out. ``baseline`` is the PSNR (dB) that
    gains are over, by degradation; other columns have none. Cells in ``home`` (experiment,
    degradation), which a network was trained for, are framed.
    """
    gains = gains.dropna(how="all")
    rows, columns = gains.shape
    size = 2.3 + 0.72 * columns, 1.5 + 0.28 * rows
    figure, ((axis,),) = _subplots(1, int(gains.size > 0), size)
    colours = colormaps["RdBu"].with_extremes(bad="0.9")
    cells = gains.to_numpy(float)
    image = axis.imshow(cells, colours, clim=(-MOST, MOST), aspect="auto", origin="upper")
    for (row, name), (column, task) in product(enumerate(gains.index), enumerate(gains)):
        value = gains.iloc[row, column]
        text = "other grid" if np.isnan(value) else f"{round(value, 1) + 0:+.1f}"
        colour = "white" if abs(value) > 0.7 * MOST else "black"
        axis.text(column, row, text, color=colour, fontsize=7, **CENTRED)
        if (name, task) in home:
            corner = column - 0.46, row - 0.44
            axis.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, linewidth=2))
    labels = [f"{t}\n{baseline[t]:.1f} dB" if t in baseline else t for t in gains.columns]
    axis.xaxis.tick_top()
    axis.set_xticks(
        range(columns), labels, fontsize=8, rotation=40, ha="left", rotation_mode="anchor"
    )
    axis.set_yticks(range(rows), gains.index, fontsize=8)
    _by_paper(axis)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, extend="both", fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("PSNR over the cubic spline's (dB)", fontsize=8)
    return figure


def _by_paper(axis):
    """Give the name of a row that begins with an experiment the colour of its system."""
    colours = {e.name: f"C{n}" for n, m in enumerate(SYSTEMS.values()) for e in m.EXPERIMENTS}
    for label in axis.get_yticklabels():
        label.set_color(colours.get(label.get_text().partition(",")[0], "black"))


def intervals(rows: pd.DataFrame, label: str, *, linear: float = 0.1) -> Picture:
    """Dots on their intervals, a row each, named by the index; the axis bears the ``label``.

    Columns: ``low``, ``high``, ``value``, and ``good``: True is blue, False red, None grey. The axis
    is ``linear`` up to that value and logarithmic beyond.
    """
    figure, ((axis,),) = _subplots(1, int(len(rows) > 0), (9, 1 + 0.18 * len(rows)))
    places = range(len(rows))
    colours = [{True: "tab:blue", False: "tab:red"}.get(good, "0.4") for good in rows["good"]]
    axis.hlines(places, rows["low"], rows["high"], color="0.8", linewidth=6)
    axis.scatter(rows["value"], places, c=colours, s=12, zorder=3)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=linear, subs=(2, 5))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params("x", which="both", labelsize=7, rotation=45)
    axis.set_yticks(places, rows.index, fontsize=6)
    _by_paper(axis)
    axis.set(xlabel=label)
    return figure


def architecture(network: Any, shape: Sequence[int]) -> Picture:
    """The convolutions of a network (torch module), for an input (C, X, Y[, Z]), left to right.

    A box is a convolution, with its kernel and its feature maps, at the height of its grid. A bent
    line is a sum or a concatenation: what was there goes around the boxes under it. All is read
    from what PyTorch records for gradients, so it is what is computed. Matrix products have no box.
    """
    given = next(network.parameters()).new_zeros((1, *shape)).requires_grad_()
    output = copy.deepcopy(network).requires_grad_(False)(given)
    figure, ((axis,),) = _subplots(1, 1, (13, 4))

    @functools.cache
    def place(step):
        """The number of convolutions before a step's result, and the first axis of its grid."""
        before = {place(source) for source, _ in step.next_functions if source}
        here, joins = max(before, default=(-1, 0)), "Conv" not in step.name()
        if not (joins and before):
            _, maps, *grid = step._input_metadata[0].shape
            here = here[0] + 1, grid[0]
            kernel = "×".join(map(str, step._saved_weight.shape[2:])) if before else "input"
            text = f"{kernel}\n{maps}"
            axis.text(*here, text, **CENTRED, size=7, bbox={"fc": "w"}, zorder=4)
            axis.semilogy(*here, base=2)
        for start in before - {here}:
            bend = f"arc3,rad={-joins * (here[0] - start[0]) ** -0.65}"
            axis.annotate("", here, start, arrowprops={"arrowstyle": "-", "connectionstyle": bend})
        return here

    place(output.grad_fn)
    axis.yaxis.set_major_formatter("{x:.0f}")
    count = f"{sum(weights.numel() for weights in network.parameters()):,} parameters"
    axis.set(xticks=[], ylabel="voxels along the first axis", title=count)
    axis.margins(0.03, 0.5)
    return figure


def save_figure(figure: Picture, path: StrPath) -> Picture:
    """Write a figure's ``png`` and return the figure.

    Raises InputError when the place cannot be written to.
    """
    make_dir(Path(path).parent)
    write_file(path, figure.png())
    return figure
