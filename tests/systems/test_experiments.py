"""Numbers stand once, with their source; profiles only shrink budgets."""

import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from srlib import systems
from srlib.core.paths import InputError
from srlib.degradations.tasks import TASKS, degradation_of
from srlib.inference.isotropic import IsotropicSpacing
from srlib.inference.prediction import Request
from srlib.scans.intensity import INTENSITIES, fit_scaling
from srlib.scans.patches import per_axis
from srlib.scans.volume import Volume
from srlib.synthesis.settings import Acquisition, Generation
from srlib.systems import base
from srlib.systems.trained import Model
from srlib.training.games import CrossEntropy, LeastSquares, Supervised, Wasserstein
from srlib.training.mixture import Mixture
from srlib.training.synthetic import RandomDegradations, SyntheticScans

NAMES = list(systems.EXPERIMENTS)
# all that a profile may shrink; smaller patches need a smaller stride, or they leave gaps
BUDGET = {
    "max_steps", "critic_steps", "n_train", "samples", "batch_size", "patch_size", "stride",
    "width",
}  # fmt: skip
GENERATION = Generation((Acquisition("t1"),))


def test_profiles_only_shrink_named_budgets():
    for profile, name in itertools.product(systems.PROFILES, NAMES):
        paper, changes = systems.get(name), systems.PROFILES[profile].get(name, {})
        assert set(changes) <= BUDGET, (name, profile)
        for number, after in changes.items():
            before = paper.number(number)
            if before is not None:  # one number, or one per axis
                shrunk = zip(per_axis(after), per_axis(before), strict=True)
                assert all(0 < a <= b for a, b in shrunk), (name, profile, number)


def is_number(value):
    parts = value if isinstance(value, tuple) else (value,)
    return (
        all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)
        and parts != ()
    )


def test_every_number_has_a_source():
    for experiment in map(systems.get, NAMES):
        numbers = set()
        for slot in ("network", "examples", "training", "game"):
            part = getattr(experiment, slot)
            for entry in dataclasses.fields(part):
                value, always = (
                    getattr(part, entry.name),
                    slot == "game" and entry.name != "critic_steps",
                )
                if is_number(value) and (always or value != entry.default):
                    numbers.add(entry.name)
        numbers |= {"frame"} if experiment.frame else set()
        assert numbers <= {name.rpartition(".")[2] for name in experiment.sources}, experiment.name


def test_names_lead_somewhere():
    for experiment in map(systems.get, NAMES):
        for task in experiment.examples.tasks(experiment.task):
            degradation_of(task, experiment.task_settings)
        for first in (experiment.start, experiment.start_critic, experiment.segmenter):
            assert not first or first in NAMES


def test_a_field_is_changed_and_read_wherever_it_lives_and_no_two_parts_share_one():
    experiment = systems.get("mdcsrn_wgan")
    changed = experiment.changed(
        width=3, patch_size=8, max_steps=5, critic_steps=2, task="gaussian_x3"
    )
    assert (
        changed.network.width == 3
        and changed.examples.patch_size == 8
        and changed.training.max_steps == 5
    )
    assert changed.game.critic_steps == changed.number("game.critic_steps") == 2
    assert changed.task == "gaussian_x3" and changed.changed(game=Supervised()).game == Supervised()
    for wrong in (lambda: experiment.changed(depth=3), lambda: experiment.number("depth")):
        with pytest.raises(InputError, match="mdcsrn_wgan has no number 'depth'"):
            wrong()
    for each in map(systems.get, NAMES):
        held = {}
        for part in (each, *(getattr(each, slot) for slot in base.SLOTS)):
            for entry in dataclasses.fields(part):
                value = getattr(part, entry.name)
                assert held.setdefault(entry.name, value) == value, (each.name, entry.name)


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
    mine = systems.get("srgan3d").changed(
        name="mine", paper="ours", model_args={"factor": [4, 4, 4]}
    )
    assert systems.from_json(mine.to_json()) == mine and mine.network.model_args["factor"] == (
        4,
        4,
        4,
    )


