"""CALVIN's average length: how many subtasks in a row a policy does, with intervals over initial states.

The 1000 sequences begin in 192 states, five or six in each, and what a policy does with a state it does alike in all of
them. So the bootstrap draws states with all their sequences; with several seeds, crossed with these, and the interval
is the hull with Student's t over the seeds (`la_reconvla.analysis.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from la_reconvla.analysis.bootstrap import crossed_sum, drawn_counts, ends, over_seeds, two_sided
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.intervals import LEVEL, Interval, wilson
from la_reconvla.episodes import SequenceRecord
from la_reconvla.errors import UserError

LENGTH = 5  # subtasks of a sequence
Runs = Sequence[Sequence[SequenceRecord]]  # of one policy, the records of each seed


@dataclass(frozen=True)
class AverageLength:
    """What a policy does in a row.

    Attributes:
        mean: subtasks, 0 to 5; of a difference -5 to 5.
        low: lower end of its 95 % interval.
        high: upper end.
        in_a_row: shares of sequences with at least 1, 2, ... 5 subtasks done; of a difference the differences.
        sequences: how many, of each seed.
        states: initial states of these.
        seeds: trained policies.
    """

    mean: float
    low: float
    high: float
    in_a_row: tuple[float, ...]
    sequences: int
    states: int
    seeds: int


@dataclass(frozen=True)
class LengthDifference(AverageLength):
    """Two policies.

    Attributes:
        p: two-sided, of "no difference", from the bootstrap and the t that the interval joins. Never below the least
            that flipping the sign of each state's difference could give, as of
            `la_reconvla.analysis.paired.paired_means`; nor below 0.05 where the interval, which is wider where all
            states are alike, contains zero.
    """

    p: float


@dataclass(frozen=True)
class SequenceResults:
    """What policies did in a row in CALVIN's sequences.

    Attributes:
        count: sequences of each policy, the first of the published list.
        egl: whether a GPU drew what they saw, as it drew the data.
        policies: of each arm, of the policy without image, and of random actions.
        comparisons: average lengths (``average_length``) of every two arms, corrected together by Holm's method, and
            then of each arm and the policy without image.
    """

    count: int
    egl: bool
    policies: dict[str, AverageLength]
    comparisons: tuple[Comparison, ...]


def average_length(runs: Runs) -> AverageLength:
    """Average length of one policy.

    Raises:
        UserError: seeds have other sequences, or there is none.
    """
    completed, states = _table(runs)
    return _found(completed, states, (completed[..., None] > np.arange(LENGTH)).mean((0, 1)), lowest=0)[0]


def difference(a: Runs, b: Runs) -> LengthDifference:
    """Average length of `a` minus that of `b`, in pairs of equal sequences and seeds.

    Raises:
        UserError: as `average_length`, or they differ in sequences or in the number of seeds.
    """
    (first, states), (second, others) = _table(a), _table(b)
    if first.shape != second.shape or (states != others).any():
        raise UserError("two policies are compared on the same sequences and as many seeds: evaluate both on them")
    rows = [(table[..., None] > np.arange(LENGTH)).mean((0, 1)) for table in (first, second)]
    found, p = _found(first - second, states, rows[0] - rows[1], lowest=-LENGTH)
    return LengthDifference(**vars(found), p=p)


def _table(runs: Runs) -> tuple[Float[np.ndarray, "s q"], Int[np.ndarray, " q"]]:
    """Subtasks done under each seed in each sequence, and the states that these begin in."""
    ordered = [sorted(records, key=lambda record: record.index) for records in runs]
    indices = [[record.index for record in records] for records in ordered]
    if not indices or not indices[0] or any(other != indices[0] for other in indices):
        raise UserError("an average length needs the same sequences under every seed, and at least one: evaluate again")
    if len(set(indices[0])) < len(indices[0]):
        raise UserError("a sequence is recorded twice: remove one of its lines from the records")
    completed = np.array([[record.completed for record in records] for records in ordered], dtype=float)
    return completed, np.array([record.state for record in ordered[0]])


def _found(
    values: Float[np.ndarray, "s q"], states: Int[np.ndarray, " q"], in_a_row: Float[np.ndarray, "5"], lowest: int
) -> tuple[AverageLength, float]:
    """The mean with its interval, and the p of "it is zero"."""
    _, unit = np.unique(states, return_inverse=True)
    interval, p = _interval(values, unit, lowest)
    found = AverageLength(
        mean=float(values.mean()),
        low=interval.low,
        high=interval.high,
        in_a_row=tuple(float(share) for share in in_a_row),
        sequences=values.shape[1],
        states=int(unit.max()) + 1,
        seeds=values.shape[0],
    )
    return found, max(p, 2.0 ** (1 - found.states), 1 - LEVEL if found.low <= 0 <= found.high else 0)


def _interval(values: Float[np.ndarray, "s q"], unit: Int[np.ndarray, " q"], lowest: int) -> tuple[Interval, float]:
    """Of the mean, over new seeds and states. Where all states are alike, as if one more could have been otherwise.

    A bootstrap of equal values, as of one state, has no width, however few they are: then Wilson's upper limit of "0 of
    so many states" is the share that may do as badly or as well as can be. Beside it the p of the same means.
    """
    seeds, states = len(values), int(unit.max()) + 1
    sums = np.stack([np.bincount(unit, row, minlength=states) for row in values])
    of_states = sums / np.bincount(unit)
    rng = np.random.default_rng(0)
    by_seed, by_unit = drawn_counts(seeds, rng), drawn_counts(states, rng)
    means = crossed_sum(sums, by_seed, by_unit) / (seeds * (by_unit @ np.bincount(unit)))
    spread = over_seeds(values.ravel(), np.repeat(np.arange(seeds), values.shape[1]))
    p = float(two_sided(means, spread))
    if np.ptp(of_states) == 0:
        share, value = wilson(0, states).high, float(of_states[0, 0])
        return Interval(value - (value - lowest) * share, value + (LENGTH - value) * share), p
    low, high = ends(means, spread, LEVEL)
    return Interval(max(float(low), lowest), min(float(high), LENGTH)), p  # Student's t knows no ends
