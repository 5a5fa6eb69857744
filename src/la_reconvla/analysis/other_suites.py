"""What arms lose on other suites: the difference of two differences, with its interval.

An arm's loss is its success rate at home minus its success rate elsewhere. Of two arms that met the same starts in both
places, loss(a) - loss(b) is the paired difference a - b at home minus the one elsewhere, so each start stays its own
control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import ttest_1samp

from la_reconvla.analysis.bootstrap import REPLICATES, crossed_sum, drawn_counts, percentiles
from la_reconvla.analysis.intervals import Agreement, Interval, newcombe_paired, square_and_add
from la_reconvla.analysis.paired import limits_of

Key = tuple[Any, str, str]
Pairs = Mapping[Key, tuple[bool, bool]]
"""Success of two arms, by (seed, task, start)."""


@dataclass(frozen=True)
class Loss:
    """How much more `a` lost than `b`; all rates are shares.

    Attributes:
        a: loss of the first arm.
        b: loss of the second.
        a_home: success rate of the first arm at home.
        b_home: the same of the second.
        interval: 95 % interval of a - b.
        p: two-sided p of "they lose the same".
        n: paired episodes elsewhere.
        seeds: training seeds.
        note: what the interval does not cover.
    """

    a: float
    b: float
    a_home: float
    b_home: float
    interval: Interval
    p: float
    n: int
    seeds: int
    note: str


def loss(home: Pairs, away: Pairs) -> Loss:
    """Compare the losses of two arms.

    Seeds and, where both places have the same tasks, tasks are drawn once for both places, starts apart, each of them
    for all seeds. The interval is the hull of that bootstrap, of Student's t over seeds and of the two places' Newcombe
    intervals combined by the square-and-add rule (Zou and Donner 2008, doi:10.1002/sim.3095), since the first two
    collapse to a point where all pairs agree. p is the largest of the bootstrap's, of Student's t and of the least that
    flipping the signs of the differences at one place could give: two starts cannot give less than 1/2.

    Args:
        home: success of both arms on the starts at home, not empty.
        away: the same elsewhere, not empty; only seeds that are in both places count.
    """
    both = {key[0] for key in home} & {key[0] for key in away}
    here, there = ({key: two for key, two in place.items() if key[0] in both} for place in (home, away))
    rates = [np.array(list(place.values()), dtype=float).mean(0) for place in (here, there)]
    means = _bootstrap(here, there, sorted(both, key=str))
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    over_seeds, p_seeds = _student(here, there, sorted(both, key=str))
    lost = rates[0] - rates[1]
    starts = min(len({key[1:] for key in place}) for place in (here, there))
    return Loss(
        a=float(lost[0]),
        b=float(lost[1]),
        a_home=float(rates[0][0]),
        b_home=float(rates[0][1]),
        interval=percentiles(means).hull(_combined(here, there)).hull(over_seeds).within(-2.0, 2.0),
        p=max(p_seeds, min(1.0, 2 * (tail + 1) / (means.size + 1)), 2.0 ** (1 - starts)),
        n=len(there),
        seeds=len(both),
        note=limits_of([key[0] for key in there], [key[1] for key in there]),
    )


def _bootstrap(here: Pairs, there: Pairs, seeds: Sequence[Any]) -> Float[np.ndarray, " r"]:
    """Bootstrap values of (a - b at home) - (a - b elsewhere)."""
    rng = np.random.default_rng(0)
    tasks = [sorted({key[1] for key in place}) for place in (here, there)]
    by_seed = drawn_counts(len(seeds), rng)
    shared = tasks[0] == tasks[1]
    by_task: np.ndarray | None = None
    means = []
    for place, names in zip((here, there), tasks, strict=True):
        if by_task is None or not shared:
            by_task = drawn_counts(len(names), rng)
        total, count = np.zeros(REPLICATES), np.zeros(REPLICATES)
        for column, task in enumerate(names):
            starts = sorted({key[2] for key in place if key[1] == task})
            difference, there_is = np.zeros((2, len(seeds), len(starts)))
            for (seed, where, start), (a, b) in place.items():
                if where == task:
                    at = seeds.index(seed), starts.index(start)
                    difference[at], there_is[at] = float(a) - float(b), 1.0
            drawn = drawn_counts(len(starts), rng)
            total += by_task[:, column] * crossed_sum(difference, by_seed, drawn)
            count += by_task[:, column] * crossed_sum(there_is, by_seed, drawn)
        means.append(np.divide(total, count, out=np.zeros(REPLICATES), where=count > 0))
    return means[0] - means[1]


def _student(here: Pairs, there: Pairs, seeds: Sequence[Any]) -> tuple[Interval, float]:
    """Interval and p of Student's t over what each seed lost; with one seed a point and p = 0, which bind nothing."""

    def gap(place: Pairs, seed: Any) -> float:
        return float(np.mean([float(a) - float(b) for (own, *_), (a, b) in place.items() if own == seed]))

    lost = np.array([gap(here, seed) - gap(there, seed) for seed in seeds])
    middle = float(lost.mean())
    if len(lost) == 1 or not np.ptp(lost):
        return Interval(middle, middle), float(len(lost) > 1 and middle == 0)
    found: Any = ttest_1samp(lost, 0)
    low, high = found.confidence_interval()
    return Interval(float(low), float(high)), float(found.pvalue)


def _combined(here: Pairs, there: Pairs) -> Interval:
    """Interval of the difference of two independent paired differences, from their own intervals."""
    found = []
    for place in (here, there):
        table = Agreement(*(list(place.values()).count(two) for two in BOTH_WAYS))
        found.append(((table.only_a - table.only_b) / table.n, newcombe_paired(table)))
    (x, x_interval), (y, y_interval) = found
    return square_and_add(x, x_interval, y, y_interval)


BOTH_WAYS = (True, True), (True, False), (False, True), (False, False)
