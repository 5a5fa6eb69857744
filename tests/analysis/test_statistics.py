"""Statistics against closed forms, published examples and simulated worlds whose truth is known."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from la_reconvla.analysis import bootstrap
from la_reconvla.analysis.bootstrap import hierarchical_bootstrap, mean_interval
from la_reconvla.analysis.decisions import equivalence, holm, verdict
from la_reconvla.analysis.intervals import Agreement, Interval, newcombe_paired, wilson
from la_reconvla.analysis.paired import paired_means, paired_successes
from la_reconvla.errors import UserError


def crossed(seeds: int, tasks: int, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a full (seed, task, episode) design."""
    labels = np.array(list(itertools.product(range(seeds), range(tasks), range(episodes))))
    return labels[:, 0], labels[:, 1]


# ---------------------------------------------------------------- one rate


@given(n=st.integers(1, 300), data=st.data())
def test_wilson_is_the_score_interval(n: int, data: st.DataObject) -> None:
    """Its ends are the p at which the normal test statistic is exactly 1.96."""
    x = data.draw(st.integers(0, n))
    found = wilson(x, n)
    for end in (found.low, found.high):
        if 1e-6 < end < 1 - 1e-6:
            assert abs(x / n - end) / np.sqrt(end * (1 - end) / n) == pytest.approx(norm.ppf(0.975), rel=1e-6)
    assert found.low <= x / n <= found.high


def test_wilson_of_a_known_example() -> None:
    found = wilson(51, 60)
    assert (round(found.low, 3), round(found.high, 3)) == (0.739, 0.919)


@pytest.mark.parametrize(("p", "n"), [(0.5, 18), (0.85, 60), (0.05, 60), (0.3, 150)])
def test_coverage_of_the_interval_of_a_rate(p: float, n: int) -> None:
    """Exact coverage, by summing over all outcomes."""
    x = np.arange(n + 1)
    weights = binom.pmf(x, n, p)
    inside = [wilson(int(k), n).low <= p <= wilson(int(k), n).high for k in x]
    assert 0.925 <= weights @ inside <= 0.985


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_rates_without_sense_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(UserError, match="success rate"):
        wilson(successes, trials)


# ---------------------------------------------------------------- bootstrap


def crossed_variance(cube: np.ndarray) -> float:
    """Exact variance of the mean of s drawn seeds, t drawn tasks and k drawn starts a task, all drawn for all seeds.

    The square of that mean is a sum over pairs of its terms; a pair shares the seed drawn, the task drawn, the start
    drawn or nothing, and its expectation is the mean square of what is shared.
    """
    s, t, k = cube.shape
    pairs = (
        s * (s - 1) * t * (t - 1) * k * k * cube.mean() ** 2
        + s * (s - 1) * t * k * (k - 1) * (cube.mean((0, 2)) ** 2).mean()
        + s * (s - 1) * t * k * (cube.mean(0) ** 2).mean()
        + s * t * (t - 1) * k * k * (cube.mean((1, 2)) ** 2).mean()
        + s * t * k * (k - 1) * (cube.mean(2) ** 2).mean()
        + s * t * k * (cube**2).mean()
    )
    return pairs / cube.size**2 - cube.mean() ** 2


@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 1.0)])
def test_bootstrap_draws_seeds_and_for_all_of_them_tasks_and_starts(spread: tuple[float, float, float]) -> None:
    """Its variance is the exact one of the crossed draw, whichever of seeds, tasks and starts differ."""
    rng = np.random.default_rng(1)
    seeds, tasks = crossed(6, 5, 8)
    starts = np.arange(seeds.size) % 8
    of_seed, of_task, of_start = spread
    values = (
        of_seed * rng.normal(size=6)[seeds]
        + of_task * rng.normal(size=5)[tasks]
        + of_start * rng.normal(size=(5, 8))[tasks, starts]
        + 0.3 * rng.normal(size=seeds.size)
    )
    means = hierarchical_bootstrap(values, seeds, tasks, replicates=40_000)
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.var() == pytest.approx(crossed_variance(values.reshape(6, 5, 8)), rel=0.04)


