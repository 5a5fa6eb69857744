"""Summaries of policies: success, stages, attention overlap, action error and occlusion, with their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import get_args

import numpy as np

from la_reconvla.analysis.attention_overlap import FrameOverlap
from la_reconvla.analysis.bootstrap import mean_interval
from la_reconvla.analysis.counterfactual import counterfactual
from la_reconvla.analysis.evidence import Evidence, Unit, by_scene, by_start, different
from la_reconvla.analysis.frames import FrameRecord
from la_reconvla.analysis.intervals import wilson
from la_reconvla.analysis.measures import (
    OVERLAPS,
    STAGES,
    UNBOUNDED,
    Count,
    Effect,
    Following,
    GroundingMeans,
    MapKind,
    MapPart,
    MapPhase,
    MapRow,
    Measure,
    Overlap,
    Rate,
    Stages,
    Tally,
)
from la_reconvla.analysis.results import Arm, CellResult, ConditionResult
from la_reconvla.episodes import WAYS, EpisodeRecord

Episodes = Sequence[EpisodeRecord]
Frames = Sequence[FrameRecord]


def condition_summary(arm: Arm, evidence: Evidence) -> ConditionResult:
    """One arm: a cell for each seed, and success, stages, grounding and action error over all of them."""
    episodes, frames = evidence.episodes, evidence.frames
    seeds = {r.label.seed for r in episodes if r.label.seed is not None} | {r.seed for r in frames}
    return ConditionResult(
        **{f.name: getattr(arm, f.name) for f in fields(Arm)},
        cells=tuple(_cell(seed, evidence) for seed in sorted(seeds | set(evidence.train))),
        tsr=rate(episodes),
        aos=_overlap(frames),
        stages=stages(episodes),
        grounding=_on_target(frames),
        destination=_grounding([(r, r.mean_map.destination) for r in frames if r.mean_map], _channels(frames)),
        aid=measure_frames(frames, "aid"),
        action_error=measure_frames(frames, "action_error"),
        maps=tuple(_maps(frames)),
        causal=tuple(_effects(frames)),
        counterfactual=counterfactual(episodes),
        following=following(episodes),
    )


def _cell(seed: int, evidence: Evidence) -> CellResult:
    episodes = [r for r in evidence.episodes if r.label.seed == seed]
    frames = [r for r in evidence.frames if r.seed == seed]
    return CellResult(
        seed=seed,
        train=dict(evidence.train.get(seed, {})),
        tsr=_tally(episodes),
        stages=stages(episodes),
        grounding=_on_target(frames),
        action_error=measure_frames(frames, "action_error"),
        metrics=evidence.metrics.get(seed),
        watched=evidence.watched.get(seed, ()),
    )


# ---------------------------------------------------------------- episodes


def rate(episodes: Episodes) -> Rate | None:
    """Success rate with its interval; None without episodes.

    Wilson's interval takes episodes for independent. Seeds share their starts and differ in how well they learnt, so
    with more than one the interval is the hull of Wilson's and that of a mean over seeds.
    """
    return _share(by_start(episodes, "tsr"))


def following(episodes: Episodes) -> Following | None:
    """How often the first thing touched, held or moved was asked for, intervals as in `rate`; None if none was."""
    shares = {way: _share(by_start(episodes, way)) for way in WAYS}
    return Following(**shares) if any(shares.values()) else None


def _share(values: Mapping[Unit, float]) -> Rate | None:
    if not values:
        return None
    successes, n = int(sum(values.values())), len(values)
    interval, seeds = wilson(successes, n), [key[0] for key in values]
    if len(set(seeds)) > 1:
        tasks = [key[1] for key in values]
        interval = interval.hull(mean_interval(np.array(list(values.values())), seeds, tasks))
    return Rate(successes / n, max(interval.low, 0.0), min(interval.high, 1.0), successes, n)


def _tally(episodes: Episodes) -> Tally | None:
    by_task: dict[str, list[float]] = {}
    for (_, task, _), success in by_start(episodes, "tsr").items():
        by_task.setdefault(task, []).append(success)
    counts = {task: Count(int(sum(values)), len(values)) for task, values in sorted(by_task.items())}
    total = Tally(counts, sum(c.successes for c in counts.values()), sum(c.episodes for c in counts.values()))
    return total if counts else None


def stages(episodes: Episodes) -> Stages | None:
    """Share of episodes that reached each stage; None if none was recorded."""
    values = {name: by_start(episodes, name) for name in (*STAGES, "smallest_distance")}
    means = {name: _mean(found) for name, found in values.items()}
    return Stages(**means, episodes=len(values["approached"])) if any(values.values()) else None


# ---------------------------------------------------------------- frames


def measure(values: Mapping[Unit, float], bounds: tuple[float, float] = (0.0, 1.0)) -> Measure | None:
    """The mean over starts or scenes with its interval, within the bounds of one value; None without values."""
    if not values:
        return None
    array = np.array(list(values.values()))
    interval = mean_interval(array, [key[0] for key in values], [key[1] for key in values]).within(*bounds)
    return Measure(float(array.mean()), interval.low, interval.high, different(values))


def measure_frames(frames: Frames, metric: str) -> Measure | None:
    """`measure` of a metric of held-out frames (`la_reconvla.analysis.frames.FrameRecord.value`)."""
    bounds = (0.0, math.inf if metric in UNBOUNDED else 1.0)
    return measure(by_scene((frame, frame.value(metric)) for frame in frames), bounds)


def _mean(values: Mapping[Unit, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _overlap(frames: Frames) -> Overlap | None:
    found, means = measure_frames(frames, "aos"), _on_target(frames)
    if found is None or means is None or means.aos_chance is None or means.aos_ceiling is None:
        return None
    return Overlap(found.mean, found.low, found.high, means.aos_chance, means.aos_ceiling, found.n)


def _on_target(frames: Frames) -> GroundingMeans | None:
    return _grounding([(r, r.mean_map.target) for r in frames if r.mean_map], _channels(frames))


def _channels(frames: Frames) -> str | None:
    found = {r.mean_map.channel for r in frames if r.mean_map is not None}
    return " and ".join(sorted(found)) or None


def _grounding(
    measured: Sequence[tuple[FrameRecord, FrameOverlap]], channel: str | None = None
) -> GroundingMeans | None:
    """Means over the frames that show the instance; None if nothing was measured."""
    if not measured:
        return None
    visible = [(frame, overlap) for frame, overlap in measured if overlap.visible]
    means = {
        name: _mean(by_scene((frame, getattr(overlap, name)) for frame, overlap in visible))
        for name in ("patches", *OVERLAPS)
    }
    return GroundingMeans(frames=len(visible), excluded=len(measured) - len(visible), **means, channel=channel)


def _maps(frames: Frames) -> Iterator[MapRow]:
    """Overlap of each kind of map with each thing in each phase; what no frame shows is left out."""
    parts: tuple[MapPart, ...] = get_args(MapPart)
    phases: tuple[MapPhase, ...] = get_args(MapPhase)
    kinds: tuple[MapKind, ...] = get_args(MapKind)
    for part, phase, kind in itertools.product(parts, phases, kinds):
        of_phase = (frame for frame in frames if phase in ("all", frame.phase))
        means = _grounding([(f, f.maps[part][kind]) for f in of_phase if kind in f.maps.get(part, ())])
        if means is not None and means.frames:
            yield MapRow(part, phase, kind, means)


def _effects(frames: Frames) -> Iterator[Effect]:
    """How far the actions move when a thing is hidden, and how much farther than when as much is hidden elsewhere."""

    def hidden(part: MapPart) -> Iterable[tuple[FrameRecord, float, float]]:
        """Frames in which both the thing and its control were hidden."""
        for frame in frames:
            found = frame.hidden.get(part)
            if found is not None and found.shift is not None and found.control is not None:
                yield frame, found.shift, found.control

    for part in get_args(MapPart):
        if shift := measure(by_scene((frame, value) for frame, value, _ in hidden(part))):
            over = measure(by_scene((frame, value - control) for frame, value, control in hidden(part)), (-1.0, 1.0))
            yield Effect(part, shift, over)
    controls = ((f, f.hidden["target"].control) for f in frames if "target" in f.hidden)
    if shift := measure(by_scene(controls)):
        yield Effect("control", shift)
