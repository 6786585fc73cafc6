"""Change numbers of an experiment by the dotted names of its parts, as ``training.batch_size``."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from srlib.core.parts import Part, literal
from srlib.core.paths import InputError, choose, digest, explained
from srlib.degradations.resolution import DEGRADATIONS
from srlib.systems.base import PROSE, SLOTS, Experiment

Overrides = str | Sequence[str] | Mapping[str, Any]
LONGEST = 180  # characters of a name; a hash stands for more, since runs are folders
FIXED = ("name", "task_settings", *PROSE)  # fields that no override changes


def parse(overrides: Overrides) -> dict[str, Any]:
    """Values by dotted name, from ``NAME=VALUE`` texts: a list, or one text with spaces between.

    Values are Python literals (``3e-4``, ``2,2,1``, ``None``), else text. Raises InputError for a
    text of another form.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    several = isinstance(overrides, list | tuple)
    texts = [*map(str, overrides)] if several else str(overrides).split()
    for text in texts:
        if not re.match(r"[^=]*\w=", text):
            raise InputError(
                f"override {text!r}: expected NAME=VALUE, such as training.learning_rate=3e-4"
            )
    return {name: literal(value) for name, _, value in (text.partition("=") for text in texts)}


def overridden(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """The experiment with other values of fields, under a name that tells them.

    A name is that of a field (``intensity``), of a part's field (``training.learning_rate``), of a
    setting of the model (``network.blocks``) or of the experiment's degradation
    (``degradation.factor``), or leads further down (``generation.inputs.0.thickness_mm``). Raises
    InputError for an unknown name, which lists those that there are, and for a value that the part
    refuses.
    """
    # the task before its degradation's settings, a part before its fields, in whatever order given
    for name, value in sorted(settings.items(), key=lambda s: (s[0] != "task", s[0].count("."), s)):
        with explained(f"override {name}", "is refused", "give another value"):
            experiment = _set(experiment, *name.split("."), value=value)
    label = "+".join(map(_label, sorted(settings.items())))
    if len(label) > LONGEST:
        label = digest(label)[:12]
    return experiment.changed(name=f"{experiment.name}+{label}") if label else experiment


def _label(setting):
    """An override as a part of names: ``training.learning_rate=0.0003``, ``frame=2_2_1``."""
    name, value = setting
    text = re.sub(r"[^\w.-]+", "_", str(value)).strip("_")
    return f"{name}={text}"


def _set(experiment, head, *rest, value):
    """The experiment with another value in the place that names lead to."""
    if head == "degradation" and rest:
        return _degraded(experiment, rest[0], value)
    parts = {slot: _known(getattr(experiment, slot)) for slot in SLOTS}
    known = _known(experiment) | {f"{slot}.NAME": None for slot in (*SLOTS, "degradation")}
    for names in parts.values():
        known |= names
    what = "field"
    if head in parts:
        known, what, (name, *rest) = parts[head], f"field of {head}", rest or ("",)
        if head == "network" and name not in known:
            name, rest = "model_args", (name, *rest)  # the model itself refuses an unknown one
        head = name
    choose(known, head, what)
    return experiment.changed(**{head: _within(experiment.number(head), rest, value)})


def _known(part):
    """The names of a part's fields that overrides may change, as keys in their order."""
    return {e.name: None for e in dataclasses.fields(part) if e.name not in FIXED}


def _degraded(experiment, name, value):
    """The experiment on its own task with another setting, under a name that tells it."""
    kind, settings = experiment.task_settings[experiment.task]
    choose(_known(DEGRADATIONS[kind]), name, f"{kind} setting")
    task = f"{experiment.task}+{_label((name, value))}"
    tasks = {**experiment.task_settings, task: (kind, {**settings, name: value})}
    changed = experiment.changed(task=task, task_settings=tasks)
    changed.pairs.degradation()  # refuses a wrong value
    return changed


def _within(old, names, value):
    """A value with another one in the place that names lead to: of a part, a mapping, a tuple."""
    if not names:
        return value
    name, *rest = names
    if isinstance(old, Part):
        choose(_known(old), name, "field")
        return dataclasses.replace(old, **{name: _within(getattr(old, name), rest, value)})
    if isinstance(old, Mapping):
        return {**old, name: _within(old.get(name), rest, value)}
    if isinstance(old, tuple) and name.isdecimal() and int(name) < len(old):
        place = int(name)
        return (*old[:place], _within(old[place], rest, value), *old[place + 1 :])
    raise InputError(f"{old!r} has no {name!r}")
