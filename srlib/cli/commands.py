"""The ``srlib`` command."""

import ast
import math
import os
import sys
from pathlib import Path

import click

from srlib import __version__
from srlib.cli.enhance import ALIGN, DEVICE, FACTOR, enhance, one_line
from srlib.core.paths import InputError, apart, root

DEGRADATIONS = {  # with the options that they take
    "gaussian": ("factor", "sigma", "align"),
    "kspace": ("factor",),
    "scanline": ("every",),
    "sparse_view": ("every",),
}
EVERY = {"scanline": 4, "sparse_view": 16}  # as published
PROFILE = click.option("--profile", default="quick", help="Budget: smoke, quick or paper.")
COHORT = click.option(
    "--cohort", default="csv/example.csv", help="Manifest (CSV) of the scans to use."
)
SEED = click.option("--seed", default=0)
CSV_OUT = click.option("--out", required=True, help="The CSV to write.")
FORCE = click.option("--force", is_flag=True, help="Replace what is there.")


class Group(click.Group):
    """Commands whose bad input ends in one line and exit code 1."""

    def invoke(self, context: click.Context) -> None:
        if getattr(sys.stdout, "errors", "") == "strict":  # names of files need not be text
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            super().invoke(context)
        except BrokenPipeError:
            raise
        except (InputError, OSError) as err:  # such as a full disk behind the standard output
            click.echo(one_line(getattr(err, "strerror", None) or err), err=True)
            sys.exit(1)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__)
def main() -> None:
    """Replications of published medical-image super-resolution systems, side by side."""
    # Large tensors on huge pages where Linux offers them: whole-scan inference takes half the time.
    # PyTorch reads this once, at its first large allocation; kernels of notebooks inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def literal(text: str) -> object:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@main.command()
@click.argument("notebooks", nargs=-1)
@PROFILE
@COHORT
@SEED
@click.option(
    "-p",
    "parameters",
    type=(str, literal),
    multiple=True,
    metavar="NAME VALUE",
    help="A further notebook parameter.",
)
@click.option("--force", is_flag=True, help="Run also what is finished and unchanged.")
def run(notebooks, profile, cohort, seed, parameters, force) -> None:
    """Execute the notebooks in order (all, or those named) and print the result table.

    \b
    Example:
      srlib run --profile quick --cohort csv/example.csv
    """
    from srlib.cli import notebooks as runner
    from srlib.evaluation import readme, results

    folder = runner.run(profile, cohort, seed, notebooks, dict(parameters), force)
    if (folder / "metrics.csv").is_file():
        table = results.tested(results.read_metrics(folder), cohort, seed)
        click.echo("" if table.empty else f"\n{readme.to_text(results.summary(table))}")
        if profile != "paper":
            click.echo(f"Profile {profile}: shows that the code learns; not a replication.")
    click.echo(f"results: {folder}")


@main.command()
@click.argument("experiment")
@COHORT
@PROFILE
@SEED
@click.option("--out", help="Folder of the run [default: its place under results/].")
@DEVICE
@click.option("--processes", default=1, help="Processes (one per GPU) that share each batch.")
@click.option(
    "--start", help="Weights to start from (file or experiment), for experiments that need them."
)
@click.option(
    "--snapshots", is_flag=True, help="Write the validation patch as NIfTI whenever it is measured."
)
@click.option("--store", help="Patches made by 'srlib store', instead of cutting them from scans.")
@click.option(
    "--start-critic",
    type=click.Path(exists=True),
    help="Critic's weights to start from (critic.safetensors).",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Log scalars and a sample image into the folder's tensorboard/.",
)
@click.option("--classes", help="Classes of labels (csv/README.md), where examples are synthetic.")
@click.option("--priors", help="Their intensities, made by 'srlib priors'.")
@click.option(
    "--segmenter", help="Trained segmenter (file or experiment), for experiments that need one."
)
@click.option(
    "--restart", is_flag=True, help="Set an interrupted run's checkpoint aside and start again."
)
def train(experiment, cohort, profile, seed, out, device, **options) -> None:
    """Train one experiment; an interrupted training goes on where its last checkpoint was.

    \b
    Example:
      srlib train mdcsrn_res --cohort csv/mine.csv --profile quick --out runs/mine
    """
    from srlib import data, systems
    from srlib.evaluation import runs
    from srlib.systems import trained, training

    for name in ("start", "segmenter"):
        options[name] = options[name] and trained.find_weights(options[name])
    if out:
        chosen, subjects = systems.get(experiment, profile), data.read_manifest(cohort)
        split = ([s for s in subjects if s.split == part] for part in ("train", "val"))
        weights = training.train(chosen, *split, out, seed=seed, device=device, **options)
    else:  # in its place, where the notebooks look for it
        weights = runs.train_recorded(
            experiment, profile, cohort, seed=seed, device=device, **options
        )
    click.echo(weights)


