"""Base class of an experiment's parts: frozen dataclasses that check their numbers."""

import ast
import dataclasses
import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, get_args, get_origin

from srlib.core.paths import InputError, choose

# numbers with their least and greatest value
Whole = Annotated[int, 0, math.inf]
Count = Annotated[int, 1, math.inf]
Number = Annotated[float, 0, math.inf]
Share = Annotated[float, 0, 1]
Length = Annotated[float, 1e-3, math.inf]
Size = Count | tuple[Count, Count, Count]  # voxels, of all axes or of each


class Part:
    """Turn lists into tuples, so that JSON gives an equal part, and check each field's annotation.

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
                choose(self.choices[entry.name], value, where)


def as_tuples(value: object) -> object:
    """Turn all lists in a value into tuples, since JSON writes both alike."""
    if isinstance(value, dict):
        return {name: as_tuples(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(as_tuples, value))
    return value.item() if getattr(value, "shape", None) == () else value  # a number of NumPy


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fits(value, kind):
    """Whether a value is what an annotation says."""
    parts, origin = get_args(kind), get_origin(kind)
    if isinstance(kind, type) or origin is Mapping:
        return isinstance(value, origin or kind)
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


def _kind(kind):
    """An annotation in words, for messages."""
    if get_origin(kind) is Annotated:
        low, high = kind.__metadata__
        most = f" and at most {high}" if high < math.inf else ""
        return f"{kind.__origin__.__name__} of at least {low}{most}"
    if isinstance(kind, type):
        return kind.__name__
    joined = ", " if get_origin(kind) is tuple else " or "
    return joined.join(_kind(part) for part in get_args(kind) if part is not ...)
