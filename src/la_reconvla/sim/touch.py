"""What the hand touches and holds, read from MuJoCo's list of contacts, and which furniture was opened or turned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

FINGERS = ("left_finger", "right_finger")
SLID, TURNED = 0.03, 0.2  # by which a drawer (m), a door or a knob (rad) has moved
SLIDES, TURNS = 2, 3  # MuJoCo's numbers of these kinds of joints
LEFT, RIGHT, PALM = 1, 2, 4  # parts of the hand, one bit each
BOTH = LEFT | RIGHT


class Touch:
    """Reads contacts of the hand with the things of one scene; good as long as its model is.

    Args:
        env: robosuite's environment.
        geoms_of: numbers of all geoms of a thing, or of the hand (``gripper``).
    """

    def __init__(self, env: Any, geoms_of: Callable[[str], Sequence[int]]) -> None:
        model = env.sim.model
        self._data = env.sim.data._data
        self._names = tuple(env.obj_body_id)  # not the table or the floor
        self._thing = np.full(model.ngeom, -1)
        for number, name in enumerate(self._names):
            self._thing[geoms_of(name)] = number
        self._part = np.zeros(model.ngeom, dtype=int)
        self._part[geoms_of("gripper")] = PALM
        for side, part in zip(FINGERS, (LEFT, RIGHT), strict=True):
            of_side = env.robots[0].gripper.important_geoms[side]
            self._part[[model.geom_name2id(name) for name in of_side]] = part

        parents, owner = model.body_parentid, {body: name for name, body in env.obj_body_id.items()}
        self._joints: list[tuple[str, int, float]] = []  # whose, where in qpos, and by how much it has moved
        for kind, body, at in zip(model.jnt_type, model.jnt_bodyid, model.jnt_qposadr, strict=True):
            while body and body not in owner:
                body = int(parents[body])
            if body and kind in (SLIDES, TURNS):
                self._joints.append((owner[body], int(at), SLID if kind == SLIDES else TURNED))
        self._stood = self._data.qpos.copy()

    def shifted(self) -> set[str]:
        """Furniture of which a drawer, door or knob is elsewhere than when this was made."""
        gone = abs(self._data.qpos - self._stood)
        return {name for name, at, by in self._joints if gone[at] > by}

    def now(self) -> dict[str, bool]:
        """What the hand touches now, and of each thing whether it is between both fingers."""
        pairs = self._data.contact.geom  # int [contacts 2]
        part, thing = self._part[pairs].max(1, initial=0), self._thing[pairs].max(1, initial=-1)
        touching = (part > 0) & (thing >= 0)
        parts: dict[str, int] = {}
        for number, bits in zip(thing[touching], part[touching], strict=True):
            name = self._names[number]
            parts[name] = parts.get(name, 0) | int(bits)
        return {name: bits & BOTH == BOTH for name, bits in parts.items()}
