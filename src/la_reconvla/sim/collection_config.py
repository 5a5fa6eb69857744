"""What a collection is to record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from la_reconvla import kinds
from la_reconvla.data.starts import PlacementKind, Split
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import Quality
from la_reconvla.sim.options import CollectOptions
from la_reconvla.sim.policies import Specification

TRAINING_STATES = 30  # of LIBERO's 50 official states per task; the last 20 stay for tests


@dataclass(frozen=True)
class CollectConfig(CollectOptions):
    """What to record: what a user chooses, and the rest.

    Attributes:
        split: which seeds wide placements are drawn from; what official states are counted to.
        noise_memory: correlation of the noise from one step to the next, an AR(1) process.
        official_states: how many official states, from number 0, may be used; the others stay for tests. Where more
            episodes are wanted, states are used again with other noise.
        learner: a policy that acts first in each episode, see `la_reconvla.sim.recording`; None for the expert alone.
    """

    split: Split = "train"
    noise_memory: float = 0.8
    official_states: int = TRAINING_STATES
    learner: Specification | None = None

    def __post_init__(self) -> None:
        for kind, literal in (("placement", PlacementKind), ("split", Split), ("quality", Quality)):
            if getattr(self, kind) not in get_args(literal):
                raise unknown(kind, str(getattr(self, kind)), get_args(literal))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"name each task once, and at least one, not {list(self.tasks)}")
        for kind in ("demos", "image_size", "frame_stride", "official_states"):
            if getattr(self, kind) < 1:
                raise UserError(f"{kind} must be at least 1, not {getattr(self, kind)}")
        if self.demos % self.scene_episodes:
            raise UserError(
                f"wide placements show each scene with two targets: ask for an even number, not {self.demos}"
            )
        if not (0 <= self.noise < 1 and 0 <= self.noise_memory < 1):
            raise UserError(f"noise and noise_memory must be in [0, 1), not {self.noise} and {self.noise_memory}")
        if not 0 <= self.mistakes <= 1 or (self.mistakes and self.learner):
            raise UserError(
                f"mistakes must be in [0, 1], not {self.mistakes}, and be 0 where a policy is corrected: it makes them"
            )
        if self.workers < 0:
            raise UserError(f"workers must not be negative: {self.workers}")

    @property
    def scene_episodes(self) -> int:
        """Episodes of one scene."""
        return 2 if self.placement == "wide" else 1

    def begins_with_a_mistake(self, scene: int) -> bool:
        """Whether scene number `scene` of a task is one of those; they are spread evenly."""
        return int((scene + 1) * self.mistakes) > int(scene * self.mistakes)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which episodes come out, apart from how many; what `collection.json` holds."""
        free = ("out", "workers", "demos", "correct", "learner")
        values = {name: value for name, value in kinds.to_json(self).items() if name not in free}
        return values | {"learner": self.learner and self.learner.identity()}
