"""What a study can tell apart, computed before it starts.

How likely **this study's own test** finds a difference with the episodes that are planned, and how many seeds it takes
to find it four times in five, by simulating the study many times and testing each as the real one is
(`la_reconvla.analysis.pooled.pooled`, or for two arms `la_reconvla.analysis.paired.many_paired_successes`). A closed
form for independent episodes would not know that few seeds are few, that trainings differ, and that arms are paired.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from la_reconvla.analysis.intervals import LEVEL
from la_reconvla.analysis.measures import Power
from la_reconvla.analysis.paired import many_paired_successes
from la_reconvla.analysis.pooled import lacking, pooled
from la_reconvla.errors import UserError
from la_reconvla.text_table import TextTable

POINTS = (0.05, 0.10, 0.20, 0.40)
BETWEEN_SEEDS = 0.1  # standard deviation of an arm's rate between its seeds, a share, where none was measured
ALPHA = 0.05
STUDIES = 1000  # simulated ones: a power of 80 % is known to 2.5 points
REPLICATES = 500
SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # that are tried, until a power of `ENOUGH`
ENOUGH = 0.8


def design(seeds: int, tasks: int, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Seed and task of each episode of a full design, int64 [seeds * tasks * episodes] each."""
    labels = np.indices((seeds, tasks, episodes)).reshape(3, -1)
    return labels[0], labels[1]


