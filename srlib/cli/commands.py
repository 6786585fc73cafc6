"""The ``srlib`` command."""

import os
import sys
from pathlib import Path

import click
from click import argument, option

from srlib import __version__, data, systems  # the wings load what is asked of them
from srlib.cli.enhance import enhance, one_line, stop_on_signals
from srlib.cli.options import COHORT, CSV_OUT, DEVICE, FORCE, OVERRIDES, PROFILE, SEED, flag
from srlib.cli.scans import degrade, evaluate
from srlib.core.parts import literal
from srlib.core.paths import InputError, apart, results_dir


class Group(click.Group):
    """Commands whose bad input ends in one line and exit code 1."""

    def invoke(self, context: click.Context) -> None:
        if getattr(sys.stdout, "errors", "") == "strict":  # names of files need not be text
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            super().invoke(context)
        except BrokenPipeError:
            raise
        except (InputError, OSError, MemoryError) as err:  # such as a full disk behind the output
            click.echo(one_line(getattr(err, "strerror", None) or err), err=True)
            sys.exit(1)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__)
def main():
    """Replications of published medical-image super-resolution systems, side by side."""
    # Large tensors on huge pages where Linux offers them: whole-scan inference takes half the time.
    # PyTorch reads this once, at its first large allocation; kernels of notebooks inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


for command in (degrade, enhance, evaluate):
    main.add_command(command)


@main.command("list")
@argument("what", type=click.Choice(["systems", "tasks", "weights", "profiles"]))
def what_is_there(what):
    """Show what there is: systems and their experiments, tasks, weights, or profiles.

    \b
    Example:
      srlib list weights
    """
    from srlib.evaluation.markdown import to_text

    click.echo(to_text(systems.listing(what)), nl=False)


@main.command()
@argument("notebooks", nargs=-1)
@PROFILE
@option(
    "--cohort",
    default="",
    show_default="csv/example.csv, in paper csv/paper.csv",
    help="Manifest (CSV), or a table of one for each system.",
)
@SEED
@option(
    "-p",
    "parameters",
    type=(str, literal),
    multiple=True,
    metavar="NAME VALUE",
    help="A further notebook parameter.",
)
@option(
    "--workers",
    type=click.IntRange(1),
    show_default="2 in smoke and quick",
    help="Notebooks at the same time, each on its share of the cores.",
)
@flag("--force", "Run also what is finished and unchanged.")
@flag("--estimate", "Run nothing: say what time, memory and disk the trainings take here.")
def run(notebooks, profile, cohort, seed, parameters, estimate, **given):
    """Execute the notebooks in order (all, or those named), print the result table, and say
    whether it reproduces the reference.

    \b
    Example:
      srlib run --profile quick --cohort csv/example.csv
    """
    from srlib.cli import notebooks as runner
    from srlib.evaluation import results
    from srlib.evaluation.markdown import to_text

    cohort = cohort or runner.COHORTS.get(profile, "csv/example.csv")
    given |= {"parameters": dict(parameters), "estimate": estimate}
    stop_on_signals()
    folder = runner.run(profile, cohort, seed=seed, names=notebooks, **given)
    if estimate:
        return
    if (folder / "metrics.csv").is_file():
        table = results.tested(results.read_metrics(folder), cohort, seed)
        if not table.empty:
            click.echo(f"\n{to_text(results.standing(table))}", nl=False)
        if profile != "paper":
            click.echo(f"Profile {profile}: shows that the code learns; not a replication.")
        if not (notebooks or parameters):
            _compare(folder, cohort)
    click.echo(f"results: {folder}")


def _compare(folder, cohort):
    """Certify a finished run and print the verdict on it, where there is a reference."""
    from srlib.evaluation import certificate, verdict

    certificate.write(folder, cohort)
    lines = ["verdict: there is no reference of this profile and cohort in results/"]
    if verdict.references(folder):
        lines = verdict.verdict(verdict.compare(folder))
    click.echo("\n".join(lines))


@main.command()
@argument("run", default="")
@argument("reference", nargs=-1)
@flag("--strict", "Exit with 1 unless all numbers of the reference are reproduced.")
def compare(run, reference, strict):
    """Say which numbers of a run's folder are the reference's, and check its certificate.

    By default RUN is that of the profile quick, and the reference what comes with srlib.

    \b
    Example:
      srlib compare runs/quick
    """
    from srlib.evaluation import certificate, verdict

    run = run or results_dir("quick")
    table, files = verdict.compare(run, reference), certificate.check(run)
    click.echo("\n".join([*files, *verdict.verdict(table)]))
    known = table.dropna(subset="mean")
    if strict and (known.empty or not known["reproduced"].all() or files[1:]):
        sys.exit(1)


