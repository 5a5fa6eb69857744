"""Which tasks the scripted expert can do: the things that it can grasp, and how it lets them go at a destination."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import Task, load_suite

TAKEN_BY_SIDES = frozenset(  # what is taken across two sides; a kind is an instance's name without its number
    ("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese", "ketchup", "milk")
) | {"orange_juice", "salad_dressing", "tomato_sauce", "wine_bottle"}
BOWLS, PLATES = "bowl", "plate"  # how the kinds end that are taken by their rim, and those that bowls are put on
ASTRAY = 0.03  # a thing let go that ends farther than this from where it should be is taken again (m)


@dataclass(frozen=True)
class Rest:
    """How things are let go at a destination.

    Attributes:
        offset: where a thing that is let go at a tilt has its origin, from the destination's (m, world). Others are set
            down on what carries the destination.
        tilt: turn of the hand, as a rotation vector in the world (rad).
        slack: how far from there a thing may come to rest (m).
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slack: float = ASTRAY


# Where things can be put besides plates, by kind. Drawers are not among them: they are closed.
PLACES = {
    "akita_black_bowl": Rest(),
    "basket_contain_region": Rest(slack=0.06),
    "flat_stove_cook_region": Rest(slack=0.07),
    "wooden_cabinet_top_side": Rest(slack=0.09),
    # A bottle is leant over along the shelf, which is a gutter: let go, it falls into it.
    "wine_rack_top_region": Rest(offset=(0.04, -0.014, 0.018), tilt=(0.0, np.deg2rad(60), 0.0), slack=0.10),
}


def place_kind(name: str) -> str:
    """``basket_1_contain_region`` -> ``basket_contain_region``, ``plate_1`` -> ``plate``."""
    return re.sub(r"_\d+(?=_|$)", "", name)


def feasible(task: Task) -> bool:
    """Whether the expert knows how to do `task`: it moves one thing that can be grasped to a place that is open."""
    takes = object_kind(task.target) in TAKEN_BY_SIDES or object_kind(task.target).endswith(BOWLS)
    puts = place_kind(task.destination) in PLACES or place_kind(task.destination).endswith(PLATES)
    return len(task.goal) == 1 and task.goal[0][0] in ("on", "in") and takes and puts


def require_feasible(tasks: Iterable[Task]) -> None:
    """Refuse tasks that the expert cannot do.

    Raises:
        UserError: naming the first of them, and those of its suite that it can do.
    """
    for task in tasks:
        if not feasible(task):
            able = [str(other.index) for other in load_suite(task.suite) if feasible(other)]
            raise UserError(
                f"the scripted expert cannot do task {task.index} of {task.suite} ('{task.instruction}'): it picks "
                "one thing up and puts it down, and opens, switches or pushes nothing; "
                f"its tasks there: {', '.join(able) or 'none'}"
            )
