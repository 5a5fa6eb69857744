"""Simulated studies of many arms for the pooled interval; `benchmarks/calibration.py` prints their tables.

The logit of success is a sum: the task's, fixed; difficulty of the start, which all arms meet under every seed; what
all arms of a seed share; luck of the training, one for each arm and seed; and what a start has against one arm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.polynomial.hermite_e import hermegauss

from la_reconvla.analysis.declaration import DECLARED
from la_reconvla.analysis.intervals import LEVEL
from la_reconvla.analysis.pooled import pooled
from la_reconvla.text_table import TextTable

SHARED, START, TASKS = 0.3, 1.0, 0.6  # standard deviations of a seed's and a start's part; tasks lie between +-0.6
CELLS = 6_000_000  # episodes at a time
MARGIN = 0.05


@dataclass(frozen=True)
class World:
    """What studies are drawn from.

    Attributes:
        arms: number of arms; the first two are compared.
        seeds: training seeds of each.
        rate: success rate of the first two at the middle of all logits.
        training: standard deviation between trainings of one arm, on the logit scale (0.8: at 50 %, trainings lie
            between 31 and 69 % in two thirds of the cases).
        favour: the same of what a start has against one arm.
        more: factor on `training` of the first arms, one each.
        others: rate of the other arms; None for `rate`.
        tasks: number of tasks.
        episodes: starts of each task.
        scene: starts that share difficulty and favour, as the two of a wide scene do.
        better: added to the logit of the first arm.
    """

    arms: int
    seeds: int
    rate: float
    training: float
    favour: float = 0.0
    more: tuple[float, ...] = ()
    others: float | None = None
    tasks: int = 3
    episodes: int = 20
    scene: int = 1
    better: float = 0.0

    @property
    def spreads(self) -> Float[np.ndarray, " a"]:
        """Between trainings of each arm."""
        return self.training * np.array([*self.more, *(self.arms - len(self.more)) * [1.0]])

    @property
    def middle(self) -> Float[np.ndarray, "a t"]:
        """Logit of each arm in each task."""
        rates = np.array([self.rate, self.rate, *(self.arms - 2) * [self.rate if self.others is None else self.others]])
        logit = np.log(rates / (1 - rates))
        logit[0] += self.better
        return logit[:, None] + (np.linspace(-TASKS, TASKS, self.tasks) if self.tasks > 1 else np.zeros(1))

    def truth(self) -> float:
        """Difference of the first two arms over all trainings and starts, by quadrature."""
        at, weight = hermegauss(60)
        means = []
        for middle, spread in zip(self.middle[:2], self.spreads, strict=False):
            width = np.sqrt(spread**2 + SHARED**2 + START**2 + self.favour**2)
            means.append((_rate(middle[:, None] + width * at) @ weight).mean() / weight.sum())
        return float(means[0] - means[1])

    def studies(self, number: int, rng: np.random.Generator) -> Bool[np.ndarray, "n a s u"]:
        """Successes in so many studies."""
        scenes = self.tasks * self.episodes // self.scene
        start = START * rng.normal(size=(number, 1, 1, scenes)) + self.favour * rng.normal(
            size=(number, self.arms, 1, scenes)
        )
        seed = SHARED * rng.normal(size=(number, 1, self.seeds, 1)) + self.spreads[:, None, None] * rng.normal(
            size=(number, self.arms, self.seeds, 1)
        )
        task = np.repeat(self.middle, self.episodes, axis=1)[None, :, None]
        logit = task + np.repeat(start, self.scene, axis=-1) + seed
        return rng.random(logit.shape, dtype=np.float32) < _rate(logit)

    def with_difference(self, points: float) -> World:
        """The same with a first arm that is better by this share, by bisection."""
        low, high = -6.0, 6.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if replace(self, better=middle).truth() < points else (low, middle)
        return replace(self, better=low)

    @property
    def label(self) -> tuple[str, ...]:
        """For tables."""
        more = "".join(f", x{factor:g}" for factor in self.more)
        rates = f"{self.rate:g}" + ("" if self.others is None else f", others {self.others:g}")
        size = f"{self.tasks} x {self.episodes}" + ("" if self.scene == 1 else f" in {self.scene}s")
        return str(self.arms), str(self.seeds), size, rates, f"{self.training:g}{more}", f"{self.favour:g}"


def _rate(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@dataclass(frozen=True)
class Found:
    """Shares of studies, and the median half-width of their intervals, a share too.

    Attributes:
        covered: whose 95 % interval holds the truth.
        tost: whose 90 % interval does.
        decided: whose p is below 5 %.
        half: median half-width.
        own: judged by the spread of the two arms alone.
        equal: called equal within five points.
    """

    covered: float
    tost: float
    decided: float
    half: float
    own: float
    equal: float


def found_in(world: World, studies: int, rng_seed: int = 0) -> Found:
    """Judge so many studies of this world by the pooled rule."""
    rng, truth = np.random.default_rng(rng_seed), world.truth()
    units = world.tasks * world.episodes
    tasks, scenes = np.repeat(np.arange(world.tasks), world.episodes), np.arange(units) // world.scene
    step, rows = max(1, CELLS // (world.arms * world.seeds * units)), []
    for begin in range(0, studies, step):
        values = world.studies(min(step, studies - begin), rng)
        judged = pooled(values, tasks, scenes, successes=True, bounds=(-1, 1))
        (low, high), (tost_low, tost_high) = judged.ends(LEVEL), judged.ends(0.90)
        rows.append(
            np.stack(
                [
                    (low <= truth) & (truth <= high),
                    (tost_low <= truth) & (truth <= tost_high),
                    judged.p < 0.05,
                    (high - low) / 2,
                    judged.own,
                    (tost_low > -MARGIN) & (tost_high < MARGIN),
                ]
            )
        )
    covered, tost, decided, half, own, equal = np.concatenate(rows, axis=1)
    return Found(covered.mean(), tost.mean(), decided.mean(), float(np.median(half)), own.mean(), equal.mean())


def any_decided(world: World, studies: int, rng_seed: int = 1) -> float:
    """Share of studies without a difference that decide one of `FAMILY`, at the level of Holm's first step."""
    names = ("C4", "C2", "C1", "R1", "R2", "R3")[: world.arms]
    values = world.studies(studies, np.random.default_rng(rng_seed))
    tasks = np.repeat(np.arange(world.tasks), world.episodes)
    least = np.ones(studies)
    for pair in FAMILY:
        if {*pair} <= {*names}:
            order = [names.index(arm) for arm in (*pair, *(arm for arm in names if arm not in pair))]
            least = np.minimum(least, pooled(values[:, order], tasks, successes=True).p)
    return float((least < DECLARED.alpha / DECLARED.tests(names)).mean())


