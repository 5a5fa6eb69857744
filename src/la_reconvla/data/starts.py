"""Where an episode begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

PlacementKind = Literal["official", "wide"]
Split = Literal["train", "test"]


def object_kind(instance: str) -> str:
    """``akita_black_bowl_1`` -> ``akita_black_bowl``."""
    return instance.rsplit("_", 1)[0]


COUNTERFACTUAL = "_counterfactual"
"""How a suite's name ends whose starts show the base suite's states and ask for another thing."""


@dataclass(frozen=True, eq=False)
class Start:
    """One initial state of one task: everything that an episode needs to be repeated exactly.

    Attributes:
        suite: LIBERO suite, for example ``libero_spatial``.
        task: index of the task in its suite.
        placement: ``official`` (LIBERO's own initial states) or ``wide`` (ours, see `la_reconvla.sim.placements`).
        split: which seeds a wide placement was drawn from; official states are in a split only by agreement.
        index: number of this state within (task, placement, split); for official states LIBERO's own number.
        seed: given to the simulator before its hard reset; fixes the pose of the furniture.
        state: flattened MuJoCo state to set after the reset.
        instruction: what the robot is asked to do; true of `target` in this state.
        target: instance that must be moved, for example ``akita_black_bowl_1``.
        destination: instance (or fixture region) it must end up on or in.
    """

    suite: str
    task: int
    placement: PlacementKind
    split: Split
    index: int
    seed: int
    state: Float[np.ndarray, " s"]
    instruction: str
    target: str
    destination: str

    @property
    def id(self) -> str:
        """Name of this start, unique among all suites, tasks, placements and splits."""
        return f"{self.suite}/{self.task}/{self.placement}/{self.split}/{self.index}"
