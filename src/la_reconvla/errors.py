"""Errors whose message says what is wrong and what to do. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path


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
