"""What a task asks for, where a demonstration file does not say: LIBERO's installed task file, else the file's name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Literal

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
"""LIBERO's own; the same names in others stand for tasks that were changed."""
Words = Literal["files", "names"]
"""A task in the words of its task file (`pick the akita black bowl`) or of its name (`pick up the black bowl`)."""
_SCENE = re.compile(r"^[A-Z][A-Z_]*_SCENE\d+_")  # for example KITCHEN_SCENE3_


def spoken(name: str) -> str | None:
    """A task's name in words, without the scene that it begins with; None for a single word, which asks for nothing."""
    words = _SCENE.sub("", name).replace("_", " ").split()
    return " ".join(words) if len(words) > 1 else None


def scene_of(name: str) -> str | None:
    """The scene that a task's name begins with, for example ``KITCHEN_SCENE3_``; None if it names none."""
    found = _SCENE.match(name)
    return found and found[0]


def installed(name: str) -> tuple[str, str] | None:
    """Suite and instruction of the task of this name, if LIBERO is installed and knows it. Imports nothing of it."""
    package = importlib.util.find_spec("libero")
    for folder in (package and package.submodule_search_locations) or ():
        for suite in SUITES:
            bddl = Path(folder) / "libero" / "bddl_files" / suite / f"{name}.bddl"
            if bddl.is_file():
                return suite, language_of(bddl.read_text(encoding="utf-8"))
    return None


def language_of(bddl: str) -> str:
    """The instruction as LIBERO's parser gives it: lower case, single spaces.

    Raises:
        IndexError: there is no ``:language`` in it.
    """
    line = bddl.lower().split("(:language", 1)[1].split(")", 1)[0]
    return " ".join(line.split())
