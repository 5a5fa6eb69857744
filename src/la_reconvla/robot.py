"""What a robot's data look like, as values that are saved with the policy: its actions, its state, its pictures.

LIBERO's robot is the default everywhere, so that files of before, which say nothing, mean that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from la_reconvla.errors import UserError, unknown

ActionKind = Literal["continuous", "binary"]
Proprioception = Literal["none", "gripper", "all"]  # nothing, the width between the fingers (m), or all eight:
PROPRIO_WIDTH: dict[Proprioception, int] = {"none": 0, "gripper": 1, "all": 8}  # position, axis-angle, two fingers
Quality = Literal["official", "fast"]  # of rendered pictures; `fast`: no reflections, shadows or multisampling


@dataclass(frozen=True)
class ActionSpace:
    """What each number of an action is.

    Attributes:
        names: of the dimensions, each once.
        kinds: ``continuous``, in any unit, or ``binary``: -1 or 1, for example a gripper that opens or closes.

    Raises:
        UserError: if there is none, a name occurs twice or a kind is unknown; if not every name has a kind.
    """

    names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names) or len(self.names) != len(self.kinds):
            raise UserError(
                f"an action space needs a kind for each of its names, and each name once: {', '.join(self.names)} have "
                f"{len(self.kinds)} kinds"
            )
        for kind in self.kinds:
            if kind not in get_args(ActionKind):
                raise unknown("kind of action", kind, get_args(ActionKind))

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return ", ".join(f"{name} ({kind})" for name, kind in zip(self.names, self.kinds, strict=True))

    @property
    def binary(self) -> list[int]:
        """Places of the binary dimensions."""
        return [place for place, kind in enumerate(self.kinds) if kind == "binary"]

    @property
    def motions(self) -> list[int]:
        """Places of the continuous dimensions, all places where there is none: what an action error is taken of.

        A gripper is left out, as a late or early grasp would drown everything else.
        """
        return [place for place, kind in enumerate(self.kinds) if kind == "continuous"] or list(range(len(self)))


# robosuite's OSC_POSE: translations and rotations as deltas in [-1, 1], then the gripper: -1 opens, 1 closes.
LIBERO_ACTIONS = ActionSpace(("x", "y", "z", "rx", "ry", "rz", "gripper"), ("continuous",) * 6 + ("binary",))