def pairs(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."], agreement: float, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
    """Successes of two arms on the same starts, with these rates and this correlation of outcomes on one start.

    `agreement` is the correlation (phi) of the two outcomes; it is cut to what the two rates allow. 0: independent.
    """
    both = first * second + agreement * np.sqrt(first * (1 - first) * second * (1 - second))
    both = np.clip(both, np.maximum(0, first + second - 1), np.minimum(first, second))
    draw = rng.random(np.broadcast_shapes(first.shape, second.shape))
    return draw < first, (draw < both) | ((draw >= first) & (draw < first + second - both))


def alike(
    rates: Float[np.ndarray, "n a s 1"], starts: int, agreement: float, rng: np.random.Generator
) -> Bool[np.ndarray, "n a s u"]:
    """Successes of many arms on the same starts: two of equal rate have this correlation of outcomes on one start.

    Each outcome is drawn from what all arms share with probability sqrt(`agreement`), else from its own.
    """
    number, arms, seeds, _ = rates.shape
    draw = rng.random((number, arms, seeds, starts))
    if agreement:
        common = rng.random((number, 1, seeds, starts))
        draw = np.where(rng.random(draw.shape) < np.sqrt(agreement), common, draw)
    return draw < rates


def paired_power(
    rate: float,
    points: float,
    seeds: int,
    tasks: int,
    episodes: int,
    *,
    arms: int = 2,
    between_seeds: float = 0.0,
    agreement: float = 0.0,
    shared: int = 1,
    alpha: float = 0.05,
    studies: int = STUDIES,
) -> float:
    """Probability that a study finds an arm `points` better: interval above zero and p below `alpha`.

    Args:
        rate: success rate of the worse arm, a share.
        points: what the better arm has more, a share.
        seeds: training seeds of each arm.
        tasks: number of tasks.
        episodes: evaluation episodes per task and trained policy.
        arms: of the study, judged by the pooled rule where they suffice; the others are as good as the worse one. 2 is
            judged by the rule of before.
        between_seeds: standard deviation of an arm's rate between its seeds, a share.
        agreement: correlation of two arms' outcomes on one start beyond what their rates imply. Arms that solve the
            same starts agree more, and the power is higher.
        shared: starts of a task that share a scene, one after the other.
        alpha: level of this test, two-sided. Of m corrected together, Holm's first step has 1/m of a study's 5 %.
        studies: how many are simulated.

    Raises:
        UserError: the two rates are no shares, a number is below 1, or the correlation is not in [0, 1].
    """
    if not (0 <= rate <= 1 and 0 <= rate + points <= 1):
        raise UserError(f"rates must be between 0 and 1, got {rate} and {rate + points}")
    if min(seeds, tasks, episodes) < 1:
        raise UserError(f"a study needs a seed, a task and an episode, got {seeds}, {tasks} and {episodes}")
    if not 0 <= agreement <= 1 or between_seeds < 0:
        raise UserError(f"agreement must be between 0 and 1 and seeds vary by 0 or more: {agreement}, {between_seeds}")
    rng = np.random.default_rng(0)
    labels = design(seeds, tasks, episodes)
    found = 0
    task, scene = np.repeat(np.arange(tasks), episodes), np.tile(np.arange(episodes) // shared, tasks)
    step = max(1, 2_000_000 // (labels[0].size * max(1, arms // 2)))  # studies at a time: arrays of some 16 MB
    for begin in range(0, studies, step):
        number = min(step, studies - begin)
        if not lacking(arms, seeds, task, scene):
            better = np.array([rate + points, *[rate] * (arms - 1)])[:, None]
            rates = np.clip(better + between_seeds * rng.normal(size=(number, arms, seeds)), 0, 1)
            values = alike(rates[..., None], tasks * episodes, agreement, rng)
            judged = pooled(values, task, scene, successes=True, bounds=(-1, 1))
            low = judged.ends(LEVEL)[0]
        else:
            shift = between_seeds * rng.normal(size=(2, number, seeds))[..., labels[0]]
            a, b = pairs(np.clip(rate + points + shift[0], 0, 1), np.clip(rate + shift[1], 0, 1), agreement, rng)
            judged = many_paired_successes(a, b, *labels, replicates=max(REPLICATES, round(4 / alpha)))
            low = judged.low
        found += int(((low > 0) & (judged.p < alpha)).sum())
    return found / studies


def planned(
    seeds: int,
    tasks: int,
    episodes: int,
    *,
    arms: int = 2,
    between_seeds: float = BETWEEN_SEEDS,
    agreement: float = 0.0,
    shared: int = 1,
    tests: int = 1,
    search: bool = True,
) -> tuple[Power, ...]:
    """What a study of this size can tell apart, around a success rate of one half, where most episodes are needed.

    Arguments and errors as in `paired_power`; the differences asked about are `POINTS`. `tests`: comparisons that are
    corrected together; each difference is then one that is found whatever the other tests find. `search`: also say how
    many seeds would do; with ten arms and more that takes a minute.
    """

    def power(points: float, seeds: int) -> float:
        return paired_power(
            0.5 - points / 2,
            points,
            seeds,
            tasks,
            episodes,
            arms=arms,
            between_seeds=between_seeds,
            agreement=agreement,
            shared=shared,
            alpha=ALPHA / tests,
        )

    def row(points: float) -> Power:
        at = (
            len(SEEDS) if not search else bisect_left(SEEDS, ENOUGH, key=lambda seeds: power(points, seeds))
        )  # more seeds, more power
        enough = SEEDS[at] if at < len(SEEDS) else None
        needed = None if enough is None else enough * tasks * episodes
        planned = seeds * tasks * episodes
        return Power(points, 0.5 - points / 2, needed, planned, power(points, seeds), between_seeds, enough)

    return tuple(map(row, POINTS))


def power_explained(seeds: int, tasks: int, episodes: int, tests: int = 1) -> str:
    """What the columns of `power_table` are, and why a planned number gives the power that it does; a line each."""
    why = (
        "one seed says nothing of another training: the power is of the episodes alone, and reports stay inconclusive"
        if seeds == 1
        else f"the test asks whether the difference holds for other seeds and starts than these ({seeds} seeds, "
        f"{tasks} task{'s' * (tasks > 1)}), so {seeds * tasks * episodes} episodes count for less than as many "
        "independent ones; more seeds add more than more episodes of each do, and arms that succeed on the same starts "
        "(--agreement) need fewer"
    )
    return "\n".join(
        (
            "points apart: how much better one arm is, in points of success, both around 50 %",
            "needed for 80 % power: seeds, and episodes per arm, with which the same test finds it four times in five",
            f"planned: {seeds} seeds x {tasks} tasks x {episodes} episodes, of each arm",
            f"power of this study: of {STUDIES} simulated studies of this size the share whose test finds it, "
            f"corrected for {tests} comparison{'s' * (tests > 1)} (--tests), whatever the others find",
            f"why: {why}",
        )
    )


def power_table(rows: Sequence[Power], seeds: int, searched: bool = True) -> TextTable:
    """The rows for people, with what few seeds mean in the title; without what is needed where nobody searched it."""
    few = " (with one seed no difference between arms is decided)" if seeds == 1 else ""
    spread = next((row.between_seeds for row in rows if row.between_seeds is not None), None)
    varied = "" if spread is None else f", trainings of one arm {100 * spread:.1f} points apart (standard deviation)"
    columns = [("points apart", [f"{100 * r.points:.0f}" for r in rows])]
    columns += [("needed for 80 % power", [needed(r) for r in rows])] * searched
    columns += [("planned", [str(r.planned) for r in rows])]
    columns += [("power of this study", [f"{100 * r.power:.0f} %" for r in rows])]
    header, cells = zip(*columns, strict=True)
    return TextTable(f"What this study can tell apart{varied}{few}", header, list(zip(*cells, strict=True)))


def needed(row: Power) -> str:
    """Seeds and episodes per arm with which the difference of `row` is found four times in five."""
    if row.seeds is None:
        return "–" if row.needed is not None else f"more than {SEEDS[-1]} seeds"
    return f"{row.seeds} seeds, {row.needed} episodes"
