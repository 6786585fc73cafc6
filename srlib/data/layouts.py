"""Write the manifest of a data set that lies in a known folder layout."""

import itertools
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, ScanWarning, StrPath, apart, choose
from srlib.core.tables import VOLUMES, check_name, read_table, write_table
from srlib.scans.formats import scans_in
from srlib.scans.headers import check_file

SPLITS = {3: ("train", "val", "test"), 4: ("train", "val", "eval", "test")}
SCANS = ("*.nii.gz", "*.nii", "*.mgz")
END = r"\.(?:nii|nii\.gz|mgz)$"
HCP, ADNI = "*/unprocessed/3T/T1w_MPR1/*_", "*/T1_brain_extractedBrainExtraction"
KIRBY = "**/KKI2009-[0-9][0-9]-"
PATTERNS = {  # layout -> column -> where its files lie
    # Chen et al. and its replication
    "hcp": {"t1": [f"{HCP}3T_T1w_MPR1.nii.gz"], "lr": [f"{HCP}LR.mat"]},
    # Sanchez & Vilaplana
    "adni": {"t1": [f"{ADNI}Brain.nii.gz"], "mask": [f"{ADNI}Mask.nii.gz"]},
    # Pham et al.
    "kirby": {"t1": [f"{KIRBY}MPRAGE.nii.gz"], "t2": [f"{KIRBY}T2w.nii.gz"]},
    "bids": {
        "t1": ["sub-*/anat/*_T1w.nii*", "sub-*/ses-*/anat/*_T1w.nii*"],
        "t2": ["sub-*/anat/*_T2w.nii*", "sub-*/ses-*/anat/*_T2w.nii*"],
    },
    "synthsr": {"labels": [f"labels/{s}" for s in SCANS], "t1": [f"images/{s}" for s in SCANS]},
    "flat": {"t1": SCANS},
}
SUBJECTS = {  # layout -> the subject's name in a file's path; several groups are joined
    "hcp": r"^([^/]+)",
    "adni": r"^([^/]+)",
    "kirby": r"(KKI2009-\d\d)-[^/]*$",
    "bids": rf"^(sub-[^/]*)/(ses-[^/]*)?.*{END}",
    "synthsr": rf"([^/]+?)(?:[_-](?:labels?|seg|aseg|dseg|image|t1w?))?{END}",
    "flat": rf"([^/]+){END}",
}


def _by_number(file):
    """Key that sorts run-2 before run-10."""
    return [(int(n or 0), word) for word, n in re.findall(r"(\D*)(\d*)", str(file))], str(file)


def _find(layout, folder):
    """Files by the layout's patterns; hidden ones are skipped, ``**`` does not follow links."""
    found = defaultdict(dict)  # subject -> column -> file
    for column, patterns in PATTERNS[layout].items():
        paths = itertools.chain.from_iterable(map(folder.glob, patterns))
        if layout == "flat":
            paths = scans_in(folder)  # also B.NII.GZ
        for file in sorted(paths, key=_by_number):
            inside = file.relative_to(folder).as_posix()
            named = re.search(SUBJECTS[layout], inside, re.IGNORECASE)
            if not named or file.is_dir() or re.search(r"(^|/)\.", inside):
                continue
            check_file(file)  # a link may lead nowhere
            name = "_".join(filter(None, named.groups()))
            first = found[name].setdefault(column, file)
            if first != file and layout != "bids":
                raise InputError(
                    f"two files for the {column} of subject {name}, {first} and {file}; "
                    "keep one of them"
                )
            if len({re.sub(r"_run-\d+", "", p.name) for p in (first, file)}) > 1:
                line = f"subject {name}: {first.name} is its {column}, {file.name} is left out"
                warnings.warn(line, ScanWarning, stacklevel=3)
    if layout == "synthsr":
        for files in found.values():
            if "labels" not in files:
                raise InputError(
                    f"{files['t1']}: no label map of the same name in labels/; rename one of the "
                    "two, or take the scan away"
                )
    return {name: files for name, files in found.items() if files.keys() & {"t1", "t2", "labels"}}


