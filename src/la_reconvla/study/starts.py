"""Which initial states a policy is evaluated on, and which instructions it can get there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from la_reconvla.data.starts import COUNTERFACTUAL, PlacementKind, Split, Start
from la_reconvla.errors import UserError
from la_reconvla.sim.placements import wide_starts
from la_reconvla.sim.policies import swapped
from la_reconvla.sim.tasks import (
    Task,
    base_of,
    is_own,
    load_suite,
    load_task,
    official_start,
    official_states,
)
from la_reconvla.sim.wide_targets import instructions


def wording(suite: str, tasks: Sequence[int], placement: PlacementKind) -> set[tuple[int, str]]:
    """Every (task, instruction) of all starts of these tasks; no start is made for it.

    Raises:
        UserError: for unknown names.
    """
    if placement == "wide" and base_of(suite) != suite:
        raise UserError(
            f"{suite} has no wide placements: it changes one thing in LIBERO's own initial states; use "
            "--placement official"
        )
    told = set()
    for index in tasks:
        for task in met(suite, index):
            words = instructions(task).values() if placement == "wide" else task.wordings or [task.instruction]
            told |= {(index, text) for text in words}
    return told


def met(suite: str, index: int) -> tuple[Task, ...]:
    """What the starts of a task ask for: the task; of one that asks for another thing its base's before it.

    Raises:
        UserError: for unknown names.
    """
    task = load_task(suite, index)
    return (load_task(base_of(suite), index), task) if suite.endswith(COUNTERFACTUAL) else (task,)


def tasks_of(suite: str, learned: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    """Tasks of `suite` to evaluate a policy on: those it has learned, before or after a change; else all.

    A suite that asks for another thing leaves out scenes that have one thing only.

    Args:
        suite: LIBERO suite.
        learned: (suite, task) of everything that the policy was trained on.

    Raises:
        UserError: for an unknown suite.
    """
    here = {index for other, index in learned if base_of(other) == base_of(suite)}
    asked = [task.index for task in load_suite(suite)]
    return tuple(index for index in asked if index in here) if here else tuple(asked)


def wrong_words(suite: str, tasks: Sequence[int], placement: PlacementKind) -> tuple[tuple[int, str, str], ...]:
    """The instructions of the wrong-instruction floor on these tasks (see `swapped`): only what is said in this suite.

    Another suite's words may mean the same thing. Where these tasks have one instruction, the suite's others join.

    Raises:
        UserError: if the whole suite has one.
    """
    if any(load_task(suite, index).wordings for index in tasks):  # another wording of the same task is not wrong
        other = {index: wrong for index, _, wrong in wrong_words(base_of(suite), tasks, placement)}
        return tuple((index, text, other[index]) for index, text in sorted(wording(suite, tasks, placement)))
    told = wording(suite, tasks, placement)
    if len({text for _, text in told}) < 2:
        told |= wording(suite, [task.index for task in load_suite(suite)], placement)
    return swapped(told)


def evaluation_starts(
    suite: str,
    tasks: Sequence[int],
    placement: PlacementKind,
    episodes: int,
    *,
    trained_on: frozenset[str] = frozenset(),
    split: Split = "test",
    cache: Path | None = None,
    allow_any_mujoco: bool = False,
) -> list[Start]:
    """`episodes` starts of each task, interleaved by task, none of which is in `trained_on`.

    Args:
        suite: LIBERO suite. Of one that asks for another thing, each state comes twice: first the base's own start.
        tasks: indices of the tasks.
        placement: ``official`` or ``wide``.
        episodes: number for each task.
        trained_on: ids of the starts to leave out. An official state counts as trained on whatever its split is called.
        split: ``train`` takes the placements that training takes, and official states from number 0 up; ``test`` the
            others, and official states from the last one down.
        cache: where settled wide placements are kept.
        allow_any_mujoco: accept a MuJoCo whose physics is known to differ.

    Raises:
        UserError: for unknown names, or if fewer official states are left than asked for.
    """
    per_task: list[list[Start]] = []
    for index in tasks:
        task = load_task(suite, index)
        if placement == "wide":
            starts = wide_starts(suite, index, split, range(episodes), cache, allow_any_mujoco=allow_any_mujoco)
            starts = [start for start in starts if not was_trained_on(start, trained_on)]
        else:
            numbers = range(len(official_states(task)))
            numbers = numbers if split == "train" else numbers[::-1]
            starts = [official_start(told, i, split=split) for i in numbers for told in met(suite, index)]
            starts = [start for start in starts if not was_trained_on(start, trained_on)][:episodes]
        if len(starts) < episodes:
            raise UserError(
                f"{suite} task {index}: {len(starts)} {placement} starts were not trained on, {episodes} are wanted: "
                "ask for fewer episodes or evaluate on wide placements"
            )
        per_task.append(starts)
    return [start for group in zip(*per_task, strict=True) for start in group]


def was_trained_on(start: Start, trained_on: frozenset[str]) -> bool:
    """Whether a policy with these training starts knows `start`: of an official state split and words do not count."""
    if is_own(start.suite):
        start = replace(start, suite=base_of(start.suite))
    names = {start.id}
    if start.placement == "official":
        names = {replace(start, split=split).id for split in get_args(Split)}
    return not trained_on.isdisjoint(names)
