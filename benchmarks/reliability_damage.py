"""Ways of damaging a file, each drawn from a generator: what `reliability` reads afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = np.random.Generator


# ---------------------------------------------------------------- bytes


def damage_bytes(path: Path, draws: DRAWS) -> None:
    content = bytearray(path.read_bytes())
    if not content:
        return
    at, length = int(draws.integers(len(content))), int(draws.choice([1, 2, 8, 64]))
    match draws.integers(5):
        case 0:
            content[at] ^= 1 << int(draws.integers(8))
        case 1:
            content[at : at + length] = draws.bytes(length)
        case 2:
            del content[at:]
        case 3:
            content[at:at] = draws.bytes(length)
        case _:
            del content[at : at + length]
    path.write_bytes(content)


# ---------------------------------------------------------------- JSON

ODD = (
    *(None, True, "", "x", [], {}, 0, -1, 1, 1.5, 1e308, 2**63, 10**30, -(10**30), float("nan"), float("inf")),
    *([None], [[]], {"kind": "x"}, "\ud800", "a" * 10_000, 10**400, 2**31 - 1, 3),
)


def change(value: Any, draws: DRAWS) -> Any:
    """`value` with one part, wherever it is, removed, replaced or repeated."""
    inner = [(None, value)]
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    if inner and isinstance(value, dict | list) and draws.random() < 0.85:
        key, part = inner[int(draws.integers(len(inner)))]
        result = value.copy()
        choice = draws.random()
        if isinstance(part, dict | list) and part and choice < 0.75:
            result[key] = change(part, draws)
        elif choice < 0.35:
            del result[key]
        else:
            result[key] = ODD[int(draws.integers(len(ODD)))]
        return result
    return ODD[int(draws.integers(len(ODD)))]


def damage_json(path: Path, draws: DRAWS) -> None:
    with contextlib.suppress(ValueError, RecursionError):  # an earlier change has left no JSON
        path.write_text(_dumps(change(json.loads(path.read_text(encoding="utf-8")), draws)), encoding="utf-8")


def damage_line(path: Path, draws: DRAWS) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    at = int(draws.integers(len(lines)))
    with contextlib.suppress(ValueError, RecursionError):
        lines[at] = _dumps(change(json.loads(lines[at]), draws))
    if draws.random() < 0.1:
        lines.insert(at, lines[at])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def nest(path: Path, draws: DRAWS) -> None:
    """Rare: the rest of the file so deep that a parser that calls itself runs out of stack."""
    if draws.random() < 0.03:
        text = path.read_text(encoding="utf-8", errors="replace")
        at = text.find(":", int(draws.integers(max(1, len(text))))) + 1
        path.write_text(text[:at] + "[" * 10_000 + "]" * 10_000 + text[at:], encoding="utf-8")


def _dumps(value: Any) -> str:
    sys.set_int_max_str_digits(0)
    return json.dumps(value)


# ---------------------------------------------------------------- safetensors


def damage_header(path: Path, draws: DRAWS) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = change(json.loads(content[8 : 8 + length]), draws)
    except (ValueError, RecursionError):
        return
    text = _dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


# ---------------------------------------------------------------- HDF5


def damage_hdf5(path: Path, draws: DRAWS) -> None:
    """One part or attribute removed, or written again as something else."""
    import h5py

    try:
        with h5py.File(path, "a") as file:
            names: list[str] = []
            file.visit(names.append)
            name = names[int(draws.integers(len(names)))]
            if draws.random() < 0.3:
                _damage_attribute(file[name], draws)
            else:
                _damage_part(file, name, draws)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, MemoryError):
        damage_bytes(path, draws)  # it is damaged already, or HDF5 itself refuses this


def _damage_attribute(item: Any, draws: DRAWS) -> None:
    names = list(item.attrs) or ["instruction"]
    name = names[int(draws.integers(len(names)))]
    if draws.random() < 0.3:
        item.attrs.pop(name, None)
        return
    odd = (
        7,
        -1,
        2**62,
        np.nan,
        np.inf,
        1e300,
        b"x",
        "x",
        "",
        np.zeros(3),
        np.zeros((0,)),
        b"\xff\xfe",
        "[1]",
        "{}",
        True,
    )
    item.attrs[name] = odd[int(draws.integers(len(odd)))]


def _damage_part(file: Any, name: str, draws: DRAWS) -> None:
    import h5py

    before = file[name]
    values = np.asarray(before[()]) if isinstance(before, h5py.Dataset) else None
    del file[name]
    if draws.random() < 0.2:
        return
    if values is None or values.dtype == object or draws.random() < 0.3:
        match draws.integers(6):
            case 0:
                file.create_group(name)
            case 1:
                file[name] = "a scalar"
            case 2:
                file[name] = h5py.SoftLink("/nowhere")
            case 3:
                file[name] = h5py.ExternalLink("nowhere.hdf5", "/data")
            case 4:
                file[name] = np.zeros((0, 7))
            case _:  # billions of values that were never written
                file.create_dataset(name, (2**40, 7), np.uint8, chunks=(1 << 20, 7))
        return
    kinds = ("f8", "f2", "u1", "i8", "S3", "?", "c16", ">i4")
    changed = (
        lambda: values[:-1],
        lambda: np.concatenate([values, values]),
        lambda: values[..., None],
        lambda: values.reshape(-1),
        lambda: values[..., :-1],
        lambda: values.astype(kinds[int(draws.integers(len(kinds)))]),
        lambda: np.where(draws.random(values.shape) < 0.2, np.nan, values.astype("f8")),
        lambda: values.astype("f8") * 10 ** draws.uniform(0, 300),
        lambda: np.zeros(values.shape[:1] + (3,) * 9),
    )
    with np.errstate(all="ignore"):
        file[name] = changed[int(draws.integers(len(changed)))]()


# ---------------------------------------------------------------- parquet


def damage_parquet(path: Path, draws: DRAWS) -> None:
    """One column, or all rows, removed, or written again as something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(table: Any) -> None:
        content = io.BytesIO()  # where writing fails, the file is left as it is
        pq.write_table(table, content)
        path.write_bytes(content.getvalue())

    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        if draws.random() < 0.2:
            rows = draws.integers(len(table) + 1, size=2)
            written(table.slice(rows.min(), np.ptp(rows)))
            return
        at = int(draws.integers(table.num_columns))
        name, values = table.column_names[at], table.column(at).to_pylist()
        if draws.random() < 0.2:
            written(table.drop_columns(name))
            return
        changed = change(values, draws) if draws.random() < 0.6 else [ODD[int(draws.integers(len(ODD)))]] * len(values)
        kept = pa.array(changed, table.column(at).type) if draws.random() < 0.4 else pa.array(changed)
        written(table.set_column(at, name, kept))
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, NotImplementedError):
        damage_bytes(path, draws)  # it is damaged already, or no parquet holds this


# ---------------------------------------------------------------- PNG


def damage_chunk(path: Path, draws: DRAWS) -> None:
    """A PNG's own sum is made right again, so that the change is not found by that alone."""
    content = bytearray(path.read_bytes())
    if content[:4] != b"\x89PNG":
        damage_bytes(path, draws)
        return
    places, at = [], 8
    while at + 12 <= len(content) and at + 12 + (length := int.from_bytes(content[at : at + 4], "big")) <= len(content):
        places.append((at, length))
        at += 12 + length
    if not places:
        return
    at, length = places[int(draws.integers(len(places)))] if draws.random() < 0.5 else places[0]
    for _ in range(int(draws.integers(1, 4))):
        if length:
            content[at + 8 + int(draws.integers(length))] = int(
                draws.choice([0, 1, 2, 16, 127, 255, draws.integers(256)])
            )
    content[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(content[at + 4 : at + 8 + length]))
    path.write_bytes(content)
