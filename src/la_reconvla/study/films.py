"""Films of rollouts, drawn after the run from the states that episodes left: none slows the run down.

Pictures for people: 256 pixels a side, in the render quality that the policies saw. Where the policy looked, where the
target is, gripper, distance and stages are kept beside each film (`la_reconvla.analysis.film_data`), for the report's
player.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from la_reconvla import layout
from la_reconvla.analysis.choosing import Chosen, choose
from la_reconvla.analysis.film_data import FilmData, Patch, encoded
from la_reconvla.analysis.results import Video
from la_reconvla.data.starts import Start
from la_reconvla.drawing import overlay, write_video
from la_reconvla.episodes import EpisodeRecord, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.execution.jobs import Files, Job, Needs, nothing
from la_reconvla.progress import progress
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.rollout import CONTROL_RATE, EnvSettings, StageTracker, kept_env
from la_reconvla.sim.track import EVERY, Track
from la_reconvla.storage import sha256_of, write_json
from la_reconvla.text_table import say

SIZE = 256
STARTS = 24  # in a study's report
OF_EACH = 2  # videos of either outcome that `eval` leaves, beside the first start of each task


@dataclass(frozen=True, eq=False)
class Cast:
    """Who is filmed: an arm's folder of episodes, their records, and the patch grid of its attention."""

    arm: str
    folder: Path
    records: Sequence[EpisodeRecord]
    grid: tuple[int, int] | None

    @property
    def tracks(self) -> dict[str, EpisodeRecord]:
        """Episodes that can be drawn, by their start."""
        return {r.start.id: r for r in self.records if r.track is not None and (self.folder / r.track).is_file()}


@dataclass(frozen=True, eq=False)
class Drawn:
    """An episode's pictures, where the target is in them, its distance (m) and the gripper's opening (m)."""

    pictures: list[UInt8[np.ndarray, "S S 3"]]
    targets: list[Bool[np.ndarray, "S S"]]
    distance: list[float | None]
    opening: list[float]


def pictures_of(env: LiberoEnv, track: Track) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """The pictures of a track; `env` was reset to its start, and is left in the last of its states.

    MuJoCo renders poses of before its last physics step (2 ms) while it runs; here they are those of the state.
    """
    for state in track.states:
        env.set_state(state)
        yield env.observe().image


def redrawn(env: LiberoEnv, start: Start, track: Track) -> Drawn:
    """An episode, drawn again from its states; `env` was reset to its start, and may have drawn others since then."""
    env.set_state(track.states[0])  # stages count from where things stood at the beginning
    stages = StageTracker(env, start)
    drawn = Drawn([], [], [], [])
    for picture in pictures_of(env, track):
        drawn.pictures.append(picture)
        drawn.targets.append(env.masks((start.target,))[start.target])
        drawn.distance.append(stages.distance(start.target))
        fingers = env.proprio()[-2:]
        drawn.opening.append(float(fingers[0] - fingers[1]))
    return drawn


def film_data(track: Track, drawn: Drawn, source: str, grid: tuple[int, int] | None, success: bool) -> FilmData:
    """What the player draws over an episode's pictures."""
    looking = grid is not None and bool(track.looks)
    looks, most = encoded(np.stack(track.looks)) if looking else ("", 0.0)
    return FilmData(
        source=source,
        size=len(drawn.pictures[0]),
        rate=CONTROL_RATE / EVERY,
        steps=tuple(track.at),
        grid=grid if looking and grid is not None else (),
        looks=looks,
        most=most,
        shown=tuple(track.look_at(step) or 0 for step in track.at) if looking else (),
        outlines=tuple(map(Patch.of, drawn.targets)),
        distance=tuple(None if d is None else round(d, 4) for d in drawn.distance),
        opening=tuple(round(width, 4) for width in drawn.opening),
        stages=track.stages,
        actions=tuple(tuple(round(float(x), 4) for x in action) for action in track.actions),
        success=success,
    )


