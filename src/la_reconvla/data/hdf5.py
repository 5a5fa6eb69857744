"""Reads LIBERO's demonstration files and ours, and refuses damaged ones; the layout: `la_reconvla.data.hdf5_layout`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from la_reconvla.contracts import Quality
from la_reconvla.data import foreign, instructions
from la_reconvla.data.demonstrations import Demonstrations, Episode, same_kind
from la_reconvla.data.hdf5_layout import (
    AGENTVIEW,
    DEMO_SUFFIX,
    REMEDY,
    SHARDS,
    checked_actions,
    dataset_in,
    episode_groups,
    opened,
    picture_size,
)
from la_reconvla.data.starts import PlacementKind, Split
from la_reconvla.errors import UserError, unknown
from la_reconvla.storage import TEMPORARY, parse_json


def open_demonstrations(folder: Path | str, tasks: Sequence[str | int] | None = None) -> Demonstrations:
    """All demonstrations in a folder, ordered by task and episode.

    Args:
        folder: holds ``*_demo.hdf5`` files, ours or LIBERO's.
        tasks: names of the tasks wanted, or (our files only) their indices; all by default.

    Raises:
        UserError: no demonstrations there, an unfinished collection, an unknown task, a damaged or foreign file, or
            files of different render quality, picture size or frame stride.
    """
    folder = Path(folder)
    episodes = [episode for path in _find_files(folder) for episode in read_file(path)]
    episodes = episodes if tasks is None else _of_tasks(episodes, tasks)
    return same_kind(episodes, str(folder))


def read_file(path: Path | str) -> list[Episode]:
    """Check a demonstration file and read what its episodes are, without their pictures.

    Whatever else lies beside what every user reads is checked when it is read, and left alone if it is not.

    Raises:
        UserError: the file is missing, locked, truncated, not HDF5 or not of this layout; keys are missing; lengths
            disagree; actions are not finite or outside [-1, 1]; pictures or instance maps are not square uint8;
            attributes are of the wrong kind.
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
    }


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
    """Public pictures are MuJoCo's turned by 180 degrees. "opengl" stores MuJoCo's, "opencv" flips its rows."""
    known = {"opengl": (-1, -1), "opencv": (1, -1)}
    usual = "opengl" if pictures.endswith(AGENTVIEW[0]) else "opencv"  # robomimic flips what it writes
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
    there = isinstance(group, h5py.Group)
    missing = [names[0] for names in (("actions",), AGENTVIEW) if not there or not any(n in group for n in names)]
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
    actions = checked_actions(where, dataset_in(where, group, ("actions",)))
    pictures = dataset_in(where, group, AGENTVIEW, -(-len(actions) // shared["frame_stride"]))
    size = picture_size(where, pictures)
    names = _instance_names(where, group, len(pictures), size) if "instances" in group else ()
    return Episode(
        **{**shared, "instruction": instruction},
        path=path,
        demo=demo,
        actions=actions,
        image_size=size,
        instance_names=names,
        target=read("target", str),
        destination=read("destination", str),
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


def _instance_names(where: str, group: Any, rows: int, size: int) -> tuple[str, ...]:
    """Check the instance maps, which are `rows` of `size` rows and columns, and read what their numbers stand for."""
    maps = dataset_in(where, group, ("instances/map",), rows)
    if maps.dtype != np.uint8 or maps.shape[1:] != (size, size):
        raise UserError(
            f"{where}: the instance maps are {maps.dtype} {maps.shape}, not uint8 of the pictures' size "
            f"(F, {size}, {size}); {REMEDY}"
        )
    text = _attribute(where, group["instances"].attrs, "names", str)
    try:
        names = parse_json(text or "")
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: the instance maps have no list of 'names' for their numbers; {REMEDY}")
    return tuple(names)


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
    try:
        if folder.is_file():
            return [folder]
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; make one with `la-reconvla data collect --out {folder}`")
        names = sorted(path.name for path in folder.iterdir())  # a glob of a folder that may not be read finds nothing
    except PermissionError as error:
        raise UserError(
            f"{folder}: you may not read it; ask its owner, or change the permissions (chmod) of the folder"
        ) from error
    if SHARDS in names and (folder / SHARDS).is_dir():
        raise UserError(f"{folder}: this collection is not finished; run its `la-reconvla data collect` command again")
    if files := [folder / n for n in names if n.endswith(DEMO_SUFFIX) and not n.startswith(TEMPORARY)]:
        return files
    if (known := foreign.explained(folder)) is not None:
        raise UserError(known)
    others = ", ".join(names[:5]) or "nothing"
    named = any(name.endswith((".hdf5", ".h5")) for name in names)
    way_out = f"rename what you want read to *{DEMO_SUFFIX}, or give one file" if named else "give the folder of them"
    raise UserError(f"{folder}: no *{DEMO_SUFFIX} file there, found {others}; {way_out}")


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
