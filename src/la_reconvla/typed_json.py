"""Dataclasses from JSON, with a check of every field."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from la_reconvla.errors import UserError

T = TypeVar("T")


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gave it, as an instance of `kind`; `where` names it in messages.

    Raises:
        UserError: a field is missing or of another type; the message names it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _parse_fields(kind, _expect(value, where, dict), where)
    if origin in (Union, types.UnionType):
        return None if value is None else parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return tuple(parse(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(_expect(value, where, list)))
    if origin in (dict, Mapping):
        return {key: parse(arguments[1], v, f"{where}.{key}") for key, v in _expect(value, where, dict).items()}
    return _number(value, where) if kind is float else _expect(value, where, kind)


def _number(value: Any, where: str) -> float:
    """A finite float: JSON has no other, although Python's parser takes NaN and 1e999."""
    try:
        number = float(_expect(value, where, int, float))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where} is no finite number; write the file again with the step that makes it")
    return number


def _parse_fields(kind: type[T], value: dict[str, Any], where: str) -> T:
    """A dataclass from its fields; what the schema does not know is left out."""
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in value:
            given[f.name] = parse(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}.{f.name} is missing; write the results again with this version")
    return kind(**given)


_hints = functools.lru_cache(get_type_hints)  # a held-out file holds thousands of values of one kind


def _expect(value: Any, where: str, *kinds: Any) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value
