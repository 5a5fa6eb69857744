"""Dataclasses from JSON, with a check of every field."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from la_reconvla.errors import UserError

Parser = Callable[[Any, str], Any]


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gave it, as an instance of `kind`; `where` names it in messages.

    Raises:
        UserError: a field is missing or of another type; the message names it.
    """
    return _parser(kind)(value, where)


@functools.cache  # what a type asks for is looked up once: a study may have 100,000 records of one
def _parser(kind: Any) -> Parser:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value, where: value
    if is_dataclass(kind) and isinstance(kind, type):
        return _fields_parser(kind)
    if origin in (Union, types.UnionType):
        inner = _parser(next(a for a in arguments if a is not type(None)))
        return lambda value, where: None if value is None else inner(value, where)
    if origin is Literal:
        return lambda value, where: _one_of(arguments, value, where)
    if origin is tuple:
        item = _parser(arguments[0])
        return lambda value, where: tuple(item(v, f"{where}[{i}]") for i, v in enumerate(_expect(value, where, list)))
    if origin in (dict, Mapping):
        item = _parser(arguments[1])
        return lambda value, where: {k: item(v, f"{where}.{k}") for k, v in _expect(value, where, dict).items()}
    return _number if kind is float else lambda value, where: _expect(value, where, kind)


def _one_of(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in allowed:
        raise UserError(f"{where} is {value!r}; expected one of {', '.join(map(str, allowed))}")
    return value


def _number(value: Any, where: str) -> float:
    """A finite float: JSON has no other, although Python's parser takes NaN and 1e999."""
    try:
        number = float(_expect(value, where, int, float))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where} is no finite number; write the file again with the step that makes it")
    return number


def _fields_parser(kind: type) -> Parser:
    """Of a dataclass; what the schema does not know is left out."""
    hints: dict[str, Any] = get_type_hints(kind)
    known: list[tuple[str, Parser, bool]] = []

    def parsed(value: Any, where: str) -> Any:
        found, given = _expect(value, where, dict), {}
        if not known:  # not before: a class may hold others of its kind
            for f in fields(kind):
                needed = f.default is MISSING and f.default_factory is MISSING
                known.append((f.name, _parser(hints[f.name]), needed))
        for name, inner, needed in known:
            if name in found:
                given[name] = inner(found[name], f"{where}.{name}")
            elif needed:
                raise UserError(f"{where}.{name} is missing; write the results again with this version")
        return kind(**given)

    return parsed


def _expect(value: Any, where: str, *kinds: Any) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value
