"""One progress bar for long work: remaining time and rate on a terminal, a line now and then in a log file.

Work in other processes reports through `Bar.ticker`, which pickles::

    with progress("Collecting", total=150, unit="episodes") as bar:
        bar.advance(note="task 3")                     # here
        ticker = bar.ticker(multiprocessing.get_context("spawn"))
        process = context.Process(target=work, args=(ticker, ...))   # there: ticker.advance()
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

LINE_EVERY = 20.0  # seconds between lines where there is no terminal
BAR = 10  # columns: the numbers matter more
LINE = 80  # columns of a line where there is no terminal; the note is left out where it does not fit
LONGEST_NOTE = 60  # characters; a message must stay below the 512 bytes that POSIX writes to a pipe in one piece
_END = b""
_after: float | None = None  # seconds of what follows, see `followed_by`


class Ticker(Protocol):
    """Where progress is reported."""

    def advance(self, steps: float = 1, note: str | None = None, before: bool = False) -> None: ...


@dataclass(frozen=True)
class RemoteTicker:
    """The end of a progress bar that another process holds.

    A message is one write to a pipe, small enough for the operating system to make it complete or not at all. So
    there is no lock, as a queue has one, that a process which is killed could take with it.
    """

    pipe: Connection

    def advance(self, steps: float = 1, note: str | None = None, before: bool = False) -> None:
        """See `Bar.advance`. Does nothing once the bar has gone."""
        message = json.dumps((steps, note and note[:LONGEST_NOTE], before), ensure_ascii=False).encode()
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(message)


class Bar:
    """The running bar; made by `progress`."""

    def __init__(self, title: str, total: float, unit: str, done: float, console: Console) -> None:
        self._title, self._total, self._unit, self._console = title, total, unit, console
        self._done, self._begun_with, self._started = done, done, time.monotonic()
        self._line_at, self._note, self._after = self._started, "", _after
        self._lock = threading.Lock()
        self._tickers: list[tuple[Connection, threading.Thread]] = []
        self._rich = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(BAR),
            MofNCompleteColumn(),
            _Pace(self),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._rich.add_task(title, total=total, completed=int(done))

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.width

    def advance(self, steps: float = 1, note: str | None = None, before: bool = False) -> None:
        """Count `steps` more; `note` replaces the text behind the bar.

        Those that were done `before`, by a run that is being resumed, do not enter the rate.
        """
        with self._lock:
            self._done += steps
            self._begun_with += steps if before else 0
            self._note = self._note if note is None else note
            self._rich.update(self._task, completed=self._done)
            now = time.monotonic()
            if not self._console.is_terminal and (now - self._line_at >= LINE_EVERY or self._done >= self._total):
                self._line_at = now
                said = f"{self._title}: {self._done:g}/{self._total:g}, {self.pace()}"
                noted = f"{said}; {self._note}" if self._note else said
                self._console.print(noted if len(noted) <= LINE else said, soft_wrap=True, highlight=False)

    def pace(self, room: float = math.inf) -> str:
        """Remaining time and rate from the work done since this bar began, in words; the note too if `room` is given.

        Args:
            room: columns; what does not fit is left out whole.
        """
        said, shown = [*self._paces(), *([self._note] if self._note and room < math.inf else [])], ""
        for one in said:
            longer = f"{shown}, {one}" if shown else one
            if len(longer) > room:
                break
            shown = longer
        return shown

    def _paces(self) -> list[str]:
        fresh = self._done - self._begun_with
        seconds = time.monotonic() - self._started
        if fresh <= 0 or seconds <= 0:
            return ["starting"]
        rate = fresh / seconds
        left = max(0.0, self._total - self._done) / rate
        shown = f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{rate * 60:.1f} {self._unit}/min"
        in_all = [] if self._after is None else [f"about {_duration(left + self._after)} in all"]
        return [f"{_duration(left)} left", *in_all, shown]

    def ticker(self, context: BaseContext) -> RemoteTicker:
        """A handle for processes of `context`; may be used by any number of them, and by threads here."""
        ends: tuple[Any, Any] = context.Pipe(duplex=False)  # the type checker thinks of Windows, too
        reader, writer = ends
        thread = threading.Thread(target=self._drain, args=(reader,), daemon=True)
        thread.start()
        self._tickers.append((writer, thread))
        return RemoteTicker(writer)

    def _drain(self, reader: Connection) -> None:
        with reader:
            while (message := reader.recv_bytes()) != _END:
                self.advance(*json.loads(message))

    def _stop(self) -> None:
        for writer, thread in self._tickers:
            writer.send_bytes(_END)
            thread.join(timeout=5)
            writer.close()
        self._rich.stop()


class _Pace(ProgressColumn):
    """What fits beside title, bar and count, so that no number is cut."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> Text:
        count = 2 * len(str(int(task.total or 0))) + 1
        room = self._bar.width - (1 + len(task.description) + BAR + count + 4)
        return Text(self._bar.pace(room), style="cyan", no_wrap=True)


@contextlib.contextmanager
def followed_by(seconds: float | None) -> Iterator[None]:
    """While the body runs, bars add the seconds of what comes after it to the time that is left; None: not known."""
    global _after
    before, _after = _after, seconds
    try:
        yield
    finally:
        _after = before


@contextlib.contextmanager
def progress(
    title: str, total: float, unit: str = "steps", done: float = 0, console: Console | None = None
) -> Iterator[Bar]:
    """Show progress while the body runs.

    Args:
        title: what is being done, for example ``Collecting``.
        total: how many `unit` there are.
        unit: what is counted, in the plural.
        done: how many were done before, in a run that is being resumed; they do not enter the rate.
        console: where to; standard error by default.
    """
    bar = Bar(title, total, unit, done, console or Console(stderr=True))
    bar._rich.start()
    try:
        yield bar
    finally:
        bar._stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
