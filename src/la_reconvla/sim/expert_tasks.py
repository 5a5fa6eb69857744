"""A task as a list of steps, read from the goal of its BDDL file, and which of them the scripted expert can do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim.task import Predicate
from la_reconvla.sim.tasks import Task, load_suite

TAKEN_BY_SIDES = frozenset(  # what is taken across two sides; a kind is an instance's name without its number
    ("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese", "ketchup", "milk")
) | {"orange_juice", "salad_dressing", "tomato_sauce", "wine_bottle"}
BOWLS, PLATES = "bowl", "plate"  # how the kinds end that are taken by their rim, and those that bowls are put on
CUPS = ("porcelain_mug", "red_coffee_mug", "white_yellow_mug")  # these, too, beside their handles
KNOBBED = ("moka_pot",)  # taken by the knob on their lid
SWITCHES = ("flat_stove",)  # kinds of fixtures with a knob
DOORS = ("microwave",)  # and with a door that can be pushed shut
SKILL_OF = {"on": "place", "in": "place", "open": "open", "close": "shut", "turnon": "switch"}  # of predicates
INSIDE = ("microwave_heating_region",)  # kinds of places that things are put into from the front
ORDER = ("open", "switch", "push", "place", "insert", "shut")  # of the steps of a task
ASTRAY = 0.03  # a thing let go that ends farther than this from where it should be is taken again (m)


@dataclass(frozen=True)
class Step:
    """One part of a task.

    Attributes:
        skill: one of `ORDER`.
        target: what is moved, opened, closed or switched.
        destination: where it is to end up; equals `target` where nothing is moved.
        predicate: what holds when it is done.
        share: where in its destination a thing is put that shares it: -1 or 1, on either side; 0 in its middle.
    """

    skill: str
    target: str
    destination: str
    predicate: Predicate
    share: int = 0


@dataclass(frozen=True)
class Rest:
    """How things are let go at a destination.

    Attributes:
        offset: where a thing that is let go at a tilt has its origin, from the destination's (m, world). Others are set
            down on what carries the destination.
        tilt: turn of the hand, as a rotation vector in the world (rad).
        slack: how far from there a thing may come to rest (m).
        apart: how far from the middle two things are put that share the place, in x (m).
        outward: how far from its middle towards its front a thing is put into a drawer (m): the hand needs room.
        entering: how much farther it goes down there, past what sticks out of the drawers above (m).
        falling: what each metre that a thing would fall counts against a grasp.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slack: float = ASTRAY
    apart: float = 0.0
    outward: float = 0.0
    entering: float = 0.0
    falling: float = 0.0


# Where things can be put besides plates, by kind.
PLACES = {
    "akita_black_bowl": Rest(),
    "basket_contain_region": Rest(slack=0.06),
    "flat_stove_cook_region": Rest(slack=0.07, apart=0.044),
    "wooden_cabinet_top_side": Rest(slack=0.09),
    # A bottle is leant over along the shelf, which is a gutter: let go, it falls into it.
    "wine_rack_top_region": Rest(offset=(0.04, -0.014, 0.018), tilt=(0.0, np.deg2rad(60), 0.0), slack=0.10),
}
DRAWERS = {
    f"{cabinet}_cabinet_{layer}_region": Rest(slack=0.06, outward=0.014, entering=0.016, falling=30)
    for cabinet in ("wooden", "white")
    for layer in ("top", "middle", "bottom")
}
PLACES |= DRAWERS


def place_kind(name: str) -> str:
    """``basket_1_contain_region`` -> ``basket_contain_region``, ``plate_1`` -> ``plate``."""
    return re.sub(r"_\d+(?=_|$)", "", name)


