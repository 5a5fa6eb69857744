"""Tables and sentences for a terminal and for Markdown, and numbers as people read them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

WHOLE = 24  # columns: a shorter cell is never broken into lines
FRAME = 3  # columns that a column takes beside its text


@dataclass(frozen=True)
class TextTable:
    """A table of strings. Printed by rich, it is as wide as the terminal at most.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: as many cells each.
        note: explains it in one sentence; in Markdown only.
        keys: how many of the first columns name a row. A table too wide for a terminal is broken into groups of
            columns, which begin with these.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    keys: int = 1

    def markdown(self) -> str:
        """As Markdown, under its title and its note."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", self.note, table) if part)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """For a terminal: the title, then one table for each group of columns."""
        yield Text(self.title, style="italic")
        room = options.max_width - 1
        for group in self._groups(room):
            widths = _shared([self._width(i) for i in group], [self._width(i, whole=True) for i in group], room)
            table = Table()
            for i, width in zip(group, widths, strict=True):
                table.add_column(self.header[i], width=width, overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(row[i]) for i in group))
            yield table

    def _groups(self, room: int) -> list[list[int]]:
        """Numbers of the columns that fit beside each other, the keys in every group."""
        keys = list(range(self.keys))
        groups, taken = [[*keys]], 0
        free = room - sum(self._width(i) + FRAME for i in keys)
        for i in range(self.keys, len(self.header)):
            width = self._width(i) + FRAME
            if taken + width > free and len(groups[-1]) > self.keys:
                groups, taken = [*groups, [*keys]], 0
            groups[-1].append(i)
            taken += width
        return groups

    def _width(self, column: int, whole: bool = False) -> int:
        """Columns that its words need, or its cells as a `whole`; a number and a short cell are one word."""
        cells = [row[column] for row in self.rows]
        parts = [cell for cell in cells if whole or cell_len(cell) <= WHOLE]
        parts += [word for cell in [*cells, self.header[column]] for word in cell.split()]
        parts += [self.header[column]] if whole else []
        return max(map(cell_len, parts), default=1)


def _shared(least: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Widths of columns: what each needs at least, and of what is left equally much, up to what it wants."""
    widths = list(least)
    while (low := [i for i, width in enumerate(widths) if width < wanted[i]]) and (
        free := room - sum(widths) - FRAME * len(widths)
    ) > 0:
        for i in low[:free]:
            widths[i] += 1
    return widths


def tell(text: str, console: Console | None = None) -> None:
    """Print sentences, broken between words only, so that no path and no number is cut.

    Args:
        text: one line or several.
        console: where to; standard output by default.
    """
    console = console or Console()
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        broken = textwrap.wrap(
            line.strip(),
            console.width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in broken or [""]:
            console.print(Text(part), soft_wrap=True)


def say(text: str) -> None:
    """`tell` on standard error: what people should know while a command runs."""
    tell(text, Console(stderr=True))


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
