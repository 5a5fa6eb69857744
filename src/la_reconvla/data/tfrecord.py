"""TFRecord files and the `tf.train.Example` in each of their records, without TensorFlow.

::

    length uint64 | its checksum uint32 | data | their checksum uint32        little-endian, one record after another

A checksum is CRC-32C (Castagnoli), rotated and shifted, as data that hold their own plain one are checked badly by it.
The data are a protocol buffer: a map from names of features to lists of bytes, of floats or of integers. Fields are
found by their lengths, so that a feature can be read without what lies before it: actions, but no pictures.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, Int64

from la_reconvla.errors import UserError, install_command
from la_reconvla.storage import why_unreadable

AGAIN = "download that file again"
HEAD, TAIL = 12, 4  # bytes around the data: length and its checksum, checksum of the data
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5  # protocol buffers' kinds of fields
_FIXED = {FIXED64: 8, FIXED32: 4}
_DAMAGE = (OSError, ValueError, OverflowError, MemoryError)

Feature = list[bytes] | Float32[np.ndarray, " N"] | Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Record:
    """Where a record is.

    Attributes:
        path: its file.
        offset: of its first byte there, that of its length.
        length: bytes of its data.
    """

    path: Path
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.path}: the record at byte {self.offset}"


def masked_checksum(data: bytes) -> int:
    """CRC-32C of `data` as TFRecord files have it.

    Raises:
        UserError: the package that computes it is not installed.
    """
    crc = _package().value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records_in(path: Path) -> list[Record]:
    """All records of a file in their order; of each only its length is read.

    Raises:
        UserError: the file is missing, is no TFRecord file or is cut off.
    """
    found: list[Record] = []
    at = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while at < size:
                file.seek(at)
                record = Record(path, at, _length(file.read(HEAD), size - at))
                found.append(record)
                at += HEAD + record.length + TAIL
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, and the dataset needs it; {AGAIN}") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: the record at byte {at}: {why_unreadable(error, AGAIN)}") from error
    return found


def data_of(record: Record) -> bytes:
    """The data of a record, compared with their checksum.

    Raises:
        UserError: they differ, or the file is cut off.
    """
    with _reading(record), record.path.open("rb") as file:
        file.seek(record.offset + HEAD)
        data = file.read(record.length)
        if len(tail := file.read(TAIL)) != TAIL or int.from_bytes(tail, "little") != masked_checksum(data):
            raise ValueError("its checksum (CRC-32C) is another one")
    return data


def features_in(record: Record, names: Collection[str], data: bytes | None = None) -> dict[str, Feature]:
    """These features of a record, those that it has.

    Args:
        record: where it is.
        names: of the features.
        data: its data, where they were read; else no more than what leads to these features is, and no checksum is
            compared.

    Raises:
        UserError: the record is damaged.
    """
    with _reading(record), io.BytesIO(data) if data is not None else record.path.open("rb") as file:
        start = 0 if data is not None else record.offset + HEAD
        found = {}
        for entry, (first, last) in _entries(file, start, start + record.length):
            if entry in names:
                found[entry] = _values(file, first, last)
    return found


def _package() -> Any:
    """The one that computes CRC-32C; `Any`, as it is not there for every reader of this code."""
    try:
        return importlib.import_module("google_crc32c")
    except ImportError as error:
        command = install_command("rlds")
        raise UserError(f"a dataset in RLDS needs google-crc32c ({error}); install it: {command}") from error


@contextlib.contextmanager
def _reading(record: Record) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{record}: {why_unreadable(error, AGAIN)}") from error


def _length(head: bytes, left: int) -> int:
    """The length of the data, from the first bytes of a record that has `left` bytes of the file at most."""
    if len(head) != HEAD:
        raise ValueError("the file ends in it")
    if int.from_bytes(head[8:], "little") != masked_checksum(head[:8]):
        raise ValueError("the checksum (CRC-32C) of its length is another one")
    length = int.from_bytes(head[:8], "little")
    if HEAD + length + TAIL > left:
        raise ValueError("the file ends in it")
    return length


# ---------------------------------------------------------------- protocol buffers


def _entries(file: BinaryIO, first: int, last: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names of all features of an Example, and where each is."""
    for _, features in _parts(file, first, last, 1):
        for _, entry in _parts(file, *features, 1):
            name, value = "", None
            for number, span in _parts(file, *entry, 1, 2):
                if number == 1:
                    name = _read(file, *span).decode()
                else:
                    value = span
            if value is not None:
                yield name, value


def _values(file: BinaryIO, first: int, last: int) -> Feature:
    """What a feature holds; where there are several lists, the last one counts."""
    found: Feature = []
    for number, span in _parts(file, first, last, 1, 2, 3):
        if number == 1:
            found = [_read(file, *part) for _, part in _parts(file, *span, 1)]
        elif number == 2:  # packed or one by one: the same bytes
            content = [_read(file, a, b) for n, kind, a, b in _fields(file, *span) if n == 1 and kind != VARINT]
            found = np.frombuffer(b"".join(content), "<f4").astype(np.float32)
        else:
            numbers = [n for field, _, a, b in _fields(file, *span) if field == 1 for n in _varints(file, a, b)]
            found = np.array(numbers, np.uint64).astype(np.int64)
    return found


def _parts(file: BinaryIO, first: int, last: int, *numbers: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Fields of these numbers that have a length."""
    for number, kind, start, end in _fields(file, first, last):
        if number in numbers and kind == DELIMITED:
            yield number, (start, end)


def _fields(file: BinaryIO, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, beginning and end of each field of a message that lies from `first` to `last`."""
    at = first
    while at < last:
        file.seek(at)
        key = _varint(file)
        kind = key & 7
        if kind == DELIMITED:
            size = _varint(file)
            start = file.tell()
        elif kind == VARINT:
            start = file.tell()
            _varint(file)
            size = file.tell() - start
        elif kind in _FIXED:
            start, size = file.tell(), _FIXED[kind]
        else:
            raise ValueError(f"a field is of the kind {kind}")
        at = start + size
        if at > last:
            raise ValueError("a field reaches beyond what holds it")
        yield key >> 3, kind, start, at


def _varints(file: BinaryIO, first: int, last: int) -> Iterator[int]:
    file.seek(first)
    while file.tell() < last:
        yield _varint(file)


def _varint(file: BinaryIO) -> int:
    """An integer of as many bytes as it needs, seven bits in each, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number has more than ten bytes")


def _read(file: BinaryIO, first: int, last: int) -> bytes:
    file.seek(first)
    return file.read(last - first)
