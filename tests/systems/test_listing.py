"""What there is: systems, tasks, weights and profiles, in Python and on the command line."""

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, choose, root, sha256
from srlib.degradations.tasks import TASKS
from srlib.evaluation.results import read_runs
from srlib.models.weights import save_weights
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume
from srlib.systems.trained import load_model


def test_every_experiment_and_task_is_listed_once():
    assert systems.listing("systems")["experiment"].tolist() == [*systems.EXPERIMENTS]
    tasks = systems.listing("tasks").set_index("task")
    assert tasks.index.tolist() == [*TASKS]
    assert "recnn_multi" in tasks.loc["gaussian_x2_corners", "trained for it"].split(", ")


def test_weights_say_whether_they_are_there_and_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path))
    monkeypatch.setenv("SRLIB_PUBLISHED", str(tmp_path))
    run = tmp_path / "quick" / "checkpoints" / "mdcsrn_res-quick-s0-example" / "model.safetensors"
    run.parent.mkdir(parents=True)
    save_weights({}, run, {})
    where = systems.listing("weights").set_index("weights")["where"]
    assert where.index.is_unique
    assert where["robust"] == "comes with the package" and where["mdcsrn_res"] == str(run)
    assert where["recnn_x2"] == "comes with the package; 'make replicate' makes others"
    assert where["recnn_x2_t2"].endswith("missing: made by 'make replicate'")
    assert where["recnn_20"].endswith("'srlib train recnn_20'")
    assert str(tmp_path) in where["SRCNN3D_iter_470000.caffemodel"]


def test_profiles_say_what_the_notebooks_train():
    table = systems.listing("profiles").set_index(["profile", "system"])
    names = table.loc[("paper", "recnn"), "trained by notebooks"].split(", ")
    assert names == systems.runs("recnn", "paper")
    assert int(table.loc[("paper", "srgan3d"), "steps"].replace(",", "")) > 18_800


@pytest.mark.parametrize("what", ["systems", "tasks", "weights", "profiles"])
def test_the_command_prints_the_same_table(what):
    lines = CliRunner().invoke(main, ["list", what]).output.splitlines()
    assert len(lines) == 2 + len(systems.listing(what))
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'mdcsrn_res'"):
        systems.get("mdcsrn_rs")
    with pytest.raises(InputError, match="'xyz'; expected one of"):
        choose({"abc": 1}, "xyz", "word")
    with pytest.raises(InputError, match="expected one of systems, tasks"):
        systems.listing("sistem")


SHIPPED = [p for p in (root() / "srlib" / "shipped").glob("*.safetensors") if p.stem != "robust"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_weights_of_a_system_come_with_the_package_as_the_reference_made_them(file, tmp_path, monkeypatch):  # fmt: skip
    """Without any run they are found by name, work, and are the files of the reference's table."""
    monkeypatch.setenv("SRLIB_RESULTS", str(tmp_path))
    runs = read_runs(root() / "results" / "quick").set_index("checkpoint_sha256")
    assert runs.loc[sha256(file), "experiment"] == file.stem and file.stat().st_size < 2e6
    model = load_model(file.stem)
    experiment = model.experiment
    image = 1 in per_axis(experiment.examples.patch_size)
    shape = (48, 48, 1) if image else (24, 24, 24)
    data = np.random.default_rng(0).random(shape, np.float32)
    pair = experiment.pairs.degrade(
        Volume((ndimage.gaussian_filter(data, 2) - 0.5) * 2000 - 400, np.eye(4))
    )
    made = model.predict_pair(pair)
    assert made.shape == pair.hr.shape and np.isfinite(made.data).all()
    assert np.corrcoef(made.data.ravel(), pair.hr.data.ravel())[0, 1] > 0.5


def test_there_are_weights_of_most_systems():
    assert {file.stem.split("_")[0] for file in SHIPPED} == {
        "mdcsrn",
        "recnn",
        "srgan3d",
        "srresnet",
    }
