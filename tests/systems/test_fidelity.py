"""Every choice of a published system has a source with a place; docs/fidelity/ decides every row of the originals."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from srlib import systems
from srlib.core.parts import Part
from srlib.systems.base import SLOTS, STATED

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "fidelity").glob("*.md"))
DECISIONS = ("works", "differs, because ", "left out, because ")
HEAD = ["original", "its value or rule", "here", "test", "decision"]
PLACE = re.compile(
    r"paper, (Sec\. [\w.]+|Table \w+|Fig\. \w+|Eq\. \w+|abstract|place not checked)(, [^:]+)?: \S"
    r"|code, [\w./-]+\.\w+(, [\w., <>-]+)?: \S|ours: \S"
)
FOLLOW = {"in_channels", "out_channels", "factor"}  # from the contrasts and the task
CHOICES = {"task", "intensity", "loss", "optimizer", "initialisation"}


def rows(page):
    """The cells of a page's table, a tuple per row."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert table[0] == HEAD, page
    return table[2:]


def required(experiment):
    """Names of the numbers and choices of an experiment that need a source."""
    names = set(CHOICES)
    for slot in ("network", "examples", "training", "game"):
        part = getattr(experiment, slot)
        for entry in dataclasses.fields(part):
            value = getattr(part, entry.name)
            if isinstance(value, Part) and entry.name not in experiment.sources:
                names |= {
                    e.name for e in dataclasses.fields(value) if is_number(vars(value)[e.name])
                }
            if is_number(value) and (slot == "game" or value != entry.default):
                names.add(entry.name)
    args = experiment.network.model_args
    names |= {name for name in args.keys() - FOLLOW if is_number(args[name])}
    names |= {"frame"} if experiment.frame else set()
    with torch.device("meta"):
        some = {"out_channels": args["out_channels"] or 4} if "out_channels" in args else {}
        network = dataclasses.replace(experiment.network, model_args={**args, **some}).build()
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    return names | ({"batch_norm"} if normed else set())


def is_number(value):
    parts = value if isinstance(value, tuple) else (value,)
    return parts != () and all(
        isinstance(part, int | float) and not isinstance(part, bool) for part in parts
    )


@pytest.mark.parametrize("name", systems.EXPERIMENTS)
def test_every_number_and_choice_has_a_source_and_every_source_a_place(name):
    experiment = systems.get(name)
    sources = {path.rpartition(".")[2]: text for path, text in experiment.sources.items()}
    assert required(experiment) <= sources.keys()
    for path, text in experiment.sources.items():
        assert PLACE.match(text), f"{path}: {text}"
        assert path in STATED or experiment.number(path) is not NotImplemented


def test_every_published_system_has_its_page():
    assert {page.stem for page in PAGES} == {
        "mdcsrn", "recnn", "srgan3d", "srresnet2d", "synthsr"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_decides_every_row_and_counts_them(page):
    table, counts = rows(page), dict.fromkeys(DECISIONS, 0)
    assert len(table) >= 50
    for cells in table:
        assert len(cells) == len(HEAD), cells
        assert all(cells), cells
        decision = [word for word in DECISIONS if cells[-1].startswith(word)]
        assert decision, cells
        counts[decision[0]] += 1
    added = sum("(added)" in cells[0] for cells in table)
    a, b, c = counts.values()
    assert (
        f"Counts: {len(table)} rows: {a} works, {b} differs, {c} left out; "
        f"{added} rows added by our own reading."
    ) in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_numbers_of_a_page_are_those_of_the_systems(page):
    stated = re.findall(r"`([\w.]+): ([\w.]+) = ([^`]+)`", page.read_text())
    assert len(stated) >= 8
    for name, path, value in stated:
        number = value_of(systems.get(name), path)
        try:
            expected = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            expected = value
        assert number == expected, (name, path)


def value_of(experiment, path):
    """What a dotted name of an override leads to."""
    head, *names = path.split(".")
    if head == "degradation":
        value = experiment.task_settings[experiment.task][1]
    elif head in SLOTS:
        value = experiment.number(names.pop(0))
    else:
        value = experiment.number(head)
    for name in names:
        if isinstance(value, tuple):
            value = value[int(name)]
        else:
            value = value[name] if name in getattr(value, "keys", list)() else getattr(value, name)
    return value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tests_that_a_page_names_exist(page):
    for cells in rows(page):
        for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", cells[3]):
            text = (ROOT / file).read_text()
            assert not name or f"def {name}(" in text, (file, name)
        assert cells[3] == "-" or "tests/" in cells[3], cells


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_deviation_stands_in_a_row(page):
    module = systems.SYSTEMS[page.stem]
    decided = " ".join(cells[-1].replace("`", "") for cells in rows(page))
    for experiment in module.EXPERIMENTS:
        for deviation in experiment.deviations:
            assert deviation.replace("`", "") in decided, (experiment.name, deviation)
