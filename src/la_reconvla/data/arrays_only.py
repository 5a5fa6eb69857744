"""Reads a ``.npy`` file whose object is a pickle of plain values and numpy arrays, and nothing else; runs none of it.

CALVIN keeps its language annotations in such a file. numpy reads one with ``allow_pickle=True`` only, which runs
whatever the file says. Here a name in the pickle is looked up in `ADMITTED`, five names that stand for classes of this
module: they check what they are given and call nothing. numpy's own would be no better than any code, as the state of a
dtype may turn numbers into pointers.

`pickle._Unpickler`, the one written in Python, holds its memo in a dict: a number in the file reserves no memory.
"""

from __future__ import annotations

import io
import pickle  # the one file of this package that reads pickles
from pathlib import Path
from typing import Any

import numpy as np

from la_reconvla.errors import UserError
from la_reconvla.storage import why_unreadable

LARGEST = 1 << 30  # bytes of a file; those of CALVIN's with 23 000 annotations have 40 MB
KINDS = "biufSUO"  # of numpy's types: numbers, text, objects
ArrayState = tuple[int, tuple[int, ...], "Dtype", bool, Any]


class Dtype:
    """Stands for ``numpy.dtype``: a plain type, named by its kind and size."""

    __slots__ = ("value",)

    def __init__(self, name: str, *_: Any):
        self.value = _plain_type(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order and size; fields, shapes and flags are refused."""
        _, order, inner, names, fields, size, *_ = state
        if (inner, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise ValueError("its arrays have a type with fields")
        kind = self.value.kind
        if kind == "S" and size > 0:
            self.value = np.dtype(f"S{size:d}")
        elif kind == "U" and size > 0:
            self.value = np.dtype(f"{order}U{size // 4:d}")
        elif kind != "O":
            self.value = self.value.newbyteorder(order)


class Array:
    """Stands for an array; `value` is it, of objects a tuple of them beside the shape."""

    __slots__ = ("value",)

    def __init__(self, kind: Any, shape: Any, _: Any):
        if kind is not Marker or shape != (0,):
            raise ValueError("an array begins otherwise than numpy writes it")
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        """Shape, type and content; numpy compares its size with what is there."""
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, Dtype):
            raise ValueError("an array without a type")
        if dtype.value.kind == "O":
            if not isinstance(content, list) or shape not in ((), (len(content),)):
                raise ValueError("an array of objects with another number of them")
            self.value = tuple(content)
        else:
            flat = np.frombuffer(content, dtype.value)
            self.value = flat.reshape(shape, order="F" if fortran else "C")


class Marker:
    """Stands for ``numpy.ndarray``, of which only the name is used."""

    __slots__ = ()


class Scalar:
    """Stands for a single number of numpy's: its value."""

    __slots__ = ()

    def __new__(cls, dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, Dtype) or dtype.value.kind == "O":
            raise ValueError("a number without a type")
        return np.frombuffer(content, dtype.value, 1)[0]


class Encode:
    """Stands for ``_codecs.encode``: bytes as old protocols write them."""

    __slots__ = ()

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Marker,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): Encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Scalar for core in ("core", "_core")},
}


class _Reader(pickle._Unpickler):  # pyright: ignore
    def find_class(self, module: str, name: str) -> Any:
        """One of `ADMITTED`; what else a pickle names is refused by name."""
        if (module, name) not in ADMITTED:
            raise ValueError(f"it names {module}.{name}, and only numpy's arrays are read")
        return ADMITTED[module, name]


def read_object(path: Path, remedy: str) -> Any:
    """The one object of a file that ``numpy.save`` wrote: of dicts, lists, tuples, texts, numbers and `Array`.

    Args:
        path: the file.
        remedy: what helps where it is damaged.

    Raises:
        UserError: it is missing, truncated or too large, no such file, or names anything but numpy's arrays.
    """
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path} has {size / 1e9:.1f} GB, which no annotations need; {remedy}")
        file = io.BytesIO(path.read_bytes())
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"it holds {dtype} of shape {shape}, not one object")
        held = _Reader(file).load()
        if not isinstance(held, Array) or not isinstance(held.value, tuple) or len(held.value) != 1:
            raise ValueError("it does not hold one object")
        return held.value[0]
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path}: {why_unreadable(error, remedy)}") from error


def _plain_type(name: Any) -> np.dtype:
    """A type by the name that numpy gives it in a pickle, for example ``f4`` or ``O8``."""
    if not isinstance(name, str) or name[:1] not in KINDS or not name[1:].isdigit() or len(name) > 10:
        raise ValueError(f"its arrays have the type {name!r}")
    return np.dtype("O" if name[0] == "O" else f"{name[0]}{name[1:]}")