def write_manifest(
    layout: str,
    folder: StrPath,
    out: StrPath,
    *,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    subjects: Path | None = None,
    force: bool = False,
) -> Path:
    """Write the manifest of a data set's folder; the same bytes for the same files, split and seed.

    ``split``: train, val, [eval,] test as shares that sum to 1 or as counts of people; people
    beyond the counts are left out. ``subjects``: CSV with the column ``id`` (subject, or person
    with all sessions) and optionally ``person``, whose scans stay in one split, and ``split``,
    which is kept instead of one by the seed. Raises InputError for an unknown layout, a missing
    folder or CSV, no scan, a bad split or seed, subjects whose names differ too little, another
    file under the name ``out`` unless ``force``.
    """
    folder, out, base = Path(folder).resolve(), Path(out), Path(out).parent.resolve()
    patterns = choose(PATTERNS, layout, "layout")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the scans")
    if not base.is_dir() or out.is_dir():
        raise InputError(
            f"cannot write {out}: --out expects the name of a file in a folder that exists"
        )
    apart([out], filter(None, [subjects]))
    found = _find(layout, folder)
    if not found:
        expected = " or ".join(itertools.chain(*patterns.values()))
        raise InputError(f"{folder}: no scan found for the layout {layout}; expected {expected}")
    people = {name: name.split("_ses-")[0] if layout == "bids" else name for name in found}
    sessions = Counter(people.values())
    for name, person in [*people.items()]:
        if sessions[person] == 1:  # a single session is named by the person
            found[person], people[person] = found.pop(name), people.pop(name)
    people, splits = (people, {}) if subjects is None else _choose(people, Path(subjects))
    splits = splits or _assign(sorted(set(people.values())), split, seed)
    rows = [name for name in sorted(people) if people[name] in splits]
    columns = [c for c in VOLUMES if any(c in found[name] for name in rows)]
    table, taken = [], {}
    for name in rows:
        check_name(name, str(folder), taken)
        cells = [name, splits[people[name]]]
        for file in map(found[name].get, columns):
            cells.append(file and os.path.relpath(file, base))
        table.append(cells)
    return write_table(out, ["subject", "split", *columns], table, force=force)


def _choose(people, path):
    """Subject -> person of the ids in a CSV, whose column ``person`` overrules; person -> split."""
    rows = read_table(path, ("id",), ("person", "split"))
    scans = defaultdict(list)
    for name, person in people.items():
        for key in {name, person}:
            scans[key].append(name)
    unknown = [row["id"] for row in rows if row["id"] not in scans]
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} ids without a scan: {', '.join(unknown[:3])}; "
            f"scans: {min(people)}, ..."
        )
    listed = [(name, row) for row in rows for name in scans[row["id"]]]
    persons = {(name, row.get("person") or people[name]) for name, row in listed}
    if len(persons) > len(people := dict(persons)):
        twice = next(name for name, person in persons if people[name] != person)
        raise InputError(f"{path}: {twice} is of two persons; choose one of them")
    splits = {}
    for name, row in listed:
        if split := row.get("split"):
            choose(SPLITS[4], split, f"{path}: split")
            if splits.setdefault(people[name], split) != split:
                raise InputError(f"{path}: {people[name]} stands in two splits; choose one of them")
    return people, splits


def _assign(people, split, seed):
    """Person -> split, shuffled by the seed.

    Shares give counts by largest remainder; from 3 people on no split is empty.
    """
    parts = np.asarray(split, dtype=float).ravel()
    n = len(people)
    if len(parts) not in SPLITS or not ((parts >= 0) & (parts < np.inf)).all():
        raise InputError(
            f"--split: expected 3 or 4 shares or counts (train, val, [eval,] test), got {split}"
        )
    if seed < 0:
        raise InputError(f"--seed: expected a whole number from 0 on, got {seed}")
    if abs(parts.sum() - 1) < 1e-6:
        counts = np.floor(np.round(parts * n, 9)).astype(int)
        counts[np.argsort(np.round(counts - parts * n, 9), kind="stable")[: n - counts.sum()]] += 1
        while n >= 3 and (empty := (parts > 0) & (counts == 0)).any() and counts.max() > 1:
            counts[[np.argmax(counts), np.argmax(empty)]] += (-1, 1)
    elif (parts % 1).any() or not 0 < parts.sum() <= n:
        raise InputError(
            f"--split: expected shares that sum to 1, or counts of {n} people at most, got {split}"
        )
    else:
        counts = parts.astype(int)
    order = np.random.default_rng(seed).permutation(n)[: counts.sum()]
    splits = np.repeat(SPLITS[len(parts)], counts).tolist()
    return {people[i]: name for i, name in zip(order, splits, strict=True)}
