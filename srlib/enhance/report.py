"""Write an HTML page about an enhanced scan: planes, facts and warnings."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from srlib.core.paths import StrPath, write_file
from srlib.evaluation.figures import triplanar
from srlib.evaluation.views import windows
from srlib.scans.space import same_lattice
from srlib.scans.volume import Volume

ZOOM = 3.5  # in the pictures of details
FINER = "What is finer than the voxels before is the model's estimate; nothing was measured there."
DPI = (150, 300)  # lowest and highest resolution of pictures
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
    mark: str = "",
) -> Path:
    """Write one HTML page, atomically; it embeds its pictures, loads nothing and runs no script.

    ``before`` and ``after`` may lie anywhere in one world; their planes are those of
    ``figures.triplanar``. Scans in one window are also shown as a difference. ``warnings`` are
    those of a ``Prediction``, ``lines`` say what was done. ``mark``: HTML for its head.
    The same input gives the same bytes. Raises InputError if the file cannot be written.
    """
    interpolated = {} if same_lattice(before, after) else {"before, by cubic splines": before}
    one, two = windows(before, after)
    units = "One window" if one == two else "Each in a window of its own, as their units differ"
    scans = {"before": before, **interpolated, "after": after}
    whole = triplanar(scans, "before", cubic=interpolated, differences=one == two)
    close = triplanar(scans, "before", zooms=(ZOOM,), cubic=interpolated, differences=False)
    dpi = np.clip(max(after.shape) / 2, *DPI)
    sections = {
        "Facts": f"<p>Before: {before}.</p><p>After: {after}.</p>",
        "Through the middle": f"<p>{units}.</p>{_picture(whole, 'planes', dpi)}",
        "Details": f"<p>{FINER}</p>{_picture(close, 'details', dpi)}",
    }
    if uncertainty is not None:
        shown = _picture(triplanar({"uncertainty": uncertainty}), "uncertainty", dpi)
        text = f"<p>{uncertainty}, in the units of the scan after.</p>"
        sections["Uncertainty"] = text + shown
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(f'<p class="warn">{escape(line)}</p>' for line in warnings),
        "" if warnings else "<p>No warnings.</p>",
        *(f"<h2>{heading}</h2>{content}" for heading, content in sections.items()),
    ]
    head = f'<meta charset="utf-8">{mark}<title>{escape(title)}</title><style>{STYLE}</style>'
    page = f"<!DOCTYPE html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
    # file names need not be text
    return write_file(path, page.encode("utf-8", "backslashreplace"))


def _picture(figure, caption, dpi):
    content = base64.b64encode(figure.png(dpi)).decode()
    return f'<img alt="{caption}" src="data:image/png;base64,{content}">'
