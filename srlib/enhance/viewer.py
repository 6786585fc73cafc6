"""Two scans beside or over each other in a notebook: three planes through one place of their world, to move in."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from srlib.core.paths import InputError
from srlib.evaluation.views import (
    filled,
    grey,
    letters,
    middle,
    pixel_mm,
    pixels,
    png,
    section,
    upright,
    windows,
)
from srlib.scans.formats import load
from srlib.scans.volume import Volume, axcodes

if TYPE_CHECKING:
    from ipywidgets import VBox


def compare(before: Volume | str | Path, after: Volume | str | Path, size: int = 330) -> "VBox":
    """A widget with axial, coronal and sagittal planes of two scans, each about ``size`` pixels wide on the screen.

    Sliders choose a voxel of ``after`` (its axes turned to R, A and S), through which the planes go; ``before`` is
    shown where it lies in the same world, as voxels or by a cubic spline. ``swipe`` shows it left of a line, ``after``
    right of it. Scans whose units plainly differ have windows of their own, which move together. Raises InputError
    without ipywidgets.
    """
    try:
        import ipywidgets as widgets  # also where srlib runs without a notebook
    except ImportError as err:
        raise InputError(
            "the viewer needs ipywidgets: pip install ipywidgets, then restart the notebook"
        ) from err
    scans = [v if isinstance(v, Volume) else load(v) for v in (before, after)]
    grid, auto = upright(scans[1]), windows(*scans)
    longest, (low, high) = max(np.multiply(grid.shape, grid.spacing_mm)), auto[0]
    span = high - low
    places = [
        widgets.IntSlider(value, 0, n - 1, description=f"to {axis}")
        for value, n, axis in zip(middle(grid), grid.shape, axcodes(grid), strict=True)
    ]
    shown = widgets.ToggleButtons(options=["before", "swipe", "after"], value="swipe")
    swipe = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="swipe", readout=False)
    order = widgets.ToggleButtons(options={"before as voxels": 0, "cubic": 3})
    zoom = widgets.FloatSlider(1, min=1, max=8, step=0.5, description="zoom")
    window = widgets.FloatRangeSlider(
        value=(low, high),
        min=low - 0.5 * span,
        max=high + span,
        step=span / 200,
        description="window",
    )
    images = {axis: widgets.Image(format="png") for axis in filled(grid)}
    where = widgets.HTML()

    @lru_cache(maxsize=12)  # moving one slider leaves most planes as they are
    def sampled(
        which: int, axis: int, voxel: tuple[int, ...], field: float, finer: int, spline: int
    ) -> np.ndarray:
        return section(scans[which], *pixels(grid, axis, voxel, field, finer), spline)

    def picture(which: int, axis: int, *place: object) -> np.ndarray:
        own = auto[which]
        first, last = np.subtract(window.value, low) / span * np.ptp(own) + own[0]
        image = sampled(which, axis, *place, 0 if which else order.value)
        return grey(image, (first, max(last, first + 1e-6 * span)))

    def draw(_: object = None) -> None:
        voxel, field = [place.value for place in places], longest / zoom.value
        finer = max(1, round(size * pixel_mm(grid) / field))
        for axis, image in images.items():
            # of a whole plane only its place along its own axis matters
            about = tuple(v if a == axis or zoom.value > 1 else 0 for a, v in enumerate(voxel))
            shape, affine = pixels(grid, axis, about, field, finer)
            line = {"before": shape[0], "swipe": round(swipe.value * shape[0]), "after": 0}[
                shown.value
            ]
            left, right = (picture(which, axis, about, field, finer) for which in (0, 1))
            both = np.where(np.arange(shape[0]) < line, left, right)
            both[:, line : line + 1 if line else 0] = 255
            column, up, *_ = np.rint(np.linalg.inv(affine) @ grid.affine @ [*voxel, 1]).astype(int)
            tick, row = max(4, max(shape) // 40), shape[1] - 1 - up
            for marks in (
                both[row, :tick],
                both[row, -tick:],
                both[:tick, column],
                both[-tick:, column],
            ):
                marks[:] = 255  # where the other planes cross this one
            image.value = png(both, letters(grid, axis))
            image.layout.width = f"{round(shape[0] * pixel_mm(grid) / finer / field * size)}px"
        where.value = "R {:.1f}, A {:.1f}, S {:.1f} mm".format(*(grid.affine @ [*voxel, 1]))

    controls = [*places, shown, swipe, order, zoom, window]
    for control in controls:
        control.observe(draw, "value")
    draw()
    panels = widgets.HBox(list(images.values()), layout=widgets.Layout(align_items="flex-start"))
    wrapped = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([panels, where, widgets.Box(controls, layout=wrapped)])
