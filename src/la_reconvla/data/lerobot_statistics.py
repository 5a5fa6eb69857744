"""The statistics that a LeRobotDataset keeps of its columns, of each episode and of all: exact, pictures included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


class Shades:
    """How often each value of each colour occurs in some pictures: all that their statistics need."""

    def __init__(self) -> None:
        self.pictures = 0
        self.counts: Int64[np.ndarray, "3 256"] = np.zeros((3, 256), np.int64)

    def __add__(self, other: Shades) -> Shades:
        result = Shades()
        result.pictures, result.counts = self.pictures + other.pictures, self.counts + other.counts
        return result

    def seen(self, pictures: Iterator[UInt8[np.ndarray, "H W 3"]]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The same pictures, counted as they pass."""
        for picture in pictures:
            self.counts += np.stack(
                [np.bincount(colour.ravel(), minlength=256) for colour in np.moveaxis(picture, 2, 0)]
            )
            self.pictures += 1
            yield picture

    def statistics(self) -> dict[str, Any]:
        """Of values in [0, 1], a number a colour in the shape [3 1 1]; ``count`` is that of the pictures."""
        values = np.arange(256) / 255
        total, below = self.counts[0].sum(), self.counts.cumsum(1)
        mean = self.counts @ values / total

        def at(rank: int) -> Float[np.ndarray, " 3"]:
            return values[(below <= rank).sum(1)]

        found = {"min": at(0), "max": at(total - 1), "mean": mean}
        found["std"] = np.sqrt(((values - mean[:, None]) ** 2 * self.counts).sum(1) / total)
        for name, share in QUANTILES.items():  # between two values in proportion, as numpy's
            place = share * (total - 1)
            low, high = at(int(place)), at(min(int(place) + 1, total - 1))
            found[name] = low + (high - low) * (place - int(place))
        shaped = {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}
        return {**shaped, "count": [self.pictures]}


def statistics(rows: Float[np.ndarray, "T d"]) -> dict[str, Any]:
    """Of numbers, a number a column."""
    rows = rows.astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    return {**{name: value.tolist() for name, value in found.items()}, "count": [len(rows)]}
