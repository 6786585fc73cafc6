"""Pictures for notebooks, results and the README: planes of scans, error maps, training curves, box plots."""

from collections.abc import Collection, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srlib.paths import make_dir
from srlib.volume import Volume, reorient

SCORES = {"val_psnr": "validation PSNR (dB, range 1)", "val_dice": "validation Dice"}  # columns of history.csv


def planes(volume: Volume) -> list[np.ndarray]:
    """Axial, coronal and sagittal middle slices, as seen with right on the right and superior up."""
    data = reorient(volume).data
    x, y, z = (n // 2 for n in data.shape)
    return [np.rot90(p) for p in (data[:, :, z], data[:, y], data[x])]


def triplanar(volumes: Mapping[str, Volume], reference: str | None = None, zoom: float = 1.0) -> Figure:
    """One column per scan, one row per plane, one grey scale for all.

    With ``reference``, a name among them, each other scan is followed by a row of its absolute differences.
    ``zoom`` > 1 shows the middle of each slice only.
    """
    sets = {name: [_middle(p, zoom) for p in planes(volume)] for name, volume in volumes.items()}
    top = max(np.percentile(p, 99.8) for p in sets[reference or next(iter(sets))])
    rows = 4 if reference else 3
    figure, axes = plt.subplots(
        rows, len(sets), figsize=(2.6 * len(sets), 2.7 * rows), squeeze=False, layout="constrained"
    )
    for column, (name, slices) in enumerate(sets.items()):
        axes[0, column].set_title(name, fontsize=10)
        spacing = reorient(volumes[name]).spacing_mm
        aspects = (spacing[1] / spacing[0], spacing[2] / spacing[0], spacing[2] / spacing[1])
        for row, (image, aspect) in enumerate(zip(slices, aspects, strict=True)):
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=top, aspect=aspect, interpolation="nearest")
        if reference:
            error = np.abs(slices[0] - sets[reference][0])
            axes[3, column].imshow(error, cmap="magma", vmin=0, vmax=0.2 * top, aspect=aspects[0])
    if reference:
        axes[3, 0].set_ylabel(f"|difference to {reference}|\n0 to 20 % of the scale", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def slices(volumes: Mapping[str, Volume], reference: str, zoom: float = 2.0) -> Figure:
    """The first slice of 2-D images, y downwards: whole, its middle, and its absolute differences to ``reference``."""
    images = {name: volume.data[:, :, 0].T for name, volume in volumes.items()}
    low, high = np.percentile(images[reference], (0.5, 99.5))
    figure, axes = plt.subplots(
        3,
        len(images),
        figsize=(2.6 * len(images), 7.8),
        squeeze=False,
        layout="constrained",
        subplot_kw={"xticks": [], "yticks": []},
    )
    for (name, image), column in zip(images.items(), axes.T, strict=True):
        column[0].set_title(name, fontsize=10)
        spacing = volumes[name].spacing_mm
        error = np.abs(image - images[reference])
        for axis, part in zip(column, (image, _middle(image, zoom), error), strict=True):
            limits = (
                {"cmap": "magma", "vmax": 0.2 * (high - low), "vmin": 0}
                if part is error
                else {"cmap": "gray", "vmin": low, "vmax": high}
            )
            axis.imshow(part, aspect=spacing[1] / spacing[0], interpolation="nearest", **limits)
    axes[2, 0].set_ylabel(f"|difference to {reference}|\n0 to 20 % of the scale", fontsize=8)
    return figure


def _middle(image: np.ndarray, zoom: float) -> np.ndarray:
    low = [int(n * (1 - 1 / zoom) / 2) for n in image.shape]
    return image[low[0] : image.shape[0] - low[0], low[1] : image.shape[1] - low[1]]


def curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean training loss, and validation PSNR or Dice, over steps, one line per run; from ``history.csv`` files."""
    shown = {"loss": "training loss"} | {n: s for n, s in SCORES.items() if any(n in h for h in histories.values())}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 3.2), squeeze=False, layout="constrained")
    for axis, (column, label) in zip(axes[0], shown.items(), strict=True):
        for index, (name, history) in enumerate(histories.items()):
            if column in history:
                known = history.dropna(subset=column)  # steps in which only a critic moved have no loss
                axis.plot(known["step"], known[column], color=f"C{index}", label=name)
        axis.set(xlabel="step", ylabel=label)
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8)
    if all((history["loss"].dropna() > 0).all() for history in histories.values()):  # a likelihood's may be negative
        axes[0, 0].set_yscale("log")
    return figure


def game(history: pd.DataFrame, movers: list[str]) -> Figure:
    """Adversarial training: who moved at each step, and by how much the critic tells real from generated patches."""
    figure, (top, low) = plt.subplots(2, 1, figsize=(9, 4), sharex=True, layout="constrained", height_ratios=(1, 3))
    for place, name in enumerate(("critic", "generator")):
        steps = [step for step, mover in enumerate(movers) if mover == name]
        top.plot(steps, [place] * len(steps), "|", markersize=9)
    top.set(yticks=(0, 1), yticklabels=("critic", "generator"), ylim=(-0.6, 1.6), title="who moves")
    low.plot(history["step"], history["gap"], label="training patches")
    low.plot(history["step"], history["val_gap"], label="validation patches")
    low.axhline(0, color="grey", linewidth=0.8)
    low.set(xlabel="step", ylabel="score of real - generated")
    low.legend(fontsize=8)
    return figure


def boxes(table: pd.DataFrame, metric: str = "psnr") -> Figure:
    """One panel per degradation, one box per experiment over the subjects, a dot per subject.

    ``table`` as made by ``results.summary``.
    """
    tasks = sorted(table["degradation"].unique())
    tallest = table.groupby("degradation")["experiment"].nunique().max()
    size = (5.2 * len(tasks), 1.2 + 0.27 * tallest)
    figure, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        groups = {n: g[metric].to_numpy() for n, g in table[table["degradation"] == task].groupby("experiment")}
        groups = dict(sorted(groups.items(), key=lambda item: np.median(item[1])))
        axis.boxplot(
            list(groups.values()), tick_labels=list(groups), showfliers=False, orientation="horizontal", widths=0.6
        )
        for place, values in enumerate(groups.values(), 1):
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=4)
        axis.set(title=task, xlabel=metric)
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
    figure, axis = plt.subplots(figsize=(2.3 + 0.72 * columns, 1.5 + 0.28 * rows), layout="constrained")
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
    bar.set_label("dB over the cubic spline", fontsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG without dates or versions in it, so that the same picture is the same file."""
    path = Path(path)
    make_dir(path.parent)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    return path
