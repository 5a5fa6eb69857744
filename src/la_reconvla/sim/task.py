"""A LIBERO task as a value, and the parts of a BDDL file that it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_reconvla.errors import unknown

Predicate = tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A named place of a scene.

    Attributes:
        name: as predicates use it, for example ``main_table_plate_region`` or ``wooden_cabinet_1_top_region``.
        instance: object or fixture that the region belongs to, for example ``wooden_cabinet_1``.
        ranges: rectangles (x low, y low, x high, y high) in metres in the frame of `instance`; empty for regions
            that are sites of a fixture.
        yaw: lowest and highest rotation about the vertical, in radians, of what is placed there.
    """

    name: str
    instance: str
    ranges: tuple[tuple[float, float, float, float], ...]
    yaw: tuple[float, float]


@dataclass(frozen=True)
class Task:
    """One LIBERO task.

    Attributes:
        suite: for example ``libero_spatial``.
        index: number within the suite, in LIBERO's order.
        name: stem of the BDDL file. It identifies the task but does not describe it: see `instruction`.
        bddl: the BDDL file.
        instruction: what the robot is asked to do, from the BDDL file's ``:language``.
        goal: predicates that must all hold, for example ``(("on", "akita_black_bowl_1", "plate_1"),)``.
        target: what the first placing predicate of the goal moves; where nothing is placed, what is opened,
            closed or switched.
        destination: where `target` must end up, as the goal names it: an instance or a region. Equals `target` where
            nothing is placed.
        objects: movable instances.
        fixtures: instances that stay where a reset puts them (the table is one of them).
        regions: the named places of the scene.
        max_steps: step limit of an episode.
        init: predicates that hold at the start.
        wordings: what starts say in turn in place of `instruction`, by the number of their initial state.
    """

    suite: str
    index: int
    name: str
    bddl: Path
    instruction: str
    goal: tuple[Predicate, ...]
    target: str
    destination: str
    objects: tuple[str, ...]
    fixtures: tuple[str, ...]
    regions: tuple[Region, ...]
    max_steps: int
    init: tuple[Predicate, ...]
    wordings: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """Everything that the goal names."""
        return tuple(name for predicate in self.goal for name in predicate[1:])

    def shown(self, names: Iterable[str]) -> tuple[str, ...]:
        """What instance maps show: all objects, what `names` are or belong to, and the robot that hides them."""
        return tuple(dict.fromkeys((*self.objects, *map(self.instance, names), "robot")))

    def instance(self, name: str) -> str:
        """The object or fixture that `name` refers to: itself, or the owner where `name` is a region.

        Raises:
            UserError: if the task has neither an instance nor a region of this name.
        """
        if name in self.objects or name in self.fixtures:
            return name
        owners = {region.name: region.instance for region in self.regions}
        if name not in owners:
            raise unknown("object", name, {*self.objects, *self.fixtures, *owners})
        return owners[name]

    def goal_for(self, target: str, destination: str) -> tuple[Predicate, ...]:
        """The goal with `target` in place of the task's target and `destination` in place of its destination.

        Raises:
            UserError: if a name is unknown in this task.
        """
        for name in (target, destination):
            self.instance(name)
        new = {self.target: target, self.destination: destination}
        return tuple(
            (predicate, *(new.get(argument, argument) for argument in arguments)) for predicate, *arguments in self.goal
        )


def instances_in(section: list[str]) -> tuple[str, ...]:
    """Names without their kinds: ``["a_1", "a_2", "-", "a", "b_1", "-", "b"]`` -> ``("a_1", "a_2", "b_1")``."""
    kinds = {i + 1 for i, token in enumerate(section) if token == "-"}
    return tuple(token for i, token in enumerate(section) if token != "-" and i not in kinds)


def region_in(entry: list[Any]) -> Region:
    """An entry of ``:regions``."""
    attributes = {attribute[0]: attribute[1:] for attribute in entry[1:]}
    owner = attributes[":target"][0]
    low, high = _numbers(attributes.get(":yaw_rotation", [[["0", "0"]]])[0][0])
    ranges = tuple(_numbers(box) for box in attributes.get(":ranges", [[]])[0])
    return Region(name=f"{owner}_{entry[0]}", instance=owner, ranges=ranges, yaw=(low, high))  # type: ignore[arg-type]


def _numbers(tokens: list[str]) -> tuple[float, ...]:
    return tuple(float(token) for token in tokens)
