"""Writes small datasets in RLDS, and damages a record so that its checksum does not tell."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from PIL import Image
from reliability_damage import damage_bytes

Values = Sequence[bytes] | np.ndarray
SHARD = "{name}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data: bytes) -> bytes:
    """A record."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def example(features: Mapping[str, Values]) -> bytes:
    """A ``tf.train.Example``; arrays of floats and of integers, lists of bytes."""
    entries = b"".join(_part(1, _part(1, name.encode()) + _part(2, _list(v))) for name, v in features.items())
    return _part(1, entries)


def _list(values: Values) -> bytes:
    if not isinstance(values, np.ndarray):
        return _part(1, b"".join(_part(1, value) for value in values))
    if values.dtype.kind == "f":
        return _part(2, _part(1, values.astype("<f4").tobytes()))
    return _part(3, _part(1, b"".join(_varint(int(value) % 2**64) for value in values.reshape(-1))))


def _part(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------- a dataset


def episode(number: int, length: int, words: str, cameras: Mapping[str, int]) -> dict[str, Values]:
    """Features of an episode as BridgeData V2 has them: random numbers, a first action of zeros, smaller pictures."""
    draws = np.random.default_rng(number)
    actions = draws.normal(0, 0.02, (length, 7))
    actions[:, 6] = np.resize([1, 1, 0.5, 0], length)
    actions[0] = 0
    pictures = {
        f"steps/observation/{camera}": [
            png(draws.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(length)
        ]
        for camera, size in cameras.items()
    }
    return {
        **pictures,
        "steps/action": actions,
        "steps/observation/state": np.cumsum(draws.normal(0, 0.02, (length, 7)), axis=0),
        "steps/language_instruction": [words.encode()] * length,
        "steps/is_first": np.arange(length) == 0,
        **{f"episode_metadata/has_{camera}": np.array([1]) for camera in cameras},
    }


def write_dataset(
    folder: Path, name: str, shards: Sequence[Sequence[Mapping[str, Values]]], cameras: Mapping[str, int]
) -> None:
    """A dataset with one split, its episodes in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {
        "name": "train",
        "shardLengths": [str(len(shard)) for shard in shards],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    pictures = {
        camera: {"image": {"dtype": "uint8", "encodingFormat": "png", "shape": _shape(size, size, 3)}}
        for camera, size in cameras.items()
    }
    numbers = {"tensor": {"dtype": "float32", "encoding": "none", "shape": _shape(7)}}
    flag = {"tensor": {"dtype": "bool", "encoding": "none", "shape": {}}}
    steps = _dict(
        action=numbers,
        observation=_dict(**pictures, state=numbers),
        language_instruction={"text": {}},
        is_first=flag,
    )
    metadata = _dict(**{f"has_{camera}": flag for camera in cameras})
    features = _dict(steps={"sequence": {"feature": steps, "length": "-1"}}, episode_metadata=metadata)
    (folder / "features.json").write_text(json.dumps(features), encoding="utf-8")
    for number, shard in enumerate(shards):
        path = folder / SHARD.format(name=name, split="train", number=number, count=len(shards))
        path.write_bytes(b"".join(framed(example(one)) for one in shard))


def _dict(**features: Any) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


def _shape(*sizes: int) -> dict[str, list[str]]:
    return {"dimensions": [str(size) for size in sizes]}


def make_rlds(folder: Path) -> None:
    """Three episodes in two shards, two cameras."""
    cameras = {"image_0": 8, "image_3": 8}
    words = ("put the carrot on the plate", "open the drawer", "put the carrot on the plate")
    made = [episode(number, 5, text, cameras) for number, text in enumerate(words)]
    write_dataset(folder, "bridge_orig", (made[:2], made[2:]), cameras)


# ---------------------------------------------------------------- damage


def damage_record(path: Path, draws: np.random.Generator) -> None:
    """Bytes of a record's data changed and its own sums made right again, so that the change is not found by them."""
    content, records, at = path.read_bytes(), [], 0
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        if at + 16 + length > len(content):
            break
        records.append(content[at + 12 : at + 12 + length])
        at += 16 + length
    if not records or at != len(content):
        damage_bytes(path, draws)
        return
    chosen, inside = int(draws.integers(len(records))), path.with_name(f"{path.name}.record")
    inside.write_bytes(records[chosen])
    damage_bytes(inside, draws)
    records[chosen] = inside.read_bytes()
    inside.unlink()
    path.write_bytes(b"".join(map(framed, records)))
