"""Policies that learnt from CALVIN's data, judged by its protocol over a stand-in for its simulator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import calvin_layout
import fake_calvin
import pytest

from helpers import untrained
from la_reconvla import layout
from la_reconvla.cli.studies import run as run_study
from la_reconvla.conditions import C1
from la_reconvla.data.calvin import CALVIN_ACTIONS
from la_reconvla.episodes import read_sequences
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.sim.calvin_sequences import published_sequences
from la_reconvla.study.calvin import RESULTS, evaluate_one, study, wrong_words
from la_reconvla.study.evaluate_one import evaluate_one as evaluate_any
from la_reconvla.study.options import EvaluateOptions, PolicyChanges, StudyChanges, TrainingChanges
from la_reconvla.training.checkpoint import WEIGHTS, kept
from la_reconvla.training.tensors import save_tensors

NEEDS = dict.fromkeys(published_sequences(1)[0].subtasks[:2], 3)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(fake_calvin.write(tmp_path / "packages", NEEDS))
    fake_calvin.configure(tmp_path / "data")
    yield tmp_path / "data"
    for name in [name for name in sys.modules if name.split(".")[0] == "calvin_env"]:
        del sys.modules[name]


def options(dataset: Path, **changes) -> EvaluateOptions:
    return EvaluateOptions(suite="calvin", dataset=dataset, workers=1, **changes)


@pytest.mark.parametrize(
    ("run", "changes", "match"),
    [
        ("expert", {}, "expert cannot be rolled out in CALVIN"),
        ("ws://127.0.0.1:1", {}, "cannot be rolled out in CALVIN"),
        ("random", {"tasks": (1,), "floors": True}, "floors, tasks: CALVIN's protocol has none"),
        ("random", {"view": "grey_image"}, "random uses no image"),
        ("random", {"episodes": 1001}, "1 to 1000"),
        ("random", {"max_steps": 0}, "at least 1"),
    ],
)
def test_what_has_no_meaning_is_refused(dataset: Path, run: str, changes: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        evaluate_one(run, options(dataset, **changes))


def test_a_dataset_is_needed(dataset: Path) -> None:
    with pytest.raises(UserError, match="--dataset FOLDER"):
        evaluate_one("random", EvaluateOptions(suite="calvin"))
    with pytest.raises(UserError, match="no validation"):
        evaluate_one("random", options(dataset.parent))
    with pytest.raises(UserError, match="--dataset is for --suite calvin"):
        evaluate_any("random", EvaluateOptions(dataset=dataset))
    with pytest.raises(UserError, match="give --demonstrations FOLDER"):
        run_study(StudyChanges(suite="calvin"), PolicyChanges(), TrainingChanges())
    with pytest.raises(UserError, match="1 to 1000"):
        study("smoke", dataset.parent / "study", 1, {"episodes": 1001}, None, dataset, ())


def test_another_robots_policy_is_refused(dataset: Path, tmp_path: Path) -> None:
    run = untrained(C1)
    run.save(tmp_path / "run")
    save_tensors(tmp_path / "run" / WEIGHTS, kept(run.build()))
    with pytest.raises(UserError, match="did not learn from CALVIN's data"):
        evaluate_one(str(tmp_path / "run"), options(dataset))


def test_every_subtask_has_another_ones_words() -> None:
    words = wrong_words()
    assert len(words) == 34
    assert all(true != other for _, true, other in words)


@pytest.mark.slow
def test_a_policy_is_rolled_out_and_an_evaluation_goes_on(dataset: Path, tmp_path: Path, capsys) -> None:
    bins = ActionBins((-1.0,) * 7, (1.0,) * 7, space=CALVIN_ACTIONS)
    run = untrained(C1, bins=bins, quality="official")
    run = replace(run, inputs=replace(run.inputs, cameras=("static", "gripper"), orientation="upright"))
    run.save(tmp_path / "run")
    save_tensors(tmp_path / "run" / WEIGHTS, kept(run.build()))
    folder = evaluate_one(str(tmp_path / "run"), options(dataset, episodes=2, max_steps=6))
    assert folder == tmp_path / "run/calvin-6-steps"
    records = {record.index: record for record in read_sequences(folder)}
    assert (records[0].completed, records[0].steps) == (2, (3, 3, 6))
    assert records[1].completed == 0
    assert "average length 1.00 of 5" in " ".join(capsys.readouterr().err.split())
    before = (folder / layout.SEQUENCES).read_bytes()
    evaluate_one(str(tmp_path / "run"), options(dataset, episodes=3, max_steps=6))
    assert (folder / layout.SEQUENCES).read_bytes().startswith(before)
    assert len(read_sequences(folder)) == 3
    held = (tmp_path / "data/validation/.hydra/merged_config.yaml").read_text()
    (tmp_path / "data/validation/.hydra/merged_config.yaml").write_text(held + "\nother: 1\n")
    with pytest.raises(UserError, match=r"another configuration.*dataset"):
        evaluate_one(str(tmp_path / "run"), options(dataset, episodes=4, max_steps=6))


@pytest.mark.slow
def test_a_study_trains_on_the_data_and_ends_with_average_lengths(dataset: Path, tmp_path: Path) -> None:
    calvin_layout.write(dataset, segments=6)
    changes = {"steps": 1, "conditions": ("C1", "C2"), "seeds": (0,), "suite": "calvin", "episodes": 1, "device": "cpu"}
    folder = study("smoke", tmp_path / "study", 1, changes, None, dataset, ())
    found = json.loads((folder / RESULTS).read_text())
    assert found["sequences"] == 1
    assert set(found["arms"]) == {"random", "C1", "C2", "no-image"}
    assert found["arms"]["C1"]["mean"] == 2.0
    assert found["arms"]["C1"]["in_a_row"] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [pair["mean"] for pair in found["comparisons"]] == [0.0] * 3
    assert (folder / layout.RESULTS).exists()
