"""The two things that each wide scene asks for, and the relations that distinguish two alike bowls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError, unknown
from la_reconvla.sim.env import Pose
from la_reconvla.sim.expert_tasks import feasible, steps_of
from la_reconvla.sim.tasks import Task, load_suite

CLEARLY = 0.02  # by how much a relation must be truer of the target than of the other bowl (m)
NEXT_TO = 0.16  # "next to" is up to this far between centres (m); LIBERO's states reach 0.14
BETWEEN = 0.05  # "between" is up to this far from the middle of two things (m)
CENTRE = 0.10  # "from table center" is up to this far from the middle of LIBERO's centre region (m)
RESTING = 0.045  # "on" and "in" are up to this far from where LIBERO lets the bowl rest (m)
TABLE = "main_table"


@dataclass(frozen=True)
class Ask:
    """One thing that can be asked for in a scene.

    Attributes:
        target: instance to move.
        destination: where to, an instance or a region.
        instruction: LIBERO's words for it.
    """

    target: str
    destination: str
    instruction: str


def instructions(task: Task) -> dict[str, str]:
    """The two things that `task`'s wide placements ask for, in order, each with the instruction that picks it out.

    Raises:
        UserError: as `asks`.
    """
    return {ask.target: ask.instruction for ask in asks(task)}


def asks(task: Task) -> tuple[Ask, Ask]:
    """The two things that are asked for in each scene of `task`; their targets differ.

    Of two bowls the instruction is that of the suite's task whose target starts in the same place (the same region
    of the BDDL file's ``:init``) as this bowl. Otherwise the first is the task's and the second that of the next
    task of the suite, in turn, that the expert can do, that moves one thing and another one, and whose target and
    destination are in this scene; so all instructions of a suite come about equally often.

    Raises:
        UserError: if there are not two; the message names the suite's tasks that have them.
    """
    if pair := _asks(task):
        return pair
    able = [str(other.index) for other in load_suite(task.suite) if _asks(other)]
    raise UserError(
        f"{task.suite} task {task.index} ('{task.instruction}') has no wide placements: they are for tasks that put "
        "one thing somewhere, in scenes in which the suite's instructions ask for two things "
        f"(its tasks that have them: {', '.join(able) or 'none'}); "
        "use --placement official"
    )


def _asks(task: Task) -> tuple[Ask, Ask] | None:
    suite = load_suite(task.suite)
    if twins := alike_things(task):
        words = {supports(other).get(other.target): other.instruction for other in suite}
        texts = [words.get(supports(task).get(bowl, "")) for bowl in twins]
        pair = [Ask(bowl, task.destination, text) for bowl, text in zip(twins, texts, strict=True) if text]
        return (pair[0], pair[1]) if len(twins) == len(pair) == 2 else None
    here = {*task.objects, *task.fixtures, *(region.name for region in task.regions)}
    others = [
        other
        for other in (*suite[task.index + 1 :], *suite[: task.index])
        if _places_one(other)
        and other.target != task.target
        and {other.target, other.destination} <= here
        and other.goal[0][0] == task.goal[0][0]  # a start's goal differs from its task's in names only
    ]
    if not (_places_one(task) and others):
        return None
    first, second = (Ask(one.target, one.destination, one.instruction) for one in (task, others[0]))
    return first, second


def _places_one(task: Task) -> bool:
    """Whether all that `task` asks of the expert is to put one thing somewhere: what a start can ask for."""
    return feasible(task) and [step.skill for step in steps_of(task)] == ["place"]


def alike_things(task: Task) -> list[str]:
    """All things of the target's kind, if there are several."""
    alike = sorted(name for name in task.objects if object_kind(name) == object_kind(task.target))
    return alike if len(alike) > 1 else []


@dataclass(frozen=True)
class BowlRelation:
    """Where a bowl is, by its instruction, as geometry.

    It is true of a bowl that is at most `limit` from a point: the middle of `anchors`, plus `offset`. An instruction
    picks out its target when it is true of the target, and the other bowl is at least `CLEARLY` farther from the point.

    Attributes:
        anchors: instances whose positions are averaged; none means the world's origin.
        offset: added to that (m).
        limit: largest distance at which the relation holds (m).
    """

    anchors: tuple[str, ...]
    offset: tuple[float, float, float]
    limit: float

    def distance(self, bowl: str, layout: Mapping[str, Pose]) -> float:
        """How far (m) `bowl` is from where the relation puts it."""
        middle = np.mean([layout[name].position for name in self.anchors], axis=0) if self.anchors else np.zeros(3)
        return float(np.linalg.norm(layout[bowl].position - middle - self.offset))

    def picks_out(self, target: str, other: str, layout: Mapping[str, Pose]) -> bool:
        """Whether the relation is true of `target` and clearly less of `other`."""
        distance = self.distance(target, layout)
        return distance <= self.limit and self.distance(other, layout) >= distance + CLEARLY


def bowl_relation(task: Task, bowl: str, resting: Mapping[str, Pose]) -> BowlRelation:
    """The geometry of the place that `task` names for `bowl`.

    Args:
        task: the task.
        bowl: one of its bowls.
        resting: a settled official layout: where on its support a bowl rests is read from it.

    Raises:
        UserError: if the bowl is in a region of the table that has no geometry here.
    """
    place = supports(task)[bowl]
    support = task.instance(place)
    if support != TABLE:
        offset = resting[bowl].position - resting[support].position
        return BowlRelation((support,), (float(offset[0]), float(offset[1]), float(offset[2])), RESTING)
    beside = {"plate": "plate_1", "ramekin": "glazed_rim_porcelain_ramekin_1", "box": "cookies_1"}
    near = {
        f"{TABLE}_next_to_{word}_region": BowlRelation((name,), (0, 0, 0), NEXT_TO) for word, name in beside.items()
    }
    between = BowlRelation((beside["plate"], beside["ramekin"]), (0, 0, 0), BETWEEN)
    x, y = next(np.reshape(r.ranges[0], (2, 2)).mean(axis=0) for r in task.regions if r.name == f"{TABLE}_table_center")
    centre = BowlRelation((), (float(x), float(y), float(resting[bowl].position[2])), CENTRE)
    known = near | {f"{TABLE}_between_plate_ramekin_region": between, f"{TABLE}_table_center": centre}
    if place not in known:
        raise unknown("place on the table", place, known)
    return known[place]


def supports(task: Task) -> dict[str, str]:
    """What each thing is in or on at the start, as the BDDL file's ``:init`` has it."""
    return {predicate[1]: predicate[2] for predicate in task.init if len(predicate) == 3}
