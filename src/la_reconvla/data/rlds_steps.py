"""OpenVLA's conventions for the steps of an episode in RLDS, each of them as a function of arrays.

They do what OpenVLA's ``bridge_orig_dataset_transform`` does (``prismatic/vla/datasets/rlds/oxe/transforms.py``), with
two differences: the first step is left out only where its action is all zeros, and a gripper that ends between open and
closed is rounded, where OpenVLA keeps the number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from la_reconvla.data.rlds_layout import Conventions

OPEN, CLOSED = 0.95, 0.05  # above and below, a gripper's action is that; between the two it is on its way
MOTIONS = 6  # numbers of an action that are differences of those of the state


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of an episode that are kept.

    Attributes:
        first: number of the first one in its record.
        actions: float32 [T a].
        state: float32 [T p]; None where there is none.
        between: actions of the gripper that were neither open nor closed.
    """

    first: int
    actions: Float32[np.ndarray, "T a"]
    state: Float32[np.ndarray, "T p"] | None
    between: int = 0


def kept(steps: Steps, conventions: Conventions) -> Steps:
    """What the conventions leave of an episode, in OpenVLA's order; it may have no steps.

    Args:
        steps: all of the record, at least one.
        conventions: which of these to apply; relabelling needs a state of six numbers or more.
    """
    first, actions, state = steps.first, steps.actions, steps.state
    between = 0
    if conventions.drop_first_no_op and not actions[0].any():
        first, actions, state = first + 1, actions[1:], None if state is None else state[1:]
    if conventions.binarise_gripper and len(actions):
        gripper = actions[:, -1]
        between = int(((gripper <= OPEN) & (gripper >= CLOSED)).sum())
        actions = np.concatenate([actions[:, :-1], binarised(gripper)[:, None]], axis=1)
    if conventions.relabel_from_states and state is not None:
        actions, state = relabelled(actions, state), state[:-1]
    return Steps(first, actions, state, between)


def binarised(gripper: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """1 where it opens (above `OPEN`), -1 where it closes (below `CLOSED`).

    A value between the two is on its way, and becomes what is reached after it; where nothing is, it is rounded.
    """
    decided = np.where(gripper > OPEN, 1, np.where(gripper < CLOSED, -1, 0))
    after = 1 if gripper[-1] > 0.5 else -1
    result = np.empty(len(gripper), np.float32)
    for step in reversed(range(len(gripper))):
        after = result[step] = decided[step] or after
    return result


def relabelled(actions: Float32[np.ndarray, "T a"], state: Float32[np.ndarray, "T p"]) -> Float32[np.ndarray, "T-1 a"]:
    """Actions whose six motions are what the robot did: the next state minus this one, which the last step lacks."""
    return np.concatenate([np.diff(state[:, :MOTIONS], axis=0), actions[:-1, MOTIONS:]], axis=1)
