"""Stopping early: which pairs the test is shown, with a stand-in for the package, whose licence keeps it out of tests.

What the test itself promises is checked by ``benchmarks/sequential.py`` where the package is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from la_reconvla.analysis.sequential import Sequential, sequential_decision, step_test
from la_reconvla.errors import UserError


class Decision(Enum):
    FailToDecide = 0
    AcceptAlternative = 1
    AcceptNull = 2


class LeadOfThree:
    """Decides for who leads by three."""

    def __init__(self, hypothesis: Any, horizon: int, alpha: float, random_seed: int) -> None:
        self.horizon, self.alpha, self.random_seed, self.lead, self.policy = horizon, alpha, random_seed, 0, object()

    def load_existing_policy(self) -> None: ...

    def reset(self) -> None:
        self.lead = 0

    def step(self, a: bool, b: bool) -> Any:
        self.lead += a - b
        decided = {3: Decision.AcceptAlternative, -3: Decision.AcceptNull}
        return SimpleNamespace(decision=decided.get(self.lead, Decision.FailToDecide))


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in = SimpleNamespace(
        Decision=Decision, Hypothesis=SimpleNamespace(P0MoreThanP1=1), MirroredStepTest=LeadOfThree
    )
    monkeypatch.setitem(sys.modules, "sequentialized_barnard_tests", stand_in)
    step_test.cache_clear()
    yield
    step_test.cache_clear()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sequentialized_barnard_tests", None)
    step_test.cache_clear()
    with pytest.raises(UserError, match=r"\[sequential\]"):
        sequential_decision([True], [False], 10)


def test_a_plan_has_bounds() -> None:
    with pytest.raises(UserError, match="plan fewer"):
        sequential_decision([True], [False], 501)
    with pytest.raises(UserError, match="plan fewer"):
        sequential_decision([True], [False], 10, alpha=0.01)
    with pytest.raises(UserError, match="may not grow"):
        sequential_decision([True] * 3, [False] * 3, 2)


def test_the_table_is_the_shortest_that_is_long_enough() -> None:
    assert [step_test(n)[0].horizon for n in (1, 200, 201, 500)] == [200, 200, 500, 500]


@pytest.mark.parametrize(("a", "b", "better"), [(True, False, "a"), (False, True, "b")])
def test_what_lies_behind_the_decision_is_not_looked_at(a: bool, b: bool, better: str) -> None:
    found = sequential_decision([a] * 5, [b] * 5, 10)
    assert found == Sequential(better, 3, 10)  # type: ignore[arg-type]


def test_without_a_decision_all_pairs_are_used_and_each_comparison_begins_anew() -> None:
    for _ in range(2):
        assert sequential_decision([True, True, False], [False, False, True], 10) == Sequential(None, 3, 10)
