"""What was measured of each policy, and one value of it for each start or scene, as comparisons want it.

Episodes are paired by start. Held-out frames are averaged to scenes before anything is compared, because frames of one
scene are nearly copies of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from la_reconvla.analysis.frames import FrameRecord
from la_reconvla.analysis.leakage import wide_scene
from la_reconvla.analysis.measures import EPISODE_METRICS, Watched
from la_reconvla.analysis.results import FloorId
from la_reconvla.episodes import EpisodeRecord
from la_reconvla.errors import UserError


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one policy, over all its seeds.

    Attributes:
        episodes: rollouts.
        frames: held-out frames.
        train: facts of each seed's training.
        metrics: path of each seed's training curves, relative to the study.
        watched: how each seed's maps changed in training.
    """

    episodes: Sequence[EpisodeRecord] = ()
    frames: Sequence[FrameRecord] = ()
    train: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    metrics: Mapping[int, str] = field(default_factory=dict)
    watched: Mapping[int, tuple[Watched, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class FloorEvidence:
    """Everything measured of one floor. `condition`: the arm whose policy it is, None if it is none's."""

    id: FloorId
    condition: str | None = None
    episodes: Sequence[EpisodeRecord] = ()
    frames: Sequence[FrameRecord] = ()


@dataclass(frozen=True)
class OtherStartsEvidence:
    """Episodes of one policy on other starts than the study's own.

    Attributes:
        placement: kind of starts.
        suite: LIBERO suite, empty if it is the study's own.
        change: what was changed in it, empty if nothing.
        condition: arm, None for references and floors that are no arm's.
        floor: floor that it is, None for a policy as trained.
        label: the policy, for people.
        episodes: records, seeds of one policy together.
        wordings: the kind of each instruction, where the suite reworded them.
    """

    placement: str
    label: str
    episodes: Sequence[EpisodeRecord]
    suite: str = ""
    change: str = ""
    condition: str | None = None
    floor: str | None = None
    wordings: Mapping[str, str] = field(default_factory=dict)


Unit = tuple[int | None, str, str]
"""Training seed, task, and start of an episode or scene of a frame."""


def by_start(episodes: Iterable[EpisodeRecord], metric: str) -> dict[Unit, float]:
    """One value of `metric` for each (seed, task, start) of which it is known, sorted by start within seed and task.

    That is the order that the bootstrap over starts wants.

    Raises:
        UserError: one episode is recorded twice.
    """
    known = [(record, value) for record in episodes if (value := record.value(metric)) is not None]
    known.sort(key=lambda two: two[0].unit_text)
    values = {record.unit: value for record, value in known}
    if len(values) < len(known):
        twice = next(one.unit for (one, _), (other, _) in itertools.pairwise(known) if one.unit == other.unit)
        raise UserError(f"episode (seed, task, start) = {twice} is recorded twice: remove one line from its episodes")
    return values


def by_scene(frames: Iterable[tuple[FrameRecord, float | None]]) -> dict[Unit, float]:
    """The mean of each (seed, task, scene) over its frames with a value, sorted like `by_start`."""
    values: dict[Unit, list[float]] = {}
    for record, value in frames:
        if value is not None:
            values.setdefault((record.seed, str(record.task), record.scene), []).append(float(value))
    return {key: float(np.mean(one)) for key, one in sorted(values.items(), key=lambda item: str(item[0]))}


def by_unit(evidence: Evidence | FloorEvidence, metric: str) -> dict[Unit, float]:
    """One value of `metric` for each start, of a metric of frames for each scene; errors as in `by_start`."""
    if metric in EPISODE_METRICS:
        return by_start(evidence.episodes, metric)
    return by_scene((frame, frame.value(metric)) for frame in evidence.frames)


def scene_of(start: str) -> str:
    """The scene of a start, by the start's id: wide ones share theirs with their partner."""
    return (wide_scene(start) if start.count("/") == 4 else None) or start


def different(keys: Iterable[Unit]) -> int:
    """How many different starts or scenes there are: seeds meet the same ones."""
    return len({key[1:] for key in keys})
