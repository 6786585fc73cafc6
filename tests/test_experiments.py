"""Numbers stand once, with their source; profiles only shrink budgets."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from srlib import systems
from srlib.degrade import make_degradation
from srlib.games import OPTIMIZERS, SCHEDULES
from srlib.losses import LOSSES
from srlib.models import MODELS
from srlib.patches import per_axis
from srlib.paths import InputError
from srlib.synthesis import OUTPUTS
from srlib.systems import Experiment, base
from srlib.systems.base import Acquisition, Adversarial, Generation, Mixture
from srlib.systems.use import Model
from srlib.volume import Volume, fit_scaling

NAMES = list(systems.EXPERIMENTS)
# the numbers of a game
USED = {
    "wasserstein": ("weight", "per_generator", "extra_every", "extra", "strength", "slope"),
    "least_squares": ("weight", "slope"),
    "cross_entropy": ("weight",),
}


def test_profiles_only_shrink_named_budgets():
    for name, profile in itertools.product(NAMES, systems.PROFILES):
        paper, shrunk = systems.get(name), systems.get(name, profile)
        for field in dataclasses.fields(paper):
            before, after = getattr(paper, field.name), getattr(shrunk, field.name)
            if field.name in systems.BUDGET:
                if before is not None and field.name == "patch_size":  # one number, or one per axis
                    assert all(0 < a <= b for a, b in zip(per_axis(after), per_axis(before), strict=True)), (
                        name,
                        profile,
                    )
                    continue
                assert before is None or 0 < after <= before or before == after == 0, (name, profile, field.name)
            else:
                assert after == before, (name, profile, field.name)


def test_every_number_has_a_source():
    for experiment in map(systems.get, NAMES):
        axes = tuple[int, int, int]
        kinds = (int, float, int | None, axes, int | axes, int | axes | None, axes | None)
        numbers = {f.name for f in dataclasses.fields(experiment) if f.type in kinds}
        numbers = {n for n in numbers if getattr(experiment, n) != getattr(Experiment, n, None)}
        if experiment.game:
            numbers |= {
                f"adversarial.{key}"
                for key, value in dataclasses.asdict(experiment.game).items()
                if isinstance(value, int | float) and (key in USED[experiment.game.game])
            }
        assert numbers <= set(experiment.sources), experiment.name


def test_names_lead_somewhere():
    for experiment in map(systems.get, NAMES):
        for kind, settings in (systems.TASKS[task] for task in (experiment.task, *experiment.examples.more_tasks)):
            make_degradation(kind, **settings)
        assert experiment.training.schedule in SCHEDULES and experiment.training.optimizer in OPTIMIZERS
        assert experiment.network.model in MODELS and experiment.training.loss in LOSSES
        assert bool(experiment.start) <= (experiment.start in NAMES)
        wasserstein = bool(experiment.game) and experiment.game.game == "wasserstein"
        assert bool(experiment.game.critic_steps) == wasserstein


def test_json_round_trip():
    for experiment in (systems.get(name, "quick") for name in NAMES):
        again = systems.from_json(experiment.to_json())
        assert again == experiment and again.to_json() == experiment.to_json()
        assert (again.paper, again.sources, again.deviations) == (
            experiment.paper,
            experiment.sources,
            experiment.deviations,
        )


def test_an_unregistered_experiment_comes_back_equal_and_lists_are_tuples():
    mine = systems.get("srgan3d").changed(name="mine", paper="ours", model_args={"factor": [4, 4, 4]})
    assert systems.from_json(mine.to_json()) == mine and mine.network.model_args["factor"] == (4, 4, 4)


def test_reading_an_experiment_leaves_the_tasks_as_they_are_and_keeps_its_own():
    before = copy.deepcopy(systems.TASKS)
    text = systems.get("recnn_x2").to_json()
    other = systems.from_json(text.replace('"sigma": 1.0', '"sigma": 3.5'))
    mine = systems.from_json(text.replace("gaussian_x2", "mine"))
    assert before == systems.TASKS
    assert degradation_of(other.task, other.task_settings).sigma == (3.5, 3.5, 3.5)
    scan = Volume(np.random.default_rng(0).random((16, 16, 16), np.float32), np.eye(4))
    sharp, blurred = (e.pairs.degrade(scan).lr.data for e in (systems.get("recnn_x2"), other))
    assert blurred.std() < 0.5 * sharp.std()
    np.testing.assert_array_equal(mine.pairs.degrade(scan).lr.data, sharp)
    assert Model(torch.nn.Identity(), mine).factor == (2, 2, 2)
    assert mine.changed(task="gaussian_x3").task_settings == {"gaussian_x3": before["gaussian_x3"]}
    with pytest.raises(InputError, match="unknown task 'mine'; expected one of gaussian_x2"):
        degradation_of("mine")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("sampling", "gird", "grid, random"),
        ("intensity", "min-max", "minmax, max"),
        ("output", "scna", "scan, unit"),
        ("precision", "bf16", "bf16-mixed"),
        ("task", "gaussian_2x", "gaussian_x2,"),
        ("more_tasks", ("gaussian_2x",), "gaussian_x2,"),
        ("n_train", 0, "at least 1, got 0"),
        ("max_steps", -4, "at least 1, got -4"),
        ("max_steps", 2.5, "int of at least 1, got 2.5"),
        ("batch_size", 0, "at least 1"),
        ("width", "4", "width must be int, got '4'"),
        ("patch_size", 0, "at least 1"),
        ("patch_size", (16, -1, 16), "at least 1"),
        ("patch_size", (16, 16), "patch_size"),
        ("stride", 0, "at least 1"),
        ("border", (-1, 0, 0), "at least 0"),
        ("samples", 0, "at least 1"),
        ("critic_steps", -1, "at least 0"),
        ("loss_crop", 0, "at least 1"),
        ("learning_rate", -1e-3, "at least 0"),
        ("learning_rate", math.nan, "at least 0, got nan"),
        ("learning_rate", math.inf, "got inf"),
        ("bias_rate", -1.0, "at least 0"),
        ("spacing_mm", 0.0, "at least 0.001"),
        ("min_foreground", 1.5, "at most 1"),
        ("min_foreground", math.nan, "at most 1"),
        ("dice_weight", -0.1, "at least 0"),
        ("lr_grid", "no", "bool"),
    ],
)
def test_a_mistyped_number_or_name_is_refused_when_the_experiment_is_made(field, value, said):
    with pytest.raises(InputError, match=field if field != "more_tasks" else "task") as caught:
        systems.get("recnn").changed(**{field: value})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part, field, value",
    [
        (Adversarial(1.0), "game", "wassertein"),
        (Adversarial(1.0), "constraint", "penatly"),
        (Adversarial(1.0), "labels", "soft"),
        (Adversarial(1.0), "moves", "generator"),
        (Adversarial(1.0), "weight", math.nan),
        (Adversarial(1.0), "extra_every", 0),
        (Adversarial(1.0), "per_generator", -1),
        (Generation((Acquisition("t1"),)), "distribution", "gaussian"),
        (Generation((Acquisition("t1"),)), "scaling", math.nan),
        (Acquisition("t1"), "spacing_mm", (1.0, 0.0, 1.0)),
        (Mixture(), "noise", (0.1, math.inf)),
    ],
)
def test_a_mistyped_number_of_a_part_is_refused_too(part, field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(part, **{field: value})


def test_the_names_that_an_experiment_may_give_are_those_that_there_are():
    assert set(base.CHOICES["output"]) == set(OUTPUTS)
    for rule in base.CHOICES["intensity"]:
        fit_scaling(np.array([0.0, 1000.0]), rule)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"name": "mdcsrn"}', "{" * 50])
def test_damaged_json_is_refused(text):
    with pytest.raises(InputError, match="experiment"):
        systems.from_json(text)


@pytest.mark.parametrize("name, profile", [("mdcsrnn", "quick"), ("mdcsrn", "fast")])
def test_unknown_names_are_refused(name, profile):
    with pytest.raises(InputError, match="expected one of"):
        systems.get(name, profile)


def test_cosine_falls_from_the_given_rate_to_zero():
    experiment = systems.get("mdcsrn_res").changed(max_steps=100)
    rates = [experiment.training.rate(step) for step in range(100)]
    assert rates[0] == experiment.training.learning_rate
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.01 * rates[0]


def test_the_table_of_numbers_shows_both_budgets_and_every_source():
    rows = {row["number"]: row for row in systems.numbers("mdcsrn_wgan", "quick")}
    assert rows["width"] == {"number": "width", "published": 16, "profile quick": 8, "source": "paper: growth rate 16"}
    assert rows["adversarial.per_generator"]["published"] == 7
    assert set(rows) == set(systems.get("mdcsrn_wgan").sources)
