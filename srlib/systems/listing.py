"""List what there is: systems, tasks, weights and profiles."""

from collections.abc import Iterator

import pandas as pd

from srlib.core.paths import choose, published_dir, published_file, shipped_file
from srlib.degradations.tasks import TASKS
from srlib.systems.published import PUBLISHED
from srlib.systems.registry import EXPERIMENTS, PROFILES, SYSTEMS, get, runs
from srlib.systems.trained import DEFAULT, runs_of

Rows = Iterator[dict[str, str]]
BUDGETS = {
    "paper": "numbers as published",
    "quick": "minutes per training on 2 CPU cores; shows that the code learns",
    "study": "those of quick; csv/study.csv says what 'make study' changes",
    "smoke": "a few steps; shows that everything runs",
}


def listing(what: str) -> pd.DataFrame:
    """A table, all cells text, of the ``systems``, ``tasks``, ``weights`` or ``profiles``.

    Raises InputError for another word.
    """
    return pd.DataFrame(choose(TABLES, what, "list")())


def _systems():
    for system, module in SYSTEMS.items():
        for e in module.EXPERIMENTS:
            scans = " + ".join(filter(None, (e.contrast, e.reference)))
            yield {"experiment": e.name, "system": system, "task": e.task, "scans": scans}


def _tasks():
    for name, (kind, settings) in TASKS.items():
        users = [e.name for e in EXPERIMENTS.values() if name in e.examples.tasks(e.task)]
        numbers = ", ".join(f"{key}={value}" for key, value in settings.items())
        yield {
            "task": name,
            "degradation": kind,
            "settings": numbers,
            "trained for it": ", ".join(users),
        }


def _weights():
    yield {"weights": DEFAULT, "task": "any", "where": "comes with the package"}
    for file, e in PUBLISHED.items():
        missing = f"missing: put the authors' file into {published_dir()} (csv/README.md)"
        yield {"weights": file, "task": e.task, "where": str(published_file(file) or missing)}
    replicated = {name for system in SYSTEMS for name in runs(system, "quick")}
    for name, e in EXPERIMENTS.items():
        if name == DEFAULT:
            continue
        made = "'make replicate'" if name in replicated else f"'srlib train {name}'"
        others = f"comes with the package; {made} makes others"
        missing = others if shipped_file(name) else f"missing: made by {made}"
        where = next(map(str, runs_of(name)), missing)
        yield {"weights": name, "task": e.task, "where": where}


def _profiles():
    for profile in PROFILES:
        for system in SYSTEMS:
            trained = [get(name, profile) for name in runs(system, profile)]
            steps = sum(e.training.max_steps for e in trained)
            yield {
                "profile": profile,
                "budget": BUDGETS[profile],
                "system": system,
                "steps": f"{steps:,}",
                "trained by notebooks": ", ".join(e.name for e in trained),
            }


TABLES = {"systems": _systems, "tasks": _tasks, "weights": _weights, "profiles": _profiles}
