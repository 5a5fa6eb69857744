"""Writes a LeRobotDataset of version 3.0, an episode at a time; the layout: `la_reconvla.data.lerobot_layout`."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from la_reconvla.data.lerobot_layout import (
    ACTION,
    DATA_PATH,
    EPISODES,
    FILES_A_CHUNK,
    IMAGES,
    INFO,
    OURS,
    STATE,
    STATS,
    TASKS,
    VERSION,
    VIDEO_PATH,
    PictureKind,
    needed,
    placed,
)
from la_reconvla.data.lerobot_statistics import Shades, statistics
from la_reconvla.storage import write_json

# Two pictures from key to key, so that a single one is found at once; quality as LeRobot's own for AV1.
ENCODERS = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
    "h264": ("libx264", {"g": "2", "crf": "18"}),
}
OWN = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Contents:
    """What a dataset holds.

    Attributes:
        rate: steps a second.
        cameras: rows and columns of their pictures, by name.
        actions: names of the dimensions.
        states: names of the robot's state; None where there is none.
        pictures: how they are stored.
        data_mb: a file of rows takes no further episode once it is so large (MiB).
        video_mb: likewise a video.
    """

    rate: int
    cameras: Mapping[str, tuple[int, int]]
    actions: tuple[str, ...]
    states: tuple[str, ...] | None
    pictures: PictureKind
    data_mb: int = 100
    video_mb: int = 200


class LeRobotWriter:
    """Episodes in, a folder out, which is complete after `finish`."""

    def __init__(self, root: Path, contents: Contents) -> None:
        self.root, self.contents = root, contents
        self.arrow, self.parquet = needed("pyarrow"), needed("pyarrow.parquet")
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._numbers: dict[str, list[np.ndarray]] = {}
        self._shades = {camera: Shades() for camera in contents.cameras}
        self._steps = 0
        self._data = _Rows(self)
        videos = () if contents.pictures == "png" else contents.cameras
        self._videos = {camera: _Video(self, IMAGES + camera, contents.cameras[camera]) for camera in videos}

    def add(
        self,
        instruction: str,
        actions: Float32[np.ndarray, "T a"],
        state: Float32[np.ndarray, "T p"] | None,
        pictures: Callable[[str], Iterator[UInt8[np.ndarray, "H W 3"]]],
    ) -> None:
        """Write one episode; `pictures` gives those of a camera, T of them."""
        length, number = len(actions), len(self._rows)
        task, steps = self._tasks.setdefault(instruction, len(self._tasks)), np.arange(length)
        vectors = {ACTION: actions} if state is None else {STATE: state, ACTION: actions}
        own = {
            "timestamp": (steps / self.contents.rate).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": steps + self._steps,
            "task_index": np.full(length, task),
        }
        row = {
            "episode_index": number,
            "tasks": [instruction],
            "length": length,
            "dataset_from_index": self._steps,
            "dataset_to_index": self._steps + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        cells: dict[str, list[bytes]] = {}
        for camera in self.contents.cameras:
            shades = Shades()
            passing = shades.seen(pictures(camera))
            if camera in self._videos:
                row |= self._videos[camera].add(passing, length)
            else:
                cells[IMAGES + camera] = [_png(picture) for picture in passing]
            row |= {f"stats/{IMAGES}{camera}/{name}": value for name, value in shades.statistics().items()}
            self._shades[camera] += shades
        row |= self._data.add(cells, vectors, own)
        for key, values in {**vectors, **own}.items():
            rows = values.reshape(length, -1)
            self._numbers.setdefault(key, []).append(rows)
            row |= {f"stats/{key}/{name}": value for name, value in statistics(rows).items()}
        self._rows.append(row)
        self._steps += length

    def finish(self, ours: Mapping[str, Any]) -> None:
        """Close all files and write what the folder says of itself; `ours` is what LeRobot's format cannot say."""
        self._data.close()
        for video in self._videos.values():
            video.close()
        path = self.root / EPISODES / "chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        self.parquet.write_table(self.arrow.Table.from_pylist(self._rows), path)
        self.parquet.write_table(self._task_table(), self.root / TASKS)
        stats = {IMAGES + camera: shades.statistics() for camera, shades in self._shades.items()}
        stats |= {key: statistics(np.concatenate(parts)) for key, parts in self._numbers.items()}
        write_json(self.root / STATS, stats)
        write_json(self.root / OURS, ours)
        write_json(self.root / INFO, self._info())

    def _task_table(self) -> Any:
        """The instructions, as pandas keeps a table whose index they are: LeRobot looks them up there."""
        table = self.arrow.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        about = {
            "index_columns": ["task"],
            "column_indexes": [
                {
                    "name": None,
                    "field_name": None,
                    "pandas_type": "unicode",
                    "numpy_type": "object",
                    "metadata": {"encoding": "UTF-8"},
                }
            ],
            "columns": [
                {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
                for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
            ],
            "pandas_version": "2.0.0",
        }
        return table.replace_schema_metadata({"pandas": json.dumps(about)})

    def _info(self) -> dict[str, Any]:
        told = self.contents
        features: dict[str, Any] = {}
        for camera, (rows, columns) in told.cameras.items():
            features[IMAGES + camera] = {
                "dtype": "video" if camera in self._videos else "image",
                "shape": [rows, columns, 3],
                "names": ["height", "width", "channel"],
                **({"info": self._videos[camera].about()} if camera in self._videos else {}),
            }
        vectors = {ACTION: told.actions} if told.states is None else {STATE: told.states, ACTION: told.actions}
        for key, names in vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        features |= {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in OWN.items()}
        return {
            "codebase_version": VERSION,
            "robot_type": None,
            "fps": told.rate,
            "features": features,
            "total_episodes": len(self._rows),
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": told.data_mb,
            "video_files_size_in_mb": told.video_mb,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "splits": {"train": f"0:{len(self._rows)}"},
        }


class _Files:
    """Files that follow each other when one is large enough."""

    def __init__(self, template: str, limit: int) -> None:
        self.template, self.limit, self.number = template, limit * MEGABYTE, -1
        self.size = 0  # of the last one so far (bytes)

    @property
    def place(self) -> dict[str, int]:
        return {"chunk_index": self.number // FILES_A_CHUNK, "file_index": self.number % FILES_A_CHUNK}

    def full(self) -> bool:
        """Whether the next episode begins a file."""
        return self.number < 0 or self.size >= self.limit

    def next(self, root: Path, **more: str) -> Path:
        self.number, self.size = self.number + 1, 0
        path = placed(root, self.template, {**self.place, **more})
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _Rows:
    """The files of rows; an episode is a row group, so that it is read alone."""

    def __init__(self, writer: LeRobotWriter) -> None:
        self.writer = writer
        self.open: Any = None
        self.files = _Files(DATA_PATH, writer.contents.data_mb)

    def add(
        self, cells: Mapping[str, list[bytes]], vectors: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
    ) -> dict[str, int]:
        """Write an episode's rows; where they are."""
        arrow = self.writer.arrow
        picture = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        columns = {}
        for key, pictures in cells.items():
            named = [{"bytes": png, "path": f"frame-{step:06d}.png"} for step, png in enumerate(pictures)]
            columns[key] = arrow.array(named, picture)
        for key, rows in vectors.items():
            flat = arrow.array(np.ascontiguousarray(rows, np.float32).ravel())
            columns[key] = arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        columns |= {key: arrow.array(values.astype(OWN[key])) for key, values in own.items()}
        table = arrow.table(columns).replace_schema_metadata({"huggingface": _types(cells, vectors)})
        if self.files.full():
            self.close()
            self.open = self.writer.parquet.ParquetWriter(self.files.next(self.writer.root), table.schema)
        self.open.write_table(table, row_group_size=len(table))
        self.files.size += table.nbytes  # pictures, nearly all of it, are compressed already
        return {f"data/{name}": value for name, value in self.files.place.items()}

    def close(self) -> None:
        if self.open is not None:
            self.open.close()


class _Video:
    """The videos of one camera; episodes follow each other in a file."""

    def __init__(self, writer: LeRobotWriter, key: str, size: tuple[int, int]) -> None:
        self.writer, self.key, self.size = writer, key, size
        self.files, self.count = _Files(VIDEO_PATH, writer.contents.video_mb), 0
        self.open: Any = None
        self.av = needed("av")
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it writes a page about each file otherwise

    def about(self) -> dict[str, Any]:
        rows, columns = self.size
        found = {"height": rows, "width": columns, "codec": self.writer.contents.pictures, "pix_fmt": "yuv420p"}
        found |= {"fps": self.writer.contents.rate, "channels": 3}
        return {**{f"video.{name}": value for name, value in found.items()}, "has_audio": False, "is_depth_map": False}

    def add(self, pictures: Iterator[UInt8[np.ndarray, "H W 3"]], length: int) -> dict[str, Any]:
        """Encode an episode's pictures; where they are."""
        if self.files.full():
            self.close()
            self._begin()
        container, stream = self.open
        rate, first = self.writer.contents.rate, self.count
        for picture in pictures:
            frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.count, Fraction(1, rate)
            packets = stream.encode(frame)
            container.mux(packets)
            self.count, self.files.size = self.count + 1, self.files.size + sum(packet.size for packet in packets)
        times = {"from_timestamp": first / rate, "to_timestamp": (first + length) / rate}
        return {f"videos/{self.key}/{name}": value for name, value in (self.files.place | times).items()}

    def _begin(self) -> None:
        name, options = ENCODERS[self.writer.contents.pictures]
        path = self.files.next(self.writer.root, video_key=self.key)
        container = self.av.open(str(path), "w")
        stream = container.add_stream(name, rate=self.writer.contents.rate, options=options)
        stream.height, stream.width = self.size
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, self.writer.contents.rate)
        self.open, self.count = (container, stream), 0

    def close(self) -> None:
        if self.open is not None:
            container, stream = self.open
            container.mux(stream.encode())
            container.close()


def _png(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def _types(cells: Mapping[str, Any], vectors: Mapping[str, np.ndarray]) -> str:
    """What the columns are, as the package `datasets` keeps it: it shows pictures where a file is opened alone."""

    def value(kind: str) -> dict[str, str]:
        return {"dtype": kind, "_type": "Value"}

    features: dict[str, Any] = {key: {"_type": "Image"} for key in cells}
    features |= {k: {"feature": value("float32"), "length": v.shape[1], "_type": "List"} for k, v in vectors.items()}
    return json.dumps({"info": {"features": {**features, **{key: value(kind) for key, kind in OWN.items()}}}})
