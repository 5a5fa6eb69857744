"""What arms lose on other suites, and on which tasks and with which words they are evaluated there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from test_results import episode

from la_reconvla.analysis.build import build
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.declaration import BEFORE
from la_reconvla.analysis.evidence import Evidence, OtherStartsEvidence
from la_reconvla.analysis.other_suites import loss
from la_reconvla.analysis.results import Arm, Study
from la_reconvla.analysis.verdicts import NO_OTHER_SUITES, ONE_SEED, judge
from la_reconvla.conditions import condition
from la_reconvla.episodes import EpisodeRecord
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import base_of, change_of
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.starts import tasks_of, wording, wrong_words

SWAP = "libero_spatial_swap"


def pairs(a: float, b: float, seeds: int = 3, tasks: int = 3, starts: int = 20, draw: int = 0) -> dict[Any, Any]:
    rng = np.random.default_rng(draw)
    return {
        (seed, str(task), f"{task}/{start:02d}"): (bool(rng.random() < a), bool(rng.random() < b))
        for seed in range(seeds)
        for task in range(tasks)
        for start in range(starts)
    }


def episodes(rate: float, suite: str, draw: int, seeds: tuple[int, ...] = (0, 1, 2)) -> list[EpisodeRecord]:
    rng = np.random.default_rng(draw)
    return [
        episode(seed, task, start, bool(rng.random() < rate), suite=suite)
        for seed in seeds
        for task in range(3)
        for start in range(20)
    ]


def test_a_loss_is_home_minus_elsewhere() -> None:
    home, away = pairs(0.8, 0.8, 6), pairs(0.7, 0.3, 6, draw=1)
    found = loss(home, away)
    rates = [np.mean(list(place.values()), axis=0) for place in (home, away)]
    assert (found.a, found.b) == pytest.approx(tuple(rates[0] - rates[1]))
    assert (found.a_home, found.b_home) == pytest.approx(tuple(rates[0]))
    assert found.interval.low < found.a - found.b < found.interval.high < 0
    assert found.p < 0.05
    assert (found.n, found.seeds) == (360, 6)


def test_the_interval_is_never_inside_of_students_over_seeds() -> None:
    home, away = pairs(0.8, 0.8), pairs(0.7, 0.3, draw=1)
    lost = [
        np.subtract(*(np.mean([float(a) - b for key, (a, b) in at.items() if key[0] == seed]) for at in (home, away)))
        for seed in range(3)
    ]
    student = scipy.stats.ttest_1samp(lost, 0)
    low, high = student.confidence_interval()
    found = loss(home, away)
    assert found.interval.low <= low + 1e-9
    assert found.interval.high >= high - 1e-9
    assert found.p >= student.pvalue - 1e-9


def test_losing_alike_is_no_difference_and_other_tasks_are_no_obstacle() -> None:
    found = loss(pairs(0.6, 0.6), pairs(0.3, 0.3, tasks=5, draw=1))
    assert found.interval.low < 0 < found.interval.high
    assert found.p > 0.05


@pytest.mark.nightly
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Independent starts, one seed: a loss of 0.1 more in 95 % of the studies, or a little more often."""
    held = 0
    for study in range(300):
        found = loss(pairs(0.7, 0.5, 1, 2, 30, 2 * study), pairs(0.3, 0.2, 1, 2, 30, 2 * study + 1))
        held += found.interval.low < 0.1 < found.interval.high
    assert held >= 0.94 * 300


def test_few_starts_cannot_say_much() -> None:
    here = {(0, "0", f"0/{i}"): (True, False) for i in range(2)}
    assert loss(here, {key: (False, True) for key in here}).p >= 0.5


def over(p: float, suite: str, difference: float) -> Comparison:
    low, high = (difference - 0.05, difference + 0.05) if p < 0.05 else (difference - 0.5, difference + 0.5)
    return Comparison(
        "C4",
        "R1",
        "tsr",
        difference,
        low,
        high,
        p,
        None,
        60,
        a_mean=0.5,
        b_mean=0.4,
        a_home=0.8,
        b_home=0.8,
        seeds=3,
        kind="loss",
        suite=suite,
    )


def test_one_suite_of_four_refutes_h4_only_after_holms_correction() -> None:
    for p, verdict in ((0.04, "inconclusive"), (0.01, "refuted")):
        losses = [over(one, f"suite_{i}", 0.2) for i, one in enumerate((p, 0.9, 0.8, 0.7))]
        assert next(h for h in judge(losses, BEFORE) if h.id == "H4").verdict == verdict
    best = [over(0.04, f"suite_{i}", -0.2) for i in range(4)]
    assert next(h for h in judge(best, BEFORE) if h.id == "H4").verdict == "supported", (
        "all of them needs no correction"
    )


def judged(c4: tuple[float, float], r1: tuple[float, float], seeds: tuple[int, ...] = (0, 1, 2)):
    arms = [
        (Arm.of(condition(id)), Evidence(episodes(home, "libero_spatial", i, seeds)))
        for i, (id, (home, _)) in enumerate((("C4", c4), ("R1", r1)))
    ]
    away = [
        OtherStartsEvidence("official", id, episodes(rate, SWAP, 5 + i, seeds), SWAP, "swap", id)
        for i, (id, (_, rate)) in enumerate((("C4", c4), ("R1", r1)))
    ]
    results = build(Study(preset="quick"), arms, elsewhere=away)
    found = results.hypothesis("H4")
    assert found is not None
    assert (results.elsewhere[0].suite, results.elsewhere[0].change, results.elsewhere[0].condition) == (
        SWAP,
        "swap",
        "C4",
    )
    return found, results.comparison("C4", "R1", "tsr", SWAP)


