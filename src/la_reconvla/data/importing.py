"""Another robot's episodes, a folder each, as demonstrations.

::

    episodes/pick_01/main/000.png, 001.png, ...   or main.mp4: a picture for each action (one more is left out)
                     wrist/...                    further cameras, as many as there are
                     actions.csv                  a row a step, its header names the dimensions; or actions.npy [T a]
                     state.csv                    the robot's state, likewise; may be missing
                     instruction.txt              the words that the robot was given

All but the pictures is checked before anything is written; those are read once, one at a time.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from jaxtyping import Float32

from la_reconvla.data import hdf5_layout as names
from la_reconvla.data.action_values import two_valued
from la_reconvla.data.foreign_writer import Foreign, Pictures, write_foreign
from la_reconvla.data.image_files import read_picture
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import ActionKind, ActionSpace, Orientation
from la_reconvla.storage import claim, locked

PICTURES = (".png", ".jpg", ".jpeg")
MAIN, VIDEO, CLAIM = "main", ".mp4", "import.json"


@dataclass(frozen=True)
class Import:
    """What is imported, and what cannot be seen in the files; fields as the options of the command."""

    episodes: Path
    out: Path
    rate: float
    orientation: Orientation
    cameras: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    instruction: str | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """One episode's folder, read but for its pictures."""

    folder: Path
    names: tuple[str, ...]
    actions: Float32[np.ndarray, "T a"]
    state: Float32[np.ndarray, "T p"] | None
    instruction: str

    def foreign(self) -> Foreign:
        """The episode as it is written."""
        states = {} if self.state is None else {names.STATE: self.state}
        return Foreign(
            str(self.folder), self.instruction, self.actions, states, functools.partial(_pictures, self.folder)
        )


def import_episodes(config: Import) -> list[str]:
    """Write the demonstrations, or go on, or do nothing where they are.

    Returns:
        Lines for people: how many, and what became of binary dimensions.

    Raises:
        UserError: something is missing or does not fit, with its file and the repair; the folder holds something else.
    """
    if not (np.isfinite(config.rate) and config.rate > 0):
        raise UserError(f"--rate is control steps a second, above 0, not {config.rate}")
    folders = _folders(config.episodes)
    cameras = names.checked_cameras(str(folders[0]), config.cameras or _cameras(folders[0]), "leave it out")
    sources = [_read(folder, config.instruction) for folder in folders]
    _require_alike(sources)
    space = _space(sources[0].names, config.binary)
    sources, lines = _two_valued(sources, space)
    with locked(config.out):
        identity = {**{name: str(value) for name, value in vars(config).items() if name != "out"}, "cameras": cameras}
        claim(config.out / CLAIM, {**identity, "episodes": [folder.name for folder in folders]})
        about = {
            names.ACTION_NAMES: json.dumps(space.names),
            names.ACTION_KINDS: json.dumps(space.kinds),
            names.CAMERAS: json.dumps(cameras),
            names.ORIENTATION: config.orientation,
            names.RATE: config.rate,
        }
        files = write_foreign(config.out, [source.foreign() for source in sources], cameras, about)
    steps = sum(len(source.actions) for source in sources)
    return [*lines, f"{config.out}: {len(sources)} episodes, {steps} steps, {files} instructions"]


# ---------------------------------------------------------------- reading


