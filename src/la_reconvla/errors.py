"""Errors whose message tells what is wrong and what to do. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

SHOWN = 30  # names that a message lists at most


class UserError(Exception):
    """An error that the user can fix. The message tells how.

    Characters that no terminal takes, of names in damaged files, are shown by their number.
    """

    def __init__(self, *words: str):
        super().__init__(*(word.encode("utf-8", "backslashreplace").decode() for word in words))


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`UserError` for an unknown name: the nearest names, or, where none is near, what there is.

    Args:
        kind: what the name denotes, for example ``condition``.
        name: what was given.
        known: all names that would have been accepted.
    """
    names = sorted(known)
    if near := nearest(name, names):
        return UserError(f"unknown {kind} '{name}': did you mean {' or '.join(near)}?")
    rest = len(names) - SHOWN
    shown = names if rest <= 0 else sorted(names, key=len)[:SHOWN]  # a long name is a variant of a short one
    return UserError(f"unknown {kind} '{name}': choose from {', '.join(shown)}" + f" and {rest} more" * (rest > 0))


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> list[str]:
    """At most three names that `name` was perhaps meant as, the nearest first; 1 is the `likeness` of equal ones."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=likeness)


def install_command(extra: str, *options: str) -> str:
    """The command that installs an extra of this package for the Python that runs.

    It names the checkout: no package index has this package, and anyone could put another one there under its name.

    Args:
        extra: a name in ``[project.optional-dependencies]`` of ``pyproject.toml``.
        options: of ``pip install``.
    """
    checkout = Path(__file__).parents[2]
    known = (checkout / "pyproject.toml").exists()
    words = [sys.executable, "-m", "pip", "install", *options, "-e", f"{checkout if known else '.'}[{extra}]"]
    return shlex.join(words) + ("" if known else "  # in a checkout of LA-ReconVLA")
