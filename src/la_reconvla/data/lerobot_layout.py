"""The layout of a LeRobotDataset, the format of LeRobot, version 3.0; what is read of version 2.1 too.

::

    meta/info.json                                fps, features (names, shapes, kinds), templates of the paths below
    meta/tasks.parquet                            the instructions
    meta/episodes/chunk-000/file-000.parquet      a row an episode: its length, and where its rows and pictures are
    meta/stats.json                               statistics of all columns; not read, for those in use are no quantiles
    data/chunk-000/file-000.parquet               a row a step: actions, state, pictures as PNG where there is no video
    videos/CAMERA/chunk-000/file-000.mp4          a video of many episodes, a picture a step

Version 2.1 has ``meta/episodes.jsonl`` and ``meta/tasks.jsonl``, and one parquet and one video an episode.

What that format cannot say is in a file of ours beside it, `OURS`, which other programs leave alone::

    {"orientation": "mirrored", "action_kinds": ["continuous", ..., "binary"], "frame_stride": 2, "quality": "fast",
     "libero_state": true}

Each name may be missing. Pictures are in memory as they are stored, and upright unless `OURS` says otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from la_reconvla.errors import UserError, install_command
from la_reconvla.storage import why_unreadable

VERSION, BEFORE = "v3.0", "v2.1"
INFO, TASKS, STATS, EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/stats.json", "meta/episodes"
OURS = "meta/la_reconvla.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_A_CHUNK = 1000
ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
PictureKind = Literal["png", "av1", "h264"]  # how pictures are written: exactly, or as a video
AGAIN = "download or convert the dataset again"
# What pyarrow, PyAV and numpy raise where a damaged file gives another place, size or kind of something.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ArithmeticError, MemoryError)


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobotDataset, of any version; one that may not be read counts as none."""
    return os.path.isfile(folder / INFO)


def needed(module: str) -> Any:
    """A module of the extra ``datasets``; `Any`, as neither package says enough about its types.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        command = install_command("datasets")
        raise UserError(f"a LeRobotDataset needs pyarrow and PyAV ({error}); install them: {command}") from error


def placed(root: Path, template: str, values: Mapping[str, Any]) -> Path:
    """The file that a template of paths names; its fields are filled in as they are, or as numbers of some width.

    Raises:
        LookupError: a field has no value.
        ValueError: it is no such template, or the file would not lie below `root`.
    """
    if re.search("[{}]", re.sub(r"\{\w+(:\d{0,2}d)?\}", "", template)):  # any width could fill the memory
        raise ValueError(f"'{template}' is no path with fields like {{chunk_index:03d}}")
    path = PurePosixPath(template.format_map(values))
    if path.is_absolute() or ".." in path.parts:  # a link below the root may lead anywhere: the hub's cache is made so
        raise ValueError(f"{path} does not lie in the folder of the dataset")
    return root / path


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads a file of a dataset.

    Raises:
        UserError: it is missing, truncated or damaged.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file, and the dataset needs it; {AGAIN}")
        yield
    except _DAMAGE as error:
        raise UserError(f"{path}: {why_unreadable(error, AGAIN)}") from error
