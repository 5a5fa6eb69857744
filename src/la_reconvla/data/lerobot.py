"""Reads LeRobotDatasets as demonstrations, and refuses damaged ones; the layout: `la_reconvla.data.lerobot_layout`.

All but the pictures is checked before anything is returned; those are decoded when they are asked for, one at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from la_reconvla.data.action_values import two_valued
from la_reconvla.data.dataset_episodes import LIBERO_STATE, DatasetEpisode
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5_layout import file_names
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.lerobot_index import Row, read_rows, read_tasks
from la_reconvla.data.lerobot_info import action_space, camera_names, camera_sizes, read_info, read_ours
from la_reconvla.data.lerobot_layout import (
    AGAIN,
    INFO,
    OURS,
    STATE,
    needed,
    reading,
)
from la_reconvla.errors import UserError
from la_reconvla.storage import sha256_of

FAR = 32  # pictures of a video; what lies further ahead is sought, not decoded through


@dataclass(frozen=True, eq=False, kw_only=True)
class LeRobotEpisode(DatasetEpisode):
    """An episode of a LeRobotDataset.

    Attributes:
        row: where its rows and pictures are.
        keys: the dataset's names of `cameras`.
    """

    row: Row
    keys: tuple[str, ...]
    state_name, remedy = STATE, AGAIN

    def stored(self, camera: str, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `Episode`.

        Raises:
            UserError: there is no such camera, or a file is damaged or lacks a picture.
        """
        size, key = self.picture_size(camera), self.keys[self.cameras.index(camera)]
        steps = (number * self.frame_stride for number in numbers)
        path, pictures = self.row.data, self._images(key, steps)
        if key in self.row.videos:
            path, pictures = self.row.videos[key][0], self._frames(key, steps)
        for picture in pictures:
            if picture.shape[:2] != size:
                raise UserError(
                    f"{path}: a picture of {self.demo} has {picture.shape[:2]} rows and columns, not {size} as "
                    f"{INFO} says; {AGAIN}"
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

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Episode`."""
        return (self.row.data, *(path for path, _ in self.row.videos.values()))

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
    return bytes.fromhex(sha256_of(path))


def read_folder(folder: Path) -> list[Episode]:
    """Check a LeRobotDataset and read what its episodes are, without their pictures.

    Raises:
        UserError: a file is missing, truncated or damaged, the version is another, a column that is needed is not
            there, lengths disagree, actions are not finite, or an episode has more than one instruction.
    """
    info, ours = read_info(folder), read_ours(folder)
    features = info["features"]
    sizes = camera_sizes(folder, features)
    keys = tuple(sizes)
    rows = read_rows(folder, info, [key for key in keys if features[key]["dtype"] == "video"])
    tasks = read_tasks(folder, info)
    for row in rows:
        if not np.isfinite(row.actions).all():
            raise UserError(
                f"{row.data}: actions of episode {row.index} contain NaN or infinity; take that episode out"
            )
    every = [row.actions for row in rows]
    space, others = action_space(folder, features, np.concatenate(every), ours)
    actions = two_valued(every, others)
    words = [tasks[row.task] if row.task in tasks else _no_task(folder, row) for row in rows]
    names = file_names(words)
    width = None if rows[0].state is None else rows[0].state.shape[1]
    if width is not None and ours.get("libero_state"):
        if width != len(LIBERO_STATE):
            raise UserError(f"{folder / OURS}: the state has {width} numbers, LIBERO's 8: take libero_state out")
        width = None
    shared: dict[str, Any] = {
        "path": folder,
        "quality": ours.get("quality", "official"),
        "image_size": sizes[keys[0]][0],
        "frame_stride": ours.get("frame_stride", 1),
        "space": space,
        "cameras": camera_names(keys),
        "orientation": ours.get("orientation", "upright"),
        "state_width": width,
        "rate": float(info["fps"]),
        "keys": keys,
        "sizes": tuple(sizes.values()),
    }
    about = zip(rows, words, actions, strict=True)
    return [
        LeRobotEpisode(
            **shared,
            demo=f"episode_{row.index:06d}",
            task_name=names[said],
            instruction=said,
            actions=mine,
            recorded_state=row.state,
            row=row,
        )
        for row, said, mine in about
    ]


def _no_task(folder: Path, row: Row) -> str:
    raise UserError(f"{folder}: episode {row.index} has the instruction {row.task}, which is in no list; {AGAIN}")
