"""The notebooks are clean on disk and run from the first to the last, on the built-in cohort and on a user's own."""

import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from skimage.metrics import structural_similarity

from srlib import systems
from srlib.data import cohorts
from srlib.data.manifest import Subject
from srlib.evaluation import results
from srlib.scans.volume import Volume, save_scan

ROOT = Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin_and_carry_no_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum(len([x for x in cell.source.splitlines() if x.strip()]) for cell in code) <= 60
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert book.metadata.kernelspec.name == "python3"
    assert book.metadata.srlib.seconds > 0  # for the time that is left of a run
    books = {p.stem[:2]: nbformat.read(p, as_version=4) for p in BOOKS}
    after = {*book.metadata.srlib.after}
    for name in after:  # and after what these come after, also when some alone are run
        assert {*books[name].metadata.srlib.after} <= after
    for cell in code:
        assert not any(
            isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)
            for n in ast.walk(ast.parse(cell.source))
        )
    head = book.cells[0].source
    assert head.startswith(f"# {path.stem[:2]} · ")
    assert all(word in head for word in ("**Reads**", "**Writes**", "**Takes**"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_parameters_are_literals_that_the_runner_knows(path):
    book = nbformat.read(path, as_version=4)
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)
        assert statement.target.id in (
            "profile", "cohort", "seed", "us_cohort", "ct_cohort", "labels", "classes", "priors", "middle",
            "overrides", "extra", "ledger", "networks", "evidence",
        )  # fmt: skip


@pytest.mark.parametrize("number", ["10", "11", "12", "13", "15"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # of an unknown number of classes
def test_a_systems_notebook_tells_the_idea_the_loss_the_network_and_what_to_change(number):
    """And its trainings take what it proposes to change."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    book = nbformat.read(path, as_version=4)
    text = next(cell.source for cell in book.cells if cell.source.startswith("## The idea"))
    idea, _, rest = text.partition("**Loss.**")
    assert len(re.findall(r"\.\s", idea.replace("et al.", ""))) == 5  # sentences
    assert re.search(r"\(\w.* 20\d\d", idea)  # whose it is
    assert rest.count("$$") >= 2
    proposed = re.findall(r"^- `(\S+=\S+)`", rest, re.MULTILINE)
    assert 2 <= len(proposed) <= 3
    trained = [n for system in book.metadata.srlib.trains for n in systems.runs(system, "quick")]
    for overrides in proposed:
        made = [systems.get(name, "quick", overrides) for name in trained]
        assert {e.name for e in made} - set(trained), f"{overrides} changes nothing"
        for experiment in made:
            experiment.training.check(experiment.network.build())
    assert any("figures.architecture(" in cell.source for cell in book.cells)


def test_the_published_weights_are_measured_in_the_printed_convention(published_dir, tmp_path):
    """PSNR with range 1 and SSIM with range 2: what scikit-image 0.14.2 takes for floats from 0 on."""
    if not (published_dir / "mDCSRN_pretrained_G_step250000.pth").is_file():
        pytest.skip(f"mDCSRN's weights are not in {published_dir}; get them from their authors")
    book = nbformat.read(ROOT / "notebooks" / "10_mdcsrn.ipynb", as_version=4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    scan = Volume(np.random.default_rng(0).random((20, 22, 24)) * 900, np.eye(4))
    subject = Subject("s", "test", {"t1": save_scan(scan, tmp_path / "s.nii")})
    names = {"manifest": "csv/example.csv", "test": subject}
    exec("\n".join(x for x in code[1].splitlines() if "import" in x), names)
    exec(next(source for source in code if "crop_printed" in source), names)
    truth, task = names["truth"].data, names["experiment"].task
    rows = [row for row in names["rows"] if row["degradation"] == task]
    table = results.wide(rows, ["region", "experiment"]).loc["crop_printed"]
    assert 0 <= truth.min() < truth.max() <= 1
    for name, estimate in names["estimates"].items():
        found = table.loc[name]
        error = np.mean(np.square(truth - estimate.data, dtype=np.float64))
        assert found["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
        ssim = structural_similarity(truth, estimate.data, data_range=2, win_size=7)
        assert found["ssim3d"] == pytest.approx(ssim, abs=1e-5)


def test_the_executed_notebooks_are_whole_and_small():
    """Those of the reference, for readers; no place on anyone's machine is named in them."""
    folder = ROOT / "results" / "quick" / "notebooks"
    assert sorted(p.name for p in folder.iterdir()) == [p.name for p in BOOKS]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 6e6
    for path in folder.iterdir():
        book = nbformat.read(path, as_version=4)
        assert "papermill" not in book.metadata
        outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
        assert any("image/png" in o.get("data", {}) for o in outputs)
        assert not any(o.output_type == "error" for o in outputs)
        texts = [o.get("text", "") + str(o.get("data", {}).get("text/html")) for o in outputs]
        assert not re.search(r"/(home|root|tmp|work)/", " ".join(texts))


def srlib(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "srlib", *map(str, words)], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


def test_the_chain_on_a_users_own_scans(cohort, tmp_path):
    """Oblique, 0.8 mm, int16, odd sizes, no mask: every notebook passes.

    Before, the built-in cohort is made, whose label maps it uses. Beside it one notebook trains and
    measures elsewhere, to the same bytes.
    """
    tracked, data = (ROOT / "csv" / "example.csv").read_text(), tmp_path / "data_one"
    made = {"SRLIB_RESULTS": str(tmp_path / "built"), "SRLIB_DATA": str(data)}
    done = srlib("run", "00", "--profile", "smoke", **made)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "csv" / "example.csv").read_text() == tracked
    scans = len(cohorts.LEARN) + cohorts.TESTS
    assert len([*data.glob("example/syn*_t1.nii.gz")]) == scans >= 8
    assert sum(p.stat().st_size for p in data.rglob("*") if p.is_file()) < 150e6
    one, said = both_runs(cohort, tmp_path, "13")
    assert "mdcsrn_res" in said and "not a replication" in said
    table = results.read_metrics(one)
    ours = {
        name for name in table["experiment"] if not name.endswith("_published")
    }  # those where they are at hand
    assert ours == {
        "linear", "cubic", "zero_filled", "mdcsrn", "mdcsrn_res", "mdcsrn_res_kspace", "mdcsrn_res_wgan",
        "recnn_x2", "recnn_x2x3", "srgan3d_x2", "srgan3d_res_subpixel", "srgan3d_res_subpixel_nn",
        "srgan3d_res_nn_resize", "srgan3d_res_x4", "srgan3d_res_gan", "sparse_fbp", "srresnet_us", "srgan_us",
        "srresnet_us_res", "srgan_us_res", "srresnet_ct", "srgan_ct", "srresnet_ct_res", "srgan_ct_res",
        "synthsr_thick", "synthsr_laplace", "synthsr_dice", "synthsr_gan", "robust", "robust_told",
    }  # fmt: skip
    assert {"crop", "centre", "printed", "middle"} <= set(table["region"])
    assert not {"volume", "mask"} & set(table["region"])  # whole scans are for the profile paper
    assert set(table[table["region"] == "centre"]["dataset"]) == {"example_us", "example_ct"}
    before = (one / "runs.csv").read_bytes()
    again = srlib(*CHAIN, cohort, **place(tmp_path, "one"))
    assert again.stdout.count("unchanged, skipped") == len(BOOKS)
    assert (one / "runs.csv").read_bytes() == before


@pytest.mark.slow
def test_the_chain_gives_the_same_bytes_twice(cohort, tmp_path):
    (tmp_path / "data_one").mkdir()
    one, _ = both_runs(cohort, tmp_path)
    two = tmp_path / "two" / one.name
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()


CHAIN = ("run", "--profile", "smoke", "--cohort")


def place(folder, name):
    return {"SRLIB_RESULTS": str(folder / name), "SRLIB_DATA": str(folder / f"data_{name}")}


def both_runs(cohort, folder, *names):
    """Run the chain, and elsewhere ``names`` of it or all; both give the same bytes."""
    shutil.copytree(folder / "data_one", folder / "data_two")
    with ThreadPoolExecutor() as pool:
        runs = [(("one",), ()), (("two",), names)]
        work = [
            pool.submit(srlib, *CHAIN, cohort, *some, **place(folder, *name)) for name, some in runs
        ]
    for done in (each.result() for each in work):
        assert done.returncode == 0, done.stderr
    one, two = (folder / name / "smoke_mine" for name in ("one", "two"))
    rows, again = map(results.read_metrics, (one, two))
    assert len(again.merge(rows)) == len(again) > 0
    made = [*two.glob("figures/*.png"), *two.glob("checkpoints/*/*.safetensors")]
    assert {file.suffix for file in made} == {".png", ".safetensors"}
    for file in made:
        assert filecmp.cmp(file, one / file.relative_to(two), shallow=False), file
    return one, work[0].result().stdout


def test_notebooks_opened_by_hand_find_their_files_from_where_the_kernel_starts(
    tmp_path, monkeypatch
):
    """As JupyterLab opens them: in their own folder, with the parameters that stand in them."""
    (tmp_path / "data" / "example").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in {
        cell
        for line in (ROOT / "csv" / "example.csv").read_text().splitlines()
        for cell in line.split(",")
    }:
        if name.endswith(".gz"):
            save_scan(Volume(rng.random((24, 24, 24)) * 1000, np.eye(4)), tmp_path / "data" / name)
    for name in ("RESULTS", "DATA"):
        monkeypatch.setenv(f"SRLIB_{name}", str(tmp_path / name.lower()))
    for name in ("01_manifest", "02_degradations"):
        book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        NotebookClient(book, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    assert (tmp_path / "results" / "quick" / "figures" / "degradations.png").is_file()
