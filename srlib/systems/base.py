"""What an experiment is: a named variant of a system, composed of parts."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from srlib.core.parts import Count, Part, as_tuples
from srlib.core.paths import InputError, choose
from srlib.data.pairs import ObservationModel
from srlib.degradations.tasks import TASKS, Settings
from srlib.inference.isotropic import IsotropicSpacing
from srlib.inference.prediction import AnyFactor, CoarseToFine, SameGrid
from srlib.models.network import Network
from srlib.scans.intensity import INTENSITIES
from srlib.synthesis.settings import Acquisition, Generation
from srlib.training.examples import ScanPatches
from srlib.training.games import CrossEntropy, LeastSquares, Supervised, Training, Wasserstein
from srlib.training.mixture import Mixture
from srlib.training.synthetic import RandomDegradations, SyntheticScans

SCHEMA = 2  # of the JSON in weights files; raise it when fields change
SLOTS = ("network", "examples", "training", "game", "prediction")
PROSE = ("paper", "sources", "deviations")
# the classes of parts by name; an own one is added here
KINDS: dict[str, type[Part]] = {
    kind.__name__: kind
    for kind in (
        Network, ScanPatches, SyntheticScans, RandomDegradations, Training, Supervised, Wasserstein, LeastSquares,
        CrossEntropy, SameGrid, CoarseToFine, AnyFactor, IsotropicSpacing, Generation, Acquisition, Mixture,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Experiment(Part):
    """A published system on a task, with the source of each number and the deviations from the paper.

    Its name, task and scans stand here, all else in its parts. No two parts have different fields of one name, so
    ``changed`` and ``number`` find a field without its part.
    """

    choices: ClassVar = {"intensity": INTENSITIES}

    name: str
    task: str  # key of TASKS
    network: Network
    examples: Part
    training: Training
    prediction: SameGrid  # or a kind of it
    game: Part = field(default_factory=Supervised)
    paper: str = field(default="", compare=False)
    contrast: str = "t1"  # manifest column
    reference: str = ""  # manifest column of a second contrast, the network's second input channel
    intensity: str = "minmax"  # rule of intensity.fit_scaling, fitted on the network's input
    frame: tuple[Count, Count, Count] | None = (
        None  # voxels that each scan is cut or padded to, about its middle
    )
    given: bool = False  # the manifest's lr column, where filled, is the low-resolution scan
    start: str = ""  # experiment whose trained weights the generator starts from
    start_critic: str = ""  # experiment whose trained critic the critic starts from
    segmenter: str = ""  # experiment whose trained network judges the output by its Dice
    task_settings: Mapping[str, Settings] = field(
        default_factory=dict
    )  # of its tasks; else those of TASKS
    sources: Mapping[str, str] = field(
        default_factory=dict, compare=False
    )  # number -> "paper", "code" or "ours: ..."
    deviations: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        known, names = {**TASKS, **self.task_settings}, [self.task, *self.examples.tasks(self.task)]
        tasks = {name: as_tuples(choose(known, name, "task")) for name in names}
        object.__setattr__(self, "task_settings", tasks)

    @functools.cached_property
    def pairs(self) -> ObservationModel:
        """How degraded pairs are made for it."""
        return ObservationModel(
            self.task,
            self.task_settings,
            self.contrast,
            self.reference,
            self.intensity,
            self.frame,
            self.given,
            self.prediction.coarse,
        )

    def number(self, name: str) -> object:
        """The value of a field, its own or of a part; what stands before a dot is for readers. InputError if there is none."""
        name = name.rpartition(".")[2]
        for part in self._parts():
            if name in _names(part):
                return getattr(part, name)
        raise InputError(f"{self.name} has no number {name!r}")

    def changed(self, **changes: object) -> "Experiment":
        """The experiment with other values of its fields, or of fields of its parts, wherever they have one.

        A whole part is replaced by its slot. Raises InputError for a name that no part has.
        """
        slots = {slot: changes.get(slot, getattr(self, slot)) for slot in SLOTS}
        unknown = [
            name
            for name in changes
            if not any(name in _names(part) for part in (self, *slots.values()))
        ]
        if unknown:
            raise InputError(f"{self.name} has no number {unknown[0]!r}")
        for slot, part in slots.items():
            own = {name: value for name, value in changes.items() if name in _names(part)}
            slots[slot] = dataclasses.replace(part, **own)
        own = {
            name: value
            for name, value in changes.items()
            if name in _names(self) and name not in SLOTS
        }
        return dataclasses.replace(self, **own, **slots)

    def _parts(self) -> tuple[Part, ...]:
        return (self, *(getattr(self, slot) for slot in SLOTS), *_nested(self))

    def to_json(self) -> str:
        """All fields that decide what is computed, as canonical JSON (prose left out)."""
        fields = {name: value for name, value in _fields(self).items() if name not in PROSE}
        return json.dumps({"schema": SCHEMA, **fields}, sort_keys=True)


def _nested(experiment: Experiment) -> tuple[Part, ...]:
    values = [value for slot in SLOTS for value in vars(getattr(experiment, slot)).values()]
    return tuple(value for value in values if isinstance(value, Part))


def _names(part: Part) -> set[str]:
    return {entry.name for entry in dataclasses.fields(part)}


def _fields(value: object) -> object:
    """A part as what JSON holds; ``kind`` names its class."""
    if isinstance(value, Part):
        named = {
            entry.name: _fields(getattr(value, entry.name)) for entry in dataclasses.fields(value)
        }
        return {**named, "kind": type(value).__name__}
    return tuple(map(_fields, value)) if isinstance(value, tuple) else value


def _part(value: object) -> object:
    """The inverse of ``_fields``."""
    if isinstance(value, dict) and "kind" in value:
        named = {name: _part(part) for name, part in value.items() if name != "kind"}
        return choose(KINDS, value["kind"], "part")(**named)
    return tuple(map(_part, value)) if isinstance(value, tuple) else value


def from_fields(fields: dict, prose: Mapping[str, object]) -> Experiment:
    """The experiment of what JSON held."""
    if fields.pop("schema") != SCHEMA:
        raise ValueError("its schema is another srlib's")
    del fields["kind"]
    named = {name: _part(value) for name, value in as_tuples(fields).items()}
    return Experiment(**prose, **named)
