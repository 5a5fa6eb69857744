"""The options of the commands data collect and data scenes. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import arg

from la_reconvla.data.starts import PlacementKind
from la_reconvla.robot import Quality

T = TypeVar("T")
IfGiven = Annotated[T | None, arg(help_behavior_hint="(optional)")]


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Which episodes are recorded.

    Attributes:
        suite: LIBERO suite.
        tasks: indices of its tasks.
        demos: successful episodes per task; even for wide placements.
        placement: official (LIBERO's own initial states) or wide (objects moved, two instructions per scene).
        noise: standard deviation of noise on the six executed motions; labels stay clean.
        mistakes: share of scenes in which the expert first makes an unrecorded mistake: it misses the object or drops
            it beside its destination. Only the recovery is recorded.
        seed: random seed of the noise.
        correct: a run, or base. Its policy acts for up to 120 steps, then the expert takes over; only the expert's
            part is recorded. These episodes have wide scenes of their own.
    """

    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = (0, 1, 2)
    demos: int = 50
    placement: PlacementKind = "official"
    noise: float = 0.1
    mistakes: float = 0.0
    seed: int = 0
    correct: IfGiven[str] = None


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """What is recorded of each step.

    Attributes:
        quality: render quality; training and evaluation refuse to mix them.
        image_size: height and width of the frames in pixels.
        frame_stride: control steps between frames; 1 is LIBERO's own layout.
        wrist: also record the wrist camera.
        maps: also record instance segmentation. Arms that use the target's place and all measures of attention need
            it; training the action loss does not. Without it, a third more episodes per minute.
    """

    quality: Quality = "official"
    image_size: int = 128
    frame_stride: int = 1
    wrist: bool = True
    maps: bool = True


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How recordings are drawn again.

    Attributes:
        image_size: height and width of the frames in pixels; the recordings' own by default.
        quality: render quality; the recordings' own by default.
        frame_stride: control steps between frames; the recordings' own by default.
        wrist: also draw the wrist camera.
        maps: also draw instance segmentation.
        workers: processes; 0 takes as many as cores and memory allow.
        allow_any_mujoco: accept a MuJoCo version whose pictures differ.
    """

    image_size: IfGiven[int] = None
    quality: IfGiven[Quality] = None
    frame_stride: IfGiven[int] = None
    wrist: bool = True
    maps: bool = True
    workers: int = 0
    allow_any_mujoco: bool = False


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """Where a collection goes, and how it is made.

    Attributes:
        out: folder to write to; an interrupted collection resumes in it, a finished one can grow.
        workers: processes; 0 takes as many as cores and memory allow. The recordings do not depend on it.
        allow_any_mujoco: accept a MuJoCo version whose physics differs.
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
        scenes: training scenes over all arenas; a fifth as many are rendered for tests.
        image_size: height and width of the images in pixels.
        workers: processes.
        seed: random seed of the arrangements.
    """

    out: Path
    scenes: int = 8000
    image_size: int = 112
    workers: int = 1
    seed: int = 0
