"""Saliency of the action tokens: where the policy looks when it acts."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from la_reconvla.contracts import Features
from la_reconvla.method.saliency import SaliencySource, saliency


@dataclass(frozen=True)
class ActionRows(SaliencySource):
    """The mean map of the action tokens' rows. Not in the published method.

    They are live in every layer, since the action head reads them (`docs/method.md`), but they read the robot state and
    the words only through the prefix.
    """

    label = "actions"
    attention_rows = "actions"

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """`features` must hold the rows that `attention_rows` names."""
        return saliency(features.attention, features.token_mask)
