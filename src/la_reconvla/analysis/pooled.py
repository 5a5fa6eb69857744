"""The paired difference of two arms of a study, with the variance between trainings taken from all of its arms.

A handful of seeds tells little about how much trainings of two arms vary; those of ten arms tell a lot. The arms of a
study are trained alike but for their reconstruction, so the variance between trainings is pooled over all of them: of
each (arm, seed) what is left of its mean once arm and seed are taken away. Starts are crossed with seeds; what a start
has against one of the two arms is estimated from the two alone. Tasks are fixed: the interval speaks of these tasks.

With a arms, s seeds, u starts in c scenes (two starts share a wide scene, others have one each) of t tasks, and d the
difference of the two under each seed and start:

    A = 2 u sum (arm x seed rest)^2 / ((a - 1)(s - 1))      between trainings, of all arms
    B = s sum (mean of d in a scene - in its task)^2 / (c - t), where each start counts once       between scenes
    R = what neither seed and task nor scene explain of d, a mean square of (s - 1)(c - t) degrees of freedom
    variance of the mean of d = (max(A, R) + max(B - R, 0)) / (s u)

A is that of the two arms alone (`Student.own`) where an F test finds their trainings to vary more than those of the
other arms. Its level, `SPREAD_ALPHA`, is high because the mistake it prevents is the worse one. The degrees of freedom
are Satterthwaite's (1946, doi:10.2307/3002019). Of successes the variance is never below that of independent pairs with
half a pair added to each cell of their 2 x 2 table (Agresti and Min 2005, doi:10.1002/sim.1781), so that it is not zero
where all happen to fail. How often the intervals hold in simulated studies: ``docs/results/calibration.md``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from la_reconvla.analysis.bootstrap import codes
from la_reconvla.errors import UserError

MIN_ARMS = 3  # of a study: with two nothing is pooled
MIN_STARTS = 4  # degrees of freedom between scenes
SPREAD_ALPHA = 0.25  # level of the test of equal spreads


@dataclass(frozen=True)
class Student:
    """An estimate with its standard error and degrees of freedom; each a number, or one for each of many studies.

    Attributes:
        estimate: mean difference.
        error: its standard error.
        freedom: degrees of freedom of Student's t.
        own: whether the two arms' own spread was taken.
        bounds: least and largest value that is possible.
    """

    estimate: Float[np.ndarray, "..."]
    error: Float[np.ndarray, "..."]
    freedom: Float[np.ndarray, "..."]
    own: Bool[np.ndarray, "..."]
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def ends(self, level: float) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Both ends of the interval of this level, within the bounds."""
        reach = t_distribution.ppf((1 + level) / 2, self.freedom) * self.error
        return np.clip(self.estimate - reach, *self.bounds), np.clip(self.estimate + reach, *self.bounds)

    @property
    def p(self) -> Float[np.ndarray, "..."]:
        """Two-sided p of "the difference is zero": below 5 % exactly where the 95 % interval leaves zero out."""
        return 2 * t_distribution.sf(np.abs(self.estimate) / self.error, self.freedom)

    def p_margin(self, margin: float) -> Float[np.ndarray, "..."]:
        """One-sided p of the side of +-`margin` that the estimate is on: inside by two one-sided tests, outside by one.

        Below 5 % exactly where the 90 % interval is on that side alone.
        """
        return self.p_side(np.where(self.estimate < 0, -margin, margin))  # of the nearer end, whose p is the larger one

    def p_side(self, threshold: float | Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """One-sided p of the side of `threshold` that the estimate is on."""
        return t_distribution.sf(np.abs(self.estimate - threshold) / self.error, self.freedom)


Labels = Sequence[Hashable] | Int[np.ndarray, " u"]


def lacking(arms: int, seeds: int, tasks: Labels, scenes: Labels | None = None, least: int = MIN_ARMS) -> str:
    """What so many arms, of `least`, and seeds on starts of these tasks and scenes lack to be pooled; "": nothing."""
    there = len(tasks) if scenes is None else len(set(zip(tasks, scenes, strict=True)))
    if arms < least:
        return f"fewer than {least} arms have all of these starts and seeds"
    if seeds < 2:
        return "there is one training seed only"
    return "" if there - len(set(tasks)) >= MIN_STARTS else f"there are fewer than {MIN_STARTS} scenes more than tasks"


def pooled(
    values: Float[np.ndarray, "... a s u"],
    tasks: Labels,
    scenes: Labels | None = None,
    *,
    successes: bool,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Student:
    """The difference of the first two arms, over new trainings and new starts of these tasks; ``...``: studies.

    Args:
        values: of each arm, seed and start; the first two arms are compared, the others tell how much trainings vary.
            Where there are no others, the spread is that of the two.
        tasks: of each start.
        scenes: of each start; None if each has its own.
        successes: whether the values are successes, 0 or 1, whose variance has a least value.
        bounds: of the difference.

    Raises:
        UserError: too few arms, seeds or starts (`lacking`), or values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    arms, seeds, units = values.shape[-3:]
    if len(tasks) != units or lacking(arms, seeds, tasks, scenes, least=2):
        raise UserError(
            f"pooling needs 2 arms, 2 seeds and {MIN_STARTS} scenes more than tasks; got {arms} arms, "
            f"{seeds} seeds and {units} starts"
        )
    if not np.isfinite(values).all():
        raise UserError("values to compare must be finite: leave out what was not measured")
    d = values[..., 0, :, :] - values[..., 1, :, :]
    estimate, pairs = d.mean((-2, -1)), seeds * units
    starts, rest, of_starts, of_rest = _within_tasks(d, tasks, scenes)
    own = units * d.mean(-1).var(-1, ddof=1)
    rests = 2 * units * (arm_seed_rests(values) ** 2).sum((-2, -1))  # a sum of squares, that of d within it
    of_own, of_all = seeds - 1, (arms - 1) * (seeds - 1)
    if arms == 2:
        more = np.ones(own.shape, dtype=bool)
    else:
        others = np.maximum(rests - of_own * own, 0) / (of_all - of_own)
        more = own > f_distribution.ppf(1 - SPREAD_ALPHA, of_own, of_all - of_own) * others
    trainings, of_trainings = np.where(more, own, rests / of_all), np.where(more, of_own, of_all)
    trainings, between = np.maximum(trainings, rest), np.maximum(starts - rest, 0)
    variance = trainings + between
    uncertainty = trainings**2 / of_trainings + (between > 0) * (starts**2 / of_starts + rest**2 / of_rest)
    least = np.minimum(of_trainings, of_starts)
    freedom = np.divide(variance**2, uncertainty, out=np.ones_like(variance), where=uncertainty > 0)
    if successes:
        variance = np.maximum(variance, pairs * least_variance(values))
    return Student(estimate, np.sqrt(variance / pairs), np.maximum(freedom, least), more, bounds)


def arm_seed_rests(values: Float[np.ndarray, "... a s u"]) -> Float[np.ndarray, "... a s"]:
    """What is left of each (arm, seed) mean once the arm's and the seed's are taken away."""
    means = values.mean(-1)
    return means - means.mean(-1, keepdims=True) - means.mean(-2, keepdims=True) + means.mean((-2, -1), keepdims=True)


def between_trainings(values: Float[np.ndarray, "a s u"], tasks: Labels, scenes: Labels | None = None) -> float:
    """Standard deviation between trainings of one arm beyond the noise of its episodes and what a seed's arms share.

    0 where the noise explains all of it. Arguments as in `pooled`.
    """
    arms, seeds, units = values.shape
    found = float((arm_seed_rests(values) ** 2).sum()) / ((arms - 1) * (seeds - 1))
    noise = float(np.mean(_within_tasks(values - values.mean(0), tasks, scenes)[1])) * arms / (arms - 1)
    return float(np.sqrt(max(found - noise / units, 0.0)))


def _within_tasks(
    d: Float[np.ndarray, "... s u"], tasks: Labels, scenes: Labels | None
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Mean squares between the scenes of a task and of the rest, and their degrees of freedom."""
    task = codes(tasks)
    scene = codes(range(task.size) if scenes is None else list(zip(tasks, scenes, strict=True)))
    seeds, free = d.shape[-2], int(scene.max() - task.max())
    in_task, in_scene = _means_of(d, task), _means_of(d, scene)
    start = (in_scene - in_task).mean(-2)
    left = in_scene - in_task - start[..., None, :]
    return seeds * (start**2).sum(-1) / free, (left**2).sum((-2, -1)) / ((seeds - 1) * free), free, (seeds - 1) * free


def _means_of(d: Float[np.ndarray, "... s u"], group: Int[np.ndarray, " u"]) -> Float[np.ndarray, "... s u"]:
    """For each start the mean of its group."""
    means = csr_array(((1 / np.bincount(group))[group], group, np.arange(group.size + 1)))  # a product with it
    return (d.reshape(-1, group.size) @ means).reshape(*d.shape[:-1], -1)[..., group]


def least_variance(
    successes: Float[np.ndarray, "... a s u"],
    weights: tuple[Float[np.ndarray, "..."] | float, Float[np.ndarray, "..."] | float] = (1.0, 1.0),
) -> Float[np.ndarray, "..."]:
    """Variance of the mean of x a - y b, a and b the first two arms' successes in pairs that are independent.

    Half a pair is added to each of the four cells, so that it is not zero where all pairs are alike.

    Args:
        successes: 0 or 1 of each arm, seed and start.
        weights: x and y.
    """
    (x, y), n = weights, successes.shape[-2] * successes.shape[-1]
    a, b = (successes[..., arm, :, :].sum((-2, -1)) for arm in (0, 1))
    both = (successes[..., 0, :, :] * successes[..., 1, :, :]).sum((-2, -1))
    cells = (both + 0.5, x - y), (a - both + 0.5, x), (b - both + 0.5, -y)  # in the fourth x a - y b is zero
    mean, square = (sum(count * value**power for count, value in cells) / (n + 2) for power in (1, 2))
    return (square - mean**2) / n