def _folders(episodes: Path) -> list[Path]:
    if not episodes.is_dir():
        raise UserError(f"{episodes}: no such folder; give the one that holds a folder for each episode")
    folders = sorted((p for p in episodes.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_number)
    if not folders:
        raise UserError(f"{episodes}: no folder in it; make one for each episode, with its cameras and actions.csv")
    return folders


def _number(path: Path) -> list[Any]:
    """Sorts by the numbers in a name: 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _cameras(folder: Path) -> tuple[str, ...]:
    """What the first episode has, the main one first."""
    found = {p.stem for p in folder.glob(f"*{VIDEO}")} | {p.name for p in folder.iterdir() if p.is_dir()}
    if len(found) > 1 and MAIN not in found:
        raise UserError(f"{folder}: which camera is the main one? name them with --cameras, that one first: {found}")
    if not found:
        raise UserError(f"{folder}: no pictures there: a folder of them, or {MAIN}{VIDEO}, for each camera")
    return tuple(sorted(found, key=lambda name: (name != MAIN, name)))


def _read(folder: Path, instruction: str | None) -> Source:
    header, actions = _table(folder, "actions")
    if actions is None:
        raise UserError(f"{folder}: no actions.csv and no actions.npy; write one row of numbers for each step")
    _, state = _table(folder, "state")
    if state is not None and len(state) not in (len(actions), len(actions) + 1):
        raise UserError(f"{folder}: {len(actions)} actions and {len(state)} states; write a state for each action")
    path = folder / "instruction.txt"
    try:
        words = " ".join(path.read_text(encoding="utf-8").split()) if path.exists() else instruction
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): save it again as UTF-8 text") from error
    if not words:
        raise UserError(f"{path}: no instruction; write it there, or give --instruction to all that have none")
    given = header or tuple(f"action {column}" for column in range(actions.shape[1]))
    return Source(folder, given, actions, None if state is None else state[: len(actions)], words)


def _table(folder: Path, name: str) -> tuple[tuple[str, ...] | None, Float32[np.ndarray, "T a"] | None]:
    """Header and rows of ``<name>.csv`` or ``<name>.npy``; None where there is none."""
    header, path = None, folder / f"{name}.npy"
    try:
        if path.exists():
            rows = np.load(path, allow_pickle=False)
        elif (path := folder / f"{name}.csv").exists():
            lines = path.read_text(encoding="utf-8").split("\n")
            header = tuple(part.strip().strip('"') for part in lines[0].split(","))
            if all(_is_number(part) for part in header):
                raise UserError(f"{path}: the first line has no names; write those of the columns above the numbers")
            rows = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
        else:
            return None, None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no table of numbers ({error}): write it again") from error
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiub" or not np.isfinite(rows).all():
        raise UserError(f"{path}: {rows.dtype} {rows.shape}, not finite numbers of shape (T, columns): write it again")
    if header is not None and len(header) != rows.shape[1]:
        raise UserError(f"{path}: {len(header)} names for {rows.shape[1]} columns: name each column")
    return header, rows.astype(np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _require_alike(sources: list[Source]) -> None:
    first = sources[0]
    for source in sources:
        if source.names != first.names:
            raise UserError(
                f"{source.folder}: its actions are {', '.join(source.names)}, those of {first.folder.name} are "
                f"{', '.join(first.names)}: give all episodes the same columns"
            )
        widths = [None if one.state is None else one.state.shape[1] for one in (source, first)]
        if widths[0] != widths[1]:
            raise UserError(
                f"{source.folder}: its state has {widths[0]} columns, that of {first.folder.name} {widths[1]}: give "
                "all episodes the same, or none a state"
            )


def _space(columns: tuple[str, ...], binary: tuple[str, ...]) -> ActionSpace:
    for name in binary:
        if name not in columns:
            raise unknown("dimension of the action", name, columns)
    kinds: tuple[ActionKind, ...] = tuple("binary" if name in binary else "continuous" for name in columns)
    return ActionSpace(columns, kinds)


def _two_valued(sources: list[Source], space: ActionSpace) -> tuple[list[Source], list[str]]:
    """The sources with -1 and 1 in binary dimensions, and what they stand for, in words."""
    lines = []
    every = np.concatenate([source.actions for source in sources])
    others: dict[int, np.ndarray] = {}
    for place in space.binary:
        values, name = np.unique(every[:, place]), space.names[place]
        if len(values) != 2:
            raise UserError(
                f"the binary action '{name}' has {len(values)} values ({', '.join(f'{v:g}' for v in values[:5])}), not "
                "two: round it in the files, or leave it out of --binary"
            )
        others[place] = values
        lines.append(f"{name}: {values[0]:g} is written as -1, {values[1]:g} as 1")
    changed = two_valued([source.actions for source in sources], others)
    return [replace(source, actions=actions) for source, actions in zip(sources, changed, strict=True)], lines


def _pictures(folder: Path, camera: str) -> Pictures:
    """Pictures of a camera, one at a time."""
    video, inside = folder / f"{camera}{VIDEO}", folder / camera
    if video.exists():
        try:
            reader = imageio_ffmpeg.read_frames(str(video), pix_fmt="rgb24")
            columns, rows = next(reader)["size"]  # pyright: ignore[reportIndexIssue, reportArgumentType] (its metadata)
            for frame in reader:
                yield np.frombuffer(frame, np.uint8).reshape(rows, columns, 3)  # pyright: ignore
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{video} is no video that can be read ({error}): export it again as H.264") from error
        return
    if not inside.is_dir():
        raise UserError(f"{folder}: no pictures of the camera '{camera}': a folder {camera}/ or {video.name}")
    paths = sorted((p for p in inside.iterdir() if p.suffix.lower() in PICTURES), key=_number)
    for path in paths:
        yield read_picture(path)
