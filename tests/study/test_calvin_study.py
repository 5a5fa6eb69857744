"""Policies that learnt from CALVIN's data, judged by its protocol over a stand-in for its simulator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import calvin_layout
import fake_calvin
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from helpers import untrained
from la_reconvla import layout
from la_reconvla.cli.studies import run as run_study
from la_reconvla.conditions import C1
from la_reconvla.data.calvin import CALVIN_ACTIONS
from la_reconvla.episodes import Label, SequenceRecord, read_sequences
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.sim.calvin_sequences import published_sequences
from la_reconvla.study.ablation import ablate
from la_reconvla.study.calvin import compared, evaluate_one, wrong_words
from la_reconvla.study.evaluate_one import evaluate_one as evaluate_any
from la_reconvla.study.options import EvaluateOptions, PolicyChanges, StudyChanges, TrainingChanges
from la_reconvla.study.results import results_of
from la_reconvla.training.checkpoint import WEIGHTS, kept
from la_reconvla.training.tensors import save_tensors

OTHERS = PolicyChanges(), TrainingChanges()
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
        evaluate_any(run, options(dataset, **changes))


def test_a_dataset_is_needed(dataset: Path) -> None:
    with pytest.raises(UserError, match="--dataset FOLDER"):
        evaluate_one("random", EvaluateOptions(suite="calvin"))
    with pytest.raises(UserError, match="no validation"):
        evaluate_one("random", options(dataset.parent))
    with pytest.raises(UserError, match="--dataset is for --suite calvin"):
        evaluate_any("random", EvaluateOptions(dataset=dataset))
    with pytest.raises(UserError, match="give --demonstrations FOLDER"):
        run_study(StudyChanges(suite="calvin"), *OTHERS)
    with pytest.raises(UserError, match="1 to 1000"):
        ablate("smoke", dataset.parent / "study", 1, {"suite": "calvin", "episodes": 1001}, recorded=dataset)
    with pytest.raises(UserError, match="leave one of the two out"):
        run_study(StudyChanges(suite="calvin"), *OTHERS, demonstrations=dataset, offline=True)


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


def drawn(skill: float, state_matters: np.ndarray, seed: int, rng: np.random.Generator) -> list[SequenceRecord]:
    """Two sequences a state."""
    return [
        SequenceRecord(
            Label("C4", seed),
            index=2 * state + nth,
            state=state,
            subtasks=("open_drawer",) * 5,
            completed=int(np.clip(round(skill + own + rng.normal(0, 0.4)), 0, 5)),
            steps=(3,) * 5,
            seconds=1.0,
        )
        for state, own in enumerate(state_matters)
        for nth in range(2)
    ]


def bootstrapped_p(gaps: np.ndarray, rng: np.random.Generator) -> float:
    """Twice the share of samples of seeds and, for all alike, states [seed state nth] beyond zero; and t over seeds."""
    seeds, states, _ = gaps.shape
    samples = ((rng.integers(seeds, size=seeds), rng.integers(states, size=states)) for _ in range(4000))
    means = np.array([gaps[np.ix_(some, others)].mean() for some, others in samples])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return max(p, 0.0 if seeds == 1 else ttest_1samp(gaps.mean((1, 2)), 0).pvalue)


def test_differences_of_arms_have_a_p_that_is_corrected_and_agrees_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    for seeds in (1, 3):
        own = rng.normal(0, 1, 40)
        skills = {"C1": 2.0, "C2": 2.15, "C4": 2.4, "no-image": 1.0}
        runs = {name: [drawn(skill, own, seed, rng) for seed in range(seeds)] for name, skill in skills.items()}
        runs["random"] = [drawn(0.0, own, 0, rng)]
        found = compared(runs)
        assert [(c.a, c.b) for c in found[:3]] == [("C1", "C2"), ("C1", "C4"), ("C2", "C4")]
        table = {name: np.array([[r.completed for r in run] for run in of]) for name, of in runs.items()}
        for c in found:
            gaps = (table[c.a] - table[c.b]).reshape(seeds, 40, 2).astype(float)
            assert c.difference == pytest.approx(gaps.mean())
            assert (c.a_mean, c.n, c.seeds) == (pytest.approx(table[c.a].mean()), 80 * seeds, seeds)
            assert c.p == pytest.approx(bootstrapped_p(gaps, rng), abs=0.02)
            assert (c.p < 0.05) == (not c.low <= 0 <= c.high)
        ordered = sorted(found[:3], key=lambda c: c.p)
        steps = np.maximum.accumulate([c.p * factor for c, factor in zip(ordered, (3, 2, 1), strict=True)])
        np.testing.assert_allclose([c.p_holm for c in ordered], np.minimum(steps, 1))
        assert [(c.b, c.p_holm) for c in found[3:]] == [("no-image", None)] * 3


def test_few_states_that_are_all_alike_decide_nothing() -> None:
    """A bootstrap of equal values has no width: nothing it draws lies beyond zero."""
    still = np.random.default_rng(0)
    for states in (1, 4, 8):
        zero = np.zeros(states)
        better, worse = ([replace(r, completed=value) for r in drawn(0, zero, 0, still)] for value in (2, 1))
        (found,) = compared({"C1": [better], "C2": [worse], "no-image": [worse]})[:1]
        assert found.low <= 0 < found.high
        assert found.p >= 0.05


@pytest.mark.slow
def test_a_study_trains_on_the_data_and_shows_average_lengths(dataset: Path, tmp_path: Path, capsys) -> None:
    calvin_layout.write(dataset, segments=6)
    out, asked = tmp_path / "study", StudyChanges(suite="calvin", conditions=("C1", "C2"), seeds=(0,), episodes=2)
    training = TrainingChanges(steps=1, device="cpu")
    run_study(asked, PolicyChanges(), training, "smoke", out=out, demonstrations=dataset, workers=1)
    found = results_of(out).sequences
    assert found is not None
    assert (found.count, list(found.policies)) == (2, ["C1", "C2", "no-image", "random"])
    assert (found.policies["C1"].mean, found.policies["C1"].in_a_row) == (1.0, (0.5, 0.5, 0.0, 0.0, 0.0))
    assert [look.episodes for look in results_of(out).looks] == [1], "hypotheses use held-out frames, no sequences"
    pairs = {(c.a, c.b): (c.difference, c.p, c.p_holm) for c in found.comparisons}
    assert pairs == {("C1", "C2"): (0, 1, 1), ("C1", "no-image"): (0, 1, None), ("C2", "no-image"): (0, 1, None)}
    assert "Average length" in capsys.readouterr().err
    page, tables = ((out / name).read_text() for name in (layout.REPORT, layout.TABLES))
    assert "C1 - C2" in page[page.index("Differences of average length") :]
    assert "## Average length" in tables
    for wrong in ("nothing was rolled out", "compared with no floor"):
        assert wrong not in page + tables
