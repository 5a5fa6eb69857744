"""What intervals and p-values decide: corrections, sizes of studies, equivalence and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from la_reconvla.analysis.intervals import Interval
from la_reconvla.errors import UserError

Verdict = Literal["supported", "refuted", "inconclusive", "interim", "exploratory", "check"]
"""The first two decide. Before the declared size a claim is interim, beyond it exploratory; a check is no claim."""
Equivalence = Literal["equivalent", "different", "undecided"]
FEW_SEEDS = 5  # below, how much training varies is hardly measured, and intervals are wide for it


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a declared family of p-values, in the order given (Holm 1979)."""
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors), 1.0)
    return adjusted.tolist()


def equivalence(tost: Interval, margin: float) -> Equivalence:
    """Two one-sided tests: "equivalent" if the 90 % interval is strictly inside +-`margin`, "different" if outside.

    Raises:
        UserError: if `margin` is not positive.
    """
    if margin <= 0:
        raise UserError(f"an equivalence margin must be positive, got {margin}")
    if -margin < tost.low and tost.high < margin:
        return "equivalent"
    return "different" if tost.low > margin or tost.high < -margin else "undecided"


def verdict(
    interval: Interval,
    direction: Literal["above", "below"] = "above",
    threshold: float = 0.0,
    *,
    p: float | None = None,
    alpha: float = 0.05,
) -> Verdict:
    """Judge "the difference is above (below) `threshold`" by an interval, and by a corrected p-value where given.

    A hypothesis is decided, either way, only if the whole interval is on one side of the threshold and `p`, if given,
    is below `alpha`. Everything else is inconclusive.
    """
    low, high = (interval.low, interval.high) if direction == "above" else (-interval.high, -interval.low)
    limit = threshold if direction == "above" else -threshold
    if p is not None and p >= alpha:
        return "inconclusive"
    if low > limit:
        return "supported"
    return "refuted" if high < limit else "inconclusive"
