"""Simulated studies of two arms alone at home and on another suite, for H4; `benchmarks/calibration.py` prints them.

The logit of success is a sum as in `pooled_worlds`. Half of the variance of a training's luck is the same at both
places. Starts, other ones at each place, are met by both arms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.polynomial.hermite_e import hermegauss
from pooled_worlds import MARGIN, SHARED, START, TASKS, _rate
from scipy.optimize import root_scalar

from la_reconvla.analysis.intervals import LEVEL
from la_reconvla.analysis.retained import shares
from la_reconvla.text_table import TextTable

SEEDS = 2, 3, 4, 5, 6, 8


@dataclass(frozen=True)
class Places:
    """What studies are drawn from.

    Attributes:
        home: success at home of C4 and of R1, over all trainings and starts.
        away: the same on the other suite.
        training: standard deviation between trainings of one arm, on the logit scale.
        favour: the same of what a start has against one arm.
        tasks: number of tasks at each place.
        episodes: starts of each.
    """

    home: tuple[float, float]
    away: tuple[float, float]
    training: float = 0.4
    favour: float = 0.4
    tasks: int = 3
    episodes: int = 10

    @property
    def share(self) -> float:
        """What C4 retains more than R1."""
        return self.away[0] / self.home[0] - self.away[1] / self.home[1]

    @property
    def worse(self) -> bool:
        """Whether C4 is worse on the other suite by the margin or more."""
        return self.away[0] - self.away[1] <= -MARGIN + 1e-9

    def middles(self, rates: tuple[float, float]) -> Float[np.ndarray, "a t"]:
        """Logit of each arm in each task that gives these rates."""
        at, weight = hermegauss(60)
        width = np.sqrt(self.training**2 + SHARED**2 + START**2 + self.favour**2)
        offsets = np.linspace(-TASKS, TASKS, self.tasks)

        def over(middle: float, rate: float) -> float:
            return float((_rate(middle + offsets[:, None] + width * at) @ weight).mean() / weight.sum()) - rate

        return np.array([offsets + root_scalar(over, (rate,), bracket=(-20, 20)).root for rate in rates])

    def studies(self, number: int, seeds: int, rng: np.random.Generator) -> list[Float[np.ndarray, "n a s u"]]:
        """Successes at home and away in so many studies."""
        luck = np.sqrt(0.5) * self.training * rng.normal(size=(3, number, 2, seeds, 1))
        seed = SHARED * rng.normal(size=(number, 1, seeds, 1))
        found, starts = [], self.tasks * self.episodes
        for place, rates in enumerate((self.home, self.away)):
            start = START * rng.normal(size=(number, 1, 1, starts))
            start = start + self.favour * rng.normal(size=(number, 2, 1, starts))
            task = np.repeat(self.middles(rates), self.episodes, axis=1)[None, :, None]
            logit = task + start + seed + luck[0] + luck[1 + place]
            found.append((rng.random(logit.shape) < _rate(logit)).astype(float))
        return found


def judged(world: Places, seeds: int, studies: int, rng_seed: int = 0) -> tuple[float, ...]:
    """Shares of studies: supported, refuted, whose interval of the shares holds the truth, nothing to compare.

    One suite and one test, so that nothing is corrected: a study's own rule decides less.
    """
    here, there = world.studies(studies, seeds, np.random.default_rng(rng_seed))
    known = (here.mean((2, 3)) >= MARGIN).all(1)
    here, there, tasks = here[known], there[known], np.repeat(np.arange(2 * world.tasks), world.episodes)
    share, away = shares(here, there, tasks, np.arange(tasks.size))
    (low, high), (away_low, away_high) = share.ends(LEVEL), away.ends(LEVEL)
    side = 2 * away.p_side(-MARGIN)
    supported = (low > 0) & (away_low > -MARGIN) & (share.p < 0.05) & (side < 0.05)
    refuted = ((away_high < -MARGIN) & (side < 0.05)) | ((high < 0) & (share.p < 0.05))
    covered = (low <= world.share) & (world.share <= high)
    return supported.sum() / studies, refuted.sum() / studies, covered.mean(), 1 - known.mean()


SAME = (  # both retain the same share
    Places((0.6, 0.6), (0.3, 0.3)),
    Places((0.6, 0.6), (0.3, 0.3), training=0.0, favour=0.0),
    Places((0.6, 0.6), (0.3, 0.3), training=0.8),
    Places((0.8, 0.5), (0.4, 0.25)),
    Places((0.8, 0.5), (0.4, 0.25), training=0.8),
    Places((0.95, 0.95), (0.9, 0.9)),
    Places((0.2, 0.2), (0.1, 0.1)),
    Places((0.12, 0.12), (0.12, 0.12), training=0.8),
    Places((0.3, 0.15), (0.06, 0.03)),
    Places((0.6, 0.6), (0.02, 0.02)),
    Places((0.6, 0.6), (0.3, 0.3), tasks=2, episodes=4),
    Places((0.6, 0.6), (0.3, 0.3), episodes=20),
)
WORSE = (  # C4 retains more, and is worse there by the margin: that is not to be supported
    Places((0.3, 0.7), (0.3, 0.35)),
    Places((0.1, 0.9), (0.1, 0.15)),
    Places((0.05, 0.6), (0.02, 0.07)),
)
PLANTED = (  # C4 retains more and is no worse, and the other way round
    Places((0.6, 0.6), (0.5, 0.2)),
    Places((0.8, 0.8), (0.75, 0.25)),
    Places((0.8, 0.8), (0.25, 0.75)),
)


def tables(studies: int) -> Iterator[TextTable]:
    """H4 of C4 and R1 alone: false decisions, coverage, and what is found."""
    for title, worlds in (
        ("H4 of two arms alone: both retain the same share", SAME),
        ("H4 of two arms alone: C4 retains more, and is worse there by the margin", WORSE),
        ("H4 of two arms alone: C4 retains more and is no worse, or less", PLANTED),
    ):
        rows = [
            (
                str(seeds),
                f"{world.tasks} x {world.episodes}",
                ", ".join(f"{100 * a:g} to {100 * b:g}" for a, b in zip(world.home, world.away, strict=True)),
                f"{world.training:g}",
                *(f"{100 * share:.1f}" for share in judged(world, seeds, studies)),
            )
            for world in worlds
            for seeds in SEEDS
        ]
        yield TextTable(
            title,
            (
                "seeds",
                "starts",
                "C4, R1: home to away",
                "between trainings",
                "supported",
                "refuted",
                "95 %",
                "no share",
            ),
            rows,
        )
