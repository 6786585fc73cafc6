"""Find label maps to train on: a manifest with its table of classes and intensity priors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srlib.core.paths import (
    InputError,
    StrPath,
    built_in,
    cohort_label,
    data_dir,
    digest,
    locate,
    make_dir,
    root,
)
from srlib.data import cohorts
from srlib.data.layouts import write_manifest
from srlib.data.manifest import Subject, read_manifest
from srlib.scans.volume import load_nifti
from srlib.synthesis import priors as intensities
from srlib.synthesis.priors import Label, Prior

CONTRASTS = ("t1", "t2")


@dataclass(frozen=True)
class LabelFiles:
    """Files: a manifest whose rows have ``labels``, the table of their classes, the priors."""

    manifest: Path
    classes: Path
    priors: Path


def find(manifest: StrPath = "", classes: StrPath = "", priors: str = "") -> LabelFiles:
    """Label maps to train on: those given; else SynthSR's, where they exist; else the built-in.

    SynthSR's tutorial data are read from the folder that is given instead of a manifest, else from
    ``synthsr/`` of the data folder. Priors that are not given are measured on the rows' own scans.
    Raises InputError for a manifest without classes, and as ``read_manifest`` and
    ``estimate_priors``.
    """
    folder = locate(manifest or data_dir() / "synthsr")
    tables = [*folder.glob("*/generation_labels.npy")]
    if tables and (folder / "labels").is_dir():
        return _synthsr(folder, tables[0])
    if not manifest:
        return builtin()
    if not classes:
        raise InputError(f"{manifest}: a table of its classes is needed; see csv/README.md")
    manifest, classes = locate(manifest), locate(classes)
    return LabelFiles(manifest, classes, locate(priors) if priors else _measured(manifest, classes))


def builtin() -> LabelFiles:
    """The built-in cohort's label maps, of four tissues; they are made where they do not exist.

    Raises InputError outside a checkout.
    """
    manifest = root() / "csv" / "example.csv"
    if not built_in(manifest):
        raise InputError("no label maps: outside a checkout, give a manifest and its classes")
    try:
        read_manifest(manifest, "train")
    except InputError:  # its volumes do not exist
        cohorts.build(manifest=manifest)
    return find(manifest, manifest.with_name("classes_tissue.csv"))


def measure(subjects: Sequence[Subject], table: Sequence[Label]) -> dict[str, Prior]:
    """Priors of each contrast (t1, t2) that has scans with label maps; InputError when none has."""
    found = {}
    for contrast in CONTRASTS:
        chosen = [s for s in subjects if {contrast, "labels"} <= s.files.keys()]
        if chosen:
            pairs = (
                (s.name, load_nifti(s.file(contrast)), load_nifti(s.file("labels"))) for s in chosen
            )
            found[contrast] = intensities.estimate_priors(pairs, table)
    if not found:
        raise InputError(
            "no row has a scan (t1 or t2) and labels; fill in these columns, or use another --split"
        )
    return found


def _measured(manifest, classes):
    """Measure priors on the training rows, and write them into the data folder."""
    found = measure(read_manifest(manifest, "train"), intensities.read_classes(classes))
    content = repr({name: np.array(prior).tolist() for name, prior in found.items()})
    label = f"{cohort_label(manifest)}_priors_{digest(content)[:8]}"
    return intensities.write_priors(found, make_dir(data_dir()) / f"{label}.csv")


def _synthsr(folder, labels):
    """SynthSR's tutorial: a quarter of its label maps for validation, its priors as one CSV."""
    made = make_dir(data_dir() / "made")  # a folder of ours, whose files are made anew
    split = (0.75, 0.25, 0)
    manifest = write_manifest("synthsr", folder, made / "synthsr.csv", split=split, force=True)
    priors = {}
    for file in sorted(labels.parent.glob("prior_means_*.npy")):
        priors |= intensities.read_priors(file)
    table = intensities.write_priors(priors, made / "synthsr_priors.csv", force=True)
    return LabelFiles(manifest, labels, table)