@dataclass(frozen=True)
class _Film:
    """One film to draw.

    Attributes:
        track: what it is drawn from.
        video: the file that it makes.
        data: what is drawn over it, for the player; None draws the attention into the pictures, at twice real time.
        source: hash of the track.
        grid: patches of the attention.
        success: how the episode ended.
    """

    track: Path
    video: Path
    data: Path | None
    source: str
    grid: tuple[int, int] | None
    success: bool

    @property
    def is_drawn(self) -> bool:
        """Whether its files are there, and where they name a track, it is this one."""
        if self.data is None or not (self.video.is_file() and self.data.is_file()):
            return self.data is None and self.video.is_file()
        try:
            return FilmData.read(self.data).source == self.source
        except UserError:  # of another version
            return False


def films(
    study: Path,
    casts: Sequence[Cast],
    starts: Sequence[Start],
    chosen: Sequence[Chosen],
    settings: EnvSettings,
    workers: int,
) -> list[Video]:
    """Draw the films of the chosen starts below ``films/`` of a study, each start under every arm that has a track.

    Films that were drawn from the same track before are kept. A track that cannot be read is left out, with a line on
    standard error.

    Args:
        study: its folder.
        casts: the arms, in the order in which they are shown.
        starts: all starts; those of `chosen` are among them.
        chosen: which are drawn, and why.
        settings: of the rollouts; pictures are drawn in their quality.
        workers: processes, a simulator and a start each.

    Returns:
        One for each film, start by start in the order of `chosen`.
    """
    by_id, listed = {start.id: start for start in starts}, list[tuple[_Film, Video]]()
    missing: dict[str, list[_Film]] = {}
    for one in chosen:
        for cast in casts:
            if (record := cast.tracks.get(one.start)) is None:
                continue
            name, said = f"{layout.FILMS}/{cast.arm}_{record.start.file_name}", record.start.instruction
            track = cast.folder / str(record.track)
            film = _Film(track, study / f"{name}.mp4", study / f"{name}.json", _hash(track), cast.grid, record.success)
            about = f"{cast.arm}: {said}", record.success, cast.arm, one.start, said, f"{name}.json", one.reason
            listed.append((film, Video(f"{name}.mp4", *about)))
            if not film.is_drawn:
                missing.setdefault(one.start, []).append(film)
    _draw(
        {
            _work(settings, by_id[id], tuple(wanted), study): by_id[id].instruction
            for id, wanted in sorted(missing.items(), key=lambda two: by_id[two[0]].task)  # a simulator for each task
        },
        workers,
        "starts",
    )
    return [video for film, video in listed if film.is_drawn]


def _hash(track: Path) -> str:
    """Which track a film is of; empty for one that cannot be read."""
    try:
        return sha256_of(track)
    except OSError:
        return ""


def _work(settings: EnvSettings, start: Start, wanted: Sequence[_Film], folder: Path) -> Job:
    """Films of one start, for a worker."""
    plain = replace(settings, image_size=SIZE, wrist=False, proprio=False, max_steps=None)
    reads = tuple(Files(film.track.parent, (film.track.name,)) for film in wanted)
    names = tuple(str(path.relative_to(folder)) for film in wanted for path in (film.video, film.data) if path)
    return Job(f"the films of {start.id}", _draw_start, (plain, start, wanted), reads, (Files(folder, names),))


def _draw(works: Mapping[Job, str], workers: int, unit: str) -> None:
    """Let workers draw; `works` says of each what it draws, and what to say when it is done."""
    if not works:
        return
    setups, damaged = [Job("a worker", nothing)] * max(1, min(workers, len(works))), list[str]()
    with (
        progress("Films", len(works), unit) as bar,
        closing(executor().map(iter(works), setups, Needs(), "film", queued=len(setups))) as ended,
    ):
        for work, lines in ended:
            damaged += lines
            bar.advance(1, works[work])
    for line in damaged:
        say(line)


