"""Define an experiment: a named variant of a system, composed of parts."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from srlib.core.parts import Part, as_tuples
from srlib.core.paths import InputError, choose
from srlib.data.pairs import FITTED_ON, ObservationModel, Scans
from srlib.degradations.tasks import TASKS, Settings
from srlib.inference.prediction import SameGrid
from srlib.models.network import Network
from srlib.scans.intensity import INTENSITIES
from srlib.training.examples import Examples
from srlib.training.games import Supervised, Training

SCHEMA = 2  # of the JSON in weights files; raise it when fields change
SLOTS = ("network", "examples", "training", "game", "prediction")
PROSE = ("paper", "sources", "deviations")
STATED = ("initialisation", "batch_norm")  # choices inside a model; their source says what they are


@dataclass(frozen=True)
class Experiment(Part, Scans):
    """A published system on a task, the source of each number and the deviations from the paper.

    Its name, task and scans stand here, all else in its parts. Different parts have no fields of
    one name, unless these are equal, so ``changed`` and ``number`` find a field without its part.
    Raises InputError for a part or a value of the wrong kind.
    """

    choices: ClassVar = {"intensity": INTENSITIES, "fitted_on": FITTED_ON}

    name: str
    task: str  # key of TASKS
    network: Network
    examples: Examples
    training: Training
    prediction: SameGrid  # or a subclass
    game: Supervised = field(default_factory=Supervised)
    paper: str = field(default="", compare=False)
    start: str = ""  # experiment whose trained weights the generator starts from
    start_critic: str = ""  # experiment whose trained critic the critic starts from
    segmenter: str = ""  # experiment whose trained network judges the output by its Dice
    # of its tasks; else those of TASKS
    task_settings: Mapping[str, Settings] = field(default_factory=dict)
    # number -> "paper", "code" or "ours: ..."
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    deviations: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        known, names = {**TASKS, **self.task_settings}, [self.task, *self.examples.tasks(self.task)]
        names += [self.reference_task] * bool(self.reference_task)
        tasks = {name: as_tuples(choose(known, name, "task")) for name in names}
        object.__setattr__(self, "task_settings", tasks)

    @functools.cached_property
    def pairs(self) -> ObservationModel:
        """How degraded pairs are made for it."""
        scans = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Scans)}
        return ObservationModel(self.task, self.task_settings, self.prediction.coarse, **scans)

    def number(self, name: str) -> Any:
        """The value of a field, its own or of a part, or of a setting of the model.

        A prefix with a dot is for readers. Raises InputError for an unknown name.
        """
        name = name.rpartition(".")[2]
        slots = [getattr(self, slot) for slot in SLOTS]
        nested = [value for part in slots for value in vars(part).values()]
        for part in (self, *slots, *nested):
            if isinstance(part, Part) and name in names_of(part):
                return getattr(part, name)
        if name in self.network.model_args:
            return self.network.model_args[name]
        raise InputError(f"{self.name} has no number {name!r}")

    def changed(self, **changes: Any) -> "Experiment":
        """The experiment with other values of fields, its own or of all parts that have them.

        A whole part is replaced by its slot. Raises InputError for an unknown name.
        """
        parts = {slot: changes.pop(slot, getattr(self, slot)) for slot in SLOTS}
        known = names_of(self).union(*map(names_of, parts.values()))
        for name in changes:
            if name not in known:
                raise InputError(f"{self.name} has no number {name!r}")
        parts = {slot: _replaced(part, changes) for slot, part in parts.items()}
        return _replaced(self, changes | parts)

    def variant(self, name: str, *deviations: str, **changes: Any) -> "Experiment":
        """The experiment under another name, with further deviations and as ``changed``.

        Sources and model_args are added to its own.
        """
        changes["sources"] = {**self.sources, **changes.get("sources", {})}
        if more := changes.get("model_args"):
            changes["model_args"] = {**self.network.model_args, **more}
        changes.setdefault("deviations", (*self.deviations, *deviations))
        return self.changed(name=name, **changes)

    def to_json(self) -> str:
        """All fields that decide what is computed, as canonical JSON (prose left out)."""
        fields = {name: value for name, value in _fields(self).items() if name not in PROSE}
        return json.dumps({"schema": SCHEMA, **fields}, sort_keys=True)


def names_of(part: Part | type[Part]) -> set[str]:
    """The names of a part's fields."""
    return {entry.name for entry in dataclasses.fields(part)}


def _replaced(part, changes):
    """A part with those changes that are of its own fields."""
    names = names_of(part) & changes.keys()
    return dataclasses.replace(part, **{name: changes[name] for name in names})


def _fields(value):
    """A part as JSON holds it; ``kind`` names its class."""
    if isinstance(value, Part):
        named = {name: _fields(getattr(value, name)) for name in names_of(value)}
        return {**named, "kind": type(value).__name__}
    return tuple(map(_fields, value)) if isinstance(value, tuple) else value


def kinds(part: type[Part]) -> dict[str, type[Part]]:
    """A class of parts and all classes that inherit from it, by name."""
    found = {part.__name__: part}
    for kind in part.__subclasses__():
        found |= kinds(kind)
    return found


def _part(value):
    """The inverse of ``_fields``."""
    if isinstance(value, dict) and "kind" in value:
        named = {name: _part(part) for name, part in value.items() if name != "kind"}
        return choose(kinds(Part), value["kind"], "part")(**named)
    return tuple(map(_part, value)) if isinstance(value, tuple) else value


def from_fields(fields: dict, prose: Mapping[str, Any]) -> Experiment:
    """The experiment that ``_fields`` described; ValueError for another schema."""
    if (schema := fields.pop("schema", None)) != SCHEMA:
        raise ValueError(f"another srlib wrote it: schema {schema}, expected {SCHEMA}; train anew")
    del fields["kind"]
    named = {name: _part(value) for name, value in as_tuples(fields).items()}
    return Experiment(**prose, **named)
