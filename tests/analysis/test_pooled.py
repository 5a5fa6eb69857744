"""The pooled interval against linear models, closed forms and simulated studies, and the rules that came with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp
from test_results import episodes

from la_reconvla.analysis.comparing import comparison
from la_reconvla.analysis.evidence import Evidence, Unit
from la_reconvla.analysis.pooled import Student, between_trainings, least_variance, pooled
from la_reconvla.analysis.trainings import Grid, grid, spread_of_trainings
from la_reconvla.errors import UserError


def residuals(y: np.ndarray, *factors: np.ndarray) -> tuple[float, int]:
    """Sum of squares that a linear model of these factors leaves, by least squares over dummies, and its freedom."""
    columns = np.concatenate([(f[:, None] == np.unique(f)).astype(float) for f in factors], axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(columns, y, rcond=None)
    return float(((y - columns @ fitted) ** 2).sum()), y.size - int(rank)


def by_linear_models(values: np.ndarray, tasks: np.ndarray, scenes: np.ndarray) -> tuple[float, float, float]:
    """A, B and R of the pooled rule, from what fitted models leave; scenes have equally many starts."""
    arms, seeds, units = values.shape
    arm, seed = (index.ravel() for index in np.indices((arms, seeds)))
    trainings, free = residuals(values.mean(2).ravel(), arm, seed)
    d = values[0] - values[1]
    of_scene = np.stack([d[:, scenes == scene].mean(1) for scene in np.unique(scenes)], axis=1)
    task = np.array([tasks[scenes == scene][0] for scene in np.unique(scenes)])
    each = units / of_scene.shape[1]
    s, c = (index.ravel() for index in np.indices(of_scene.shape))
    seed_in_task = s * 100 + task[c]
    left, rest_free = residuals(of_scene.ravel(), seed_in_task, c)
    whole, whole_free = residuals(of_scene.ravel(), seed_in_task)
    return 2 * units * trainings / free, each * (whole - left) / (whole_free - rest_free), each * left / rest_free


@pytest.mark.parametrize("starts", [1, 2])
def test_the_variance_is_that_of_linear_models(starts: int) -> None:
    """With one and with two starts in a scene; the error is made of A, B and R as the module says."""
    rng = np.random.default_rng(starts)
    for _ in range(20):
        arms, seeds, tasks = 4, 3, np.repeat([0, 1, 2], (4, 6, 4))
        scenes = np.arange(tasks.size) // starts
        values = rng.normal(size=(arms, seeds, tasks.size)) + rng.normal(size=(arms, seeds, 1))
        values = values + 2 * rng.normal(size=(arms, 1, scenes.max() + 1))[..., scenes]
        a, b, r = by_linear_models(values, tasks, scenes)
        found = pooled(values, tasks, scenes, successes=False)
        if not found.own:
            expected = (max(a, r) + max(b - r, 0)) / (seeds * tasks.size)
            assert float(found.error) ** 2 == pytest.approx(expected)
            assert float(found.estimate) == pytest.approx((values[0] - values[1]).mean())
            of_scenes = scenes.max() + 1 - 3
            least, most = min(6, of_scenes), 6 + of_scenes * seeds
            assert least <= found.freedom <= most


def test_trainings_that_vary_more_are_judged_alone_by_students_t() -> None:
    """Nothing but trainings varies, and of the first arm far more: what is left is the t test over its seeds."""
    rng = np.random.default_rng(0)
    trainings = 0.1 * rng.normal(size=(5, 4, 1))
    trainings[0] *= 30
    values = np.broadcast_to(trainings, (5, 4, 6))
    found = pooled(values, [0, 0, 0, 1, 1, 1], successes=False)
    expected: Any = ttest_1samp((values[0] - values[1]).mean(1), 0)
    assert found.own
    assert float(found.p) == pytest.approx(expected.pvalue)
    assert [float(end) for end in found.ends(0.95)] == pytest.approx(list(expected.confidence_interval()))
    shared = pooled(values[1:], [0, 0, 0, 1, 1, 1], successes=False)
    assert shared.freedom == 3 * 3 or shared.own


def test_what_all_arms_of_a_seed_share_is_no_difference() -> None:
    rng = np.random.default_rng(3)
    values, tasks = rng.normal(size=(5, 4, 12)), np.arange(12) % 3
    one, two = (pooled(v, tasks, successes=False) for v in (values, values + 9 * rng.normal(size=(1, 4, 1))))
    assert float(two.error) == pytest.approx(float(one.error))
    assert float(two.estimate) == pytest.approx(float(one.estimate))


@settings(max_examples=60, deadline=None)
@given(draw=st.integers(0, 10_000), shift=st.floats(-0.4, 0.4), margin=st.floats(0.01, 0.3))
def test_p_and_interval_never_disagree(draw: int, shift: float, margin: float) -> None:
    rng = np.random.default_rng(draw)
    rates = np.clip(0.5 + np.array([shift, 0, 0, 0])[:, None, None] + 0.1 * rng.normal(size=(4, 3, 1)), 0, 1)
    found = pooled(rng.random((4, 3, 12)) < rates, np.arange(12) % 2, successes=True, bounds=(-1, 1))
    low, high = found.ends(0.95)
    assert -1 <= low <= found.estimate <= high <= 1
    if abs(found.p - 0.05) > 1e-9:
        assert (low > 0 or high < 0) == (found.p < 0.05)
    low, high = found.ends(0.90)
    within, beyond = low > -margin and high < margin, low > margin or high < -margin
    if abs(found.p_margin(margin) - 0.05) > 1e-9:
        assert (within or beyond) == (found.p_margin(margin) < 0.05)


def test_p_margin_is_that_of_two_one_sided_tests() -> None:
    """Inside the margin the larger of two t tests against its ends, outside that against the nearer end."""
    for estimate in (-0.2, -0.03, 0.0, 0.04, 0.09):
        found = Student(np.array(estimate), np.array(0.02), np.array(7.0), np.array(False))
        above, below = t.sf((estimate + 0.05) / 0.02, 7), t.cdf((estimate - 0.05) / 0.02, 7)
        expected = max(above, below) if abs(estimate) < 0.05 else min(t.cdf((estimate + 0.05) / 0.02, 7),
                                                                     t.sf((estimate - 0.05) / 0.02, 7))  # fmt: skip
        assert float(found.p_margin(0.05)) == pytest.approx(expected)


def test_where_all_fail_the_variance_is_that_of_half_a_pair_more_in_each_cell() -> None:
    found = pooled(np.zeros((4, 3, 20)), np.arange(20) % 2, successes=True, bounds=(-1, 1))
    assert found.p == 1.0
    assert float(found.error) == pytest.approx(np.sqrt((1 / 62) / 60))  # 60 pairs and 2; 1 discordant, none net
    once = np.zeros((4, 3, 20))
    once[0, 0, :5] = 1
    found = pooled(once, np.arange(20) % 2, successes=True)
    assert float(found.error) ** 2 >= ((5 + 1) / 62 - (5 / 62) ** 2) / 60 - 1e-15


def test_the_spread_between_trainings_is_found_beyond_the_noise_of_episodes() -> None:
    rng = np.random.default_rng(4)
    for spread in (0.0, 0.1, 0.2):
        found = []
        for _ in range(60):
            own = np.clip(0.5 + spread * rng.normal(size=(6, 5, 1)) + 0.1 * rng.normal(size=(1, 5, 1)), 0, 1)
            found.append(between_trainings((rng.random((6, 5, 30)) < own).astype(float), np.arange(30) % 3) ** 2)
        assert np.sqrt(np.mean(found)) == pytest.approx(spread, abs=0.05 if spread == 0 else 0.02)


def coverage(spreads: list[float], seeds: int, studies: int = 800) -> float:
    """How often the pooled 95 % interval holds the truth, zero: arms of these spreads between trainings."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(studies, len(spreads), seeds, 1)) * np.array(spreads)[:, None, None]
    x = x + 0.5 * rng.normal(size=(studies, 1, seeds, 1)) + 0.7 * rng.normal(size=(studies, 1, 1, 24))
    x = x + 0.4 * rng.normal(size=(studies, len(spreads), 1, 24))
    values = rng.random(x.shape) < 1 / (1 + np.exp(-x))
    low, high = pooled(values, np.arange(24) % 3, successes=True).ends(0.95)
    return float(((low <= 0) & (high >= 0)).mean())


