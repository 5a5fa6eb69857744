"""Frozen dataclasses in JSON files, each under the name of its class, so that nobody guesses a class from its fields.

::

    MAEDecoder(depth=4)                 {"kind": "MAEDecoder", "depth": 4, ...}

Files of before cannot be read once a class is renamed or gets a field without a default. A field with a default is no
such change: `from_json` leaves it at the default, and `with_defaults` does so where a file is compared with a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

KIND = "kind"


def to_json(value: Any) -> Any:
    """`value` in the types of JSON; dataclasses inside become dicts that name their class, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {KIND: type(value).__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(raw: Any, classes: Iterable[type]) -> Any:
    """The value that `to_json` was given; lists become tuples.

    Args:
        raw: what JSON gave.
        classes: those whose names may appear in it.

    Raises:
        ValueError: for a dict of another kind, or of none.
        TypeError: for a field that its class has not, or lacks; and what the classes themselves raise.
    """
    named = {each.__name__: each for each in classes}

    def value(raw: Any) -> Any:
        if isinstance(raw, list):
            return tuple(value(item) for item in raw)
        if not isinstance(raw, dict):
            return raw
        if raw.get(KIND) not in named:
            raise ValueError(f"kind {raw.get(KIND)!r} is not one of {', '.join(named)}")
        return named[raw[KIND]](**{key: value(item) for key, item in raw.items() if key != KIND})

    return value(raw)


def named(raw: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """`raw` under the name of its class, if it is of before there were names; with a name it keeps that."""
    return {KIND: kind.__name__, **raw}


def with_defaults(raw: Any, value: Any) -> Any:
    """`raw`, which `to_json` gave of something like `value`, with the defaults of the fields that came since then.

    What is of another kind than `value` stays as it is, and so does a list of another length.
    """
    if isinstance(raw, list):
        alike = isinstance(value, list | tuple) and len(raw) == len(value)
        return [with_defaults(*two) for two in zip(raw, value, strict=True)] if alike else raw
    if not isinstance(raw, dict) or raw.get(KIND) != type(value).__name__:
        return raw
    result = dict(raw)
    for f in fields(value):
        if f.name in raw:
            result[f.name] = with_defaults(raw[f.name], getattr(value, f.name))
        elif f.default is not MISSING:
            result[f.name] = to_json(f.default)
        elif f.default_factory is not MISSING:
            result[f.name] = to_json(f.default_factory())
    return result
