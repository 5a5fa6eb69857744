"""Two policies until it is decided, over real worker processes in the toy, with a stand-in for the test of pairs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_floors import save_run

from command_line import called
from la_reconvla.analysis.sequential import Sequential, step_test
from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start
from la_reconvla.episodes import EpisodeRecord, Label, StartName, append_episodes, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.sim import rollout, toy
from la_reconvla.sim.env import Env
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.storage import read_json, write_json
from la_reconvla.study import evaluate as evaluation
from la_reconvla.study import head_to_head
from la_reconvla.study.evaluate import TURN, Evaluation
from la_reconvla.study.head_to_head import in_words, shared_settings, shared_tasks, until_decided
from la_reconvla.training.checkpoint import PolicyConfig

LEAD = 6
STARTS = [toy.start("test", index) for index in range(40)]


@dataclass(frozen=True)
class Idle:
    """Specification of a policy that never pushes, and so never succeeds."""

    def identity(self) -> dict[str, Any]:
        return {"idle": True}

    def build(self) -> Idle:
        return self

    name, sees = "idle", False

    def reset(self, start: Start, env: Env) -> None: ...

    def act(self, observation: Observation | None) -> np.ndarray:
        return np.zeros((1, 7))


def leads(a: Iterable[bool], b: Iterable[bool], n_max: int) -> Sequential:
    """In the place of the test: whoever leads by six successes is better."""
    lead = 0
    pairs = list(zip(a, b, strict=False))
    for count, (mine, other) in enumerate(pairs, start=1):
        lead += mine - other
        if abs(lead) == LEAD:
            return Sequential("a" if lead > 0 else "b", count, n_max)
    return Sequential(None, len(pairs), n_max)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is to test without the package."""
    monkeypatch.setattr(head_to_head, "require_package", lambda: None)
    monkeypatch.setattr(head_to_head, "step_test", lambda n_max: None)
    monkeypatch.setattr(head_to_head, "sequential_decision", leads)


def pair(folder: Path, a: Any, b: Any) -> list[Evaluation]:
    return [Evaluation(folder / name, Label(name, 0), who) for name, who in (("a", a), ("b", b))]


def record_of(label: Label, start: Start, success: bool) -> EpisodeRecord:
    return EpisodeRecord(label, StartName.of(start), success, steps=1, seconds=0.1)


