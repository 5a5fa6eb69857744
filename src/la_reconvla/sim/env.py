"""A simulator behind one protocol, and what can be rolled out in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start
from la_reconvla.robot import LIBERO_ACTIONS

ACTION_DIM = len(LIBERO_ACTIONS)
GRIPPER_OPEN, GRIPPER_CLOSED = -1.0, 1.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `Env.step` reports of the control steps that it really took (it stops at success or at the step limit)."""

    steps: int
    success: bool
    done: bool


@dataclass(frozen=True, eq=False)
class Pose:
    """A body's pose in the world: position in metres, orientation as a quaternion in xyzw order."""

    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


@runtime_checkable
class Env(Protocol):
    """A simulator that renders only when it is asked to."""

    def reset(self, start: Start) -> None:
        """Hard reset to `start`, objects settled."""
        ...

    def step(self, chunk: Float[np.ndarray, "c 7"]) -> Outcome:
        """Execute the actions of `chunk` in order until success, the step limit or the end of the chunk."""
        ...

    def observe(self) -> Observation:
        """Render the cameras now."""
        ...

    def masks(self, names: tuple[str, ...]) -> dict[str, Bool[np.ndarray, "H W"]]:
        """Where each named instance is visible in the image that `observe` would return now."""
        ...

    def poses(self) -> dict[str, Pose]:
        """Privileged: poses of all instances and of the gripper (``gripper``)."""
        ...

    def close(self) -> None: ...


class RolloutPolicy(Protocol):
    """Anything that can be rolled out: a trained policy, the scripted expert, a floor."""

    name: str

    def reset(self, start: Start, env: Env) -> None:
        """A new episode begins. Only privileged policies (the expert, blind replay) may look at `start` or `env`."""
        ...

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """The next chunk of actions. `observation` is None when `sees` is False, so that nothing is rendered."""
        ...

    @property
    def sees(self) -> bool:
        """Whether `act` needs an observation."""
        ...