def steps_of(task: Task, goal: tuple[Predicate, ...] | None = None) -> tuple[Step, ...]:
    """What has to be done for `goal`, the task's own by default: one step for each predicate that does not hold yet.

    Things are put somewhere before it is closed. What belongs on the table is put there before the hand would have to
    go down beside a mug on a plate.

    Raises:
        UserError: if there is something that the expert cannot do; the message says what.
    """
    steps: list[Step] = []
    for predicate in (p for p in goal or task.goal if p not in task.init):
        name, target, destination = predicate[0], predicate[1], predicate[-1]
        skill = SKILL_OF.get(name, name)
        if skill == "place" and object_kind(target).endswith(PLATES):
            skill = "push"
        if skill == "place" and place_kind(destination) in INSIDE:
            skill = "insert"
        steps.append(Step(skill, target, destination, predicate))
        if skill == "place" and place_kind(destination) in DRAWERS and ("open", destination) not in task.init:
            raise UserError("a drawer that it opens hangs over what it would have to put into it")
    for step in steps:
        if reason := _beyond(step, task):
            raise UserError(reason)
    shared = map(partial(_shared, steps), steps)
    return tuple(sorted(shared, key=lambda step: (ORDER.index(step.skill), not _on_table(step.destination, task))))


def asked_for(task: Task, goal: tuple[Predicate, ...]) -> tuple[str, ...]:
    """What `goal` wants moved, opened, closed or switched, each by its instance, what has to be opened for it too."""
    asked = [predicate[1] for predicate in goal]
    asked += [p[-1] for p in goal if place_kind(p[-1]) in DRAWERS and ("open", p[-1]) not in task.init]
    return tuple(dict.fromkeys(map(task.instance, asked)))


def _shared(steps: list[Step], step: Step) -> Step:
    """`step` with its share, if another thing is put there, too."""
    there = [other for other in steps if (other.skill, other.destination) == ("place", step.destination)]
    return replace(step, share=2 * there.index(step) - 1) if len(there) == 2 and step in there else step


def _beyond(step: Step, task: Task) -> str:
    """Why the expert cannot do a step; empty if it can."""
    kind, place = object_kind(step.target), place_kind(step.destination)
    match step.skill:
        case "place":
            if not (kind in {*TAKEN_BY_SIDES, *CUPS, *KNOBBED} or kind.endswith(BOWLS)):
                return f"it cannot grasp the {_words(kind)}"
            if not (place in PLACES or place.endswith(PLATES) or _on_table(step.destination, task)):
                return f"it cannot put things on or in the {_words(place)}"
        case "insert":
            if kind not in CUPS:
                return f"it cannot put the {_words(kind)} into the {_words(place)}"
        case "push":
            if not _on_table(step.destination, task):
                return f"it can push the {_words(kind)} across the table only"
        case "open":
            if place not in DRAWERS:
                return f"it cannot pull the {_words(place)} open"
        case "shut":
            if not (place in DRAWERS or kind in DOORS):
                return f"it cannot close the {_words(place)}"
        case "switch":
            if kind not in SWITCHES:
                return f"it cannot switch the {_words(kind)} on"
        case other:
            return f"it has no skill for '{other}'"
    return ""


def _on_table(place: str, task: Task) -> bool:
    """Whether a place is marked out on the table."""
    return any(region.name == place and region.ranges for region in task.regions)


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def refusal(task: Task) -> str:
    """Why the expert cannot do `task`; empty if it can."""
    try:
        steps_of(task)
    except UserError as error:
        return str(error)
    return ""


def feasible(task: Task) -> bool:
    """Whether the expert knows how to do `task`."""
    return not refusal(task)


def require_feasible(tasks: Iterable[Task]) -> None:
    """Refuse tasks that the expert cannot do.

    Raises:
        UserError: naming the first of them, why, and those of its suite that it can do.
    """
    for task in tasks:
        if reason := refusal(task):
            able = [str(other.index) for other in load_suite(task.suite) if feasible(other)]
            raise UserError(
                f"the scripted expert cannot do task {task.index} of {task.suite} ('{task.instruction}'): {reason}; "
                f"its tasks there: {', '.join(able) or 'none'}"
            )
