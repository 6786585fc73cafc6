"""What there is: systems, tasks, weights and profiles, in Python and on the command line."""

import pytest
from click.testing import CliRunner

from srlib import systems
from srlib.cli.commands import main
from srlib.core.paths import InputError, choose
from srlib.degradations.tasks import TASKS
from srlib.models.weights import save_weights


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
    assert where["recnn_x2"].endswith("'make replicate'")
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
