"""Folder layouts of the data sets that the papers used, turned into manifests."""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from srlib.paths import InputError, atomic

Found = dict[str, dict[str, Path]]  # subject -> column -> file
COLUMNS = ("t1", "t2", "image", "labels", "lr", "mask")  # in the order written
SPLITS = {3: ("train", "val", "test"), 4: ("train", "val", "eval", "test")}
BIDS, WEIGHTED = ("sub-*/", "sub-*/ses-*/"), {"t1": "T1w", "t2": "T2w"}
SCANS = ("*.nii.gz", "*.nii", "*.mgz")
HCP, ADNI, KIRBY = "*/unprocessed/3T/T1w_MPR1/*_", "*/T1_brain_extractedBrainExtraction", "**/KKI2009-[0-9][0-9]-"
PATTERNS: dict[str, dict[str, tuple[str, ...]]] = {  # layout -> column -> where its files lie
    "hcp": {"t1": (f"{HCP}3T_T1w_MPR1.nii.gz",), "lr": (f"{HCP}LR.mat",)},  # Chen et al. and its replication
    "adni": {"t1": (f"{ADNI}Brain.nii.gz",), "mask": (f"{ADNI}Mask.nii.gz",)},  # Sanchez & Vilaplana
    "kirby": {"t1": (f"{KIRBY}MPRAGE.nii.gz",), "t2": (f"{KIRBY}T2w.nii.gz",)},  # Pham et al.
    "bids": {c: tuple(f"{at}anat/*_{w}.nii{gz}" for at in BIDS for gz in ("", ".gz")) for c, w in WEIGHTED.items()},
    "synthsr": {c: tuple(f"{place}/{s}" for s in SCANS) for c, place in (("labels", "labels"), ("t1", "images"))},
    "flat": {"t1": SCANS},
}


def _subject(layout: str, file: PurePath) -> str:
    """The subject's name from a file's path inside the data set's folder."""
    stem = re.sub(r"\.(nii|nii\.gz|mgz)$", "", file.name)
    if layout == "synthsr":
        return re.sub(r"[_-](labels?|seg|aseg|dseg|image|t1w?)$", "", stem, flags=re.IGNORECASE)
    return {"flat": stem, "kirby": stem[:10], "bids": "_".join(file.parts[:-2])}.get(layout, file.parts[0])


def _find(layout: str, folder: Path) -> Found:
    """Files by the layout's patterns; hidden ones are skipped, ``**`` does not follow links."""
    found: Found = {}
    for column, patterns in PATTERNS[layout].items():
        for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
            inside = file.relative_to(folder)
            if not file.is_file() or any(part.startswith(".") for part in inside.parts):
                continue
            name = _subject(layout, inside)
            first = found.setdefault(name, {}).setdefault(column, file)
            if first != file and layout != "bids":  # BIDS numbers the runs of a session: the first by name counts
                raise InputError(f"two files for the {column} of subject {name}, {first} and {file}; keep one of them")
    return {name: files for name, files in found.items() if files.keys() & {"t1", "t2", "labels"}}


def _bids(folder: Path) -> Found:
    found = _find("bids", folder)
    people = [name.split("_ses-")[0] for name in found]  # one session only: named by the person
    return {p if people.count(p) == 1 else name: files for p, (name, files) in zip(people, found.items(), strict=True)}


def _synthsr(folder: Path) -> Found:
    """Label maps, with scans of the same name where there are any; when no name is shared, in sorted order."""
    found = _find("synthsr", folder)
    labels = {name: files for name, files in found.items() if "labels" in files}
    images = sorted(files["t1"] for name, files in found.items() if name not in labels)
    if images and (len(images) != len(labels) or any("t1" in files for files in labels.values())):
        raise InputError(f"{images[0]}: no label map of the same name in {folder / 'labels'}")
    for files, image in zip(labels.values(), images, strict=False):
        files["t1"] = image
    return labels


LAYOUTS: dict[str, Callable[[Path], Found]] = {name: partial(_find, name) for name in PATTERNS}
LAYOUTS |= {"bids": _bids, "synthsr": _synthsr}


