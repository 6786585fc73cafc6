"""Any number of any part is changed by its dotted name, in Python and on the command line."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from srlib import systems
from srlib.core.paths import InputError
from srlib.data.manifest import read_manifest
from srlib.evaluation import runs
from srlib.models.weights import read_metadata
from srlib.systems.overrides import overridden, parse
from srlib.systems.registry import from_json, get
from srlib.systems.training import train


def test_a_dotted_name_leads_to_a_number_wherever_it_lives():
    experiment = systems.get(
        "synthsr_case1",
        "smoke",
        [
            "training.learning_rate=3e-4", "network.levels=3", "examples.generation.scaling=0.3",
            "generation.inputs.0.thickness_mm=2,2,2", "degradation.factor=1,1,4", "contrast=t2",
        ],
    )  # fmt: skip
    assert experiment.training.learning_rate == 3e-4
    assert experiment.network.model_args["levels"] == 3
    for part in (experiment.examples, experiment.prediction):  # one number, in two parts
        assert part.generation.scaling == 0.3
        assert part.generation.inputs[0].thickness_mm == (2, 2, 2)
    assert experiment.contrast == "t2"
    assert experiment.pairs.degradation().factor == (1, 1, 4)
    assert experiment.task == "thick_1x1x3+factor=1_1_4"
    assert "+network.levels=3+training.learning_rate=0.0003" in experiment.name
    assert systems.from_json(experiment.to_json()) == experiment


def test_different_overrides_have_different_names_that_a_folder_can_have():
    def name(*texts):
        return systems.get("synthsr_case5", "paper", texts).name

    one, other = (f"generation.inputs.{i}.thickness_mm=2,2,2" for i in (0, 1))
    assert name(one) != name(other)
    shift = "contrast=t1"
    assert name(shift, "training.loss=l2") == name("training.loss=l2", shift)
    low, high = (systems.get("recnn", "paper", {"border": b}).name for b in ((1, 0, 2), (10, 2, 0)))
    assert low != high
    kept, dropped = ({"schedule_args": {"at": v}} for v in (-0.5, 0.5))
    assert systems.get("recnn", "paper", kept).name != systems.get("recnn", "paper", dropped).name
    many = name(
        *(f"generation.inputs.{i}.spacing_mm={k}.125,1.5,2.25" for i in (0, 1) for k in (1,)),
        *(
            f"generation.{n}=0.123456"
            for n in ("scaling", "shear", "warp_std", "bias_std", "blur_range")
        ),
    )
    assert len(many) < 200 and many.startswith("synthsr_case5+")


def test_an_override_may_be_for_one_experiment_alone():
    texts = "mdcsrn:training.batch_size=3 network.width=5"
    assert systems.get("mdcsrn", "paper", texts).training.batch_size == 3
    other = systems.get("mdcsrn_res", "paper", texts)
    assert (other.training.batch_size, other.network.width) == (2, 5)


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("rate=1", "training.NAME"),
        ("training.rate=1", "learning_rate"),
        ("network.depth=2", "blocks"),
        ("training=3", "loss"),
        ("training.batch_size=0", "at least 1"),
        ("training.loss=l3", "l1"),
        ("degradation.blur=1", "factor"),
        ("degradation.factor=0", ">= 1"),
        ("name=mine", "training.NAME"),
        ("nobody:training.loss=l2", "mdcsrn"),
        ("width", "NAME=VALUE"),
    ],
)
def test_a_wrong_one_is_refused_with_what_there_is(text, lists):
    with pytest.raises(InputError, match=lists) as caught:
        systems.get("mdcsrn", "paper", [text])
    assert "\n" not in str(caught.value)


def test_a_run_with_an_override_has_its_own_place_and_record(cohort, tmp_path):
    given = {"folder": tmp_path, "progress": False}
    plain = runs.train_recorded("recnn_x2", "smoke", cohort, **given)
    wide = runs.train_recorded("recnn_x2", "smoke", cohort, overrides="network.width=6", **given)
    assert plain.parent != wide.parent
    assert systems.from_json(read_metadata(wide)["experiment"]).network.width == 6
    table = pd.read_csv(tmp_path / "runs.csv").set_index("experiment")
    assert set(table.index) == {"recnn_x2", "recnn_x2+network.width=6"}
    assert '"width": 6' in table.loc["recnn_x2+network.width=6", "config"]


def test_any_training_goes_on_from_given_weights_and_none_has_to(cohort, tmp_path):
    subjects = [[s for s in read_manifest(cohort) if s.split == p] for p in ("train", "val")]
    first = train(systems.get("mdcsrn_res", "smoke"), *subjects, tmp_path / "a", progress=False)
    more = train(
        systems.get("mdcsrn_res", "smoke", "training.max_steps=1"),
        *subjects,
        tmp_path / "b",
        start=first,
        progress=False,
    )
    assert read_metadata(more)["starts"].keys() == {"generator"}
    game = systems.get("mdcsrn_res_wgan", "smoke", "training.max_steps=4")
    with pytest.raises(InputError, match="--set start="):
        train(game, *subjects, tmp_path / "c", progress=False)
    scratch = overridden(game, parse("start="))
    train(scratch, *subjects, tmp_path / "c", progress=False)
    with pytest.raises(InputError, match="has no critic"):
        train(systems.get("mdcsrn", "smoke"), *subjects, tmp_path / "d", start_critic=first)


@pytest.mark.parametrize("fitted_on", ["truth", "each"])
def test_a_pair_may_be_scaled_by_its_truth_or_each_side_by_itself(cohort, fitted_on):
    subject = read_manifest(cohort, "train")[0]
    pairs = systems.get("recnn_x2", "paper", {"fitted_on": fitted_on}).pairs
    given, truth = pairs.make(subject).for_training()
    assert (truth.min(), truth.max()) == (0, 1)
    hr = pairs.make(subject).hr
    degradation = pairs.degradation()
    lr = degradation(hr)
    scale = hr if fitted_on == "truth" else lr
    scaled = lr.with_data((lr.data - scale.data.min()) / np.ptp(scale.data))
    np.testing.assert_allclose(given[0], degradation.to_grid(scaled, hr.shape).data, atol=1e-5)


def test_the_order_of_overrides_changes_nothing() -> None:
    words = ["degradation.noise=0.1", "task=gaussian_x3", "degradation.sigma=2", "network.width=4"]
    made = [get("mdcsrn_res", "smoke", order) for order in permutations(words)]
    assert len({e.to_json() for e in made}) == 1
    degradation = made.pop().pairs.degradation()
    assert (degradation.sigma, degradation.noise, degradation.factor) == ((2,) * 3, 0.1, (3,) * 3)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = {"network.width": np.int64(4), "training.learning_rate": np.float64(1e-3)}
    assert from_json(get("recnn_x2", "smoke", settings).to_json()).network.width == 4


@pytest.mark.parametrize("other", [5, None, [1], True])
def test_what_is_no_text_is_refused_in_one_line(other):
    with pytest.raises(InputError, match="expected NAME=VALUE"):
        systems.get("mdcsrn", "smoke", other)
