"""Label maps to train on are found, with their classes and priors; what is missing is said."""

import numpy as np
import pytest

from srlib.core.paths import InputError, root
from srlib.data import label_maps
from srlib.data.manifest import read_manifest
from srlib.scans.volume import Volume, save_scan
from srlib.synthesis.priors import partners, read_classes, read_priors

BRIGHT = {0: 0.0, 2: 200.0, 3: 120.0, 41: 210.0}


@pytest.fixture
def labelled(tmp_path):
    """Three subjects with sided labels and, but for one, a scan that shows each label at its brightness."""
    rng, rows = np.random.default_rng(0), ["subject,split,t1,labels"]
    for number in range(3):
        data = np.zeros((12, 13, 14))
        data[1:6, 2:11, 2:12], data[6:11, 2:11, 2:12], data[2:10, 4:9, 4:7] = 41, 2, 3
        scan = np.vectorize(BRIGHT.get)(data) + rng.normal(0, 1, data.shape)
        save_scan(Volume(data, np.eye(4)), tmp_path / f"{number}_labels.nii.gz", dtype=np.uint8)
        save_scan(Volume(np.maximum(scan, 0), np.eye(4)), tmp_path / f"{number}_t1.nii.gz")
        split, t1 = ("train", f"{number}_t1.nii.gz") if number else ("val", "")
        rows.append(f"s{number},{split},{t1},{number}_labels.nii.gz")
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    table = ["label,class,name", "0,0,", "2,1,Left-White", "41,2,Right-White", "3,3,grey"]
    (tmp_path / "classes.csv").write_text("\n".join(table) + "\n")
    return tmp_path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_DATA", str(tmp_path / "data"))


def test_given_label_maps_are_taken_and_their_priors_measured(labelled):
    found = label_maps.find(f"{labelled}/mine.csv", f"{labelled}/classes.csv")
    assert (found.manifest, found.classes) == (labelled / "mine.csv", labelled / "classes.csv")
    means, _ = read_priors(found.priors)["t1"]
    assert means[0, 1] < means[0, 2] and means[0, 3] == pytest.approx(255 * 120 / 210, rel=0.03)
    assert found.priors.parent == labelled / "data"
    given = label_maps.find(f"{labelled}/mine.csv", f"{labelled}/classes.csv", f"{found.priors}")
    assert given == found


def test_synthsrs_own_data_are_found_with_one_map_for_validation(labelled):
    folder = labelled / "data" / "synthsr"
    (folder / "labels").mkdir(parents=True)
    (folder / "priors").mkdir()
    for number in range(3):
        (labelled / f"{number}_labels.nii.gz").rename(
            folder / "labels" / f"brain{number}_labels.nii.gz"
        )
    np.save(folder / "priors" / "generation_labels.npy", [0, 2, 41, 3])
    np.save(folder / "priors" / "generation_classes.npy", [0, 1, 1, 2])
    for name in ("t1_hr", "t2"):
        np.save(
            folder / "priors" / f"prior_means_{name}.npy", np.array([[0.0, 200, 100], [0, 5, 6]])
        )
        np.save(folder / "priors" / f"prior_stds_{name}.npy", np.array([[0.0, 10, 10], [0, 1, 1]]))
    found = label_maps.find()
    assert sorted(s.split for s in read_manifest(found.manifest)) == ["train", "train", "val"]
    assert {e.label: e.class_ for e in read_classes(found.classes)} == {0: 0, 2: 1, 41: 1, 3: 2}
    assert set(read_priors(found.priors)) == {"t1_hr", "t2"}


def test_the_built_in_cohort_is_made_where_only_its_table_is_there(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        label_maps.cohorts, "build", lambda manifest: made.append(manifest) or manifest
    )
    monkeypatch.setattr(label_maps, "_measured", lambda *files: tmp_path / "priors.csv")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "example.csv").write_text(
        "mine"
    )  # a user's own is neither read nor written
    assert label_maps.builtin().manifest == root() / "csv" / "example.csv" == made[0]


def test_measured_priors_of_two_manifests_of_one_name_do_not_mix(labelled):
    """Nor do they replace a table of the user's in the data folder."""
    own, other = labelled / "data" / "mine_priors.csv", labelled / "other"
    own.parent.mkdir()
    own.write_text("mine")
    other.mkdir()
    text = (labelled / "mine.csv").read_text().replace(",0_", ",../0_").replace(",1_", ",../1_")
    (other / "mine.csv").write_text("\n".join(text.splitlines()[:3]) + "\n")
    one, two = (
        label_maps.find(f"{p}/mine.csv", f"{labelled}/classes.csv") for p in (labelled, other)
    )
    assert one.priors != two.priors and one.priors.read_bytes() != two.priors.read_bytes()
    assert own.read_text() == "mine"


def test_label_maps_need_classes_and_priors_need_scans(labelled):
    with pytest.raises(InputError, match="a table of its classes is needed"):
        label_maps.find(f"{labelled}/mine.csv")
    subjects = [s for s in read_manifest(labelled / "mine.csv") if "t1" not in s.files]
    with pytest.raises(InputError, match="no row has a scan"):
        label_maps.measure(subjects, read_classes(labelled / "classes.csv"))


@pytest.mark.parametrize("name, classes, sided", [("tissue", 4, 0), ("freesurfer", 14, 32)])
def test_the_tables_that_come_along_can_be_read(name, classes, sided):
    table = read_classes(root() / "csv" / f"classes_{name}.csv")
    assert 1 + max(e.class_ for e in table if e.class_ is not None) == classes
    assert len(partners(table)) == sided