def test_bootstrap_of_one_seed_draws_tasks_and_episodes() -> None:
    """With one seed nothing is crossed: the variance is that of tasks and that of episodes within them."""
    cube = np.random.default_rng(4).normal(size=(5, 8)) + np.arange(5)[:, None]
    _, tasks = crossed(1, 5, 8)
    means = hierarchical_bootstrap(cube.ravel(), np.zeros(40), tasks, replicates=40_000)
    assert means.var() == pytest.approx(cube.mean(1).var() / 5 + cube.var(1).mean() / 40, rel=0.04)


def coverage_of_shared_starts(n_tasks: int, *, lined_up: bool, worlds: int = 200) -> float:
    """How often the interval holds the true mean of three seeds on the same 20 strongly different starts a task."""
    seeds, tasks = crossed(3, n_tasks, 20)
    starts, rng = np.arange(seeds.size) % 20, np.random.default_rng(11)
    covered = 0
    for world in range(worlds):
        values = rng.normal(size=(n_tasks, 20))[tasks, starts] + 0.3 * rng.normal(size=seeds.size)
        if not lined_up:
            values = rng.permuted(values.reshape(-1, 20), axis=1).ravel()
        means = hierarchical_bootstrap(values, seeds, tasks, replicates=500, rng_seed=world)
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0 <= high
    return covered / worlds


def test_starts_that_seeds_share_are_covered() -> None:
    assert coverage_of_shared_starts(3, lined_up=True) >= 0.92


def test_starts_in_another_order_under_each_seed_are_not_covered() -> None:
    """Why the order of starts is part of the contract: out of line, one start counts as several."""
    assert coverage_of_shared_starts(1, lined_up=True, worlds=400) >= 0.92
    assert coverage_of_shared_starts(1, lined_up=False, worlds=400) <= 0.88


def test_mcnemar_alone_would_count_a_start_once_a_seed() -> None:
    """Starts that favour one arm under every seed: the true null is rejected as rarely as promised, not by McNemar."""
    seeds, tasks = crossed(3, 3, 20)
    starts, rng = np.arange(seeds.size) % 20, np.random.default_rng(12)
    rejected = mcnemar = covered = 0
    for world in range(200):
        favour = rng.choice([-1, 0, 1], size=(3, 20))[tasks, starts]
        luck = rng.random(seeds.size)
        found = paired_successes(luck < 0.5 + 0.4 * favour, luck < 0.5 - 0.4 * favour, seeds, tasks, replicates=500,
                                 rng_seed=world)  # fmt: skip
        assert found.agreement is not None
        only_a, only_b = found.agreement.only_a, found.agreement.only_b
        mcnemar += min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)) < 0.05
        rejected += found.p < 0.05
        covered += found.interval.low <= 0 <= found.interval.high
    assert rejected <= 0.08 * 200
    assert covered >= 0.92 * 200
    assert mcnemar >= 0.12 * 200


def test_bootstrap_of_ragged_groups_stays_among_its_values() -> None:
    """A seed with one task of one episode must never be filled up with episodes of another."""
    values = np.array([1.0, 1.0, 1.0, 5.0])
    means = hierarchical_bootstrap(values, ["x", "x", "x", "y"], ["pick", "pick", "place", "pick"], replicates=4000)
    assert set(means.round(6)) == {1.0, 5.0, *(round((n + 5) / (n + 1), 6) for n in (2, 3, 4))}  # x draws 2-4 episodes
    assert (means == 5.0).mean() == pytest.approx(0.25, abs=0.03)  # both draws are seed y


