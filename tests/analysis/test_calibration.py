"""The statistics of a study in simulated worlds whose truth is known: they must keep what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import (
    SPREADS,
    STUDIES,
    Population,
    found_power,
    means_covered,
    newcombe_covered,
    no_difference,
    rates_covered,
)
from scipy.stats import binom

from la_reconvla.analysis.paired import many_paired_successes, mcnemar
from la_reconvla.analysis.pooled import pooled
from la_reconvla.analysis.power import SEEDS, alike, design, paired_power, pairs, planned, power_explained, power_table
from la_reconvla.errors import UserError


def most(share: float) -> float:
    """What a true share exceeds in one of a thousand runs of `STUDIES` studies."""
    return binom.ppf(0.999, STUDIES, share) / STUDIES


POPULATIONS = [Population(rate, 3, *spread) for rate in (0.05, 0.3, 0.8) for spread in SPREADS] + [
    Population(rate, 5, *spread) for rate in (0.3, 0.8) for spread in SPREADS[2:]
]


@pytest.mark.nightly
@pytest.mark.parametrize("population", POPULATIONS, ids=lambda w: f"{w.seeds} seeds, {w.rate}, {w.label}")
def test_arms_without_difference_are_seldom_told_apart(population: Population) -> None:
    """2000 studies a population. In at most 5 % either arm is called better, and both intervals cover to one point."""
    found = no_difference(population)
    assert found.decided <= most(0.05)
    assert found.supported <= most(0.025)
    assert found.covered >= 0.94
    assert found.tost >= 0.89


@pytest.mark.nightly
def test_without_student_three_seeds_are_too_narrow() -> None:
    """Why the interval is a hull: these trainings differ, and a bootstrap of three seeds does not see by how much."""
    population = Population(0.3, 3, *SPREADS[2])
    a, b = population.studies(STUDIES, np.random.default_rng(0))
    found = many_paired_successes(a, b, *design(3, 3, 20), new_seeds=False, replicates=1000)
    assert ((found.low <= 0) & (found.high >= 0)).mean() < 0.935
    assert (found.p < 0.05).mean() > most(0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("training", "start"), [(0.0, 1.0), (1.0, 0.0), (0.3, 1.0)])
def test_the_interval_of_a_mean_covers(seeds: int, training: float, start: float) -> None:
    assert means_covered(seeds, training, start) >= 0.94


@pytest.mark.parametrize("n", [18, 60, 180])
def test_exact_intervals_cover_everywhere_and_wilsons_on_average(n: int) -> None:
    rates = np.linspace(0.02, 0.98, 97)
    assert min(rates_covered(rates, n, "clopper_pearson")) >= 0.95
    assert np.mean(rates_covered(rates, n, "wilson")) >= 0.945


@pytest.mark.nightly
@pytest.mark.parametrize(("rate", "points"), [(0.05, 0.0), (0.3, 0.0), (0.3, 0.2), (0.8, 0.1)])
@pytest.mark.parametrize("agreement", [0.0, 0.5])
def test_newcombes_paired_interval_covers(rate: float, points: float, agreement: float) -> None:
    assert newcombe_covered(rate, points, agreement) >= 0.94


@pytest.mark.nightly
@pytest.mark.parametrize(("seeds", "episodes"), [(1, 33), (3, 20), (5, 20)])
def test_a_planted_effect_is_found_as_often_as_promised(seeds: int, episodes: int) -> None:
    """20 points, from 40 to 60 %; the promise comes from 1000 studies, the finding from 2000 others."""
    promised = paired_power(0.4, 0.2, seeds, 3, episodes)
    found = found_power(Population(0.4, seeds, episodes=episodes), 0.2)
    error = np.sqrt(promised * (1 - promised) * (1 / 1000 + 1 / STUDIES))
    assert found == pytest.approx(promised, abs=3.3 * error)


def test_power_of_one_seed_is_that_of_mcnemars_test() -> None:
    """With one seed and one task, an exact sum over discordant pairs bounds the simulated power from above, closely."""
    n, first, second = 60, 0.7, 0.4
    only_a, only_b = first * (1 - second), second * (1 - first)
    exact = sum(
        binom.pmf(d, n, only_a + only_b) * binom.pmf(k, d, only_a / (only_a + only_b))
        for d in range(n + 1)
        for k in range(d // 2 + 1, d + 1)
        if mcnemar(k, d - k) < 0.05
    )
    assert paired_power(0.4, 0.3, 1, 1, n, studies=4000) == pytest.approx(exact, abs=0.04)


def test_pairs_have_the_rates_and_the_agreement_asked_for() -> None:
    rng = np.random.default_rng(0)
    for phi in (0.0, 0.4):
        a, b = pairs(np.full(200_000, 0.6), np.full(200_000, 0.4), phi, rng)
        assert (a.mean(), b.mean()) == pytest.approx((0.6, 0.4), abs=0.005)
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(phi, abs=0.01)
    a, b = pairs(np.full(1000, 0.6), np.full(1000, 0.4), 1.0, rng)
    assert not (b & ~a).any(), "as much agreement as the rates allow: the worse arm succeeds only where the better does"


def test_many_arms_agree_as_asked_for() -> None:
    drawn = alike(np.full((1, 3, 1, 1), 0.4), 200_000, 0.36, np.random.default_rng(0)).reshape(3, -1)
    assert drawn.mean(1) == pytest.approx([0.4] * 3, abs=0.005)
    assert np.corrcoef(drawn)[np.triu_indices(3, 1)] == pytest.approx([0.36] * 3, abs=0.01)


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_power_of_a_study_of_many_arms_is_the_share_of_its_decisions(spread: float) -> None:
    """Studies drawn here, trainings as betas about their arm's rate, are decided as often as is promised."""
    rng, studies, number = np.random.default_rng(8), 1000, 1500
    rates = np.broadcast_to(np.array([0.6, 0.4, 0.4, 0.4, 0.4])[None, :, None, None], (number, 5, 4, 1))
    if spread:
        size = rates * (1 - rates) / spread**2 - 1
        rates = rng.beta(rates * size, (1 - rates) * size)
    values = rng.random((number, 5, 4, 36)) < rates
    judged = pooled(values, np.repeat([0, 1, 2], 12), successes=True)
    found = float(((judged.p < 0.05) & (judged.estimate > 0)).mean())
    promised = paired_power(0.4, 0.2, 4, 3, 12, arms=5, between_seeds=spread, studies=studies)
    assert found == pytest.approx(promised, abs=3.3 * np.sqrt(promised * (1 - promised) * (1 / studies + 1 / number)))


