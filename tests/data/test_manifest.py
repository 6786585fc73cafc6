"""Manifests refuse what cannot be used, by row, column and file; patches are a pure function of the seed."""

import gzip
import itertools
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from srlib import systems
from srlib.core.paths import InputError, ScanWarning
from srlib.data.manifest import Subject, load_mask, read_manifest
from srlib.data.pairs import Pair
from srlib.inference.prediction import CoarseToFine, Request, SameGrid
from srlib.models.recnn import ReCNN
from srlib.scans.headers import open_image
from srlib.scans.intensity import fit_scaling
from srlib.scans.patches import extract, grid_locations, random_locations
from srlib.scans.volume import (
    Volume,
    coarse_grid,
    crop_or_pad,
    load_nifti,
    reorient,
    resample,
    save_scan,
)
from srlib.systems.trained import Model
from srlib.training.examples import PatchDataset, foreground
from srlib.training.streams import KEPT, POOL

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def scan(path: Path, shape: tuple[int, ...] = (4, 4, 4), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_scan(Volume(np.random.default_rng(seed).uniform(1, 100, shape), AFFINE), path)


def table(folder: Path, text: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scans a.nii.gz and b.nii; SRLIB_DATA is another, empty one."""
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "elsewhere"))
    scan(tmp_path / "cohort/a.nii.gz")
    scan(tmp_path / "cohort/b.nii", seed=1)
    return tmp_path / "cohort"


# Manifests


def test_reads_subjects_in_order_and_by_split(folder: Path) -> None:
    manifest = table(folder, "subject,split,t1,t2\nz,test,a.nii.gz,\ny,train,b.nii,a.nii.gz\n")
    assert [(s.name, s.split, set(s.files)) for s in read_manifest(manifest)] == [
        ("z", "test", {"t1"}),
        ("y", "train", {"t1", "t2"}),
    ]
    (only,) = read_manifest(str(manifest), "train")
    assert only.file("t1") == folder / "b.nii"
    with pytest.raises(InputError, match="subject y has no mask; add the column mask"):
        only.file("mask")


def test_tolerates_bom_blank_lines_spaces_and_short_rows(folder: Path) -> None:
    text = "\ufeffsubject, split,t1,t2\r\n\r\n a ,train, a.nii.gz\r\n,,,\r\nb,val,b.nii,\r\n\r\n"
    (folder / "cohort.csv").write_bytes(text.encode())
    assert [(s.name, s.split) for s in read_manifest(folder / "cohort.csv")] == [
        ("a", "train"),
        ("b", "val"),
    ]


def test_rows_are_counted_as_the_editor_shows_them(folder: Path) -> None:
    with pytest.raises(InputError, match=r"row 4, column t1: gone\.nii"):
        read_manifest(table(folder, "subject,split,t1\n\na,train,a.nii.gz\nb,train,gone.nii\n"))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("subject,split,t1\na,train,gone.nii\n", ["row 2", "column t1", "gone.nii is neither in"]),
        ("subject,split,t1\na,train,.\n", ["row 2", "column t1", "is neither in"]),
        (
            "subject,split,t1\na,train,a.nii.gz\na,train,b.nii\n",
            ["row 3", "column subject", "a stands twice"],
        ),
        (
            "subject,split,t1\na,train,a.nii.gz\na,test,b.nii\n",
            ["row 3", "column subject", "a stands twice"],
        ),
        (
            "subject,split,flair\na,train,a.nii.gz\n",
            ["unknown column 'flair'", "expected subject, split and any of t1"],
        ),
        ("subject,t1\na,a.nii.gz\n", ["no column 'split'"]),
        ("subject,split,t1,t1\na,train,a.nii.gz,b.nii\n", ["a column stands twice, 't1'"]),
        (
            "subject,split,t1\na,training,a.nii.gz\n",
            ["row 2", "column split", "got 'training'", "train, val, eval, test"],
        ),
        ("subject,split,t1\na,,a.nii.gz\n", ["row 2", "column split", "got ''"]),
        ("subject,split,t1\na\n", ["row 2", "column split", "ends before it"]),
        (
            "subject,split,t1\n,train,a.nii.gz\n",
            ["row 2", "column subject", "'' cannot name a file"],
        ),
        ("subject,split,t1\na,train,\n", ["row 2", "no volume given"]),
        ("subject,split,t1\na,train,a.nii.gz,b.nii\n", ["row 2", "4 cells under 3 columns"]),
        ("subject,split,t1\n", ["expected a header and at least one row, got 1 lines"]),
        ("\n\n", ["expected a header and at least one row, got 0 lines"]),
        ("", ["expected a header and at least one row, got 0 lines"]),
    ],
)
def test_refuses_by_row_and_column(folder: Path, text: str, messages: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_manifest(table(folder, text))
    for message in ["cohort.csv", *messages]:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def text_file(path: Path) -> None:
    path.write_text("this is not a scan\n" * 40)


def truncated_in_its_header(path: Path) -> None:
    path.write_bytes(scan(path, (8, 8, 8)).read_bytes()[:60])


def four_dimensional(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), AFFINE), path)


def one_dimensional(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones(4, np.float32), AFFINE), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, "unreadable scan"),
        (Path.touch, "unreadable scan"),
        (truncated_in_its_header, "unreadable scan"),
        (four_dimensional, "expected a 3-D scan, got shape (4, 4, 4, 2)"),
        (one_dimensional, "expected a 3-D scan, got shape (4,)"),
    ],
)
@pytest.mark.parametrize("column", ["t1", "t2", "labels", "mask", "lr"])
def test_refuses_unusable_volumes(
    folder: Path, column: str, make: Callable[[Path], None], message: str
) -> None:
    make(folder / "bad.nii.gz")
    with pytest.raises(InputError) as error:
        read_manifest(
            table(folder, f"subject,split,{column}\ngood,train,a.nii.gz\nbad,train,bad.nii.gz\n")
        )
    for part in (f"row 3, column {column}", str(folder / "bad.nii.gz"), message):
        assert part in str(error.value)


def test_a_fourth_axis_of_length_one_is_3d(folder: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.arange(64, dtype=np.float32).reshape(4, 4, 4, 1), AFFINE),
        folder / "c.nii",
    )
    (subject,) = read_manifest(table(folder, "subject,split,t1\nc,test,c.nii\n"))
    assert (
        load_nifti(subject.file("t1")).shape == pairs_of([subject], smoke()).shapes[0] == (4, 4, 4)
    )


def test_a_truncated_mgz_is_refused(folder: Path) -> None:
    whole = scan(folder / "cut.mgz", (8, 8, 8)).read_bytes()
    for keep in (0, 12, 40):
        (folder / "cut.mgz").write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"row 2, column t1: .*cut\.mgz: unreadable scan"):
            read_manifest(table(folder, "subject,split,t1\ncut,train,cut.mgz\n"))
    (folder / "cut.mgz").write_bytes(
        gzip.compress(gzip.decompress(whole)[:40])
    )  # whole gzip, half a header
    with pytest.raises(InputError, match=r"row 2, column t1: .*cut\.mgz: unreadable scan"):
        read_manifest(table(folder, "subject,split,t1\ncut,train,cut.mgz\n"))


def test_a_scan_truncated_behind_its_header_is_named_when_loaded(folder: Path) -> None:
    whole = scan(folder / "cut.nii.gz", (8, 8, 8)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (subject,) = read_manifest(table(folder, "subject,split,t1\ncut,train,cut.nii.gz\n"))
    with pytest.raises(InputError, match=r"cut\.nii\.gz: unreadable or truncated scan"):
        smoke().pairs.make(subject)


def test_matlab_twins_belong_into_the_column_lr(folder: Path) -> None:
    (folder / "a_LR.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (subject,) = read_manifest(table(folder, "subject,split,t1,lr\na,train,a.nii.gz,a_LR.mat\n"))
    assert subject.file("lr") == folder / "a_LR.mat"
    with pytest.raises(InputError, match=r"row 2, column t1: .*a_LR\.mat: unreadable scan"):
        read_manifest(table(folder, "subject,split,t1\na,train,a_LR.mat\n"))


@pytest.mark.parametrize("column", ["labels", "mask"])
def test_masks_and_label_maps_lie_where_the_scan_lies(folder: Path, column: str) -> None:
    """On whatever grid: what is stored otherwise is brought by its affine, and what lies elsewhere is refused."""
    turned, away, beside = np.diag([-1.0, -1, 1, 1]), np.eye(4), np.diag([2.0, 2, 2, 1])
    turned[:3, 3], away[:3, 3], beside[:3, 3] = (3, 3, 0), (0, 50, 0), (-4.5, 0, 0)
    manifest = table(folder, f"subject,split,t1,{column}\na,train,a.nii.gz,other.nii\n")
    for shape, affine in (
        ((4, 4, 4), turned),
        ((2, 2, 5), np.diag([2.0, 2, 2, 1])),
        ((4, 4, 5), np.eye(4)),
    ):
        save_scan(Volume(np.ones(shape), affine), folder / "other.nii")
        assert len(read_manifest(manifest)) == 1
    for shape, affine in (
        ((4, 4, 4), away),
        ((2, 2, 2), beside),
    ):  # the second touches it with one face
        save_scan(Volume(np.ones(shape), affine), folder / "other.nii")
        with pytest.raises(
            InputError, match=rf"row 2, column {column}: .*other\.nii lies nowhere in the t1"
        ):
            read_manifest(manifest)
        labels_alone = table(folder, f"subject,split,{column}\na,train,other.nii\n").rename(
            folder / "alone.csv"
        )
        assert len(read_manifest(labels_alone)) == 1
        manifest = table(folder, f"subject,split,t1,{column}\na,train,a.nii.gz,other.nii\n")
    manifest = table(folder, "subject,split,t1,t2,lr\na,train,a.nii.gz,other.nii,other.nii\n")
    assert len(read_manifest(manifest)) == 1  # another contrast or an LR scan may lie anywhere


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "../escaped", "/tmp/a", "a\\b", ".", "..", ".hidden", "a\tb", "a\u200bb", '"a\nb"'],
)
def test_subjects_name_files(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"row 2, column subject: .* cannot name a file"):
        read_manifest(table(folder, f"subject,split,t1\n{name},train,a.nii.gz\n"))


@pytest.mark.parametrize(
    ("one", "other"), [("anna", "Anna"), ("a b", "a  b"), ("é", "e\u0301"), ("s1", "s1 ")]
)
def test_names_that_a_file_system_may_take_for_one(folder: Path, one: str, other: str) -> None:
    text = f"subject,split,t1\n{one},train,a.nii.gz\n{other},test,b.nii\n"
    with pytest.raises(InputError, match=r"row 3, column subject: .* stands twice"):
        read_manifest(table(folder, text))


def test_names_of_digits_stay_as_they_are(folder: Path) -> None:
    manifest = table(
        folder,
        "subject,split,t1\n001,train,a.nii.gz\n1,train,b.nii\n1e3,test,b.nii\nNA,val,b.nii\n",
    )
    assert [s.name for s in read_manifest(manifest)] == ["001", "1", "1e3", "NA"]


def test_a_header_is_read_once_while_its_file_does_not_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests of thousands of rows are read again and again; the time goes into headers."""
    read: list[Path] = []
    monkeypatch.setattr(
        "srlib.scans.formats.open_image", lambda file: read.append(file) or open_image(file)
    )
    rows = [f"s{i},train,a.nii.gz,b.nii,b.nii" for i in range(2000)]
    manifest = table(folder, "\n".join(["subject,split,t1,labels,mask", *rows]))
    assert len(read_manifest(manifest)) == len(read_manifest(manifest)) == 2000
    assert read == [folder / "a.nii.gz", folder / "b.nii"]
    four_dimensional(folder / "b.nii")
    with pytest.raises(InputError, match=r"row 2, column labels: .*b\.nii: expected a 3-D scan"):
        read_manifest(manifest)


def test_no_row_of_the_split(folder: Path) -> None:
    with pytest.raises(InputError, match="no row has split 'eval', only train"):
        read_manifest(table(folder, "subject,split,t1\na,train,a.nii.gz\n"), "eval")


def test_files_that_are_no_csv(folder: Path) -> None:
    for path in (folder / "absent.csv", folder, folder / "a.nii.gz"):
        with pytest.raises(InputError, match="cannot be read as a CSV"):
            read_manifest(path)
    with pytest.raises(InputError, match="cannot be read as a CSV"):  # a quote that never closes
        read_manifest(table(folder, 'subject,split,t1\na,train,"' + "x" * 200_000))


def test_falls_back_to_srlib_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = scan(tmp_path / "elsewhere/made/c.nii", seed=2)
    scan(tmp_path / "elsewhere/a.nii.gz", seed=3)
    manifest = table(
        folder,
        f"subject,split,t1\na,train,a.nii.gz\nc,train,made/c.nii\nd,train,{folder / 'b.nii'}\n",
    )
    first, second, third = (s.file("t1") for s in read_manifest(manifest))
    assert (first, second, third) == (
        folder / "a.nii.gz",
        inside,
        folder / "b.nii",
    )  # the CSV's folder comes first
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "moved"))
    with pytest.raises(
        InputError, match=r"row 3, column t1: made/c\.nii is neither in .*cohort nor in .*moved"
    ):
        read_manifest(manifest)


