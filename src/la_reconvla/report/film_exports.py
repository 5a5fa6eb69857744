"""Films of a study outside of its page: one start as a GIF, all of them as a recording for Rerun's viewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from la_reconvla import layout
from la_reconvla.analysis.film_data import FilmData
from la_reconvla.analysis.results import Results, Video
from la_reconvla.drawing import captioned, overlay, readable, write_gif
from la_reconvla.errors import UserError, install_command
from la_reconvla.report.player import by_scene
from la_reconvla.sim.track import SUFFIX
from la_reconvla.storage import atomic_write
from la_reconvla.study.film import SPEED, side_by_side
from la_reconvla.study.results import results_of

PAIR = ("C1", "C4")  # of the GIF, where both are there: without reconstruction, and masked by attention
TIMELINE = "control_step"
AXES = ("x", "y", "z", "turn x", "turn y", "turn z", "gripper")


def write_film_gif(study: Path, out: Path) -> Path:
    """Two arms side by side on the first start of the report's player that has both, attention over the picture.

    Args:
        study: folder of a study.
        out: a ``.gif`` file, which is replaced.

    Raises:
        UserError: there are no films of two arms, or `out` is no name for one.
    """
    if out.suffix.lower() != ".gif":
        raise UserError(f"{out} is no name for a film: let it end in .gif")
    results = results_of(study)
    scenes = [pair for videos in by_scene(results.videos).values() if (pair := _pair(videos))]
    if not scenes:
        raise UserError(f"{study} has no films of two arms on one start: {_remedy(results)}")
    names = {c.id: c.name for c in results.conditions}
    strips = [_strip(study, video, names.get(video.condition) or video.condition, results) for video in scenes[0]]
    told = f'"{scenes[0][0].instruction}"'
    rate = FilmData.read(study / scenes[0][0].data).rate
    write_gif(out, [captioned(row, told) for row in side_by_side(strips)], fps=SPEED * rate)
    return out


def _pair(videos: Sequence[Video]) -> tuple[Video, ...]:
    """Two arms of a start, `PAIR` where it is there; nothing where there are not two."""
    wanted = tuple(video for arm in PAIR for video in videos if video.condition == arm)
    return wanted if len(wanted) == 2 else tuple(videos[:2]) if len(videos) > 1 else ()


def _remedy(results: Results) -> str:
    """What makes films."""
    return f"run it again with this version, `{_command(results)}`, in another folder"


def _command(results: Results) -> str:
    return results.study.command or "la-reconvla study run"


def _redrawn(study: Path, video: Video, results: Results) -> str:
    """What makes a film again: its study draws it only while the track is there, which is never made anew."""
    track = Path(video.path).stem.removeprefix(f"{video.condition}_") + SUFFIX
    if any(study.glob(f"{video.condition}/seed*/{layout.TRACKS}/{track}")):
        return f"the command of its study, `{_command(results)}`, draws it again"
    return f"its track is not there to draw it again: {_remedy(results)}"


def _strip(study: Path, video: Video, name: str, results: Results) -> list[UInt8[np.ndarray, "H W 3"]]:
    """A film with attention over it and a caption; the last picture says how it ended."""
    data = FilmData.read(study / video.data)
    pictures, maps = list(_frames(study / video.path, _redrawn(study, video, results))), data.maps()
    if data.grid:
        rows, columns = data.grid
        shown = zip(pictures, data.shown, strict=True)
        pictures = [overlay(picture, maps[look], (rows, columns)) for picture, look in shown]
    *others, last = pictures
    ended = f"{name}: {'success' if video.success else 'failure'}"
    return [*(captioned(each, name) for each in others), captioned(last, ended)]


def _frames(path: Path, redrawn: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of a video; `redrawn` says what makes it again.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {redrawn}")
    try:
        reader = imageio_ffmpeg.read_frames(str(path))
        width, height = next(reader)["size"]
        for frame in reader:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    except (OSError, StopIteration) as error:
        raise UserError(f"{path} is no video that can be read ({error}): delete it; {redrawn}") from error


# ---------------------------------------------------------------- Rerun


def write_recording(study: Path, out: Path) -> Path:
    """Write all films of a study as one recording for Rerun's viewer, on one timeline of control steps.

    Below ``<start>/<arm>/``: ``camera`` (the film) with ``camera/attention`` and ``camera/target`` over it,
    ``action/*``, ``distance`` (m), ``gripper_opening`` (m) and ``stages`` (what was reached, as text).

    Args:
        study: folder of a study.
        out: a ``.rrd`` file, which is replaced.

    Raises:
        UserError: Rerun is not installed, there are no films, or `out` is no name for a recording.
    """
    if out.suffix != ".rrd":
        raise UserError(f"{out} is no name for a recording of Rerun: let it end in .rrd")
    try:
        import rerun as rr
    except ImportError as error:
        raise UserError(f"a recording for Rerun needs its package: {install_command('rerun')}") from error
    results = results_of(study)
    scenes = by_scene(results.videos)
    if not scenes:
        raise UserError(f"{study} has no films: {_remedy(results)}")
    with atomic_write(out) as temporary:
        with rr.RecordingStream("la_reconvla") as recording:  # pyright: ignore[reportAttributeAccessIssue]
            recording.save(str(temporary))
            for start, videos in scenes.items():
                for video in videos:
                    _log(rr, recording, study, f"{start.replace('/', '_')}/{video.condition}", video, results)
            recording.flush()
        recording.disconnect()
    return out


def _log(rr: Any, recording: Any, study: Path, entity: str, video: Video, results: Results) -> None:
    """One film."""
    data, path = FilmData.read(study / video.data), study / video.path
    if not path.is_file():
        raise UserError(f"{path} is missing: {_redrawn(study, video, results)}")
    camera, maps = f"{entity}/camera", data.maps()
    recording.log(camera, rr.AssetVideo(path=path), static=True)
    said = f"{video.instruction}: {'success' if video.success else 'failure'}"
    recording.log(f"{entity}/stages", rr.TextLog(said), static=True)
    for picture, step in enumerate(data.steps):
        recording.set_time(TIMELINE, sequence=step)
        recording.log(camera, rr.VideoFrameReference(seconds=picture / data.rate))
        target = data.outlines[picture].mask(data.size)
        recording.log(f"{camera}/target", rr.SegmentationImage(target.astype(np.uint8), opacity=0.35))
        if data.grid:
            levels = np.round(255 * maps[data.shown[picture]] / max(data.most, 1e-9)).astype(np.uint8)
            heat = levels.reshape(data.grid)
            rows, columns = (np.arange(data.size) * side // data.size for side in data.grid)
            recording.log(f"{camera}/attention", rr.Image(heat[np.ix_(rows, columns)], opacity=0.5))
        if (away := data.distance[picture]) is not None:
            recording.log(f"{entity}/distance", rr.Scalars(away))
        recording.log(f"{entity}/gripper_opening", rr.Scalars(data.opening[picture]))
    for step, action in enumerate(data.actions):
        recording.set_time(TIMELINE, sequence=step)
        for name, value in zip(AXES, action, strict=True):
            recording.log(f"{entity}/action/{name.replace(' ', '_')}", rr.Scalars(value))
    for stage, step in data.stages.items():
        recording.set_time(TIMELINE, sequence=step)
        recording.log(f"{entity}/stages", rr.TextLog(readable(stage)))
