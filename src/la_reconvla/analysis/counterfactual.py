"""Which object is moved when one state is given two instructions: does the policy follow its instruction?

Wide starts come in pairs, 2j and 2j + 1: one initial state, two things that are asked for
(`la_reconvla.sim.placements`). So do official states in suites that end in ``_counterfactual``
(`la_reconvla.sim.suite_changes`). What is scored is the object that was moved **first**
(`la_reconvla.sim.rollout.StageTracker`), which needs no success and tells a policy that follows its words from one that
always goes for the same thing: that one prefers what was asked for in half of the episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from la_reconvla.analysis.bootstrap import crossed_sum, drawn_counts, percentiles, student_interval
from la_reconvla.analysis.intervals import Interval, wilson
from la_reconvla.analysis.measures import Counterfactual, Rate
from la_reconvla.episodes import EpisodeRecord

Pair = tuple[EpisodeRecord, EpisodeRecord]
Key = tuple[int | None, str]  # seed, scene


def pairs(episodes: Iterable[EpisodeRecord]) -> dict[Key, Pair]:
    """Both episodes of every (seed, scene) that has two."""
    found: dict[Key, dict[int, EpisodeRecord]] = {}
    for record in episodes:
        scene, which = record.start.pair
        found.setdefault((record.label.seed, scene), {})[which] = record
    return {key: (two[0], two[1]) for key, two in found.items() if len(two) == 2}


def counterfactual(episodes: Sequence[EpisodeRecord]) -> Counterfactual | None:
    """Counts over all pairs, and how often the asked-for thing was preferred to the other; None without pairs.

    The interval of the preference is the hull of Wilson's, of a bootstrap that draws seeds and, crossed with them,
    scenes (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122), so that the two episodes of a scene stay
    together, and of Student's t over the seeds' own preferences.

    Args:
        episodes: records of one policy, all seeds; those that are in no pair are left out.
    """
    found = pairs(episodes)
    if not found:
        return None
    asked, other, else_moved, neither = (int(part.sum()) for part in _choices(found, "moved"))
    followed = sum(all(r.moved in r.asked for r in two) for two in found.values())
    chosen = (_preference(found, way) for way in ("moved", "touched", "held"))
    return Counterfactual(len(found), asked, other, else_moved, neither, followed, *chosen)


def _choices(found: Mapping[Key, Pair], way: str) -> Int[np.ndarray, "4 seeds scenes"]:
    """How many episodes of each pair came first to what was asked for, to the other thing, to another, to none."""
    seeds, scenes = (sorted({key[i] for key in found}, key=str) for i in (0, 1))
    row, column = ({label: at for at, label in enumerate(labels)} for labels in (seeds, scenes))
    counts = np.zeros((4, len(seeds), len(scenes)), dtype=int)
    for (seed, scene), two in found.items():
        for record, partner in (two, two[::-1]):
            first = record.first_thing(way)
            which = (first in record.asked, first in partner.asked, first is not None, True)
            counts[which.index(True), row[seed], column[scene]] += 1
    return counts


def _preference(found: Mapping[Key, Pair], way: str) -> Rate | None:
    asked, other, *_ = _choices(found, way)
    yes, no = int(asked.sum()), int(other.sum())
    if not yes + no:
        return None
    interval = wilson(yes, yes + no).hull(_bootstrap(asked, asked + other))
    for_it, both = asked.sum(1), (asked + other).sum(1)
    if over_seeds := student_interval(for_it[both > 0] / both[both > 0]):
        interval = interval.hull(Interval(max(over_seeds.low, 0.0), min(over_seeds.high, 1.0)))
    return Rate(yes / (yes + no), interval.low, interval.high, yes, yes + no)


def _bootstrap(part: np.ndarray, whole: np.ndarray) -> Interval:
    """95 % interval of sum(part) / sum(whole), counts [seeds, scenes], both drawn with replacement."""
    above, below = (crossed_sum(counts, *_drawn(*part.shape)) for counts in (part, whole))
    return percentiles(above[below > 0] / below[below > 0])


@functools.lru_cache(maxsize=1)  # the arms of a study have the same seeds and scenes
def _drawn(seeds: int, scenes: int) -> tuple[Int[np.ndarray, "r s"], Int[np.ndarray, "r c"]]:
    rng = np.random.default_rng(0)
    return drawn_counts(seeds, rng), drawn_counts(scenes, rng)
