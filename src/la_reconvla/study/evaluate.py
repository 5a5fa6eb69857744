"""Closed-loop evaluation: many policies on the same starts, one pool of workers, one line per episode on disk.

An interrupted run resumes: episodes in ``episodes.jsonl`` are not run again. Films are drawn afterwards
(`la_reconvla.study.films`) from what episodes leave in ``tracks/``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from la_reconvla import kinds, layout
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.data.starts import Start
from la_reconvla.episodes import EpisodeRecord, Label, append_episodes, read_episodes
from la_reconvla.robot import Quality
from la_reconvla.sim.machine import installed_version
from la_reconvla.sim.policies import Specification
from la_reconvla.sim.rollout import EnvSettings, Job, rollouts
from la_reconvla.sim.track import SUFFIX, Track
from la_reconvla.sim.wide_scenes import SCHEME
from la_reconvla.storage import claim

TRACKS_BYTES = 100_000_000  # of the tracks of one policy; 2,000 episodes of LIBERO-Spatial
TURN = 4  # starts that a policy does before the next has its turn, so that its weights are loaded once for all of them


@dataclass(frozen=True)
class Evaluation:
    """One policy to evaluate.

    Attributes:
        folder: where ``episodes.jsonl`` and ``videos/`` go.
        label: which policy it is, for its records.
        policy: what acts.
        episodes: use only this many starts, the first; None for all.
        films: keep what draws each episode again, up to `TRACKS_BYTES`.
        only: which starts it can do; the others are left out for it.
        instruction: what all starts say in place of their tasks' own words; None for those.
    """

    folder: Path
    label: Label
    policy: Specification
    episodes: int | None = None
    films: bool = False
    only: Callable[[Start], bool] = lambda start: True
    instruction: str | None = None

    def takes(self, starts: Sequence[Start]) -> list[Start]:
        """Those of `starts` that it is evaluated on."""
        taken = [start for start in starts[: self.episodes] if self.only(start)]
        if self.instruction is None:
            return taken
        return [replace(start, instruction=self.instruction) for start in taken]


def settings_for(
    backbone: BackboneConfig, image_size: int, quality: Quality, allow_any_mujoco: bool = False
) -> EnvSettings:
    """The environment that shows what `backbone` takes, rendered as the training data were."""
    return EnvSettings(
        image_size=image_size,
        wrist=backbone.wrist,
        proprio=backbone.proprio != "none",
        quality=quality,
        allow_any_mujoco=allow_any_mujoco,
    )


def evaluate(
    evaluations: Sequence[Evaluation],
    starts: Sequence[Start],
    settings: EnvSettings,
    workers: int,
    advance: Callable[[int, str], None] = lambda count, note: None,
    enough: Callable[[], bool] | None = None,
) -> None:
    """Run all episodes that are not on disk yet, or so many of them as are needed.

    Args:
        evaluations: the policies.
        starts: the initial states, the same for all of them.
        settings: what the environment shows.
        workers: processes, one simulator each.
        advance: told of every finished episode.
        enough: asked before the first episode and after each; True ends the others. With it episodes run in the order
            of `starts`, `TURN` of them by each policy in turn, not sorted by task.
    """
    ready = _jobs(evaluations, starts, settings, ordered=enough is not None)
    if enough is not None and enough():
        return
    ahead = None if enough is None else workers + TURN  # one slow episode must not let the others run on
    of_job = {job: evaluation for evaluation, job in ready}
    with closing(rollouts([job for _, job in ready], workers, ahead)) as finished:
        for job, record, track in finished:
            evaluation = of_job[job]
            if track is not None:
                record = _kept(record, track, evaluation.folder)
            append_episodes(evaluation.folder, [record])
            advance(1, f"{record.label.condition or record.label.floor}: {record.outcome}")
            if enough is not None and enough():
                return


def _jobs(
    evaluations: Sequence[Evaluation], starts: Sequence[Start], settings: EnvSettings, ordered: bool
) -> list[tuple[Evaluation, Job]]:
    """The episodes that are not on disk yet, in the order in which they begin; each folder is claimed for its policy.

    `ordered`: in the order of the starts, in turns; else by task, since another task means another simulator.
    """
    jobs: list[tuple[Evaluation, Job]] = []
    for e in evaluations:
        claim(e.folder / layout.EVALUATION, _identity(e, settings), functools.partial(_with_defaults, e, settings))
        jobs += [(e, Job(e.label, e.policy, start, settings, e.films)) for start in _missing(e, starts)]
    if ordered:
        turn = {start.id: number // TURN for number, start in enumerate(starts)}
        return sorted(jobs, key=lambda two: turn[two[1].start.id])
    return sorted(jobs, key=lambda two: (two[1].start.task, str(two[0].folder)))


def _kept(record: EpisodeRecord, track: Track, folder: Path) -> EpisodeRecord:
    """The record with its track, on the disk; without where `TRACKS_BYTES` are taken."""
    tracks = folder / layout.TRACKS
    if sum(path.stat().st_size for path in tracks.glob(f"*{SUFFIX}")) > TRACKS_BYTES:
        return record
    name = f"{layout.TRACKS}/{record.start.file_name}{SUFFIX}"
    track.save(folder / name)
    return replace(record, track=name)


def _identity(evaluation: Evaluation, settings: EnvSettings) -> dict[str, Any]:
    """What all episodes of one file have in common."""
    return {
        "schema": layout.SCHEMA,
        "label": kinds.to_json(evaluation.label),
        "policy": evaluation.policy.identity(),
        "settings": kinds.to_json(settings),
        "instruction": evaluation.instruction,
        "mujoco": installed_version("mujoco"),
        "placements": SCHEME,
    }


def _with_defaults(evaluation: Evaluation, settings: EnvSettings, held: dict[str, Any]) -> dict[str, Any]:
    """The content of an ``evaluation.json``, with defaults for fields that are newer than the file."""
    now = {"label": evaluation.label, "settings": settings}
    filled = {name: kinds.with_defaults(held.get(name), value) for name, value in now.items()}
    return {"instruction": None, **held, **filled}


def _missing(evaluation: Evaluation, starts: Sequence[Start]) -> list[Start]:
    done = {record.start.id for record in read_episodes(evaluation.folder)}
    return [start for start in evaluation.takes(starts) if start.id not in done]


def pending(evaluations: Sequence[Evaluation], starts: Sequence[Start]) -> int:
    """How many episodes `evaluate` would run."""
    return sum(len(_missing(evaluation, starts)) for evaluation in evaluations)
