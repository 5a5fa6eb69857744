"""Errors whose message says what is wrong and what to do. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 30  # names that a message lists at most


class UserError(Exception):
    """Something that the user can put right. The message says how."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`UserError` for an unknown name: the nearest names, or, where none is near, what there is.

    Args:
        kind: what the name stands for, for example ``condition``.
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