@main.command()
@argument("experiment")
@COHORT
@PROFILE
@OVERRIDES
@SEED
@option("--out", help="Folder of the run [default: its place under runs/].")
@DEVICE
@option("--precision", type=click.Choice(["32", "bf16"]), help="As --set training.precision=...")
@option("--processes", default=1, help="Processes (one per GPU) of a node that share each batch.")
@option("--nodes", default=1, help="Nodes with so many processes (docs/scale.md).")
@option("--start", help="Weights to start from: a file, ours or published, or an experiment.")
@flag("--snapshots", "Write weights and the validation patch whenever it is measured.")
@option("--store", help="Patches made by 'srlib store', instead of cutting them from scans.")
@option(
    "--start-critic",
    type=click.Path(exists=True),
    help="Critic's weights to start from (critic.safetensors).",
)
@flag("--tensorboard", "Log scalars and a sample image into the folder's tensorboard/.")
@option("--classes", help="Classes of labels (csv/README.md), where examples are synthetic.")
@option("--priors", help="Their intensities, made by 'srlib priors' [default: any].")
@option(
    "--segmenter", help="Trained segmenter (file or experiment), for experiments that need one."
)
@flag("--restart", "Set an interrupted run's checkpoint aside and start again.")
def train(experiment, cohort, profile, overrides, precision, **options):
    """Train one experiment; an interrupted training goes on where its last checkpoint was.

    \b
    Example:
      srlib train mdcsrn_res --cohort csv/mine.csv --profile quick --out runs/mine
    """
    from srlib.evaluation import runs
    from srlib.training.processes import is_first

    _own(experiment, overrides)
    if precision:
        kind = "bf16-mixed" if precision == "bf16" else "32-true"
        overrides = (*overrides, f"training.precision={kind}")
    for name in ("start", "segmenter"):
        options[name] = options[name] and systems.find_weights(options[name])
    weights = runs.train_recorded(experiment, profile, cohort, overrides=overrides, **options)
    if is_first():
        click.echo(weights)


def _own(experiment, overrides):
    """Raise InputError for an override of another experiment than the only one."""
    for text in overrides:
        other, of, _ = text.partition("=")[0].rpartition(":")
        if of and other != experiment:
            raise InputError(f"--set {text}: {other} is not {experiment}, which alone is used here")


@main.command()
@argument("experiment")
@COHORT
@PROFILE
@OVERRIDES
@option("--out", required=True, help="The HDF5 file to write.")
@FORCE
def store(experiment, cohort, profile, overrides, out, force):
    """Write an experiment's training patches as HDF5 (data and label), for 'srlib train --store' or
    for Caffe.

    For SRReCNN3D and SRCNN3D the texts that Caffe needs come beside it: OUT_net.prototxt,
    OUT_deploy.prototxt, OUT_solver.prototxt and OUT_train.txt, without OUT's suffix.

    \b
    Example:
      srlib store recnn --cohort csv/mine.csv --profile paper --out patches.h5
      caffe train --solver patches_solver.prototxt
      srlib enhance lr.nii.gz sr.nii.gz --weights patches_iter_20000.caffemodel
    """
    from srlib.core.tables import keep
    from srlib.systems import caffe_text
    from srlib.training import store as stores

    _own(experiment, overrides)
    apart([out], [cohort])
    chosen = systems.get(experiment, profile, overrides)
    texts = caffe_text.texts(chosen, Path(out))
    for path, text in texts.items():
        if not path.is_file() or path.read_bytes() != text.encode():
            keep(path, force=force)
    subjects = chosen.examples.select(data.read_manifest(cohort, "train"))
    patches = chosen.examples.open(subjects, chosen.pairs)
    click.echo(stores.write_store(patches, out, beside=texts, force=force))
    for path in texts:
        click.echo(path)


@main.command()
@argument("layout")
@argument("folder")
@CSV_OUT
@option("--split", default="0.7/0.1/0.2", help="train/val/test or train/val/eval/test.")
@SEED
@option("--subjects", help="CSV with the column id: only these subjects, in its split.")
@FORCE
def manifest(layout, folder, out, split, **options):
    """Write a manifest for a folder in a known layout: hcp, adni, kirby, bids, synthsr or flat.

    \b
    Example:
      srlib manifest flat my_scans --out csv/mine.csv --split 0.7/0.1/0.2 --seed 0
    """
    try:
        shares = tuple(map(float, split.split("/")))
    except ValueError as err:
        raise InputError(
            f"--split: expected numbers between slashes, like 0.7/0.1/0.2, got {split!r}"
        ) from err
    click.echo(data.write_manifest(layout, folder, out, split=shares, **options))


@main.command()
@argument("manifest")
@option(
    "--classes",
    required=True,
    help="CSV with label and class, or the original generation_labels.npy.",
)
@CSV_OUT
@option("--split", default="train", help="Rows of the manifest to use.")
@FORCE
def priors(manifest, classes, out, split, force):
    """Measure how bright each class of labels is: SynthSR's priors, for t1 and t2, from scans
    with label maps.

    \b
    Example:
      srlib priors csv/mine.csv --classes classes.csv --out priors.csv
    """
    from srlib.core.tables import keep
    from srlib.data import label_maps
    from srlib.synthesis import priors as intensities

    subjects = data.read_manifest(manifest, split)
    apart([out], [manifest, classes])
    keep(out, force=force)
    found = label_maps.measure(subjects, intensities.read_classes(classes))
    for contrast, prior in found.items():
        scans = sum({contrast, "labels"} <= set(s.files) for s in subjects)
        click.echo(f"{contrast}: {prior[0].shape[1]} classes from {scans} scans", err=True)
    click.echo(intensities.write_priors(found, out, force=force))


@main.command()
@argument("collection")
@argument("folder")
@option("--out", required=True, help="Folder for the NIfTI files.")
@option("--manifest", required=True, help="The CSV to write.")
@FORCE
def convert(**given):
    """Turn a published collection of 2-D images (deeplesion or duke) into NIfTI files and a
    manifest.

    \b
    Example:
      srlib convert deeplesion DeepLesion --out data/deeplesion --manifest csv/deeplesion.csv
    """
    from srlib.data import convert as collections

    click.echo(collections.convert(**given))
