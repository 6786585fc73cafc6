"""The command ``srlib enhance``: its options, what it prints, its exit code."""

import os
import signal
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import click
from click import argument, option

from srlib import systems
from srlib.cli.options import ALIGN, DEVICE, FACTOR, PRECISION, SCHEDULER, WORKERS, flag
from srlib.core.paths import InputError, first_line

STATUSES = ("enhanced", "done before", "failed")


def one_line(err):
    """Format an error as the user sees it."""
    return "error: " + " ".join(str(err).split())


@click.command()
@argument("sources", metavar="IN...", nargs=-1, required=True)
@argument("target", metavar="OUT")
@option("--weights", default="robust", help="Shipped, published or own weights: a file or a name.")
@option(
    "--factor",
    **FACTOR,
    help="How much finer, per voxel axis [default: thick axes as fine as the others, else 2].",
)
@option("--spacing", "spacing_mm", **FACTOR, help="Target spacing in mm, instead of a factor.")
@option(
    "--reference",
    help="For a single IN: its scan of another contrast, if the model takes one; not registered.",
)
@option(
    "--align",
    type=ALIGN,
    default="center",
    help="What stays: the field of view, or the outermost voxel centres.",
)
@option(
    "--dtype",
    type=click.Choice(["float32", "int16", "uint8", "uint16", "int32", "same"]),
    default="float32",
    help="Numbers that the output holds; 'same': those of the input.",
)
@option(
    "--zero-filled",
    **FACTOR,
    help="robust: by how much the scanner interpolated already, per axis; the grid stays.",
)
@option(
    "--kernel",
    metavar="KIND",
    help="What a voxel measured, if you know: gaussian:SIGMA (output voxels), box or kspace.",
)
@option("--report", metavar="FOLDER", help="Write a page on each scan there, called as its output.")
@flag("--ct", "SynthSR: clip the scan to 0 to 80 HU first.")
@flag("--no-flip", "robust, SynthSR: one pass, instead of the mean with the mirrored scan's.")
@option(
    "--uncertainty",
    metavar="OUT",
    help="SynthSR trained with 'laplace': write the uncertainty here.",
)
@flag("--force", "Replace outputs that are there, whatever they were made from.")
@DEVICE
@option("--precision", **PRECISION, default="auto")
@WORKERS
@SCHEDULER
@option(
    "--max-memory",
    "max_memory_gb",
    type=float,
    help="GB that scans may take, of all workers here, of each one of a cluster [default: 3, 6 for SynthSR, and for large scans what is free].",
)
def enhance(no_flip, **given):
    """Super-resolve scans; each output lies where its scan lay.

    IN: a scan (NIfTI, MGH, Analyze, .npz, .png, a DICOM file or a folder of DICOM slices), several,
    a folder of scans, or a manifest (CSV with the columns subject, t1 and, where the model takes
    it, t2).

    OUT: a file for a single scan, else a folder. There each scan becomes NAME_sr.nii.gz, and
    summary.csv lists the results.

    The same command resumes a run that was stopped: it keeps what was made from the same scan in
    the same way, and overwrites nothing else without --force. A scan that cannot be used is named
    in one line, the others are enhanced all the same, and the exit code is 1. Ctrl-C or SIGTERM
    ends the run at once, with exit code 130.

    \b
    Example:
      srlib enhance clinical.nii.gz sr.nii.gz --report pages
      srlib enhance lr.nii.gz sr.nii.gz --weights mdcsrn_res --factor 2 2 2
      srlib enhance my_scans enhanced --weights synthsr_thick --workers 2
      srlib enhance mine.csv enhanced --weights recnn_x2_t2  # T1 and T2 of each subject
    """
    try:
        stop_on_signals()
        counts = _enhance_all(flip=not no_flip, **given)
    except InputError:
        raise
    except KeyboardInterrupt:
        _print(one_line("stopped; run the same command again to resume"))
        sys.exit(130)
    except Exception as err:  # a traceback does not help somebody with a scan to enhance
        raise InputError(f"failed unexpectedly ({type(err).__name__}: {first_line(err)})") from err
    if counts["failed"]:
        sys.exit(1)


def _enhance_all(
    sources, target, weights, reference, uncertainty, report, device, precision, **settings
):
    """Enhance, print the outcome of each scan, write the summary; return the count per status."""
    from srlib.enhance import batch, jobs

    model = systems.load_model(weights, device=device, precision=precision)
    columns = model.experiment.contrast, model.experiment.reference
    todo = jobs.jobs(
        sources,
        target,
        reference=reference,
        uncertainty=uncertainty,
        columns=columns,
        report=report,
    )
    folder, outcomes, counts = Path(target), [], Counter()
    if folder.is_dir():
        jobs.read_summary(folder)  # refuse now a summary.csv of another kind
    try:
        with closing(batch.run(todo, model, weights, tell=_print, **settings)) as running:
            for outcome in running:
                outcomes.append(outcome)
                counts[outcome.status] += 1
                if outcome.status == "failed":
                    _print(one_line(outcome.message))
                else:
                    _print(outcome.job.target, err=False)
    finally:
        if folder.is_dir() and outcomes:
            summary = jobs.write_summary(folder, outcomes)
            totals = ", ".join(f"{counts[status]} {status}" for status in STATUSES)
            _print(f"{totals}; see {summary}")
    return counts


def _print(line, err=True):
    """Print a line; a closed pipe, as after '| head', does not stop the run."""
    try:
        click.echo(str(line).encode(errors="replace"), err=err)  # file names need not be text
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if err else 1)


def stop_on_signals():
    """Treat SIGTERM (scancel) and SIGHUP (a closed terminal) as Ctrl-C from now on.

    A SIGHUP that nohup ignores stays ignored. SIGINT is handled even where a script's ``&`` makes
    the process ignore it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
