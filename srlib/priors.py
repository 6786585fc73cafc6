"""Intensity priors of SynthSR's generative model: classes of labels, and how bright scans show them."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from srlib.paths import InputError, first_line
from srlib.space import resample_to
from srlib.tables import read_table, write_table
from srlib.volume import Volume

FREESURFER = {
    0: "background", 2: "Left-Cerebral-White-Matter", 3: "Left-Cerebral-Cortex", 4: "Left-Lateral-Ventricle",
    5: "Left-Inf-Lat-Vent", 7: "Left-Cerebellum-White-Matter", 8: "Left-Cerebellum-Cortex", 10: "Left-Thalamus",
    11: "Left-Caudate", 12: "Left-Putamen", 13: "Left-Pallidum", 14: "3rd-Ventricle", 15: "4th-Ventricle",
    16: "Brain-Stem", 17: "Left-Hippocampus", 18: "Left-Amygdala", 26: "Left-Accumbens-area", 28: "Left-VentralDC",
    29: "Left-undetermined", 31: "Left-choroid-plexus", 24: "CSF", 41: "Right-Cerebral-White-Matter",
    42: "Right-Cerebral-Cortex", 43: "Right-Lateral-Ventricle", 44: "Right-Inf-Lat-Vent",
    46: "Right-Cerebellum-White-Matter", 47: "Right-Cerebellum-Cortex", 49: "Right-Thalamus", 50: "Right-Caudate",
    51: "Right-Putamen", 52: "Right-Pallidum", 53: "Right-Hippocampus", 54: "Right-Amygdala",
    58: "Right-Accumbens-area", 60: "Right-VentralDC", 61: "Right-undetermined", 63: "Right-choroid-plexus",
}  # fmt: skip
UNDETERMINED = (29, 61)  # FreeSurfer's labels of stray voxels, left out where a table does not name them
PERCENTILES = (2, 98)  # of a scan, brought to 0 and 255 before it is measured
MAD_TO_STD = 1.4826  # the median absolute deviation of a Gaussian, as its std
QUANTITIES = ("mean", "std")
PRIORS = ("modality", "class", "quantity", "mean", "std")  # columns

Prior = tuple[np.ndarray, np.ndarray]  # (2, K) each: row 0 mean, row 1 std, of the class means and of the class stds


@dataclass(frozen=True)
class Label:
    """A label of a map: its class, 0 (background) to K - 1, or None to leave its voxels out; side left, right or none."""

    label: int
    class_: int | None
    name: str = ""
    side: str = ""


def read_classes(path: str | Path) -> tuple[Label, ...]:
    """The class of each label, from a CSV or from the original ``generation_labels.npy`` and ``generation_classes.npy``.

    The CSV's columns are label, class, and perhaps name (FreeSurfer's when empty) and side; an empty class leaves the
    label out. Raises InputError: unknown column, label twice, classes that are not 0 to K - 1, another side.
    """
    path = Path(path)
    if path.suffix == ".npy":
        labels, classes = (_array(file) for file in _both(path, "labels", "classes"))
        if labels.ndim != 1 or labels.shape != classes.shape or not (np.stack([labels, classes]) % 1 == 0).all():
            raise InputError(f"{path}: expected lists of whole numbers, as many labels as classes")
        rows = [(f"{path}", {"label": f"{a:.0f}", "class": f"{b:.0f}"}) for a, b in zip(labels, classes, strict=True)]
    else:
        rows = [(row.place, row) for row in read_table(path, ("label", "class"), ("name", "side"))]
    table: dict[int, Label] = {}
    for where, row in rows:
        label = _whole(row["label"], f"{where}, label")
        class_ = _whole(row["class"], f"{where}, class") if row["class"] else None
        if label in table:
            raise InputError(f"{where}: label {label} stands twice; one row per label")
        if row.get("side", "") not in ("", "left", "right"):
            raise InputError(f"{where}, side: expected left, right or nothing, got {row['side']!r}")
        table[label] = Label(label, class_, row.get("name") or FREESURFER.get(label, ""), row.get("side", ""))
    used = {entry.class_ for entry in table.values()} - {None}
    if not used or used != set(range(len(used))):
        raise InputError(f"{path}: expected every class from 0 to {max(len(used) - 1, 0)}, got {sorted(used)}")
    return tuple(table.values())


def known_labels(labels: Volume, known: Container[int]) -> tuple[list[int], np.ndarray]:
    """The labels of a map, sorted, and of each voxel its label's place among them.

    Raises InputError: numbers that are not whole, a label that is not among the known ones.
    """
    values, inverse = np.unique(labels.data, return_inverse=True)
    if not (values % 1 == 0).all():
        raise InputError("its label map holds numbers that are not whole; was it interpolated?")
    found = [int(v) for v in values]
    for label in found:
        if label not in known:
            voxels = np.count_nonzero(labels.data == label)
            raise InputError(
                f"label {label} ({voxels} voxels) has no class; add it, with an empty class to leave it out"
            )
    return found, inverse


def partners(classes: Sequence[Label]) -> dict[int, int]:
    """Label -> the same structure's on the other side, where there is one: by ``side``, or names that begin with it.

    Raises InputError for a label whose ``side`` is given, but that has no partner of the same name.
    """
    sides: dict[str, dict[str, int]] = {}
    for entry in classes:
        prefix, name = re.match(r"(left|right|)[\W_]*(.*)", entry.name.lower()).groups()
        if side := entry.side or prefix:
            sides.setdefault(name, {})[side] = entry.label
    pairs = [tuple(pair.values()) for pair in sides.values() if len(pair) == 2]
    found = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    alone = [entry for entry in classes if entry.side and entry.label not in found]
    if alone:
        raise InputError(
            f"label {alone[0].label} ({alone[0].name or 'no name'}) is on the {alone[0].side} side and has no partner; "
            "give both the same name but for Left and Right, or leave its side empty"
        )
    return found


def estimate_priors(
    pairs: Iterable[tuple[str, Volume, Volume]], classes: Sequence[Label], rescale: bool = True
) -> Prior:
    """Priors of one contrast from (subject, scan, label map): mean and std over subjects of each class's median and MAD.

    The scan's 2nd and 98th percentile become 0 and 255, and it is clipped there (``rescale``); zeros count for class 0
    alone; the MAD is times 1.4826 (all as the code). Unlike there, a subject without a class does not count as 0 for
    it. Label maps are brought on their scans' grids by the affines (nearest neighbour). Raises InputError, naming the
    subject: a map that does not cover its scan, labels that are not whole numbers or have no class; and for a class
    with no voxel in any subject.
    """
    found = []
    for subject, scan, labels in pairs:
        try:
            found.append(_statistics(scan, labels, classes, rescale))
        except InputError as err:
            raise InputError(f"subject {subject}: {err}") from err
    if not found:
        raise InputError("no scan with a label map; priors need at least one")
    table = np.stack(found)  # subject, median or deviation, class
    missing = np.flatnonzero(np.isnan(table[:, 0]).all(0))
    if missing.size:
        members = [f"{entry.label} {entry.name}".strip() for entry in classes if entry.class_ == missing[0]]
        raise InputError(
            f"class {missing[0]} ({', '.join(members)}) has no voxel{' above zero' if missing[0] else ''} in any "
            "subject; merge it into another class"
        )
    means, stds = (np.stack([np.nanmean(part, 0), np.nanstd(part, 0)]) for part in table.swapaxes(0, 1))
    return means, stds


def _statistics(scan: Volume, labels: Volume, classes: Sequence[Label], rescale: bool) -> np.ndarray:
    """Median and scaled MAD of each class, (2, K); NaN where it has no voxel."""
    labels = resample_to(labels, scan, order=0, least=1, what="the label map")
    known = dict.fromkeys(UNDETERMINED) | {entry.label: entry.class_ for entry in classes}
    values, inverse = known_labels(labels, known)
    data = scan.data
    if rescale:
        low, high = np.percentile(data, PERCENTILES)
        if low == high:
            raise InputError("the scan is constant between its 2nd and 98th percentile")
        data = (np.clip(data, low, high) - low) * (255 / (high - low))
    count = 1 + max(c for c in known.values() if c is not None)
    class_of = np.array([-1 if known[v] is None else known[v] for v in values])[inverse].reshape(data.shape)
    out = np.full((2, count), np.nan)
    for index in range(count):
        seen = data[class_of == index]
        seen = seen[seen > 0] if index else seen
        if seen.size:
            middle = np.median(seen)
            out[:, index] = middle, MAD_TO_STD * np.median(np.abs(seen - middle))
    return out


def write_priors(priors: Mapping[str, Prior], path: str | Path, force: bool = False) -> Path:
    """Write the priors of each modality as a tidy CSV: modality, class, quantity (mean or std), and its mean and std.

    Raises InputError when something else is there, unless ``force``.
    """
    rows = [
        (modality, index, quantity, *(f"{v:.6f}" for v in values[:, index]))
        for modality, prior in priors.items()
        for index in range(prior[0].shape[1])
        for quantity, values in zip(QUANTITIES, prior, strict=True)
    ]
    return write_table(path, PRIORS, rows, force)


def read_priors(path: str | Path) -> dict[str, Prior]:
    """Priors by modality, from our CSV or from the original ``prior_means_*.npy`` and ``prior_stds_*.npy``.

    Of the latter, named by either, the modality is the rest of the name; those of several are numbered. Raises
    InputError: unknown column or quantity, a row twice or missing, a number that is not finite, a negative spread.
    """
    path = Path(path)
    if path.suffix == ".npy":
        means, stds = (_array(file) for file in _both(path, "prior_means", "prior_stds"))
        if means.ndim != 2 or means.shape != stds.shape or means.shape[0] % 2 or not means.size:
            raise InputError(f"{path}: expected two rows per modality in both files, got {means.shape}, {stds.shape}")
        name = path.stem.replace("prior_means", "").replace("prior_stds", "").strip("_") or "image"
        names = [name] if len(means) == 2 else [f"{name}_{i + 1}" for i in range(len(means) // 2)]
        priors = {key: (means[2 * i : 2 * i + 2], stds[2 * i : 2 * i + 2]) for i, key in enumerate(names)}
    else:
        cells: dict[str, dict[tuple[str, int], tuple[float, float]]] = {}
        for row in read_table(path, PRIORS, ()):
            key = row["quantity"], _whole(row["class"], f"{row.place}, class")
            if not row["modality"]:
                raise InputError(f"{row.place}: the column modality is empty")
            if key[0] not in QUANTITIES or key in cells.setdefault(row["modality"], {}):
                raise InputError(
                    f"{row.place}: expected one row for mean and one for std of each class, got {key[0]!r}"
                )
            try:
                cells[row["modality"]][key] = float(row["mean"]), float(row["std"])
            except ValueError as err:
                raise InputError(f"{row.place}: expected numbers, got {row['mean']!r} and {row['std']!r}") from err
        priors = {}
        for modality, held in cells.items():
            if set(held) != set(product(QUANTITIES, range(len(held) // 2))):
                raise InputError(f"{path}: {modality} lacks the mean or the std of a class, from 0 to the last")
            priors[modality] = tuple(np.array([held[q, i] for i in range(len(held) // 2)]).T for q in QUANTITIES)
    for modality, (means, stds) in priors.items():
        if not (np.isfinite(means).all() and np.isfinite(stds).all()) or min(means[1].min(), stds.min()) < 0:
            raise InputError(f"{path}: {modality} has a number that is not finite, or a negative spread")
    return priors


def _whole(cell: str, where: str) -> int:
    if not cell.isascii() or not cell.isdecimal() or len(cell) > 9:
        raise InputError(f"{where}: expected a whole number from 0 on, got {cell!r}")
    return int(cell)


def _both(path: Path, first: str, second: str) -> tuple[Path, Path]:
    """The two files of a pair, of which ``path`` is either."""
    if first not in path.name and second not in path.name:
        raise InputError(f"{path}: expected a name with {first} or {second}")
    return path.with_name(path.name.replace(second, first)), path.with_name(path.name.replace(first, second))


def _array(path: Path) -> np.ndarray:
    """Real numbers from a ``.npy`` file, of which nothing is run."""
    try:
        values = np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # a map refuses a shape beyond the file
    except FileNotFoundError as err:
        raise InputError(f"{path}: no such file; it belongs to the other of its pair") from err
    except Exception as err:  # a header is parsed as Python's literals, which fails in many ways
        raise InputError(f"{path}: not a readable .npy file ({first_line(err)})") from err
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path}: expected real numbers, got {values.dtype}")
    return values.astype(float)
