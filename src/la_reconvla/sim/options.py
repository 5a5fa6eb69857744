"""The options of the commands data collect and data scenes. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from la_reconvla.data.starts import PlacementKind
from la_reconvla.robot import Quality


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Which episodes are recorded.

    Attributes:
        suite: LIBERO suite.
        tasks: indices of its tasks.
        demos: successful episodes per task; an even number for wide placements.
        placement: LIBERO's own initial states, or wide ones (objects moved, two things to ask for in each scene).
        noise: standard deviation of what is added to the six motions executed; the labels stay clean.
        mistakes: share of the scenes in which the expert first makes a mistake that is not recorded: it grasps beside
            the thing or lets it go beside its destination. What is recorded shows how to go on from there.
        seed: of the noise.
        correct: a run, or base: its policy acts first, for up to 120 steps of each episode, then the expert takes over
            and only that is recorded: how to go on from what the policy has done. In wide scenes of their own.
    """

    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = (0, 1, 2)
    demos: int = 50
    placement: PlacementKind = "official"
    noise: float = 0.1
    mistakes: float = 0.0
    seed: int = 0
    correct: Annotated[str | None, arg(help_behavior_hint="(optional)")] = None


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """What is recorded of each step.

    Attributes:
        quality: render quality; training and evaluation refuse to mix them.
        image_size: rows and columns of the frames.
        frame_stride: control steps between frames; 1 is LIBERO's own layout.
        wrist: also record the wrist camera.
        maps: also record which instance each pixel shows; without, a third more episodes per minute. Arms that are
            given the target's place and all measures of attention need them, learning to act does not.
    """

    quality: Quality = "official"
    image_size: int = 128
    frame_stride: int = 1
    wrist: bool = True
    maps: bool = True


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """Where a collection goes, and how it is made.

    Attributes:
        out: folder to write to; a run that was interrupted goes on in it, and a finished one grows in it.
        workers: processes; 0 takes as many as cores and memory allow. Does not change what is recorded.
        allow_any_mujoco: record with a MuJoCo whose physics is known to differ.
    """

    out: Path
    workers: int = 0
    allow_any_mujoco: bool = False


@dataclass(frozen=True, kw_only=True)
class CollectOptions(RecordingOptions, EpisodeOptions, FrameOptions):
    """What a user chooses of a collection."""


@dataclass(frozen=True)
class ScenesOptions:
    """What a user chooses of a folder of scenes.

    Attributes:
        out: folder to write to.
        scenes: training scenes in all arenas together; a fifth as many are rendered for tests.
        image_size: rows and columns of the pictures.
        workers: processes.
        seed: of the arrangements.
    """

    out: Path
    scenes: int = 8000
    image_size: int = 112
    workers: int = 1
    seed: int = 0
