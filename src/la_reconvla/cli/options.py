"""How parameters of a function, and the fields of dataclasses among them, become options of a command."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]  # among the command's other options
Group = tyro.conf.OmitArgPrefixes  # in a box of their own in the help, which the parameter's name heads

# No option takes the word None: leave it out instead. So an optional yes or no is a flag like any other.
CONFIG = (tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
REGISTRY = ConstructorRegistry()
_STYLE = re.compile(r"\x1b\[[\d;]*m")


@REGISTRY.primitive_rule
def _as_if_given(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """An option that may be left out is read and shown as what it is when given: INT, not {None}|INT."""
    inner = [one for one in get_args(info.type) if one is not type(None)]
    if get_origin(info.type) not in (Union, types.UnionType) or len(inner) != 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner[0], info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None

    def words(value: Any) -> list[str]:
        return [] if value is None else spec.str_from_instance(value)

    return replace(spec, str_from_instance=words, is_instance=lambda value: value is None or spec.is_instance(value))


@contextlib.contextmanager
def wrapped_help() -> Iterator[None]:
    """Break the usage and the description that tyro prints into lines of the terminal; its boxes fit already."""
    kept, columns = _Help(), shutil.get_terminal_size().columns
    try:
        with contextlib.redirect_stdout(kept):
            yield
    finally:
        for line in kept.getvalue().splitlines():
            wide = len(_STYLE.sub("", line)) > columns
            indent = " " * len("usage: ") if "usage: " in line else ""
            print(textwrap.fill(line, columns, subsequent_indent=indent, break_on_hyphens=False) if wide else line)


class _Help(io.StringIO):
    """Keeps what is printed, with the colours and frames that the real output can show."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = sys.stdout

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shown.encoding

    def isatty(self) -> bool:
        return self.shown.isatty()
