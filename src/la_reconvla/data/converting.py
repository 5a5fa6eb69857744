"""Demonstrations from LIBERO's layout or RLDS to LeRobot's, from that to LIBERO's, and what is not kept, in words."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from la_reconvla.data import hdf5_layout as names
from la_reconvla.data.dataset_episodes import LIBERO_STATE, DatasetEpisode
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.foreign_writer import Foreign, write_foreign
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.lerobot import LeRobotEpisode
from la_reconvla.data.lerobot_layout import ACTION, INFO, STATE, PictureKind, is_lerobot, needed
from la_reconvla.data.lerobot_writer import ENCODERS, OWN, Contents, LeRobotWriter
from la_reconvla.data.rlds import RLDSEpisode, unread
from la_reconvla.errors import UserError
from la_reconvla.leases import PREFIX
from la_reconvla.progress import progress
from la_reconvla.storage import claim, explain_disk_errors, locked, read_json

CLAIM, UNFINISHED = "convert.json", ".unfinished-lerobot"  # the second marks a folder as one that may be emptied


def convert(source: Path, target: Path, pictures: PictureKind = "png") -> list[str]:
    """Write the demonstrations in the other layout.

    A LeRobotDataset appears when it is complete; demonstration files go on where they were.

    Args:
        source: a LeRobotDataset, which becomes demonstration files; a folder of ``*_demo.hdf5`` files or a dataset in
            RLDS, which become a LeRobotDataset.
        target: the folder to write.
        pictures: how a LeRobotDataset stores them.

    Returns:
        Lines for people: what is not kept, and how much was written.

    Raises:
        UserError: as `open_demonstrations`; the folder `target` holds something else, or `source` has what the other
            layout cannot hold.
    """
    if is_lerobot(source):
        if pictures != "png":
            raise UserError("demonstration files keep pictures without loss: leave --pictures out")
        return _to_hdf5(source, target)
    if target.exists():
        raise UserError(f"{target} is there already: choose another folder, or delete that one")
    return _to_lerobot(source, target, pictures)


# ---------------------------------------------------------------- to LeRobot


def _to_lerobot(source: Path, target: Path, pictures: PictureKind) -> list[str]:
    opened = open_demonstrations(source)
    episodes, first = opened.episodes, opened.episodes[0]
    states, lines = _states(episodes)
    contents = Contents(
        _whole_rate(first),
        _cameras(opened, pictures),
        opened.space.names,
        None if states is None else _state_names(opened, states),
        pictures,
    )
    ours = {
        "orientation": opened.orientation,
        "action_kinds": opened.space.kinds,
        "frame_stride": opened.frame_stride,
        "quality": opened.quality,
        "libero_state": states is not None and opened.state_width is None,
    }
    part = target.with_name(f"{target.name}.part")
    if part.exists() and not (part / UNFINISHED).exists():
        raise UserError(f"{part} is in the way: move it, or choose another folder than {target}")
    with locked(part), explain_disk_errors(target):
        (part / UNFINISHED).touch()
        for left in (path for path in part.iterdir() if path.is_dir()):  # by a process that was killed
            shutil.rmtree(left)
        writer = LeRobotWriter(part, contents)
        with progress("Converting", total=len(episodes), unit="episodes") as bar:
            for number, episode in enumerate(episodes):
                state = None if states is None else states[number]
                writer.add(episode.instruction, episode.actions, state, _held(episode))
                bar.advance(note=episode.name)
        writer.finish(ours)
        for path in (part / UNFINISHED, *part.glob(f"{PREFIX}*")):
            path.unlink()
        part.replace(target)
    return [*lines, *_lost_to_lerobot(opened, pictures), _written(target, opened)]


def _whole_rate(episode: Episode) -> int:
    if episode.rate != round(episode.rate):
        raise UserError(
            f"{episode.path}: {episode.rate:g} control steps a second; LeRobot's format takes whole numbers only: "
            "import the episodes again with a whole --rate"
        )
    return round(episode.rate)


def _cameras(opened: Demonstrations, pictures: PictureKind) -> dict[str, tuple[int, int]]:
    """The cameras that the episodes have, and the one size of each."""
    found: dict[str, tuple[int, int]] = {}
    for camera in opened.cameras:
        sizes: dict[Any, Episode] = {}
        for episode in opened.episodes:
            try:
                sizes.setdefault(tuple(map(int, episode.picture_size(camera))), episode)
            except UserError:
                sizes.setdefault(None, episode)
        if len(sizes) > 1:
            listed = ", ".join(f"{size or 'none'} in {episode.name}" for size, episode in sizes.items())
            raise UserError(
                f"pictures of '{camera}' differ: {listed}; LeRobot's format takes one size a camera: convert them apart"
            )
        if (size := next(iter(sizes))) is not None:
            found[camera] = size
    odd = [camera for camera, size in found.items() if size[0] % 2 or size[1] % 2]
    if pictures == "h264" and odd:
        raise UserError(
            f"H.264 takes even numbers of rows and columns, not {found[odd[0]]}: take --pictures av1 or png"
        )
    if pictures in ENCODERS and ENCODERS[pictures][0] not in needed("av").codecs_available:
        raise UserError(f"this PyAV cannot encode {pictures} ({ENCODERS[pictures][0]}): take another of --pictures")
    return found


def _states(episodes: tuple[Episode, ...]) -> tuple[list[Float32[np.ndarray, "T p"]] | None, list[str]]:
    """All states, or none and why."""
    try:
        episodes[0].proprio()
    except UserError as error:
        if episodes[0].state_width is not None:
            raise
        return None, [f"no state is written: {error}"]
    return [episode.proprio() for episode in episodes], []


def _state_names(opened: Demonstrations, states: list[Float32[np.ndarray, "T p"]]) -> tuple[str, ...]:
    if opened.state_width is None:
        return LIBERO_STATE
    return tuple(f"state {place}" for place in range(states[0].shape[1]))


def _held(episode: Episode) -> Callable[[str], Iterator[UInt8[np.ndarray, "H W 3"]]]:
    """Pictures of a camera, one a step: where none was recorded, the last one again."""

    def pictures(camera: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        every = itertools.chain.from_iterable(
            itertools.repeat(picture, episode.frame_stride) for picture in episode.stream(camera)
        )
        return itertools.islice(every, len(episode.actions))

    return pictures


def _lost_to_lerobot(opened: Demonstrations, pictures: PictureKind) -> list[str]:
    first, lines = opened.episodes[0], [*opened.notes]
    if opened.frame_stride > 1:
        lines.append(
            f"pictures: there is one every {opened.frame_stride} steps, and LeRobot sees it again until the next one: "
            "policies that train there need --frame-stride 1 (this package knows)"
        )
    if pictures != "png":
        lines.append(f"pictures: compressed with loss ({pictures})")
    left = unread(first.path) if isinstance(first, RLDSEpisode) else _left_of_file(first)
    if first.start_id is not None:
        left.append("starts, targets and seeds (attributes)")
    return [*lines, f"not kept: {', '.join(left)}"] if left else lines


def _left_of_file(episode: Episode) -> list[str]:
    """What of a demonstration file LeRobot's format has no place for."""
    kept = {f"obs/{names.STATE}", names.HAND, *names.ROBOMIMIC_HAND, *names.FINGERS}
    kept.update(name for camera in episode.cameras for name in names.picture_names(camera))
    with names.opened(episode.path) as file:
        group = file["data"][episode.demo]
        left = [name for name in group if name not in ("actions", "obs")]
        return left + [f"obs/{name}" for name in group["obs"] if f"obs/{name}" not in kept]


