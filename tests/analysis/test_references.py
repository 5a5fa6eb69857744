"""Own references for what intervals, p-values and ceilings are made of: each defect here went unnoticed once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from la_reconvla.analysis.attention_overlap import measure
from la_reconvla.analysis.bootstrap import ends, over_seeds, two_sided
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.declaration import BEFORE
from la_reconvla.analysis.intervals import Agreement, newcombe_paired, square_and_add
from la_reconvla.analysis.other_suites import loss
from la_reconvla.analysis.paired import paired_means
from la_reconvla.analysis.verdicts import judge


@pytest.mark.parametrize(("below", "p"), [(9, 0.02), (0, 0.002), (499, 1.0), (990, 0.02)])
def test_p_of_a_bootstrap_counts_both_tails(below: int, p: float) -> None:
    """Of 999 means so many are not above zero; with the sample itself, (tail + 1) of 1000, twice."""
    means = np.concatenate([np.linspace(-2, -1, below), np.linspace(1, 2, 999 - below)])
    assert float(two_sided(means, None)) == pytest.approx(p)


def test_p_is_never_below_students() -> None:
    values = np.array([0.3, 0.1, 0.45])
    means = np.ones(999)
    expected: Any = ttest_1samp(values, 0)
    assert float(two_sided(means, over_seeds(values, [0, 1, 2]))) == pytest.approx(expected.pvalue)
    low, high = ends(means, over_seeds(values, [0, 1, 2]), 0.95)
    assert (float(low), float(high)) == pytest.approx((expected.confidence_interval().low, 1.0))


@pytest.mark.parametrize("starts", [1, 2, 4, 6])
def test_few_starts_have_a_least_p(starts: int) -> None:
    """All differences alike: the sign-flip test of so many starts cannot give less."""
    seeds, tasks = np.repeat(np.arange(3), starts), np.zeros(3 * starts)
    a = 1 + 1e-9 * np.arange(3 * starts)
    flips = [abs(np.dot(signs, np.ones(starts))) >= starts for signs in itertools.product((-1, 1), repeat=starts)]
    assert paired_means(a, np.zeros_like(a), seeds, tasks).p >= np.mean(flips)


@pytest.mark.parametrize("g", [1, 5, 16, 17, 40, 64])
def test_no_map_scores_more_than_the_ceiling(g: int) -> None:
    """16 of 64 patches are picked: the best map there is, over sets, below and above that number."""
    best = np.zeros((1, 64))
    best[0, :g] = 1
    saliency = best + 1e-3 * np.arange(64, 0, -1)
    picked, target = set(np.argsort(-saliency[0])[:16].tolist()), set(range(g))
    found = measure(saliency, best)
    expected = len(picked & target) / len(picked | target)
    assert found.aos_ceiling[0] == pytest.approx(expected)
    assert found.aos[0] == pytest.approx(expected)
    assert expected <= 1


# ---------------------------------------------------------------- losses on other suites


def place(a: np.ndarray, b: np.ndarray) -> dict[tuple[int, str, str], tuple[bool, bool]]:
    """Success [seeds starts] of two arms."""
    return {
        (int(s), "0", f"{k:02d}"): (bool(a[s, k]), bool(b[s, k]))
        for s, k in itertools.product(*map(range, np.shape(a)))
    }


def test_where_all_agree_the_interval_is_newcombes() -> None:
    all_succeed = place(np.ones((3, 8)), np.ones((3, 8)))
    one = newcombe_paired(Agreement(24, 0, 0, 0))
    expected = square_and_add(0.0, one, 0.0, one)
    found = loss(all_succeed, all_succeed).interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.high - found.low > 0.1


def test_where_seeds_are_alike_the_interval_is_the_bootstraps_over_starts() -> None:
    """Eight equal seeds: Student's t is a point, and Newcombe's takes 8 x 12 pairs for independent."""
    favour = np.tile(np.arange(12) % 2 == 0, (8, 1))
    home, away = place(favour, ~favour), place(np.ones((8, 12)), np.ones((8, 12)))
    found = loss(home, away).interval
    of_starts = 2 * 1.96 * 1.0 / np.sqrt(12)  # differences are +-1
    assert found.high - found.low >= 0.85 * of_starts  # quantiles of a mean of twelve are steps
    table = newcombe_paired(Agreement(0, 48, 48, 0))
    assert table.high - table.low < 0.6 * of_starts


def test_what_differs_at_home_and_what_differs_elsewhere_both_count() -> None:
    """Alike in one of the two places, a far better in the other: the p-values are those of the places that differ."""
    alike, better = (place(np.ones((4, 10)), np.full((4, 10), both)) for both in (True, False))
    assert loss(better, alike).p < 0.01
    assert loss(alike, better).p < 0.01
    assert loss(alike, alike).p == 1.0
    assert loss(better, better).p == 1.0


def test_losses_are_judged_at_the_declared_level() -> None:
    a, b = BEFORE.losses[0]
    lost = Comparison(a, b, "tsr", -0.3, -0.5, -0.1, 0.01, None, 60, 0.1, 0.4, seeds=3, kind="loss", suite="x",
                      a_home=0.8, b_home=0.8)  # fmt: skip
    for alpha, word in ((0.05, "supported"), (0.005, "inconclusive")):
        judged = {h.id: h.verdict for h in judge([lost], replace(BEFORE, alpha=alpha))}
        assert judged["H4"] == word
