"""Intervals and p-values of means over trainings, tasks and starts.

Intervals come from a bootstrap that resamples seeds, tasks and the starts of a task, because episodes of one seed share
a network and episodes of one task share a scene. Every seed meets the same tasks and starts, so these are drawn once
for all seeds: twenty starts under three seeds are not sixty independent starts.

A bootstrap of three to five seeds is too narrow where training itself varies: three values tell little about their
spread, and resampling them repeats it too small. Therefore every interval that speaks of training again is the hull
of the bootstrap's and of Student's t interval over the seeds' means, and every p the larger of the two. How often all
of them hold in simulated studies: ``docs/results/calibration.md``.

What simulations need is computed for many studies at once: leading axes ``...`` are studies of one design.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from la_reconvla.analysis.intervals import LEVEL, Interval
from la_reconvla.errors import UserError

REPLICATES = 10_000
CELLS = 2_000_000  # bootstrap samples x episodes that are held at a time
MANY = 4_000  # episodes above which they are drawn by kinds of starts, where these are few
KINDS = 1_000  # of them for one task, at most


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
        values: one finite value per episode, any unit. Within each (seed, task) the starts are in equal order: the
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
    if values.ndim == 1 and values.size > MANY and (kinds := _kinds(values, codes(seeds), codes(tasks))) is not None:
        return _means_by_kinds(kinds, replicates, np.random.default_rng(rng_seed))
    design = tuple(codes(seeds).tolist()), tuple(codes(tasks).tolist())
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


Kinds = list[tuple[Float[np.ndarray, "s k"], Int[np.ndarray, " k"]]]


def _kinds(values: Float[np.ndarray, " e"], seeds: Int[np.ndarray, " e"], tasks: Int[np.ndarray, " e"]) -> Kinds | None:
    """For each task its starts with equal values under all seeds: these values, and how many starts have them.

    None if seeds had different numbers of starts, or a task has more than `KINDS` kinds.
    """
    found: Kinds = []
    n_seeds = int(seeds.max()) + 1
    for task in range(int(tasks.max()) + 1):
        of_seed = [values[(seeds == seed) & (tasks == task)] for seed in range(n_seeds)]
        if len({len(one) for one in of_seed}) > 1 or len(of_seed[0]) == 0:
            return None
        kinds, count = np.unique(np.stack(of_seed), axis=1, return_counts=True)
        if count.size > KINDS:
            return None
        found.append((kinds, count))
    return found


def _means_by_kinds(kinds: Kinds, replicates: int, rng: np.random.Generator) -> Float[np.ndarray, " r"]:
    """The bootstrap of `hierarchical_bootstrap` with other random numbers, at a cost that the starts do not enter.

    Starts of one kind add the same to every sample that holds them, so only how many of each kind it holds is drawn:
    a multinomial number.
    """
    n_seeds, n_tasks = len(kinds[0][0]), len(kinds)
    of_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=replicates)
    of_tasks = rng.multinomial(n_tasks, np.full(n_tasks, 1 / n_tasks), size=replicates)
    total, drawn = np.zeros(replicates), np.zeros(replicates)
    for (values, count), times in zip(kinds, of_tasks.T, strict=True):
        sample = np.repeat(np.arange(replicates), times)  # a task that is drawn twice draws its starts anew
        starts = int(count.sum())
        sums = (rng.multinomial(starts, count / starts, size=len(sample)) * (of_seeds @ values)[sample]).sum(1)
        total += np.bincount(sample, sums, minlength=replicates)
        drawn += times * starts * n_seeds
    return total / drawn


def _layout(
    seeds: Int[np.ndarray, " e"] | Sequence[object], tasks: Int[np.ndarray, " e"] | Sequence[object]
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, "s t"], Int[np.ndarray, "s t"], Int[np.ndarray, " s"]]:
    """Order that groups episodes by (seed, task); first and count of each group; number of tasks of each seed."""
    label = np.array([codes(seeds), codes(tasks)])
    order = np.lexsort((label[1], label[0]))
    groups, begin, size = np.unique(label[:, order], axis=1, return_index=True, return_counts=True)
    width = np.bincount(groups[0])
    within = np.arange(groups.shape[1]) - (np.cumsum(width) - width)[groups[0]]
    first = np.zeros((width.size, int(width.max())), dtype=np.int64)
    count = np.zeros_like(first)
    first[groups[0], within], count[groups[0], within] = begin, size
    return order, first, count, width


def codes(labels: Int[np.ndarray, " e"] | Sequence[object]) -> Int[np.ndarray, " e"]:
    """Small integers for labels of any hashable type, by first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def mean_interval(
    values: Float[np.ndarray, " e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
) -> Interval:
    """95 % interval of a mean, over trainings with new seeds. Arguments and errors as in `hierarchical_bootstrap`."""
    low, high = many_means(values, seeds, tasks)
    return Interval(float(low), float(high))


def many_means(
    values: Float[np.ndarray, "... e"],
    seeds: Int[np.ndarray, " e"] | Sequence[object],
    tasks: Int[np.ndarray, " e"] | Sequence[object],
    *,
    replicates: int = REPLICATES,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Both ends of `mean_interval`, for many studies at once."""
    means = hierarchical_bootstrap(values, seeds, tasks, replicates=replicates)
    return ends(means, over_seeds(np.asarray(values, dtype=float), seeds), LEVEL)


def student_interval(of_seeds: Float[np.ndarray, " s"]) -> Interval | None:
    """Student's 95 % t interval of the mean of one number per seed; None with fewer than two."""
    found = over_seeds(np.asarray(of_seeds, dtype=float), range(len(of_seeds))) if len(of_seeds) > 1 else None
    if found is None:
        return None
    estimate, error, freedom = found
    reach = float(t.ppf((1 + LEVEL) / 2, freedom) * error)
    return Interval(float(estimate) - reach, float(estimate) + reach)


OverSeeds = tuple[np.ndarray, np.ndarray, int]  # estimate, its standard error over seeds, degrees of freedom


def over_seeds(values: Float[np.ndarray, "... e"], seeds: Int[np.ndarray, " e"] | Sequence[object]) -> OverSeeds | None:
    """What Student's t over the means of the seeds needs; None with one seed."""
    seed = codes(seeds)
    n = int(seed.max()) + 1
    if n == 1:
        return None
    of_seeds = np.stack([values[..., seed == code].mean(-1) for code in range(n)], axis=-1)
    return values.mean(-1), of_seeds.std(-1, ddof=1) / math.sqrt(n), n - 1


def ends(
    means: Float[np.ndarray, "... r"], means_of_seeds: OverSeeds | None, level: float
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Both ends of the hull of the bootstrap's percentiles and, with several seeds, of Student's t over them."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    if means_of_seeds is None:
        return low, high
    estimate, error, freedom = means_of_seeds
    reach = t.ppf((1 + level) / 2, freedom) * error
    return np.minimum(low, estimate - reach), np.maximum(high, estimate + reach)


def two_sided(means: Float[np.ndarray, "... r"], means_of_seeds: OverSeeds | None) -> Float[np.ndarray, "..."]:
    """p of "the mean is zero": twice the share of bootstrap means on the far side of zero, never below the t-test's."""
    tail = np.minimum((means <= 0).sum(-1), (means >= 0).sum(-1))
    p = np.minimum(1.0, 2 * (tail + 1) / (means.shape[-1] + 1))
    if means_of_seeds is None:
        return p
    estimate, error, freedom = means_of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(error > 0, np.abs(estimate) / error, np.where(estimate == 0, 0.0, np.inf))
    return np.maximum(p, 2 * t.sf(far, freedom))


# ---------------------------------------------------------------- crossed counts


def drawn_counts(n: int, rng: np.random.Generator) -> Int[np.ndarray, "r n"]:
    """How often each bootstrap sample of `n` things holds each of them."""
    return rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES)


def crossed_sum(
    values: Float[np.ndarray, "s u"], by_seed: Int[np.ndarray, "r s"], by_unit: Int[np.ndarray, "r u"]
) -> Float[np.ndarray, " r"]:
    """Sum of `values` in each bootstrap sample that draws seeds and, crossed with them, units (`drawn_counts`)."""
    return ((by_seed @ values) * by_unit).sum(1)


def percentiles(means: Float[np.ndarray, " r"]) -> Interval:
    """The bootstrap's 95 % interval."""
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))
