"""What the counts allow us to say: intervals, paired differences, corrections and verdicts.

Differences between two policies are **paired**: both were given the same starts (or shown the same frames), so each
start is its own control. Intervals come from a bootstrap that resamples seeds, tasks and the starts of a task, because
episodes of one seed share a network and episodes of one task share a scene. Every seed meets the same tasks and starts,
so these are drawn once for all seeds: twenty starts under three seeds are not sixty independent starts.

A bootstrap of three to five seeds is too narrow where training itself varies: three values say little about their own
spread, and resampling them repeats it too small. Therefore every interval that speaks of training again is the hull
of the bootstrap's and of Student's t interval over the seeds' means, and every p the larger of the two. How often all
of them hold in simulated studies: ``docs/results/calibration.md`` and `la_reconvla.study.calibration`.

What simulations need is computed for many studies at once: leading axes ``...`` are studies of one design.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, binomtest, norm, t

from la_reconvla.errors import UserError

Verdict = Literal["supported", "refuted", "inconclusive"]
Equivalence = Literal["equivalent", "different", "undecided"]

LEVEL = 0.95
REPLICATES = 10_000
CELLS = 2_000_000  # bootstrap samples x episodes that are held at a time
FEW_SEEDS = 5  # below, how much training varies is hardly measured, and intervals are wide for it
FEW_TASKS = 5  # below, how much tasks vary is hardly measured, and intervals do not speak of other tasks


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


# ---------------------------------------------------------------- one rate


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927, doi:10.2307/2276774).

    Raises:
        UserError: without trials, or with more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise UserError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    low, high = _wilson(successes, trials, level)
    return Interval(float(low), float(high))


def _wilson(x: Int[np.ndarray, "..."] | int, n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of Wilson's interval: the rates p with |x/n - p| = z sqrt(p (1 - p) / n)."""
    z = norm.ppf((1 + level) / 2)
    x = np.asarray(x, dtype=float)
    centre, reach = x + z * z / 2, z * np.sqrt(x * (n - x) / n + z * z / 4)
    return np.where(x == 0, 0.0, (centre - reach) / (n + z * z)), np.where(x == n, 1.0, (centre + reach) / (n + z * z))


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """The exact interval of a success rate (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404).

    It covers at least `level` whatever the rate is, and is wider than Wilson's, which covers that much on average.

    Raises:
        UserError: as `wilson`.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise UserError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    found = binomtest(successes, trials).proportion_ci(confidence_level=level, method="exact")
    return Interval(float(found.low), float(found.high))


# ---------------------------------------------------------------- bootstrap


def hierarchical_bootstrap(
    values: Float[np.ndarray, "... e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Float[np.ndarray, "... r"]:
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
    if values.ndim < 1 or values.size == 0 or not len(seeds) == len(tasks) == values.shape[-1]:
        raise UserError(f"need one seed and one task a value, got {values.shape}, {len(seeds)} and {len(tasks)}")
    if not np.isfinite(values).all():
        raise UserError("values to compare must be finite: leave out what was not measured")
    design = tuple(_codes(seeds).tolist()), tuple(_codes(tasks).tolist())
    means, step = np.empty((*values.shape[:-1], replicates)), max(1, CELLS // values.shape[-1])
    for begin in range(0, replicates, step):
        drawn = _draws(*design, min(step, replicates - begin), (rng_seed, begin))
        means[..., begin : begin + step] = values @ drawn.T / drawn.sum(1)
    return means


@functools.lru_cache(maxsize=8)  # the metrics of a study share a design, and simulated studies do: at most 130 MB
def _draws(
    seeds: tuple[int, ...], tasks: tuple[int, ...], replicates: int, rng_seed: tuple[int, int]
) -> Float[np.ndarray, "r e"]:
    """How often each bootstrap sample holds each episode."""
    order, first, count, width = _layout(seeds, tasks)
    rng = np.random.default_rng(rng_seed)
    n_seeds, n_tasks = count.shape
    deepest, episodes = int(count.max()), len(seeds)
    s = rng.integers(n_seeds, size=(replicates, n_seeds, 1))
    t = (rng.random((replicates, 1, n_tasks)) * width[s]).astype(np.int64)
    drawn = np.arange(n_tasks) < width[s]  # a seed with fewer tasks draws fewer
    size = np.where(drawn, count[s, t], 0)[..., None]
    e = first[s, t][..., None] + (rng.random((replicates, 1, n_tasks, deepest)) * size).astype(np.int64)
    kept = np.arange(deepest) < size
    sample = np.broadcast_to(np.arange(replicates)[:, None, None, None], e.shape)[kept]
    times = np.bincount(sample * episodes + order[e[kept]], minlength=replicates * episodes)
    times = times.reshape(replicates, episodes).astype(float)
    times.flags.writeable = False
    return times


def _layout(
    seeds: Int[np.ndarray, " e"] | Sequence[object], tasks: Int[np.ndarray, " e"] | Sequence[object]
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, "s t"], Int[np.ndarray, "s t"], Int[np.ndarray, " s"]]:
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


def _codes(labels: Int[np.ndarray, " e"] | Sequence[object]) -> Int[np.ndarray, " e"]:
    """Small integers for labels of any hashable type, by first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def mean_interval(
    values: Float[np.ndarray, " e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> Interval:
    """95 % interval of a mean, over trainings with new seeds. Arguments and errors as in `hierarchical_bootstrap`."""
    low, high = many_means(values, seeds, tasks, replicates=replicates, rng_seed=rng_seed)
    return Interval(float(low), float(high))


def many_means(
    values: Float[np.ndarray, "... e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
    rng_seed: int = 0,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Both ends of `mean_interval`, for many studies at once."""
    means = hierarchical_bootstrap(values, seeds, tasks, replicates=replicates, rng_seed=rng_seed)
    return _ends(means, _student(np.asarray(values, dtype=float), seeds), LEVEL)


def student_interval(of_seeds: Float[np.ndarray, " s"], level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean of one number a seed; None with fewer than two."""
    found = _student(np.asarray(of_seeds, dtype=float), range(len(of_seeds))) if len(of_seeds) > 1 else None
    if found is None:
        return None
    estimate, error, freedom = found
    reach = float(t.ppf((1 + level) / 2, freedom) * error)
    return Interval(float(estimate) - reach, float(estimate) + reach)


Student = tuple[np.ndarray, np.ndarray, int]  # estimate, its standard error over seeds, degrees of freedom


def _student(values: Float[np.ndarray, "... e"], seeds: Int[np.ndarray, " e"] | Sequence[object]) -> Student | None:
    """What Student's t over the means of the seeds needs; None with one seed."""
    codes = _codes(seeds)
    n = int(codes.max()) + 1
    if n == 1:
        return None
    of_seeds = np.stack([values[..., codes == code].mean(-1) for code in range(n)], axis=-1)
    return values.mean(-1), of_seeds.std(-1, ddof=1) / math.sqrt(n), n - 1


def _ends(
    means: Float[np.ndarray, "... r"], student: Student | None, level: float
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Both ends of the hull of the bootstrap's percentiles and, with several seeds, of Student's t over them."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    if student is None:
        return low, high
    estimate, error, freedom = student
    reach = t.ppf((1 + level) / 2, freedom) * error
    return np.minimum(low, estimate - reach), np.maximum(high, estimate + reach)


def _two_sided(means: Float[np.ndarray, "... r"], student: Student | None) -> Float[np.ndarray, "..."]:
    """p of "the mean is zero": twice the share of bootstrap means on the far side of zero, never below the t-test's."""
    tail = np.minimum((means <= 0).sum(-1), (means >= 0).sum(-1))
    p = np.minimum(1.0, 2 * (tail + 1) / (means.shape[-1] + 1))
    if student is None:
        return p
    estimate, error, freedom = student
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(error > 0, np.abs(estimate) / error, np.where(estimate == 0, 0.0, np.inf))
    return np.maximum(p, 2 * t.sf(far, freedom))


# ---------------------------------------------------------------- paired differences


@dataclass(frozen=True)
class Differences:
    """`Difference` of many studies of one design, one number a study.

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
    student = _student(difference, seeds) if new_seeds else None
    table = (a & b).sum(-1), (a & ~b).sum(-1), (b & ~a).sum(-1), (~a & ~b).sum(-1)
    p = mcnemar(table[1], table[2])
    if len(set(seeds)) > 1:
        p = np.maximum(p, _two_sided(means, student))

    def ends(level: float) -> tuple[np.ndarray, np.ndarray]:
        (low, high), (score_low, score_high) = _ends(means, student, level), _newcombe(*table, level)
        return np.minimum(low, score_low), np.maximum(high, score_high)

    return Differences(difference.mean(-1), *ends(LEVEL), *ends(0.90), p)


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
        a: success of the first policy, one an episode; order of starts as in `hierarchical_bootstrap`.
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
        note=_note(seeds, tasks),
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


def newcombe_paired(table: Agreement, level: float = LEVEL) -> Interval:
    """Newcombe's score interval (his method 10) of the difference of two paired proportions, episodes independent."""
    low, high = _newcombe(table.both, table.only_a, table.only_b, table.neither, level)
    return Interval(float(low), float(high))


def _newcombe(both, only_a, only_b, neither, level: float) -> tuple[np.ndarray, np.ndarray]:
    both, only_a, only_b, neither = (np.asarray(count) for count in (both, only_a, only_b, neither))
    n = int((both + only_a + only_b + neither).flat[0])
    first, second = both + only_a, both + only_b
    p, q = first / n, second / n
    (p_low, p_high), (q_low, q_high) = _wilson(first, n, level), _wilson(second, n, level)
    scale = np.sqrt(1.0 * first * (n - first) * second * (n - second))
    covariance = 1.0 * both * neither - 1.0 * only_a * only_b
    covariance = np.where(covariance > 0, np.maximum(covariance - n / 2, 0), covariance)
    phi = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)

    def reach(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x * x - 2 * phi * x * y + y * y, 0.0))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


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
    student = _student(a - b, seeds) if new_seeds else None
    (low, high), (tost_low, tost_high) = _ends(means, student, LEVEL), _ends(means, student, 0.90)
    starts = max(Counter(seeds).values())
    return Difference(
        estimate=float((a - b).mean()),
        interval=Interval(float(low), float(high)),
        tost=Interval(float(tost_low), float(tost_high)),
        p=max(float(_two_sided(means, student)), 2.0 ** (1 - starts)),
        n=int(a.size),
        note=_note(seeds, tasks),
        effect=EffectSize(standardised=standardised(a - b)),
    )


def _note(seeds: Int[np.ndarray, " e"] | Sequence[object], tasks: Int[np.ndarray, " e"] | Sequence[object]) -> str:
    """What the interval could not measure."""
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
