"""Opens folders of demonstrations; reads LIBERO's files and ours, and refuses damaged ones.

The layout: `la_reconvla.data.hdf5_layout`. LeRobotDatasets are read by `la_reconvla.data.lerobot`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from la_reconvla.data.demonstrations import Demonstrations, Episode, same_kind
from la_reconvla.data.hdf5_layout import (
    ACTION_KINDS,
    ACTION_NAMES,
    CAMERAS,
    DEMO_SUFFIX,
    ORIENTATION,
    RATE,
    REMEDY,
    SHARDS,
    STATE,
    checked_actions,
    episode_groups,
    opened,
    picture_key,
)
from la_reconvla.data.lerobot import read_folder
from la_reconvla.data.lerobot_layout import INFO, is_lerobot
from la_reconvla.data.starts import PlacementKind, Split
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS, ActionSpace, Orientation, Quality
from la_reconvla.storage import TEMPORARY


def open_demonstrations(folder: Path | str, tasks: Sequence[str | int] | None = None) -> Demonstrations:
    """All demonstrations in a folder, ordered by task and episode.

    Args:
        folder: holds ``*_demo.hdf5`` files, ours or LIBERO's, or is a LeRobotDataset.
        tasks: names of the tasks wanted, or (our files only) their indices; all by default.

    Raises:
        UserError: no demonstrations there, an unfinished collection, an unknown task, a damaged or foreign file, or
            files of different render quality, picture size or frame stride.
    """
    folder = Path(folder)
    if is_lerobot(folder):
        episodes: list[Episode] = read_folder(folder)
    else:
        episodes = [episode for path in _find_files(folder) for episode in read_file(path)]
    episodes = episodes if tasks is None else _of_tasks(episodes, tasks)
    return same_kind(episodes, str(folder))


def read_file(path: Path | str) -> list[Episode]:
    """Check a demonstration file and read what its episodes are, without their pictures.

    Raises:
        UserError: the file is missing, truncated, not HDF5 or not of this layout; keys are missing; lengths disagree;
            actions are not finite or outside [-1, 1]; pictures or instance maps are not uint8; attributes
            are of the wrong kind.
    """
    path = Path(path)
    with opened(path) as file:
        if not isinstance(data := file.get("data"), h5py.Group):
            found = ", ".join(list(file)[:5]) or "nothing"
            raise UserError(f"{path}: no group 'data', found {found}; is this a LIBERO demonstration file?")
        names = episode_groups(data)
        if not names:
            raise UserError(f"{path}: no episode in it; {REMEDY}")
        shared = _read_header(path, data)
        return [_read_episode(path, name, data[name], shared) for name in names]


# ---------------------------------------------------------------- headers and episodes


def _read_header(path: Path, data: Any) -> dict[str, Any]:
    """What the episodes of a file share, as fields of `Episode` (`instruction` as the fallback)."""
    attributes, where = dict(data.attrs), str(path)
    cameras = _texts(where, attributes, CAMERAS) if CAMERAS in attributes else LIBERO_CAMERAS
    if not cameras:
        raise UserError(f"{where}: the list of '{CAMERAS}' is empty; {REMEDY}")
    parent = Path(_attribute(where, attributes, "bddl_file_name", str) or "").parent.name
    name = path.name.removesuffix(".hdf5").removesuffix("_demo")
    try:
        language = json.loads(attributes.get("problem_info", "{}")).get("language_instruction")
    except (ValueError, AttributeError):
        raise UserError(f"{path}: the attribute 'problem_info' is not valid JSON; {REMEDY}") from None
    return {
        "suite": _attribute(where, attributes, "suite", str) or parent or None,
        "task": _attribute(where, attributes, "task_index", int),
        "task_name": _attribute(where, attributes, "task_name", str) or name,
        "instruction": " ".join(language) if isinstance(language, list) else language,
        "quality": _one_of(path, "quality", attributes.get("quality", "official"), Quality),
        "frame_stride": _frame_stride(where, attributes),
        "space": _space(where, attributes),
        "cameras": cameras,
        **_standing(path, attributes),
        **({} if (rate := _attribute(where, attributes, RATE, float)) is None else {"rate": rate}),
    }


def _space(where: str, attributes: dict[str, Any]) -> ActionSpace:
    """What the file says that its actions are; LIBERO's if it says nothing."""
    if ACTION_NAMES not in attributes:
        return LIBERO_ACTIONS
    names = _texts(where, attributes, ACTION_NAMES)
    kinds = _texts(where, attributes, ACTION_KINDS) if ACTION_KINDS in attributes else ("continuous",) * len(names)
    try:
        return ActionSpace(names, kinds)  # pyright: ignore[reportArgumentType] (it checks them)
    except UserError as error:
        raise UserError(f"{where}: {error}; {REMEDY}") from None