def test_bootstrap_is_reproducible_and_blind_to_the_order_of_seeds_and_tasks() -> None:
    rng = np.random.default_rng(2)
    seeds, tasks = crossed(2, 3, 7)
    values = rng.normal(size=seeds.size)
    first = hierarchical_bootstrap(values, seeds, tasks, rng_seed=5)
    assert np.array_equal(first, hierarchical_bootstrap(values, seeds, tasks, rng_seed=5))
    assert not np.array_equal(first, hierarchical_bootstrap(values, seeds, tasks, rng_seed=6))
    mixed = np.argsort(rng.permutation(6)[2 * tasks + seeds], kind="stable")  # groups; starts within them stay
    other = hierarchical_bootstrap(values[mixed], seeds[mixed], tasks[mixed], rng_seed=5)
    assert np.quantile(other, [0.025, 0.975]) == pytest.approx(np.quantile(first, [0.025, 0.975]), abs=0.03)


def test_what_was_not_measured_is_not_compared() -> None:
    with pytest.raises(UserError, match="finite"):
        mean_interval(np.array([1.0, np.nan]), [0, 0], [0, 0])
    with pytest.raises(UserError, match="one seed and one task"):
        mean_interval(np.array([]), [], [])


# ---------------------------------------------------------------- paired differences


def test_newcombes_own_example() -> None:
    """Table II of Newcombe (1998), method 10: 20, 12, 2, 16 gives 0.0562 to 0.3292."""
    found = newcombe_paired(Agreement(20, 12, 2, 16))
    assert (found.low, found.high) == pytest.approx((0.0562, 0.3292), abs=2e-4)


@given(table=st.builds(Agreement, *[st.integers(0, 30)] * 4).filter(lambda t: t.n > 0))
def test_newcombe_is_antisymmetric_and_never_a_point(table: Agreement) -> None:
    found = newcombe_paired(table)
    mirrored = newcombe_paired(Agreement(table.both, table.only_b, table.only_a, table.neither))
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))
    assert -1 - 1e-12 <= found.low <= (table.only_a - table.only_b) / table.n <= found.high <= 1 + 1e-12
    assert found.high - found.low > 0.01


def test_mcnemar_reads_only_discordant_pairs() -> None:
    a = np.array([True] * 8 + [False] * 1 + [True] * 50)
    b = np.array([False] * 8 + [True] * 1 + [True] * 50)
    found = paired_successes(a, b, np.zeros(59), np.zeros(59))
    assert found.agreement == Agreement(50, 8, 1, 0)
    assert found.p == pytest.approx(2 * (binom.pmf(0, 9, 0.5) + binom.pmf(1, 9, 0.5)))
    assert found.estimate == pytest.approx(7 / 59)
    assert "One training seed" in found.note
    assert "One task" in found.note


def test_agreement_of_all_pairs_is_not_certainty() -> None:
    """Nobody succeeds in 12 episodes: the bootstrap alone would say that the difference is exactly zero."""
    none = np.zeros(12, dtype=bool)
    found = paired_successes(none, none, np.zeros(12), np.arange(12) % 3)
    assert found.p == 1.0
    assert found.interval.low < -0.15
    assert found.interval.high > 0.15
    assert equivalence(found.tost, 0.05) == "undecided"


def test_few_tasks_are_said() -> None:
    seeds, tasks = crossed(3, 2, 4)
    values = np.linspace(0, 1, seeds.size)
    assert "2 tasks" in paired_means(values, values / 2, seeds, tasks).note
    seeds, tasks = crossed(3, 5, 4)
    values = np.linspace(0, 1, seeds.size)
    assert paired_means(values, values / 2, seeds, tasks).note == ""


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-1, 1), rng_seed=st.integers(0, 100))
def test_interval_and_p_of_paired_means_never_disagree(shift: float, rng_seed: int) -> None:
    seeds, tasks = crossed(2, 2, 6)
    a = np.random.default_rng(rng_seed).normal(shift, size=seeds.size)
    found = paired_means(a, np.zeros_like(a), seeds, tasks)
    excludes_zero = found.interval.low > 0 or found.interval.high < 0
    if abs(found.p - 0.05) > 1e-3:
        assert excludes_zero == (found.p < 0.05)


