"""The command ``srlib enhance``: its options, what it prints, its exit code."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

from srlib.paths import InputError, first_line

FACTOR = {"nargs": 3, "type": float, "metavar": "X Y Z"}


def one_line(err: object) -> str:
    """What the user sees of an error."""
    return "error: " + " ".join(str(err).split())


def example(*commands: str) -> str:
    """The end of a command's help."""
    return "\b\nExample:\n  " + "\n  ".join(commands)


@click.command(
    epilog=example(
        "srlib enhance clinical.nii.gz sr.nii.gz --report pages",
        "srlib enhance lr.nii.gz sr.nii.gz --weights mdcsrn_res --factor 2 2 2",
        "srlib enhance my_scans enhanced --weights synthsr_thick --workers 2",
        "srlib enhance mine.csv enhanced --weights recnn_x2_t2  # T1 and T2 of each subject",
    )
)
@click.argument("sources", metavar="IN...", nargs=-1, required=True)
@click.argument("target", metavar="OUT")
@click.option(
    "--weights", default="robust", show_default=True, help="Shipped, published or own weights: a file or a name."
)
@click.option(
    "--factor", **FACTOR, help="How much finer, per voxel axis [default: thick axes as fine as the others, else 2]."
)
@click.option("--spacing", "spacing_mm", **FACTOR, help="Target spacing in mm, instead of a factor.")
@click.option(
    "--reference", help="Scan of another contrast, or a folder of them, if the model takes one; not registered."
)
@click.option(
    "--align",
    type=click.Choice(["center", "corners"]),
    default="center",
    show_default=True,
    help="What stays: the field of view, or the outermost voxel centres.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "int16", "uint8", "uint16", "int32", "same"]),
    default="float32",
    show_default=True,
    help="Numbers that the output holds; 'same': those of the input.",
)
@click.option(
    "--zero-filled", **FACTOR, help="robust: by how much the scanner interpolated already, per axis; the grid stays."
)
@click.option("--report", type=click.Path(), metavar="FOLDER", help="Write a page on each scan there: NAME_sr.html.")
@click.option("--ct", is_flag=True, help="SynthSR: clip the scan to 0 to 80 HU first.")
@click.option(
    "--no-flip", is_flag=True, help="robust, SynthSR: one pass, instead of the mean with the mirrored scan's."
)
@click.option("--uncertainty", metavar="OUT", help="SynthSR trained with 'laplace': write the uncertainty here.")
@click.option("--force", is_flag=True, help="Replace outputs that are there, whatever they were made from.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the scans.")
@click.option("--max-memory", type=float, help="GB that tiles may take, of all workers [default: 3; 6 for SynthSR].")
def enhance(sources, target, weights, reference, uncertainty, device, workers, max_memory, no_flip, **settings) -> None:
    """Super-resolve scans; each output lies where its scan lay.

    IN: a scan (NIfTI, MGH, Analyze, .npz, .png, a DICOM file or a folder of DICOM slices), several, a pattern in quotes,
    a folder of scans, or a manifest (CSV with the columns subject, t1 and, where the model takes it, t2).

    OUT: a file for a single scan, else a folder, where each becomes NAME_sr.nii.gz and summary.csv says how it went.

    Run again, it goes on where it was stopped: what was made from the same scan in the same way is left as it is, and
    nothing else is overwritten without --force. A scan that cannot be used is named in one line, the others are
    enhanced all the same, and the exit code is 1. Stopped by Ctrl-C or SIGTERM, it ends at once and the exit code is
    130.
    """

    def tell(line: object, err: bool = True) -> None:
        try:
            click.echo(str(line).encode(errors="replace"), err=err)  # since names of files need not be text
        except OSError:  # nobody reads any more, as after '| head'; the scans are of use all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if err else 1)

    outcomes, folder = [], None
    try:
        with stopped_by_signals():
            try:
                from srlib import batch, inputs
                from srlib.systems import use

                model = use.load_model(weights, device=device)
                columns = model.experiment.contrast, model.experiment.reference
                todo = inputs.jobs(sources, target, reference, uncertainty, columns)
                folder = Path(target) if Path(target).is_dir() else None
                if folder:
                    inputs.read_summary(folder)  # refused now where it is none of ours, and not after the work
                settings |= {"flip": not no_flip, "device": device, "workers": workers, "max_memory_gb": max_memory}
                with closing(batch.run(todo, model, weights, tell, **settings)) as running:
                    for outcome in running:
                        outcomes.append(outcome)
                        failed = outcome.status == "failed"
                        tell(one_line(outcome.message) if failed else outcome.job.target, err=failed)
            finally:
                if folder and outcomes:
                    summary = inputs.write_summary(folder, outcomes)
                    counts = {s: sum(o.status == s for o in outcomes) for s in ("enhanced", "done before", "failed")}
                    tell(f"{', '.join(f'{n} {status}' for status, n in counts.items())}; see {summary}")
    except InputError:
        raise
    except KeyboardInterrupt:
        tell(one_line("stopped; the same command goes on where it was"))
        sys.exit(130)
    except Exception as err:  # such as a full disk: no traceback is of use to who has a scan to enhance
        raise InputError(f"failed unexpectedly ({type(err).__name__}: {first_line(err)})") from err
    if any(o.status == "failed" for o in outcomes):
        sys.exit(1)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this block what ends a process (scancel, a closed terminal) raises KeyboardInterrupt, as Ctrl-C does.

    A hang-up that nohup ignores stays ignored. SIGINT is heard even where a script's ``&`` has it ignored.
    """
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heard = [s for s, handler in before.items() if s is signal.SIGINT or handler is signal.SIG_DFL]
    try:
        for s in heard:
            signal.signal(s, signal.default_int_handler)
        yield
    finally:
        for s in heard:
            signal.signal(s, before[s])
