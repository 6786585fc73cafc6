"""Collections of 2-D images become NIfTI files and a manifest that an experiment can read."""

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import savemat
from skimage import io

from srlib import data, systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, ScanWarning
from srlib.data.convert import convert, square
from srlib.degradations.tasks import degradation_of
from srlib.scans.volume import Volume, load_nifti


@pytest.fixture
def deeplesion(tmp_path):
    """Two key slices as published: 16-bit PNG, HU + 32768, and their rows of DL_info.csv."""
    folder = tmp_path / "DeepLesion"
    rows = ["File_name,Patient_index,Possibly_noisy,Image_size,Spacing_mm_px_,Train_Val_Test"]
    for patient, split in ((1, 1), (2, 3)):
        series = folder / "Images_png" / f"00000{patient}_01_01"
        series.mkdir(parents=True)
        x, y = np.meshgrid(np.arange(512), np.arange(512))
        hu = np.where((x - 256) ** 2 + (y - 200) ** 2 < 150**2, 40 * patient, -1024)
        io.imsave(series / "109.png", (hu + 32768).astype(np.uint16), check_contrast=False)
        rows.append(f'00000{patient}_01_01_109.png,{patient},0,"512, 512","0.8, 0.7, 5",{split}')
    (folder / "DL_info.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_deeplesion_slices_in_hu_with_their_splits(deeplesion, tmp_path):
    words = [
        "convert",
        "deeplesion",
        deeplesion,
        "--out",
        tmp_path / "out",
        "--manifest",
        tmp_path / "dl.csv",
    ]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    train, test = data.read_manifest(tmp_path / "dl.csv")
    assert (train.name, train.split, test.split) == ("000001_01_01_109", "train", "test")
    image = load_nifti(test.file("image"))
    assert image.shape == (512, 512, 1) and set(np.unique(image.data)) == {-1024, 80}
    np.testing.assert_allclose(image.spacing_mm, (0.8, 0.7, 5))
    assert image.data[256, 60, 0] == 80 and image.data[60, 256, 0] == -1024  # columns are x
    pair = systems.get("srresnet_ct_res", "smoke").pairs.make(train, middle=360)
    assert pair.hr.shape == (360, 360, 1) and np.isfinite(pair.lr.data).all()


def test_duke_records_are_scan_converted(tmp_path):
    folder = tmp_path / "duke"
    (folder / "mat").mkdir(parents=True)
    echoes = np.full((300, 40), 7, np.float32)  # depth, beams
    echoes[150, 20] = 3387  # straight ahead, 150 samples behind the first at radius 100
    savemat(folder / "mat" / "a.mat", {"dtce": echoes})
    head = "filename,initial_radius,final_radius,initial_angle,final_angle"
    (folder / "test-v1.csv").write_text(f"{head}\na.mat,100,400,-0.5,0.5\nabsent.mat,1,2,3,4\n")
    with pytest.warns(ScanWarning, match=r"1 listed records are left out, absent\.mat"):
        manifest = convert("duke", folder, out=tmp_path / "out", manifest=tmp_path / "duke.csv")
    (subject,) = data.read_manifest(manifest)
    image = load_nifti(subject.file("image"))
    assert (subject.name, subject.split) == ("a", "test") and image.shape == (512, 512, 1)
    # 384 x 300 pixels, one a depth sample, with 64 and 106 reflected ones before them
    assert np.unravel_index(image.data.argmax(), image.shape) == (64 + 192, 106 + 150, 0)
    assert image.data.min() == 0 and image.data.max() == 1
    np.testing.assert_allclose(image.spacing_mm[:2], 1)
    np.testing.assert_allclose(image.affine[:2, 3], (-192 - 64, 100 - 106))
    np.testing.assert_array_equal(image.data[63::-1], image.data[65:129])  # mirrored
    lr = degradation_of("scanline_x4")(image)
    assert lr.shape == (128, 512, 1) and lr.spacing_mm[0] == 4  # 4 columns are 4 samples


def test_a_long_record_is_cut_where_the_code_cuts_it():
    """NumPy's legacy numbers of seed 0: the first below 209 is 172, then the first below 450."""
    image = Volume(np.indices((962, 721)).sum(0)[..., None], np.diag([1, 1, 1, 1]))
    numbers = np.random.RandomState(0)
    depth, lateral = numbers.randint(0, 721 - 512), numbers.randint(0, 962 - 512)
    cut = square(image)
    assert cut.shape == (512, 512, 1) and depth == 172
    np.testing.assert_array_equal(cut.data, image.data[lateral:, depth:][:512, :512])
    np.testing.assert_allclose(cut.affine[:2, 3], (lateral, depth))


def test_a_constant_record_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"dtce": np.ones((300, 40), np.float32)})
    head = "filename,initial_radius,final_radius,initial_angle,final_angle"
    (tmp_path / "test.csv").write_text(f"{head}\na.mat,100,400,-0.5,0.5\n")
    with pytest.raises(InputError, match=r"a\.mat: the scan is constant"):
        convert("duke", tmp_path, out=tmp_path / "out", manifest=tmp_path / "duke.csv")


