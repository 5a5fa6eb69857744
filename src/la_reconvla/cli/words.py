"""What is read of a command line beside its command: modules of the user's own, how flags were given before, and
suites where the command could not be read.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence

from la_reconvla.errors import UserError

IMPORT = "--import"


def with_imports(words: Sequence[str]) -> list[str]:
    """Import the modules that ``--import MODULE`` names, anywhere among the words, and return the other words.

    They register classes (`la_reconvla.register`), so that configurations may name them. Only what the user types is
    imported, never names from a file. Modules of the working folder are found too, after those that are installed.

    Raises:
        UserError: if a name is missing, or is no module that can be imported.
    """
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, given, name = word.partition("=")
        if option == IMPORT:
            _import(name if given else next(remaining, ""))
        else:
            others.append(word)
    return others


def _import(name: str) -> None:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) or name.endswith(".py"):
        file = name.removesuffix(".py").replace("/", ".").strip(".")
        hint = f"{IMPORT} {file}" if name.endswith(".py") else f"for example {IMPORT} my_robot.backbones"
        raise UserError(f"{IMPORT} takes the name of a module, not '{name}': type {hint}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the worker processes get this path too
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{IMPORT} {name}: {error}; install what is missing into this Python, or start in the folder that holds it"
        ) from error


def refuse_values_of_flags(words: Sequence[str]) -> None:
    """Raise a `UserError` for ``--wrist True``, as a yes or no was given before: today it is a flag."""
    for option, value in _pairs(words):
        if value in ("True", "False") and re.fullmatch(r"--[a-z][a-z-]*", option):
            flag = option if value == "True" else f"--no-{option.removeprefix('--')}"
            raise UserError(f"{option} {value}: a yes or no is a flag; type {flag}")


def refuse_unknown_suites(words: Sequence[str]) -> None:
    """Raise a `UserError` for a ``--suite`` that does not exist, where the rest does not parse."""
    for option, value in _pairs(words):
        if option == "--suite":
            from la_reconvla.sim.tasks import load_task
            from la_reconvla.sim.toy import SUITE

            if value != SUITE:
                load_task(value, 0)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Options with their values, given as ``--option value`` or ``--option=value``, and whatever else stands so."""
    yield from itertools.pairwise(words)
    yield from (tuple(word.split("=", 1)) for word in words if "=" in word)
