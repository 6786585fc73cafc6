"""Two scans beside or over each other in a notebook: three planes through one place of their world, to move in."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from srlib.images import load
from srlib.paths import InputError
from srlib.views import filled, grey, middle, pixel_mm, pixels, png, section, upright, windows
from srlib.volume import Volume, axcodes

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
        raise InputError("the viewer needs ipywidgets: pip install ipywidgets, then restart the notebook") from err
    scans = [v if isinstance(v, Volume) else load(v) for v in (before, after)]
    grid, auto = upright(scans[1]), windows(*scans)
    longest, span = max(np.multiply(grid.shape, grid.spacing_mm)), auto[0][1] - auto[0][0]
    wide = widgets.Layout(width="330px")
    places = [
        widgets.IntSlider(value, 0, n - 1, description=f"to {axis}", layout=wide)
        for value, n, axis in zip(middle(grid), grid.shape, axcodes(grid), strict=True)
    ]
    shown = widgets.ToggleButtons(options=["before", "swipe", "after"], value="swipe", style={"button_width": "80px"})
    swipe = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="swipe", readout=False, layout=wide)
    order = widgets.ToggleButtons(options={"voxels": 0, "cubic": 3}, style={"button_width": "80px"})
    zoom = widgets.FloatSlider(1, min=1, max=8, step=0.5, description="zoom", layout=wide)
    limits = widgets.FloatRangeSlider(
        value=auto[0], min=auto[0][0] - 0.5 * span, max=auto[0][1] + span, step=span / 200, description="window",
        readout_format=".4g", layout=wide,
    )  # fmt: skip
    images = {axis: widgets.Image(format="png") for axis in filled(grid).values()}
    where = widgets.HTML()

    @lru_cache(maxsize=12)  # moving one slider leaves most planes as they are
    def sampled(which: int, axis: int, voxel: tuple[int, ...], field: float, finer: int, spline: int) -> np.ndarray:
        plane = pixels(grid, axis, voxel, field, 1 if spline else finer)
        image = section(scans[which], *plane, spline, auto[which][0])
        return image.repeat(finer, 0).repeat(finer, 1) if spline else image

    def picture(which: int, axis: int, voxel: tuple[int, ...], field: float, finer: int) -> np.ndarray:
        low, high = ((v - auto[0][0]) / span * (auto[which][1] - auto[which][0]) + auto[which][0] for v in limits.value)
        image = sampled(which, axis, voxel, field, finer, 0 if which else order.value)
        return grey(image, (low, max(high, low + 1e-6 * span)))

    def draw(_: object = None) -> None:
        voxel, field = tuple(p.value for p in places), longest / zoom.value
        finer = max(1, round(size * pixel_mm(grid) / field))
        for axis, image in images.items():
            # of a whole plane only its place along its own axis matters
            about = voxel if zoom.value > 1 else tuple(v if a == axis else 0 for a, v in enumerate(voxel))
            shape, affine = pixels(grid, axis, about, field, finer)
            line = {"before": shape[0], "swipe": round(swipe.value * shape[0]), "after": 0}[shown.value]
            parts = [
                picture(which, axis, about, field, finer)[:, side]
                for which, side in enumerate((slice(line), slice(line, None)))
            ]
            both = np.concatenate(parts, 1)
            column, up = np.rint((np.linalg.inv(affine) @ grid.affine @ [*voxel, 1])[:2]).astype(int)
            _mark(both, shape[1] - 1 - up, column, line)
            image.value = png(both, grid, axis, level=1)
            image.layout.width = f"{round(shape[0] * pixel_mm(grid) / finer / field * size)}px"
        r, a, s = (grid.affine @ [*voxel, 1])[:3]
        where.value = f"R {r:.1f}, A {a:.1f}, S {s:.1f} mm"

    for control in (*places, shown, swipe, order, zoom, limits):
        control.observe(draw, "value")
    draw()
    left = widgets.VBox([*places, where])
    right = widgets.VBox(
        [widgets.HBox([shown, swipe]), widgets.HBox([widgets.Label("before as"), order]), zoom, limits]
    )
    panels = widgets.HBox(list(images.values()), layout=widgets.Layout(align_items="flex-start"))
    return widgets.VBox([panels, widgets.HBox([left, right])])


def _mark(picture: np.ndarray, row: int, column: int, line: int) -> None:
    """Ticks at the picture's edges where the other planes cross it, and the line between two scans."""
    tick = max(4, max(picture.shape) // 40)
    picture[row, :tick] = picture[row, -tick:] = picture[:tick, column] = picture[-tick:, column] = 255
    if 0 < line < picture.shape[1]:
        picture[:, line] = 255
