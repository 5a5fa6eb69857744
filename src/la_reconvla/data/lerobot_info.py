"""What a LeRobotDataset says of itself: cameras, actions, and what is in the file of ours beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from la_reconvla.data.action_values import space_of
from la_reconvla.data.hdf5_layout import checked_cameras, checked_text
from la_reconvla.data.lerobot_layout import ACTION, AGAIN, BEFORE, IMAGES, INFO, OURS, VERSION
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import ActionSpace, Orientation, Quality
from la_reconvla.storage import read_json

FASTEST = 10**6  # steps a second


def read_info(folder: Path) -> dict[str, Any]:
    """What `INFO` says.

    Raises:
        UserError: it is missing or damaged, the version is another, or there is no column of actions.
    """
    path = folder / INFO
    info = read_json(path)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in (VERSION, BEFORE):
        raise UserError(
            f"{path}: the version is {version}; {VERSION} and {BEFORE} are read: convert the dataset with LeRobot's "
            f"own converter to {VERSION}"
        )
    wanted = {"fps": (int, float), "features": dict, "data_path": str, "total_episodes": int}
    for name, kind in wanted.items():
        if not isinstance(info.get(name), kind):
            raise UserError(f"{path}: '{name}' is {info.get(name)!r}; {AGAIN}")
    if not 0 < info["fps"] < FASTEST:
        raise UserError(f"{path}: fps is {info['fps']}, not above 0 and below {FASTEST}; {AGAIN}")
    for name, feature in info["features"].items():
        checked_text(str(path), "features", name, AGAIN)
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise UserError(f"{path}: the feature '{name}' has the shape {shape}, not numbers from 1; {AGAIN}")
    if ACTION not in info["features"]:
        found = ", ".join(info["features"])
        raise UserError(f"{path}: no column '{ACTION}', found {found}; name it so and write again")
    return info


def read_ours(folder: Path) -> dict[str, Any]:
    """What `OURS` says; nothing where there is no such file.

    Raises:
        UserError: it is damaged, or says what cannot be.
    """
    path = folder / OURS
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict):
        raise UserError(f"{path}: not a JSON object; delete it, or write one")
    for name, literal in (("orientation", Orientation), ("quality", Quality)):
        if name in said and said[name] not in get_args(literal):
            raise UserError(f"{path}: {unknown(name, str(said[name]), get_args(literal))}")
    stride, kinds = said.get("frame_stride", 1), said.get("action_kinds", [])
    if type(stride) is not int or stride < 1 or not isinstance(kinds, list) or not all(type(k) is str for k in kinds):
        raise UserError(
            f"{path}: frame_stride is no number from 1, or action_kinds no list of texts; mend that or delete it"
        )
    return said


def camera_sizes(folder: Path, features: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the pictures of each camera, by its key; depth maps are none.

    Raises:
        UserError: there is no camera, or a shape is not that of pictures in colour.
    """
    found = (key for key, one in features.items() if one.get("dtype") in ("video", "image") and not _is_depth(one))
    keys = checked_cameras(str(folder / INFO), found, AGAIN)
    if not keys:
        raise UserError(f"{folder / INFO}: no camera among its features; a policy needs pictures")
    return {key: _size(folder, key, features[key]) for key in keys}


def _is_depth(feature: dict[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info")
    return isinstance(about, dict) and any(about.get(name) for name in ("is_depth_map", "video.is_depth_map"))


def _size(folder: Path, key: str, feature: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of a camera's pictures; the colours may come first or last."""
    shape, names = feature["shape"], feature.get("names")
    if len(shape) != 3:
        raise UserError(f"{folder / INFO}: the shape of '{key}' is {shape}, not rows, columns and 3 colours; {AGAIN}")
    first = shape[2] != 3
    if isinstance(names, list) and len(names) == 3:
        first = str(names[0]).startswith("channel")
    rows, columns = shape[1:] if first else shape[:2]
    return int(rows), int(columns)


def camera_names(keys: Sequence[str]) -> tuple[str, ...]:
    """``observation.images.top`` is the camera ``top``; whole keys where two would be called alike."""
    short = [key.removeprefix(IMAGES).removeprefix("observation.") for key in keys]
    return tuple(short if len(set(short)) == len(short) else keys)


def action_space(
    folder: Path, features: Mapping[str, Any], actions: Float[np.ndarray, "N a"], ours: Mapping[str, Any]
) -> tuple[ActionSpace, dict[int, np.ndarray]]:
    """What the actions are: by the names of `INFO`, and by the kinds of `OURS` or else by how many values there are.

    Args:
        folder: of the dataset.
        features: what `INFO` says of the columns.
        actions: all of them.
        ours: what `OURS` says.

    Returns:
        See `la_reconvla.data.action_values.space_of`.

    Raises:
        UserError: kinds do not fit, or a binary dimension has not two values.
    """
    names = _action_names(str(folder / INFO), features[ACTION].get("names"), actions.shape[1])
    return space_of(str(folder / OURS), names, ours.get("action_kinds", ()), actions)


def _action_names(where: str, given: Any, width: int) -> tuple[str, ...]:
    """Names of the dimensions: a list, or lists by the part of the robot; numbered where they are missing or repeat."""
    flat = [checked_text(where, "names of the action", text, AGAIN) for text in _texts(given)]
    if len(flat) != width:
        return tuple(f"action {place}" for place in range(width))
    return tuple(n if flat.count(n) == 1 else f"{n} {flat[:i].count(n) + 1}" for i, n in enumerate(flat))


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, dict | list):
        for one in given.values() if isinstance(given, dict) else given:
            yield from _texts(one)
