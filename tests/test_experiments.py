"""Numbers stand once, with their source; profiles only shrink budgets."""

import dataclasses
import itertools

import pytest

from srlib import experiments
from srlib.degrade import make_degradation
from srlib.experiments import Experiment
from srlib.losses import LOSSES
from srlib.models import MODELS
from srlib.patches import per_axis
from srlib.paths import InputError
from srlib.phases import OPTIMIZERS, SCHEDULES, learning_rate

NAMES = list(experiments.EXPERIMENTS)
# the numbers of a game
USED = {
    "wasserstein": ("weight", "per_generator", "extra_every", "extra", "strength", "slope"),
    "least_squares": ("weight", "slope"),
    "cross_entropy": ("weight",),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", list(experiments.PROFILES))
def test_profiles_only_shrink_named_budgets(name, profile):
    paper, shrunk = experiments.get(name), experiments.get(name, profile)
    for field in dataclasses.fields(paper):
        before, after = getattr(paper, field.name), getattr(shrunk, field.name)
        if field.name in experiments.BUDGET:
            if before is not None and field.name == "patch_size":  # one number, or one per axis
                assert all(0 < a <= b for a, b in zip(per_axis(after), per_axis(before), strict=True))
                continue
            assert before is None or 0 < after <= before or before == after == 0
        else:
            assert after == before


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name):
    experiment = experiments.get(name)
    axes = tuple[int, int, int]
    kinds = (int, float, int | None, axes, int | axes, int | axes | None, axes | None)
    numbers = {f.name for f in dataclasses.fields(experiment) if f.type in kinds}
    numbers = {n for n in numbers if getattr(experiment, n) != getattr(Experiment, n, None)}
    if experiment.adversarial:
        numbers |= {
            f"adversarial.{key}"
            for key, value in dataclasses.asdict(experiment.adversarial).items()
            if isinstance(value, int | float) and (key in USED[experiment.adversarial.game])
        }
    assert numbers <= set(experiment.sources)


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_somewhere(name):
    experiment = experiments.get(name)
    for kind, settings in (experiments.TASKS[task] for task in (experiment.task, *experiment.more_tasks)):
        make_degradation(kind, **settings)
    assert experiment.schedule in SCHEDULES and experiment.optimizer in OPTIMIZERS
    assert experiment.model in MODELS and experiment.loss in LOSSES
    assert bool(experiment.start) <= (experiment.start in NAMES)
    wasserstein = bool(experiment.adversarial) and experiment.adversarial.game == "wasserstein"
    assert bool(experiment.critic_steps) == wasserstein


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    experiment = experiments.get(name, "quick")
    again = experiments.from_json(experiment.to_json())
    assert again.to_json() == experiment.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"name": "mdcsrn"}', "{" * 50])
def test_damaged_json_is_refused(text):
    with pytest.raises(InputError, match="experiment"):
        experiments.from_json(text)


@pytest.mark.parametrize("name, profile", [("mdcsrnn", "quick"), ("mdcsrn", "fast")])
def test_unknown_names_are_refused(name, profile):
    with pytest.raises(InputError, match="expected one of"):
        experiments.get(name, profile)


def test_cosine_falls_from_the_given_rate_to_zero():
    experiment = dataclasses.replace(experiments.get("mdcsrn_res"), max_steps=100)
    rates = [learning_rate(experiment, step) for step in range(100)]
    assert rates[0] == experiment.learning_rate
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.01 * rates[0]


def test_the_table_of_numbers_shows_both_budgets_and_every_source():
    rows = {row["number"]: row for row in experiments.numbers("mdcsrn_wgan", "quick")}
    assert rows["width"] == {"number": "width", "published": 16, "profile quick": 8, "source": "paper: growth rate 16"}
    assert rows["adversarial.per_generator"]["published"] == 7
    assert set(rows) == set(experiments.get("mdcsrn_wgan").sources)