def write_manifest(
    layout: str, folder: str | Path, out: str | Path, split: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0,
    subjects: Path | None = None
) -> Path:  # fmt: skip
    """Write the manifest of a data set's folder; the same bytes for the same files, split and seed.

    ``split``: train, val, [eval,] test as shares that sum to 1 or as counts of people; people beyond the counts
    are left out. ``subjects``: CSV with the column ``id`` (subject, or person with all sessions) and optionally
    ``person``, whose scans stay in one split. InputError: unknown layout, missing folder or CSV, no scan, bad split.
    """
    folder, out, base = Path(folder).resolve(), Path(out), Path(out).parent.resolve()
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the scans")
    if not base.is_dir() or out.is_dir():
        raise InputError(f"cannot write {out}: give the name of a file in a folder that exists")
    found = LAYOUTS[layout](folder)
    if not found:
        expected = sum(PATTERNS[layout].values(), ())
        raise InputError(f"{folder}: no scan found for the layout {layout}; expected {' or '.join(expected)}")
    people = {name: name.split("_ses-")[0] if layout == "bids" else name for name in found}
    people = people if subjects is None else _choose(people, Path(subjects))
    splits = _assign(sorted(set(people.values())), split, seed)
    rows = [name for name in sorted(people) if people[name] in splits]
    columns = [c for c in COLUMNS if any(c in found[name] for name in rows)]
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(["subject", "split", *columns])
    for name in rows:
        files = [found[name].get(c) for c in columns]
        near = [f and (os.path.relpath(f, base) if f.anchor == base.anchor else f) for f in files]  # else: other drive
        writer.writerow([name, splits[people[name]], *(f and Path(f).as_posix() for f in near)])
    with atomic(out) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
    return out


def _choose(people: dict[str, str], path: Path) -> dict[str, str]:
    """Subject -> person of the ids in a CSV; its column ``person`` overrules."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head, *rows = [[c.strip() for c in row] for row in csv.reader(file) if any(c.strip() for c in row)]
    except (OSError, ValueError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read ({err}); expected a CSV whose first column is id") from err
    if head[0] != "id" or not {*head[1:]} <= {"", "person"} or not rows:
        raise InputError(f"{path}: expected the column id (and perhaps person) and at least one row, got {head}")
    unknown = [row[0] for row in rows if row[0] not in {*people, *people.values()}]
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} ids without a scan: {', '.join(unknown[:3])}; scans: {min(people)}, ..."
        )
    given = [(row[0], dict(zip(head, row, strict=False)).get("person")) for row in rows]
    return {name: other or own for key, other in given for name, own in people.items() if key in (name, own)}


def _assign(people: list[str], split: Sequence[float], seed: int) -> dict[str, str]:
    """Person -> split, shuffled by the seed; shares give counts by largest remainder, none empty from 3 people on."""
    try:
        parts = np.array([float(v) for v in split])
    except (TypeError, ValueError):
        parts = np.array([])
    n = len(people)
    if len(parts) not in SPLITS or not np.isfinite(parts).all() or (parts < 0).any():
        raise InputError(f"split: expected 3 or 4 shares or counts (train, val, [eval,] test), got {split}")
    counts = np.floor(np.round(parts * n, 9)).astype(int)
    if abs(parts.sum() - 1) < 1e-6:
        counts[np.argsort(np.round(counts - parts * n, 9), kind="stable")[: n - counts.sum()]] += 1
        while n >= 3 and (empty := (parts > 0) & (counts == 0)).any() and counts.max() > 1:
            counts[[np.argmax(counts), np.argmax(empty)]] += (-1, 1)
    elif (counts := parts.astype(int)).sum() != parts.sum() or not 0 < parts.sum() <= n:
        raise InputError(f"split: expected shares that sum to 1, or counts of at most {n} people in all, got {split}")
    order = np.random.default_rng(seed).permutation(n)[: counts.sum()]
    return dict(zip((people[i] for i in order), np.repeat(SPLITS[len(parts)], counts).tolist(), strict=True))
