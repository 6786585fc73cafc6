"""Folder layouts: every one found, split by person, written so that the data room reads it back."""

import csv
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from srlib import data
from srlib.core.paths import InputError, ScanWarning
from srlib.data.layouts import PATTERNS, _choose, write_manifest
from srlib.scans.volume import Volume, save_scan

HCP = "unprocessed/3T/T1w_MPR1"
ADNI = "T1_brain_extractedBrainExtraction"


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_scan(Volume(np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.eye(4)), path)


def rows(manifest: Path) -> dict[str, dict[str, str]]:
    with open(manifest, newline="", encoding="utf-8") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def flat(folder: Path, count: int) -> Path:
    for index in range(count):
        scan(folder / f"s{index:02d}.nii")
    return folder


def counts(manifest: Path) -> dict[str, int]:
    return dict(Counter(row["split"] for row in rows(manifest).values()))


def test_layouts_that_are_known() -> None:
    assert list(PATTERNS) == ["hcp", "adni", "kirby", "bids", "synthsr", "flat"]


def test_hcp(tmp_path: Path) -> None:
    for person in ("100206", "100307", "100408"):
        scan(tmp_path / "hcp" / person / HCP / f"{person}_3T_T1w_MPR1.nii.gz")
    (tmp_path / "hcp/100307" / HCP / "100307_LR.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (tmp_path / "hcp/999999" / HCP).mkdir(parents=True)
    (tmp_path / "hcp/999999" / HCP / "999999_LR.mat").write_bytes(b"a twin without its scan")
    manifest = write_manifest("hcp", tmp_path / "hcp", tmp_path / "hcp.csv")
    assert manifest.read_text().splitlines()[0] == "subject,split,t1,lr"
    assert list(rows(manifest)) == ["100206", "100307", "100408"]
    subjects = {s.name: s for s in data.read_manifest(manifest)}
    assert subjects["100307"].file("lr") == tmp_path / "hcp/100307" / HCP / "100307_LR.mat"
    assert set(subjects["100206"].files) == {"t1"}


def test_adni(tmp_path: Path) -> None:
    for person in ("002_S_0295", "002_S_0413"):
        scan(tmp_path / person / f"{ADNI}Brain.nii.gz")
    scan(tmp_path / "002_S_0413" / f"{ADNI}Mask.nii.gz")
    scan(tmp_path / "mask_only" / f"{ADNI}Mask.nii.gz")
    manifest = write_manifest("adni", tmp_path, tmp_path / "adni.csv", split=(1, 0, 0))
    assert {s.name: set(s.files) for s in data.read_manifest(manifest, "train")} == {
        "002_S_0295": {"t1"},
        "002_S_0413": {"t1", "mask"},
    }


@pytest.mark.parametrize("nested", [False, True])
def test_kirby(tmp_path: Path, nested: bool) -> None:
    folder = tmp_path / "kirby"
    for number in ("01", "33"):
        place = folder / f"KKI2009-{number}" if nested else folder
        for kind in ("MPRAGE", "T2w", "MPRAGE_LR", "DTI"):
            scan(place / f"KKI2009-{number}-{kind}.nii.gz")
    scan(folder / ".trash" / "KKI2009-02-MPRAGE.nii.gz")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (lost := folder / "KKI2009-03-MPRAGE.nii.gz").symlink_to(lost)
    with pytest.raises(InputError, match="leads nowhere"):  # or the split would be another
        write_manifest("kirby", folder, tmp_path / "kirby.csv")
    lost.unlink()
    subjects = data.read_manifest(write_manifest("kirby", folder, tmp_path / "kirby.csv"))
    assert [s.name for s in subjects] == ["KKI2009-01", "KKI2009-33"]
    assert {c: f.name for c, f in subjects[1].files.items()} == {
        "t1": "KKI2009-33-MPRAGE.nii.gz",
        "t2": "KKI2009-33-T2w.nii.gz",
    }


def test_bids(tmp_path: Path) -> None:
    for name in (
        "sub-01/anat/sub-01_run-2_T1w.nii.gz", "sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz", "sub-03/ses-a/anat/.sub-03_ses-a_T2w.nii.gz",
        "sub-04/func/sub-04_bold.nii.gz", "derivatives/sub-05/anat/sub-05_T1w.nii.gz",
    ):  # fmt: skip
        scan(tmp_path / name)
    manifest = write_manifest("bids", tmp_path, tmp_path / "bids.csv")
    assert list(rows(manifest)) == ["sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03"]
    first = data.read_manifest(manifest)[0]
    assert (
        first.file("t1").name == "sub-01_run-1_T1w.nii.gz"
        and first.file("t2").name == "sub-01_T2w.nii"
    )


def test_bids_runs_are_numbers(tmp_path: Path) -> None:
    for run in (1, 2, 10):  # as text, run-10 comes first
        scan(tmp_path / f"sub-01/anat/sub-01_run-{run}_T1w.nii.gz")
    (subject,) = data.read_manifest(write_manifest("bids", tmp_path, tmp_path / "bids.csv"))
    assert subject.file("t1").name == "sub-01_run-1_T1w.nii.gz"


def test_names_that_file_systems_may_take_for_one_are_refused(tmp_path: Path) -> None:
    scan(tmp_path / "anna.nii")
    scan(tmp_path / "Anna.nii.gz")
    if len([*tmp_path.iterdir()]) == 2:
        with pytest.raises(InputError, match="stands twice, once as Anna"):
            write_manifest("flat", tmp_path, tmp_path / "m.csv")


def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path: Path) -> None:
    file = scan(tmp_path / "x.nii")
    try:
        os.rename(file, os.fsencode(tmp_path) + b"/caf\xe9.nii")
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    with pytest.raises(InputError, match="cannot name a file"):
        write_manifest("flat", tmp_path, tmp_path / "m.csv")


