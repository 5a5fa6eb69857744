"""A table of strings for a terminal and for Markdown, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table


@dataclass(frozen=True)
class TextTable:
    """A table of strings; `note` explains it in one sentence."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown, under its title and its note."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", self.note, table) if part)

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(*(Column(name, overflow="fold") for name in self.header), title=self.title)  # no number is cut
        for row in self.rows:
            table.add_row(*row)
        return table


def percent(value: float | None) -> str:
    """0.5 as "50 %"."""
    return "–" if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """A difference of rates in points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number with a fixed count of digits."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value; tiny ones as a bound."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
