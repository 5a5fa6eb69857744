"""Differences between two policies that were given the same starts or shown the same frames.

Such differences are **paired**: each start is its own control.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom

from la_reconvla.analysis.bootstrap import REPLICATES, ends, hierarchical_bootstrap, over_seeds, two_sided
from la_reconvla.analysis.intervals import LEVEL, Agreement, Interval, newcombe_ends
from la_reconvla.errors import UserError

FEW_TASKS = 5  # below, how much tasks vary is hardly measured, and intervals do not speak of other tasks


@dataclass(frozen=True)
class EffectSize:
    """Size of a paired difference, free of units; None where it is not defined.

    Attributes:
        cohen_h: of two rates, see `cohen_h`.
        odds_ratio: of the discordant pairs, see `odds_ratio`.
        standardised: of two means, see `standardised`.
    """

    cohen_h: float | None = None
    odds_ratio: float | None = None
    standardised: float | None = None


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b.

    Attributes:
        estimate: mean of a - b over all pairs.
        interval: 95 % interval of the difference.
        tost: 90 % interval of the difference; inside +-margin it is a two one-sided test at 5 %.
        p: two-sided p-value of "no difference".
        n: number of pairs.
        note: what the interval does not cover, in words.
        agreement: the 2 x 2 table, for successes only.
        effect: how large it is, free of units.
    """

    estimate: float
    interval: Interval
    tost: Interval
    p: float
    n: int
    note: str
    agreement: Agreement | None = None
    effect: EffectSize | None = None


@dataclass(frozen=True)
class Differences:
    """`Difference` of many studies of one design, one number per study.

    Attributes:
        estimate: mean of a - b.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        tost_low: lower end of the 90 % interval.
        tost_high: upper end of the 90 % interval.
        p: two-sided p-value.
    """

    estimate: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    tost_low: Float[np.ndarray, "..."]
    tost_high: Float[np.ndarray, "..."]
    p: Float[np.ndarray, "..."]


def many_paired_successes(
    a: Bool[np.ndarray, "... e"],
    b: Bool[np.ndarray, "... e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    new_seeds: bool = True,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Differences:
    """Test and intervals of `paired_successes`, for many studies at once; arguments and errors as there."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise UserError(f"paired successes need equal lengths, got {a.shape} and {b.shape}")
    difference = a.astype(float) - b.astype(float)
    means = hierarchical_bootstrap(difference, seeds, tasks, replicates=replicates, rng_seed=rng_seed)
    student = over_seeds(difference, seeds) if new_seeds else None
    table = (a & b).sum(-1), (a & ~b).sum(-1), (b & ~a).sum(-1), (~a & ~b).sum(-1)
    p = mcnemar(table[1], table[2])
    if len(set(seeds)) > 1:
        p = np.maximum(p, two_sided(means, student))

    def both_ends(level: float) -> tuple[np.ndarray, np.ndarray]:
        (low, high), (score_low, score_high) = ends(means, student, level), newcombe_ends(*table, level)
        return np.minimum(low, score_low), np.maximum(high, score_high)

    return Differences(difference.mean(-1), *both_ends(LEVEL), *both_ends(0.90), p)


def paired_successes(
    a: Bool[np.ndarray, " e"],
    b: Bool[np.ndarray, " e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    new_seeds: bool = True,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Difference:
    """Difference of two success rates over the same starts.

    p is the exact McNemar test on the discordant pairs. It takes pairs for independent, but one start under several
    seeds is not, nor are the starts of one seed: with more than one seed p is never below the bootstrap's, nor below
    that of Student's t over seeds. The interval is the hull of the bootstrap's, of Student's t's and of Newcombe's
    score interval for paired proportions (1998, doi:10.1002/(SICI)1097-0258(19981130)17:22<2635), since the first two
    collapse to a point when all pairs agree.

    Args:
        a: success of the first policy, one per episode; order of starts as in `hierarchical_bootstrap`.
        b: success of the second policy in the same episodes.
        seeds: training seed of each episode.
        tasks: task of each episode.
        new_seeds: speak of training again with new seeds; False speaks of these very policies, without Student's t.
        replicates: number of bootstrap samples.
        rng_seed: fixes the bootstrap.

    Raises:
        UserError: as `hierarchical_bootstrap`, and when a and b differ in length.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    found = many_paired_successes(a, b, seeds, tasks, new_seeds=new_seeds, replicates=replicates, rng_seed=rng_seed)
    table = Agreement(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()))
    return Difference(
        estimate=(table.only_a - table.only_b) / table.n,
        interval=Interval(float(found.low), float(found.high)),
        tost=Interval(float(found.tost_low), float(found.tost_high)),
        p=float(found.p),
        n=table.n,
        note=limits_of(seeds, tasks),
        agreement=table,
        effect=EffectSize(
            cohen_h=cohen_h((table.both + table.only_a) / table.n, (table.both + table.only_b) / table.n),
            odds_ratio=odds_ratio(table),
        ),
    )


def mcnemar(only_a: Int[np.ndarray, "..."] | int, only_b: Int[np.ndarray, "..."] | int) -> Float[np.ndarray, "..."]:
    """Two-sided p of the exact McNemar test (1947, doi:10.1007/BF02295996): discordant pairs fall either way alike."""
    only_a, only_b = np.asarray(only_a), np.asarray(only_b)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5))


