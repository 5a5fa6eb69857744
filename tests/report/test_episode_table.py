"""The table of episodes, read back by the standard library."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from la_reconvla.episodes import EpisodeRecord, First, Label, Reached, StartName, append_episodes
from la_reconvla.errors import UserError
from la_reconvla.report.episode_table import write_episode_table

COLUMNS = (
    "arm seed floor suite task placement split index instruction target success steps approached "
    "distractor_approached grasped lifted placed smallest_distance moved touched held"
)
WORDS = 'open the cabinet’s "middle" drawer, please\nnow'


def episode(label: Label, index: int = 0, reached: Reached | None = None, moved: str | None = None) -> EpisodeRecord:
    start = StartName("libero_spatial", 2, "wide", "test", index, WORDS, "bowl_1")
    return EpisodeRecord(label, start, True, 57, 1.5, reached or Reached(), moved)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_evaluation_and_its_floors_are_one_table(tmp_path: Path) -> None:
    stages = Reached(True, False, True, False, False, 0.01234)
    watched = replace(episode(Label("C4", 1), 7, stages, "bowl_2"), first=First(("bowl_1",), "plate_1"))
    append_episodes(tmp_path / "eval", [watched, episode(Label("C4", 1), 8)])
    append_episodes(tmp_path / "eval/floors/blind_replay", [episode(Label(None, None, "blind_replay"))])
    rows = read(write_episode_table(tmp_path / "eval", tmp_path / "deeper/table.csv"))
    assert list(rows[0]) == COLUMNS.split()
    first = "C4 1 _ libero_spatial 2 wide test 7 _ bowl_1 1 57 1 0 1 0 0 0.01234 bowl_2 plate_1 _"
    expected = ["" if value == "_" else value for value in first.split()]
    assert [*rows[0].values()] == [*expected[:8], WORDS, *expected[9:]]
    assert [*rows[1].values()][12:] == [""] * 9  # a goal that moves nothing
    assert [rows[2][name] for name in ("arm", "seed", "floor", "index")] == ["", "", "blind_replay", "0"]


def test_a_study_gives_its_own_episodes_and_not_those_of_other_commands(tmp_path: Path) -> None:
    cells = (
        "C1/seed0",
        "C4/seed0",
        "C4/seed1",
        "floors/blind_replay",
        "floors/grey_image/C4/seed0",
        "references/expert",
        "official/C1/seed0",
        "official/floors/grey_image/C4/seed0",
        "elsewhere/libero_spatial_lan/C1/seed0",
    )
    for number, cell in enumerate((*cells, "C1/seed0/libero_goal-official", "C1/seed0/libero_goal-official/floors/x")):
        append_episodes(tmp_path / cell, [episode(Label("C1", 0), number)])
    (tmp_path / "study.json").touch()
    rows = read(write_episode_table(tmp_path, tmp_path / "table.csv"))
    assert [int(row["index"]) for row in rows] == list(range(len(cells)))


def test_what_holds_no_episodes_is_refused(tmp_path: Path) -> None:
    append_episodes(tmp_path / "run/libero_spatial-wide", [episode(Label("C1", 0))])
    with pytest.raises(UserError, match=r"run holds no episodes: .* for example .*/run/libero_spatial-wide$"):
        write_episode_table(tmp_path / "run", tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"episodes\.jsonl does not end in \.csv"):
        write_episode_table(tmp_path / "run/libero_spatial-wide", tmp_path / "run/libero_spatial-wide/episodes.jsonl")
    assert not list(tmp_path.glob("*.csv"))
