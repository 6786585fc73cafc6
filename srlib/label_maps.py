"""Where label maps to paint come from: a manifest with its table of classes and its intensity priors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlib import example
from srlib.data import Subject, read_manifest
from srlib.layouts import write_manifest
from srlib.paths import InputError, built_in, cohort_label, data_dir, locate, make_dir, root
from srlib.priors import Label, Prior, estimate_priors, read_classes, read_priors, write_priors
from srlib.volume import load

CONTRASTS = ("t1", "t2")


@dataclass(frozen=True)
class LabelMaps:
    """A manifest whose rows have ``labels``, the table of their classes and the priors, all as files."""

    manifest: Path
    classes: Path
    priors: Path


def find(manifest: str = "", classes: str = "", priors: str = "") -> LabelMaps:
    """Label maps to train on: those given; else SynthSR's, where they are at hand; else those of the built-in cohort.

    SynthSR's tutorial data are looked for in ``synthsr/`` of the data folder. Priors that are not given are measured on
    the rows' own scans. Raises InputError: a manifest without classes, and as ``read_manifest`` and ``estimate_priors``.
    """
    if manifest:
        if not classes:
            raise InputError(f"{manifest}: label maps need a table of their classes; see csv/README.md")
        manifest, classes = locate(manifest), locate(classes)
        return LabelMaps(manifest, classes, locate(priors) if priors else _measured(manifest, classes))
    folder = data_dir() / "synthsr"
    if (folder / "priors" / "generation_labels.npy").is_file() and (folder / "labels").is_dir():
        return _synthsr(folder)
    return builtin()


def builtin() -> LabelMaps:
    """The built-in cohort's, of four tissues; it is made when it is not there. InputError outside a checkout."""
    manifest = root() / "csv" / "example.csv"
    classes = manifest.with_name("classes_tissue.csv")
    if not built_in(manifest):
        raise InputError("no label maps: srlib is installed without the built-in ones; give a manifest and its classes")
    try:
        read_manifest(manifest, "train")
    except InputError:  # its volumes are not there
        manifest = example.build(manifest=manifest)
    return LabelMaps(manifest, classes, _measured(manifest, classes))


def measure(subjects: Sequence[Subject], table: Sequence[Label]) -> dict[str, Prior]:
    """Priors of each contrast (t1, t2) that has scans with label maps; InputError when none has."""
    found = {}
    for contrast in CONTRASTS:
        chosen = [s for s in subjects if {contrast, "labels"} <= set(s.files)]
        if chosen:
            pairs = ((s.name, load(s.file(contrast)), load(s.file("labels"))) for s in chosen)
            found[contrast] = estimate_priors(pairs, table)
    if not found:
        raise InputError("no row has a scan (t1 or t2) and labels; fill in these columns, or give another --split")
    return found


def _measured(manifest: str | Path, classes: str | Path) -> Path:
    found = measure(read_manifest(manifest, "train"), read_classes(classes))
    content = hashlib.sha256(repr([(k, p[0].tolist(), p[1].tolist()) for k, p in found.items()]).encode()).hexdigest()
    return write_priors(found, make_dir(data_dir()) / f"{cohort_label(manifest)}_priors_{content[:8]}.csv")


def _synthsr(folder: Path) -> LabelMaps:
    """SynthSR's tutorial: a quarter of its label maps for validation, its tables of classes and priors as one CSV."""
    made, tables = make_dir(data_dir() / "made"), folder / "priors"  # what lies there is ours and is made anew
    manifest = write_manifest("synthsr", folder, made / "synthsr.csv", (0.75, 0.25, 0), force=True)
    priors = {}
    for file in sorted(tables.glob("prior_means_*.npy")):
        priors |= read_priors(file)
    return LabelMaps(
        manifest, tables / "generation_labels.npy", write_priors(priors, made / "synthsr_priors.csv", force=True)
    )