def test_it_covers_with_equal_spreads_and_with_two_arms_that_vary_four_times_as_much() -> None:
    assert coverage([0.4] * 6, 4) >= 0.93
    assert coverage([0.8] * 2 + [0.4] * 4, 4) >= 0.92


def test_the_least_variance_is_that_of_the_pairs_and_half_a_pair_of_each_kind() -> None:
    rng = np.random.default_rng(9)
    for rates, (x, y) in (((0.2, 0.7), (1.0, 1.0)), ((0.5, 0.9), (0.4, 2.5)), ((0.0, 0.0), (0.3, 2.0))):
        values = (rng.random((2, 3, 20)) < np.array(rates)[:, None, None]).astype(float)
        kinds = np.array([[1, 1], [1, 0], [0, 1], [0, 0]]).T
        a, b = np.concatenate([values.reshape(2, -1), kinds], axis=1)
        variance = np.cov(x * a - y * b, aweights=[*60 * [1.0], *4 * [0.5]], ddof=0)
        assert least_variance(values, (x, y)) == pytest.approx(float(variance) / 60)
        assert least_variance(values, (x, y)) > 0


@pytest.mark.parametrize(
    ("shape", "tasks", "said"),
    [((1, 3, 9), [0] * 9, "1 arms"), ((3, 1, 9), [0] * 9, "1 seeds"), ((3, 3, 4), [0, 0, 1, 1], "4 starts")],
)
def test_too_little_is_refused(shape: tuple[int, ...], tasks: list[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pooled(np.zeros(shape), tasks, successes=True)
    with pytest.raises(UserError, match="finite"):
        pooled(np.full((3, 3, 9), np.nan), [0] * 9, successes=False)


# ---------------------------------------------------------------- which arms and starts are taken


def study(arms: int, seeds: int = 3, starts: int = 12) -> dict[str, dict[Unit, float]]:
    rng = np.random.default_rng(6)
    names = [f"x{i}" for i in range(arms)]
    units = [(s, "0", f"libero_spatial/0/wide/eval/{k}") for s, k in itertools.product(range(seeds), range(starts))]
    return {name: {unit: float(rng.random() < 0.5) for unit in units} for name in names}


def test_arms_that_lack_a_seed_tell_nothing_and_a_pair_that_lacks_a_start_is_judged_alone() -> None:
    values = study(5)
    whole = comparison("x0", "x1", values["x0"], values["x1"], study=values)
    assert whole.spread != "pair"
    fewer = {**values, "x4": {unit: v for unit, v in values["x4"].items() if unit[0] != 2}}
    without = {name: v for name, v in values.items() if name != "x4"}
    left_out, never_there = (comparison("x0", "x1", v["x0"], v["x1"], study=v) for v in (fewer, without))
    assert left_out == never_there
    ragged = {unit: v for unit, v in values["x0"].items() if unit != (2, "0", "libero_spatial/0/wide/eval/3")}
    lacks = comparison("x0", "x1", ragged, values["x1"], study=values)
    assert (lacks.spread, "not every seed met every start" in lacks.note) == ("pair", True)
    alone = comparison("x0", "x1", values["x0"], values["x1"])
    two = comparison("x0", "x1", values["x0"], values["x1"], study={n: values[n] for n in ("x0", "x1")})
    assert "fewer than 3 arms" in two.note
    assert replace(two, note=alone.note, equivalence=alone.equivalence) == alone


def test_a_tie_is_undecided_where_its_p_cannot_be_corrected() -> None:
    values = study(2, starts=100)
    same = comparison("x0", "x1", values["x0"], values["x0"])
    assert same.equivalence == "equivalent"
    for of in (values, study(4, seeds=1)):
        found = comparison("x0", "x1", of["x0"], of["x0"], study={**of, "x1": of["x0"]})
        assert (found.spread, found.p_margin, found.equivalence) == ("pair", None, "undecided")
    assert "one training seed" in found.note


def test_the_spread_of_trainings_is_that_of_the_arms_that_tell_most() -> None:
    """An arm without a seed, or with a few starts, is left out; two starts of a scene are one scene."""
    arms = {f"x{i}": episodes(0.5 + 0.1 * (i % 2), (0, 1, 2, 3)) for i in range(5)}
    found = spread_of_trainings({name: Evidence(episodes=of) for name, of in arms.items()})
    fewer = {**arms, "x5": [r for r in arms["x0"] if r.label.seed != 1], "x6": arms["x1"][:9]}
    assert found is not None
    assert spread_of_trainings({name: Evidence(episodes=of) for name, of in fewer.items()}) == found
    keys = [(seed, "0", start) for seed in (0, 1) for _, _, start in study(1, 1, 8)["x0"]]
    values = {name: dict.fromkeys(keys, 1.0) for name in "abc"}
    assert "scenes" in str(grid(values, keys, "tsr"))
    assert isinstance(grid(values, keys, "aos"), Grid)


def test_two_starts_of_a_wide_scene_are_one_scene() -> None:
    """Where both starts of a scene always end alike they count as one; 8 starts are 4 scenes, which is too few."""
    few = study(4, starts=8)
    assert "4 scenes more than tasks" in comparison("x0", "x1", few["x0"], few["x1"], study=few).note
    values = study(4, starts=16)
    twins = {n: {u: v[(u[0], u[1], f"{u[2].rpartition('/')[0]}/{int(u[2].split('/')[-1]) // 2}")] for u in v}
             for n, v in values.items()}  # fmt: skip
    official = {n: {(s, k, id.replace("wide", "official")): x for (s, k, id), x in v.items()} for n, v in twins.items()}
    scenes, starts = (comparison("x0", "x1", v["x0"], v["x1"], study=v) for v in (twins, official))
    assert scenes.difference == starts.difference
    assert scenes.agreement == starts.agreement
    assert scenes.high - scenes.low >= starts.high - starts.low