def test_10_000_ids_are_chosen_in_seconds(tmp_path: Path) -> None:
    people = {f"sub-{i}_ses-{j}": f"sub-{i}" for i in range(5000) for j in range(2)}
    (tmp_path / "ids.csv").write_text("\n".join(["id", *people]))
    begin = time.process_time()
    assert _choose(people, tmp_path / "ids.csv") == (people, {})
    assert time.process_time() - begin < 5


def test_bids_keeps_a_persons_sessions_in_one_split(tmp_path: Path) -> None:
    for person in range(6):
        for session in range(3):
            name = f"sub-{person}_ses-{session}"
            scan(tmp_path / f"sub-{person}/ses-{session}/anat/{name}_T1w.nii")
    for seed in range(10):
        table = rows(
            write_manifest(
                "bids", tmp_path, tmp_path / f"m{seed}.csv", split=(0.5, 0.25, 0.25), seed=seed
            )
        )
        assert len(table) == 18
        pairs = {(name.split("_")[0], row["split"]) for name, row in table.items()}
        assert len(pairs) == 6
    ids = tmp_path / "ids.csv"
    ids.write_text("id\nsub-1\nsub-2_ses-0\nsub-3\n")
    table = rows(write_manifest("bids", tmp_path, tmp_path / "m.csv", subjects=ids))
    assert list(table) == [
        *(f"sub-1_ses-{s}" for s in range(3)),
        "sub-2_ses-0",
        *(f"sub-3_ses-{s}" for s in range(3)),
    ]


def test_synthsr_by_name(tmp_path: Path) -> None:
    for name in (
        "brain1",
        "brain2",
        "brain10",
    ):  # sorted names alone would pair brain1 with brain10_labels
        scan(tmp_path / "labels" / f"{name}_labels.nii.gz")
        if name != "brain2":
            scan(tmp_path / "images" / f"{name}.mgz")
    manifest = write_manifest("synthsr", tmp_path, tmp_path / "m.csv")
    assert manifest.read_text().startswith("subject,split,t1,labels\n")
    found = {s.name: {c: f.name for c, f in s.files.items()} for s in data.read_manifest(manifest)}
    assert found["brain1"] == {"t1": "brain1.mgz", "labels": "brain1_labels.nii.gz"}
    assert found["brain10"] == {"t1": "brain10.mgz", "labels": "brain10_labels.nii.gz"}
    assert found["brain2"] == {"labels": "brain2_labels.nii.gz"}