def ids(folder: Path) -> list[str]:
    return [record.start.id for record in read_episodes(folder)]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the worker processes without their start, which takes seconds."""
    monkeypatch.setattr(rollout, "_env", None)
    monkeypatch.setattr(rollout, "_policy", None)
    monkeypatch.setattr(
        evaluation, "rollouts", lambda jobs, workers, ahead: ((job, *rollout._work(job)) for job in jobs)
    )


# ---------------------------------------------------------------- in the toy world


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_worker_processes_end_with_the_decision(tmp_path: Path) -> None:
    """However much later one of them starts than the other."""
    found = until_decided(pair(tmp_path, toy.ToyScripted(), Idle()), STARTS, toy.ToySettings(), workers=2)
    assert (found.better, found.pairs) == ("a", LEAD)
    assert found.rollouts <= 2 * LEAD + TURN + (2 + TURN)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("stand_in", "in_this_process")
@pytest.mark.parametrize("better", ["a", "b"])
def test_it_stops_where_one_always_succeeds_and_the_other_never(tmp_path: Path, better: str) -> None:
    policies = [toy.ToyScripted(), Idle()]
    both = pair(tmp_path, *(policies if better == "a" else policies[::-1]))
    found = until_decided(both, STARTS, toy.ToySettings(), workers=2)
    assert found.better == better
    assert found.planned == 40
    assert found.pairs == LEAD
    rates = {"a": found.a, "b": found.b}
    won, lost = rates.pop(better), next(iter(rates.values()))
    assert won is not None
    assert lost is not None
    assert (won.successes, won.episodes) == (found.pairs, found.pairs)
    assert (lost.successes, lost.episodes) == (0, found.pairs)
    assert won.low == pytest.approx(found.pairs / (found.pairs + 1.959964**2), rel=1e-5)  # Wilson's, for n of n
    run = [ids(e.folder) for e in both]
    assert all(len(set(one)) == len(one) for one in run)
    assert found.rollouts == sum(map(len, run)) <= 2 * (found.pairs + TURN)
    assert found.saved == 80 - found.rollouts
    first = {start.id for start in STARTS[: found.pairs]}
    assert all(first <= set(one) for one in run), "judged in the order of the starts, without a gap"
    again = until_decided(both, STARTS, toy.ToySettings(), workers=2)
    assert again == found, "nothing is run again"


@pytest.mark.usefixtures("stand_in", "in_this_process")
def test_equal_policies_use_all_and_stay_undecided(tmp_path: Path) -> None:
    both = pair(tmp_path, toy.ToyScripted(), toy.ToyScripted())
    found = until_decided(both, STARTS[:10], toy.ToySettings(), workers=2)
    assert (found.better, found.pairs, found.rollouts, found.saved) == (None, 10, 20, 0)
    assert "undecided: 10 pairs show neither which is better" in in_words(found, "one", "two")[0]


# ---------------------------------------------------------------- going on


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """An outcome for each policy and start; of `workers` that were begun, any ends first. Stopped after `limit`."""

    def prepare(limit: int = 1000, shuffle: int = 0) -> list[str]:
        ran: list[str] = []

        def rollouts(jobs, workers, ahead):
            order, rng = list(jobs), np.random.default_rng(shuffle)
            while order:
                if len(ran) == limit:
                    raise KeyboardInterrupt
                job = order.pop(int(rng.integers(min(len(order), workers))))
                name = job.label.condition
                success = bool(
                    np.random.default_rng((ord(name), job.start.index)).random() < {"a": 0.9, "b": 0.3}[name]
                )
                ran.append(f"{name} {job.start.id}")
                yield job, record_of(job.label, job.start, success), None

        monkeypatch.setattr(evaluation, "rollouts", rollouts)
        return ran

    return prepare


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("workers", [1, 3, 16])
def test_a_comparison_that_goes_on_decides_the_same(tmp_path: Path, rolled, workers: int) -> None:
    rolled()
    whole = until_decided(pair(tmp_path / "whole", Idle(), Idle()), STARTS, EnvSettings(), 1)
    assert whole.better == "a"
    assert 4 < whole.pairs < 40
    parts, ran = pair(tmp_path / "parts", Idle(), Idle()), []
    for limit in (3, 5, 4, 1000):
        now = rolled(limit, shuffle=limit)
        try:
            found = until_decided(parts, STARTS, EnvSettings(), workers)
        except KeyboardInterrupt:
            ran += now
    ran += now
    assert len(set(ran)) == len(ran)
    same = ("better", "pairs", "planned", "a", "b")
    assert [getattr(found, name) for name in same] == [getattr(whole, name) for name in same]


@pytest.mark.usefixtures("stand_in")
def test_what_ends_early_waits_for_the_pairs_before_it(tmp_path: Path, rolled) -> None:
    """Twenty wins of a behind a gap decide nothing; the gap is filled first, and then they do."""
    both = pair(tmp_path, Idle(), Idle())
    for folder, success in ((both[0].folder, True), (both[1].folder, False)):
        append_episodes(folder, [record_of(Label(folder.name, 0), s, success) for s in STARTS[1:21]])
    ran = rolled()
    found = until_decided(both, STARTS, EnvSettings(), 1)
    assert ran == [f"a {STARTS[0].id}", f"b {STARTS[0].id}"]
    assert found.better == "a"
    assert LEAD <= found.pairs <= LEAD + 1


def test_policies_take_turns_in_the_order_of_the_starts(tmp_path: Path, rolled) -> None:
    ran = rolled()
    starts = [dataclasses.replace(start, task=index % 3) for index, start in enumerate(STARTS[:6])]
    evaluation.evaluate(pair(tmp_path, Idle(), Idle()), starts, EnvSettings(), 1, enough=lambda: False)
    assert ran == [f"{name} {s.id}" for turn in (starts[:4], starts[4:]) for name in "ab" for s in turn]


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str]:
        code, out, err = called(monkeypatch, capsys, "study", "compare", *arguments)
        return code, " ".join((out + err).split())

    return call


@pytest.fixture
def in_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's world in the place of LIBERO."""
    monkeypatch.setattr(head_to_head, "require_simulator", lambda allow_any_mujoco: None)
    monkeypatch.setattr(head_to_head, "wording", lambda *of: {(0, f"push {colour}") for colour in toy.COLOURS})
    monkeypatch.setattr(head_to_head, "evaluation_starts", lambda s, t, p, episodes, **_: STARTS[:episodes])
    monkeypatch.setattr(head_to_head, "shared_settings", lambda *of: toy.ToySettings())


def no_rollouts(*_: object, **__: object) -> None:
    pytest.fail("starts were made or rolled out before the input was checked")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [save_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]


@pytest.mark.usefixtures("stand_in", "in_the_toy", "in_this_process")
def test_the_command_says_and_writes_what_it_found(call, runs: list[Path], tmp_path: Path) -> None:
    options = (*runs, "--out", tmp_path / "out", "--tasks", 0, "--workers", 2, "--device", "cpu")
    code, said = call(*options, "--episodes", 5)
    assert code == 0, said
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["runs"] == {"a": str(runs[0]), "b": str(runs[1])}
    assert (written["episodes"], written["one_sided_level"]) == (5, 0.05)
    result = written["result"]
    assert (result["better"], result["pairs"], result["planned"], result["rollouts"]) == (None, 5, 5, 10)
    for name, run in zip("ab", runs, strict=True):
        records = read_episodes(tmp_path / "out" / name)
        assert {r.start.id for r in records} == {start.id for start in STARTS[:5]}
        wins = sum(r.success for r in records)
        assert result[name]["successes"] == wins
        assert f"{run}: {wins} of 5 of these pairs" in said
    assert "undecided: 5 pairs show neither which is better (one-sided level 5 % in either direction)" in said
    assert "rollouts: 10 of at most 10 were run, 0 saved" in said
    before = (tmp_path / "out" / "comparison.json").read_bytes()
    code, said = call(*options, "--episodes", 6)
    assert code == 2
    assert "holds a run of another configuration (different: episodes: 5, now 6)" in said
    code, said = call(runs[1], runs[0], *options[2:], "--episodes", 5)
    assert code == 2
    assert "another configuration" in said
    assert (tmp_path / "out" / "comparison.json").read_bytes() == before


