"""The commands ``srlib degrade`` and ``srlib evaluate``, for single scans and whole splits."""

import math
import os
import re
from functools import partial
from pathlib import Path

import click
from click import argument, option

from srlib import __version__, data, degradations, evaluation, systems
from srlib.cli.options import ALIGN, COHORT, FACTOR, FORCE, PRECISION, SCHEDULER, WORKERS, flag
from srlib.core.paths import InputError, apart, cohort_label, file_name, write_file
from srlib.core.tables import keep
from srlib.core.workers import share_all

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
    old.set_type(header, "float32", float(lr.data.min()), float(lr.data.max()))
    click.echo(volume.save_scan(lr, target, dtype=header.get_data_dtype(), header=header))


@click.command()
@argument("hr", required=False)
@argument("sr", required=False)
@option("--mask", help="Scan that is non-zero where voxels count, or a folder of them.")
@option("--data-range", type=float, help="Peak of PSNR and SSIM [default: HR's maximum - minimum].")
@flag("--extended", "Also resolution per axis, HFEN, HaarPSI; with --task data consistency.")
@option(
    "--add-to",
    nargs=2,
    metavar="FOLDER NAME",
    help="Record the rows, too: in the results folder, as experiment NAME under --task.",
)
@option(
    "--weights",
    help="Instead of two scans: a model, to be run on the degraded scans of a manifest.",
)
@COHORT
@option("--split", default="test", help="Its rows.")
@option("--task", help="Degradation, by its name in the tables [default: that of training].")
@option("--out", help="The CSV; with --weights a folder for HR, LR, SR scans and metrics.csv.")
@option("--precision", **PRECISION, default="32")
@WORKERS
@SCHEDULER
@FORCE
def evaluate(hr, sr, mask, data_range, extended, add_to, **given):
    """Measure estimates (CSV rows, with their conventions), or a model on every test scan of
    a manifest.

    HR and SR are two scans, or two folders. The SR of a scan NAME is called NAME, or NAME and more
    after a sign such as _ or -; so are masks. HR may also be a manifest with its subjects, masks
    and --split.

    SR and mask may lie anywhere in the world of HR, and SR must cover it. Where their voxels
    coincide, they are compared as they are. Otherwise SR is interpolated on the grid of HR first,
    and a note says so. With --mask, hfen and haarpsi are of the mask; resolution (mm) and
    consistency (PSNR of SR, degraded again, against HR degraded by --task) are of the whole scan.

    \b
    Example:
      srlib evaluate hr.nii.gz sr.nii.gz --mask brain.nii.gz
      srlib evaluate csv/mine.csv mytool --task gaussian_x2 --add-to runs/quick_mine mytool
    """
    if given["weights"] and given["out"] and not hr:
        _leave_out("--weights", "mask", "data_range", "extended", "add_to")
        _evaluate_model(**given)
    elif given["weights"] or not sr:
        raise InputError(
            "expected two scans, HR and SR, two folders, or --weights and --out; see 'srlib "
            "evaluate --help'"
        )
    elif add_to and not given["task"]:
        raise InputError("--add-to needs the --task that made the inputs of SR")
    else:
        _leave_out("two scans", "cohort", "precision")
        subjects = _subjects(hr, sr, mask, given["split"])
        _evaluate_scans(subjects, hr, data_range, extended, add_to, **given)


def _leave_out(form, *names):
    """Raise InputError for an option that does not belong to a form of the command."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name).name != "DEFAULT":
            raise InputError(f"--{name.replace('_', '-')} does not go with {form}; leave it out")


def _evaluate_model(weights, cohort, split, task, out, precision, force, **shared):
    """Run a model on a manifest's degraded scans, write the results and print statistics."""
    if os.path.isdir(out) and os.listdir(out) and not force:
        raise InputError(f"{out} holds files; --force replaces them, or choose another folder")
    apart([Path(out, "metrics.csv")], [cohort])
    model = systems.load_model(weights, precision=precision)
    subjects = data.read_manifest(cohort, split)
    table = evaluation.evaluate(model, subjects, out, task=task or "", **shared)
    click.echo(f"{evaluation.statistics(table).round(4).to_string()}\n{out}")


