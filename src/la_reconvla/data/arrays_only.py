"""Reads a ``.npy`` file whose object is a pickle of plain values and numpy arrays, and nothing else; runs none of it.

CALVIN keeps its language annotations in such a file. numpy reads one with ``allow_pickle=True`` only, which runs
whatever the file says. Here a name in the pickle is looked up in `ADMITTED`, five names that stand for classes of this
module: they check what they are given and call nothing. numpy's own would be no better than any code, as the state of a
dtype may turn numbers into pointers.

`pickle._Unpickler`, the one written in Python, holds its memo in a dict: a number in the file reserves no memory.
It follows `INSTRUCTIONS`. Of the others some reserve memory by a number, or could set attributes of the five classes
themselves, which would outlast the file.
"""

from __future__ import annotations

import io
import pickle  # the one file of this package that reads pickles
import sys
from pathlib import Path
from typing import Any

import numpy as np

from la_reconvla.errors import UserError
from la_reconvla.storage import why_unreadable

# pyright: reportAttributeAccessIssue=false
# (Its stubs know nothing of the Unpickler that is written in Python.)

LARGEST = 1 << 28  # bytes of a file; those of CALVIN's with 23 000 annotations have 40 MB
KINDS = "biufSUO"  # of numpy's types: numbers, text, objects
INSTRUCTIONS = (
    "PROTO FRAME STOP MARK POP POP_MARK GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "REDUCE BUILD"
)
"""Of pickles, those that plain values and arrays need, in all protocols."""
_CODES = [getattr(pickle, name)[0] for name in INSTRUCTIONS.split()]


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
    """Stands for an array; `value` is it, of objects the list of them."""

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
            self.value = content  # no copy: a small file could ask for very many
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
            raise ValueError("bytes in another encoding than numpy's")
        return text.encode("latin1")


ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Marker,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): Encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Scalar for core in ("core", "_core")},
}


class _Reader(pickle._Unpickler):  # pyright: ignore
    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.made = 0  # bytes of what calls have made

    def find_class(self, module: str, name: str) -> Any:
        """One of `ADMITTED`; what else a pickle names is refused by name."""
        if (module, name) not in ADMITTED:
            raise ValueError(f"it names {module}.{name}, and only numpy's arrays are read")
        return ADMITTED[module, name]

    def _refuse(self) -> None:
        raise ValueError("it has an instruction that plain values and arrays do not need")

    def _call(self) -> None:
        self.load_reduce()
        self.made += sys.getsizeof(self.stack[-1])
        if self.made > LARGEST:
            raise ValueError("it makes copies that do not fit in memory")

    def _set_state(self) -> None:
        if not isinstance(self.stack[-2], Dtype | Array):
            raise ValueError("it sets the state of something else than an array or its type")
        self.load_build()

    def _add_one(self) -> None:
        self._require_texts(self.stack[-2:-1])
        self.load_setitem()

    def _add_some(self) -> None:
        self._require_texts(self.stack[::2])
        self.load_setitems()

    def _new_dict(self) -> None:
        self._require_texts(self.stack[::2])
        self.load_dict()

    def _require_texts(self, keys: list[Any]) -> None:
        """Hashing tuples in tuples can take longer than anyone waits."""
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("a key that is no text")

    dispatch = (
        dict.fromkeys(pickle._Unpickler.dispatch, _refuse)  # pyright: ignore
        | {code: pickle._Unpickler.dispatch[code] for code in _CODES}  # pyright: ignore
        | {pickle.REDUCE[0]: _call, pickle.BUILD[0]: _set_state}
        | {pickle.SETITEM[0]: _add_one, pickle.SETITEMS[0]: _add_some, pickle.DICT[0]: _new_dict}
    )


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
        if not isinstance(held, Array) or not isinstance(held.value, list) or len(held.value) != 1:
            raise ValueError("it does not hold one object")
        return held.value[0]
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path}: {why_unreadable(error, remedy)}") from error


def _plain_type(name: Any) -> np.dtype:
    """A type by the name that numpy gives it in a pickle, for example ``f4`` or ``O8``."""
    if not isinstance(name, str) or len(name) > 10 or name[:1] not in KINDS or not name[1:].isdigit():
        raise ValueError(f"its arrays have the type {name if isinstance(name, str) else '?':.20}")
    return np.dtype("O" if name[0] == "O" else f"{name[0]}{name[1:]}")