def test_relative_manifest_gives_absolute_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(folder, "subject,split,t1\na,train,a.nii.gz\n")
    monkeypatch.chdir(folder)
    (subject,) = read_manifest("cohort.csv")
    monkeypatch.chdir(os.sep)
    assert subject.file("t1").is_absolute() and load_nifti(subject.file("t1")).shape == (4, 4, 4)


# Pairs


def smoke(**changes: object) -> systems.Experiment:
    settings = {"patch_size": 4, "min_foreground": 0.0, **changes}
    return systems.get("mdcsrn_res", "smoke").changed(**settings)


def pairs_of(subjects: list[Subject], experiment: systems.Experiment) -> PatchDataset:
    return experiment.examples.open(subjects, experiment.pairs)


def cohort(folder: Path, count: int, shape: tuple[int, ...] | None = None) -> list[Subject]:
    """Tiny subjects of different odd shapes, or of one shape."""
    shapes = [shape or (7 + i % 3, 9, 5 + i % 2) for i in range(count)]
    files = [scan(folder / f"s{i}.nii", n, seed=i) for i, n in enumerate(shapes)]
    return [Subject(f"s{i}", "train", {"t1": file}) for i, file in enumerate(files)]


@pytest.mark.parametrize("task", ["gaussian_x2", "kspace_x2_inplane"])
def test_pairs_share_the_high_resolution_grid(tmp_path: Path, task: str) -> None:
    (subject,) = cohort(tmp_path, 1, (9, 11, 8))
    pair = smoke(task=task).pairs.make(subject)
    assert pair.on_grid.shape == pair.hr.shape == (9, 11, 8)
    assert np.allclose(pair.on_grid.affine, pair.hr.affine)
    assert pair.lr.shape == ((5, 6, 4) if task == "gaussian_x2" else (9, 11, 8))
    assert (
        pair.scaling
        == fit_scaling(pair.on_grid.data, "minmax")
        != fit_scaling(pair.hr.data, "minmax")
    )
    lr, hr = pairs_of([subject], smoke(task=task)).pair(0)
    assert (
        lr.dtype == hr.dtype == np.float32 and lr.shape == (1, 9, 11, 8) and hr.shape == (9, 11, 8)
    )
    assert lr.min() == 0 and lr.max() == pytest.approx(1, abs=1e-6)
    assert (
        hr.min() < 0 and hr.max() > 1
    )  # noise is sharper than its blur: the truth is not what was fitted
    assert np.allclose(pair.scaling.invert(hr), pair.hr.data, atol=1e-3)


