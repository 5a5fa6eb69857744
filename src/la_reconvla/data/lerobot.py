"""Reads LeRobotDatasets as demonstrations, and refuses damaged ones; the layout: `la_reconvla.data.lerobot_layout`.

All but the pictures is checked before anything is returned; those are decoded when they are asked for, one at a time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5_layout import checked_cameras, checked_text, file_names, lacks, picture_names
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.lerobot_index import Row, read_rows, read_tasks
from la_reconvla.data.lerobot_layout import (
    ACTION,
    AGAIN,
    BEFORE,
    IMAGES,
    INFO,
    LIBERO_STATE,
    OURS,
    STATE,
    VERSION,
    needed,
    reading,
)
from la_reconvla.data.robot_states import checked_state
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import ActionSpace, Orientation, Quality
from la_reconvla.storage import read_json

FASTEST = 10**6  # steps a second
FAR = 32  # pictures of a video; what lies further ahead is sought, not decoded through


@dataclass(frozen=True, eq=False, kw_only=True)
class LeRobotEpisode(Episode):
    """An episode of a LeRobotDataset.

    Attributes:
        row: where its rows and pictures are.
        keys: the dataset's names of `cameras`.
        sizes: rows and columns of their pictures.
    """

    row: Row
    keys: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def stored(self, camera: str, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `Episode`.

        Raises:
            UserError: there is no such camera, or a file is damaged or lacks a picture.
        """
        place = self._place(camera)
        steps = (number * self.frame_stride for number in numbers)
        key = self.keys[place]
        path, pictures = self.row.data, self._images(key, steps)
        if key in self.row.videos:
            path, pictures = self.row.videos[key][0], self._frames(key, steps)
        for picture in pictures:
            if picture.shape[:2] != self.sizes[place]:
                raise UserError(
                    f"{path}: a picture of {self.demo} has {picture.shape[:2]} rows and columns, not "
                    f"{self.sizes[place]} as {INFO} says; {AGAIN}"
                )
            yield picture

    def sampled(self) -> Iterator[bytes]:
        """See `Episode`; of a video where in it the pictures begin, and the hash of the whole file.

        Raises:
            UserError: a file is damaged or lacks a picture.
        """
        key, count = self.keys[0], len(self.frame_steps)
        if key not in self.row.videos:
            return self._cells(key, (number * self.frame_stride for number in (0, count // 2, count - 1)))
        path, since = self.row.videos[key]
        with reading(path):
            return iter((f"{since}".encode(), _file_hash(path, path.stat().st_size, path.stat().st_mtime_ns)))

    def picture_size(self, camera: str) -> tuple[int, int]:
        """See `Episode`."""
        return self.sizes[self._place(camera)]

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Episode`."""
        return (self.row.data, *(path for path, _ in self.row.videos.values()))

    def proprio(self) -> Float32[np.ndarray, "T p"]:
        """See `Episode`.

        Raises:
            UserError: the dataset has no state, or it is not finite.
        """
        if self.row.state is None:
            raise lacks(self._where, STATE)
        width = len(LIBERO_STATE) if self.state_width is None else self.state_width
        return checked_state(self._where, STATE, self.row.state, (len(self.actions), width), AGAIN)

    def fingers(self) -> Float32[np.ndarray, "T 2"]:
        """See `Episode`; those of LIBERO's state are its last two numbers."""
        return self.proprio()[:, -2:]

    def executed(self) -> Float32[np.ndarray, "T a"]:
        """The labels: the format has nothing else."""
        return self.actions

    def first_state(self) -> Any:
        """See `Episode`.

        Raises:
            UserError: always; the format has no simulator states.
        """
        raise lacks(self._where, "init_state")

    def _place(self, camera: str) -> int:
        if camera not in self.cameras:
            raise lacks(self._where, picture_names(camera)[0])
        return self.cameras.index(camera)

    def _array(self, names: tuple[str, ...], rows: int) -> np.ndarray:
        raise lacks(self._where, names[0])

    def _images(self, key: str, steps: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Pictures that lie in the rows."""
        numbers = tuple(steps)
        for step, content in zip(numbers, self._cells(key, numbers), strict=True):
            yield read_picture(content, f"{self.row.data}: {key} at step {step}")

    def _cells(self, key: str, steps: Iterable[int]) -> Iterator[bytes]:
        """The same as PNG or JPEG, as they lie there."""
        datasets = needed("pyarrow.dataset")
        with reading(self.row.data):
            mine = datasets.field("episode_index") == self.row.index
            source = datasets.dataset(self.row.data)
            batches = source.scanner([key], filter=mine, batch_size=FAR, batch_readahead=1, fragment_readahead=1)
            cells = (cell for batch in batches.to_batches() for cell in batch.column(0))
            at, cell = -1, None
            for step in steps:
                while at < step:
                    at, cell = at + 1, next(cells, None)
                if cell is None or not (content := cell["bytes"].as_py()):
                    raise ValueError(f"{self.demo} has no picture {step} of {key}")
                yield content

    def _frames(self, key: str, steps: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Pictures of a video that begins somewhere in a file: each is where its time says."""
        av = needed("av")
        path, since = self.row.videos[key]
        first = round(since * self.rate)
        try:
            with reading(path), av.open(str(path)) as container:
                stream = container.streams.video[0]
                at, picture, frames = -FAR - 1, None, iter(())
                for step in steps:
                    if step - at > FAR:
                        container.seek(int((first + step) / self.rate / stream.time_base), stream=stream)
                        frames = container.decode(stream)
                    if step != at:
                        frame = _frame(frames, first + step, self.rate)
                        if frame is None:
                            raise ValueError(f"no picture at {(first + step) / self.rate:.3f} s, step {step}")
                        at, picture = step, frame.to_ndarray(format="rgb24")
                    yield picture  # pyright: ignore[reportReturnType]
        except av.FFmpegError as error:
            raise UserError(f"{path}: truncated or damaged ({error}); {AGAIN}") from error


def _frame(frames: Iterator[Any], number: int, rate: float) -> Any | None:
    """The next frame with this number, None if it is not there."""
    for frame in frames:
        found = round(float(frame.pts * frame.time_base) * rate)
        if found >= number:
            return frame if found == number else None
    return None


@functools.cache
def _file_hash(path: Path, size: int, changed: int) -> bytes:
    """Hash of a file, which many episodes share, as long as its size and the time of its last change (ns) stay."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.digest()


def read_folder(folder: Path) -> list[Episode]:
    """Check a LeRobotDataset and read what its episodes are, without their pictures.

    Raises:
        UserError: a file is missing, truncated or damaged, the version is another, a column that is needed is not
            there, lengths disagree, actions are not finite, or an episode has more than one instruction.
    """
    info = _info(folder)
    features, ours = info["features"], _ours(folder)
    found = (k for k, f in features.items() if f.get("dtype") in ("video", "image") and not _is_depth(f))
    keys = checked_cameras(str(folder / INFO), found, AGAIN)
    if not keys:
        raise UserError(f"{folder / INFO}: no camera among its features; a policy needs pictures")
    if ACTION not in features:
        raise UserError(
            f"{folder / INFO}: no column '{ACTION}', found {', '.join(features)}; name it so and write again"
        )
    rows = read_rows(folder, info, [key for key in keys if features[key]["dtype"] == "video"])
    tasks = read_tasks(folder, info)
    for row in rows:
        if not np.isfinite(row.actions).all():
            raise UserError(
                f"{row.data}: actions of episode {row.index} contain NaN or infinity; take that episode out"
            )
    space, actions = _actions(folder, features[ACTION], [row.actions for row in rows], ours.get("action_kinds"))
    words = [tasks[row.task] if row.task in tasks else _no_task(folder, row) for row in rows]
    names = file_names(words)
    width = None if rows[0].state is None else rows[0].state.shape[1]
    if width is not None and ours.get("libero_state"):
        if width != len(LIBERO_STATE):
            raise UserError(f"{folder / OURS}: the state has {width} numbers, LIBERO's 8: take libero_state out")
        width = None
    sizes = tuple(_size(folder, key, features[key]) for key in keys)
    shared: dict[str, Any] = {
        "path": folder,
        "suite": None,
        "task": None,
        "quality": ours.get("quality", "official"),
        "image_size": sizes[0][0],
        "frame_stride": ours.get("frame_stride", 1),
        "space": space,
        "cameras": _camera_names(keys),
        "orientation": ours.get("orientation", "upright"),
        "state_width": width,
        "rate": float(info["fps"]),
        "turn": (1, 1),
        "keys": keys,
        "sizes": sizes,
    }
    about = zip(rows, words, actions, strict=True)
    return [
        LeRobotEpisode(
            **shared, demo=f"episode_{row.index:06d}", task_name=names[said], instruction=said, actions=mine, row=row
        )
        for row, said, mine in about
    ]


# ---------------------------------------------------------------- what the folder says of itself


def _info(folder: Path) -> dict[str, Any]:
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
    return info


def _ours(folder: Path) -> dict[str, Any]:
    """What `OURS` says, checked."""
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


def _camera_names(keys: Sequence[str]) -> tuple[str, ...]:
    """``observation.images.top`` is the camera ``top``; whole keys where two would be called alike."""
    short = [key.removeprefix(IMAGES).removeprefix("observation.") for key in keys]
    return tuple(short if len(set(short)) == len(short) else keys)


def _no_task(folder: Path, row: Row) -> str:
    raise UserError(f"{folder}: episode {row.index} has the instruction {row.task}, which is in no list; {AGAIN}")


# ---------------------------------------------------------------- actions


def _actions(
    folder: Path, feature: dict[str, Any], every: Sequence[np.ndarray], kinds: Any
) -> tuple[ActionSpace, list[Float32[np.ndarray, "T a"]]]:
    """What the actions are, and all of them; those of two values become -1 and 1, the smaller -1."""
    joined = np.concatenate(every)
    names = _action_names(str(folder / INFO), feature.get("names"), joined.shape[1])
    two = [np.unique(column) for column in joined.T]
    kinds = kinds or ["binary" if len(values) == 2 else "continuous" for values in two]
    try:
        space = ActionSpace(names, tuple(kinds))
    except UserError as error:
        raise UserError(f"{folder / OURS}: {error}; mend action_kinds there") from None
    changed = [actions.copy() for actions in every]
    for place in space.binary:
        if not set(two[place]) <= {-1, 1}:
            if len(two[place]) != 2:
                raise UserError(
                    f"{folder / OURS}: the binary action '{names[place]}' has {len(two[place])} values, not two: write "
                    "continuous there"
                )
            for actions in changed:
                actions[:, place] = np.where(actions[:, place] == two[place][1], 1, -1)
    return space, changed


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