def _texts(where: str, attributes: Any, name: str) -> tuple[str, ...]:
    """The attribute, a JSON list of texts."""
    try:
        found = json.loads(attributes[name])
    except (KeyError, ValueError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"{where}: there is no list of '{name}' (JSON, of texts); {REMEDY}")
    return tuple(_text(where, name, one) for one in found)


def _standing(path: Path, attributes: dict[str, Any]) -> dict[str, Any]:
    """How pictures stand, and how those stored are turned to that; only LIBERO's are turned."""
    if ORIENTATION in attributes:
        return {"orientation": _one_of(path, ORIENTATION, attributes[ORIENTATION], Orientation), "turn": (1, 1)}
    return {"turn": _turn(path, attributes.get("macros_image_convention", "opengl"))}


def _turn(path: Path, convention: Any) -> tuple[int, int]:
    """Public pictures are MuJoCo's turned by 180 degrees. "opengl" stores MuJoCo's, "opencv" flips its rows."""
    known = {"opengl": (-1, -1), "opencv": (1, -1)}
    if str(convention) not in known:
        raise UserError(f"{path}: {unknown('image convention', str(convention), known)}")
    return known[str(convention)]


def _frame_stride(where: str, attributes: dict[str, Any]) -> int:
    stride = _attribute(where, attributes, "frame_stride", int)
    if stride is not None and stride < 1:
        raise UserError(f"{where}: the frame stride is {stride}, it must be at least 1; {REMEDY}")
    return stride or 1


def _read_episode(path: Path, demo: str, group: Any, shared: dict[str, Any]) -> Episode:
    main = picture_key(shared["cameras"][0])
    if missing := [key for key in ("actions", main) if key not in group]:
        raise UserError(f"{path}: {demo} has no {' and no '.join(missing)}; {REMEDY}")
    attributes, where = dict(group.attrs), f"{path}: {demo}"
    read = functools.partial(_attribute, where, attributes)
    instruction = read("instruction", str) or shared["instruction"]
    if not instruction:
        raise UserError(f"{where} has no instruction, and 'problem_info' has none either; {REMEDY}")
    actions = checked_actions(where, group["actions"], shared["space"])
    _check_lengths(where, group, len(actions), shared["frame_stride"])
    size = int(group[main].shape[1])
    names = _instance_names(where, group["instances"], size) if "instances" in group else ()
    return Episode(
        **{**shared, "instruction": _text(where, "instruction", str(instruction))},
        path=path,
        demo=demo,
        actions=actions,
        image_size=size,
        state_width=_state_width(where, group),
        instance_names=names,
        target=read("target", str),
        destination=read("destination", str),
        start_id=read("start_id", str),
        placement=_one_of(path, "placement", attributes["placement"], PlacementKind)
        if "placement" in attributes
        else None,
        split=_one_of(path, "split", attributes["split"], Split) if "split" in attributes else None,
        start_index=read("start_index", int),
        start_seed=read("start_seed", int),
        success_step=read("success_step", int),
        noise=read("noise", float),
        seed=read("seed", int),
    )


def _state_width(where: str, group: Any) -> int | None:
    """Numbers of another robot's state; None where there is none of that kind."""
    if (state := group["obs"].get(STATE)) is None:
        return None
    if state.ndim != 2 or state.shape[1] == 0 or state.dtype.kind != "f":
        raise UserError(f"{where}: the state is {state.dtype} {state.shape}, not floats of shape (T, p); {REMEDY}")
    return int(state.shape[1])


