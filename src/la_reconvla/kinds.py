"""Frozen dataclasses in JSON files, each under the name of its class, so that nobody guesses a class from its fields.

::

    MAEDecoder(depth=4)                 {"kind": "MAEDecoder", "depth": 4, ...}

A class from outside this package is named by its import path, ``my_robot.backbones.MyBackbone``, and read back only if
the program has registered it (`register`): a file that somebody sent never decides what is imported.

Files of before cannot be read once a class is renamed or gets a field without a default. A field with a default is no
such change: `from_json` leaves it at the default, and `with_defaults` does so where a file is compared with a value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from la_reconvla.errors import UserError

KIND = "kind"
PACKAGE = __name__.partition(".")[0]
REGISTERED: dict[str, type] = {}
"""Classes from outside that files may name, by import path; `register` adds to them."""
T = TypeVar("T", bound=type)


def name_of(kind: type) -> str:
    """The name of a class in files: bare for this package's own, else its import path.

    What a script itself holds (``__main__``) is named as if the script had been imported.
    """
    module = kind.__module__
    if module.partition(".")[0] == PACKAGE:
        return kind.__name__
    if module in ("__main__", "__mp_main__"):  # the second is a script in a worker process
        script = sys.modules[module]
        spec, file = getattr(script, "__spec__", None), getattr(script, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{module}.{kind.__qualname__}"


def register(kind: T) -> T:
    """Let configurations name a class of yours; a decorator above it, or a call after importing it. Returns `kind`.

    Raises:
        UserError: if it is no frozen dataclass (files hold its fields), cannot be imported, or has the name of another
            class that is registered. The same file may run again.
    """
    if not getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        raise UserError(f"{kind.__qualname__} cannot be saved: make it a frozen dataclass, @dataclass(frozen=True)")
    name = name_of(kind)
    if "<locals>" in name or name.startswith("__main__."):  # what has a file is named after that
        raise UserError(
            f"{kind.__qualname__} cannot be imported, by worker processes or by who reads its files: put it at "
            "the top of a file of its own, and import it from there"
        )
    if _file(REGISTERED.get(name, kind)) != _file(kind):
        raise UserError(
            f"there is another class '{name}' already, of {_file(REGISTERED[name])}: one of the two needs another name"
        )
    REGISTERED[name] = kind
    return kind


def _file(kind: type) -> str | None:
    """The file that a class came from."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file and str(Path(file).resolve())


def to_json(value: Any) -> Any:
    """`value` in the types of JSON; dataclasses inside become dicts that name their class, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {KIND: name_of(type(value))} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(raw: Any, classes: Iterable[type]) -> Any:
    """The value that `to_json` was given; lists become tuples.

    Args:
        raw: what JSON gave.
        classes: those whose names may appear in it, beside the `REGISTERED`.

    Raises:
        UserError: for a class from outside that is not registered.
        ValueError: for a dict of another kind, or of none.
        TypeError: for a field that its class has not, or lacks; and what the classes themselves raise.
    """
    known = {**REGISTERED, **{name_of(each): each for each in classes}}

    def value(raw: Any) -> Any:
        if isinstance(raw, list):
            return tuple(value(item) for item in raw)
        if not isinstance(raw, dict):
            return raw
        if (kind := raw.get(KIND)) not in known:
            module, _, name = str(kind).rpartition(".")
            if module:
                raise UserError(
                    f"'{kind}' is a class from outside this package, and nothing has registered it: if you trust it, "
                    f"import {module} before (on the command line: --import {module}), with la_reconvla.register "
                    f"above its class {name}"
                )
            raise ValueError(f"kind {kind!r} is not one of {', '.join(known)}")
        return known[kind](**{key: value(item) for key, item in raw.items() if key != KIND})

    return value(raw)


def named(raw: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """`raw` under the name of its class, if it is of before there were names; with a name it keeps that."""
    return {KIND: name_of(kind), **raw}


def with_defaults(raw: Any, value: Any) -> Any:
    """`raw`, which `to_json` gave of something like `value`, with the defaults of the fields that came since then.

    What is of another kind than `value` stays as it is, and so does a list of another length.
    """
    if isinstance(raw, list):
        alike = isinstance(value, list | tuple) and len(raw) == len(value)
        return [with_defaults(*two) for two in zip(raw, value, strict=True)] if alike else raw
    if not isinstance(raw, dict) or raw.get(KIND) != name_of(type(value)):
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
