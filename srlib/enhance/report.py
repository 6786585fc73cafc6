"""Write an HTML page about an enhanced scan: planes, power spectra, facts and warnings."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from scipy.signal import periodogram

from srlib.core.paths import StrPath, atomic
from srlib.evaluation.figures import Picture, triplanar
from srlib.evaluation.views import windows
from srlib.scans.space import same_lattice
from srlib.scans.volume import Volume, describe, reorient

ZOOM = 3.5  # in the pictures of details
DPI = (150, 300)  # lowest and highest resolution of pictures
LINES = 4096  # lines of a scan that a spectrum is averaged over
AXES = ("left to right", "posterior to anterior", "inferior to superior")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em}
body{color:#222;background:#fff}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
img{max-width:100%}
.warn{background:#fff4d6;border-left:4px solid #e0a100;padding:.5em 1em}
"""


def write_report(
    before: Volume,
    after: Volume,
    path: StrPath,
    *,
    title: str,
    warnings: Sequence[str],
    lines: Sequence[str] = (),
    uncertainty: Volume | None = None,
) -> Path:
    """Write one HTML page, atomically; it embeds its pictures, loads nothing and runs no script.

    ``before`` and ``after`` may lie anywhere in one world; their planes are those of
    ``figures.triplanar``. Scans in one window are also shown as a difference. ``warnings`` are
    those of a ``Prediction``, ``lines`` say what was done. The same input gives the same bytes.
    Raises InputError if the file cannot be written.
    """
    interpolated = {} if same_lattice(before, after) else {"before, by cubic splines": before}
    one, two = windows(before, after)
    units = "One window" if one == two else "Each in a window of its own, as their units differ"
    scans = {"before": before, **interpolated, "after": after}
    whole = triplanar(scans, "before", cubic=interpolated, differences=one == two)
    close = triplanar(scans, "before", zooms=(ZOOM,), cubic=interpolated, differences=False)
    dpi = float(np.clip(max(after.shape) / 2, *DPI))
    sections = {
        "Facts": f"<p>Before: {describe(before)}.</p><p>After: {describe(after)}.</p>",
        "Through the middle": f"<p>{units}.</p>{_picture(whole, 'planes', dpi)}",
        "Details": _picture(close, "details", dpi),
        "Power spectra": _spectra(reorient(before), reorient(after)),
    }
    if uncertainty is not None:
        shown = _picture(triplanar({"uncertainty": uncertainty}), "uncertainty", dpi)
        text = f"<p>{describe(uncertainty)}, in the units of the scan after.</p>"
        sections["Uncertainty"] = text + shown
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(f'<p class="warn">{escape(line)}</p>' for line in warnings),
        "" if warnings else "<p>No warnings.</p>",
        *(f"<h2>{heading}</h2>{content}" for heading, content in sections.items()),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    page = f"<!DOCTYPE html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8", "backslashreplace")  # file names need not be text
    return Path(path)


def _picture(figure, caption, dpi):
    content = base64.b64encode(figure.png(dpi)).decode()
    return f'<img alt="{caption}" src="data:image/png;base64,{content}">'


def spectrum(volume: Volume, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean power spectral density of the lines along a voxel axis: (cycles/mm, mm).

    It integrates to 1. The lines are taken less their mean, under a Hann window.
    """
    lines = np.moveaxis(volume.data, axis, 2)
    every = int(np.ceil(np.sqrt(lines.shape[0] * lines.shape[1] / LINES)))
    lines = np.nan_to_num(lines[::every, ::every]).astype(np.float64)
    frequencies, power = periodogram(lines, 1 / volume.spacing_mm[axis], "hann")
    density = power.mean((0, 1))
    return frequencies, density / (density.sum() * frequencies[1] or 1.0)


def _spectra(before, after):
    axes = [a for a in range(3) if min(before.shape[a], after.shape[a]) >= 8]
    if not axes:
        return "<p>Too few voxels.</p>"
    figure, added = Picture((3.8 * len(axes), 3.1), layout="constrained"), []
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for name, scan in {"before": before, "after": after}.items():
            frequencies, density = spectrum(scan, axis)
            panel.semilogy(frequencies[1:], density[1:] + 1e-12, label=name, linewidth=1.2)
        nyquist = 0.5 / before.spacing_mm[axis]
        if frequencies[-1] > 1.01 * nyquist:
            beyond = density[frequencies > nyquist].sum() / (density.sum() or 1.0)
            added.append(f"{AXES[axis]} {100 * beyond:.2g} %")
        panel.axvline(nyquist, color="grey", linestyle="--", linewidth=1)
        panel.set(title=AXES[axis], xlabel="cycles/mm", xlim=(0, None))
    panels[0].set_ylabel("power density (mm)")
    panels[0].legend(fontsize=8)
    text = "Each scan's share of its own variance. Dashed: the Nyquist frequency of the input."
    if added:
        text += " The model estimates what lies beyond it, nothing was measured there: "
        text += f"{', '.join(added)} of the variance."
    return f"<p>{text}</p>{_picture(figure, 'power spectra', DPI[0])}"
