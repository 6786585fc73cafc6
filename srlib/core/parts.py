"""Parts of an experiment: frozen dataclasses that check their numbers and come back equal from JSON."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Annotated, ClassVar, get_args, get_origin

from srlib.core.paths import InputError, choose

# numbers with the least and the greatest value that they take
Whole = Annotated[int, 0, math.inf]
Count = Annotated[int, 1, math.inf]
Number = Annotated[float, 0, math.inf]
Share = Annotated[float, 0, 1]
Length = Annotated[float, 1e-3, math.inf]
Size = Count | tuple[Count, Count, Count]  # voxels, of all axes or of each


class Part:
    """What parts share: lists become tuples, and each field must be of its annotated kind.

    ``choices`` lists the names that a field may hold. Raises InputError for any other value.
    """

    choices: ClassVar[Mapping[str, Collection[str]]] = {}

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = as_tuples(getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
            where = f"{type(self).__name__} {entry.name}"
            if not _fits(value, entry.type):
                raise InputError(f"{where} must be {_kind(entry.type)}, got {value!r}")
            if entry.name in self.choices:
                choose(dict.fromkeys(self.choices[entry.name]), value, where)


def as_tuples(value: object) -> object:
    """The same value with tuples in place of all lists, since JSON does not tell the two apart."""
    if isinstance(value, dict):
        return {name: as_tuples(part) for name, part in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def _fits(value: object, kind: object) -> bool:
    if isinstance(kind, type) or get_origin(kind) is Mapping:
        kind = get_origin(kind) or kind
        return isinstance(value, Mapping if kind is Mapping else kind)
    parts, origin = get_args(kind), get_origin(kind)
    if origin is Annotated:
        number = Integral if parts[0] is int else Real
        low, high = kind.__metadata__
        whole = isinstance(value, number) and not isinstance(value, bool)
        return whole and low <= value <= high and abs(value) < math.inf
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return any(_fits(value, part) for part in parts)


def _kind(kind: object) -> str:
    """An annotation in words."""
    if get_origin(kind) is Annotated:
        low, high = kind.__metadata__
        most = f" and at most {high}" if high < math.inf else ""
        return f"{kind.__origin__.__name__} of at least {low}{most}"
    if isinstance(kind, type):
        return kind.__name__
    if parts := get_args(kind):
        joined = ", " if get_origin(kind) is tuple else " or "
        return joined.join(_kind(part) for part in parts if part is not ...)
    return str(kind)
