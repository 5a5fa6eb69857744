"""Which object is moved when one state is given two instructions: does the policy follow its instruction?

Wide starts come in pairs, 2j and 2j + 1: one initial state, two things that are asked for
(`la_reconvla.sim.placements`). What is scored is the object that was moved **first**
(`la_reconvla.sim.rollout.StageTracker`), which needs no success and tells a policy that follows its words from one that
always goes for the same thing: that one prefers what was asked for in half of the episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from la_reconvla.analysis.bootstrap import crossed_sum, drawn_counts, percentiles, student_interval
from la_reconvla.analysis.intervals import Interval, wilson
from la_reconvla.analysis.measures import Counterfactual, Rate
from la_reconvla.episodes import EpisodeRecord

Pair = tuple[EpisodeRecord, EpisodeRecord]


def pairs(episodes: Iterable[EpisodeRecord]) -> dict[tuple[int | None, str], Pair]:
    """Both episodes of every (seed, scene) that has two."""
    found: dict[tuple[int | None, str], dict[int, EpisodeRecord]] = {}
    for record in episodes:
        start = record.start
        if start.placement == "wide":
            scene = f"{start.suite}/{start.task}/{start.split}/{start.index // 2}"
            found.setdefault((record.label.seed, scene), {})[start.index % 2] = record
    return {key: (two[0], two[1]) for key, two in found.items() if len(two) == 2}


def counterfactual(episodes: Sequence[EpisodeRecord], rng_seed: int = 0) -> Counterfactual | None:
    """Counts over all pairs, and how often the asked-for thing was preferred to the other; None without pairs.

    The interval of the preference is the hull of Wilson's, of a bootstrap that draws seeds and, crossed with them,
    scenes (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122), so that the two episodes of a scene stay
    together, and of Student's t over the seeds' own preferences.

    Args:
        episodes: records of one policy, all seeds; those that are in no pair are left out.
        rng_seed: fixes the bootstrap.
    """
    found = pairs(episodes)
    if not found:
        return None
    seeds, scenes = (sorted({key[i] for key in found}, key=str) for i in (0, 1))
    asked, other = np.zeros((2, len(seeds), len(scenes)))
    else_moved = neither = followed = 0
    for (seed, scene), two in found.items():
        at = seeds.index(seed), scenes.index(scene)
        for record, partner in (two, two[::-1]):
            asked[at] += record.moved == record.start.target
            other[at] += record.moved == partner.start.target
            neither += record.moved is None
            else_moved += record.moved not in (record.start.target, partner.start.target, None)
        followed += all(record.moved == record.start.target for record in two)
    yes, no = int(asked.sum()), int(other.sum())
    preference = None
    if yes + no:
        interval = wilson(yes, yes + no).hull(_bootstrap(asked, asked + other, rng_seed))
        for_it, both = asked.sum(1), (asked + other).sum(1)
        if over_seeds := student_interval(for_it[both > 0] / both[both > 0]):
            interval = interval.hull(Interval(max(over_seeds.low, 0.0), min(over_seeds.high, 1.0)))
        preference = Rate(yes / (yes + no), interval.low, interval.high, yes, yes + no)
    return Counterfactual(len(found), yes, no, else_moved, neither, followed, preference)


def _bootstrap(part: np.ndarray, whole: np.ndarray, rng_seed: int) -> Interval:
    """95 % interval of sum(part) / sum(whole), counts [seeds, scenes], both drawn with replacement."""
    rng = np.random.default_rng(rng_seed)
    by_seed, by_scene = (drawn_counts(n, rng) for n in part.shape)
    above, below = (crossed_sum(counts, by_seed, by_scene) for counts in (part, whole))
    return percentiles(above[below > 0] / below[below > 0])
