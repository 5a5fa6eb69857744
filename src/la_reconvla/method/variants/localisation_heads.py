"""Saliency of a few heads, chosen by what they do on training frames and never by labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.ndimage import label as connected
from torch import Tensor

from la_reconvla.contracts import Features
from la_reconvla.errors import UserError
from la_reconvla.method.saliency import present
from la_reconvla.method.variants.attention_heads import per_head
from la_reconvla.method.variants.learned import NOT_LEARNED, LearnedSource

ABOVE = 2.0  # a patch belongs to a blob of a head's map from so many times the map's mean


def elbow(values: Float[np.ndarray, " m"]) -> float:
    """The value at the elbow of the sorted curve: the point farthest from the line between its ends."""
    curve = np.sort(values)
    return float(curve[np.abs(curve - np.linspace(curve[0], curve[-1], len(curve))).argmax()])


def spatial_entropy(maps: Float[np.ndarray, "*m r c"]) -> Float[np.ndarray, "*m"]:
    """Entropy (nats) of how a map's mass is shared among its blobs; 0 for a single one, infinite for none.

    A blob is a set of 8-connected patches above `ABOVE` times the map's mean; its share is its excess over that.
    """
    found = np.full(maps.shape[:-2], np.inf)
    for at in np.ndindex(*found.shape):
        excess = np.maximum(maps[at] - ABOVE * maps[at].mean(), 0.0)
        labelled: Any = connected(excess > 0, structure=np.ones((3, 3)))
        blobs, count = labelled
        if count:
            share = np.bincount(blobs.ravel(), excess.ravel())[1:] / excess.sum()
            found[at] = -(share * np.log(share)).sum()
    return found


@dataclass(frozen=True)
class LocalisationHeads(LearnedSource):
    """The mean map of a few heads that look at the image, and at one place of it (Kang et al., arXiv 2503.06287).

    `fit` chooses them on training frames without labels:

    1. Heads whose attention to the image, summed over patches and averaged over frames, reaches the elbow of the sorted
       curve over all heads (at least `count` heads stay).
    2. In each frame the `count` of these with the lowest spatial entropy get a vote.
    3. The `count` heads with most votes; of equal ones, that with the lower mean rank of entropy, then the first.

    Departures: the rows are the instruction's, averaged, not the last token's; the pool is the layers that the probe
    reads; maps are not smoothed (a grid here may be 4 x 4); and since weights train, the choice is made anew every
    `refresh` steps. It is kept with the policy, as pairs (layer among those read, head).

    Attributes:
        count: heads chosen; the paper finds that 3 suffice.
        frames: training frames that they are chosen on.
        refresh: steps between choices.
    """

    count: int = 3
    frames: int = 64  # pyright: ignore[reportIncompatibleVariableOverride]
    refresh: int = 100  # pyright: ignore[reportIncompatibleVariableOverride]
    label = "heads"

    def __post_init__(self):
        if min(self.count, self.frames, self.refresh) < 1:
            raise ValueError("count, frames and refresh must be at least 1")

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A pair for each head."""
        return (self.count, 2)

    def fit(self, batches: Iterable[Features]) -> Int64[Tensor, "m 2"]:
        """Pairs (index among the layers read, head), the most voted first.

        Raises:
            UserError: if there are fewer heads than are to be chosen.
        """
        parts: list[np.ndarray] = []
        for features in batches:
            parts.append(per_head(features).reshape(-1, *_lh(features), *features.grid).cpu().numpy())
        maps = np.concatenate(parts)  # [b l h r c]
        b, layers, heads = maps.shape[:3]
        maps = maps.reshape(b, layers * heads, *maps.shape[3:])
        if self.count > layers * heads:
            raise UserError(f"{self.count} heads cannot be chosen of {layers * heads}: ask for fewer")
        total = maps.sum(axis=(2, 3)).mean(0)
        pool = np.flatnonzero(total >= min(elbow(total), np.sort(total)[-self.count]))
        rank = spatial_entropy(maps[:, pool]).argsort(axis=1, kind="stable").argsort(axis=1)
        votes = (rank < self.count).sum(0)
        best = pool[np.lexsort((pool, rank.mean(0), -votes))[: self.count]]
        return torch.from_numpy(np.stack(np.divmod(best, heads), axis=1)).long()

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """Mean of the heads that were chosen.

        Raises:
            ValueError: as `saliency`, or before heads were chosen: never the mean of all in their place.
        """
        state = features.saliency_state
        if state is None or bool((state == NOT_LEARNED).any()):
            raise ValueError("no heads were chosen: fit this source on training frames first")
        layer, head = state.to(device="cpu").unbind(-1)
        return per_head(features)[:, layer, head].mean(1)


def _lh(features: Features) -> tuple[int, int]:
    attention, _ = present(features.attention, features.token_mask)
    return attention.shape[1], attention.shape[2]