def test_a_constant_scan_is_named(tmp_path: Path) -> None:
    file = save_scan(Volume(np.ones((8, 8, 8)), AFFINE), tmp_path / "flat.nii")
    with pytest.raises(InputError, match=r"flat\.nii: the scan is constant"):
        smoke().pairs.make(Subject("flat", "train", {"t1": file}))


def test_pairs_are_kept_and_counted(tmp_path: Path) -> None:
    dataset = pairs_of(cohort(tmp_path, 3), smoke())
    assert len(dataset.items) == 3 and dataset.pair(1)[0] is dataset.pair(1)[0]


# Patches


def take(
    dataset: PatchDataset, seed: int, start: int, count: int, workers: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    dataset.seed = seed
    with closing(iter(dataset.stream(start, workers))) as stream:
        return list(itertools.islice(stream, count))


def same(
    one: list[tuple[np.ndarray, np.ndarray]], other: list[tuple[np.ndarray, np.ndarray]]
) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b)
        for p, q in zip(one, other, strict=True)
        for a, b in zip(p, q, strict=True)
    )


def test_patches_that_are_not_mixed_come_scan_by_scan_in_their_order(tmp_path: Path) -> None:
    subjects = cohort(tmp_path, POOL + 2, (8, 9, 5))
    dataset = pairs_of(subjects, smoke(sampling="grid", mixed=False))
    places = {
        dataset.read(item, place)[0].tobytes(): (item, number)
        for item in range(len(dataset.items))
        for number, place in enumerate(dataset.grid(item))
    }
    each, count = len(dataset.grid(0)), len(places)
    whole = take(dataset, 0, 0, 2 * count)
    order = [places[given.tobytes()] for given, _ in whole]
    assert [number for _, number in order] == [*range(each)] * 2 * len(dataset.items)
    for epoch in (order[:count], order[count:]):
        items = [item for item, _ in epoch]
        assert items == [item for item in items[::each] for _ in range(each)]
        assert sorted(items[::each]) == [*range(len(dataset.items))]
    assert same(take(dataset, 0, count + 5, 7), whole[count + 5 : count + 12])


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_the_stream_can_be_entered_anywhere(tmp_path: Path, sampling: str) -> None:
    experiment = smoke(sampling=sampling, min_foreground=0.3)
    subjects = cohort(tmp_path, 2 * POOL + 1)
    dataset = pairs_of(subjects, experiment)
    epoch = sum(len(grid_locations(shape, 4)) for shape in dataset.shapes)
    whole = take(dataset, 7, 0, 2 * epoch + 20)
    pool = epoch // 9 * POOL
    for start in (
        0,
        1,
        5,
        pool - 1,
        pool,
        pool + 1,
        2 * pool + 3,
        epoch - 1,
        epoch,
        epoch + 1,
        2 * epoch,
        2 * epoch + 9,
    ):
        late = pairs_of(subjects, experiment)  # nothing loaded yet
        assert same(take(late, 7, start, 11), whole[start : start + 11]), start
    assert not same(take(dataset, 8, 0, 20), whole[:20])
    assert not same(whole[:epoch], whole[epoch : 2 * epoch])
    for lr, hr in whole:
        assert lr.shape == hr.shape == (1, 4, 4, 4) and lr.dtype == hr.dtype == np.float32


