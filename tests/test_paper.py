"""Profile ``paper`` trains, measures and tabulates every published system, from each original's own layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.io import savemat
from skimage import io
from test_hcp import truncation_script
from test_layouts import ADNI, HCP

from srlib import systems
from srlib.evaluation import results
from srlib.scans.volume import Volume, save_scan

ROOT = Path(__file__).parents[1]
TRAINED = [name for s in ("mdcsrn", "srgan3d", "recnn", "srresnet2d", "synthsr") for name in systems.runs(s, "paper")]  # fmt: skip
# in no notebook: named for `srlib train` in the notebook's table, the README or csv/README.md
BY_COMMAND = {
    "recnn_free": "needs the column lr", "recnn_1x1x3": "another factor", "recnn_x2.5": "another factor",
    "srgan3d_res_1x1x4": "another factor", "srgan_us_code": "an option of the code", "srgan_ct_code": "an option of the code",
    "synthsr_any": "no use case of the tutorials", "synthsr_tutorial7": "case 6 with other fields",
    "synthsr_training": "defaults that no tutorial has", "synthsr_finetune": "needs a trained segmenter",
    "robust_base": "shipped, trained", "robust": "shipped, trained",
}  # fmt: skip


def head(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A textured ellipsoid on air, up to 4095."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    inside = sum((g / 0.8) ** 2 for g in grid) < 1
    return np.round(inside * np.clip(2000 + 600 * texture / texture.std(), 1, 4095))


def save(data: np.ndarray, path: Path, spacing: tuple[float, ...] = (1, 1, 1), dtype: type = np.int16) -> None:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_scan(Volume(data, np.diag([*spacing, 1])), path, dtype=dtype)


def hcp(folder: Path) -> None:
    """Odd sizes, a list of ids with trailing commas, one subject with its MATLAB twin."""
    for index in range(5):
        scan = head(index, (17, 20, 25)).astype(np.int16)
        place = folder / "HCP" / f"10{index}" / HCP
        save(scan, place / f"10{index}_3T_T1w_MPR1.nii.gz", (0.7, 0.7, 0.7))
    savemat(place / f"10{index}_LR.mat", {"out_final": truncation_script(scan, 2.5)})
    (folder / "ids.csv").write_text("id,,\n" + "".join(f"10{i},,\n" for i in range(5)))


def adni(folder: Path) -> None:
    """Brains without skull, each with its mask."""
    for index in range(3):
        brain = head(10 + index, (36, 33, 30))
        place = folder / "ADNI" / f"002_S_00{index}"
        save(brain, place / f"{ADNI}Brain.nii.gz")
        save(brain > 0, place / f"{ADNI}Mask.nii.gz", dtype=np.uint8)


def kirby(folder: Path) -> None:
    """T1 and T2 on grids of their own."""
    for index in range(3):
        t1, place = head(20 + index, (29, 31, 27)), folder / "KKI2009" / f"KKI2009-0{index + 1}"
        save(t1, place.with_name(f"{place.name}-MPRAGE.nii.gz"), (1.2, 1, 1))
        save(4095 - t1[:, ::2], place.with_name(f"{place.name}-T2w.nii.gz"), (1.2, 2, 1))


def duke(folder: Path) -> None:
    """Polar records and the published CSVs of their geometry."""
    (folder / "duke" / "mat").mkdir(parents=True)
    for index, split in enumerate(("train", "val", "test")):
        beams = ndimage.gaussian_filter(np.random.default_rng(index).random((300, 40)), 1)
        savemat(folder / "duke" / "mat" / f"{split}.mat", {"dtce": beams.astype(np.float32)})
        columns = "filename,initial_radius,final_radius,initial_angle,final_angle"
        text = f"{columns}\n{split}.mat,100,400,-0.5,0.5\n"
        (folder / "duke" / f"{split}-v1.csv").write_text(text)


def deeplesion(folder: Path) -> None:
    """Key slices as 16-bit PNG, HU + 32768, and DL_info.csv."""
    rows = ["File_name,Patient_index,Possibly_noisy,Image_size,Spacing_mm_px_,Train_Val_Test"]
    for patient in (1, 2, 3):
        series = folder / "DeepLesion" / "Images_png" / f"00000{patient}_01_01"
        series.mkdir(parents=True)
        slice_ = head(30 + patient, (512, 512))
        hu = np.where(slice_, slice_ / 20, -1024)
        io.imsave(series / "109.png", (hu + 32768).astype(np.uint16), check_contrast=False)
        rows.append(f'{series.name}_109.png,{patient},0,"512, 512","0.8, 0.7, 5",{patient}')
    (folder / "DeepLesion" / "DL_info.csv").write_text("\n".join(rows) + "\n")


def synthsr(folder: Path) -> None:
    """The tutorial's folder: label maps with the scans they belong to, classes, priors of T1 and T2."""
    tables = folder / "SynthSR" / "labels_classes_priors"
    for index in range(4):
        labels, half = (head(40 + index, (48, 48, 48)) > 0).astype(int), np.arange(48)[:, None, None] < 24  # fmt: skip
        labels[labels > 0] = np.where(np.broadcast_to(half, labels.shape), 2, 41)[labels > 0]
        save(labels, folder / "SynthSR" / "labels" / f"brain{index}_labels.nii.gz", dtype=np.uint8)
        save(labels * 50, folder / "SynthSR" / "images" / f"brain{index}.nii.gz")
    tables.mkdir()
    np.save(tables / "generation_labels.npy", [0, 2, 41])
    np.save(tables / "generation_classes.npy", [0, 1, 1])
    for name in ("t1_hr", "t1_lr", "t2"):
        np.save(tables / f"prior_means_{name}.npy", [[0.0, 150], [0, 20]])
        np.save(tables / f"prior_stds_{name}.npy", [[0.0, 10], [0, 3]])


