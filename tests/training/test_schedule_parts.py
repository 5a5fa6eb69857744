"""A finished training that goes on: what its second part starts from, to the bit, and what it says of itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_hdf5 import make_official
from test_train import SHORT, Stop, StopAt, numbers, train_tiny, weights, write_demonstrations

from la_reconvla.conditions import C4, NO_IMAGE
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, read_jsonl
from la_reconvla.study.cells import Cell
from la_reconvla.study.presets import preset
from la_reconvla.study.train_cells import train_cells, train_one
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig
from la_reconvla.training.loop import SCHEDULE, TrainConfig
from la_reconvla.training.parts import Part
from la_reconvla.training.run_state import STATE, drop_state
from la_reconvla.training.tensors import load_metadata, load_tensors, save_tensors
from la_reconvla.training.trackers import METRICS

FIRST = Part(SHORT.steps, SHORT.learning_rate, SHORT.warmup)
MORE = dataclasses.replace(SHORT, steps=9, learning_rate=1e-3, warmup=1, earlier=(FIRST,))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


@pytest.fixture(scope="module")
def whole(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both parts, undisturbed."""
    run = train_tiny(demonstrations, tmp_path_factory.mktemp("runs") / "whole")
    return train_tiny(demonstrations, run, config=MORE)


@pytest.mark.parametrize("stop", [1, 3])  # before the part has saved a state, and after
def test_a_second_part_that_is_stopped_ends_at_the_same_bits(
    demonstrations: Path, whole: Path, tmp_path: Path, stop: int
) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    first = weights(run)
    with pytest.raises(Stop):
        train_tiny(demonstrations, run, config=MORE, ticker=StopAt(stop))
    assert load_tensors(run / STATE)[1]["step"] == (4 if stop == 1 else 6)
    assert weights(run) == first, "until the second part is complete, the policy of the first one is there"
    train_tiny(demonstrations, run, config=MORE)
    assert weights(run) == weights(whole) != first
    assert numbers(run) == numbers(whole)
    assert load_metadata(run / WEIGHTS)["steps"] == 9
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train_tiny(demonstrations, run, config=MORE)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_second_part_goes_on_from_the_optimizers_state(demonstrations: Path, whole: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    tensors, facts = load_tensors(run / STATE)
    own = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    assert len(own) < len(tensors)
    save_tensors(run / STATE, own, **facts)
    assert weights(train_tiny(demonstrations, run, config=MORE)) != weights(whole)


def test_the_run_records_its_parts(whole: Path) -> None:
    held = read_json(whole / SCHEDULE)
    assert (held["steps"], held["learning_rate"], held["warmup"]) == (9, 1e-3, 1)
    own = {"kind": "Part", "steps": 4, "learning_rate": SHORT.learning_rate, "warmup": 2}
    assert held["earlier"] == [own]
    assert held["held_out"]["episodes"], "what was written once stays"
    assert PolicyConfig.load(whole).seed == 0
    lines = read_jsonl(whole / METRICS)[1:]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["part"] for line in lines] == [1] * 4 + [2] * 5
    assert [line["samples"] for line in lines] == [4 * step for step in range(1, 10)]
    rates = [line["learning_rate"] for line in lines]
    assert rates[3] < 0.6 * rates[1]  # the cosine of the first part has come down
    assert rates[4] == 1e-3  # one step of warm-up
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[8] == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5 * (1 - 2**-0.5)))  # cos(3 pi / 4)


def test_what_an_arm_changes_while_it_trains_stays_where_the_first_part_left_it() -> None:
    assert [SHORT.progress(step) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [MORE.progress(step) for step in (3, 4, 8)] == [0.75, 1, 1]
    third = dataclasses.replace(MORE, steps=20, earlier=(FIRST, Part(5, 1e-3, 1)))
    assert (third.begun, third.before) == (9, MORE)
    assert (MORE.before, SHORT.before) == (SHORT, None)
    with pytest.raises(UserError, match="9 steps are done"):
        dataclasses.replace(third, steps=9)


def test_only_the_part_that_was_there_goes_on(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    before = (run / SCHEDULE).read_bytes()
    other = dataclasses.replace(MORE, earlier=(dataclasses.replace(FIRST, learning_rate=0.1),))
    with pytest.raises(UserError, match=r"different: learning_rate: 0.0007, now 0.1"):
        train_tiny(demonstrations, run, config=other)
    with pytest.raises(UserError, match=r"clip: 1\.0, now 2\.0"):
        train_tiny(demonstrations, run, config=dataclasses.replace(MORE, clip=2.0))
    drop_state(run)
    with pytest.raises(UserError, match="cannot go on: start another run from its weights with --init-from"):
        train_tiny(demonstrations, run, config=MORE)
    assert (run / SCHEDULE).read_bytes() == before


# ---------------------------------------------------------------- the command, and studies


def trained(folder: Path, steps: int, **changes: Any) -> Path:
    changes = {"steps": steps, "held_out": 0.0, "device": "cpu", **changes}
    return train_one(folder, folder / "run", "C1", 0, "smoke", changes)


@pytest.mark.slow
def test_the_command_with_more_steps_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_official(tmp_path / "a_demo.hdf5", demos=1, length=12)
    run = trained(tmp_path, 2)
    trained(tmp_path, 14)
    assert "12 more are a part of their own" in capsys.readouterr().err.replace("\n  ", " ")
    held = json.loads((run / SCHEDULE).read_text())
    first = preset("smoke").train
    assert held["earlier"] == [{"kind": "Part", "steps": 2, "learning_rate": first.learning_rate, "warmup": 5}]
    assert held["warmup"] == 1, "a tenth of the steps"
    ended = weights(run)
    trained(tmp_path, 14)
    assert weights(run) == ended
    with pytest.raises(UserError, match="is finished, after 14 steps, and not one of 2: give --steps with more"):
        trained(tmp_path, 2)
    with pytest.raises(UserError, match=r"train.json|learning_rate"):
        trained(tmp_path, 14, learning_rate=1e-3)
    trained(tmp_path, 20, learning_rate=1e-3)
    assert [part["steps"] for part in json.loads((run / SCHEDULE).read_text())["earlier"]] == [2, 12]
    (run / WEIGHTS).unlink()  # as if it were still training
    with pytest.raises(UserError, match="on its way to 20 steps, and not one of 30: finish it with --steps 20"):
        trained(tmp_path, 30)


def test_a_study_does_not_mix_a_run_that_went_on_with_its_others(
    demonstrations: Path, whole: Path, tmp_path: Path
) -> None:
    parts = open_demonstrations(demonstrations).divide(0.25)
    config = dataclasses.replace(preset("smoke"), train=dataclasses.replace(SHORT, steps=9))
    missing = Cell(NO_IMAGE, 0, tmp_path / "other")
    with pytest.raises(UserError, match=r"different from the others of this study: .* 9 steps in 2 parts"):
        train_cells([Cell(C4, 0, whole), missing], config, *parts, 1, Console(quiet=True))
    shorter = train_tiny(demonstrations, tmp_path / "short")
    with pytest.raises(UserError, match=r"4 steps in 1 part, they for 9 in one"):
        train_cells([Cell(C4, 0, shorter), missing], config, *parts, 1, Console(quiet=True))
    config = dataclasses.replace(config, train=TrainConfig(steps=4))
    train_cells([Cell(C4, 0, shorter)], config, *parts, 1, Console(quiet=True))
    assert not (shorter / STATE).exists(), "no cell of a study goes on"
