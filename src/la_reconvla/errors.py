"""Errors whose message says what is wrong and what to do. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The message says how."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`UserError` for an unknown name, with near misses first.

    Args:
        kind: what the name stands for, for example ``condition``.
        name: what was given.
        known: all names that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}known: {', '.join(names)}")
