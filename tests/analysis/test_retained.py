"""H4 by the share of success that is retained: simulated arms whose truth is known, and the verdicts."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from retained_worlds import PLANTED, SAME, WORSE, Places, judged
from scipy.stats import binom
from scipy.stats import t as t_distribution
from test_declared import POOLED
from test_results import SAID, episode

from la_reconvla.analysis.comparing import all_comparisons
from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.declaration import Declaration
from la_reconvla.analysis.evidence import Evidence, OtherStartsEvidence, Unit
from la_reconvla.analysis.retained import retained
from la_reconvla.analysis.verdicts import judge
from la_reconvla.episodes import EpisodeRecord

ARMS: tuple[str, ...] = ("C4", "R1", "C1", "C2", "R2")


def outcomes(
    rates: Mapping[str, float], suite: str, rng: np.random.Generator, spread: float = 0.05
) -> dict[str, dict[Unit, float]]:
    """Success of each arm with four seeds on 24 official starts of two tasks."""
    found: dict[str, dict[Unit, float]] = {}
    for arm, rate in rates.items():
        own = np.clip(rate + spread * rng.normal(size=4), 0, 1) if 0 < rate < 1 else np.full(4, rate)
        found[arm] = {
            (seed, str(task), f"{suite}/{task}/official/eval/{k}"): float(rng.random() < own[seed])
            for seed in range(4)
            for task in range(2)
            for k in range(12)
        }
    return found


def test_the_interval_of_the_difference_of_two_shares_covers() -> None:
    """C4 0.6 to 0.3, R1 0.8 to 0.4: both retain half."""
    rng, covered, width = np.random.default_rng(0), 0, []
    rates = (0.6, 0.8, 0.6, 0.7, 0.7), (0.3, 0.4, 0.3, 0.4, 0.4)
    home, away = (dict(zip(ARMS, of_place, strict=True)) for of_place in rates)
    for _ in range(150):
        found = retained("C4", "R1", outcomes(home, "a", rng), outcomes(away, "b", rng), 0.05)
        assert found is not None
        low, high = found.share.ends(0.95)
        covered += low <= 0 <= high
        width.append(high - low)
    assert covered >= 0.91 * 150
    assert np.median(width) < 0.75  # of independent arms by the delta method about 0.55


def test_shares_are_those_of_the_rates() -> None:
    rng = np.random.default_rng(1)
    home, away = (outcomes(dict.fromkeys(ARMS, rate), suite, rng) for rate, suite in ((0.7, "a"), (0.4, "b")))
    found = retained("C4", "R1", home, away, 0.05)
    assert found is not None
    h, e = ({arm: np.mean(list(values.values())) for arm, values in place.items()} for place in (home, away))
    assert found.shares == pytest.approx((e["C4"] / h["C4"], e["R1"] / h["R1"]))
    assert float(found.share.estimate) == pytest.approx(found.shares[0] - found.shares[1])
    assert float(found.elsewhere.estimate) == pytest.approx(e["C4"] - e["R1"])
    few = {arm: {key: value for key, value in of.items() if key[2].endswith("/0")} for arm, of in home.items()}
    assert retained("C4", "R1", few, away, 0.05) is None
    assert retained("C4", "R1", away, few, 0.05) is None


def records(values: Mapping[Unit, float], suite: str) -> list[EpisodeRecord]:
    return [
        episode(int(str(seed)), int(task), int(start.rsplit("/", 1)[1]), bool(success), suite=suite)
        for (seed, task, start), success in values.items()
    ]


def test_the_error_at_home_counts_too() -> None:
    """Where all succeed elsewhere, the share is 1 / H, and its error that of H over its square (the delta method)."""
    rng, ratios = np.random.default_rng(3), []
    for _ in range(21):
        home = outcomes(dict.fromkeys(ARMS, 0.6), "a", rng, spread=0.0)
        found = retained("C4", "R1", home, outcomes(dict.fromkeys(ARMS, 1.0), "b", rng), 0.05)
        assert found is not None
        errors = [
            np.std(list(home[arm].values())) / np.sqrt(96) / rate**2
            for arm, rate in zip(ARMS, found.home, strict=False)
        ]
        ratios.append(float(found.share.error) / np.hypot(*errors))
    assert 0.8 < np.median(ratios) < 1.5, "on the wide side where trainings do not differ"


def test_arms_that_are_far_worse_at_home_tell_nothing() -> None:
    """What they retain varies by 1 / H, far more than what the two do; then the two alone are judged."""
    rng, near = np.random.default_rng(4), ("C4", "R1", "C1")
    rates = {"C4": 0.7, "R1": 0.8, "C1": 0.6, "C2": 0.1, "R2": 0.12}
    home, away = (outcomes({arm: share * r for arm, r in rates.items()}, s, rng) for share, s in ((1, "a"), (0.5, "b")))
    for arms, pooled in ((near, True), (near[:2], False)):
        others = (*arms, "C2", "R2")
        some, all_of_them = (retained("C4", "R1", {arm: home[arm] for arm in of}, away, 0.05) for of in (arms, others))
        assert some == all_of_them
        assert some is not None
        assert some.pooled == pooled
        assert some.starts == (12, 12)
        assert some.share.own or pooled


@pytest.mark.parametrize(
    ("low", "high", "p_margin", "word"),
    [
        (-0.04, 0.1, 0.1, "supported"),
        (-0.06, 0.1, 0.1, "inconclusive"),
        (-0.03, -0.01, 1e-4, "supported"),  # worse, but not by the margin
        (-0.07, -0.01, 0.4, "inconclusive"),
        (-0.2, -0.1, 1e-4, "refuted"),
        (-0.2, -0.06, 0.02, "inconclusive"),  # not after correction
    ],
)
def test_no_worse_elsewhere_is_by_less_than_the_margin(low: float, high: float, p_margin: float, word: str) -> None:
    text = json.dumps({**json.loads(POOLED), "claims": {"C4>C2": "more", "H4": "loses less"}})
    retains = Comparison("C4", "R1", "retained", 0.3, 0.2, 0.4, 1e-4, 1e-3, 60, seeds=4, kind="retained", suite="x")
    there = replace(
        retains, metric="elsewhere", kind="elsewhere", difference=0.0, low=low, high=high, p=1e-5, p_holm=None
    )
    there = replace(there, p_margin=p_margin)
    lost = replace(there, metric="tsr", kind="loss")
    found = {h.id: h.verdict for h in judge([retains, there, lost], Declaration.parse(text, "test"))}
    assert found["H4"] == word


def test_the_corrected_p_is_that_of_being_no_worse_too() -> None:
    """Without its correction "no worse" held in one of twenty studies where it is not true, however many tests."""
    text = json.dumps({**json.loads(POOLED), "claims": {"C4>C2": "more", "H4": "loses less"}})
    declared, rng = Declaration.parse(text, "test"), np.random.default_rng(5)
    home = outcomes(dict(zip(ARMS, (0.5, 1.0, 0.6, 0.6, 0.6), strict=True)), "home", rng, spread=0.0)
    away = outcomes(dict.fromkeys(ARMS, 0.5), "away", rng, spread=0.0)
    evidence = {arm: Evidence(episodes=records(home[arm], "libero_spatial")) for arm in ARMS}
    elsewhere = [
        OtherStartsEvidence("official", arm, records(away[arm], "libero_goal"), "libero_goal", condition=arm)
        for arm in ARMS
    ]
    made = {c.kind: c for c in all_comparisons(evidence, [], elsewhere, declared) if (c.a, c.b) == ("C4", "R1")}
    there, share = made["elsewhere"], made["retained"]
    found = retained("C4", "R1", home, away, 0.05)
    assert found is not None
    student = found.elsewhere
    gap = (float(student.estimate) + 0.05) / float(student.error)
    one_sided = float(t_distribution.sf(gap, float(student.freedom)))
    assert there.p_margin == pytest.approx(one_sided)
    assert 9 * share.p < 2 * one_sided, "the share alone would pass"
    assert share.p_holm is not None
    assert share.p_holm >= min(1.0, 2 * one_sided)


@pytest.mark.parametrize("rates", [(0.6, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_where_all_end_alike_the_shares_have_an_interval(rates: tuple[float, float]) -> None:
    """Nothing varies elsewhere or anywhere; the width is that of a success and a failure more."""
    rng = np.random.default_rng(6)
    home, away = (outcomes(dict.fromkeys(("C4", "R1"), rate), s, rng) for s, rate in zip("ab", rates, strict=True))
    found = retained("C4", "R1", home, away, 0.05)
    assert found is not None
    low, high = found.share.ends(0.95)
    assert low < found.shares[0] - found.shares[1] < high
    assert float(found.share.p) == pytest.approx(1.0)
    assert h4((rates[0], rates[1]), (rates[0], rates[1])).verdict == "inconclusive"


@pytest.mark.parametrize("world", [*SAME, *WORSE], ids=lambda w: f"{w.home}, {w.away}, {w.training}")
@pytest.mark.parametrize("seeds", [2, 4, 8])
def test_two_arms_alone_are_seldom_judged_wrongly(world: Places, seeds: int) -> None:
    """Each side in at most 2.5 % of 1,000 studies, at the level of one test."""
    supported, refuted, *_ = judged(world, seeds, 1000)
    most = binom.ppf(0.9999, 1000, 0.025) / 1000
    assert supported <= most
    if world.share == 0 and not world.worse:
        assert refuted <= most


def test_what_two_arms_alone_retain_is_found_from_four_seeds() -> None:
    """And with two seeds almost never."""
    found = {seeds: judged(PLANTED[0], seeds, 500) for seeds in (2, 4, 8)}
    assert found[2][0] < 0.1 < 0.6 < found[4][0] < found[8][0]
    assert judged(PLANTED[-1], 4, 500)[1] > 0.9


@functools.cache
def h4(c4: tuple[float, float], r1: tuple[float, float]) -> Hypothesis:
    """H4 where the two arms have these rates at home and elsewhere."""
    text = json.dumps({**json.loads(POOLED), "claims": {"C4>C2": "more", "H4": "loses less"}})
    declared, rng = Declaration.parse(text, "test"), np.random.default_rng(2)
    rates = [dict(zip(ARMS, (a, b, 0.6, 0.6, 0.6), strict=True)) for a, b in zip(c4, r1, strict=True)]
    home, away = (outcomes(of, suite, rng) for of, suite in zip(rates, ("home", "away"), strict=True))
    evidence = {arm: Evidence(episodes=records(home[arm], "libero_spatial")) for arm in ARMS}
    elsewhere = [
        OtherStartsEvidence("official", arm, records(away[arm], "libero_goal"), "libero_goal", condition=arm)
        for arm in ARMS
    ]
    found = judge(all_comparisons(evidence, [], elsewhere, declared), declared, len(SAID))
    return next(h for h in found if h.id == "H4")


def test_who_is_bad_at_home_does_not_lose_less() -> None:
    """C4 falls from 10 to 0 %, R1 from 95 to 55: in points C4 lost less."""
    assert h4((0.1, 0.0), (0.95, 0.55)).verdict != "supported"


def test_who_retains_more_and_is_no_worse_there_is_supported() -> None:
    assert h4((0.8, 0.75), (0.8, 0.25)).verdict == "supported"
    assert h4((0.8, 0.25), (0.8, 0.75)).verdict == "refuted"


def test_who_retains_more_of_little_is_not_supported() -> None:
    """All of 25 % against two thirds of 90 %: more retained, and far worse there."""
    assert h4((0.25, 0.25), (0.9, 0.6)).verdict != "supported"
