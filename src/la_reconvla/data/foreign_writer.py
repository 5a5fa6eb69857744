"""Writes episodes of any robot as demonstration files, a picture at a time.

Each episode becomes a file of its own first, so that what is stopped goes on; at the end those of one instruction
become one file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, UInt8

from la_reconvla.data import hdf5_layout as names
from la_reconvla.data.hdf5_writer import COMPRESSION, merge_files, write_totals
from la_reconvla.errors import UserError
from la_reconvla.progress import progress
from la_reconvla.storage import atomic_write

Pictures = Iterator[UInt8[np.ndarray, "H W 3"]]


@dataclass(frozen=True, eq=False)
class Foreign:
    """One episode, ready to be written.

    Attributes:
        where: where it comes from, for messages; what follows the last slash is kept in the file.
        instruction: the words that the robot was given.
        actions: labels; binary ones are -1 or 1.
        states: what goes into the group ``obs`` beside pictures, each [T .].
        pictures: those of a camera by its name, one for each action, or for each of every ``frame_stride``.
    """

    where: str
    instruction: str
    actions: Float32[np.ndarray, "T a"]
    states: Mapping[str, Float32[np.ndarray, "T p"]]
    pictures: Callable[[str], Pictures]


def write_foreign(out: Path, episodes: Sequence[Foreign], cameras: Sequence[str], about: Mapping[str, Any]) -> int:
    """Write all files into the folder `out`, or go on; how many there are.

    Args:
        out: the folder.
        episodes: of one robot.
        cameras: names of the cameras.
        about: attributes of every file.

    Raises:
        UserError: there are not as many pictures as actions need, they differ in size or cannot be read, or the disk
            is full.
    """
    of_file: dict[str, list[Path]] = {}
    tasks = names.file_names(episode.instruction for episode in episodes)
    with progress("Importing", total=len(episodes), unit="episodes") as bar:
        for number, episode in enumerate(episodes):
            task = tasks[episode.instruction]
            shard = out / names.SHARDS / f"{number:05d}.hdf5"
            of_file.setdefault(task, []).append(shard)
            there = (out / f"{task}{names.DEMO_SUFFIX}").exists() or shard.exists()
            if not there:
                _write_shard(shard, episode, cameras, {**about, "task_name": task})
            bar.advance(note=Path(episode.where).name, before=there)
    for task, shards in of_file.items():
        path = out / f"{task}{names.DEMO_SUFFIX}"
        if not path.exists():
            merge_files(shards, path)
    shutil.rmtree(out / names.SHARDS, ignore_errors=True)
    return len(of_file)


def _write_shard(path: Path, episode: Foreign, cameras: Sequence[str], about: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs.update(about)
        demo = data.create_group("demo_0")
        length = len(episode.actions)
        source = Path(episode.where).name
        demo.attrs.update({"instruction": episode.instruction, "num_samples": length, "source": source})
        demo["actions"] = episode.actions
        observed = demo.create_group("obs")
        for name, values in episode.states.items():
            observed[name] = values
        for camera in cameras:
            _write_pictures(demo, episode, camera, -(-length // about.get("frame_stride", 1)))
        write_totals(data)


def _write_pictures(demo: Any, episode: Foreign, camera: str, wanted: int) -> None:
    """One picture at a time into the file; one more than there are actions is left out."""
    written, count = None, 0
    for picture in episode.pictures(camera):
        if written is None:
            shape = picture.shape
            written = demo.create_dataset(
                names.picture_names(camera)[0], (wanted, *shape), np.uint8, chunks=(1, *shape), **COMPRESSION
            )
        elif picture.shape != written.shape[1:]:
            raise UserError(
                f"{episode.where}: picture {count} of '{camera}' is {picture.shape[:2]}, the ones before are "
                f"{written.shape[1:3]}: give a camera's pictures one size"
            )
        if count < wanted:
            written[count] = picture
        count += 1
    if count not in (wanted, wanted + 1):
        raise UserError(
            f"{episode.where}: {wanted} actions and {count} pictures of '{camera}'; give each action its picture"
        )
