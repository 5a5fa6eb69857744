"""Films of rollouts, drawn after the run from the states that episodes left: none slows the run down.

Pictures for people: 256 pixels a side in full quality, whatever the policies saw. Where the policy looked, where the
target is, gripper, distance and stages are kept beside each film (`la_reconvla.analysis.film_data`), for the report's
player.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from la_reconvla.progress import progress
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.rollout import CONTROL_RATE, StageTracker
from la_reconvla.sim.track import EVERY, Track
from la_reconvla.storage import write_json
from la_reconvla.study.evaluate import file_name

SIZE = 256
STARTS = 24  # in a study's report; a film takes about 8 s of one core without a GPU
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
    """An episode, drawn again from its states; `env` was reset to its start."""
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


def films(
    study: Path,
    casts: Sequence[Cast],
    starts: Sequence[Start],
    chosen: Sequence[Chosen],
    *,
    allow_any_mujoco: bool = False,
    advance: Callable[[int, str], None] = lambda count, note: None,
) -> list[Video]:
    """Draw the films of the chosen starts below ``films/`` of a study, each start under every arm that has a track.

    Films that were drawn from the same track before are kept.

    Args:
        study: its folder.
        casts: the arms, in the order in which they are shown.
        starts: all starts; those of `chosen` are among them.
        chosen: which are drawn, and why.
        allow_any_mujoco: draw with a MuJoCo with which scores are not comparable.
        advance: told of every start.

    Returns:
        One for each film, start by start in the order of `chosen`.
    """
    by_id = {start.id: start for start in starts}
    found: dict[str, list[Video]] = {}
    with LiberoEnv(image_size=SIZE, allow_any_mujoco=allow_any_mujoco) as env:
        for one in sorted(chosen, key=lambda one: by_id[one.start].task):  # another task is another simulator
            found[one.start] = list(_filmed(study, env, casts, by_id[one.start], one))
            advance(1, by_id[one.start].instruction)
    return [video for one in chosen for video in found[one.start]]


def _filmed(study: Path, env: LiberoEnv, casts: Sequence[Cast], start: Start, chosen: Chosen) -> Iterator[Video]:
    """Films of one start; the simulator is reset once, and only if one is missing."""
    ready = False
    for cast in casts:
        record = cast.tracks.get(start.id)
        if record is None or record.track is None:
            continue
        path = cast.folder / record.track
        name = f"{layout.FILMS}/{cast.arm}_{file_name(record.start)}"
        video, data = f"{name}.mp4", f"{name}.json"
        source = hashlib.sha256(path.read_bytes()).hexdigest()
        if not _is_drawn(study / video, study / data, source):
            if not ready:
                env.reset(start)
                ready = True
            track = Track.load(path)
            drawn = redrawn(env, start, track)
            write_video(study / video, drawn.pictures, fps=CONTROL_RATE // EVERY)
            write_json(study / data, film_data(track, drawn, source, cast.grid, record.success).to_json())
        said = record.start.instruction
        yield Video(video, f"{cast.arm}: {said}", record.success, cast.arm, start.id, said, data, chosen.reason)


def _is_drawn(video: Path, data: Path, source: str) -> bool:
    """Whether both files are there and were drawn from that track."""
    try:
        return video.is_file() and data.is_file() and FilmData.read(data).source == source
    except UserError:  # of another version
        return False


def study_films(study: Path, casts: Sequence[Cast], starts: Sequence[Start]) -> tuple[list[Video], int]:
    """Films of the starts that `choose` takes, up to `STARTS` of them; see `films`.

    Returns:
        The films, and how many starts with a success are not among them.
    """
    able = {cast.arm: [r for r in cast.records if r.start.id in cast.tracks] for cast in casts}
    chosen = choose(able)[:STARTS]
    solved = {record.start.id for cast in casts for record in cast.records if record.success}
    unfilmed = len(solved - {one.start for one in chosen})
    if not chosen:
        return [], unfilmed
    with progress("Films", len(chosen), "starts") as bar:
        return films(study, casts, starts, chosen, advance=bar.advance), unfilmed


def evaluation_films(folder: Path, starts: Sequence[Start], grid: tuple[int, int] | None, allow: bool) -> list[Path]:
    """Draw ``videos/`` of an evaluation, attention over the pictures, at twice real time.

    The first start of each task, and up to `OF_EACH` successes and failures more. What is there is not drawn again.

    Args:
        folder: of the evaluation.
        starts: its starts.
        grid: patch grid of the attention; None for what has none to show.
        allow: draw with a MuJoCo with which scores are not comparable.
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
    paths = {r.start.id: folder / layout.VIDEOS / f"{file_name(r.start)}_{outcome(r)}.mp4" for r in wanted}
    missing = sorted((r for r in wanted if not paths[r.start.id].is_file()), key=lambda r: r.start.task)
    if missing:
        with (
            LiberoEnv(image_size=SIZE, allow_any_mujoco=allow) as env,
            progress("Films", len(missing), "episodes") as bar,
        ):
            for record in missing:
                track = Track.load(folder / str(record.track))
                env.reset(by_id[record.start.id])
                pictures = shown_over(list(pictures_of(env, track)), track, grid)
                write_video(paths[record.start.id], pictures, fps=2 * CONTROL_RATE // EVERY)
                bar.advance(1, outcome(record))
    return list(paths.values())


def outcome(record: EpisodeRecord) -> str:
    """How it ended, in a word."""
    return "success" if record.success else "failure"


def shown_over(
    pictures: Sequence[UInt8[np.ndarray, "S S 3"]], track: Track, grid: tuple[int, int] | None
) -> list[UInt8[np.ndarray, "S S 3"]]:
    """The pictures of a track with the attention over them that chose the action then; unchanged if there is none."""
    if grid is None or not track.looks:
        return list(pictures)
    looks = [track.looks[track.look_at(step) or 0] for step in track.at]
    return [overlay(picture, look, grid) for picture, look in zip(pictures, looks, strict=True)]
