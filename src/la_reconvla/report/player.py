"""The player of the report: films of several arms on one start, side by side, with what is known of each picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import escape
from matplotlib import colormaps
from matplotlib.colors import to_hex

from la_reconvla.analysis.film_data import FilmData
from la_reconvla.analysis.results import Results, Video
from la_reconvla.drawing import readable
from la_reconvla.report.page import Embedded, Shelf
from la_reconvla.report.phrases import plain

COLOURS = tuple(to_hex(colour) for colour in colormaps["inferno"](np.linspace(0, 1, 17)))
WIDE, HIGH = 256, 44  # of the line below a film, in its own units
LEFT_TO_THE_FILE = ("actions", "source", "schema")  # what the page does not need


@dataclass(frozen=True)
class Film:
    """One arm on a start.

    Attributes:
        arm, name: its id, and its name for people.
        video: what `results.json` says of it.
        file: the video as the page holds it.
        data: what is drawn over it.
        text: `data` as JSON, as the page's script reads it.
        distance, opening: points of the lines of distance and gripper, as SVG has them.
        marks: where along the film each stage was first reached, from 0 to `WIDE`.
    """

    arm: str
    name: str
    video: Video
    file: Embedded
    data: FilmData
    text: str
    distance: str
    opening: str
    marks: dict[str, float]


@dataclass(frozen=True)
class Scene:
    """A start under several arms; `most` is the largest attention of them, `far` their largest distance (m)."""

    start: str
    instruction: str
    reason: str
    films: tuple[Film, ...]
    most: float
    far: float

    @property
    def label(self) -> str:
        """The start for a list of them: who succeeded, why it is here, what was asked for."""
        good = [film.name for film in self.films if film.video.success]
        ended = f"{', '.join(good)} succeeded" if good else "all failed"
        return f"{ended} ({self.reason}): {self.instruction}"


@dataclass(frozen=True)
class Playlist:
    """Scenes that the page has room for, how many starts it has none for, and how many successes were not filmed."""

    scenes: tuple[Scene, ...]
    left_out: int
    unfilmed: int


def by_scene(videos: Iterable[Video]) -> dict[str, list[Video]]:
    """Films with data by their start, in the order in which they were chosen."""
    groups: dict[str, list[Video]] = {}
    for video in videos:
        if video.data:
            groups.setdefault(video.start, []).append(video)
    return groups


def playlist(results: Results, shelf: Shelf) -> Playlist:
    """What the player shows. A start is left out where one of its films is missing or too large for the page.

    Raises:
        UserError: as `Shelf.file`, or what belongs to a film cannot be read.
    """
    names = {c.id: plain(c) for c in results.conditions}
    scenes, left_out = [], 0
    for start, videos in by_scene(results.videos).items():
        if not shelf.holds(video.data for video in videos):  # a shared study goes without films
            left_out += 1
            continue
        data = [FilmData.read(shelf.folder / video.data) for video in videos]
        text = sum(len(escape(_text(one))) for one in data)
        if not shelf.has_room((video.path for video in videos), text):
            left_out += 1
            continue
        files = [shelf.file(video.path) for video in videos]
        shelf.left -= text
        far = max((d for one in data for d in one.distance if d is not None), default=0.0)
        films = tuple(_film(*each, names, far) for each in zip(videos, files, data, strict=True))
        most = max((one.most for one in data), default=0.0)
        scenes.append(Scene(start, videos[0].instruction, videos[0].reason, films, most, far))
    return Playlist(tuple(scenes), left_out, results.unfilmed)


def _film(video: Video, file: Embedded, data: FilmData, names: dict[str, str], far: float) -> Film:
    widest = max(data.opening, default=0.0)
    end = max(data.steps[-1], 1)
    return Film(
        arm=video.condition,
        name=names.get(video.condition) or video.condition,
        video=video,
        file=file,
        data=data,
        text=_text(data),
        distance=_line(data.steps, data.distance, far),
        opening=_line(data.steps, data.opening, widest),
        marks={readable(stage): WIDE * step / end for stage, step in data.stages.items()},
    )


def _text(data: FilmData) -> str:
    shown = {key: value for key, value in data.to_json().items() if key not in LEFT_TO_THE_FILE}
    return json.dumps(shown, separators=(",", ":"))


def _line(steps: tuple[int, ...], values: Iterable[float | None], most: float) -> str:
    """Points of a line, zero at the bottom and `most` at the top."""
    end, most = max(steps[-1], 1), most or 1.0
    points = zip(steps, values, strict=True)
    return " ".join(f"{WIDE * s / end:.1f},{2 + (HIGH - 4) * (1 - v / most):.1f}" for s, v in points if v is not None)
