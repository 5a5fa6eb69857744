"""Several policies on one start, side by side, as an animation: the command ``study film``.

Policies see what they were trained on. The pictures for people are drawn afterwards from the recorded states, larger
and in full quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from la_reconvla import layout
from la_reconvla.conditions import find_condition
from la_reconvla.data.starts import Start
from la_reconvla.drawing import captioned, write_gif
from la_reconvla.episodes import EpisodeRecord, Label
from la_reconvla.errors import UserError
from la_reconvla.progress import progress
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.machine import require_simulator
from la_reconvla.sim.policies import Scripted, Specification
from la_reconvla.sim.rollout import CONTROL_RATE, EnvSettings, run_episode
from la_reconvla.sim.track import EVERY, Track
from la_reconvla.study.evaluate import settings_for
from la_reconvla.study.films import pictures_of, shown_over
from la_reconvla.study.options import UNTRAINED, FilmOptions
from la_reconvla.study.runs import home_suite, learned_tasks, open_run, suite_of_run
from la_reconvla.study.starts import evaluation_starts

HOLD = 12  # frames for which the last picture of the longest episode stays
SPEED = 2  # times real time


@dataclass(frozen=True, eq=False)
class Actor:
    """One of those side by side.

    Attributes:
        name: over its pictures.
        policy: what acts.
        settings: what it sees.
        grid: patch grid of its attention; None for what has none to show.
        tasks: tasks of the suite that it has learned; None for what was not trained.
        trained_on: ids of its training starts.
    """

    name: str
    policy: Specification
    settings: EnvSettings
    grid: tuple[int, int] | None = None
    tasks: tuple[int, ...] | None = None
    trained_on: frozenset[str] = frozenset()


def film(runs: Sequence[str], out: Path, options: FilmOptions) -> list[EpisodeRecord]:
    """Roll `runs` out on one start and write their films side by side as a GIF; the records of their episodes.

    Args:
        runs: run folders, or ``expert``.
        out: a ``.gif`` file.
        options: which start, and how large.

    Raises:
        UserError: for a run or a start that is not there, or a start that one of them was trained on.
    """
    if out.suffix.lower() != ".gif":
        raise UserError(f"{out} is no name for a film: let it end in .gif")
    if not runs:
        raise UserError("name the runs to film, and 'expert' if the scripted expert is to be among them")
    require_simulator(allow_any_mujoco=options.allow_any_mujoco)
    trained = next((run for run in runs if run not in UNTRAINED), "expert")
    options = replace(options, suite=options.suite or suite_of_run(trained))
    actors = [_actor(run, options) for run in runs]
    start = _start(actors, options)
    strips, records = [], []
    with progress("Filming", total=len(actors), unit="episodes") as bar:
        for actor in actors:
            track = Track()
            with closing(actor.settings.build()) as env:
                records.append(run_episode(env, actor.policy.build(), start, track, Label(actor.name, None)))
            strips.append(_drawn(actor, start, track, records[-1], options))
            bar.advance(1, f"{actor.name}: {records[-1].outcome}")
    told = f'"{start.instruction}"'
    write_gif(out, [captioned(row, told) for row in side_by_side(strips)], fps=SPEED * CONTROL_RATE / EVERY)
    return records


def side_by_side(strips: Sequence[Sequence[UInt8[np.ndarray, "H W 3"]]]) -> list[UInt8[np.ndarray, "H S 3"]]:
    """Films beside each other, a white line between them; one that has ended shows its last picture."""
    length = max(len(strip) for strip in strips) + HOLD
    gap = np.full((len(strips[0][0]), 4, 3), 255, np.uint8)

    def row(i: int) -> np.ndarray:
        shown = [strip[min(i, len(strip) - 1)] for strip in strips]
        return np.concatenate([part for picture in shown for part in (gap, picture)][1:], axis=1)

    return [row(i) for i in range(length)]


def _actor(run: str, options: FilmOptions) -> Actor:
    if run == "expert":
        settings = EnvSettings(quality="fast", allow_any_mujoco=options.allow_any_mujoco)
        return Actor("scripted expert", Scripted(), settings)
    _, config, policy = open_run(run, "true", "cpu")
    settings = settings_for(config.backbone, config.image_size, config.quality, options.allow_any_mujoco)
    return Actor(
        f"{config.condition}: {_arm(config.condition)}",
        policy,
        settings,
        config.backbone.grid,
        learned_tasks(run, config, options.suite or home_suite(config)) if options.task is None else (options.task,),
        frozenset(config.seen),
    )


def _arm(id: str) -> str:
    """An arm's name for people; nothing more than its id for one that this program does not know."""
    return arm.name if (arm := find_condition(id)) else "an arm of one's own"


def _start(actors: Sequence[Actor], options: FilmOptions) -> Start:
    """The start that is asked for."""
    learned = [actor.tasks for actor in actors if actor.tasks is not None]
    task = options.task if options.task is not None else (learned[0][0] if learned else 0)
    known = frozenset().union(*(actor.trained_on for actor in actors))
    starts = evaluation_starts(
        options.suite or home_suite(None),
        [task],
        options.placement,
        options.episode + 1,
        trained_on=known,
        cache=layout.RUNS / layout.PLACEMENTS,
        allow_any_mujoco=options.allow_any_mujoco,
    )
    return starts[options.episode]


def _drawn(
    actor: Actor, start: Start, track: Track, record: EpisodeRecord, options: FilmOptions
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of an episode, drawn again from its states; the last one says how it ended."""
    with LiberoEnv(image_size=options.size, allow_any_mujoco=options.allow_any_mujoco) as env:
        env.reset(start)
        pictures = shown_over(list(pictures_of(env, track)), track, actor.grid)
    *others, last = pictures
    return [*(captioned(each, actor.name) for each in others), captioned(last, f"{actor.name}: {record.outcome}")]