# ---------------------------------------------------------------- to LIBERO's layout


def _to_hdf5(source: Path, target: Path) -> list[str]:
    opened = open_demonstrations(source)
    about = {
        names.ACTION_NAMES: json.dumps(opened.space.names),
        names.ACTION_KINDS: json.dumps(opened.space.kinds),
        names.CAMERAS: json.dumps(opened.cameras),
        names.ORIENTATION: opened.orientation,
        names.RATE: opened.episodes[0].rate,
        "frame_stride": opened.frame_stride,
        "quality": opened.quality,
    }
    with locked(target):
        if any(target.glob(f"*{names.DEMO_SUFFIX}")) and not (target / CLAIM).exists():
            raise UserError(f"{target} holds other demonstrations: choose another folder")
        claim(target / CLAIM, {"hash": opened.hash})
        write_foreign(target, [_foreign(episode) for episode in opened.episodes], opened.cameras, about)
    return [*_lost_to_hdf5(source, opened), _written(target, opened)]


def _foreign(episode: Episode) -> Foreign:
    states: dict[str, Float32[np.ndarray, "T p"]] = {}
    if episode.state_width is not None:
        states = {names.STATE: episode.proprio()}
    elif isinstance(episode, DatasetEpisode) and episode.recorded_state is not None:
        both = episode.proprio()
        states = {"ee_states": both[:, :6], "gripper_states": both[:, 6:]}
    where = f"{episode.path}/{episode.demo}"
    return Foreign(where, episode.instruction, episode.actions, states, episode.stream)


def _lost_to_hdf5(source: Path, opened: Demonstrations) -> list[str]:
    lines = []
    raw = [e.row.actions for e in opened.episodes if isinstance(e, LeRobotEpisode)]
    for place in opened.space.binary:
        low = min(float(rows[:, place].min()) for rows in raw)
        high = max(float(rows[:, place].max()) for rows in raw)
        if (low, high) != (-1, 1):
            lines.append(f"{opened.space.names[place]}: {low:g} is written as -1, {high:g} as 1")
    first = opened.episodes[0]
    kept = {ACTION, STATE, *OWN, *(first.keys if isinstance(first, LeRobotEpisode) else ())}
    left = [name for name in read_json(source / INFO)["features"] if name not in kept]
    return [*lines, f"not kept: {', '.join(left)}"] if left else lines


def _written(target: Path, opened: Demonstrations) -> str:
    steps = sum(len(episode.actions) for episode in opened.episodes)
    told = {episode.instruction for episode in opened.episodes}
    return f"{target}: {len(opened.episodes)} episodes, {steps} steps, {len(told)} instructions"
