"""What the counts allow us to say: intervals, paired differences, corrections and verdicts.

Differences between two policies are **paired**: both were given the same starts (or shown the same frames), so each
start is its own control. Intervals come from a bootstrap that resamples seeds, tasks and the starts of a task, because
episodes of one seed share a network and episodes of one task share a scene. Every seed meets the same tasks and starts,
so these are drawn once for all seeds: twenty starts under three seeds are not sixty independent starts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, norm

from la_reconvla.errors import UserError

Verdict = Literal["supported", "refuted", "inconclusive"]
Equivalence = Literal["equivalent", "different", "undecided"]

LEVEL = 0.95
REPLICATES = 10_000
FEW_SEEDS = 5  # below, a bootstrap over seeds is known to give intervals that are too narrow


@dataclass(frozen=True)
class Interval:
    """A closed interval of plausible values."""

    low: float
    high: float

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that contains both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Agreement:
    """The 2 x 2 table of paired successes. `only_a` + `only_b` are the discordant pairs that McNemar's test reads."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_a + self.only_b + self.neither


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
    """

    estimate: float
    interval: Interval
    tost: Interval
    p: float
    n: int
    note: str
    agreement: Agreement | None = None


# ---------------------------------------------------------------- one rate


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927, doi:10.2307/2276774).

    Raises:
        UserError: without trials, or with more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise UserError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    found = binomtest(successes, trials).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(found.low), float(found.high))


# ---------------------------------------------------------------- bootstrap


def hierarchical_bootstrap(
    values: Float[np.ndarray, "e"],
    seeds: Int[np.ndarray, "e"] | Sequence[object],
    tasks: Int[np.ndarray, "e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Float[np.ndarray, "r"]:
    """Bootstrap means of `values`, resampling seeds, and crossed with them tasks and the episodes of a task.

    The "pigeonhole" bootstrap (Owen 2007, doi:10.1214/07-AOAS122): the tasks and starts of a replicate are drawn once
    and used for every seed that is drawn. Its intervals are on the wide side where starts hardly matter.

    Args:
        values: one finite value an episode, any unit. Within each (seed, task) the starts stand in equal order: the
            k-th episode of a task is the same start under every seed.
        seeds: training seed of each episode (labels of any hashable type).
        tasks: task of each episode.
        replicates: number of bootstrap samples.
        rng_seed: fixes the draw.

    Returns:
        The mean of each bootstrap sample; within a sample every episode drawn counts once.

    Raises:
        UserError: without values, with labels of another length, or with values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not len(seeds) == len(tasks) == values.size:
        raise UserError(f"need one seed and one task a value, got {values.shape}, {len(seeds)} and {len(tasks)}")
    if not np.isfinite(values).all():
        raise UserError("values to compare must be finite: leave out what was not measured")
    order, first, count, width = _layout(seeds, tasks)
    values = values[order]
    rng = np.random.default_rng(rng_seed)
    n_seeds, n_tasks = count.shape
    deepest = int(count.max())
    chunk = max(1, 2_000_000 // (n_seeds * n_tasks * deepest))  # keeps a chunk's arrays below some 50 MB
    means = np.empty(replicates)
    for begin in range(0, replicates, chunk):
        b = min(chunk, replicates - begin)
        s = rng.integers(n_seeds, size=(b, n_seeds, 1))
        t = (rng.random((b, 1, n_tasks)) * width[s]).astype(np.int64)
        drawn = np.arange(n_tasks) < width[s]  # a seed with fewer tasks draws fewer
        size = np.where(drawn, count[s, t], 0)[..., None]
        e = first[s, t][..., None] + (rng.random((b, 1, n_tasks, deepest)) * size).astype(np.int64)
        kept = np.arange(deepest) < size
        means[begin : begin + b] = np.where(kept, values[np.where(kept, e, 0)], 0.0).sum((1, 2, 3)) / kept.sum(
            (1, 2, 3)
        )
    return means


def _layout(
    seeds: Int[np.ndarray, "e"] | Sequence[object], tasks: Int[np.ndarray, "e"] | Sequence[object]
) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "s t"], Int[np.ndarray, "s t"], Int[np.ndarray, "s"]]:
    """Order that groups episodes by (seed, task); first and count of each group; number of tasks of each seed."""
    label = np.array([_codes(seeds), _codes(tasks)])
    order = np.lexsort((label[1], label[0]))
    groups, begin, size = np.unique(label[:, order], axis=1, return_index=True, return_counts=True)
    width = np.bincount(groups[0])
    within = np.arange(groups.shape[1]) - (np.cumsum(width) - width)[groups[0]]
    first = np.zeros((width.size, int(width.max())), dtype=np.int64)
    count = np.zeros_like(first)
    first[groups[0], within], count[groups[0], within] = begin, size
    return order, first, count, width


