"""Pictures of training samples, ready to be gathered: in memory where they fit, else in a file that is read by rows."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.errors import UserError
from la_reconvla.memory import free_memory
from la_reconvla.storage import atomic_write, require_free_space
from la_reconvla.text_table import say

FOLDER = ".pictures"
"""Beside the demonstrations: files of pictures at the size of a policy. Whoever needs the room may delete it."""
SHARE = 0.5  # of the free memory that pictures may take; the rest is for training, and for workers that load meanwhile
_SCHEME = 1  # of the files; another number for whatever changes their bytes

Shape = tuple[int, int, int, int]


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes of pictures leave the rest of the program enough."""
    return size <= SHARE * free_memory()


class StoredPictures:
    """uint8 [N 3 S S] in a file, indexed as a tensor is: by a tensor of numbers.

    Rows are read, not mapped: a mapped file counts in full against a limit of the address space (``ulimit -v``), and a
    page fault costs more than a read. What was read lately stays in the system's cache, for all processes once.

    Args:
        path: the file.
        shape: of all pictures.
    """

    def __init__(self, path: Path, shape: Shape):
        self._path, self._shape, self._file = path, shape, path.open("rb")
        self._size = math.prod(shape[1:])

    def __getitem__(self, rows: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 S S"]:
        """The pictures of these numbers, on the CPU.

        Raises:
            UserError: the file was cut off meanwhile.
        """
        result = np.empty((len(rows), *self._shape[1:]), np.uint8)
        numbers = range(self._shape[0])
        for place, row in zip(result, rows.tolist(), strict=True):
            if os.preadv(self._file.fileno(), [place.data], numbers[row] * self._size) != self._size:
                raise UserError(f"{self._path} is cut off: delete it, and run the same command again")
        return torch.from_numpy(result)


def gathered(pictures: Iterable[UInt8[np.ndarray, "3 S S"]], shape: Shape) -> UInt8[Tensor, "N 3 S S"]:
    """All `pictures` in memory. Filled in place, so that they are never there twice."""
    result = torch.empty(shape, dtype=torch.uint8)
    for place, picture in zip(result, pictures, strict=True):
        place[...] = torch.from_numpy(picture)
    return result


def stored(
    pictures: Iterable[UInt8[np.ndarray, "3 S S"]], shape: Shape, shown: Demonstrations, kind: str
) -> StoredPictures:
    """All `pictures` in a file: that of an earlier run if it is there, else a new one, which this says in a line.

    Args:
        pictures: read only if there is no file yet.
        shape: of all of them together.
        shown: where they come from.
        kind: what decides them besides: camera and stride.

    Raises:
        UserError: no disk has room, or a picture cannot be read.
    """
    size, name = math.prod(shape), f"{_key(shape, shown, kind)}.u8"
    path = _folder(shown, name, size) / name
    with _turn(path):
        if not path.exists() or path.stat().st_size != size:
            require_free_space(path, size)
            say(
                f"{size / 1e9:.1f} GB of pictures are too many for the {free_memory() / 1e9:.1f} GB of memory that are "
                f"free: they go to {path}, where later runs find them; delete it when you need the room"
            )
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                for picture in pictures:
                    file.write(np.ascontiguousarray(picture).data)
        else:
            say(f"{size / 1e9:.1f} GB of pictures are read from {path}")
    return StoredPictures(path, shape)


def _key(shape: Shape, shown: Demonstrations, kind: str) -> str:
    """Changes with the content, and, as the hash looks at three pictures of an episode only, with the files too."""
    paths = sorted({path for episode in shown.episodes for path in episode.files})
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    named = [episode.name for episode in shown.episodes]
    return hashlib.sha256(json.dumps([_SCHEME, shape, kind, shown.hash, named, files]).encode()).hexdigest()[:16]


def _folder(shown: Demonstrations, name: str, size: int) -> Path:
    """Beside the demonstrations; where that cannot be, a folder for temporary files that is this user's own."""
    beside = shown.episodes[0].path.parent / FOLDER
    with contextlib.suppress(OSError, UserError):
        beside.mkdir(exist_ok=True)
        if not (beside / name).exists():
            require_free_space(beside, size)
        if os.access(beside, os.W_OK):
            return beside
    folder = Path(tempfile.gettempdir()) / f"la-reconvla-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else: set TMPDIR to a folder of yours")
    return folder


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time, so that workers who need the same file write it once."""
    with path.with_suffix(".lock").open("wb") as file:
        with contextlib.suppress(OSError):  # a disk without locks: each writes it, and the last one stays
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
