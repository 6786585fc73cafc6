"""Compare two scans in a notebook: three planes through one place, with sliders to move it."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from srlib.core.paths import StrPath, explained
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
from srlib.scans.formats import load_scan
from srlib.scans.volume import Volume, axcodes

if TYPE_CHECKING:
    from ipywidgets import VBox


def compare(before: Volume | StrPath, after: Volume | StrPath, *, size: int = 330) -> "VBox":
    """A widget with axial, coronal and sagittal planes of two scans, each about ``size`` pixels
    wide on the screen.

    Sliders choose the voxel of ``after`` (its axes turned to R, A and S) that the planes go
    through. ``before`` is shown where it lies in the same world, as voxels or by a cubic spline.
    ``swipe`` shows it left of a line, ``after`` right of it. Scans in plainly different units have
    windows of their own, which move together. Raises InputError without ipywidgets.
    """
    restart = "pip install ipywidgets, then restart the notebook"
    with explained("the viewer", "needs ipywidgets", restart):
        import ipywidgets as widgets  # srlib also runs without a notebook
    scans = [v if isinstance(v, Volume) else load_scan(v) for v in (before, after)]
    grid, limits = upright(scans[1]), windows(*scans)
    low, high = limits[0]
    longest, span = max(np.multiply(grid.shape, grid.spacing_mm)), high - low
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

    # moving one slider leaves most planes as they are
    @lru_cache(maxsize=12)
    def sampled(which, order, *plane):
        return section(scans[which], *pixels(grid, *plane), order)

    def picture(which, *plane):
        own = limits[which]
        first, last = np.subtract(window.value, low) / span * np.ptp(own) + own[0]
        image = sampled(which, 0 if which else order.value, *plane)
        return grey(image, (first, max(last, first + 1e-6 * span)))

    def draw(_=None):
        voxel, field = [place.value for place in places], longest / zoom.value
        finer = max(1, round(size * pixel_mm(grid) / field))
        for axis, image in images.items():
            # where a plane is whole, only the place along its axis matters
            about = tuple(v if a == axis or zoom.value > 1 else 0 for a, v in enumerate(voxel))
            plane = axis, about, field, finer
            width = pixels(grid, *plane)[0][0]
            line = {"before": width, "swipe": round(swipe.value * width), "after": 0}[shown.value]
            both = np.where(np.arange(width) < line, picture(0, *plane), picture(1, *plane))
            if line:
                both[:, line : line + 1] = 255
            image.value = png(both, letters(grid, axis))
            image.layout.width = f"{round(width * pixel_mm(grid) / finer / field * size)}px"
        where.value = "R {:.1f}, A {:.1f}, S {:.1f} mm".format(*(grid.affine @ [*voxel, 1]))

    controls = [*places, shown, swipe, order, zoom, window]
    for control in controls:
        control.observe(draw, "value")
    draw()
    panels = widgets.HBox(list(images.values()), layout=widgets.Layout(align_items="flex-start"))
    wrapped = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([panels, where, widgets.Box(controls, layout=wrapped)])
