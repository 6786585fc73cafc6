"""Look up experiments by name and profile, or read them from JSON."""

import json
from typing import Any

from srlib.core.paths import InputError, choose
from srlib.systems import mdcsrn, recnn, robust, srgan3d, srresnet2d, synthsr
from srlib.systems.base import PROSE, STATED, Experiment, from_fields
from srlib.systems.overrides import Overrides, overridden, parse

MODULES = (mdcsrn, recnn, srgan3d, srresnet2d, synthsr, robust)
SYSTEMS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
EXPERIMENTS = {e.name: e for module in MODULES for e in module.EXPERIMENTS}


def _smoke(experiments, **more):
    """Budgets of a few steps by the names of experiments."""
    few = {"width": 4, "patch_size": 16, "batch_size": 1, "n_train": 1, "max_steps": 4}
    return {e.name: {**few, **more} for e in experiments}


_WITH_STEPS = [e for e in EXPERIMENTS.values() if hasattr(e.game, "critic_steps")]
_QUICK = {name: shrunk for module in MODULES for name, shrunk in module.QUICK.items()}
_LONGEST = (synthsr.SYNTHSR_GAN, synthsr.SYNTHSR_FINETUNE)
PROFILES = {
    "paper": {name: {} for name in EXPERIMENTS},
    "quick": _QUICK,
    "study": _QUICK,  # what else recipes/study.py changes stands in csv/study.csv
    "smoke": _smoke(EXPERIMENTS.values())
    | _smoke(_WITH_STEPS, max_steps=12, critic_steps=3)
    | _smoke(srresnet2d.EXPERIMENTS, patch_size=(32, 32, 1))
    | _smoke(synthsr.EXPERIMENTS, patch_size=32)
    | _smoke(robust.EXPERIMENTS, samples=8)
    | _smoke((e for e in srgan3d.EXPERIMENTS if e.frame), stride=16)
    | _smoke(_LONGEST, patch_size=32, max_steps=14, critic_steps=2),
}


def get(name: str, profile: str = "paper", overrides: Overrides = ()) -> Experiment:
    """An experiment with its profile's budget, and with ``overrides`` on top (see ``overrides``).

    An override that begins with ``EXPERIMENT:`` is for that one alone. Raises InputError for an
    unknown name or profile, and as ``overridden``.
    """
    shrunk, own = choose(PROFILES, profile, "profile"), {}
    experiment = choose(EXPERIMENTS, name, "experiment").changed(**shrunk.get(name, {}))
    for path, value in parse(overrides).items():
        of, _, number = path.rpartition(":")
        if not of or choose(EXPERIMENTS, of, "experiment").name == name:
            own[number] = value
    return overridden(experiment, own)


def runs(system: str, profile: str) -> list[str]:
    """What notebooks train of a system in a profile, in this order.

    A system is the name of its file, perhaps with a part of the names of its experiments behind it:
    ``mdcsrn``, ``srresnet2d_ct``. ``smoke`` trains what ``quick`` does.
    """
    choose(PROFILES, profile, "profile")
    file, _, part = system.partition("_")
    plans = choose(SYSTEMS, file, "system").RUNS
    return [name for name in plans.get(profile, plans["quick"]) if f"_{part}" in f"_{name}"]


def numbers(name: str, profile: str, overrides: Overrides = ()) -> list[dict[str, Any]]:
    """An experiment's numbers, a row each: as published, in a profile, whether changed, and source.

    The first row is its name, which tells all overrides.
    """
    paper, used = get(name), get(name, profile, overrides)
    rows = []
    for number, source in {"name": "ours: overrides stand behind +", **paper.sources}.items():
        old, new = ("" if number in STATED else e.number(number) for e in (paper, used))
        rows.append(
            {
                "number": number,
                "published": old,
                f"profile {profile}": new,
                "changed": "changed" * (old != new),
                "source": source,
            }
        )
    return rows


def from_json(text: str) -> Experiment:
    """The experiment that ``to_json`` wrote, with its own tasks' settings.

    Raises InputError when the text is not one.
    """
    try:
        fields = json.loads(text)
        known = EXPERIMENTS.get(fields["name"])
        prose = {name: getattr(known, name) for name in PROSE} if known else {}
        experiment = from_fields(fields, prose)
        for task in experiment.task_settings:
            experiment.pairs.degradation(task)  # finds wrong settings now
        return experiment
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as err:
        raise InputError(
            f"not the description of an experiment ({err}); the file is damaged or not one of ours"
        ) from err
