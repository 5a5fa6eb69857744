"""Stopping early: errors without the package; with it, how often equal policies are told apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from la_reconvla.errors import UserError
from la_reconvla.study.power import pairs
from la_reconvla.study.sequential import sequential_decision, step_test

INSTALL = "needs sequentialized-barnard-tests: pip install 'la-reconvla[sequential]'"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sequentialized_barnard_tests", None)
    step_test.cache_clear()
    with pytest.raises(UserError, match=r"la-reconvla\[sequential\]"):
        sequential_decision([True], [False], 10)


def test_a_plan_has_bounds() -> None:
    pytest.importorskip("sequentialized_barnard_tests", reason=INSTALL)
    with pytest.raises(UserError, match="plan less"):
        sequential_decision([True], [False], 501)
    with pytest.raises(UserError, match="may not grow"):
        sequential_decision([True] * 3, [False] * 3, 2)


@pytest.mark.parametrize("agreement", [0.0, 0.5])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
def test_equal_policies_are_seldom_told_apart(rate: float, agreement: float) -> None:
    """On the boundary of the null: at most 5 % one-sided, and three standard errors of 300 comparisons."""
    pytest.importorskip("sequentialized_barnard_tests", reason=INSTALL)
    rates = np.full((300, 200), rate)
    drawn = zip(*pairs(rates, rates, agreement, np.random.default_rng(0)), strict=True)
    better = [sequential_decision(a, b, 200, rng_seed=k).better for k, (a, b) in enumerate(drawn)]
    assert max(better.count("a"), better.count("b")) <= 300 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 300))


def test_a_large_difference_saves_rollouts() -> None:
    pytest.importorskip("sequentialized_barnard_tests", reason=INSTALL)
    for planned, needed in ((200, 9), (500, 10)):
        found = sequential_decision([True] * planned, [False] * planned, planned)
        assert (found.better, found.pairs) == ("a", needed)
