"""openpi's wire format: msgpack, with arrays as maps of bytes, type and shape. Nothing that is read is ever executed.

A client sends one map per step; names are those of openpi's LIBERO example:

====================== ==================================================================
observation/image      uint8 [H W 3], the main camera, standing as the server's metadata say; LIBERO's: "mirrored",
                       raw frames turned by 180 degrees
observation/wrist_image uint8 [H W 3], if the policy has a second camera
observation/state      float [p], if the policy is shown the robot's state
prompt                 str, the instruction
orientation            str, optional: refused if it is not that of the server's metadata
episode                str, optional: its name, in each of its messages, for policies that draw actions from noise
====================== ==================================================================

The server's first message is its metadata; each further one is ``{"actions": float32 [c a], "server_timing": ...}``. A
message of text in the place of a map is an error, as openpi's own client expects.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from la_reconvla.errors import UserError, install_command

ARRAY, DATA, TYPE, SHAPE = b"__ndarray__", b"data", b"dtype", b"shape"
SCALAR = b"__npgeneric__"
KINDS = "biuf"  # booleans, integers, floats; never objects
MAX_DIMENSIONS = 4
MAX_ITEMS = 64  # of a map or list: observations are flat
IMAGE, WRIST, STATE, PROMPT, ORIENTATION, EPISODE = (
    "observation/image",
    "observation/wrist_image",
    "observation/state",
    "prompt",
    "orientation",
    "episode",
)
ACTION_NAMES = "action_names"  # of the server's metadata: what each number of an action is


def require_packages() -> None:
    """See that what serving needs is installed.

    Raises:
        UserError: with the command that installs it.
    """
    if missing := [name for name in ("msgpack", "websockets") if importlib.util.find_spec(name) is None]:
        raise UserError(f"serving needs {' and '.join(missing)}: install with {install_command('serve')}")


def pack(message: Any) -> bytes:
    """A message as bytes; numpy arrays and numbers may be anywhere in it."""
    import msgpack

    return bytes(msgpack.packb(message, default=_packed) or b"")


def unpack(message: bytes) -> Any:
    """What `pack` or openpi's client packed.

    Raises:
        UserError: it is no msgpack, or an array in it is not what it says.
    """
    import msgpack

    try:
        return msgpack.unpackb(
            message,
            object_hook=_unpacked,
            max_map_len=MAX_ITEMS,
            max_array_len=MAX_ITEMS,
            max_ext_len=0,
            strict_map_key=False,
        )
    except UserError:
        raise
    except Exception as error:  # msgpack raises its own, ValueError and TypeError; a message nested too deep, another
        raise UserError(f"the message is no observation in msgpack ({type(error).__name__}: {error})") from error


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in KINDS:
            raise TypeError(f"arrays of {value.dtype} are not sent")
        return {ARRAY: True, DATA: value.tobytes(), TYPE: value.dtype.str, SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), TYPE: value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not sent")


def _unpacked(value: dict[Any, Any]) -> Any:
    if ARRAY in value:
        data, shape, kind = value.get(DATA), value.get(SHAPE), _kind(value.get(TYPE))
        if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            raise UserError("an array in the message has no bytes, or no shape")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise UserError(f"{shape} is no shape")
        if math.prod(shape) * kind.itemsize != len(data):
            raise UserError(f"an array of {kind} {list(shape)} does not have {len(data)} bytes")
        return np.frombuffer(data, kind).reshape(shape)
    if SCALAR in value:
        number = value.get(DATA)
        if not isinstance(number, bool | int | float):
            raise UserError("a number in the message is none")
        return _kind(value.get(TYPE)).type(number)
    return value


def _kind(name: Any) -> np.dtype[Any]:
    try:
        found = np.dtype(name)
    except (TypeError, ValueError):
        raise UserError(f"{name!r} is no type of numbers") from None
    if not isinstance(name, str | bytes) or found.kind not in KINDS:
        raise UserError(f"arrays of {name!r} are not read: send numbers")
    return found
