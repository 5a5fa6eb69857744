"""What a robot's data look like, as values that are saved with the policy: its actions, its state, its pictures.

LIBERO's robot is the default everywhere, so that files of before, which say nothing, mean that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32

from la_reconvla.errors import UserError, unknown

Orientation = Literal["upright", "mirrored", "upside_down"]
"""How pictures stand: as the world; left and right exchanged, as LIBERO's public ones; or as MuJoCo stores them."""
Fit = Literal["squeeze", "pad"]  # what becomes of pictures that are not square: squeezed, or black bars added
ActionKind = Literal["continuous", "binary"]
StateChoice = Literal["none", "gripper", "all"]  # nothing, LIBERO's width between fingers (m), the whole
Proprioception = StateChoice | int  # a number: another robot's whole state, so wide
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
LIBERO_CAMERAS = ("agentview", "eye_in_hand")


def proprio_width(kind: Proprioception) -> int:
    """Numbers of the robot's state that a backbone takes; LIBERO's whole state: position, axis-angle, two fingers."""
    return kind if isinstance(kind, int) else {"none": 0, "gripper": 1, "all": 8}[kind]


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each number of the state in the training data; 1 where it never changes."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, states: Float[np.ndarray, "N p"]) -> Standard:
        """That of these states."""
        mean, deviation = states.mean(0, dtype=np.float64), states.std(0, dtype=np.float64)
        still = deviation <= 1e-6 * (1 + np.abs(mean))
        return cls(tuple(mean.tolist()), tuple(np.where(still, 1.0, deviation).tolist()))

    def __call__(self, states: Float[np.ndarray, "... p"]) -> Float32[np.ndarray, "... p"]:
        """The states with zero mean and unit variance in the training data."""
        return ((states - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)


@dataclass(frozen=True)
class Inputs:
    """What a policy is given of a robot's data, and how that is prepared: in acting as in training.

    Attributes:
        cameras: names; the first is the main one, which is masked and reconstructed, the second the one that a backbone
            with ``wrist`` takes beside it.
        orientation: how the pictures stand.
        fit: what becomes of pictures that are not square.
        standard: of the state, where it is another robot's whole state.
    """

    cameras: tuple[str, ...] = LIBERO_CAMERAS
    orientation: Orientation = "mirrored"
    fit: Fit = "squeeze"
    standard: Standard | None = None


LIBERO_INPUTS = Inputs()