ALIKE = tuple(
    World(arms, seeds, rate, training, favour)
    for arms, seeds in ((3, 2), (12, 2), (3, 3), (5, 3), (5, 5), (11, 4), (11, 8), (12, 10))
    for rate, training, favour in (
        *((0.05, 0.0, 0.0), (0.05, 0.4, 0.4), (0.3, 0.0, 0.0), (0.3, 0.4, 0.4)),
        *((0.5, 0.2, 0.0), (0.5, 0.4, 0.4), (0.5, 0.8, 0.0), (0.95, 0.4, 0.4)),
    )
)
UNLIKE_KINDS: tuple[dict[str, Any], ...] = (
    {"training": 0.3, "favour": 0.3, "more": (2.0,)},
    {"training": 0.3, "favour": 0.3, "more": (2.0, 2.0)},
    {"training": 0.3, "favour": 0.3, "more": (4.0,)},
    {"training": 0.3, "favour": 0.3, "more": (4.0, 4.0)},
    {"training": 0.4, "favour": 0.0, "others": 0.05},
    {"training": 0.4, "favour": 0.0, "others": 0.95},
)
UNLIKE = tuple(
    World(arms, seeds, 0.4, **kind)
    for arms, seeds in ((3, 2), (3, 3), (3, 5), (3, 8), (5, 3), (5, 5), (11, 4), (11, 8))
    for kind in UNLIKE_KINDS
)
FEW = tuple(
    World(arms, seeds, rate, 0.4, favour, tasks=tasks, episodes=episodes, scene=scene)
    for arms, seeds in ((5, 3), (11, 8))
    for rate, favour, tasks, episodes, scene in (
        *((0.4, 0.5, 2, 4, 1), (0.1, 0.5, 2, 4, 1), (0.4, 0.5, 1, 6, 1)),
        *((0.4, 1.5, 3, 10, 1), (0.4, 0.5, 3, 20, 2), (0.4, 1.5, 3, 20, 2)),
    )
)
EQUAL = tuple(World(11, seeds, 0.5, training, episodes=20) for seeds in (4, 8) for training in (0.0, 0.2, 0.4))
FAMILY = ("C4", "C2"), ("C4", "C1"), ("R1", "R2"), ("R1", "R3")  # by success, of the package's own declaration
FAMILIES = tuple(
    World(arms, seeds, 0.4, 0.3, 0.3, more=more)
    for arms in (3, 6)
    for seeds in (2, 3, 5, 8)
    for more in ((), (4.0,), (4.0, 4.0))
)
LABELS = "arms", "seeds", "starts", "rate", "between trainings", "favour"


def tables(studies: int) -> Iterator[TextTable]:
    """Coverage where arms are alike, where they are not, with few starts; how often equal arms are called equal."""
    for title, worlds in (
        ("The pooled interval: arms alike", ALIKE),
        ("The pooled interval: one or two arms vary more, or others succeed less", UNLIKE),
        ("The pooled interval: few starts, starts that favour, two starts in a scene", FEW),
    ):
        found = [(world, found_in(world, studies)) for world in worlds]
        covered = [f.covered for _, f in found]
        yield TextTable(
            title,
            (*LABELS, "95 %", "90 % (TOST)", "decided", "half-width, points", "own spread"),
            [
                (
                    *world.label,
                    f"{100 * f.covered:.1f}",
                    f"{100 * f.tost:.1f}",
                    f"{100 * f.decided:.1f}" if abs(world.truth()) < 1e-9 else "–",
                    f"{100 * f.half:.1f}",
                    f"{100 * f.own:.0f}",
                )
                for world, f in found
            ],
            f"Covered on average: {100 * np.mean(covered):.1f}; at worst {100 * min(covered):.1f}.",
        )
    yield TextTable(
        "Equal within five points",
        (*LABELS, "called equal: truly equal", "truly five points apart"),
        [
            (
                *world.label,
                f"{100 * found_in(world, studies).equal:.1f}",
                f"{100 * found_in(world.with_difference(MARGIN), studies).equal:.1f}",
            )
            for world in EQUAL
        ],
    )
    yield TextTable(
        "The package's own declaration: any of its comparisons of success decided, without a difference",
        (*LABELS, "decided"),
        [(*world.label, f"{100 * any_decided(world, studies):.1f}") for world in FAMILIES],
        "C4, C2 and C1, or R1, R2 and R3 too, corrected for all that is declared; C4 and C2 may vary more.",
    )
