"""The commands ``srlib degrade`` and ``srlib evaluate``, for single scans and whole splits."""

import math
import os
from pathlib import Path

import click
from click import argument, option

from srlib import __version__
from srlib.cli.options import ALIGN, COHORT, FACTOR, PRECISION, flag
from srlib.core.paths import InputError, apart

DEGRADATIONS = {  # with the options that each takes
    "gaussian": ("factor", "sigma", "align"),
    "kspace": ("factor",),
    "scanline": ("every",),
    "sparse_view": ("every",),
}
EVERY = {"scanline": 4, "sparse_view": 16}  # as published


@click.command()
@argument("source", metavar="IN", type=Path)
@argument("target", metavar="OUT", type=Path)
@option("--degradation", type=click.Choice([*DEGRADATIONS]), default="gaussian")
@option(
    "--factor",
    **FACTOR,
    help="Per voxel axis, 1 or more, of gaussian and kspace [default: 2, 1 across an image].",
)
@option(
    "--every",
    type=int,
    help="scanline: keep every N-th column; sparse_view: N-th of 1,000 [default: 4, 16].",
)
@option(
    "--window", nargs=2, type=float, metavar="LOW HIGH", help="Clip first, as CT to -1024 200 HU."
)
@option("--sigma", type=float, help="Gaussian blur in HR voxels [default: 1].")
@option("--align", type=ALIGN, help="Gaussian sampling grid [default: center].")
@flag("--on-grid", "Interpolate the result back on the input's grid (cubic spline).")
@flag("--force", "Replace OUT even if this command did not make it.")
def degrade(source, target, degradation, window, on_grid, force, **options):
    """Make a low-resolution scan; its affine says where the coarse voxels lie.

    A NIfTI keeps its header, as with 'srlib enhance'. The command replaces an OUT that it made
    earlier; --force lets it replace any other file.

    \b
    Example:
      srlib degrade hr.nii.gz lr.nii.gz --degradation gaussian --factor 2 2 2
    """
    from srlib.degradations import resolution
    from srlib.scans import formats, headers, volume

    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - DEGRADATIONS[degradation]:
        raise InputError(f"--{name} does not belong to --degradation {degradation}; leave it out")
    if window and not -math.inf < window[0] < window[1] < math.inf:
        low, high = window
        raise InputError(
            f"--window: expected two numbers, the lower one first, got {low:g} and {high:g}"
        )
    apart([target, target.parent], [source])  # nor among the slices of a DICOM series
    ours = "degradation" in headers.read_record(target)
    if os.path.lexists(target) and not ours and not force:
        raise InputError(
            f"{target} exists and was not made by 'srlib degrade'; --force replaces it"
        )
    hr = formats.load_scan(source)
    factor = given.pop("factor", EVERY.get(degradation) or tuple(min(n, 2) for n in hr.shape))
    model = resolution.DEGRADATIONS[degradation](factor=given.pop("every", factor), **given)
    if window:
        hr = hr.with_data(hr.data.clip(*window))
    lr = model(hr)
    if on_grid:
        lr = model.to_grid(lr, hr.shape)
    record = {
        "srlib": __version__,
        "degradation": repr(model),
        "window": window,
        "on_grid": on_grid,
    }
    old, name = headers.read_header(source), f"srlib degrade {degradation}"
    header = old.derive(lr.affine, lr.shape, description=name, record=record)
    old.set_type(header, "float32", lr.data)
    click.echo(volume.save_scan(lr, target, dtype=header.get_data_dtype(), header=header))


@click.command()
@argument("hr", required=False)
@argument("sr", required=False)
@option("--mask", help="Scan that is non-zero where voxels count.")
@option("--data-range", type=float, help="Peak of PSNR and SSIM [default: HR's maximum - minimum].")
@option(
    "--weights",
    help="Instead of two scans: a model, to be run on the degraded scans of a manifest.",
)
@COHORT
@option("--split", default="test", help="Its rows.")
@option("--task", help="Degradation, by its name in the tables [default: that of training].")
@option("--out", help="Folder for the HR, LR and SR scans and metrics.csv.")
@option("--precision", **PRECISION, default="32")
def evaluate(hr, sr, mask, data_range, **given):
    """Measure an estimate (one CSV row, with its conventions), or a model on every test scan of
    a manifest.

    SR and mask may lie anywhere in the world of HR, and SR must cover it. Where their voxels
    coincide, they are compared as they are. Otherwise SR is interpolated on the grid of HR first,
    and a note says so.

    \b
    Example:
      srlib evaluate hr.nii.gz sr.nii.gz --mask brain.nii.gz
    """
    weights, out = given["weights"], given["out"]
    if weights and out and not hr:
        _evaluate_model(**given)
    elif weights or out or not sr:
        raise InputError(
            "expected two scans, HR and SR, or --weights and --out; see 'srlib evaluate --help'"
        )
    else:
        _evaluate_scan(hr, sr, mask, data_range)


def _evaluate_model(weights, cohort, split, task, out, precision):
    """Run a model on a manifest's degraded scans, write the results and print statistics."""
    from srlib import data
    from srlib.evaluation import quality as whole
    from srlib.systems import trained

    apart([Path(out, "metrics.csv")], [cohort])
    model = trained.load_model(weights, precision=precision)
    table = whole.evaluate(model, data.read_manifest(cohort, split), out, task=task or "")
    click.echo(f"{whole.statistics(table).round(4).to_string()}\n{out}")


def _evaluate_scan(hr, sr, mask, data_range):
    """Print the metrics of an estimate as a CSV."""
    import pandas as pd

    from srlib import metrics
    from srlib.scans import formats
    from srlib.scans.space import resample_to, same_lattice

    truth, estimate = formats.load_scan(hr), formats.load_scan(sr)
    placed = resample_to(estimate, truth, least=1, what=f"{sr}, the estimate,")
    if not same_lattice(estimate, truth):
        click.echo(
            f"note: {sr} lies on another grid; it was interpolated on that of {hr} (cubic spline)",
            err=True,
        )
    region, inside = "volume", None
    if mask:
        what = f"{mask}, the mask,"
        shown = resample_to(formats.load_scan(mask), truth, order=0, outside=0, what=what)
        region, inside = "mask", shown.data != 0
    if data_range is None:
        data_range = float(truth.data.max() - truth.data.min())
        if not data_range:
            raise InputError(
                f"{hr}: the truth is constant and has no range; set one with --data-range"
            )
    row = metrics.evaluate(truth.data, placed.data, data_range, mask=inside)[region]
    row |= {
        "region": region,
        "data_range": data_range,
        "ssim_window": "uniform 7",
        "ssim2d_axis": 2,
        "nrmse_norm": "euclidean",
    }
    table = pd.DataFrame([row]).to_csv(index=False, float_format="%.6g", na_rep="nan")
    click.echo(table, nl=False)
