"""The command ``srlib enhance``: its options, what it prints, its exit code."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

from srlib.core.paths import InputError, first_line

FACTOR = {"nargs": 3, "type": float, "metavar": "X Y Z"}
DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
ALIGN = click.Choice(["center", "corners"])
STATUSES = ("enhanced", "done before", "failed")


def one_line(err: object) -> str:
    """What the user sees of an error."""
    return "error: " + " ".join(str(err).split())


@click.command()
@click.argument("sources", metavar="IN...", nargs=-1, required=True)
@click.argument("target", metavar="OUT")
@click.option(
    "--weights", default="robust", help="Shipped, published or own weights: a file or a name."
)
@click.option(
    "--factor",
    **FACTOR,
    help="How much finer, per voxel axis [default: thick axes as fine as the others, else 2].",
)
@click.option(
    "--spacing", "spacing_mm", **FACTOR, help="Target spacing in mm, instead of a factor."
)
@click.option(
    "--reference",
    help="For a single IN: its scan of another contrast, if the model takes one; not registered.",
)
@click.option(
    "--align",
    type=ALIGN,
    default="center",
    help="What stays: the field of view, or the outermost voxel centres.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "int16", "uint8", "uint16", "int32", "same"]),
    default="float32",
    help="Numbers that the output holds; 'same': those of the input.",
)
@click.option(
    "--zero-filled",
    **FACTOR,
    help="robust: by how much the scanner interpolated already, per axis; the grid stays.",
)
@click.option("--report", metavar="FOLDER", help="Write a page on each scan there: NAME_sr.html.")
@click.option("--ct", is_flag=True, help="SynthSR: clip the scan to 0 to 80 HU first.")
@click.option(
    "--no-flip",
    is_flag=True,
    help="robust, SynthSR: one pass, instead of the mean with the mirrored scan's.",
)
@click.option(
    "--uncertainty",
    metavar="OUT",
    help="SynthSR trained with 'laplace': write the uncertainty here.",
)
@click.option(
    "--force", is_flag=True, help="Replace outputs that are there, whatever they were made from."
)
@DEVICE
@click.option(
    "--workers", type=click.IntRange(1), default=1, help="Processes that share the scans."
)
@click.option(
    "--max-memory",
    "max_memory_gb",
    type=float,
    help="GB that tiles may take, of all workers [default: 3; 6 for SynthSR].",
)
def enhance(no_flip, **given) -> None:
    """Super-resolve scans; each output lies where its scan lay.

    IN: a scan (NIfTI, MGH, Analyze, .npz, .png, a DICOM file or a folder of DICOM slices), several,
    a folder of scans, or a manifest (CSV with the columns subject, t1 and, where the model takes
    it, t2).

    OUT: a file for a single scan, else a folder, where each becomes NAME_sr.nii.gz and summary.csv
    says how it went.

    Run again, it goes on where it was stopped: what was made from the same scan in the same way is
    left as it is, and nothing else is overwritten without --force. A scan that cannot be used is
    named in one line, the others are enhanced all the same, and the exit code is 1. Stopped by
    Ctrl-C or SIGTERM, it ends at once and the exit code is 130.

    \b
    Example:
      srlib enhance clinical.nii.gz sr.nii.gz --report pages
      srlib enhance lr.nii.gz sr.nii.gz --weights mdcsrn_res --factor 2 2 2
      srlib enhance my_scans enhanced --weights synthsr_thick --workers 2
      srlib enhance mine.csv enhanced --weights recnn_x2_t2  # T1 and T2 of each subject
    """
    try:
        with stopped_by_signals():
            counts = enhance_all(flip=not no_flip, **given)
    except InputError:
        raise
    except KeyboardInterrupt:
        tell(one_line("stopped; the same command goes on where it was"))
        sys.exit(130)
    except (
        Exception
    ) as err:  # whatever it is, a traceback is of no use to who has a scan to enhance
        raise InputError(f"failed unexpectedly ({type(err).__name__}: {first_line(err)})") from err
    if counts["failed"]:
        sys.exit(1)


def enhance_all(
    sources, target, weights, reference, uncertainty, report, device, **settings
) -> Counter:
    """Enhance, print what becomes of each scan, write the summary; how many have which status."""
    from srlib.enhance import batch, jobs
    from srlib.systems import trained

    model = trained.load_model(weights, device=device)
    columns = model.experiment.contrast, model.experiment.reference
    todo = jobs.jobs(sources, target, reference, uncertainty, columns, report)
    folder, outcomes = Path(target), []
    if folder.is_dir():
        jobs.read_summary(folder)  # refused now where it is none of ours
    try:
        with closing(batch.run(todo, model, weights, tell, **settings)) as running:
            for outcome in running:
                outcomes.append(outcome)
                if outcome.status == "failed":
                    tell(one_line(outcome.message))
                else:
                    tell(outcome.job.target, err=False)
    finally:
        counts = Counter(outcome.status for outcome in outcomes)
        if folder.is_dir() and outcomes:
            summary = jobs.write_summary(folder, outcomes)
            told = ", ".join(f"{counts[status]} {status}" for status in STATUSES)
            tell(f"{told}; see {summary}")
    return counts


def tell(line: object, err: bool = True) -> None:
    """Print a line; that nobody reads any more, as after '| head', stops no enhancing."""
    try:
        click.echo(str(line).encode(errors="replace"), err=err)  # names of files need not be text
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if err else 1)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this block what ends a process (scancel, a closed terminal) acts as Ctrl-C does.

    A hang-up that nohup ignores stays ignored. SIGINT is heard even where a script's ``&`` has it
    ignored.
    """
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
