"""Which arms and starts of a study tell how much trainings vary: one choice for its intervals and for its power."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from la_reconvla.analysis.evidence import Evidence, Unit, by_start, scene_of
from la_reconvla.analysis.measures import EPISODE_METRICS
from la_reconvla.analysis.pooled import between_trainings, lacking


@dataclass(frozen=True)
class Grid:
    """Values of arms that met the same starts under the same seeds.

    Attributes:
        values: of each arm, seed and start.
        tasks: of each start.
        scenes: of each start.
    """

    values: Float[np.ndarray, "a s u"]
    tasks: tuple[str, ...]
    scenes: tuple[str, ...]


def grid(
    of_arms: Mapping[str, Mapping[Unit, float]], keys: Iterable[Unit], metric: str, first: Sequence[str] = ()
) -> Grid | str:
    """The values of `first` and then of all other arms that have all of `keys`, or why they cannot be pooled.

    Args:
        of_arms: values of each arm.
        keys: seed, task and start of what is compared.
        metric: of what these are, see `la_reconvla.analysis.comparisons.Comparison`.
        first: arms that have all of `keys`.
    """
    wanted = dict.fromkeys(keys)
    seeds, starts = list(dict.fromkeys(key[0] for key in wanted)), list(dict.fromkeys(key[1:] for key in wanted))
    if len(wanted) != len(seeds) * len(starts):
        return "not every seed met every start"
    cells = [(seed, *start) for seed in seeds for start in starts]
    arms = [*first, *(arm for arm in of_arms if arm not in first and all(key in of_arms[arm] for key in cells))]
    tasks = tuple(task for task, _ in starts)
    scenes = tuple(scene_of(start) if metric in EPISODE_METRICS else start for _, start in starts)
    if why := lacking(len(arms), len(seeds), tasks, scenes):
        return why
    values = np.array([[of_arms[arm][key] for key in cells] for arm in arms])
    return Grid(values.reshape(len(arms), len(seeds), len(starts)), tasks, scenes)


def spread_of_trainings(evidence: Mapping[str, Evidence]) -> float | None:
    """Standard deviation of an arm's success between its trainings, a share, measured over these arms; None if too few.

    Arms that lack seeds or starts of the others are left out, or what they lack is: what tells more of trainings.
    """
    values = {arm: by_start(found.episodes, "tsr") for arm, found in evidence.items()}
    grids = [grid(values, keys, "tsr") for keys in dict.fromkeys(tuple(of_arm) for of_arm in values.values())]
    known = [found for found in grids if isinstance(found, Grid)]
    if not known:
        return None
    most = max(known, key=lambda found: ((len(found.values) - 1) * (found.values.shape[1] - 1), found.values.shape[2]))
    return between_trainings(most.values, most.tasks, most.scenes)
