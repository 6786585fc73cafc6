"""Priors: what a mixture was drawn with comes back; tables are read, or refused in one line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from srlib.cli.commands import main
from srlib.core.paths import InputError, data_dir
from srlib.scans import volume
from srlib.scans.volume import Volume, crop_or_pad, fine_grid, reorient
from srlib.synthesis.priors import Label, estimate_priors, read_classes, read_priors, write_priors

DATA = data_dir() / "synthsr"  # of its tutorial
TABLE = "label,name,class,side\n0,,0,\n2,,1,left\n41,Right-Cerebral-White-Matter,1,right\n4,,2,left\n99,cyst,,\n"
CLASSES = (Label(0, 0), Label(2, 1), Label(41, 1), Label(4, 2))
LABELS = np.repeat(np.array([0, 2, 41, 4]), 250).reshape(10, 10, 10)
MEANS = np.array([[0.0, 220.0, 60.0], [0.0, 4.0, 10.0]])
STDS = np.array([[0.0, 15.0, 25.0], [0.0, 2.0, 5.0]])


def at_hand(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name}, of SynthSR's tutorial, is not at hand")
    return DATA / name


def draw(labels, classes, mean, std, seed):
    """A scan of the mixture with one mean and std per class."""
    class_of = {entry.label: entry.class_ for entry in classes}
    lut = np.zeros(labels.max() + 1, int)
    for label, index in class_of.items():
        if index is not None and label < len(lut):
            lut[label] = index
    noise = np.random.default_rng(seed).standard_normal(labels.shape)
    return Volume((mean[lut[labels]] + std[lut[labels]] * noise).astype(np.float32), np.eye(4))


def grid(array) -> Volume:
    return Volume(np.asarray(array, np.float32), np.eye(4))


def test_median_and_scaled_deviation_by_hand():
    labels = np.array([0, 0, 0, 2, 2, 2, 41, 41, 4, 4]).reshape(10, 1, 1)
    scan = np.array([0, 0, 9, 1, 2, 4, 8, 0, 5, -3]).reshape(10, 1, 1)
    means, stds = estimate_priors([("one", grid(scan), grid(labels))], CLASSES, rescale=False)
    # class 1 holds 1, 2, 4, 8 (zero counts for the background alone), class 2 holds 5
    np.testing.assert_allclose(means, [[0, 3, 5], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(stds, [[0, 1.4826 * 1.5, 0], [0, 0, 0]], rtol=1e-6)


def test_mean_and_std_over_subjects_that_have_the_class():
    flat = [("a", 10.0), ("b", 20.0)]
    pairs = [(name, grid(np.full(LABELS.shape, value)), grid(LABELS)) for name, value in flat]
    pairs.append(("c", grid(np.full(LABELS.shape, 60.0)), grid(np.where(LABELS == 4, 0, LABELS))))
    means, _ = estimate_priors(pairs, CLASSES, rescale=False)
    np.testing.assert_allclose(means[:, 1], [30, np.std([10, 20, 60])], rtol=1e-6)
    np.testing.assert_allclose(means[:, 2], [15, 5], rtol=1e-6)  # c has none


def test_scans_are_brought_to_255_by_percentiles():
    scan = draw(LABELS, CLASSES, 3 * MEANS[0] + 7, STDS[0] / 2, seed=0)
    low, high = np.percentile(scan.data, [2, 98])
    expected = (
        np.array([np.median(scan.data[np.isin(LABELS, a)]) for a in ([0], [2, 41], [4])]) - low
    ) * 255
    means, _ = estimate_priors([("one", scan, grid(LABELS))], CLASSES)
    np.testing.assert_allclose(means[0], expected / (high - low), rtol=1e-4)
    again, _ = estimate_priors([("one", grid(scan.data * 50 + 3), grid(LABELS))], CLASSES)
    np.testing.assert_allclose(again, means, rtol=1e-3, atol=1e-2)  # in whatever unit


def test_what_a_mixture_was_drawn_with_comes_back():
    rng, pairs = np.random.default_rng(0), []
    labels = np.kron(LABELS, np.ones((2, 2, 2), int))
    for seed in range(40):
        mean, std = (rng.normal(prior[0], prior[1]) for prior in (MEANS, STDS))
        pairs.append((f"{seed}", draw(labels, CLASSES, mean, np.abs(std), seed), grid(labels)))
    means, stds = estimate_priors(pairs, CLASSES, rescale=False)
    np.testing.assert_allclose(means[0], MEANS[0], rtol=0.03)
    np.testing.assert_allclose(stds[0], STDS[0], rtol=0.1)
    np.testing.assert_allclose(means[1], MEANS[1], rtol=0.35)


def test_published_priors_come_back_on_real_anatomy():
    classes = read_classes(at_hand("priors/generation_labels.npy"))
    means, stds = read_priors(at_hand("priors/prior_means_t1_hr.npy"))["t1_hr"]
    pairs = []
    for i in range(1, 5):
        labels = volume.load_nifti(at_hand(f"labels/brain{i}_labels.nii.gz")).data[
            30:118:2, 40:150:2, 30:125:2
        ]
        pairs.append(
            (f"{i}", draw(labels.astype(int), classes, means[0], stds[0], i), grid(labels))
        )
    found, _ = estimate_priors(pairs, classes, rescale=False)
    np.testing.assert_allclose(found[0], means[0], rtol=0.02)


def test_a_table_that_a_person_writes(tmp_path):
    (tmp_path / "classes.csv").write_text(
        "\ufeff" + TABLE.replace("\n", "\r\n") + "\r\n", encoding="utf-8"
    )
    table = read_classes(tmp_path / "classes.csv")
    assert table[1] == Label(2, 1, "Left-Cerebral-White-Matter", "left")  # FreeSurfer's name
    assert table[4] == Label(99, None, "cyst", "")
    labels = np.where(LABELS == 41, 99, LABELS)
    means, _ = estimate_priors([("one", grid(labels + 1.0), grid(labels))], table, rescale=False)
    assert means[0].tolist() == [1, 3, 5]  # the cyst counts nowhere


def test_labels_without_classes_are_a_class_each(tmp_path):
    np.save(tmp_path / "generation_labels.npy", [0, 14, 2, 41])
    table = read_classes(tmp_path / "generation_labels.npy")
    assert [(entry.label, entry.class_) for entry in table] == [(0, 0), (14, 1), (2, 2), (41, 3)]


def test_the_original_classes():
    table = read_classes(at_hand("priors/generation_labels.npy"))
    assert table == read_classes(at_hand("priors/generation_classes.npy"))
    assert len(table) == 19 and {entry.class_ for entry in table} == set(range(14))
    assert next(e for e in table if e.label == 17) == Label(17, 9, "Left-Hippocampus")


BAD_TABLES = {
    "": "expected a header and at least one row",
    "label,name\n0,a\n": "expected label, class and any of name, side",
    "label,class,colour\n0,0,red\n": "unknown column 'colour'",
    "label,class,label\n0,0,0\n": "a column stands twice, 'label'",
    "label,class\n": "at least one row",
    "label,class\n0,0\n2\n": "row 3, column class: the row ends before it",
    "label,class\n0,0\n0,1\n": "twice",
    "label,class\n0,0\n2,2\n": "every class from 0 to 1",
    "label,class\n0,1\n2,2\n": "every class from 0 to 1",
    "label,class\n0,zero\n": "row 2, class: expected a whole number",
    "label,class\n1.5,0\n": "row 2, label: expected a whole number",
    "label,class\n-1,0\n": "row 2, label: expected a whole number",
    "label,class,side\n0,0,up\n": "expected left, right",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_bad_tables_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(InputError, match=r"classes\.csv") as error:
        read_classes(tmp_path / "classes.csv")
    assert BAD_TABLES[text] in str(error.value) and "\n" not in str(error.value)


FAR = np.eye(4) + np.outer([0, 0, 1, 0], [0, 0, 0, 50])
BAD_PAIRS = {
    "7 .250 voxels. has no class": lambda scan: (scan, grid(np.where(LABELS == 4, 7, LABELS))),
    r"class 2 \(4\) has no voxel in any": lambda scan: (
        scan,
        grid(np.where(LABELS == 4, 0, LABELS)),
    ),
    r"label map covers 90 % of": lambda scan: (scan, grid(LABELS[..., :9])),
    "label map shows nothing in": lambda scan: (scan, Volume(LABELS, FAR)),
    "not whole": lambda scan: (scan, grid(LABELS + 0.25)),
    "constant": lambda scan: (grid(np.ones(LABELS.shape)), grid(LABELS)),
}


@pytest.mark.parametrize("axes", ["LPS", "SAR"])
def test_a_label_map_meets_its_scan_by_their_affines(axes):
    scan = draw(LABELS, CLASSES, MEANS[0], STDS[0], 0)
    expected = estimate_priors([("anna", scan, grid(LABELS))], CLASSES)
    wider = crop_or_pad(
        grid(LABELS), (-2, -1, 0), (14, 12, 11)
    )  # on the same lattice, of another size
    fine = Volume(
        LABELS.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine_grid(grid(LABELS), (2, 2, 2))[1]
    )
    for labels in (grid(LABELS), wider, fine):
        np.testing.assert_array_equal(
            estimate_priors([("anna", scan, reorient(labels, axes))], CLASSES), expected
        )


@pytest.mark.parametrize("words", BAD_PAIRS)
def test_bad_pairs_are_refused_in_one_line(words):
    scan, labels = BAD_PAIRS[words](draw(LABELS, CLASSES, MEANS[0], STDS[0], 0))
    with pytest.raises(InputError, match=words) as error:
        estimate_priors([("anna", scan, labels)], CLASSES)
    assert "\n" not in str(error.value)
    assert "anna" in str(error.value) or "class 2" in words
    with pytest.raises(InputError, match="at least one"):
        estimate_priors([], CLASSES)


def test_stray_voxels_of_freesurfer_are_left_out():
    labels = np.where(LABELS == 41, 29, LABELS)
    means, _ = estimate_priors([("one", grid(labels + 1.0), grid(labels))], CLASSES, rescale=False)
    assert means[0].tolist() == [1, 3, 5]


def test_written_priors_are_read_again(tmp_path):
    path = write_priors({"t1": (MEANS, STDS), "t2": (STDS, MEANS)}, tmp_path / "priors.csv")
    again = read_priors(path)
    assert list(again) == ["t1", "t2"]
    for prior, (means, stds) in zip(again.values(), ((MEANS, STDS), (STDS, MEANS)), strict=True):
        np.testing.assert_allclose(prior[0], means, atol=1e-6)
        np.testing.assert_allclose(prior[1], stds, atol=1e-6)
    assert path.read_text().splitlines()[3:5] == [
        "t1,1,mean,220.000000,4.000000",
        "t1,1,std,15.000000,2.000000",
    ]


def test_original_priors_of_a_modality(tmp_path):
    np.save(tmp_path / "prior_means_t1.npy", MEANS)
    np.save(tmp_path / "prior_stds_t1.npy", STDS)
    for name in ("prior_means_t1.npy", "prior_stds_t1.npy"):
        (means, stds) = read_priors(tmp_path / name)["t1"]
        assert np.array_equal(means, MEANS) and np.array_equal(stds, STDS)


@pytest.mark.parametrize(
    "means, words",
    [
        (np.zeros((3, 4)), "one shape"), (np.zeros((2, 0)), "one shape"), (np.zeros((2, 5)), "one shape"), (np.full((2, 3), np.nan), "not finite"),
        (-MEANS, "negative"), (np.array(["a"]), "not a readable"), (np.array([{}]), "not a readable"),
    ],
)  # fmt: skip
def test_bad_original_priors_are_refused(tmp_path, means, words):
    np.save(tmp_path / "prior_means_t1.npy", means, allow_pickle=True)
    np.save(tmp_path / "prior_stds_t1.npy", STDS)
    with pytest.raises(InputError, match=words):
        read_priors(tmp_path / "prior_means_t1.npy")
    (tmp_path / "prior_stds_t1.npy").unlink()
    np.save(tmp_path / "prior_means_t1.npy", MEANS)
    with pytest.raises(InputError, match=r"prior_stds_t1\.npy, of its pair, .*No such file"):
        read_priors(tmp_path / "prior_means_t1.npy")


@pytest.mark.parametrize("size", [0, 5, 60, 100, 140])
def test_cut_arrays_are_refused(tmp_path, size):
    np.save(tmp_path / "prior_means_t1.npy", MEANS)
    np.save(tmp_path / "prior_stds_t1.npy", STDS)
    content = (tmp_path / "prior_means_t1.npy").read_bytes()
    (tmp_path / "prior_means_t1.npy").write_bytes(content[:size])
    with pytest.raises(InputError, match="not a readable") as error:
        read_priors(tmp_path / "prior_means_t1.npy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "row, words",
    [
        ("t1,2,mean,3,1", "expected one row"), ("t1,0,mean,3,1", "expected one row"),
        ("t1,0,median,3,1", "expected one row"), (",0,mean,3,1\n,0,std,3,1", "modality ''"),
        ("t1,1,mean,3,-1\nt1,1,std,3,1", "negative"), ("t1,1,mean,nan,1\nt1,1,std,3,1", "not finite"),
        ("t1,1,mean,x,1\nt1,1,std,1,1", "expected numbers"), ("t1,x,mean,1,1", "whole number"),
    ],
)  # fmt: skip
def test_bad_prior_rows_are_refused(tmp_path, row, words):
    path = tmp_path / "priors.csv"
    path.write_text(f"modality,class,quantity,mean,std\nt1,0,mean,1,1\nt1,0,std,1,1\n{row}\n")
    with pytest.raises(InputError, match=words) as error:
        read_priors(path)
    assert "priors.csv" in str(error.value) and "\n" not in str(error.value)


def run(*words):
    return CliRunner().invoke(main, ["priors", *map(str, words)])


def test_the_command(tmp_path):
    rows = ["subject,split,t1,t2,labels"]
    for i, split in enumerate(("train", "train", "test")):
        scan = draw(LABELS, CLASSES, MEANS[0], STDS[0], i)
        for name, data in (("t1", scan.data), ("t2", 255 - scan.data), ("labels", LABELS)):
            volume.save_scan(grid(data), tmp_path / f"{name}_{i}.nii.gz")
        rows.append(f"s{i},{split},t1_{i}.nii.gz,{'' if i else 't2_0.nii.gz'},labels_{i}.nii.gz")
    manifest, out = tmp_path / "mine.csv", tmp_path / "priors.csv"
    manifest.write_text("\n".join(rows) + "\n")
    (tmp_path / "classes.csv").write_text(TABLE)
    done = run(manifest, "--classes", tmp_path / "classes.csv", "--out", out)
    assert done.exit_code == 0, done.output
    assert (
        "t1: 3 classes from 2 scans" in done.stderr and "t2: 3 classes from 1 scans" in done.stderr
    )
    priors = read_priors(out)
    t1, t2 = priors["t1"][0][0], priors["t2"][0][0]
    assert t1[1] > t1[2] > t1[0] and t2[1] < t2[2] < t2[0]
    with open(out, newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 2
    (tmp_path / "classes.csv").write_text("label,class\n0,0\n2,1\n")
    done = run(manifest, "--classes", tmp_path / "classes.csv", "--out", tmp_path / "no.csv")
    assert done.exit_code == 1 and done.stderr.count("error: ") == 1
    assert (
        "subject s0: label 4 (250 voxels) has no class" in done.stderr
        and not (tmp_path / "no.csv").exists()
    )
    done = run(manifest, "--classes", tmp_path / "classes.csv", "--out", out, "--split", "val")
    assert done.exit_code == 1 and "val" in done.stderr