def serial(dataset: PatchDataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first patches of the stream by its definition, in one process, one pool after the other."""
    part, served, epoch = dataset.part, [], 0
    while len(served) < count:
        items = (
            np.random.default_rng([dataset.seed, epoch]).permutation(len(dataset.items)).tolist()
        )
        for first in range(0, len(items), POOL):
            pool = items[first : first + POOL]
            rng, places = np.random.default_rng([dataset.seed, epoch, *pool]), []
            for item in pool:
                shown = foreground(dataset.pair(item)[1])
                for place in dataset.grid(item):
                    if part.sampling == "random":
                        drawn = random_locations(dataset.shapes[item], place.size, 8, rng)
                        shares = [np.mean(shown[box.slices]) for box in drawn]
                        enough = [
                            box
                            for box, s in zip(drawn, shares, strict=True)
                            if s >= part.min_foreground
                        ]
                        place = enough[0] if enough else drawn[int(np.argmax(shares))]
                    places.append((item, place))
            order = rng.permutation(len(places)) if part.mixed else range(len(places))
            served += [dataset.read(*places[k]) for k in order]
        epoch += 1
    return served[:count]  # fmt: skip


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("items", [3, KEPT + 1])
@pytest.mark.parametrize("per_patch", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_the_stream_is_the_same_whatever_the_number_of_workers(
    tmp_path: Path, sampling: str, mixed: bool, per_patch: bool, items: int
) -> None:
    settings = {"sampling": sampling, "mixed": mixed, "per_patch": per_patch, "stride": 3}
    experiment = smoke(**settings, min_foreground=0.6)
    dataset = pairs_of(cohort(tmp_path, items), experiment)
    expected = serial(dataset, 400)
    for workers in (0, 1, 4):
        assert same(take(dataset, 0, 0, 400, workers), expected)
        assert same(take(dataset, 0, 217, 20, workers), expected[217:237])
    assert not multiprocessing.active_children()


def test_few_scans_are_read_once_and_others_are_not_kept(tmp_path: Path, monkeypatch) -> None:
    read: list[int] = []
    make = PatchDataset._make
    monkeypatch.setattr(PatchDataset, "_make", lambda self, i: read.append(i) or make(self, i))
    dataset = pairs_of(cohort(tmp_path, KEPT), smoke())
    epoch = sum(len(dataset.grid(i)) for i in range(KEPT))
    take(dataset, 0, 0, 3 * epoch)
    assert sorted(read) == [*range(KEPT)]
    read.clear()
    dataset = pairs_of(cohort(tmp_path, 3 * KEPT), smoke())
    take(dataset, 0, 0, 1)
    assert len(read) <= 2 * POOL + 2  # this pool, the next one, and what the loader asks ahead
    assert dataset.pair.cache_info().currsize == 1


def test_a_dataset_is_sent_to_processes_that_are_not_forked(tmp_path: Path) -> None:
    dataset = pairs_of(cohort(tmp_path, 3), smoke(sampling="random"))
    expected = take(dataset, 0, 0, 9)
    assert dataset.pair(0) is dataset.pair(0)  # kept here, made again there
    assert same(take(pickle.loads(pickle.dumps(dataset)), 0, 0, 9), expected)


def test_what_a_worker_cannot_read_is_one_line(tmp_path: Path) -> None:
    subjects = cohort(tmp_path, 3)
    dataset = pairs_of(subjects, smoke())
    save_scan(Volume(np.ones((8, 9, 5)), AFFINE), subjects[1].file("t1"))
    for workers in (0, 2):
        with pytest.raises(
            InputError, match=r"^subject s1, .*s1\.nii: the scan is constant"
        ) as err:
            take(dataset, 0, 0, 1000, workers)
        assert len(str(err.value).splitlines()) == 1


def test_workers_show_the_warnings_of_scans(tmp_path: Path, capfd) -> None:
    (subject,) = cohort(tmp_path, 1, (12, 12, 12))
    wild = load_nifti(subject.file("t1"))
    wild.data[3, 4, 5] *= 1000
    save_scan(wild, subject.file("t1"))
    with warnings.catch_warnings():
        warnings.resetwarnings()  # pytest's own do not print
        warnings.showwarning = lambda message, *rest: print(message, file=sys.stderr)
        take(pairs_of([subject], smoke()), 0, 0, 99, workers=1)
    assert capfd.readouterr().err.count("1 of 1728") == 1


def test_the_stream_does_not_touch_global_randomness(tmp_path: Path) -> None:
    dataset = pairs_of(cohort(tmp_path, 2), smoke(sampling="random"))
    np.random.seed(1)
    first = take(dataset, 0, 0, 9)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert same(take(dataset, 0, 0, 9, workers=1), first) and np.array_equal(
        np.random.get_state()[1], state
    )


def test_an_epoch_of_the_grid_holds_every_patch_once(tmp_path: Path) -> None:
    dataset = pairs_of(cohort(tmp_path, POOL + 2), smoke(sampling="grid"))
    expected = [
        extract(array, location).tobytes()
        for index, shape in enumerate(dataset.shapes)
        for array in (dataset.pair(index)[1],)
        for location in grid_locations(shape, 4)
    ]
    for epoch in (0, 1):
        found = [hr.tobytes() for _, hr in take(dataset, 3, epoch * len(expected), len(expected))]
        assert sorted(found) == sorted(expected)


def test_input_and_truth_are_cut_at_the_same_place(tmp_path: Path) -> None:
    ramp = np.add.outer(np.add.outer(np.arange(12.0) * 100, np.arange(12.0) * 10), np.arange(12.0))
    file = save_scan(Volume(ramp, AFFINE), tmp_path / "ramp.nii")
    dataset = pairs_of([Subject("ramp", "train", {"t1": file})], smoke(sampling="random"))
    for lr, hr in take(dataset, 0, 0, 40):
        assert abs(lr.mean() - hr.mean()) < 0.04  # one voxel along the first axis is 0.09


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_volumes_smaller_than_a_patch_are_padded_with_zeros(tmp_path: Path, sampling: str) -> None:
    experiment = smoke(sampling=sampling, patch_size=8, min_foreground=0.3)
    dataset = pairs_of(cohort(tmp_path, 2, (5, 9, 3)), experiment)
    for lr, hr in take(dataset, 0, 0, 7):
        assert lr.shape == hr.shape == (1, 8, 8, 8)
        assert not lr[:, 5:].any() and not hr[..., 3:].any() and hr[:, :5, :, :3].any()


def test_patches_hold_foreground_when_there_is_any(tmp_path: Path) -> None:
    data = np.zeros((16, 16, 16))
    data[:8] = np.random.default_rng(0).uniform(50, 100, (8, 16, 16))
    file = save_scan(Volume(data, AFFINE), tmp_path / "half.nii")
    subject = Subject("half", "train", {"t1": file})

    def shares(min_foreground: float) -> np.ndarray:
        dataset = pairs_of([subject], smoke(sampling="random", min_foreground=min_foreground))
        return np.array([np.mean(hr > 0.05) for _, hr in take(dataset, 0, 0, 128)])

    assert (shares(0.0) < 0.3).mean() > 0.2  # drawn anywhere: much air
    assert (shares(0.3) < 0.3).mean() < 0.02  # 8 draws per patch: all of them air in 1 of 5,000
    assert shares(1.0).mean() > 0.9  # cannot be met: the fullest of the 8 is taken


def test_free_pairs_are_those_of_the_manifest_each_scaled_by_itself(tmp_path: Path) -> None:
    """As the code does: minimum and maximum of each file to 0 and 1, then the spline."""
    (subject,) = cohort(tmp_path, 1, (18, 18, 18))
    hr = load_nifti(subject.file("t1"))
    coarse = Volume(0.4 * hr.data[::2, ::2, ::2] + 7, np.diag([2.0, 2.0, 2.0, 1.0]))
    given = save_scan(coarse, tmp_path / "lr.nii")
    experiment = systems.get("recnn_free", "smoke")
    pair = experiment.pairs.make(Subject("s", "train", {**subject.files, "lr": given}))
    scaled = coarse.with_data((coarse.data - coarse.data.min()) / np.ptp(coarse.data))
    seen, truth = pair.for_training()
    np.testing.assert_allclose(
        seen[0], resample(scaled, hr.shape, hr.affine).data, atol=1e-5
    )  # where its affine places it
    np.testing.assert_allclose(truth, (hr.data - hr.data.min()) / np.ptp(hr.data), atol=1e-6)
    assert abs(truth.mean() / seen.mean() - 1) < 0.2  # the network need not learn a gain
    # an estimate is compared with the truth in the truth's units ...
    # it starts from the interpolated scan
    model = Model(ReCNN(1, 2, zero_last=True).eval().requires_grad_(False), experiment)
    wanted = np.maximum(pair.on_grid.data, hr.data.min())
    np.testing.assert_allclose(model.predict_pair(pair).data, wanted, atol=1e-3)
    assert pair.lr.data.max() == pytest.approx(hr.data.max(), rel=1e-5)
    # ... and of a scan without a truth it is in the scan's own
    alone = model.predict(coarse, Request((1, 1, 1))).image.data
    np.testing.assert_allclose(alone, coarse.data, atol=1e-3)


def given(folder: Path, lr: Volume, **changes: object) -> tuple[Subject, systems.Experiment]:
    """A subject with a smooth scan, in RAS order, and a low-resolution scan; an experiment that takes the latter."""
    hr = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((24, 20, 18)), 1.5)
    files = {
        "t1": save_scan(Volume(hr, AFFINE), folder / "hr.nii"),
        "lr": save_scan(lr, folder / "lr.nii"),
    }
    changes = {"fitted_on": "input"} | changes
    return Subject("s", "train", files), systems.get("recnn_free", "smoke").changed(**changes)


def made(folder: Path, lr: Volume) -> Pair:
    """The pair of such a subject."""
    subject, experiment = given(folder, lr)
    return experiment.pairs.make(subject)


def smooth() -> Volume:
    hr = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((24, 20, 18)), 1.5)
    return Volume(ndimage.gaussian_filter(hr, 0.7), AFFINE)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "SPL"])
def test_a_given_lr_is_taken_where_it_lies_though_its_shape_is_that_of_the_truth(
    tmp_path: Path, axes: str
) -> None:
    lr = smooth()
    pair = made(tmp_path, reorient(lr, axes))
    np.testing.assert_array_equal(pair.on_grid.data, lr.data)
    assert list(systems.get("recnn_free").pairs.baselines(pair)) == [
        "zero_filled"
    ]  # nothing is to be interpolated
    coarse = resample(lr, *coarse_grid(lr, (2, 2, 2)))
    straight = made(tmp_path, coarse)
    turned = made(tmp_path, reorient(coarse, axes))
    np.testing.assert_allclose(turned.on_grid.data, straight.on_grid.data, atol=1e-5)
    for pair in (straight, turned):
        linear = systems.get("recnn_free").pairs.baselines(pair)["linear"]
        assert np.corrcoef(linear.data.ravel(), pair.hr.data.ravel())[0, 1] > 0.9


def test_a_given_lr_belongs_to_the_experiments_own_task(tmp_path: Path) -> None:
    subject, experiment = given(tmp_path, smooth())
    assert np.array_equal(experiment.pairs.make(subject, experiment.task).lr.data, smooth().data)
    for task in ("gaussian_x3", "kspace_x2_3d"):
        pair, expected = (
            experiment.pairs.make(subject, task),
            experiment.pairs.degrade(load_nifti(subject.file("t1")), task),
        )
        assert np.array_equal(pair.lr.data, expected.lr.data)


@pytest.mark.filterwarnings("ignore:.*covers 95.8 %")  # columns that were left out at the far face
@pytest.mark.parametrize("task", ["gaussian_x2", "gaussian_x2_corners", "scanline_x4"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL"])
def test_networks_from_grid_to_grid_get_a_given_lr_on_the_coarse_grid(
    tmp_path: Path, task: str, axes: str
) -> None:
    subject, experiment = given(tmp_path, smooth(), task=task, prediction=CoarseToFine())
    expected = experiment.pairs.degrade(load_nifti(subject.file("t1")))
    given(tmp_path, reorient(expected.lr, axes))  # as another program stores it
    pair = experiment.pairs.make(subject)
    np.testing.assert_allclose(pair.lr.affine, expected.lr.affine, atol=1e-5)
    np.testing.assert_allclose(pair.lr.data, expected.lr.data, atol=1e-6)
    given(tmp_path, reorient(smooth(), axes))  # and on the fine grid, brought on the coarse one
    pair = experiment.pairs.make(subject)
    assert pair.lr.shape == expected.lr.shape
    place = resample(pair.lr, pair.hr.shape, pair.hr.affine).data
    assert np.corrcoef(place.ravel(), pair.hr.data.ravel())[0, 1] > 0.5


def test_a_given_lr_that_covers_too_little_is_told_or_refused(tmp_path: Path) -> None:
    lr = smooth()
    with pytest.warns(ScanWarning, match=r"lr.nii covers 94.4 % of its true scan"):
        pair = made(tmp_path, reorient(crop_or_pad(lr, (0, 0, 0), (24, 20, 17)), "LAS"))
    np.testing.assert_allclose(pair.on_grid.data[..., :17], lr.data[..., :17], atol=1e-5)
    with pytest.raises(InputError, match=r"subject s, .*hr.nii: the lr .*lr.nii covers 50 %"):
        made(tmp_path, crop_or_pad(lr, (0, 0, 0), (24, 20, 9)))
    with pytest.raises(
        InputError, match=r"subject s, .*lr.nii shows nothing in the scan's field of view"
    ):
        made(tmp_path, Volume(lr.data, np.eye(4) + np.outer([0, 1, 0, 0], [0, 0, 0, 90])))


def test_a_mask_is_brought_by_its_affine(tmp_path: Path) -> None:
    scan, inside = smooth(), np.zeros((24, 20, 18))
    inside[3:9, 4:15, 2:11] = 1
    for axes in ("RAS", "LPS", "AIL"):
        mask = reorient(Volume(inside, AFFINE), axes)
        mask = crop_or_pad(
            mask, (1, 1, 1), [n - 2 for n in mask.shape]
        )  # all of it that is not zero
        subject = Subject("s", "test", {"mask": save_scan(mask, tmp_path / "mask.nii.gz")})
        found = load_mask(subject, scan)
        assert found.dtype == bool and np.array_equal(found, inside)
    with pytest.raises(InputError, match=r"subject s: the mask .*mask.nii.gz shows nothing"):
        load_mask(subject, Volume(scan.data, np.eye(4) + np.outer([0, 1, 0, 0], [0, 0, 0, 90])))


def test_a_constant_patch_is_in_the_units_of_all_others(tmp_path: Path) -> None:
    """Of patches scaled one by one to [-1, 1] by half their maximum, air is at -1 and not in the middle."""
    data = np.zeros((16, 16, 16))
    data[8:] = np.random.default_rng(0).uniform(500, 1000, (8, 16, 16))
    data[8:, 8:] = 250
    subject = Subject(
        "half", "train", {"t1": save_scan(Volume(data, AFFINE), tmp_path / "half.nii")}
    )
    settings = {
        "prediction": SameGrid(),
        "frame": None,
        "patch_size": 8,
        "stride": None,
        "task": "kspace_x2_3d",
    }
    dataset = pairs_of([subject], systems.get("srgan3d", "smoke").changed(**settings))
    found = {}
    for place in dataset.grid(0):
        given, truth = dataset.read(0, place)
        found[tuple(place.start[:2])] = truth
        assert abs(given.mean() - truth.mean()) < 0.3
    assert (found[0, 0] == -1).all()
    np.testing.assert_allclose(found[8, 8], 250 / (data.max() / 2) - 1, rtol=1e-5)
    assert found[8, 0].max() == 1


@pytest.mark.parametrize("change", ["none", "mean 0", "spike", "hole"])
def test_foreground_is_found_whatever_the_background(change: str) -> None:
    body = np.zeros((20, 20, 20), bool)
    body[5:15, 5:15, 5:15] = True
    data = np.where(body, np.random.default_rng(0).uniform(500, 1000, body.shape), 0)
    if change == "mean 0":
        data = (data - data[body].mean()) / data[body].std() * body - 1.5 * ~body
    if change in ("spike", "hole"):
        data[10, 10, 10] *= 1000 if change == "spike" else -1000
    shown = foreground(fit_scaling(data).apply(data))
    assert (shown != body).mean() < 0.02


def test_training_warns_of_a_scan_of_which_one_voxel_takes_the_range(tmp_path: Path) -> None:
    subjects = cohort(tmp_path, 3, (12, 12, 12))
    for subject in subjects[1:]:
        wild = load_nifti(subject.file("t1"))
        wild.data[3, 4, 5] *= 1000
        save_scan(wild, subject.file("t1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        dataset = pairs_of(subjects, smoke())
        for _ in range(2):
            assert all(len(dataset.pair(i)) == 2 for i in range(3))
    told = [str(w.message) for w in caught if w.category is ScanWarning]
    assert len(told) == 2
    for line, subject in zip(told, subjects[1:], strict=True):
        assert (
            f"subject {subject.name}" in line
            and str(subject.file("t1")) in line
            and "1 of 1728" in line
        )
