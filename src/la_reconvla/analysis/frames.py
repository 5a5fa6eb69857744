"""Records of held-out frames, and those of one run under every view as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from la_reconvla import layout
from la_reconvla.analysis.attention_overlap import FrameOverlap
from la_reconvla.analysis.measures import OVERLAPS, MapKind, MapPart, MapPhase
from la_reconvla.episodes import View
from la_reconvla.storage import plain
from la_reconvla.typed_json import parse


@dataclass(frozen=True)
class FrameMap:
    """One map of a frame against the things of its instruction.

    Attributes:
        source: label of the saliency source.
        channel: whose attention it is made of (`la_reconvla.contracts.Features`).
        target: overlap with the thing to move.
        destination: overlap with the place to put it.
        aid: one minus the cosine with the map under the wrong instruction; None if there is only one instruction.
    """

    source: str
    channel: str
    target: FrameOverlap
    destination: FrameOverlap
    aid: float | None


@dataclass(frozen=True)
class Occlusion:
    """How far the actions move when a thing is hidden, and when a control of equal size is; None where not measured.

    See `la_reconvla.study.occlusion`.
    """

    shift: float | None
    control: float | None


@dataclass(frozen=True)
class FrameRecord:
    """What one policy did on one held-out frame under one view.

    Attributes:
        seed: training seed of the policy.
        task: number of the task.
        scene: initial scene of the episode; frames of one scene are nearly copies of each other.
        episode: its name.
        frame: control step.
        action_error: see `la_reconvla.study.heldout.UNIT`.
        phase: of the episode; None where instance masks are missing. Without boxes all that follows is missing too.
        mean_map: the mean map, which all arms have; of the true view only, as is all that follows.
        arm_map: the map that the arm's mask follows, if that is another.
        maps: overlap of each kind of map with each thing, five digits after the point.
        hidden: what hiding each thing does; empty on frames where it was not tried.
    """

    seed: int
    task: int
    scene: str
    episode: str
    frame: int
    action_error: float
    phase: MapPhase | None = None
    mean_map: FrameMap | None = None
    arm_map: FrameMap | None = None
    maps: Mapping[MapPart, Mapping[MapKind, FrameOverlap]] = field(default_factory=dict)
    hidden: Mapping[MapPart, Occlusion] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """``action_error``, ``aid``, or an overlap of the mean map with the target; None if it was not measured."""
        if metric == "action_error":
            return self.action_error
        if self.mean_map is None:
            return None
        return self.mean_map.aid if metric == "aid" else getattr(self.mean_map.target, metric)


FRAME_METRICS = (*OVERLAPS, "action_error", "aid")


@dataclass(frozen=True)
class HeldOut:
    """Records of one run on held-out frames.

    Attributes:
        weights: hash of the weights that were measured.
        views: the records of each view, of the same frames in the same order.
        boxes: identity of the boxes that the target was located by; None if instance masks say where it is.
    """

    weights: str
    views: Mapping[View, tuple[FrameRecord, ...]]
    boxes: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``held_out.json`` holds."""
        return {"schema": layout.SCHEMA, **plain(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> HeldOut:
        """What `to_json` gave; `where` names it in messages.

        Raises:
            UserError: it is of another version, or a field is missing or of another type.
        """
        return parse(cls, layout.require_schema(value, where), where)
