"""How the fields of a dataclass become options of a command."""

from __future__ import annotations

from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]  # among the command's other options
Group = tyro.conf.OmitArgPrefixes  # in a box of their own in the help, which the parameter's name heads
