"""Opens folders of demonstrations; reads LIBERO's files and ours, and refuses damaged ones.

The layout: `la_reconvla.data.hdf5_layout`. LeRobotDatasets are read by `la_reconvla.data.lerobot`, datasets in RLDS by
`la_reconvla.data.rlds`, CALVIN's by `la_reconvla.data.calvin`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from la_reconvla import layout
from la_reconvla.data import calvin, foreign, instructions, lerobot, rlds
from la_reconvla.data.demonstrations import Demonstrations, Episode, same_kind
from la_reconvla.data.hdf5_layout import (
    ACTION_KINDS,
    ACTION_NAMES,
    CAMERAS,
    DEMO_SUFFIX,
    ORIENTATION,
    PARTS,
    RATE,
    REMEDY,
    SHARDS,
    STATE,
    checked_actions,
    checked_cameras,
    checked_text,
    dataset_in,
    episode_groups,
    opened,
    picture_names,
    picture_size,
)
from la_reconvla.data.lerobot_layout import INFO, is_lerobot
from la_reconvla.data.rlds_layout import rlds_folder
from la_reconvla.data.starts import PlacementKind, Split
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS, ActionSpace, Orientation, Quality
from la_reconvla.storage import TEMPORARY, parse_json


def open_demonstrations(folder: Path | str) -> Demonstrations:
    """All demonstrations in a folder, ordered by task and episode.

    Args:
        folder: holds ``*_demo.hdf5`` files, ours or LIBERO's, or is a LeRobotDataset, a dataset in RLDS or of CALVIN.

    Raises:
        UserError: no demonstrations there, an unfinished collection, a damaged or foreign file, or
            files of different render quality, picture size or frame stride.
    """
    folder, notes = Path(folder), ()
    if is_lerobot(folder):
        episodes: list[Episode] = lerobot.read_folder(folder)
    elif (dataset := rlds_folder(folder)) is not None:
        episodes, notes = rlds.read_folder(dataset)
    elif calvin.is_calvin(folder):
        episodes = calvin.read_folder(folder)
    else:
        episodes = [episode for path in _find_files(folder) for episode in read_file(path)]
    return same_kind(episodes, str(folder), notes)


def read_file(path: Path | str) -> list[Episode]:
    """Check a demonstration file and read what its episodes are, without their pictures.

    Whatever else lies beside what every user reads is checked when it is read, and left alone if it is not.

    Raises:
        UserError: the file is missing, locked, truncated, not HDF5 or not of this layout; keys are missing; lengths
            disagree; actions are not finite or outside [-1, 1]; pictures or instance maps are not uint8; attributes
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
    attributes, where = data.attrs, str(path)
    cameras = checked_cameras(where, _texts(where, attributes, CAMERAS)) if CAMERAS in attributes else LIBERO_CAMERAS
    if not cameras:
        raise UserError(f"{where}: the list of '{CAMERAS}' is empty; {REMEDY}")
    parent = Path(_attribute(where, attributes, "bddl_file_name", str) or "").parent.name
    name = path.name.removesuffix(path.suffix).removesuffix("_demo")
    task_name = _attribute(where, attributes, "task_name", str) or name
    known = None if parent and "problem_info" in attributes else instructions.installed(task_name)
    suite, asked = known or (None, instructions.spoken(task_name))
    return {
        "suite": _attribute(where, attributes, "suite", str) or parent or suite,
        "task": _attribute(where, attributes, "task_index", int),
        "task_name": task_name,
        "instruction": _language(where, attributes) or asked,
        "quality": _one_of(where, attributes, "quality", Quality) or "official",
        "frame_stride": _frame_stride(where, attributes),
        "space": _space(where, attributes),
        "cameras": cameras,
        "orientation": _one_of(where, attributes, ORIENTATION, Orientation) or "mirrored",
        **({} if (rate := _attribute(where, attributes, RATE, float)) is None else {"rate": rate}),
    }


def _space(where: str, attributes: Mapping[str, Any]) -> ActionSpace:
    """What the file says that its actions are; LIBERO's if it says nothing."""
    if ACTION_NAMES not in attributes:
        return LIBERO_ACTIONS
    names = _texts(where, attributes, ACTION_NAMES)
    kinds = _texts(where, attributes, ACTION_KINDS) if ACTION_KINDS in attributes else ("continuous",) * len(names)
    try:
        return ActionSpace(names, kinds)  # pyright: ignore[reportArgumentType] (it checks them)
    except UserError as error:
        raise UserError(f"{where}: {error}; {REMEDY}") from None


