"""One page per enhanced scan, to be judged by eye: planes before and after, power spectra, facts and warnings."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from srlib.core.paths import atomic
from srlib.evaluation.figures import Picture, triplanar
from srlib.evaluation.views import windows
from srlib.inference.checks import findings, header
from srlib.scans.intensity import sample, wild
from srlib.scans.space import same_lattice
from srlib.scans.volume import Volume, axcodes, reorient

ZOOM = 3.5  # of the details
DPI = (150, 300)  # least and greatest resolution of pictures
LINES = 4096  # of a scan that a spectrum is the mean of
AXES = ("left to right", "posterior to anterior", "inferior to superior")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}img{max-width:100%}
th,td{text-align:left;padding:.25em 1.2em .25em 0;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
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

    ``before`` and ``after`` lie anywhere in one world; their planes are those of ``figures.triplanar``. Where both scans
    have one window the planes' difference is shown, too. ``lines`` say what was done, ``warnings`` what to mind (None:
    what ``checks`` finds). The same input gives the same bytes. Raises InputError when the place cannot be written to.
    """
    if warnings is None:
        warnings = [
            *([] if 1 in before.shape else header(before)),
            *wild(before.data),
            *findings(before, after),
        ]
    interpolated = {} if same_lattice(before, after) else {"before, by cubic splines": before}
    scans = {"before": before, **interpolated, "after": after}
    one, two = windows(before, after)
    units = "One window" if one == two else "Each in a window of its own, as their units differ"
    whole = triplanar(scans, "before", cubic=interpolated, differences=one == two)
    close = triplanar(scans, "before", zooms=(ZOOM,), cubic=interpolated, differences=False)
    dpi = float(np.clip(max(after.shape) / 2, *DPI))
    facts = {"before": before, "after": after} | (
        {} if uncertainty is None else {"uncertainty": uncertainty}
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in lines),
        *([f'<p class="warn">{escape(line)}</p>' for line in warnings] or ["<p>No warnings.</p>"]),
        f"<h2>Facts</h2>{pd.DataFrame(map(_facts, facts.values()), index=[*facts]).to_html(border=0)}",
        f"<h2>Through the middle</h2><p>{units}.</p>{_picture(whole, 'planes', dpi)}",
        f"<h2>Details</h2>{_picture(close, 'details', dpi)}",
        f"<h2>Power spectra</h2>{_spectra(reorient(before), reorient(after))}",
    ]
    if uncertainty is not None:
        shown = triplanar({"uncertainty": uncertainty})
        body.append(
            f"<h2>Uncertainty</h2><p>In the units of the scan after.</p>{_picture(shown, 'uncertainty', dpi)}"
        )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    with atomic(path) as temporary:
        page = (
            f"<!DOCTYPE html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
        )
        temporary.write_text(page, "utf-8", "backslashreplace")  # names of files need not be text
    return Path(path)


def _picture(figure: Picture, caption: str, dpi: float) -> str:
    return f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(figure.png(dpi)).decode()}">'


def _facts(scan: Volume) -> dict[str, str]:
    sizes = {
        "voxels": scan.shape,
        "spacing (mm)": scan.spacing_mm,
        "field of view (mm)": np.multiply(scan.shape, scan.spacing_mm),
    }
    return {
        **{name: " × ".join(f"{value:.4g}" for value in values) for name, values in sizes.items()},
        "axes": axcodes(scan),
        "intensities": f"{np.nanmin(scan.data):.4g} to {np.nanmax(scan.data):.4g}",
        "99th percentile": f"{np.nanpercentile(sample(scan.data), 99):.4g}",
    }


def spectrum(volume: Volume, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density along a voxel axis, the mean over lines: (cycles/mm, mm); it integrates to 1.

    Lines less their mean, under a Hann window.
    """
    lines = np.moveaxis(volume.data, axis, 2)
    every = int(np.ceil(np.sqrt(lines.shape[0] * lines.shape[1] / LINES)))
    lines = np.nan_to_num(lines[::every, ::every]).astype(np.float64)
    lines -= lines.mean(2, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(lines * np.hanning(lines.shape[2])))).mean((0, 1))
    frequencies = np.fft.rfftfreq(lines.shape[2], volume.spacing_mm[axis])
    return frequencies, power / (power.sum() * frequencies[1] or 1.0)


def _spectra(before: Volume, after: Volume) -> str:
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
        text += f" What lies beyond it was not measured, it is the model's estimate: {', '.join(added)} of the variance."
    return f"<p>{text}</p>{_picture(figure, 'power spectra', DPI[0])}"