def _codes(labels: Int[np.ndarray, "e"] | Sequence[object]) -> Int[np.ndarray, "e"]:
    """Small integers for labels of any hashable type, by first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def mean_interval(
    values: Float[np.ndarray, "e"],
    seeds: Int[np.ndarray, "e"] | Sequence[object],
    tasks: Int[np.ndarray, "e"] | Sequence[object],
    *,
    rng_seed: int = 0,
) -> Interval:
    """95 % bootstrap interval of a mean. Arguments and errors as in `hierarchical_bootstrap`."""
    return _percentiles(hierarchical_bootstrap(values, seeds, tasks, rng_seed=rng_seed), LEVEL)


def _percentiles(means: Float[np.ndarray, "r"], level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _two_sided(means: Float[np.ndarray, "r"]) -> float:
    """p of "the mean is zero": twice the share of bootstrap means on the far side of zero."""
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (means.size + 1))


# ---------------------------------------------------------------- paired differences


def paired_successes(
    a: Bool[np.ndarray, "e"],
    b: Bool[np.ndarray, "e"],
    seeds: Int[np.ndarray, "e"] | Sequence[object],
    tasks: Int[np.ndarray, "e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Difference:
    """Difference of two success rates over the same starts.

    p is the exact McNemar test on the discordant pairs. It takes pairs for independent, but one start under several
    seeds is not: with more than one seed p is never below that of the bootstrap. The interval is the hull of the
    bootstrap and of Newcombe's score interval for paired proportions (1998,
    doi:10.1002/(SICI)1097-0258(19981130)17:22<2635), since the bootstrap alone collapses to a point when all pairs
    agree.

    Args:
        a: success of the first policy, one an episode; order of starts as in `hierarchical_bootstrap`.
        b: success of the second policy in the same episodes.
        seeds: training seed of each episode.
        tasks: task of each episode.
        replicates: number of bootstrap samples.
        rng_seed: fixes the bootstrap.

    Raises:
        UserError: as `hierarchical_bootstrap`, and when a and b differ in length.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise UserError(f"paired successes need equal lengths, got {a.shape} and {b.shape}")
    means = hierarchical_bootstrap(
        a.astype(float) - b.astype(float), seeds, tasks, replicates=replicates, rng_seed=rng_seed
    )
    table = Agreement(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()))
    discordant = table.only_a + table.only_b
    exact = float(binomtest(table.only_a, discordant).pvalue) if discordant else 1.0
    return Difference(
        estimate=(table.only_a - table.only_b) / table.n,
        interval=_percentiles(means, LEVEL).hull(newcombe_paired(table, LEVEL)),
        tost=_percentiles(means, 0.90).hull(newcombe_paired(table, 0.90)),
        p=exact if len(set(seeds)) == 1 else max(exact, _two_sided(means)),
        n=table.n,
        note=_note(seeds, tasks),
        agreement=table,
    )


def newcombe_paired(table: Agreement, level: float = LEVEL) -> Interval:
    """Newcombe's score interval (his method 10) of the difference of two paired proportions, episodes independent."""
    n = table.n
    first, second = table.both + table.only_a, table.both + table.only_b
    p, q = first / n, second / n
    p_interval, q_interval = wilson(first, n, level), wilson(second, n, level)
    scale = math.sqrt(first * (n - first) * second * (n - second))
    covariance = table.both * table.neither - table.only_a * table.only_b
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    phi = covariance / scale if scale else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return Interval(
        p - q - reach(p - p_interval.low, q_interval.high - q), p - q + reach(p_interval.high - p, q - q_interval.low)
    )


