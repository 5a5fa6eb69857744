"""The machinery on a task whose answer is known: one claim that must be found and one that must not, in a few minutes.

It is a study like any other: the command's code collects, trains, rolls out, measures and judges.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from la_reconvla.analysis.results import Results
from la_reconvla.sim import toy
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.domains import domain
from la_reconvla.study.presets import preset
from la_reconvla.study.results import read_results

NAMED, ANY, SHUFFLED = "G1", "C2", "G1-shuffled"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("runs") / "known-answer"
    Ablation(preset("known-answer"), study, workers=2).run()
    return study


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return read_results(folder / "results.json")


def rate(results: Results, arm: str) -> float:
    tsr = next(c.tsr for c in results.conditions if c.id == arm)
    assert tsr is not None
    return tsr.rate


@pytest.mark.slow
def test_what_must_be_found_is_found_and_what_must_not_is_not(results: Results) -> None:
    verdicts = {h.id: h.verdict for h in results.hypotheses}
    assert verdicts[f"{NAMED}>{ANY}"] == "supported"
    assert verdicts[f"{SHUFFLED}>{ANY}"] != "supported"
    assert len(verdicts) == 2
    assert results.study.hypotheses_hash == domain(toy.SUITE).declared.hash


@pytest.mark.slow
def test_the_arm_that_must_win_wins_by_looking_at_the_named_tile(results: Results) -> None:
    assert rate(results, NAMED) > 0.5 > rate(results, ANY)
    assert abs(rate(results, SHUFFLED) - rate(results, ANY)) < 0.2
    overlap = {c.id: c.aos for c in results.conditions}
    named, shuffled = overlap[NAMED], overlap[SHUFFLED]
    assert named is not None
    assert shuffled is not None
    assert named.mean > 0.8
    assert shuffled.mean < named.mean


@pytest.mark.slow
def test_its_floors_are_chance_and_the_expert_knows_the_answer(results: Results) -> None:
    of = {p.id: p.tsr.rate for p in (*results.floors, *results.references) if p.tsr}
    assert of.pop("expert") == 1
    assert set(of) == {"blind_replay", "no_image", "grey_image", "wrong_instruction", "random"}
    assert max(of.values()) < 0.3


@pytest.mark.slow
def test_all_arms_learned_from_the_same_pushes_in_the_same_order(results: Results) -> None:
    assert {p.seed for p in results.study.pairing} == set(preset("known-answer").seeds)
    for pairing in results.study.pairing:
        assert {NAMED, ANY, SHUFFLED} <= set(pairing.arms)