def worlds(number: int, effect: float = 0.0) -> tuple[float, float, float]:
    """Rejection rates of interval and McNemar, and coverage, in worlds with five seeds, three tasks, 20 episodes."""
    seeds, tasks = crossed(5, 3, 20)
    rng = np.random.default_rng(7)
    rejected = tested = covered = 0
    for world in range(number):
        difficulty = rng.uniform(0.3, 0.8, size=3)[tasks] + rng.normal(0, 0.1, seeds.size)
        a, b = rng.random(seeds.size) < difficulty + effect, rng.random(seeds.size) < difficulty
        found = paired_successes(a, b, seeds, tasks, replicates=2000, rng_seed=world)
        rejected += found.interval.low > 0 or found.interval.high < 0
        tested += found.p < 0.05
        covered += found.interval.low <= effect <= found.interval.high
    return rejected / number, tested / number, covered / number


def test_no_difference_is_seldom_rejected() -> None:
    rejected, tested, covered = worlds(100)
    assert rejected <= 0.07
    assert tested <= 0.09  # 5 % and at most two standard errors of 100 worlds
    assert covered >= 0.93


def test_a_large_difference_is_found() -> None:
    rejected, tested, covered = worlds(40, effect=0.2)
    assert rejected >= 0.7
    assert tested >= 0.8
    assert covered >= 0.85


def test_paired_means_under_the_null() -> None:
    """Seeds that differ between the arms are no effect of the arms. Pooling their episodes would call them one."""
    seeds, tasks = crossed(5, 3, 20)
    rng = np.random.default_rng(3)
    rejections = {"noise": 0, "seeds differ": 0, "seeds differ, pooled": 0}
    for world in range(100):
        noise = rng.normal(size=seeds.size)
        shaken = noise + rng.normal(0, 0.5, size=5)[seeds]
        pooled = np.zeros_like(seeds)
        for name, values, labels in (
            ("noise", noise, seeds),
            ("seeds differ", shaken, seeds),
            ("seeds differ, pooled", shaken, pooled),
        ):
            found = paired_means(values, np.zeros_like(values), labels, tasks, replicates=1000, rng_seed=world).interval
            rejections[name] += found.low > 0 or found.high < 0
    assert rejections["noise"] <= 7
    assert rejections["seeds differ"] <= 9  # 5 % and at most two standard errors of 100 worlds
    assert rejections["seeds differ, pooled"] >= 35


# ---------------------------------------------------------------- many comparisons, planning, verdicts


def test_holm_of_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(p: list[float]) -> None:
    """Step down: reject the smallest while p(i) < alpha / (m - i)."""
    adjusted = holm(p)
    rejected: set[int] = set()
    for i, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] * (len(p) - i) >= 0.05:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(adjusted) if value < 0.05} == rejected


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.02, 0.03, "equivalent"), (-0.02, 0.05, "undecided"), (0.06, 0.1, "different"), (-0.3, -0.06, "different")],
)
def test_equivalence(low: float, high: float, word: str) -> None:
    assert equivalence(Interval(low, high), 0.05) == word


@pytest.mark.parametrize(
    ("interval", "direction", "threshold", "p", "word"),
    [
        ((0.01, 0.2), "above", 0.0, None, "supported"),
        ((-0.2, -0.01), "above", 0.0, None, "refuted"),
        ((-0.1, 0.1), "above", 0.0, None, "inconclusive"),
        ((0.0, 0.0), "above", 0.0, None, "inconclusive"),
        ((-0.04, 0.1), "above", -0.05, None, "supported"),
        ((-0.2, -0.06), "above", -0.05, None, "refuted"),
        ((-0.2, -0.01), "below", 0.0, None, "supported"),
        ((0.06, 0.1), "below", 0.05, None, "refuted"),
        ((0.01, 0.2), "above", 0.0, 0.2, "inconclusive"),
        ((0.01, 0.2), "above", 0.0, 0.01, "supported"),
    ],
)
def test_verdict(interval: tuple[float, float], direction: str, threshold: float, p: float | None, word: str) -> None:
    assert verdict(Interval(*interval), direction, threshold, p=p) == word  # type: ignore[arg-type]