def paired_means(
    a: Float[np.ndarray, "e"],
    b: Float[np.ndarray, "e"],
    seeds: Int[np.ndarray, "e"] | Sequence[object],
    tasks: Int[np.ndarray, "e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Difference:
    """Difference of two means of a continuous metric (action error, AOS) over the same episodes.

    Average frames to episodes first: frames of one episode are nearly copies of each other. p is read from the same
    bootstrap as the interval, but is never below the least that an exact test could give, the one that flips the sign
    of each start's difference: four scenes cannot give less than 1/8. Arguments and errors as in `paired_successes`.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise UserError(f"paired means need equal lengths, got {a.shape} and {b.shape}")
    means = hierarchical_bootstrap(a - b, seeds, tasks, replicates=replicates, rng_seed=rng_seed)
    starts = max(Counter(seeds).values())
    return Difference(
        estimate=float((a - b).mean()),
        interval=_percentiles(means, LEVEL),
        tost=_percentiles(means, 0.90),
        p=max(_two_sided(means), 2.0 ** (1 - starts)),
        n=int(a.size),
        note=_note(seeds, tasks),
    )


def _note(seeds: Int[np.ndarray, "e"] | Sequence[object], tasks: Int[np.ndarray, "e"] | Sequence[object]) -> str:
    """What the bootstrap could not measure."""
    n_seeds, n_tasks = len(set(seeds)), len(set(tasks))
    notes = []
    if n_seeds == 1:
        notes.append("One training seed: how much training itself varies was not measured, and the interval omits it.")
    elif n_seeds < FEW_SEEDS:
        notes.append(f"{n_seeds} training seeds: the interval may be too narrow.")
    if n_tasks == 1:
        notes.append("One task: how much tasks vary was not measured.")
    return " ".join(notes)


# ---------------------------------------------------------------- many comparisons, planning, verdicts


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a declared family of p-values, in the order given (Holm 1979)."""
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors), 1.0)
    return adjusted.tolist()


def rollouts_needed(p1: float, p2: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes **an arm** to tell success rates `p1` and `p2` apart in a two-sided test of independent arms.

    Pairing needs fewer, by as much as the arms agree. Example: 0.80 against 0.85 needs 906.

    Raises:
        UserError: if a rate is outside [0, 1] or the two are equal.
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1) or p1 == p2:
        raise UserError(f"need two different rates in [0, 1], got {p1} and {p2}")
    mean = (p1 + p2) / 2
    under_null = norm.ppf(1 - alpha / 2) * math.sqrt(2 * mean * (1 - mean))
    under_difference = norm.ppf(power) * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    return math.ceil(((under_null + under_difference) / (p1 - p2)) ** 2)


def equivalence(tost: Interval, margin: float) -> Equivalence:
    """Two one-sided tests: "equivalent" if the 90 % interval lies strictly inside +-`margin`, "different" if outside.

    Raises:
        UserError: if `margin` is not positive.
    """
    if margin <= 0:
        raise UserError(f"an equivalence margin must be positive, got {margin}")
    if -margin < tost.low and tost.high < margin:
        return "equivalent"
    return "different" if tost.low > margin or tost.high < -margin else "undecided"


def verdict(
    interval: Interval,
    direction: Literal["above", "below"] = "above",
    threshold: float = 0.0,
    *,
    p: float | None = None,
    alpha: float = 0.05,
) -> Verdict:
    """Judge "the difference is above (below) `threshold`" by an interval, and by a corrected p-value where given.

    A hypothesis is decided, either way, only if the whole interval lies on one side of the threshold and `p`, if given,
    is below `alpha`. Everything else is inconclusive.
    """
    low, high = (interval.low, interval.high) if direction == "above" else (-interval.high, -interval.low)
    limit = threshold if direction == "above" else -threshold
    if p is not None and p >= alpha:
        return "inconclusive"
    if low > limit:
        return "supported"
    return "refuted" if high < limit else "inconclusive"
