"""What a LeRobotDataset's files hold of each episode but its pictures, and whether they are all there and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from la_reconvla.data.hdf5_layout import checked_text
from la_reconvla.data.lerobot_layout import (
    ACTION,
    AGAIN,
    BEFORE,
    EPISODES,
    INFO,
    STATE,
    TASKS,
    needed,
    placed,
    reading,
)
from la_reconvla.errors import UserError
from la_reconvla.storage import parse_json


@dataclass(frozen=True, eq=False)
class Row:
    """One episode.

    Attributes:
        index: its number in the dataset.
        data: the file of its rows.
        videos: by the name of a camera, the file of its pictures and where in it they begin (s).
        task: number of its instruction.
        actions: float32 [T a], as they are stored.
        state: float32 [T p]; None where there is none.
    """

    index: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    task: int
    actions: Float32[np.ndarray, "T a"]
    state: Float32[np.ndarray, "T p"] | None


def read_rows(folder: Path, info: dict[str, Any], cameras: Sequence[str]) -> list[Row]:
    """All episodes in their order.

    Args:
        folder: of the dataset.
        info: what its ``info.json`` says.
        cameras: features whose pictures are videos.

    Raises:
        UserError: a file is missing, truncated or damaged, or episodes are not as long as they should be.
    """
    listed = _listed_before(folder, info) if info["codebase_version"] == BEFORE else _listed(folder)
    listed.sort(key=lambda one: one["episode_index"])
    if not listed or len(listed) != info["total_episodes"]:
        raise UserError(
            f"{folder / INFO} counts {info['total_episodes']} episodes, {len(listed)} are listed: the dataset is not "
            f"complete; {AGAIN}"
        )
    columns = [name for name in (ACTION, STATE) if name in info["features"]]
    for name in columns:
        if len(info["features"][name]["shape"]) != 1:
            raise UserError(
                f"{folder / INFO}: the shape of '{name}' is not one number; store one row of numbers a step"
            )
    widths = {name: int(info["features"][name]["shape"][0]) for name in columns}
    places = [_places(folder, info, one, cameras) for one in listed]
    _require_videos(places, listed, float(info["fps"]))
    of_file = {path: _table(path, widths) for path in dict.fromkeys(data for data, _ in places)}
    return [_row(one, *place, of_file[place[0]]) for one, place in zip(listed, places, strict=True)]


def read_tasks(folder: Path, info: dict[str, Any]) -> dict[int, str]:
    """The instructions by their number.

    Raises:
        UserError: the file is missing or damaged, or an instruction is empty.
    """
    path = folder / (TASKS if info["codebase_version"] != BEFORE else "meta/tasks.jsonl")
    with reading(path):
        if path.suffix == ".jsonl":
            lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            found = {int(line["task_index"]): line["task"] for line in lines}
        else:
            table = needed("pyarrow.parquet").read_table(path).to_pydict()
            words = table["task"] if "task" in table else table["__index_level_0__"]  # an index without a name
            found = dict(zip(table["task_index"], words, strict=True))
    if empty := [number for number, words in found.items() if not isinstance(words, str) or not words.strip()]:
        raise UserError(f"{path}: the instruction {empty[0]} is empty; write what the robot was told there")
    return {number: checked_text(str(path), f"instruction {number}", words, AGAIN) for number, words in found.items()}


# ---------------------------------------------------------------- where things are


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Rows of the list of episodes, without their statistics."""
    parquet = needed("pyarrow.parquet")
    paths = sorted((folder / EPISODES).glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{folder / EPISODES}: no list of episodes there; {AGAIN}")
    rows = []
    for path in paths:
        with reading(path):
            names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
            for row in parquet.read_table(path, columns=names).to_pylist():
                rows.append({**row, "episode_index": int(row["episode_index"]), "length": int(row["length"])})
    return rows


def _listed_before(folder: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The same of version 2.1, with the places in the form of version 3.0."""
    path = folder / "meta/episodes.jsonl"
    with reading(path):
        lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        numbers = [(int(line["episode_index"]), int(line["length"])) for line in lines]
        chunks = int(info.get("chunks_size", 1000))
        return [{"episode_index": i, "length": n, "episode_chunk": i // chunks} for i, n in numbers]


def _places(
    folder: Path, info: dict[str, Any], one: dict[str, Any], cameras: Sequence[str]
) -> tuple[Path, dict[str, tuple[Path, float]]]:
    """The file of an episode's rows, and the file and the beginning of its pictures."""

    def where(template: str, prefix: str, **more: str) -> Path:
        of_file = {name.removeprefix(prefix): value for name, value in one.items() if name.startswith(prefix)}
        return placed(folder, template, {**one, **of_file, **more})

    try:
        videos = {}
        for key in cameras:
            prefix = f"videos/{key}/"
            path = where(info["video_path"], prefix, video_key=key)
            since = float(one[f"{prefix}from_timestamp"] if "episode_chunk" not in one else 0)
            if not 0 <= since < float("inf"):
                raise ValueError(f"its pictures begin at {since} s")
            videos[key] = path, since
        return where(info["data_path"], "data/"), videos
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: where episode {one['episode_index']} lies cannot be read from data_path or video_path in "
            f"{INFO} and its list of episodes ({error}); {AGAIN}"
        ) from None


def _require_videos(places: Sequence[tuple[Path, Any]], listed: Sequence[dict[str, Any]], rate: float) -> None:
    """Each video can be opened and reaches as far as its episodes do; its end is read, not its whole."""
    until: dict[Path, float] = {}
    for (_, videos), one in zip(places, listed, strict=True):
        for path, since in videos.values():
            until[path] = max(until.get(path, 0), since + (one["length"] - 1) / rate)
    for path, last in until.items():
        av = needed("av")
        try:
            with reading(path), av.open(str(path)) as container:
                stream = container.streams.video[0]
                container.seek(int(last / stream.time_base), stream=stream)
                packets = [p for p in container.demux(stream) if p.pts is not None]
                if any(p.is_corrupt for p in packets) or not packets:
                    raise ValueError("its end is cut off")
                reached = max(float(p.pts * p.time_base) for p in packets)
                if reached < last - 0.5 / rate:
                    raise ValueError(f"it ends at {reached:.2f} s, its episodes at {last:.2f} s")
        except av.FFmpegError as error:
            raise UserError(f"{path}: truncated or damaged ({error}); {AGAIN}") from error


# ---------------------------------------------------------------- what is in the rows


def _table(path: Path, widths: dict[str, int]) -> dict[str, np.ndarray]:
    """Columns of a file of rows, without pictures."""
    numbers = ("episode_index", "frame_index", "task_index")
    with reading(path):
        table = needed("pyarrow.parquet").read_table(path, columns=[*numbers, *widths])
        found = {name: table[name].to_numpy().astype(np.int64) for name in numbers}
        for name, width in widths.items():
            column = table[name].combine_chunks()
            flat = column.flatten() if hasattr(column, "flatten") and width * len(column) else column
            values = flat.to_numpy(zero_copy_only=False)
            if values.dtype.kind not in "fiub" or values.size != width * len(table):
                raise ValueError(f"'{name}' is {column.type}, not {width} numbers a row")
            with np.errstate(over="ignore"):  # becomes infinite, and is refused
                found[name] = values.astype(np.float32).reshape(len(table), width)
    return found


def _row(one: dict[str, Any], data: Path, videos: dict[str, tuple[Path, float]], table: dict[str, np.ndarray]) -> Row:
    index, mine = one["episode_index"], np.flatnonzero(table["episode_index"] == one["episode_index"])
    if len(mine) != one["length"] or not len(mine) or (table["frame_index"][mine] != np.arange(len(mine))).any():
        raise UserError(
            f"{data}: episode {index} has {len(mine)} rows there, not {one['length']} that are numbered from 0, as its "
            f"list says; {AGAIN}"
        )
    tasks = np.unique(table["task_index"][mine])
    if len(tasks) > 1:
        raise UserError(
            f"{data}: episode {index} has {len(tasks)} instructions, one after the other; make an episode of each"
        )
    state = table[STATE][mine] if STATE in table else None
    return Row(index, data, videos, int(tasks[0]), table[ACTION][mine], state)