def test_h4_is_supported_refuted_or_neither() -> None:
    found, made = judged((0.8, 0.8), (0.8, 0.2))
    assert made is not None
    assert made.difference < -0.4
    assert found.verdict == "supported"
    assert found.comparisons == (made.key,)
    assert (made.kind, found.note) == ("loss", "")
    assert judged((0.8, 0.2), (0.8, 0.8))[0].verdict == "refuted"
    assert judged((0.6, 0.3), (0.6, 0.3))[0].verdict == "inconclusive"
    one, _ = judged((0.8, 0.8), (0.8, 0.2), (0,))
    assert one.verdict == "inconclusive"
    assert one.note == ONE_SEED


def test_who_succeeds_nowhere_loses_nothing() -> None:
    never, _ = judged((0.0, 0.0), (0.0, 0.0))
    assert never.verdict == "inconclusive"
    assert never.note.startswith(f"{SWAP}: neither")
    floor, _ = judged((0.0, 0.0), (0.9, 0.0))
    assert floor.verdict == "inconclusive"
    assert floor.note.startswith(f"{SWAP}: an arm that hardly succeeds")


def test_h4_needs_other_suites() -> None:
    results = build(Study(preset="quick"), [(Arm.of(condition("C4")), Evidence(episodes(0.5, "libero_spatial", 0)))])
    found = results.hypothesis("H4")
    assert found is not None
    assert (found.comparisons, found.note) == ((), NO_OTHER_SUITES)


def test_bases_and_changes() -> None:
    assert (base_of(SWAP), change_of(SWAP)) == ("libero_spatial", "swap")
    assert (base_of("libero_object_object"), change_of("libero_object_object")) == ("libero_object", "object")
    for suite in ("libero_object", "libero_goal_with_milk", "libero_10"):
        assert (base_of(suite), change_of(suite)) == (suite, "")


def test_a_suite_cannot_be_listed_twice() -> None:
    with pytest.raises(UserError, match="listed twice"):
        StudyConfig(elsewhere=(SWAP, SWAP))


@pytest.mark.sim
def test_tasks_are_the_learned_ones_of_a_changed_suite_and_all_of_another() -> None:
    learned = [("libero_spatial", 2), ("libero_spatial", 0)]
    assert tasks_of("libero_spatial", learned) == tasks_of(SWAP, learned) == (0, 2)
    assert tasks_of("libero_goal", learned) == tuple(range(10))


@pytest.mark.sim
def test_the_words_of_changed_suites_are_their_own_and_so_are_the_wrong_ones() -> None:
    said = {text for _, text in wording("libero_spatial_lan", (0,), "official")}
    assert said == {"lift the black bowl between the plate and ramekin and set it on the plate"}
    own = {text for _, text in wording("libero_spatial_lan", range(10), "official")}
    swaps = {true: wrong for task, true, wrong in wrong_words("libero_spatial_lan", (0,), "official") if task == 0}
    (wrong,) = (swaps[text] for text in said)
    assert wrong in own - said
    with pytest.raises(UserError, match=r"no wide placements.*--placement official"):
        wording(SWAP, (0,), "wide")
    with pytest.raises(UserError, match="no wide placements"):
        wording("libero_10", (0,), "wide")


def test_rewordings_and_pairs_are_summed_up_where_they_were_met() -> None:
    """By kind of wording; a state with two instructions is no loss, and its pairs are counted."""
    home = episodes(0.5, "libero_spatial", 0, (0,))
    said = {"set it down": "verb", "please put it down": "politeness"}
    reworded = [
        replace(record, success=number % 4 == 0, start=replace(record.start, instruction=list(said)[number % 2]))
        for number, record in enumerate(episodes(1.0, "libero_spatial_paraphrase", 1, (0,)))
    ]
    asked = [
        replace(record, start=replace(record.start, suite=suite, target=target), moved="bowl_1")
        for record in home
        for suite, target in (("libero_spatial", "bowl_1"), ("libero_spatial_counterfactual", "bowl_2"))
    ]
    away = [
        OtherStartsEvidence("official", id, records, suite, change, id, wordings=kinds)
        for id in ("C4", "R1")
        for suite, change, records, kinds in (
            ("libero_spatial_paraphrase", "paraphrase", reworded, said),
            ("libero_spatial_counterfactual", "counterfactual", asked, {}),
        )
    ]
    arms = [(Arm.of(condition(id)), Evidence(home)) for id in ("C4", "R1")]
    results = build(Study(preset="quick"), arms, elsewhere=away)
    words, pairs = results.elsewhere[:2]
    assert {kind: (found.successes, found.episodes) for kind, found in words.wordings.items()} == {
        "verb": (len(reworded) / 4, len(reworded) / 2),
        "politeness": (0, len(reworded) / 2),
    }
    assert pairs.counterfactual is not None
    assert (pairs.counterfactual.pairs, pairs.counterfactual.asked) == (len(home), len(home))
    assert (words.counterfactual, pairs.wordings) == (None, {})
    assert [c.suite for c in results.comparisons if c.kind == "loss"] == ["libero_spatial_paraphrase"]
