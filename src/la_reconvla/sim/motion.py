"""How the scripted expert's hand moves: actions that lead it to a goal, computed from its present pose.

The controller is robosuite's OSC_POSE: an action of 1 asks for 0.05 m or 0.5 rad, but the goal is set anew from
the current pose at each of the 20 steps per second, so the hand really moves about 0.015 m per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.sim.env import GRIPPER_CLOSED, GRIPPER_OPEN
from la_reconvla.sim.hand_geometry import PrivilegedEnv

BRAKING = 0.03  # full speed until this far from a goal (m); half of it overshoots
TURNING = 0.33  # full speed of turning until this far from a goal (rad)
MISS = (0.02, 0.06)  # how far beside a blunder goes (m)
DELAY = 30  # a blunder lasts for up to so many steps more
WITHIN, TURNED = 0.012, 0.12  # a goal is reached (m, rad)
DOWN = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))  # the hand points down, its fingers open along y
Actions = Iterator[Float[np.ndarray, "7"]]


def approach(move: Float[np.ndarray, "3"], turn: Rotation, fastest: float = 1) -> Float[np.ndarray, "6"]:
    """Motion by what is left of a straight line (m, world) and of a turn: scaled, not clipped."""
    way = move / BRAKING
    return np.concatenate(
        [way * min(1, fastest / max(np.abs(way).max(), 1e-9)), np.clip(turn.as_rotvec() / TURNING, -1, 1)]
    )


def missed(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A horizontal vector to somewhere beside (m)."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(*MISS)
    return radius * np.array([np.cos(angle), np.sin(angle), 0])


class Arm:
    """The hand, and ways to lead it.

    Attributes:
        env: where it is.
        beside: how far from its goals it goes (m, world); zero unless it blunders.
    """

    def __init__(self, env: PrivilegedEnv) -> None:
        self.env, self.beside = env, np.zeros(3)

    @property
    def hand(self) -> Float[np.ndarray, "3"]:
        """The point between the fingers (m, world)."""
        return self.env.poses()["gripper"].position

    @property
    def orientation(self) -> Rotation:
        """Where it points."""
        return Rotation.from_quat(self.env.poses()["gripper"].quaternion)

    def go(
        self,
        goal: Callable[[], Float[np.ndarray, "3"]],
        orientation: Rotation | Callable[[], Rotation],
        *,
        closed: bool,
        steps: int = 60,
        until: Callable[[], bool] | None = None,
        fastest: float = 1,
    ) -> Actions:
        """Actions on the way to `goal`, which may move, until it is reached or `until` holds, at most `steps`."""
        gripper = GRIPPER_CLOSED if closed else GRIPPER_OPEN
        for _ in range(steps):
            wanted = orientation() if callable(orientation) else orientation
            move, turn = goal() + self.beside - self.hand, wanted * self.orientation.inv()
            near = np.linalg.norm(move) < WITHIN and turn.magnitude() < TURNED
            if until() if until else near:
                return
            yield np.append(approach(move, turn, fastest), gripper)

    def hold(self, steps: int, *, closed: bool) -> Actions:
        """Stay, so that the fingers open or close."""
        place, orientation = self.hand, self.orientation
        yield from self.go(lambda: place, orientation, closed=closed, steps=steps, until=lambda: False)
