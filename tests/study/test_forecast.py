"""How long a study takes: in proportion to what is missing, corrected by what has been seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from la_reconvla import layout
from la_reconvla.study.cells import cells
from la_reconvla.study.forecast import DEMONSTRATION, DRAWN, EPISODE, PARTS, afterwards, forecast
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.training.checkpoint import WEIGHTS

FILMS_OF_QUICK = 8 * 5 * (220 // 4 + 1) * 0.06  # starts, arms, pictures, seconds of one core each


def test_the_preset_that_the_rates_come_from_is_told_to_a_third(tmp_path: Path) -> None:
    """docs/results/quick.md, two workers, 2026; its 7 s of statistics and pictures were before there were films."""
    took = dict(zip(PARTS, (77, 150, 178, 39, 7 + FILMS_OF_QUICK / 2), strict=True))
    config = preset("quick")
    said = forecast(config, tmp_path, cells(config, tmp_path), (), workers=2)
    assert said is not None
    assert {name: said[name] for name in took} == pytest.approx(took, rel=1 / 3)


def test_films_take_their_pictures_side_by_side_and_only_once(tmp_path: Path) -> None:
    def last(config: StudyConfig, workers: int) -> float:
        said = forecast(config, tmp_path, cells(config, tmp_path), (), workers=workers)
        assert said is not None
        return said[PARTS[-1]]

    config = preset("quick")
    assert last(config, 1) == pytest.approx(DRAWN + FILMS_OF_QUICK)
    assert last(config, 2) == pytest.approx(DRAWN + FILMS_OF_QUICK / 2)
    assert last(replace(config, quality="official"), 1) == pytest.approx(DRAWN + FILMS_OF_QUICK * 0.13 / 0.06)
    assert last(replace(config, episodes=400), 1) == pytest.approx(DRAWN + 3 * FILMS_OF_QUICK), "24 starts, not 8"
    (tmp_path / layout.FILMS).mkdir()
    for number in range(10):
        (tmp_path / layout.FILMS / f"{number}.mp4").touch()
    assert last(config, 1) == pytest.approx(DRAWN + FILMS_OF_QUICK * 30 / 40)


def test_what_is_on_disk_takes_no_time(tmp_path: Path) -> None:
    config = replace(preset("quick"), seeds=(0, 1))
    study = cells(config, tmp_path)
    whole = forecast(config, tmp_path, study, (), workers=1)
    for cell in study[: len(study) // 2]:
        cell.folder.mkdir(parents=True)
        (cell.folder / WEIGHTS).touch()
        (cell.folder / layout.HELD_OUT).touch()
    half = forecast(config, tmp_path, study, (), workers=1)
    assert whole is not None
    assert half is not None
    for part in ("training", "held-out frames"):
        assert half[part] == pytest.approx(whole[part] / 2)
    assert half["collection"] == whole["collection"]
    assert half["rollouts"] == whole["rollouts"]


def test_a_head_that_is_trained_first_takes_less_than_two_minutes_of_a_core(tmp_path: Path) -> None:
    """2,000 steps of 32 samples, docs/results/dose.md, beside the same arms without it."""

    def training(*arms: str) -> float:
        config = replace(preset("small"), conditions=arms, seeds=(0,))
        said = forecast(config, tmp_path, cells(config, tmp_path), (), workers=1)
        assert said is not None
        return said["training"]

    assert 2 * 60 < training("C4-head-15", "G1-head-15", "C1") - training("C4", "G1", "C1") < 2 * 120


def test_episodes_on_disk_are_not_recorded_or_rolled_out_again(tmp_path: Path) -> None:
    config = preset("quick")
    study = cells(config, tmp_path)
    whole = forecast(config, tmp_path, study, (), workers=1)
    shards = tmp_path / layout.DEMONSTRATIONS / "shards" / "a task"
    shards.mkdir(parents=True)
    for index in range(3):
        (shards / f"{index}.hdf5").touch()
    study[0].folder.mkdir(parents=True)
    (study[0].folder / layout.EPISODES).write_text("{}\n" * 4)
    left = forecast(config, tmp_path, study, (), workers=1)
    assert whole is not None
    assert left is not None
    assert whole["collection"] - left["collection"] == pytest.approx(3 * DEMONSTRATION)
    assert whole["rollouts"] - left["rollouts"] == pytest.approx(4 * EPISODE)


def test_a_backbone_of_unknown_speed_has_no_forecast(tmp_path: Path) -> None:
    config = preset("paper")
    assert forecast(config, tmp_path, cells(config, tmp_path), (), workers=1) is None


def test_a_part_corrects_those_of_its_kind_of_work() -> None:
    said: dict[str, float] = dict(zip(PARTS, (10.0, 20.0, 30.0, 40.0, 50.0), strict=True))
    assert afterwards("collection", said, {}) == 140
    assert afterwards("training", said, {"collection": 30.0}) == 3 * 30 + 40 + 50
    assert afterwards("rollouts", said, {"collection": 10.0, "training": 2.0}) == 0.1 * 40 + 50
    little = {**said, "collection": 0.5}
    assert afterwards("collection", little, {"collection": 30.0}) == 140, "with nothing to do it took its start alone"
    assert afterwards("statistics and pictures", said, said) == 0
