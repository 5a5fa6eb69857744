"""What a terminal shows: nothing wider than it is, and no number or path cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from la_reconvla.text_table import TextTable, tell

SCORES = TextTable(
    "Where words look",
    ("map", "wordings", *(f"distinguished by {i}" for i in range(9))),
    [(name, "held-out", *(f"0.{i}{len(name):02}" for i in range(9))) for name in ("mean", "localisation heads")],
    keys=2,
)
REASONS = TextTable("No fast path", ("arm", "reason"), [("C4 [8]", "this model keeps its own cache " * 6)])


def printed(what: object, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(what)
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_is_never_wider_than_the_terminal_and_shows_every_cell_whole(width: int) -> None:
    shown = printed(SCORES, width)
    assert max(map(len, shown.splitlines())) <= width
    for row in SCORES.rows:
        lines = [line for line in shown.splitlines() if row[0] in line]
        assert len(lines) == shown.count("┏")  # every group of columns names the row again
        assert all("held-out" in line for line in lines)
        assert re.findall(r"0\.\d+", " ".join(lines)) == list(row[2:])


def test_a_table_that_fits_stays_one() -> None:
    assert printed(SCORES, 300).count("┏") == 1
    assert printed(SCORES, 80).count("┏") > 1


def test_a_sentence_in_a_cell_is_broken_between_words() -> None:
    shown = printed(REASONS, 50)
    assert max(map(len, shown.splitlines())) <= 50
    assert shown.count("┏") == 1
    assert "C4 [8]" in shown  # brackets are no markup
    assert " ".join(re.findall(r"[a-z]+", "".join(shown.splitlines()[4:]))) == " ".join(REASONS.rows[0][1].split())


def test_a_sentence_is_broken_between_words_and_a_path_never() -> None:
    text, path = io.StringIO(), "/runs" + "/folder" * 12
    tell(
        f"stages: reached 3, grasped 2, lifted 2, placed 1; details: {path}\nsecond line",
        Console(file=text, width=40),
    )
    lines = text.getvalue().splitlines()
    assert all(len(line) <= 40 for line in lines if path not in line)
    assert [line.strip() for line in lines if path in line] == [path]
    assert lines[-1] == "second line"
