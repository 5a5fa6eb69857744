"""Intervals of success rates and of their differences, from counts alone.

What simulations need is computed for many studies at once: leading axes ``...`` are studies of one design.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.stats import norm

from la_reconvla.errors import UserError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A closed interval of plausible values."""

    low: float
    high: float

    def within(self, low: float, high: float) -> Interval:
        """The interval, cut to the values that are possible."""
        return Interval(max(self.low, low), min(self.high, high))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that contains both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Agreement:
    """The 2 x 2 table of paired successes. `only_a` + `only_b` are the discordant pairs that McNemar's test reads."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_a + self.only_b + self.neither


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a success rate (Wilson 1927, doi:10.2307/2276774).

    Raises:
        UserError: without trials, or with more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise UserError(f"a success rate needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    low, high = _wilson(successes, trials, LEVEL)
    return Interval(float(low), float(high))


def _wilson(x: Int[np.ndarray, "..."] | int, n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of Wilson's interval: the rates p with |x/n - p| = z sqrt(p (1 - p) / n)."""
    z = norm.ppf((1 + level) / 2)
    x = np.asarray(x, dtype=float)
    centre, reach = x + z * z / 2, z * np.sqrt(x * (n - x) / n + z * z / 4)
    return np.where(x == 0, 0.0, (centre - reach) / (n + z * z)), np.where(x == n, 1.0, (centre + reach) / (n + z * z))


def newcombe_paired(table: Agreement) -> Interval:
    """Newcombe's 95 % score interval (method 10) of the difference of two paired proportions, episodes independent."""
    low, high = newcombe_ends(table.both, table.only_a, table.only_b, table.neither, LEVEL)
    return Interval(float(low), float(high))


def newcombe_ends(both, only_a, only_b, neither, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of `newcombe_paired`, for many tables of equal size at once."""
    both, only_a, only_b, neither = (np.asarray(count) for count in (both, only_a, only_b, neither))
    n = int((both + only_a + only_b + neither).flat[0])
    first, second = both + only_a, both + only_b
    p, q = first / n, second / n
    scale = np.sqrt(1.0 * first * (n - first) * second * (n - second))
    covariance = 1.0 * both * neither - 1.0 * only_a * only_b
    covariance = np.where(covariance > 0, np.maximum(covariance - n / 2, 0), covariance)
    phi = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)

    def reach(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x * x - 2 * phi * x * y + y * y, 0.0))

    return _combined(p, _wilson(first, n, level), q, _wilson(second, n, level), reach)


def square_and_add(x: float, of_x: Interval, y: float, of_y: Interval) -> Interval:
    """Interval of x - y from those of both alone, as if they were independent.

    The square-and-add rule of Newcombe (1998), method 10, for any two intervals (MOVER: Zou and Donner 2008,
    doi:10.1002/sim.3095); `newcombe_paired` is the same rule for two rates that agree on the same starts.
    """
    return Interval(*_combined(x, (of_x.low, of_x.high), y, (of_y.low, of_y.high), math.hypot))


def _combined(x: Any, of_x: tuple[Any, Any], y: Any, of_y: tuple[Any, Any], reach: Callable) -> tuple[Any, Any]:
    """Both ends of the interval of x - y; `reach` adds the squares of two distances, less what they share."""
    (x_low, x_high), (y_low, y_high) = of_x, of_y
    return x - y - reach(x - x_low, y_high - y), x - y + reach(x_high - x, y - y_low)