def test_a_comparison_of_before_a_choice_goes_on(tmp_path: Path) -> None:
    plan, runs = head_to_head.Plan("libero_goal", "wide", (0, 1), 5), {"a": "one", "b": "two"}
    head_to_head.claim_comparison(tmp_path, plan, runs)
    held = read_json(path := tmp_path / "comparison.json")
    assert held.pop("one_sided_level") == 0.05
    write_json(path, held)
    head_to_head.claim_comparison(tmp_path, plan, runs)
    with pytest.raises(UserError, match="one_sided_level"):
        head_to_head.claim_comparison(tmp_path, dataclasses.replace(plan, one_sided_level=0.1), runs)


def test_a_decision_names_the_winner_and_warns_of_its_rates(tmp_path: Path, rolled, stand_in: None) -> None:
    rolled()
    found = until_decided(pair(tmp_path, Idle(), Idle()), STARTS, EnvSettings(), 1)
    said = in_words(found, "one", "two")
    assert said[0].startswith(f"one is better than two: decided by {found.pairs} of at most 40 pairs")
    assert said[1] == f"rollouts: {found.rollouts} of at most 80 were run, {80 - found.rollouts} saved"
    assert "rates are those at the decision" in said[-1]


def test_without_the_package_nothing_is_loaded(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sequentialized_barnard_tests", None)
    monkeypatch.setattr(head_to_head, "open_run", no_rollouts)
    step_test.cache_clear()
    code, said = call("one", "two", "--out", tmp_path / "out")
    assert code == 2
    assert "Its licence, CC BY-NC 4.0, allows no commercial use" in said
    assert "[sequential]'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_compared(call, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_to_head, "evaluation_starts", no_rollouts)
    rendered = save_run(tmp_path / "official", quality="official")
    for arguments, message in (
        ((runs[0], runs[0]), "are the same run: name two different ones"),
        ((runs[0], tmp_path / "nowhere"), "there is no folder"),
        ((runs[0], rendered, "--tasks", 0), "frames of another render quality (fast and official)"),
        ((*runs, "--tasks", 0, "--episodes", 0), "episodes must be at least 1, not 0"),
        (runs, "does not record that it was trained on tasks of libero_spatial: name them with --tasks"),
    ):
        code, said = call(*arguments, "--out", tmp_path / "out", "--device", "cpu")
        assert code == 2
        assert message in said
    assert not (tmp_path / "out").exists()


def configured(run: Path, **changes: Any) -> PolicyConfig:
    return dataclasses.replace(PolicyConfig.load(run), **changes)


def test_one_environment_shows_both_what_they_take(tmp_path: Path) -> None:
    plain = configured(save_run(tmp_path / "plain"))
    more = configured(save_run(tmp_path / "more", wrist=True, proprio="gripper"))
    shown = shared_settings({"one": plain, "two": more})
    assert (shown.wrist, shown.proprio, shown.image_size, shown.quality) == (True, True, 32, "fast")
    larger = dataclasses.replace(more, image_size=64)
    with pytest.raises(UserError, match=r"another image size \(32 and 64\)"):
        shared_settings({"one": plain, "two": larger})


@pytest.mark.sim
def test_tasks_are_those_that_both_learned_and_starts_those_of_neither(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")

    def learned(*tasks: int) -> PolicyConfig:
        return configured(run, train_starts=tuple(f"libero_spatial/{task}/wide/train/0" for task in tasks))

    assert shared_tasks({"one": learned(0, 1, 2), "two": learned(2, 1, 5)}, "libero_spatial") == [1, 2]
    with pytest.raises(UserError, match="one and two share no task of libero_spatial"):
        shared_tasks({"one": learned(0), "two": learned(1)}, "libero_spatial")


@pytest.mark.sim
@pytest.mark.usefixtures("stand_in")
def test_starts_that_either_was_trained_on_are_refused(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_to_head, "until_decided", no_rollouts)
    monkeypatch.setattr(head_to_head, "dry_run", lambda *of: None)  # TINY holds few words
    runs = [save_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    for run, states in zip(runs, (range(30), range(30, 48)), strict=True):
        trained = tuple(f"libero_spatial/0/official/train/{index}" for index in states)
        config = configured(run, train_starts=trained)
        (run / "config.json").unlink()
        config.save(run)
    code, said = call(*runs, "--out", tmp_path / "out", "--placement", "official", "--episodes", 3, "--device", "cpu")
    assert code == 2
    assert "2 official starts were not trained on, 3 are wanted" in said
