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
    design, step, means = (codes(seeds), codes(tasks)), max(1, CELLS // values.shape[-1]), []
    groups = [values[..., episodes] for episodes in _layout(*design)[0]]
    for by_seed, times_of in _draws(*(label.tobytes() for label in design), replicates, step, rng_seed):
        held = [times.astype(float) for times in times_of] * (len(groups) // len(times_of))
        total = sum(n * (group @ times.T) for n, group, times in zip(by_seed, groups, held, strict=True))
        means.append(total / sum(n * times.sum(1) for n, times in zip(by_seed, held, strict=True)))
    return np.concatenate(means, axis=-1)


Drawn = tuple[Int[np.ndarray, "s r"], list[Int[np.ndarray, "r e"]]]


@functools.lru_cache(maxsize=2)  # the metrics of a study share a design, and simulated studies do
def _draws(seeds: bytes, tasks: bytes, replicates: int, step: int, rng_seed: int) -> list[Drawn]:
    """For `step` bootstrap samples at a time how often each holds each seed, and how often one that does its episodes.

    The latter once where all seeds have the same tasks and starts, else for each seed: samples draw starts for all.
    """
    _, count = _layout(np.frombuffer(seeds, dtype=np.int64), np.frombuffer(tasks, dtype=np.int64))
    alike = (count == count[0]).all()
    found = []
    for begin in range(0, replicates, step):
        rng, samples = np.random.default_rng((rng_seed, begin)), min(step, replicates - begin)
        s = rng.integers(len(count), size=(samples, len(count)))
        t, e = rng.random((samples, count.shape[1])), rng.random((samples, count.shape[1], int(count.max())))
        by_seed = np.stack([(s == seed).sum(1) for seed in range(len(count))])
        times = [_times(t, e, of_seed[of_seed > 0]) for of_seed in count[: 1 if alike else None]]
        for array in (by_seed, *times):
            array.flags.writeable = False  # it is kept, for others
        found.append((by_seed, times))
    return found


def _times(t: Float[np.ndarray, "r t"], e: Float[np.ndarray, "r t d"], count: Int[np.ndarray, " t"]) -> np.ndarray:
    """How often each sample holds each episode of a seed with so many of each task, from uniform numbers."""
    task = (t[:, : count.size] * count.size).astype(np.int64)  # a seed with fewer tasks draws fewer
    size, episodes = count[task][..., None], int(count.sum())
    first = (np.cumsum(count) - count)[task] + episodes * np.arange(len(t))[:, None]
    drawn = (e[:, : count.size, : count.max()] * size).astype(np.int64) + first[..., None]
    if count.min() < count.max():
        drawn = drawn[np.arange(count.max()) < size]
    times = np.bincount(drawn.ravel(), minlength=len(t) * episodes).reshape(len(t), episodes)
    return times.astype(np.min_scalar_type(int(times.max())))


def _layout(
    seeds: Int[np.ndarray, " e"], tasks: Int[np.ndarray, " e"]
) -> tuple[list[Int[np.ndarray, " e"]], Int[np.ndarray, "s t"]]:
    """The episodes of each seed, its tasks one after the other, and how many each task has, 0 after the last."""
    order = np.lexsort((tasks, seeds))
    sizes = [np.bincount(tasks[seeds == seed]) for seed in range(int(seeds.max()) + 1)]
    sizes = [size[size > 0] for size in sizes]
    count = np.zeros((len(sizes), max(size.size for size in sizes)), dtype=np.int64)
    for row, size in zip(count, sizes, strict=True):
        row[: size.size] = size
    return np.split(order, np.cumsum(count.sum(1))[:-1]), count


def codes(labels: Int[np.ndarray, " e"] | Sequence[object]) -> Int[np.ndarray, " e"]:
    """Small integers for labels of any hashable type, by first appearance."""
    code = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter(map(code.__getitem__, labels), dtype=np.int64)


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
    """How often each bootstrap sample of `n` things holds each of them, of the smallest unsigned type for that."""
    steps = np.diff([*range(0, REPLICATES, max(1, CELLS // n)), REPLICATES])
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=s).astype(np.min_scalar_type(n)) for s in steps])


def crossed_sum(
    values: Float[np.ndarray, "s u"], by_seed: Int[np.ndarray, "r s"], by_unit: Int[np.ndarray, "r u"]
) -> Float[np.ndarray, " r"]:
    """Sum of `values` in each bootstrap sample that draws seeds and, crossed with them, units (`drawn_counts`)."""
    step = max(1, CELLS // by_unit.shape[1])
    of_seeds = [by_unit[begin : begin + step].astype(float) @ values.T for begin in range(0, len(by_unit), step)]
    return (by_seed * np.concatenate(of_seeds)).sum(1)


def percentiles(means: Float[np.ndarray, " r"]) -> Interval:
    """The bootstrap's 95 % interval."""
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))
