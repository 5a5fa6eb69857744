"""Step 1: attention -> one score per patch::

A[n] = mean over layers l, heads h and counted tokens t of a[l, h, t -> n]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from la_reconvla.contracts import AttentionRows, Features


def saliency(
    attention: Float[Tensor, "b l h t n"] | None, token_mask: Bool[Tensor, "b t"] | None
) -> Float[Tensor, "b n"]:
    """Average the attention that the instruction pays to each image patch.

    Args:
        attention: attention weights of t text tokens over n image patches, for l layers and h heads.
        token_mask: True for the instruction's own tokens. Padding, the begin-of-sequence token and the closing newline
            are False: the latter two are attention sinks that look alike under every instruction.

    Returns:
        float32 [b n], detached: the mask follows the attention, no gradient flows through the choice. It sums to the
        share of its attention that the instruction spends on the image, at most 1.

    Raises:
        ValueError: if there is no attention, or a sample has no counted token: a mask would be made of nothing.
    """
    attention, token_mask = present(attention, token_mask)
    per_token = attention.mean(dim=(1, 2))  # [b t n]
    counted = per_token.masked_fill(~token_mask[..., None], 0.0)  # not a product: padding may be NaN
    return counted.sum(1) / token_mask.sum(1, keepdim=True)


def present(attention: Tensor | None, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, the attention detached and in float32, if every sample has a token that counts."""
    if attention is None or token_mask is None:
        raise ValueError("the backbone returned no attention: ask it for the probe's rows")
    if not bool(token_mask.any(dim=1).all()):
        raise ValueError("an instruction has no token that counts: saliency would be made of nothing")
    return attention.detach().float(), token_mask


class SaliencySource:
    """Which part of the attention the score is made of: a frozen dataclass. `Mean` is the published one.

    A source never gets a mask, a box or the name of what it should find.
    """

    label: str  # for tables, one word
    attention_rows: AttentionRows = "instruction"  # what to ask of the backbone

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """float32 [b n], not negative, detached."""
        raise NotImplementedError

    def require(self, instructions: Iterable[str]) -> None:
        """Refuse, before long work, instructions that the source can make nothing of (`UserError`)."""


@dataclass(frozen=True)
class Mean(SaliencySource):
    """The published score: the mean over tokens, heads and layers; see `saliency`."""

    label = "mean"

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        return saliency(features.attention, features.token_mask)


MEAN = Mean()