def test_the_pooled_rule_finds_more_than_the_rule_of_before() -> None:
    alone, with_others = (paired_power(0.4, 0.2, 3, 3, 12, arms=n, between_seeds=0.1, studies=300) for n in (2, 8))
    assert with_others > alone + 0.1


def test_starts_that_share_a_scene_are_too_few_to_pool() -> None:
    """Eight starts of four scenes: the two arms are judged alone, as a study of them is."""
    few = {"seeds": 3, "tasks": 1, "episodes": 8, "studies": 200}
    alone, scenes, starts = (paired_power(0.2, 0.6, arms=n, shared=of, **few) for n, of in ((2, 1), (8, 2), (8, 1)))
    assert alone == scenes
    assert starts > alone + 0.03


def test_power_grows_with_episodes_and_agreement_and_falls_with_what_trainings_vary() -> None:
    plain = paired_power(0.4, 0.2, 3, 3, 20)
    assert paired_power(0.4, 0.2, 3, 3, 60) > plain + 0.1
    assert paired_power(0.4, 0.2, 3, 3, 20, agreement=0.5) > plain + 0.1
    assert paired_power(0.4, 0.2, 3, 3, 20, between_seeds=0.15) < plain - 0.1


def test_what_is_planned_stands_in_a_table() -> None:
    rows = planned(3, 3, 20, between_seeds=0.0)
    assert [(r.points, r.planned) for r in rows] == [(0.05, 180), (0.10, 180), (0.20, 180), (0.40, 180)]
    assert [r.power for r in rows] == sorted(r.power for r in rows)
    assert rows[-1].power > 0.9
    assert planned(3, 3, 20)[2].power < rows[2].power, "by default trainings differ"
    found = rows[2]  # 20 points
    assert found.seeds is not None
    assert found.needed == found.seeds * 3 * 20
    fewer = max(seeds for seeds in SEEDS if seeds < found.seeds) if found.seeds > SEEDS[0] else 1
    powers = [paired_power(0.4, 0.2, seeds, 3, 20) for seeds in (fewer, found.seeds)]
    assert powers[0] < 0.8 <= powers[1], "the fewest seeds with which the test that judges finds it four times in five"
    corrected = planned(3, 3, 20, between_seeds=0.0, tests=5)
    assert [r.power for r in corrected] == [paired_power(r.rate, r.points, 3, 3, 20, alpha=0.01) for r in rows]
    table = power_table(rows, 3)
    assert [row[0] for row in table.rows] == ["5", "10", "20", "40"]
    assert "no difference between arms is decided" in power_table(rows, 1).title
    told = power_explained(3, 3, 20).splitlines()
    assert all(line.startswith(name[:7]) for line, name in zip(told, (*table.header, "why: the"), strict=True))
    assert "180 episodes" in told[-1]
    assert "one seed" in power_explained(1, 3, 20).splitlines()[-1]
    with pytest.raises(UserError, match="between 0 and 1"):
        paired_power(0.9, 0.2, 3, 3, 20)
    with pytest.raises(UserError, match="needs a seed"):
        paired_power(0.4, 0.2, 0, 3, 20)