def test_a_conversion_replaces_nothing(deeplesion, tmp_path):
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "000002_01_01_109.nii.gz"
    for place in (mine, tmp_path / "m.csv"):
        place.write_text("mine")
        with pytest.raises(InputError, match="exists; --force replaces it"):
            convert("deeplesion", deeplesion, out=tmp_path / "out", manifest=tmp_path / "m.csv")
        assert place.read_text() == "mine" and len(list((tmp_path / "out").iterdir())) <= 1
        place.unlink()
    first = convert(
        "deeplesion", deeplesion, out=tmp_path / "out", manifest=tmp_path / "m.csv"
    ).read_bytes()
    assert (
        convert(
            "deeplesion", deeplesion, out=tmp_path / "out", manifest=tmp_path / "m.csv", force=True
        ).read_bytes()
        == first
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("000002_01_01_109.png", "../../000002_01_01_109.png"),
        ("0.8, 0.7, 5", "nan, 0.7, 5"),
        ("0.8,", "inf,"),
        (",1\n", ",9\n"),
    ],
)
def test_rows_that_were_never_published_are_refused(deeplesion, tmp_path, old, new):
    table = deeplesion / "DL_info.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(InputError, match=r"DL_info\.csv, row \d: not as published"):
        convert("deeplesion", deeplesion, out=tmp_path / "out", manifest=tmp_path / "m.csv")
    assert not (tmp_path / "out").exists() and not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    ("files", "rows", "match"),
    [
        (
            ("a.mat", "x/a.mat"),
            {"train": "a.mat,100,400,-0.5,0.5"},
            r"train\.csv, row 2: .*a\.mat and .*a\.mat",
        ),
        (
            ("a.mat",),
            {"train": "a.mat,100,400,-0.5,0.5", "test": "a.mat,100,400,-0.5,0.5"},
            "a stands twice",
        ),
        (
            ("a.mat", "A.mat"),
            {"val": "a.mat,100,400,-0.5,0.5\nA.mat,100,400,-0.5,0.5"},
            "stands twice",
        ),
        (("a.mat",), {"val": "a.mat,100,nan,-0.5,0.5"}, r"a\.mat: expected radii .* got .* nan"),
        (("a.mat",), {"val": "a.mat,100,,-0.5,0.5"}, r"a\.mat: no geometry in .*val\.csv, row 2"),
    ],
)
def test_records_whose_names_collide_are_refused(tmp_path, files, rows, match):
    folder, out = tmp_path / "duke", tmp_path / "out"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        savemat(folder / name, {"dtce": np.eye(300, 40, dtype=np.float32)})
    for split, text in rows.items():
        head = "filename,initial_radius,final_radius,initial_angle,final_angle"
        (folder / f"{split}.csv").write_text(f"{head}\n{text}\n")
    with pytest.raises(InputError, match=match):
        convert("duke", folder, out=out, manifest=tmp_path / "m.csv")
    assert not list(out.glob("*")) and not (tmp_path / "m.csv").exists()


def test_other_folders_are_refused_and_nothing_is_left(tmp_path):
    for collection, match in (
        ("deeplesion", "DL_info.csv"),
        ("duke", r"expected train\*\.csv"),
        ("x", "expected one of"),
    ):
        with pytest.raises(InputError, match=match):
            convert(collection, tmp_path, out=tmp_path / "out", manifest=tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_record_in_another_folder_is_not_found(tmp_path):
    (tmp_path / "duke").mkdir()
    head = "filename,initial_radius,final_radius,initial_angle,final_angle"
    (tmp_path / "duke" / "val.csv").write_text(f"{head}\n../a.mat,100,400,-0.5,0.5\n")
    with pytest.raises(InputError, match=r"whose column filename lists \.mat"):
        convert("duke", tmp_path / "duke", out=tmp_path / "out", manifest=tmp_path / "m.csv")


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_record_with_a_wild_number_is_refused(tmp_path, value):
    (tmp_path / "duke").mkdir()
    echoes = np.eye(300, 40, dtype=np.float32)
    echoes[3, 3] = value
    savemat(tmp_path / "duke" / "a.mat", {"dtce": echoes})
    head = "filename,initial_radius,final_radius,initial_angle,final_angle"
    (tmp_path / "duke" / "val.csv").write_text(f"{head}\na.mat,100,400,-0.5,0.5\n")
    with pytest.raises(InputError, match=r"a\.mat: expected finite, real numbers"):
        convert("duke", tmp_path / "duke", out=tmp_path / "out", manifest=tmp_path / "m.csv")