@main.command()
@click.argument("experiment")
@COHORT
@PROFILE
@click.option("--out", required=True, help="The HDF5 file to write.")
@FORCE
def store(experiment, cohort, profile, out, force) -> None:
    """Write an experiment's training patches as HDF5 (data and label), for 'srlib train --store' or
    for Caffe.

    \b
    Example:
      srlib store recnn --cohort csv/mine.csv --profile paper --out patches.h5
    """
    from srlib import data, systems
    from srlib.training import store as stores

    chosen = systems.get(experiment, profile)
    subjects = chosen.examples.select(data.read_manifest(cohort, "train"))
    click.echo(stores.write_store(chosen.examples.open(subjects, chosen.pairs), out, force=force))


@main.command()
@click.argument("layout")
@click.argument("folder")
@CSV_OUT
@click.option("--split", default="0.7/0.1/0.2", help="train/val/test or train/val/eval/test.")
@SEED
@click.option("--subjects", help="CSV with the column id: only these subjects.")
@FORCE
def manifest(layout, folder, out, split, seed, subjects, force) -> None:
    """Write a manifest for a folder in a known layout: hcp, adni, kirby, bids, synthsr or flat.

    \b
    Example:
      srlib manifest flat my_scans --out csv/mine.csv --split 0.7/0.1/0.2 --seed 0
    """
    from srlib.data import layouts

    try:
        shares = tuple(map(float, split.split("/")))
    except ValueError as err:
        raise InputError(
            f"--split: expected numbers between slashes, like 0.7/0.1/0.2, got {split!r}"
        ) from err
    click.echo(layouts.write_manifest(layout, folder, out, shares, seed, subjects, force))


@main.command()
@click.argument("manifest")
@click.option(
    "--classes",
    required=True,
    help="CSV with label and class, or the original generation_labels.npy.",
)
@CSV_OUT
@click.option("--split", default="train", help="Rows of the manifest to use.")
@FORCE
def priors(manifest, classes, out, split, force) -> None:
    """Measure how bright each class of labels is: SynthSR's priors, for t1 and t2, from scans
    with label maps.

    \b
    Example:
      srlib priors csv/mine.csv --classes classes.csv --out priors.csv
    """
    from srlib import data
    from srlib.core.tables import keep
    from srlib.data import label_maps
    from srlib.synthesis import priors as intensities

    subjects = data.read_manifest(manifest, split)
    keep(out, force)
    found = label_maps.measure(subjects, intensities.read_classes(classes))
    for contrast, prior in found.items():
        scans = sum({contrast, "labels"} <= set(s.files) for s in subjects)
        click.echo(f"{contrast}: {prior[0].shape[1]} classes from {scans} scans", err=True)
    click.echo(intensities.write_priors(found, out, force))


@main.command()
@click.argument("collection")
@click.argument("folder")
@click.option("--out", required=True, help="Folder for the NIfTI files.")
@click.option("--manifest", required=True, help="The CSV to write.")
@FORCE
def convert(**given) -> None:
    """Turn a published collection of 2-D images (deeplesion or duke) into NIfTI files and a
    manifest.

    \b
    Example:
      srlib convert deeplesion DeepLesion --out data/deeplesion --manifest csv/deeplesion.csv
    """
    from srlib.data import convert as collections

    click.echo(collections.convert(**given))


@main.command()
@click.argument("source", metavar="IN", type=Path)
@click.argument("target", metavar="OUT", type=Path)
@click.option("--degradation", type=click.Choice([*DEGRADATIONS]), default="gaussian")
@click.option(
    "--factor",
    **FACTOR,
    help="Per voxel axis, 1 or more, of gaussian and kspace [default: 2, 1 across an image].",
)
@click.option(
    "--every",
    type=int,
    help="scanline: keep every N-th column; sparse_view: N-th of 1,000 [default: 4, 16].",
)
@click.option(
    "--window", nargs=2, type=float, metavar="LOW HIGH", help="Clip first, as CT to -1024 200 HU."
)
@click.option("--sigma", type=float, help="Gaussian blur in HR voxels [default: 1].")
@click.option("--align", type=ALIGN, help="Gaussian sampling grid [default: center].")
@click.option(
    "--on-grid",
    is_flag=True,
    help="Interpolate the result back on the input's grid (cubic spline).",
)
@click.option("--force", is_flag=True, help="Replace OUT also where this command did not make it.")
def degrade(source, target, degradation, window, on_grid, force, **options) -> None:
    """Make a low-resolution scan; its affine says where the coarse voxels lie.

    A NIfTI keeps its header, as by 'srlib enhance'. OUT is replaced where this command made it, and
    nothing else is without --force.

    \b
    Example:
      srlib degrade hr.nii.gz lr.nii.gz --degradation gaussian --factor 2 2 2
    """
    from srlib.degradations.resolution import make_degradation
    from srlib.scans import formats, headers, volume

    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in DEGRADATIONS[degradation]:
            raise InputError(
                f"--{name} does not belong to --degradation {degradation}; leave it out"
            )
    if window and not -math.inf < window[0] < window[1] < math.inf:
        raise InputError(
            f"--window: expected two numbers, the lower one first, got {window[0]:g} and {window[1]:g}"
        )
    apart([target, target.parent], [source])  # nor among the slices of a DICOM series
    if (
        os.path.lexists(target)
        and not force
        and "degradation" not in (headers.read_record(target) or {})
    ):
        raise InputError(
            f"{target} exists and was not made by 'srlib degrade'; --force replaces it"
        )
    hr = formats.load(source)
    factor = given.pop("factor", EVERY.get(degradation) or tuple(min(n, 2) for n in hr.shape))
    model = make_degradation(degradation, factor=given.pop("every", factor), **given)
    hr = hr.with_data(hr.data.clip(*window)) if window else hr
    lr = model(hr)
    lr = model.to_grid(lr, hr.shape) if on_grid else lr
    record = {
        "srlib": __version__,
        "degradation": repr(model),
        "window": window,
        "on_grid": on_grid,
    }
    header = headers.kept(
        source, hr.affine, lr.affine, lr.shape, f"srlib degrade {degradation}", record
    )
    headers.store_as(header, "float32", source, lr.data)
    click.echo(volume.save(lr, target, header.get_data_dtype(), header))


