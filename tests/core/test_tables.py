"""One reader for every CSV of a user: what training reads, enhance reads, and what one refuses all refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from srlib import data
from srlib.cli.commands import main
from srlib.core.paths import InputError, built_in, root
from srlib.core.tables import read_table, write_table
from srlib.data import layouts
from srlib.enhance import jobs as inputs
from srlib.scans import formats
from srlib.scans.volume import Volume, save_scan
from srlib.synthesis import priors

PLAIN = "subject,split,t1,mask\na,train,a.nii,\n001,val,b.nii,a.nii\n"
READ = {
    "plain": PLAIN.encode(),
    "spaces after commas": PLAIN.replace(",", ", ").encode(),
    "spaces around cells": PLAIN.replace(",", " , ").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "line ends of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "line ends of old Macs": PLAIN.replace("\n", "\r").encode(),
    "no last line end": PLAIN.strip().encode(),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n \n") + "\n\n").encode(),
    "rows of commas": (",,,\n" + PLAIN.replace("\n", "\n,,,\n") + ",,,,,,\n").encode(),
    "trailing empty columns": "".join(f"{line},,,\n" for line in PLAIN.splitlines()).encode(),
    "an empty column between": PLAIN.replace(",t1", ",,t1").replace(",a.nii,\n", ",,a.nii,\n").replace(
        ",b.nii", ",,b.nii").encode(),
    "quotes": re.sub(r"([^,\n]+)", r'"\1"', PLAIN).encode(),
    "quotes and spaces": re.sub(r"([^,\n]+)", r' "\1" ', PLAIN).encode(),
    "columns in another order": b"t1,mask,subject,split\na.nii,,a,train\nb.nii,a.nii,001,val\n",
    "short rows": PLAIN.replace("a.nii,\n", "a.nii\n").encode(),
}  # fmt: skip
REFUSED = {
    "semicolons": (
        PLAIN.replace(",", ";").encode(),
        "semicolons between its cells, expected commas",
    ),
    "tabs": (PLAIN.replace(",", "\t").encode(), "tabs between its cells, expected commas"),
    "UTF-16 with its mark": (PLAIN.encode("utf-16"), "not UTF-8; save it as 'CSV UTF-8'"),
    "UTF-16 without": (PLAIN.encode("utf-16-le"), "UTF-16"),
    "Windows-1252": (PLAIN.replace("a,train", "Jürgen,train").encode("cp1252"), "not UTF-8"),
    "a quote that never closes": (
        PLAIN.replace("a,train", '"a,train').encode(),
        "a quote never closes",
    ),
    "a column twice": (PLAIN.replace("mask", "t1").encode(), "a column stands twice, 't1'"),
    "an unknown column": (PLAIN.replace("mask", "flair").encode(), "unknown column 'flair'"),
    "another case": (PLAIN.replace("t1", "T1").encode(), "'T1'"),
    "a cell too many": (
        PLAIN.replace("a.nii,\n", "a.nii,,b.nii\n").encode(),
        "row 2: 5 cells under 4 columns",
    ),
    "a column without a name": (PLAIN.replace("split", "").encode(), "column"),
    "a row cut off": (PLAIN.replace("a,train,a.nii,", "a,train,a.nii\nb").encode(), "row 3"),
    "a header alone": (b"subject,split,t1\n\n", "at least one row"),
    "nothing": (b"", "at least one row"),
    "commas alone": (b",,,\n,,\n", "at least one row"),
    "a slash": (PLAIN.replace("001", "x/001").encode(), "row 3"),
    "a way out": (PLAIN.replace("001", "../001").encode(), "row 3"),
    "no name": (PLAIN.replace("001", "").encode(), "row 3"),
    "a name twice": (PLAIN.replace("001", "A").encode(), "row 3"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))
    for name in "ab":
        save_scan(
            Volume(np.random.default_rng(0).random((4, 4, 4)), np.eye(4)), tmp_path / f"{name}.nii"
        )
    return tmp_path


@pytest.mark.parametrize("case", READ)
def test_training_and_enhance_read_the_same(folder, case):
    manifest = folder / "mine.csv"
    manifest.write_bytes(READ[case])
    subjects = data.read_manifest(manifest)
    assert [(s.name, s.split, s.file("t1").name) for s in subjects] == [
        ("a", "train", "a.nii"),
        ("001", "val", "b.nii"),
    ]
    assert set(subjects[0].files) == {"t1"} and subjects[1].file("mask").name == "a.nii"
    jobs = inputs.jobs([manifest], folder / "out")
    assert [(j.source, j.target.name) for j in jobs] == [
        (s.file("t1"), f"{s.name}_sr.nii.gz") for s in subjects
    ]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_training_and_enhance_refuse_the_same_in_one_line(folder, case):
    manifest, (content, words) = folder / "mine.csv", REFUSED[case]
    manifest.write_bytes(content)
    for read in (data.read_manifest, lambda path: inputs.jobs([path], folder / "out")):
        with pytest.raises(InputError, match=r"mine\.csv") as error:
            read(manifest)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_enhance_needs_no_split_and_no_file_of_other_rows(folder):
    manifest = folder / "mine.csv"
    manifest.write_text("subject,t1,t2\na,a.nii,\nb,gone.nii,\nc,,b.nii\n")
    jobs = inputs.jobs([manifest], folder / "out")
    assert [j.target.name for j in jobs] == ["a_sr.nii.gz", "b_sr.nii.gz", "c_sr.nii.gz"]
    with pytest.raises(InputError, match=r"row 4, column t1 \(empty\): no such file"):
        formats.fingerprint(jobs[2].source)
    pairs = inputs.jobs([manifest], folder / "pairs", columns=("t1", "t2"))
    assert [j.reference for j in pairs] == [None, None, folder / "b.nii"]


def test_a_path_that_no_file_system_takes_is_one_line(folder):
    manifest = folder / "mine.csv"
    manifest.write_text(f"subject,split,t1\na,train,{'x' * 300}.nii\n")
    with pytest.raises(InputError, match=r"row 2, column t1: x+\.nii is neither in"):
        data.read_manifest(manifest)
    (job,) = inputs.jobs([manifest], folder / "out")
    with pytest.raises(InputError):
        formats.fingerprint(job.source)


def quirks(text: str) -> list[bytes]:
    """A table as spreadsheets and people write it."""
    spaced = text.replace(",", ", ").replace("\n", "\n,,,\n")
    return [
        text.encode(),
        ("\n\n" + spaced).encode(),
        b"\xef\xbb\xbf" + text.replace("\n", ",,\r\n").encode(),
    ]


def test_the_other_tables_are_read_alike(folder):
    (folder / "scans").mkdir()
    for name in "ab":
        (folder / f"{name}.nii").rename(folder / "scans" / f"{name}.nii")
    classes = "label,class,name,side\n0,0,,\n2,1,white,\n"
    measured = "modality,class,quantity,mean,std\n" + "".join(
        f"t1,{k},{q},{k + 1},1\n" for k in (0, 1) for q in ("mean", "std")
    )
    for number, (ids, table, prior) in enumerate(zip(quirks("id,person\nb,x\n"), quirks(classes), quirks(measured),
                                                     strict=True)):  # fmt: skip
        for name, content in (("ids", ids), ("classes", table), ("priors", prior)):
            (folder / f"{name}.csv").write_bytes(content)
        out = layouts.write_manifest(
            "flat", folder / "scans", folder / f"{number}.csv", subjects=folder / "ids.csv"
        )
        assert out.read_text() == "subject,split,t1\nb,train,scans/b.nii\n"
        assert [(e.label, e.class_) for e in priors.read_classes(folder / "classes.csv")] == [
            (0, 0),
            (2, 1),
        ]
        assert priors.read_priors(folder / "priors.csv")["t1"][0].tolist() == [[1, 2], [1, 1]]
    for name, read in (
        (
            "ids",
            lambda p: layouts.write_manifest(
                "flat", folder / "scans", folder / "no.csv", subjects=p
            ),
        ),
        ("classes", priors.read_classes),
        ("priors", priors.read_priors),
    ):
        path = folder / f"{name}.csv"
        path.write_text(path.read_text().replace(",", ";"))
        with pytest.raises(InputError, match=rf"{name}\.csv: semicolons between its cells"):
            read(path)


# What is written


def test_nothing_of_a_users_is_written_over(folder):
    path = write_table(folder / "t.csv", ("a", "b"), [(1, "x, y"), (2, "")])
    assert path.read_bytes() == b'a,b\n1,"x, y"\n2,\n'
    before = path.stat().st_mtime_ns
    assert (
        write_table(path, ("a", "b"), [(1, "x, y"), (2, "")]).stat().st_mtime_ns == before
    )  # the same bytes
    with pytest.raises(InputError, match=r"t\.csv exists; --force replaces it"):
        write_table(path, ("a",), [(3,)])
    assert path.stat().st_mtime_ns == before
    assert [row["a"] for row in read_table(write_table(path, ("a",), [(3,)], force=True))] == ["3"]
    with pytest.raises(InputError, match="is not UTF-8"):
        write_table(folder / "u.csv", ("a",), [("caf\udce9.nii",)])
    for place in (folder / "none" / "t.csv", folder / "a.nii" / "t.csv"):
        with pytest.raises(InputError, match="cannot write"):
            write_table(place, ("a",), [(3,)])
    assert not (folder / "u.csv").exists()


def test_commands_keep_what_is_there(folder):
    (folder / "scans").mkdir()
    labels = np.zeros((8, 8, 8))
    labels[2:6] = 1
    save_scan(Volume(labels * 100 + 5, np.eye(4)), folder / "scans" / "x.nii")
    save_scan(Volume(labels, np.eye(4)), folder / "x_labels.nii")
    (folder / "m.csv").write_text("subject,split,t1,labels\nx,train,scans/x.nii,x_labels.nii\n")
    (folder / "classes.csv").write_text("label,class\n0,0\n1,1\n")
    mine = folder / "thesis.csv"
    for words in (
        ["manifest", "flat", folder / "scans", "--out", mine],
        ["priors", folder / "m.csv", "--classes", folder / "classes.csv", "--out", mine],
        ["store", "recnn_x2", "--profile", "smoke", "--cohort", folder / "m.csv", "--out", mine],
    ):
        mine.write_text("mine")
        done = CliRunner().invoke(main, [str(w) for w in words])
        assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "--force" in done.stderr, (
            done.output
        )
        assert mine.read_text() == "mine"
        done = CliRunner().invoke(main, [str(w) for w in [*words, "--force"]])
        assert done.exit_code == 0 and mine.read_bytes() != b"mine", done.output


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["manifest", "flat", "scans", "--out", "m.csv", "--split", "0.5/0.6/-0.1"], "--split"),
        (["manifest", "flat", "scans", "--out", "m.csv", "--split", "nan/0.5/0.5"], "--split"),
        (["manifest", "flat", "scans", "--out", "m.csv", "--split", "1e300/0/0"], "--split"),
        (["manifest", "flat", "scans", "--out", "m.csv", "--split", "0/0/0"], "--split"),
        (["manifest", "flat", "scans", "--out", "m.csv", "--seed", "-1"], "--seed"),
        (["manifest", "flat", "scans", "--out", "none/m.csv"], "--out"),
        (["manifest", "flat", "scans", "--out", "m.csv", "--subjects", "none.csv"], "none.csv"),
        (
            ["priors", "mine.csv", "--classes", "classes.csv", "--out", "p.csv", "--split", "eval"],
            "only train",
        ),
        (["priors", "mine.csv", "--classes", "none.csv", "--out", "p.csv"], "none.csv"),
        (["convert", "deeplesion", "scans", "--out", "o", "--manifest", "m.csv"], "DL_info.csv"),
        (
            ["store", "recnn_x2", "--profile", "smoke", "--cohort", "val.csv", "--out", "p.h5"],
            "no row has split 'train'",
        ),
    ],
)
def test_what_is_refused_is_one_line(folder, monkeypatch, words, option):
    monkeypatch.chdir(folder)
    (folder / "scans").mkdir()
    (folder / "a.nii").rename(folder / "scans" / "a.nii")
    (folder / "mine.csv").write_text("subject,split,t1\na,train,scans/a.nii\n")
    (folder / "val.csv").write_text("subject,split,t1\na,val,scans/a.nii\n")
    (folder / "classes.csv").write_text("label,class\n0,0\n1,1\n")
    before = sorted(p.name for p in folder.iterdir())
    done = CliRunner().invoke(main, words)
    assert (
        done.exit_code == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    ), done.output
    assert option in done.stderr and sorted(p.name for p in folder.iterdir()) == before


def test_only_the_checkouts_own_manifest_is_the_built_in_one(folder, monkeypatch):
    (folder / "csv").mkdir()
    for name in ("example.csv", "csv/example.csv", "example_ct.csv"):
        (folder / name).write_text("subject,split,t1\na,train,a.nii\n")
        assert built_in(folder / name) == ""
    assert (
        built_in(root() / "csv" / "example.csv")
        == built_in(root() / "csv" / ".." / "csv" / "example.csv")
        == "example"
    )
    assert built_in(root() / "csv" / "example_ct.csv") == "example_ct"
    assert built_in(root() / "csv" / "reported.csv") == ""
    monkeypatch.chdir(folder)
    assert built_in("csv/example.csv") == ""  # the one of the working directory


@pytest.mark.parametrize("book", ["00_example_cohort", "13_srresnet2d"])
def test_notebooks_make_no_manifest_of_a_user(book):
    cells = (root() / "notebooks" / f"{book}.ipynb").read_text()
    assert "built_in(" in cells and '.stem == \\"example' not in cells and ".stem == f" not in cells