def paired_means(
    a: Float[np.ndarray, " e"],
    b: Float[np.ndarray, " e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    new_seeds: bool = True,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Difference:
    """Difference of two means of a continuous metric (action error, AOS) over the same episodes.

    Average frames to episodes first: frames of one episode are nearly copies of each other. p is read from the same
    bootstrap and t over seeds as the interval, but is never below the least that an exact test could give, the one that
    flips the sign of each start's difference: four scenes cannot give less than 1/8. Arguments and errors as in
    `paired_successes`.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise UserError(f"paired means need equal lengths, got {a.shape} and {b.shape}")
    means = hierarchical_bootstrap(a - b, seeds, tasks, replicates=replicates, rng_seed=rng_seed)
    student = over_seeds(a - b, seeds) if new_seeds else None
    (low, high), (tost_low, tost_high) = ends(means, student, LEVEL), ends(means, student, 0.90)
    starts = max(Counter(seeds).values())
    return Difference(
        estimate=float((a - b).mean()),
        interval=Interval(float(low), float(high)),
        tost=Interval(float(tost_low), float(tost_high)),
        p=max(float(two_sided(means, student)), 2.0 ** (1 - starts)),
        n=int(a.size),
        note=limits_of(seeds, tasks),
        effect=EffectSize(standardised=standardised(a - b)),
    )


def limits_of(seeds: Int[np.ndarray, " e"] | Sequence[object], tasks: Int[np.ndarray, " e"] | Sequence[object]) -> str:
    """What an interval over these seeds and tasks could not measure, in words; empty if nothing is to be said."""
    n_seeds, n_tasks = len(set(seeds)), len(set(tasks))
    notes = []
    if n_seeds == 1:
        notes.append("One training seed: how much training itself varies was not measured, and the interval omits it.")
    if n_tasks == 1:
        notes.append("One task: how much tasks vary was not measured.")
    elif n_tasks < FEW_TASKS:
        notes.append(f"{n_tasks} tasks: the interval speaks of these tasks, not of others.")
    return " ".join(notes)


# ---------------------------------------------------------------- effect sizes


def cohen_h(p: float, q: float) -> float:
    """Difference of two rates on the arcsine scale, 2 asin sqrt p - 2 asin sqrt q (Cohen 1988, chapter 6).

    0.2 is small, 0.5 medium, 0.8 large. On this scale a difference is equally hard to see at every rate.
    """
    return 2 * math.asin(math.sqrt(p)) - 2 * math.asin(math.sqrt(q))


def odds_ratio(table: Agreement) -> float | None:
    """Odds that a start which only one policy solves is a's: only_a / only_b; None where either is zero.

    The conditional maximum-likelihood odds ratio of matched pairs (Agresti, Categorical Data Analysis, section 11.2).
    """
    return table.only_a / table.only_b if table.only_a and table.only_b else None


def standardised(difference: Float[np.ndarray, " e"]) -> float | None:
    """Mean paired difference over its standard deviation (Cohen's d_z, 1988, section 2.3.5); None if nothing varies."""
    spread = float(np.std(difference, ddof=1)) if len(difference) > 1 else 0.0
    return float(np.mean(difference)) / spread if spread > 0 else None