COMMANDS = (
    "manifest hcp HCP --out hcp.csv --subjects ids.csv --split 2/1/1/1",
    "manifest adni ADNI --out adni.csv --split 2/0/1",
    "manifest kirby KKI2009 --out kirby.csv --split 1/1/1",
    "convert duke duke --out us --manifest duke.csv",
    "convert deeplesion DeepLesion --out ct --manifest deeplesion.csv",
)


def shrunk() -> str:
    """Two steps and the smallest patches that the networks take; nothing else is changed."""
    words = ["training.max_steps=2", "training.batch_size=1", "network.width=4"]
    for name in TRAINED:
        patch, experiment = "16", systems.get(name)
        if name.startswith("synthsr"):
            patch = "32"
        elif name.startswith("sr") and "3d" not in name:
            patch = "32,32,1"
        words.append(f"{name}:examples.patch_size={patch}")
        words += [f"{name}:frame=32,32,32"] * bool(experiment.frame)
        if getattr(experiment.examples, "stride", None):
            words += [f"{name}:examples.stride=16", f"{name}:examples.border=0,0,0"]
        if hasattr(experiment.game, "critic_steps"):  # both networks move
            words += [f"{name}:game.critic_steps=1", f"{name}:game.per_generator=0"]
    return " ".join(words)


def srlib(folder: Path, *words: object) -> str:
    places = {"SRLIB_RESULTS": "results", "SRLIB_DATA": "data", "SRLIB_PUBLISHED": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "srlib", *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT), **{k: str(folder / v) for k, v in places.items()}},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_every_published_system_is_trained_measured_and_tabulated(tmp_path):
    for make in (hcp, adni, kirby, duke, deeplesion, synthsr):
        make(tmp_path)
    for command in COMMANDS:
        srlib(tmp_path, *command.split())
    table = (ROOT / "csv" / "paper.csv").read_text().replace("../data/synthsr", "SynthSR")
    (tmp_path / "paper.csv").write_text(table)
    books = ("10", "11", "12", "13", "15", "20")
    said = srlib(tmp_path, "run", *books, "--profile", "paper", "--cohort", "paper.csv", "-p", "overrides", shrunk())  # fmt: skip
    folder = tmp_path / "results" / "paper_paper"
    trained = [name.partition("+")[0] for name in results.read_runs(folder)["experiment"]]
    assert sorted(trained) == sorted(TRAINED)
    metrics = results.read_metrics(folder)
    metrics = metrics[metrics["region"].isin(["mask", "volume", "centre"])]
    images = {name for name in TRAINED if not name.endswith("_critic")}
    interpolated = {"linear", "cubic", "zero_filled", "sparse_fbp"}
    assert {name.partition("+")[0] for name in metrics["experiment"]} == images | interpolated
    assert {"mask", "volume"} == {*metrics[metrics["dataset"] == "adni"]["region"]}
    for experiment, rows in metrics.groupby("experiment"):  # each on its own degradation
        own = systems.get(experiment.partition("+")[0]).task if "+" in experiment else ""
        assert not own or {*rows["degradation"]} == {own}, experiment
    for name in {*metrics["experiment"]}:
        assert f" {name} " in said, name
    estimated = said.partition("In all about")[0].splitlines()
    assert [line.partition("+")[0] for line in estimated] == TRAINED
    assert all("GB of memory" in line for line in estimated)
    assert "not a replication" not in said


def test_each_experiment_is_in_a_notebook_or_named_for_the_command():
    every = {
        name
        for module in systems.SYSTEMS.values()
        for names in module.RUNS.values()
        for name in names
    }
    assert every.isdisjoint(BY_COMMAND) and every <= systems.EXPERIMENTS.keys()
    assert systems.EXPERIMENTS.keys() == every | BY_COMMAND.keys()
    pages = [
        *ROOT.glob("notebooks/*.ipynb"),
        *(ROOT / name for name in ("docs/using.md", "csv/README.md")),
    ]
    prose = "".join(page.read_text() for page in pages)
    for name in BY_COMMAND:
        assert name.replace("_ct_", "_us_") in prose, name
    for module in systems.SYSTEMS.values():
        for names in module.RUNS.values():  # what one starts from comes before it
            for place, name in enumerate(names):
                experiment = systems.get(name)
                needed = {experiment.start, experiment.start_critic, experiment.segmenter} - {""}
                assert needed <= {*names[:place]}, name