def test_reading_an_experiment_leaves_the_tasks_as_they_are_and_keeps_its_own():
    before = copy.deepcopy(TASKS)
    text = systems.get("recnn_x2").to_json()
    other = systems.from_json(text.replace('"sigma": 1.0', '"sigma": 3.5'))
    mine = systems.from_json(text.replace("gaussian_x2", "mine"))
    assert before == TASKS
    assert degradation_of(other.task, other.task_settings).sigma == (3.5, 3.5, 3.5)
    scan = Volume(np.random.default_rng(0).random((16, 16, 16), np.float32), np.eye(4))
    sharp, blurred = (e.pairs.degrade(scan).lr.data for e in (systems.get("recnn_x2"), other))
    assert blurred.std() < 0.5 * sharp.std()
    np.testing.assert_array_equal(mine.pairs.degrade(scan).lr.data, sharp)
    assert Model(torch.nn.Identity(), mine).plan(scan, Request()).finer == (2, 2, 2)
    assert mine.changed(task="gaussian_x3").task_settings == {"gaussian_x3": before["gaussian_x3"]}
    with pytest.raises(InputError, match="unknown task 'mine'; expected one of gaussian_x2"):
        degradation_of("mine")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("sampling", "gird", "grid, random"),
        ("intensity", "min-max", "minmax, max"),
        ("precision", "bf16", "bf16-mixed"),
        ("task", "gaussian_2x", "gaussian_x2,"),
        ("more_tasks", ("gaussian_2x",), "gaussian_x2,"),
        ("n_train", 0, "at least 1, got 0"),
        ("max_steps", -4, "at least 1, got -4"),
        ("max_steps", 2.5, "int of at least 1, got 2.5"),
        ("batch_size", True, "at least 1"),
        ("width", "4", "width must be int of at least 1, got '4'"),
        ("patch_size", (16, -1, 16), "at least 1"),
        ("patch_size", (16, 16), "patch_size"),
        ("stride", 0, "at least 1"),
        ("border", (-1, 0, 0), "at least 0"),
        ("samples", 0, "at least 1"),
        ("loss_crop", 0, "at least 1"),
        ("learning_rate", math.nan, "at least 0, got nan"),
        ("learning_rate", math.inf, "got inf"),
        ("bias_rate", -1.0, "at least 0"),
        ("min_foreground", 1.5, "at most 1"),
        ("dice_weight", -0.1, "at least 0"),
        ("given", "no", "bool"),
    ],
)
def test_a_mistyped_number_or_name_is_refused_when_the_experiment_is_made(field, value, said):
    with pytest.raises(InputError, match=field if field != "more_tasks" else "task") as caught:
        systems.get("recnn").changed(**{field: value})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part, field, value",
    [
        (Wasserstein(1.0), "constraint", "penatly"),
        (LeastSquares(1.0), "labels", "soft"),
        (CrossEntropy(1.0), "moves", "generator"),
        (Wasserstein(1.0), "weight", math.nan),
        (Wasserstein(1.0), "extra_every", 0),
        (Wasserstein(1.0), "per_generator", -1),
        (Wasserstein(1.0), "critic_steps", -1),
        (GENERATION, "distribution", "gaussian"),
        (GENERATION, "scaling", math.nan),
        (Acquisition("t1"), "spacing_mm", (1.0, 0.0, 1.0)),
        (Mixture(), "noise", (0.1, math.inf)),
        (SyntheticScans(16, 1, GENERATION, 1.0), "spacing_mm", 0.0),
        (RandomDegradations(16, 1, 8, GENERATION, Mixture()), "samples", 9),
        (IsotropicSpacing(GENERATION, 1.0), "output", "scna"),
    ],
)
def test_a_mistyped_number_of_a_part_is_refused_too(part, field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(part, **{field: value})


def test_the_names_that_an_experiment_may_give_are_those_that_there_are():
    for rule in INTENSITIES:
        fit_scaling(np.array([0.0, 1000.0]), rule)


def test_the_description_of_another_srlib_is_refused_with_what_to_do():
    for schema in ({}, {"schema": 1}):
        fields = {**json.loads(systems.get("mdcsrn").to_json()), "schema": None} | schema
        with pytest.raises(InputError, match=r"another srlib wrote it.*expected 2; train anew"):
            systems.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"name": "mdcsrn"}', "{" * 50])
def test_damaged_json_is_refused(text):
    with pytest.raises(InputError, match="experiment"):
        systems.from_json(text)


def test_parts_in_each_others_place_are_refused():
    fields = json.loads(systems.get("mdcsrn_wgan").to_json())
    for slot, other in itertools.permutations(("network", "examples", "training", "prediction"), 2):
        with pytest.raises(InputError):
            systems.from_json(json.dumps({**fields, slot: fields[other]}))
    for slot, kind in itertools.product(base.SLOTS, ("Nothing", "Experiment", None)):
        with pytest.raises(InputError):
            systems.from_json(json.dumps({**fields, slot: {**fields[slot], "kind": kind}}))


@pytest.mark.parametrize("slot", base.SLOTS)
def test_a_part_of_another_kind_is_refused_when_an_experiment_is_made(slot):
    with pytest.raises(InputError, match=f"Experiment {slot} must be") as caught:
        systems.get("mdcsrn").changed(**{slot: Mixture()})
    assert "\n" not in str(caught.value)


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


def test_the_table_of_numbers_shows_both_budgets_every_source_and_what_changed():
    overrides = "game.per_generator=5 training.precision=bf16-mixed"
    rows = {row["number"]: row for row in systems.numbers("mdcsrn_wgan", "quick", overrides)}
    assert rows["width"] == {
        "number": "width",
        "published": 16,
        "profile quick": 8,
        "changed": "changed",
        "source": "paper, Fig. 1: k = 16",
    }
    assert rows["blocks"]["changed"] == rows["initialisation"]["changed"] == ""
    given = rows["game.per_generator"]
    assert (given["published"], given["profile quick"], given["changed"]) == (7, 5, "changed")
    assert "training.precision=bf16-mixed" in rows["name"]["profile quick"]  # has no source
    assert set(rows) == {"name", *systems.get("mdcsrn_wgan").sources}
    same = systems.numbers("mdcsrn_wgan", "paper")
    assert not any(row["changed"] for row in same)
