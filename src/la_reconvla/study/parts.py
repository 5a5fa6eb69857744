"""What a recorded frame is about: the phase of its episode, and the things that maps are measured against.

Both are read from what a demonstration file holds, so that any study can be measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from la_reconvla.analysis.measures import MapPart, MapPhase
from la_reconvla.data.boxes import Annotator, Boxes, box_masks, box_of
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.instances import Part, instance_numbers, parts_of
from la_reconvla.data.samples import Samples, patch_coverage
from la_reconvla.data.starts import object_kind

PARTS: tuple[MapPart, ...] = get_args(MapPart)
OVER = 0.06  # the thing is over its destination when the hand is this near to where it lets go (m, horizontally)


def phases(episode: Episode) -> list[MapPhase]:
    """The phase of each control step, T of them, from the gripper's commands and the hand's positions.

    The thing is held while the gripper is told to close, in the last such stretch of the episode; what comes before is
    ``reach``. It is over its destination once the hand is within `OVER` of where it will let go; from there on it is
    ``place``, in between ``carry``. An episode in which the gripper never closes is ``reach`` throughout. Of an episode
    with several parts each has phases of its own, and one that moves nothing but furniture is ``reach``.
    """
    hand, whole = episode.proprio()[:, :2], [Part(0, len(episode.actions), "", "a place")]
    return [
        phase
        for part in parts_of(episode) or whole
        for phase in _phases(episode.actions[part.begin : part.end, -1] > 0, hand[part.begin : part.end], part)
    ]


def _phases(closed: Bool[np.ndarray, " s"], hand: Float[np.ndarray, "s 2"], part: Part) -> list[MapPhase]:
    """Those of one part, from whether the gripper is told to close, and where the hand is (m)."""
    found = np.full(len(closed), "reach", dtype=object)
    if not closed.any() or part.target == part.destination:
        return found.tolist()
    last = int(np.flatnonzero(closed)[-1])
    opened = np.flatnonzero(~closed[:last])
    first = int(opened[-1]) + 1 if opened.size else 0
    near = np.linalg.norm(hand - hand[last], axis=1) < OVER
    away = np.flatnonzero(~near[first : last + 1])
    over = first + int(away[-1]) + 1 if away.size else first
    found[first:over], found[over:] = "carry", "place"
    return found.tolist()


def distractor(episode: Episode, others: Sequence[Episode]) -> str | None:
    """What could be taken for the target: its twin, else what another instruction asks for.

    That is one of the same scene, if one was recorded, else any with a target here too.

    Args:
        episode: the demonstration.
        others: demonstrations in which that other instruction may occur.

    Returns:
        Name of the instance, None if there is none or it is not known.
    """
    if episode.target is None:
        return None
    wanted = {episode.target, *(target for _, target, _ in episode.parts)}
    kind = object_kind(episode.target)
    twins = [name for name in episode.instance_names if name not in wanted and object_kind(name) == kind]
    asked = [other for other in others if other.target in episode.instance_names and other.target not in wanted]
    here = [other for other in asked if other.scene == episode.scene]
    return (twins or sorted(str(other.target) for other in here or asked) or [None])[0]


def boxes_beside(demonstrations: Demonstrations, gaze: str) -> Boxes | None:
    """The file of boxes that says where targets are, for demonstrations without instance maps.

    Args:
        demonstrations: to be measured.
        gaze: ``masks``, or a file, as `la_reconvla.study.presets.StudyConfig.gaze`.

    Returns:
        None if maps say it, or nothing does.

    Raises:
        UserError: the file cannot be read, or has no line of one of the episodes.
    """
    if gaze == "masks" or demonstrations.episodes[0].instance_names:
        return None
    boxes = Boxes(Path(gaze))
    for episode in demonstrations.episodes:
        boxes.unfilled(episode)
    return boxes


def part_masks(
    samples: Samples, indices: Int64[np.ndarray, " b"], boxes: Annotator | None = None
) -> Bool[np.ndarray, "b 3 H W"]:
    """Where the target, the destination and the distractor (`PARTS`) show; nowhere if there is none.

    Args:
        samples: of which.
        indices: numbers of samples.
        boxes: say where targets are in the place of instance maps; then the other parts show nowhere.

    Returns:
        Masks of the recorded pictures or, from boxes, of the samples' own, H and W pixels.

    Raises:
        UserError: the recording has no instance maps, and there are no boxes of it.
    """
    size = samples.demonstrations.image_size if boxes is None else samples.image_size
    result = np.zeros((len(indices), len(PARTS), size, size), dtype=bool)
    places = [samples.origin(int(index)) for index in indices]
    for episode in {episode.name: episode for episode, _ in places}.values():
        here = [row for row, (other, _) in enumerate(places) if other is episode]
        frames = [places[row][1] // episode.frame_stride for row in here]
        if boxes is not None:
            result[here, 0] = box_masks(samples.squared(boxes.unfilled(episode)[frames, :4], episode), size)
            continue
        maps = episode.instances()[frames]
        rival = distractor(episode, samples.demonstrations.episodes)
        for column, name in enumerate((*PARTS[:2], rival)):
            if name is not None:
                result[here, column] = maps == instance_numbers(episode, name)[frames][:, None, None]
    return result


def part_patches(masks: Bool[np.ndarray, "b 3 H W"], grid: tuple[int, int]) -> Float32[np.ndarray, "b 3 n"]:
    """Share of each patch on each of `PARTS`; n = rows x columns of `grid`."""
    return np.stack([patch_coverage(masks[:, column], grid) for column in range(len(PARTS))], axis=1)


def part_boxes(masks: Bool[np.ndarray, "b 3 H W"]) -> Float32[np.ndarray, "b 3 4"]:
    """The box of each of `PARTS` as `la_reconvla.data.boxes` has it; NaN where it is not to be seen."""
    return np.stack([box_of(masks[:, column]) for column in range(len(PARTS))], axis=1)
