"""Every system's numbers, once: what was published, where it is written, and what we do otherwise."""

import dataclasses
import functools
import json

from srlib.experiments import mdcsrn, recnn, robust, srgan3d, srresnet2d, synthsr
from srlib.experiments.base import TASKS as TASKS
from srlib.experiments.base import Acquisition, Adversarial, Experiment, Generation, Mixture, as_tuples
from srlib.paths import InputError, choose

SYSTEMS = (mdcsrn, recnn, srgan3d, srresnet2d, synthsr, robust)
EXPERIMENTS: dict[str, Experiment] = {e.name: e for system in SYSTEMS for e in system.EXPERIMENTS}

# all that a profile may shrink
BUDGET = ("max_steps", "critic_steps", "n_train", "samples", "batch_size", "patch_size", "width")
_SMOKE = {"width": 4, "patch_size": 16, "batch_size": 1, "n_train": 1, "max_steps": 4}
PROFILES: dict[str, dict[str, dict[str, int]]] = {
    "paper": {name: {} for name in EXPERIMENTS},
    "quick": {**mdcsrn.QUICK, **recnn.QUICK, **srgan3d.QUICK, **srresnet2d.QUICK, **synthsr.QUICK, **robust.QUICK},
    "smoke": {
        name: {**_SMOKE, "max_steps": 12, "critic_steps": 3} if experiment.critic_steps else _SMOKE
        for name, experiment in EXPERIMENTS.items()
    }
    | {e.name: {**_SMOKE, "patch_size": (32, 32, 1)} for e in srresnet2d.EXPERIMENTS}
    | {e.name: {**_SMOKE, "patch_size": 32} for e in synthsr.EXPERIMENTS}
    | {e.name: {**_SMOKE, "samples": 8} for e in robust.EXPERIMENTS}
    | {"synthsr_gan": {**_SMOKE, "patch_size": 32, "max_steps": 14, "critic_steps": 2}},
}


def get(name: str, profile: str = "paper") -> Experiment:
    """An experiment with its profile's budget; InputError for an unknown name or profile."""
    shrunk, experiment = choose(PROFILES, profile, "profile"), choose(EXPERIMENTS, name, "experiment")
    return dataclasses.replace(experiment, **shrunk[name])


def numbers(name: str, profile: str) -> list[dict[str, object]]:
    """An experiment's numbers in a row each: as published, in a profile, and where they come from."""

    def value(experiment: object, path: str) -> object:
        return functools.reduce(getattr, path.split("."), experiment)

    paper, used = get(name), get(name, profile)
    return [
        {"number": path, "published": value(paper, path), f"profile {profile}": value(used, path), "source": source}
        for path, source in paper.sources.items()
    ]


def from_json(text: str) -> Experiment:
    """The experiment that ``to_json`` wrote, with its own tasks' settings; InputError when the text is not one."""
    try:
        fields = as_tuples(json.loads(text))
        if given := fields.get("generation"):
            fields["generation"] = {**given, "inputs": tuple(Acquisition(**part) for part in given["inputs"])}
        for name, part in {"adversarial": Adversarial, "generation": Generation, "mixture": Mixture}.items():
            fields[name] = part(**fields[name]) if fields.get(name) else None
        known = EXPERIMENTS.get(fields["name"])
        prose = {name: getattr(known, name) for name in ("paper", "sources", "deviations")} if known else {"paper": ""}
        return Experiment(**prose, **fields)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as err:
        raise InputError(
            f"not the description of an experiment ({err}); the file is not one of ours or is damaged"
        ) from err