def _texts(where: str, attributes: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The attribute, a JSON list of texts."""
    try:
        found = parse_json(_attribute(where, attributes, name, str) or "")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"{where}: there is no list of '{name}' (JSON, of texts); {REMEDY}")
    return tuple(checked_text(where, name, one) for one in found)


def _language(where: str, attributes: Mapping[str, Any]) -> str | None:
    """The instruction in LIBERO's attribute 'problem_info'; None where there is none."""
    text = _attribute(where, attributes, "problem_info", str)
    try:
        problem = parse_json(text or "{}")
        language = problem.get("language_instruction")
        words = " ".join(language) if isinstance(language, list) else language
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{where}: the attribute 'problem_info' is not valid JSON; {REMEDY}") from None
    if words is not None and not isinstance(words, str):
        raise UserError(f"{where}: the instruction in 'problem_info' is {words!r}, not text; {REMEDY}")
    return words


def _turn(where: str, attributes: Mapping[str, Any], pictures: str) -> tuple[int, int]:
    """How stored `pictures` become those in memory. Another robot's, whose file names an orientation, stay as they are.

    Public pictures are MuJoCo's turned by 180 degrees. "opengl" stores MuJoCo's, "opencv" flips its rows.
    """
    if ORIENTATION in attributes:
        return (1, 1)
    known = {"opengl": (-1, -1), "opencv": (1, -1)}
    usual = "opengl" if pictures.endswith("_rgb") else "opencv"  # robomimic flips what it writes
    convention = _attribute(where, attributes, "macros_image_convention", str) or usual
    if convention not in known:
        raise UserError(f"{where}: {unknown('image convention', convention, known)}")
    return known[convention]


def _frame_stride(where: str, attributes: Mapping[str, Any]) -> int:
    stride = _attribute(where, attributes, "frame_stride", int)
    if stride is not None and stride < 1:
        raise UserError(f"{where}: the frame stride is {stride}, it must be at least 1; {REMEDY}")
    return stride or 1


def _read_episode(path: Path, demo: str, group: Any, shared: dict[str, Any]) -> Episode:
    where = f"{path}: {demo}"
    there, main = isinstance(group, h5py.Group), picture_names(shared["cameras"][0])
    missing = [names[0] for names in (("actions",), main) if not there or not any(n in group for n in names)]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)}; {REMEDY}")
    attributes = group.attrs
    read = functools.partial(_attribute, where, attributes)
    instruction = read("instruction", str) or shared["instruction"]
    if not instruction or not instruction.strip():
        raise UserError(
            f"{where} has no instruction, and neither 'problem_info' nor the file's name says one: name the file after "
            f"what is asked for, for example pick_up_the_black_bowl{DEMO_SUFFIX}"
        )
    actions = checked_actions(where, dataset_in(where, group, ("actions",)), shared["space"])
    pictures = dataset_in(where, group, main, -(-len(actions) // shared["frame_stride"]))
    size = picture_size(where, pictures)
    names = _instance_names(where, group, len(pictures), size) if "instances" in group else ()
    return Episode(
        **{**shared, "instruction": instruction},
        path=path,
        demo=demo,
        actions=actions,
        image_size=size[0],
        state_width=_state_width(where, group, len(actions)),
        instance_names=names,
        target=read("target", str),
        destination=read("destination", str),
        parts=_parts(where, attributes, len(actions)),
        start_id=read("start_id", str),
        placement=_one_of(where, attributes, "placement", PlacementKind),
        split=_one_of(where, attributes, "split", Split),
        start_index=read("start_index", int),
        start_seed=read("start_seed", int),
        success_step=read("success_step", int),
        noise=read("noise", float),
        seed=read("seed", int),
        turn=_turn(where, group.parent.attrs, pictures.name),
    )


def _parts(where: str, attributes: Mapping[str, Any], length: int) -> tuple[tuple[int, str, str], ...]:
    """What the episode says of its parts, `length` steps together; none where it says nothing."""
    text = _attribute(where, attributes, PARTS, str)
    found: list[Any] = [(None, None, None)]  # what is wrong, unless it can be read
    with contextlib.suppress(ValueError, TypeError):
        found = [] if text is None else [(step, target, place) for step, target, place in parse_json(text)]
    begins = [step for step, _, _ in found]
    right = all(type(one) is int and isinstance(a, str) and isinstance(b, str) for one, a, b in found)
    if not right or (found and (begins[0] != 0 or begins[-1] >= length or sorted(set(begins)) != begins)):
        raise UserError(
            f"{where}: '{PARTS}' is {text!r}, not the parts of {length} steps, [[0, target, destination], [step, ...]] "
            f"(JSON); {REMEDY}"
        )
    return tuple(found)


def _state_width(where: str, group: Any, rows: int) -> int | None:
    """Numbers of another robot's state; None where there is none of that kind, and in LIBERO's own files."""
    name = f"obs/{STATE}"
    if name not in group or not any(mark in group.parent.attrs for mark in (CAMERAS, ORIENTATION, ACTION_NAMES)):
        return None
    state = dataset_in(where, group, (name,), rows)
    if state.ndim != 2 or state.shape[1] == 0 or state.dtype.kind != "f":
        raise UserError(f"{where}: the state is {state.dtype} {state.shape}, not floats of shape (T, p); {REMEDY}")
    return int(state.shape[1])


def _instance_names(where: str, group: Any, rows: int, size: tuple[int, int]) -> tuple[str, ...]:
    """Check the instance maps, which are `rows` of the pictures' `size`, and read what their numbers stand for."""
    maps = dataset_in(where, group, ("instances/map",), rows)
    if maps.dtype != np.uint8 or maps.shape[1:] != size:
        raise UserError(
            f"{where}: the instance maps are {maps.dtype} {maps.shape}, not uint8 of the pictures' size "
            f"(F, {size[0]}, {size[1]}); {REMEDY}"
        )
    return _texts(f"{where}: instances", group["instances"].attrs, "names")


# ---------------------------------------------------------------- attributes


def _one_of(where: str, attributes: Mapping[str, Any], name: str, literal: Any) -> Any:
    value = _attribute(where, attributes, name, str)
    if value is not None and value not in get_args(literal):
        raise UserError(f"{where}: {unknown(name, value, get_args(literal))}")
    return value


def _attribute(where: str, attributes: Mapping[str, Any], name: str, kind: type[int] | type[float] | type[str]) -> Any:
    """The attribute as a `kind`, None if it is not there. Text may be bytes, as some programs write it."""
    value = attributes.get(name)
    if value is None:
        return None
    if kind is str and isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    accepted = {int: (int, np.integer), float: (int, float, np.number), str: (str,)}[kind]
    if not isinstance(value, accepted) or (kind is float and not np.isfinite(value)):
        raise UserError(f"{where}: the attribute '{name}' is {value!r}, not of the kind {kind.__name__}; {REMEDY}")
    return checked_text(where, name, value) if kind is str else kind(value)


# ---------------------------------------------------------------- folders


def _find_files(folder: Path) -> list[Path]:
    try:
        if folder.is_file():
            return [folder]
        if not folder.exists():
            raise UserError(
                f"{folder}: no such folder; make one with `la-reconvla data collect --out {folder}`, or name another"
                + layout.meant(folder, f"*{DEMO_SUFFIX}")
            )
        names = sorted(path.name for path in folder.iterdir())  # a glob of a folder that may not be read finds nothing
    except PermissionError as error:
        raise UserError(
            f"{folder}: you may not read it; ask its owner, or change the permissions (chmod) of the folder"
        ) from error
    if SHARDS in names and (folder / SHARDS).is_dir():
        raise UserError(f"{folder}: this collection is not finished; run the command that makes it again")
    if files := [folder / n for n in names if n.endswith(DEMO_SUFFIX) and not n.startswith(TEMPORARY)]:
        return files
    if (known := foreign.explained(folder)) is not None:
        raise UserError(known)
    others = ", ".join(names[:5]) or "nothing"
    named = any(name.endswith((".hdf5", ".h5")) for name in names)
    way_out = f"rename what you want read to *{DEMO_SUFFIX}, or give one file" if named else "give the folder of them"
    raise UserError(
        f"{folder}: no *{DEMO_SUFFIX} file there, no {INFO} of a LeRobotDataset, found {others}; {way_out}. CALVIN's "
        "has training/ep_start_end_ids.npy, one in RLDS dataset_info.json in a folder of its version"
    )