def _subjects(hr, sr, mask, split):
    """The scans with their files: t1 or image, sr, perhaps mask."""
    from srlib.scans.formats import scan_names, scans_in

    scans = scans_in(hr)
    truths = scans or [Path(hr)]
    found = {n: {"t1": s} for n, s in zip(scan_names(truths), truths, strict=True)}
    if hr.endswith(".csv"):
        scans = data.read_manifest(hr, split)
        found = {s.name: {**s.files} for s in scans}
    for column, place in {"sr": sr, "mask": mask}.items():
        if place:
            matches = _matches([*found], place) if scans else [Path(place)]
            for files, scan in zip(found.values(), matches, strict=True):
                files[column] = scan
    return [data.Subject(name, split, files) for name, files in found.items()]


def _matches(names, folder):
    """The scan of a folder that begins with each name, as a whole word and with no longer name."""
    from srlib.scans.formats import scans_in

    found = {name: [] for name in names}
    for scan in scans_in(folder):
        fits = [n for n in names if re.match(rf"{re.escape(n)}(?![^\W_])", scan.name)]
        found.get(max(fits, key=len, default=""), []).append(scan)
    for name, scans in found.items():
        if len(scans) != 1:
            there = ", ".join(scan.name for scan in scans) or "none"
            raise InputError(f"{folder}: expected one scan called {name} or {name}_*, got {there}")
    return [scan for (scan,) in found.values()]


def _evaluate_scans(
    subjects, hr, data_range, extended, add_to, task, out, workers, scheduler, force, **_
):
    """Print or write the metrics of estimates as a CSV, and add them to a results folder."""
    import pandas as pd

    if task:
        degradations.degradation_of(task)  # an unknown one is refused now
    apart([out] if out else [], [file for s in subjects for file in s.files.values()])
    if out:
        keep(out, force=force)
    folder, name = add_to or ("", "")
    if add_to:
        file_name(name, "--add-to")
    key = {"dataset": cohort_label(hr) if add_to else "", "degradation": task or ""}
    work = partial(_evaluate_scan, name, data_range, extended, key)
    found = share_all(subjects, work, workers=workers, scheduler=scheduler)
    if add_to:
        evaluation.record_metrics(folder, [row for _, rows in found for row in rows])
    text = pd.DataFrame([row for row, _ in found]).to_csv(
        index=False, float_format="%.6g", na_rep="nan", lineterminator="\n"
    )
    if out:
        write_file(out, text)
    else:
        click.echo(text, nl=False)


def _evaluate_scan(name, data_range, extended, key, subject):
    """The metrics of an estimate: a row with their conventions, and those of ``metrics.csv``."""
    from srlib.evaluation import results
    from srlib.scans import formats
    from srlib.scans.space import resample_to, same_lattice

    hr, sr = subject.files.get("t1") or subject.file("image"), subject.file("sr")
    truth, estimate = formats.load_scan(hr), formats.load_scan(sr)
    if {hr.suffix.lower(), sr.suffix.lower()} & {".png", ".npz"}:  # which have no place
        if truth.shape != estimate.shape:
            raise InputError(f"{sr}: expected {truth.shape} voxels as {hr}, got {estimate.shape}")
        estimate = truth.with_data(estimate.data)
    placed = resample_to(estimate, truth, least=1, what=f"{sr}, the estimate,")
    if not same_lattice(estimate, truth):
        click.echo(
            f"note: {sr} lies on another grid; it was interpolated on that of {hr} (cubic spline)",
            err=True,
        )
    mask = data.load_mask(subject, truth)
    if data_range is None:
        data_range = float(truth.data.max() - truth.data.min())
        if not data_range:
            raise InputError(
                f"{hr}: the truth is constant and has no range; set one with --data-range"
            )
    rows = results.measured(
        truth,
        {name: placed},
        mask=mask,
        data_range=data_range,
        extended=extended,
        subject=subject.name,
        **key,
    )
    region = "volume" if mask is None else "mask"
    row = {"subject": subject.name, **dict.fromkeys(results.DIGITS, math.nan)}
    row |= {r["metric"]: r["value"] for r in rows if r["region"] == region}
    if extended and key["degradation"]:
        lr = degradations.degrade(truth, key["degradation"])
        row["consistency"] = evaluation.consistency(lr, placed, key["degradation"])
    row |= {
        "region": region,
        "data_range": data_range,
        "ssim_window": "uniform 7",
        "ssim2d_axis": 2,
        "nrmse_norm": "euclidean",
    }
    return row, rows