def _instance_names(where: str, group: Any, size: int) -> tuple[str, ...]:
    """Check the instance maps, whose pictures have `size` rows and columns, and read what their numbers stand for."""
    maps = group["map"]
    if maps.dtype != np.uint8 or maps.shape[1:] != (size, size):
        raise UserError(
            f"{where}: the instance maps are {maps.dtype} {maps.shape}, not uint8 of the pictures' size "
            f"(F, {size}, {size}); {REMEDY}"
        )
    return _texts(f"{where}: instances", group.attrs, "names")


def _check_lengths(where: str, group: Any, length: int, stride: int) -> None:
    """Check every array against the number of actions."""
    pictures = -(-length // stride)
    expected = {f"obs/{name}": pictures for name in group["obs"] if name.endswith("_rgb")}
    expected |= {f"obs/{name}": length for name in group["obs"] if not name.endswith(("_rgb", "_depth"))}
    expected |= {
        name: length for name in ("states", "robot_states", "rewards", "dones", "executed_actions") if name in group
    }
    expected |= {"instances/map": pictures} if "instances" in group else {}
    for key, wanted in expected.items():
        if len(group[key]) != wanted:
            raise UserError(
                f"{where}: {length} actions need {wanted} rows of '{key}' (frame stride {stride}), "
                f"found {len(group[key])}; {REMEDY}"
            )
    for name in (name for name in group["obs"] if name.endswith("_rgb")):
        pictures = group["obs"][name]
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
            raise UserError(
                f"{where}: {name} is {pictures.dtype} {pictures.shape}, not uint8 of shape (F, H, W, 3); "
                "store RGB pictures with values 0 to 255"
            )


# ---------------------------------------------------------------- attributes


def _one_of(path: Path, kind: str, value: Any, literal: Any) -> Any:
    if str(value) not in get_args(literal):
        raise UserError(f"{path}: {unknown(kind, str(value), get_args(literal))}")
    return str(value)


def _attribute(where: str, attributes: dict[str, Any], name: str, kind: type[int] | type[float] | type[str]) -> Any:
    """The attribute as a `kind`, None if it is not there."""
    value = attributes.get(name)
    if value is None:
        return None
    accepted = {int: (int, np.integer), float: (int, float, np.number), str: (str,)}[kind]
    if not isinstance(value, accepted) or (kind is float and not np.isfinite(value)):
        raise UserError(f"{where}: the attribute '{name}' is {value!r}, not of the kind {kind.__name__}; {REMEDY}")
    return _text(where, name, value) if kind is str else kind(value)


def _text(where: str, name: str, value: str) -> str:
    """`value`, if it is UTF-8: h5py lets other bytes through as characters that cannot be written anywhere."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the text '{name}' is damaged ({value!a}); {REMEDY}") from None
    return value


# ---------------------------------------------------------------- folders


def _find_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make one with `la-reconvla data collect --out {folder}`")
    if (folder / SHARDS).is_dir():
        raise UserError(f"{folder}: this collection is not finished; run the command that makes it again")
    files = sorted(p for p in folder.glob(f"*{DEMO_SUFFIX}") if not p.name.startswith(TEMPORARY))
    if files:
        return files
    others = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{folder}: no *{DEMO_SUFFIX} file there and no {INFO} of a LeRobotDataset, found {others}; give the "
        "folder that holds them"
    )


def _of_tasks(episodes: Sequence[Episode], tasks: Sequence[str | int]) -> list[Episode]:
    names = {e.task_name for e in episodes}
    by_index = {e.task: e.task_name for e in episodes if e.task is not None}
    wanted = set()
    for task in tasks:
        name = by_index.get(task) if isinstance(task, int) else task
        if name not in names:
            known = names | {str(index) for index in by_index}
            raise unknown("task in these demonstrations", str(task), known)
        wanted.add(name)
    return [e for e in episodes if e.task_name in wanted]