main.add_command(enhance)


@main.command()
@click.argument("hr", required=False)
@click.argument("sr", required=False)
@click.option("--mask", help="Scan that is non-zero where voxels count.")
@click.option(
    "--data-range", type=float, help="Peak of PSNR and SSIM [default: HR's maximum - minimum]."
)
@click.option(
    "--weights",
    help="Instead of two scans: a model, to be run on the degraded scans of a manifest.",
)
@COHORT
@click.option("--split", default="test", help="Its rows.")
@click.option("--task", help="Degradation, by its name in the tables [default: that of training].")
@click.option("--out", help="Folder for the HR, LR and SR scans and metrics.csv.")
def evaluate(hr, sr, mask, data_range, weights, cohort, split, task, out) -> None:
    """Measure an estimate (one CSV row, with its conventions), or a model on every test scan of
    a manifest.

    SR and mask lie anywhere in the world of HR, and SR covers it: where their voxels coincide they
    are compared as they are, else SR is interpolated on the grid of HR first, which is said.

    \b
    Example:
      srlib evaluate hr.nii.gz sr.nii.gz --mask brain.nii.gz
    """
    if weights and out and not hr:
        evaluate_model(weights, cohort, split, task or "", out)
    elif weights or out or not sr:
        raise InputError(
            "expected two scans, HR and SR, or --weights and --out; see 'srlib evaluate --help'"
        )
    else:
        evaluate_scan(hr, sr, mask, data_range)


def evaluate_model(weights: str, cohort: str, split: str, task: str, out: str) -> None:
    """Write what a model makes of a manifest's degraded scans; print statistics."""
    from srlib import data
    from srlib.evaluation import measure as whole
    from srlib.systems import trained

    apart([Path(out, "metrics.csv")], [cohort])
    table = whole.evaluate(
        trained.load_model(weights), data.read_manifest(cohort, split), out, task=task
    )
    click.echo(f"{whole.statistics(table).round(4).to_string()}\n{out}")


def evaluate_scan(hr: str, sr: str, mask: str | None, data_range: float | None) -> None:
    """Print the metrics of an estimate as a CSV."""
    import pandas as pd

    from srlib import metrics
    from srlib.scans import formats
    from srlib.scans.space import resample_to, same_lattice

    truth, estimate = formats.load(hr), formats.load(sr)
    placed, inside = resample_to(estimate, truth, least=1, what=f"{sr}, the estimate,"), None
    if not same_lattice(estimate, truth):
        click.echo(
            f"note: {sr} lies on another grid; it was interpolated on that of {hr} (cubic spline)",
            err=True,
        )
    if mask:
        inside = (
            resample_to(
                formats.load(mask), truth, order=0, outside=0, what=f"{mask}, the mask,"
            ).data
            != 0
        )
    if data_range is None:
        data_range = float(truth.data.max() - truth.data.min())
        if not data_range:
            raise InputError(
                f"{hr}: the truth is constant and has no range; give one by --data-range"
            )
    region = "mask" if mask else "volume"
    row = metrics.evaluate(truth.data, placed.data, data_range, inside)[region]
    row |= {
        "region": region,
        "data_range": data_range,
        "ssim_window": "uniform 7",
        "ssim2d_axis": 2,
        "nrmse_norm": "euclidean",
    }
    table = pd.DataFrame([row]).to_csv(index=False, float_format="%.6g", na_rep="nan")
    click.echo(table, nl=False)


@main.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when a table is stale.")
def readme(check) -> None:
    """Make the README's result tables from results/.

    \b
    Example:
      srlib readme --check
    """
    from srlib.evaluation import readme as tables

    stale = tables.update(check)
    if check and stale:
        raise InputError("README.md is stale; run 'srlib readme' and commit it")
    click.echo(f"{Path(root(), 'README.md')}: {'updated' if stale else 'up to date'}")
