"""Classes of labels, and their intensity priors: measure, read and write them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from srlib.core.paths import InputError, StrPath, explained
from srlib.core.tables import Row, read_table, write_table
from srlib.scans.space import resample_to
from srlib.scans.volume import Volume

COLOURS = """
0 background
2 Left-Cerebral-White-Matter
3 Left-Cerebral-Cortex
4 Left-Lateral-Ventricle
5 Left-Inf-Lat-Vent
7 Left-Cerebellum-White-Matter
8 Left-Cerebellum-Cortex
10 Left-Thalamus
11 Left-Caudate
12 Left-Putamen
13 Left-Pallidum
14 3rd-Ventricle
15 4th-Ventricle
16 Brain-Stem
17 Left-Hippocampus
18 Left-Amygdala
26 Left-Accumbens-area
28 Left-VentralDC
29 Left-undetermined
31 Left-choroid-plexus
24 CSF
41 Right-Cerebral-White-Matter
42 Right-Cerebral-Cortex
43 Right-Lateral-Ventricle
44 Right-Inf-Lat-Vent
46 Right-Cerebellum-White-Matter
47 Right-Cerebellum-Cortex
49 Right-Thalamus
50 Right-Caudate
51 Right-Putamen
52 Right-Pallidum
53 Right-Hippocampus
54 Right-Amygdala
58 Right-Accumbens-area
60 Right-VentralDC
61 Right-undetermined
63 Right-choroid-plexus
"""  # label and name as in FreeSurferColorLUT.txt, of those that SynthSR knows
FREESURFER = {int(line.split()[0]): line.split()[1] for line in COLOURS.strip().splitlines()}
UNDETERMINED = (29, 61)  # FreeSurfer's labels of stray voxels, left out unless a table has them
PERCENTILES = (2, 98)  # of a scan, brought to 0 and 255 before it is measured
MAD_TO_STD = 1.4826  # the median absolute deviation of a Gaussian, as its std
QUANTITIES = ("mean", "std")
PRIORS = ("modality", "class", "quantity", "mean", "std")  # columns

# (2, K) each: row 0 mean, row 1 std, of the class means and of the class stds
Prior = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Label:
    """A label of a map: its class, from 0 (background) to K - 1, and side, left, right or "".

    The class is None where its voxels are left out.
    """

    label: int
    class_: int | None
    name: str = ""
    side: str = ""


def read_classes(path: StrPath) -> tuple[Label, ...]:
    """The class of each label, from a CSV or from the original ``generation_{labels,classes}.npy``.

    Where ``generation_labels.npy`` stands alone, each label is a class of its own. The CSV's
    columns are label, class, and perhaps name (FreeSurfer's when empty) and side; an empty class
    leaves the label out. Raises InputError: unknown column, label twice, classes that are not 0 to
    K - 1, another side.
    """
    path = Path(path)
    if path.suffix == ".npy":
        alone = not path.with_name(path.name.replace("labels", "classes")).exists()
        if alone and "labels" in path.name:
            pairs = ((label, number) for number, label in enumerate(_array(path, path.name).flat))
        else:
            pairs = zip(*_pair(path, "labels", "classes", 1), strict=True)
        rows = [Row({"label": f"{label:.9g}", "class": f"{class_:.9g}"}) for label, class_ in pairs]
    else:
        rows = read_table(path, ("label", "class"), ("name", "side"))
    table = {}
    for row in rows:
        where = getattr(row, "place", path)
        label = _whole(row["label"], f"{where}, label")
        class_ = _whole(row["class"], f"{where}, class") if row["class"] else None
        name, side = row.get("name") or FREESURFER.get(label, ""), row.get("side", "")
        if label in table:
            raise InputError(f"{where}: label {label} stands twice; one row per label")
        if side not in ("", "left", "right"):
            raise InputError(f"{where}, side: expected left, right or nothing, got {side!r}")
        table[label] = Label(label, class_, name, side)
    used = sorted({entry.class_ for entry in table.values() if entry.class_ is not None})
    last = max(len(used) - 1, 0)
    if used != [*range(last + 1)]:
        raise InputError(f"{path}: expected every class from 0 to {last}, got {used}")
    return tuple(table.values())


def classes_of(table: Sequence[Label]) -> dict[int, int | None]:
    """The class of each label; None where its voxels are left out, as FreeSurfer's stray ones."""
    return {**dict.fromkeys(UNDETERMINED), **{row.label: row.class_ for row in table}}


def look_up(labels: Volume, table: Mapping[int, int]) -> np.ndarray:
    """The table's entry for the label of each voxel, (X, Y, Z).

    Raises InputError: numbers that are not whole, a label that is not in the table.
    """
    from pandas import factorize  # slow to import; np.unique would sort all voxels

    places, values = factorize(labels.data.ravel(), use_na_sentinel=False)
    if (values % 1).any():
        raise InputError("its label map holds numbers that are not whole; was it interpolated?")
    for label in sorted(values):
        if label not in table:
            raise InputError(
                f"label {label:.0f} ({(labels.data == label).sum()} voxels) has no class; add it, "
                "with an empty class to leave it out"
            )
    return np.array([table[label] for label in values])[places].reshape(labels.shape)


def partners(classes: Sequence[Label]) -> dict[int, int]:
    """Label -> the same structure's on the other side, by ``side`` or names that begin with it.

    Raises InputError for a label whose ``side`` is given, but that has no partner of the same name.
    """
    pairs, found = defaultdict(dict), {}
    for entry in classes:
        prefix, name = re.match(r"(left|right|)[\W_]*(.*)", entry.name.lower()).groups()
        if entry.side or prefix:
            pairs[name][entry.side or prefix] = entry.label
    for pair in pairs.values():
        if len(pair) == 2:
            left, right = pair.values()
            found |= {left: right, right: left}
    for entry in classes:
        if entry.side and entry.label not in found:
            raise InputError(
                f"label {entry.label} ({entry.name or 'no name'}) is on the {entry.side} side and "
                "has no partner; give both the same name but for Left and Right, or no side"
            )
    return found


def estimate_priors(
    pairs: Iterable[tuple[str, Volume, Volume]], classes: Sequence[Label], *, rescale: bool = True
) -> Prior:
    """Priors of one contrast from (subject, scan, label map).

    Mean and std over subjects of each class's median and MAD. The scan's 2nd and 98th percentile
    become 0 and 255, and it is clipped there (``rescale``); zeros count for class 0 alone; the MAD
    is times 1.4826 (all as the code). Unlike there, a subject without a class does not count as 0
    for it. Label maps are brought on their scans' grids by the affines (nearest neighbour). Raises
    InputError, naming the subject: a map that does not cover its scan, labels that are not whole
    numbers or have no class; and for a class with no voxel in any subject.
    """
    found = []
    for subject, scan, labels in pairs:
        with explained(f"subject {subject}", "cannot be measured", "look at its scans"):
            found.append(_statistics(scan, labels, classes, rescale))
    if not found:
        raise InputError("no scan with a label map; priors need at least one")
    missing = np.flatnonzero(np.isnan(found).all((0, 1)))
    if missing.size:
        members = [f"{row.label} {row.name}".strip() for row in classes if row.class_ == missing[0]]
        raise InputError(
            f"class {missing[0]} ({', '.join(members)}) has no voxel in any subject (zeros count "
            "for class 0 alone); merge it into another class"
        )
    means, stds = np.stack([np.nanmean(found, 0), np.nanstd(found, 0)], axis=1)
    return means, stds


def _statistics(
    scan: Volume, labels: Volume, classes: Sequence[Label], rescale: bool
) -> np.ndarray:
    """Median and scaled MAD of each class, (2, K); NaN where it has no voxel."""
    labels = resample_to(labels, scan, order=0, least=1, what="the label map")
    known = {k: -1 if c is None else c for k, c in classes_of(classes).items()}
    class_of = look_up(labels, known)
    data = scan.data
    if rescale:
        low, high = np.percentile(data, PERCENTILES)
        if low == high:
            raise InputError("the scan is constant between its 2nd and 98th percentile")
        data = (np.clip(data, low, high) - low) * (255 / (high - low))
    out = np.full((2, 1 + max(known.values())), np.nan)
    for index in range(out.shape[1]):
        seen = data[(class_of == index) & ((data > 0) | (index == 0))]
        if seen.size:
            middle = np.median(seen)
            out[:, index] = middle, MAD_TO_STD * np.median(np.abs(seen - middle))
    return out


def write_priors(priors: Mapping[str, Prior], path: StrPath, *, force: bool = False) -> Path:
    """Write the priors of each modality as a tidy CSV.

    Its columns are modality, class, quantity (mean or std), and the quantity's mean and std. Raises
    InputError when another file exists there, unless ``force``.
    """
    rows = []
    for modality, prior in priors.items():
        for index, parts in enumerate(np.transpose(prior, (2, 0, 1))):
            for quantity, (mean, std) in zip(QUANTITIES, parts, strict=True):
                rows.append((modality, index, quantity, f"{mean:.6f}", f"{std:.6f}"))
    return write_table(path, PRIORS, rows, force=force)


def read_priors(path: StrPath) -> dict[str, Prior]:
    """Priors by modality, from our CSV or the original ``prior_means_*.npy``, ``prior_stds_*.npy``.

    The modality of the latter is the rest of the name. Raises InputError: unknown column or
    quantity, a row twice or missing, a number that is not finite, a negative std, an array of other
    than two rows.
    """
    path = Path(path)
    if path.suffix == ".npy":
        means, stds = _pair(path, "prior_means", "prior_stds", 2)
        if len(means) != 2 or not means.size:
            raise InputError(f"{path}: expected two rows (means, stds), got an array {means.shape}")
        name = re.sub("prior_(means|stds)", "", path.stem).strip("_") or "image"
        priors = {name: (means, stds)}
    else:
        priors = _tidy(path)
    for modality, (means, stds) in priors.items():
        if not np.isfinite([means, stds]).all() or min(means[1].min(), stds.min()) < 0:
            raise InputError(
                f"{path}: {modality} has a number that is not finite or a negative std"
            )
    return priors


def _tidy(path: Path) -> dict[str, Prior]:
    cells, priors = defaultdict(list), {}
    for row in read_table(path, PRIORS, ()):
        key = _whole(row["class"], f"{row.place}, class"), row["quantity"]
        cells[row["modality"]].append((key, row["mean"], row["std"]))
    for modality, held in cells.items():
        keys, *values = zip(*sorted(held), strict=True)
        if not modality or list(keys) != list(product(range(len(keys) // 2), QUANTITIES)):
            raise InputError(
                f"{path}: expected one row for mean and one for std of each class from 0 to the "
                f"last, got others for modality {modality!r}"
            )
        with explained(path, "expected numbers as mean and std", "measure them again"):
            table = np.array(values, float).reshape(2, -1, 2)
        priors[modality] = tuple(table.transpose(2, 0, 1))
    return priors


def _whole(cell: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", cell):
        raise InputError(f"{where}: expected a whole number from 0 on, got {cell!r}")
    return int(cell)


def _pair(path: Path, first: str, second: str, dims: int) -> list[np.ndarray]:
    """Real numbers of one shape from two ``.npy`` files, of which ``path`` is either.

    Nothing in the files is run.
    """
    names = [path.name.replace(second, first), path.name.replace(first, second)]
    if names[0] == names[1]:
        raise InputError(f"{path}: expected a name with {first} or {second}")
    arrays = [_array(path, name) for name in names]
    shapes = [array.shape for array in arrays]
    if shapes[0] != shapes[1] or len(shapes[0]) != dims:
        raise InputError(f"{path}: expected {dims} axes and one shape in both files, got {shapes}")
    return arrays


def _array(path: Path, name: str) -> np.ndarray:
    """The real numbers of the ``.npy`` file of that name beside ``path``."""
    with explained(path, f"{name}, of its pair, is not a readable .npy file of real numbers"):
        # a map refuses a shape beyond the file
        values = np.load(path.with_name(name), mmap_mode="r", allow_pickle=False)
        return np.array(values.astype(float, casting="same_kind"))