def _draw_start(settings: EnvSettings, start: Start, wanted: Sequence[_Film]) -> list[str]:
    """In a worker: the films of one start; says which tracks cannot be drawn."""
    env, damaged = kept_env(settings), []
    assert isinstance(env, LiberoEnv)
    env.reset(start)
    for film in wanted:
        try:
            track = Track.load(film.track)
            drawn = None if film.data is None else redrawn(env, start, track)
            pictures = shown_over([*pictures_of(env, track)], track, film.grid) if drawn is None else drawn.pictures
        except UserError as error:
            why = str(error)
            named = str(film.track) in why
            damaged.append(why if named else f"{film.track}: {why}; delete it: only its film is lost")
            continue
        write_video(film.video, pictures, fps=(2 if drawn is None else 1) * CONTROL_RATE // EVERY)
        if drawn is not None and film.data is not None:
            write_json(film.data, film_data(track, drawn, film.source, film.grid, film.success).to_json())
    return damaged


def study_films(
    study: Path, casts: Sequence[Cast], starts: Sequence[Start], settings: EnvSettings, workers: int
) -> tuple[list[Video], int]:
    """Films of the starts that `choose` takes, up to `STARTS` of them; see `films`.

    Returns:
        The films, and how many starts with a success are not among them.
    """
    able = {cast.arm: [r for r in cast.records if r.start.id in cast.tracks] for cast in casts}
    chosen = choose(able)[:STARTS]
    solved = {record.start.id for cast in casts for record in cast.records if record.success}
    unfilmed = len(solved - {one.start for one in chosen})
    return films(study, casts, starts, chosen, settings, workers), unfilmed


def evaluation_films(
    folder: Path, starts: Sequence[Start], grid: tuple[int, int] | None, settings: EnvSettings, workers: int
) -> list[Path]:
    """Draw ``videos/`` of an evaluation, attention over the pictures, at twice real time.

    The first start of each task, and up to `OF_EACH` successes and failures more. What is there is not drawn again.

    Args:
        folder: of the evaluation.
        starts: its starts.
        grid: patch grid of the attention; None for what has none to show.
        settings: of its rollouts; pictures are drawn in their quality.
        workers: processes, a simulator and an episode each.

    Returns:
        The videos, without those whose track cannot be read, of which a line on standard error tells.
    """
    by_id: Mapping[str, Start] = {start.id: start for start in starts}
    records = [r for r in read_episodes(folder) if r.start.id in by_id]
    tracks = Cast("", folder, records, grid).tracks
    first = {start.task: start.id for start in reversed(starts)}
    wanted, count = [], {True: 0, False: 0}
    for record in tracks.values():
        count[record.success] += 1
        if first[record.start.task] == record.start.id or count[record.success] <= OF_EACH:
            wanted.append(record)
    wanted.sort(key=lambda record: record.start.task)
    made, works = list[_Film](), dict[Job, str]()
    for record in wanted:
        path = folder / layout.VIDEOS / f"{record.start.file_name}_{record.outcome}.mp4"
        made.append(film := _Film(folder / str(record.track), path, None, "", grid, record.success))
        if not film.is_drawn:
            works[_work(settings, by_id[record.start.id], (film,), folder)] = record.outcome
    _draw(works, workers, "episodes")
    return [film.video for film in made if film.is_drawn]


def shown_over(
    pictures: Sequence[UInt8[np.ndarray, "S S 3"]], track: Track, grid: tuple[int, int] | None
) -> list[UInt8[np.ndarray, "S S 3"]]:
    """The pictures of a track with the attention over them that chose the action then; unchanged if there is none."""
    if grid is None or not track.looks:
        return list(pictures)
    looks = [track.looks[track.look_at(step) or 0] for step in track.at]
    return [overlay(picture, look, grid) for picture, look in zip(pictures, looks, strict=True)]
