"""One page per enhanced scan, to be judged by eye: planes before and after, power spectra, facts and warnings."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from srlib.checks import findings, header, wild
from srlib.paths import atomic
from srlib.views import (
    difference,
    extent,
    filled,
    grey,
    middle,
    pixel_mm,
    pixels,
    png,
    same_grid,
    section,
    upright,
    window,
    windows,
)
from srlib.volume import Volume, axcodes, reorient

WIDE = 400  # pixels that a picture has at least; voxels are repeated for it
CLOSE = 0.28  # share of the longest field of view that a detail shows
LINES = 4096  # of a scan that a spectrum is the mean of
AXES = ("left to right", "posterior to anterior", "inferior to superior")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}
th,td{text-align:left;padding:.25em 1.2em .25em 0;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
.row{display:grid;gap:6px;margin-bottom:6px;align-items:center}figure{margin:0;background:#000}
figcaption{background:#fff;font-size:.85em;color:#555}img{width:100%;display:block;image-rendering:auto}
.plot{max-width:1000px}.bar span{display:inline-block;width:16em;height:.8em;margin:0 .5em;border:1px solid #888}
.warn{background:#fff4d6;border-left:4px solid #e0a100;padding:.5em 1em}
"""


def write_report(
    before: Volume,
    after: Volume,
    path: str | Path,
    title: str,
    lines: Sequence[str] = (),
    warnings: Sequence[str] | None = None,
    uncertainty: Volume | None = None,
) -> Path:
    """Write one HTML page, atomically; pictures are in it, nothing is loaded from elsewhere and no script runs.

    ``before`` and ``after`` lie anywhere in one world; planes are those of the axes of ``after`` through the middle of
    its foreground, right on the right (neurological convention). Where both scans have one window the planes' difference
    is shown, too. ``lines`` say what was done, ``warnings`` what to mind (None: what ``checks`` finds). The same input
    gives the same bytes. Raises InputError when the place cannot be written to.
    """
    if warnings is None:
        warnings = [*([] if 1 in before.shape else header(before)), *wild(before), *findings(before, after)]
    limits = windows(before, after)
    units = "One window" if limits[0] == limits[1] else "Each in a window of its own, as their units differ"
    scans = {"before": before, "after": after} | ({} if uncertainty is None else {"uncertainty": uncertainty})
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    body += [f'<p class="warn">{escape(line)}</p>' for line in warnings] or ["<p>No warnings.</p>"]
    body += ["<h2>Facts</h2>", _facts(scans)]
    whole, close = _pictures(before, after, limits)
    body += [f"<h2>Through the middle</h2><p>{units}. The square is the detail below.</p>", *whole]
    if limits[0] == limits[1]:
        body += ["<h2>Difference</h2>", *_difference(before, after, limits[0])]
    body += ["<h2>Details</h2><p>The most structured part of each plane.</p>", *close]
    body += ["<h2>Power spectra</h2>", *_spectra(before, after)]
    if uncertainty is not None:
        body += ["<h2>Uncertainty</h2>", *_uncertainty(uncertainty, after)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    with atomic(path) as temporary:
        page = f"<!DOCTYPE html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
        temporary.write_text(page, "utf-8", "backslashreplace")  # names of files need not be text
    return Path(path)


def _figure(content: bytes, caption: str = "") -> str:
    source = base64.b64encode(content).decode()
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{text}<img alt="{escape(caption)}" src="data:image/png;base64,{source}"></figure>'


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row" style="grid-template-columns:repeat({len(figures)},1fr)">{"".join(figures)}</div>'


def _facts(scans: dict[str, Volume]) -> str:
    names = ("", "voxels", "spacing (mm)", "field of view (mm)", "axes", "intensities", "99th percentile")
    table = "".join(f"<th>{name}</th>" for name in names)
    for name, scan in scans.items():
        field = np.multiply(scan.shape, scan.spacing_mm)
        sizes = (" × ".join(f"{v:.4g}" for v in values) for values in (scan.shape, scan.spacing_mm, field))
        low, high = float(np.nanmin(scan.data)), float(np.nanmax(scan.data))
        low = low if abs(low) > 1e-6 * high else 0.0  # what interpolation leaves of zeros
        most = np.nanpercentile(scan.data[tuple(slice(None, None, max(1, n // 128)) for n in scan.shape)], 99)
        cells = (name, *sizes, axcodes(scan), f"{low:.4g} to {high:.4g}", f"{most:.4g}")
        table += f"</tr><tr>{''.join(f'<td>{cell}</td>' for cell in cells)}"
    return f"<table><tr>{table}</tr></table>"


def _pictures(before: Volume, after: Volume, limits: Sequence[tuple[float, float]]) -> tuple[list[str], list[str]]:
    """A row of pictures per plane: the whole, and the detail with the most structure."""
    grid = upright(after)
    centre, longest = middle(grid), max(np.multiply(grid.shape, grid.spacing_mm))
    whole, close = [], []
    for name, axis in filled(grid).items():
        shape, affine = pixels(grid, axis, centre)
        size = max(8, int(CLOSE * longest / pixel_mm(grid)))
        row, column = _busiest(np.clip(section(after, shape, affine, 0, limits[1][0]), *limits[1]), size)
        voxel = (np.linalg.inv(grid.affine) @ affine @ [column, shape[1] - 1 - row, 0, 1])[:3]
        for rows, place, field in ((whole, centre, np.inf), (close, voxel, CLOSE * longest)):
            images = _compared(before, after, limits, grid, axis, place, field)
            if rows is whole:
                scale = max(next(iter(images.values())).shape) / max(shape)
                for image in images.values():
                    _frame(image, row * scale, column * scale, size * scale)
            rows.append(_row([_figure(png(i, grid, axis), f"{name}, {text}") for text, i in images.items()]))
    return whole, close


def _compared(
    before: Volume, after: Volume, limits: Sequence, grid: Volume, axis: int, voxel: Sequence[float], field: float
) -> dict[str, np.ndarray]:
    shape, affine = pixels(grid, axis, voxel, field)
    finer = max(1, round(WIDE / max(shape)))
    sharp = pixels(grid, axis, voxel, field, finer)
    images = {"before: its voxels": grey(section(before, *sharp, 0, limits[0][0]), limits[0])}
    if not same_grid(before, after):
        cubic = grey(section(before, shape, affine, 3, limits[0][0]), limits[0])
        images["before: cubic interpolation"] = cubic.repeat(finer, 0).repeat(finer, 1)
    return images | {"after": grey(section(after, *sharp, 0, limits[1][0]), limits[1])}


def _busiest(image: np.ndarray, size: int) -> tuple[int, int]:
    """Row and column in the middle of the square of ``size`` pixels with the largest mean gradient."""
    steps = sum(np.abs(np.gradient(image, axis=axis)) for axis in (0, 1) if image.shape[axis] > 1)
    energy = ndimage.uniform_filter(steps, size, mode="constant")
    return tuple(int(i) for i in np.unravel_index(energy.argmax(), energy.shape))


def _frame(image: np.ndarray, row: float, column: float, size: float) -> None:
    """Draw a square about a pixel into a picture, moved to lie in it."""
    (top, low), (left, right) = (
        (int(max(min(p - size / 2, n - 1 - size), 0)), int(min(max(p + size / 2, size), n - 1)))
        for p, n in zip((row, column), image.shape, strict=True)
    )
    image[[top, low], left : right + 1] = 160
    image[top : low + 1, [left, right]] = 160


def spectrum(volume: Volume, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density along a voxel axis, the mean over lines: (cycles/mm, mm); it integrates to 1.

    Lines less their mean, under a Hann window.
    """
    lines = np.moveaxis(volume.data, axis, 2)
    every = int(np.ceil(np.sqrt(lines.shape[0] * lines.shape[1] / LINES)))
    lines = lines[::every, ::every].astype(np.float64)
    lines -= lines.mean(2, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(lines * np.hanning(lines.shape[2])))).mean((0, 1))
    frequencies = np.fft.rfftfreq(lines.shape[2], volume.spacing_mm[axis])
    return frequencies, power / (power.sum() * frequencies[1] or 1.0)


def _spectra(before: Volume, after: Volume) -> list[str]:
    scans = {"before": reorient(before), "after": reorient(after)}
    axes = [a for a in range(3) if min(scan.shape[a] for scan in scans.values()) >= 8]
    if not axes:
        return ["<p>Too few voxels.</p>"]
    figure, added = Figure((3.8 * len(axes), 3.1), layout="constrained"), []
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        nyquist, top = 0.5 / scans["before"].spacing_mm[axis], 0.0
        for name, scan in scans.items():
            frequencies, density = spectrum(scan, axis)
            panel.semilogy(frequencies[1:], np.maximum(density[1:], 1e-12), label=name, linewidth=1.2)
            top = max(top, density.max())
        if frequencies[-1] > 1.01 * nyquist:
            beyond = density[frequencies > nyquist].sum() / (density.sum() or 1.0)
            added.append(f"{AXES[axis]} {100 * beyond:.2g} %")
        panel.axvline(nyquist, color="grey", linestyle="--", linewidth=1)
        panel.set(title=AXES[axis], xlabel="cycles/mm", ylim=((top or 1) * 1e-8, (top or 1) * 3), xlim=(0, None))
    panels[0].set_ylabel("power density (mm)")
    panels[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    text = "Each scan's share of its own variance. Dashed: the Nyquist frequency of the input."
    if added:
        text += (
            f" What lies beyond it was not measured, it is the model's estimate: {', '.join(added)} of the variance."
        )
    return [f"<p>{text}</p>", f'<div class="plot">{_figure(buffer.getvalue())}</div>']


def _maps(
    images: dict[str, np.ndarray], grid: Volume, what: str, colours: str, limits: tuple[float, float]
) -> list[str]:
    """A row of coloured planes, and the bar of their colours."""
    table = matplotlib.colormaps[colours]
    row = [
        _figure(png(np.uint8(255 * table(grey(image, limits))[..., :3]), grid, filled(grid)[name]), f"{name}, {what}")
        for name, image in images.items()
    ]
    stops = ",".join(matplotlib.colors.to_hex(colour) for colour in table(np.linspace(0, 1, 17)))
    bar = f'<span style="background:linear-gradient(to right,{stops})"></span>'
    return [f'<p class="bar">{limits[0]:.4g}{bar}{limits[1]:.4g}, in the units of the scan after</p>', _row(row)]


def _sharp(grid: Volume, axis: int, voxel: Sequence[float], field: float = np.inf) -> tuple[tuple, np.ndarray]:
    """The pixels of a plane, so much finer that the picture is about ``WIDE``."""
    shape, _ = pixels(grid, axis, voxel, field)
    return pixels(grid, axis, voxel, field, max(1, round(WIDE / max(shape))))


def _difference(before: Volume, after: Volume, limits: tuple[float, float]) -> list[str]:
    grid = upright(after)
    images = {name: difference(after, before, *_sharp(grid, a, middle(grid))) for name, a in filled(grid).items()}
    most = extent(list(images.values()), limits)
    known = {name: np.nan_to_num(image) for name, image in images.items()}
    text = "After minus before, which a cubic spline brings to the grid of after. Red is brighter than before."
    return [f"<p>{text}</p>", *_maps(known, grid, "after minus before", "RdBu_r", (-most, most))]


def _uncertainty(uncertainty: Volume, after: Volume) -> list[str]:
    grid = upright(after)
    images = {name: section(uncertainty, *_sharp(grid, a, middle(grid))) for name, a in filled(grid).items()}
    return _maps(images, grid, "uncertainty", "magma", (0.0, window(uncertainty)[1]))
