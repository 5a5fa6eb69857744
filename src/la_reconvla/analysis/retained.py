"""What share of its success an arm retains on another suite, compared between two arms by the pooled rule.

A loss in points rewards an arm that is bad at home: it has less to lose. The share that is retained, E / H of success
elsewhere and at home, does not. Its deviation under one seed is, to first order, that of E / H - H E' / H'^2, where E'
and H' are the arm's rates over all seeds (the delta method). These are means over starts of both places, to which the
pooled rule applies. But they carry 1 / H, and with it the variance that trainings and episodes give them: that of an
arm with 10 % at home is some 50 times that of one with 70 %. So only arms whose success at home is near that of both of
the two tell how much trainings vary; where there is none, the two alone do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from la_reconvla.analysis.evidence import Unit, scene_of
from la_reconvla.analysis.pooled import Labels, Student, lacking, least_variance, pooled

Values = Mapping[str, Mapping[Unit, float]]  # success of each arm
NEAR = 2.0  # most that rates at home of arms may differ by, as a ratio, for their variances to be pooled


@dataclass(frozen=True)
class Retained:
    """Two arms on one other suite; rates are shares.

    Attributes:
        share: difference of the shares retained.
        elsewhere: difference of success there.
        shares: share retained by either arm.
        home: success of either at home.
        away: success of either elsewhere.
        n: paired episodes elsewhere.
        seeds: training seeds.
        starts: of each task at home and elsewhere, of the task with the fewest.
        pooled: whether other arms tell how much trainings vary.
    """

    share: Student
    elsewhere: Student
    shares: tuple[float, float]
    home: tuple[float, float]
    away: tuple[float, float]
    n: int
    seeds: int
    starts: tuple[int, int]
    pooled: bool


def retained(a: str, b: str, home: Values, away: Values, least: float) -> Retained | None:
    """Compare what `a` and `b` retain; None without two seeds and enough starts of either place that both arms met.

    Args:
        a: first arm.
        b: second arm.
        home: success at home.
        away: success elsewhere.
        least: rate at home below which an arm retains nothing that can be measured: where a or b is below it, there is
            nothing to compare.
    """
    places, pair = (home, away), (a, b)
    met = [[key for key in place[a] if key in place[b]] for place in places]
    seeds = [seed for seed in dict.fromkeys(k[0] for k in met[0]) if seed in {k[0] for k in met[1]}]
    starts = [
        [start for start in dict.fromkeys(k[1:] for k in of) if all((seed, *start) in of for seed in seeds)]
        for of in (dict.fromkeys(keys) for keys in met)
    ]
    keys = [[(seed, *start) for seed in seeds for start in of_place] for of_place in starts]
    both = list(zip(places, keys, strict=True))
    whole = [arm for arm in home if all(key in place.get(arm, ()) for place, of in both for key in of)]
    size, tasks = len(starts[0]), [("home", t) for t, _ in starts[0]] + [("away", t) for t, _ in starts[1]]
    scenes = [scene_of(start) for of_place in starts for _, start in of_place]
    if any(lacking(2, len(seeds), tasks[of], scenes[of], least=2) for of in (slice(size), slice(size, None))):
        return None
    succeed = {arm: np.mean([home[arm][key] for key in keys[0]]) for arm in whole}
    highest, lowest = (end(succeed[arm] for arm in pair) for end in (max, min))
    arms = [a, b, *(arm for arm in whole if arm not in pair and highest <= NEAR * succeed[arm] <= NEAR**2 * lowest)]
    here, there = (_grid(place, arms, of, len(seeds)) for place, of in both)
    h, e = here.mean((1, 2)), there.mean((1, 2))
    if min(h[:2]) < least:
        return None
    share, elsewhere = shares(here, there, tasks, scenes)
    return Retained(
        share,
        elsewhere,
        (float(e[0] / h[0]), float(e[1] / h[1])),
        (float(h[0]), float(h[1])),
        (float(e[0]), float(e[1])),
        len(keys[1]),
        len(seeds),
        (min(Counter(tasks[:size]).values()), min(Counter(tasks[size:]).values())),
        len(arms) > len(pair),
    )


def shares(
    here: Float[np.ndarray, "... a s u"], there: Float[np.ndarray, "... a s v"], tasks: Labels, scenes: Labels
) -> tuple[Student, Student]:
    """Differences of the first two arms: of the shares that they retain, and of their success elsewhere.

    Args:
        here: success at home, 0 or 1; every arm succeeds in some.
        there: success elsewhere.
        tasks: of each start, those at home first.
        scenes: the same.
    """
    (h, e), size, total = (place.mean((-2, -1)) for place in (here, there)), here.shape[-1], len(tasks)
    of_home, of_away = e / h**2, 1 / h
    values = [
        -here * of_home[..., None, None] * total / size,
        there * of_away[..., None, None] * total / (total - size),
    ]
    found = pooled(np.concatenate(values, axis=-1), tasks, scenes, successes=False)
    least = sum(least_variance(place, (of[..., 0], of[..., 1])) for place, of in ((here, of_home), (there, of_away)))
    share = replace(found, estimate=(e / h)[..., 0] - (e / h)[..., 1], error=np.sqrt(np.maximum(found.error**2, least)))
    return share, pooled(there, tasks[size:], scenes[size:], successes=True, bounds=(-1, 1))


def _grid(place: Values, arms: Sequence[str], keys: Sequence[Unit], seeds: int) -> Float[np.ndarray, "a s u"]:
    return np.array([[place[arm][key] for key in keys] for arm in arms]).reshape(len(arms), seeds, -1)