# ---------------------------------------------------------------- many episodes


def one_by_one(values: np.ndarray, seeds: np.ndarray, tasks: np.ndarray, replicates: int) -> list[float]:
    """The bootstrap as a list of episodes for each sample, from the same uniform numbers."""
    groups = [[values[(seeds == s) & (tasks == t)] for t in np.unique(tasks[seeds == s])] for s in np.unique(seeds)]
    rng, deepest = np.random.default_rng((0, 0)), max(len(starts) for of_seed in groups for starts in of_seed)
    of_seeds = rng.integers(len(groups), size=(replicates, len(groups)))
    of_tasks = rng.random((replicates, max(map(len, groups))))
    of_starts = rng.random((*of_tasks.shape, deepest))
    means = []
    for drawn, t, e in zip(of_seeds, of_tasks, of_starts, strict=True):
        sample = []
        for of_seed in (groups[s] for s in drawn):
            for at in range(len(of_seed)):
                starts = of_seed[int(t[at] * len(of_seed))]
                sample += [starts[int(luck * len(starts))] for luck in e[at, : len(starts)]]
        means.append(np.mean(sample))
    return means


@pytest.mark.parametrize("kept", [1.0, 0.6])
@pytest.mark.parametrize("seeds", [1, 4])
def test_samples_are_those_of_episodes_listed_one_by_one(seeds: int, kept: float) -> None:
    """Equal to the bit for successes, to rounding for other numbers; also where seeds lack starts and tasks."""
    rng, (seed, task) = np.random.default_rng(3), crossed(seeds, 5, 4)
    there = (rng.random(seed.size) < kept) & ((task < 4) | (seed > 0) | (kept == 1))
    seed, task = seed[there], task[there]
    successes, numbers = rng.integers(-1, 2, seed.size).astype(float), rng.normal(size=seed.size)
    expected = [one_by_one(values, seed, task, 60) for values in (successes, numbers)]
    assert np.array_equal(hierarchical_bootstrap(successes, seed, task, replicates=60), expected[0])
    both = hierarchical_bootstrap(np.stack([successes, numbers]), seed, task, replicates=60)
    assert np.allclose(both, expected, rtol=1e-12, atol=1e-12)


def test_the_draws_of_many_episodes_fit_into_memory() -> None:
    """20,000 episodes of five seeds: one byte for each sample and start, 40 MB, not eight for each episode, 1.6 GB."""
    seeds, tasks = crossed(5, 10, 400)
    values = (np.random.default_rng(0).random(seeds.size) < 0.5).astype(float)
    tracemalloc.start()
    try:
        means = hierarchical_bootstrap(values, seeds, tasks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        bootstrap._draws.cache_clear()
    assert means.var() == pytest.approx(crossed_variance(values.reshape(5, 10, 400)), rel=0.08)
    assert peak < 120e6


@pytest.mark.parametrize("n", [3, 700])
def test_counts_drawn_a_block_at_a_time_are_those_drawn_at_once(n: int) -> None:
    at_once = np.random.default_rng(5).multinomial(n, np.full(n, 1 / n), size=bootstrap.REPLICATES)
    rng = np.random.default_rng(5)
    drawn = bootstrap.drawn_counts(n, rng)
    assert np.array_equal(drawn, at_once)
    by_seed, values = bootstrap.drawn_counts(2, rng), rng.integers(-4, 5, (2, n)).astype(float)
    expected = np.einsum("rs,su,ru->r", by_seed.astype(float), values, at_once.astype(float))
    assert np.array_equal(bootstrap.crossed_sum(values, by_seed, drawn), expected)