@pytest.mark.parametrize(
    ("labels", "images", "left"),
    [
        (("anna", "bert"), ("anna", "cleo"), "cleo"),  # as many of both, but not of the same people
        (("anna_seg",), ("bert",), "bert"),
        (("map1", "map2"), ("scan1", "scan2"), "scan1"),  # as the message says: rename them
    ],
)
def test_synthsr_refuses_what_names_do_not_pair(
    tmp_path: Path, labels: tuple, images: tuple, left: str
) -> None:
    for folder, names in (("labels", labels), ("images", images)):
        for name in names:
            scan(tmp_path / folder / f"{name}.nii")
    with pytest.raises(InputError, match=rf"{left}\.nii: no label map of the same name"):
        write_manifest("synthsr", tmp_path, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


def test_synthsr_refuses_a_scan_without_labels(tmp_path: Path) -> None:
    scan(tmp_path / "labels/a_labels.nii")
    scan(tmp_path / "images/a.nii")
    scan(tmp_path / "images/b.nii")
    with pytest.raises(InputError, match=r"b\.nii: no label map"):
        write_manifest("synthsr", tmp_path, tmp_path / "m.csv")


def test_flat(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz", "c.mgz", ".hidden.nii", "deeper/d.nii"):
        scan(tmp_path / "scans" / name)
    (tmp_path / "scans/notes.txt").write_text("not a scan")
    manifest = write_manifest("flat", tmp_path / "scans", tmp_path / "m.csv")
    assert [s.name for s in data.read_manifest(manifest)] == ["a", "b", "c"]
    scan(tmp_path / "scans/a.nii")
    with pytest.raises(InputError, match=r"two files for the t1 of subject a"):
        write_manifest("flat", tmp_path / "scans", manifest)


def test_paths_are_relative_to_the_real_place_of_the_csv(tmp_path: Path) -> None:
    flat(tmp_path / "deep/er/scans", 3)
    (tmp_path / "elsewhere/csv").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/csv", target_is_directory=True)
    manifest = write_manifest("flat", tmp_path / "deep/er/scans", tmp_path / "link/m.csv")
    assert rows(manifest)["s00"]["t1"] == "../../deep/er/scans/s00.nii"
    assert (
        len(data.read_manifest(manifest))
        == len(data.read_manifest(tmp_path / "elsewhere/csv/m.csv"))
        == 3
    )


def test_same_seed_same_bytes_and_nothing_left_behind(tmp_path: Path) -> None:
    folder = flat(tmp_path / "scans", 12)
    first, again, other = (
        write_manifest("flat", folder, tmp_path / name, seed=seed).read_bytes()
        for name, seed in (("a.csv", 3), ("a.csv", 3), ("b.csv", 4))
    )
    assert first == again != other
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv", "scans"]


@pytest.mark.parametrize(
    ("people", "split", "expected"),
    [
        (10, (0.7, 0.1, 0.2), {"train": 7, "val": 1, "test": 2}),
        (9, (0.7, 0.1, 0.2), {"train": 6, "val": 1, "test": 2}),
        (3, (0.7, 0.1, 0.2), {"train": 1, "val": 1, "test": 1}),
        (4, (0.98, 0.01, 0.01), {"train": 2, "val": 1, "test": 1}),
        (3, (0.25, 0.25, 0.25, 0.25), {"train": 1, "val": 1, "eval": 1}),
        (2, (0.7, 0.1, 0.2), {"train": 2}),
        (1, (0.7, 0.1, 0.2), {"train": 1}),
        (5, (0, 0, 1), {"test": 5}),
        (8, (0.5, 0, 0.25, 0.25), {"train": 4, "eval": 2, "test": 2}),
        (10, (5, 2, 2, 1), {"train": 5, "val": 2, "eval": 2, "test": 1}),
        (10, (3.0, 0.0, 2.0), {"train": 3, "test": 2}),
    ],
)
def test_split_counts(tmp_path: Path, people: int, split: tuple, expected: dict[str, int]) -> None:
    assert (
        counts(write_manifest("flat", flat(tmp_path, people), tmp_path / "m.csv", split=split))
        == expected
    )


@pytest.mark.parametrize("people", range(3, 30))
def test_shares_place_everybody_and_leave_no_split_empty(tmp_path: Path, people: int) -> None:
    for split in ((0.7, 0.1, 0.2), (0.01, 0.01, 0.98), (1 / 3, 1 / 3, 1 / 3)):
        manifest = write_manifest(
            "flat", flat(tmp_path, people), tmp_path / "m.csv", split=split, force=True
        )
        found = counts(manifest)
        assert sum(found.values()) == people and set(found) == {"train", "val", "test"}
        for share, name in zip(split, ("train", "val", "test"), strict=True):
            assert abs(found[name] - share * people) < (1 if min(split) * people >= 1 else 3)


def test_hcp_counts_of_the_paper(tmp_path: Path) -> None:
    from srlib.data.layouts import _assign

    people = [str(100000 + i) for i in range(1113)]
    found = Counter(_assign(people, (780, 111, 111, 111), 0).values())
    assert found == {"train": 780, "val": 111, "eval": 111, "test": 111}


@pytest.mark.parametrize(
    "split",
    [
        (0.7, 0.1, 0.1), (0.7, 0.3), (0.2,) * 5, (1.2, -0.1, -0.1), (3, 1, 2), (0, 0, 0), (-1, 1, 1), (2.5, 1, 0.5),
        (float("nan"), 0.5, 0.5), (float("inf"), 0, 0), (1e300, 0, 0), (0.5, 0.6, -0.1), 0.7,
    ],
)  # fmt: skip
def test_bad_splits(tmp_path: Path, split: tuple) -> None:
    with pytest.raises(InputError, match="split: expected") as error:
        write_manifest("flat", flat(tmp_path, 5), tmp_path / "m.csv", split=split)
    assert "\n" not in str(error.value) and not (tmp_path / "m.csv").exists()


def test_subjects_restrict_and_tolerate_trailing_commas(tmp_path: Path) -> None:
    folder, ids = flat(tmp_path / "scans", 6), tmp_path / "ids.csv"
    ids.write_bytes(b"\xef\xbb\xbfid,,\r\ns04,,\r\n\r\ns01\r\n s02 ,\r\n")
    manifest = write_manifest("flat", folder, tmp_path / "m.csv", subjects=ids)
    assert list(rows(manifest)) == ["s01", "s02", "s04"]
    ids.write_text("id\ns04\ns02\ns01\n")
    assert (
        write_manifest("flat", folder, tmp_path / "n.csv", subjects=ids).read_bytes()
        == manifest.read_bytes()
    )


def test_subjects_may_name_the_person(tmp_path: Path) -> None:
    folder, ids = flat(tmp_path / "scans", 12), tmp_path / "ids.csv"
    ids.write_text("id,person\n" + "".join(f"s{i:02d},p{i % 4}\n" for i in range(12)))
    for seed in range(10):
        table = rows(
            write_manifest(
                "flat",
                folder,
                tmp_path / f"m{seed}.csv",
                split=(0.5, 0.25, 0.25),
                seed=seed,
                subjects=ids,
            )
        )
        assert len({(int(name[1:]) % 4, row["split"]) for name, row in table.items()}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\ns00\nx1\nx2\nx3\nx4\n", r"4 ids without a scan: x1, x2, x3;"),
        ("subject\ns00\n", "unknown column 'subject'; expected id and any of person"),
        ("id,age\ns00,9\n", "unknown column 'age'"),
        ("id,split\ns00,tset\n", "unknown .*split 'tset'; expected one of train, val, eval, test"),
        ("id,person,split\ns00,p,test\ns01,p,train\n", "p stands in two splits"),
        ("id\n", "at least one row"),
        ("", "at least one row"),
        (None, "cannot be read"),
    ],
)
def test_bad_subjects(tmp_path: Path, text: str | None, message: str) -> None:
    ids = tmp_path / "ids.csv"
    if text is not None:
        ids.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        write_manifest("flat", flat(tmp_path / "scans", 3), tmp_path / "m.csv", subjects=ids)
    assert "ids.csv" in str(error.value) and "\n" not in str(error.value)


def test_the_split_of_the_id_list_is_kept(tmp_path: Path) -> None:
    folder, ids = flat(tmp_path / "scans", 5), tmp_path / "ids.csv"
    ids.write_text("id,split\ns03,test\ns00,eval\ns04,\ns01,train\n")
    table = rows(write_manifest("flat", folder, tmp_path / "m.csv", subjects=ids, seed=999))
    assert {n: row["split"] for n, row in table.items()} == {
        "s00": "eval",
        "s01": "train",
        "s03": "test",
    }


def replicated_split(ids: list[str]) -> dict[str, list[str]]:
    """The replication's rule: seed 999, shuffled row numbers, 0.7/0.1/0.1/rest, 10 of the rest."""
    rows, n = list(range(len(ids))), len(ids)
    np.random.seed(999)
    np.random.shuffle(rows)
    ends = np.cumsum([-(-7 * n // 10), n // 10, n // 10, 10])
    parts = np.split(np.array(ids)[rows], ends)[:4]
    return dict(zip(("train", "val", "eval", "test"), map(list, parts), strict=True))


PRINTED = "151324 196952 123723 622236 119126 387959 139637 114217 910443 951457"


@pytest.mark.parametrize("real", [False, True])
def test_the_replications_split(tmp_path: Path, monkeypatch, real: bool) -> None:
    """The recipe of csv/README.md, on made-up ids by the rule, or on the original's (SRLIB_HCP_IDS)."""
    if real and "SRLIB_HCP_IDS" not in os.environ:
        pytest.skip("SRLIB_HCP_IDS does not name the replication's id_hcp.csv")
    text = "id,,\n" + "".join(f"{100000 + 7 * i},,\n" for i in range(1113))
    text = Path(os.environ["SRLIB_HCP_IDS"]).read_text() if real else text
    (tmp_path / "id_hcp.csv").write_text(text)
    ids = [line.split(",")[0] for line in text.splitlines()[1:]]
    for person in ids:
        file = tmp_path / "hcp" / person / HCP / f"{person}_3T_T1w_MPR1.nii.gz"
        file.parent.mkdir(parents=True)
        file.touch()
    readme = (Path(__file__).parents[2] / "csv" / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec("import numpy" + readme.split("```python\nimport numpy")[1].split("```")[0], {})
    write_manifest("hcp", tmp_path / "hcp", tmp_path / "m.csv", subjects=tmp_path / "ids.csv")
    found = {name: row["split"] for name, row in rows(tmp_path / "m.csv").items()}
    expected = replicated_split(ids)
    assert found == {name: split for split, names in expected.items() for name in names}
    assert [len(names) for names in expected.values()] == [780, 111, 111, 10]
    if real:
        assert expected["test"] == PRINTED.split()


@pytest.mark.parametrize("layout", PATTERNS)
def test_no_scan_found_says_what_was_expected(tmp_path: Path, layout: str) -> None:
    (tmp_path / "notes.txt").write_text("not a scan")
    with pytest.raises(
        InputError, match=rf"no scan found for the layout {layout}; expected .*\.nii"
    ) as error:
        write_manifest(layout, tmp_path, tmp_path / "m.csv")
    assert "\n" not in str(error.value)


def test_bad_places(tmp_path: Path) -> None:
    folder = flat(tmp_path / "scans", 3)
    with pytest.raises(InputError, match="unknown layout 'dicom'; expected one of hcp, adni"):
        write_manifest("dicom", folder, tmp_path / "m.csv")
    with pytest.raises(InputError, match="absent: no such folder"):
        write_manifest("flat", tmp_path / "absent", tmp_path / "m.csv")
    for out in (tmp_path / "absent/m.csv", tmp_path, folder / "s00.nii/m.csv"):
        with pytest.raises(InputError, match="cannot write"):
            write_manifest("flat", folder, out)


def test_bids_says_which_of_different_images_it_takes(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "anat"
    for name in ("acq-FLASH_T1w", "run-1_T2w", "run-2_T2w", "T1w"):
        scan(folder / f"sub-01_{name}.nii.gz")
    with pytest.warns(ScanWarning) as said:
        write_manifest("bids", tmp_path, tmp_path / "m.csv")
    (line,) = {str(warning.message) for warning in said}
    assert "sub-01_acq-FLASH_T1w.nii.gz" in line and "left out" in line  # not of the runs


def test_uppercase_suffixes_are_scans(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz").rename(tmp_path / "B.NII.GZ")
    scan(tmp_path / "a.nii.gz")
    subjects = data.read_manifest(write_manifest("flat", tmp_path, tmp_path / "m.csv"))
    assert [subject.name for subject in subjects] == ["B", "a"]


def test_an_id_of_two_persons_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        scan(tmp_path / f"{name}.nii")
    (tmp_path / "ids.csv").write_text("id,person\na,p\na,q\nb,p\nc,q\n")
    with pytest.raises(InputError, match="a is of two persons"):
        write_manifest("flat", tmp_path, tmp_path / "m.csv", subjects=tmp_path / "ids.csv")
