"""Step 1: attention -> one score per patch. Where to look is a value: a saliency source, a frozen dataclass.

===================== ============================================= ============ =====================================
source                which part of the attention                   module       from
===================== ============================================= ============ =====================================
`Mean` (default)      all layers, heads and words                   `saliency`   the published method
`ActionRows`          the action tokens instead of the words        `saliency`   ours (the other live rows)
`SinkRemoved`         what not every word looks at                  `saliency`   arXiv 2503.03321
`ContentWords`        the words that name things                    `words`      ours
`LocalisationHeads`   a few heads, chosen without labels            `heads`      arXiv 2503.06287
`EMATeacher`          of a moving average of the weights            `teacher`    arXiv 1703.01780, 2203.12719
===================== ============================================= ============ =====================================

All are detached: the mask follows the attention, no gradient flows through the choice. A source never sees a mask, a
box or a name of what it should find. What it has learned from frames (`fit`) is an explicit argument, `state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from la_reconvla.contracts import Features, Rows

NOT_CHOSEN = -1  # what `state` holds before `fit`


def saliency(attention: Float[Tensor, "b l h t n"] | None, rows: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b n"]:
    """Average the attention that the instruction pays to each image patch.

    Args:
        attention: attention weights of t text rows over n image patches, for l layers and h heads.
        rows: True for the instruction's own tokens. Padding, the begin-of-sequence token and the closing newline are
            False: the latter two are attention sinks that look alike under every instruction.

    Returns:
        float32 [b n], detached. It sums to the share of its attention that the instruction spends on the image,
        at most 1.

    Raises:
        ValueError: if there is no attention, or a sample has no counted row; a mask made of nothing must never pass
            silently.
    """
    attention, rows = present(attention, rows)
    per_row = attention.mean(dim=(1, 2))  # [b t n]
    counted = per_row.masked_fill(~rows[..., None], 0.0)  # not a product: a padding row may be NaN
    return counted.sum(1) / rows.sum(1, keepdim=True)


def per_head(features: Features) -> Float[Tensor, "b l h n"]:
    """Attention of each head, averaged over the rows that count; float32, detached.

    Raises:
        ValueError: as `saliency`.
    """
    attention, rows = present(features.attention, features.rows)
    counted = attention.masked_fill(~rows[:, None, None, :, None], 0.0)
    return counted.sum(3) / rows.sum(1)[:, None, None, None]


def present(attention: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, detached and in float32, if every sample has a row that counts."""
    if attention is None or rows is None:
        raise ValueError("the backbone returned no attention: ask it for the probe's rows")
    if not bool(rows.any(dim=1).all()):
        raise ValueError("an instruction has no token that counts: saliency would be made of nothing")
    return attention.detach().float(), rows


class Source:
    """What most sources share: they read the instruction's rows, learn nothing and take any instruction."""

    rows: Rows = "instruction"
    decay: float | None = None
    refresh: int | None = None
    frames: int = 0
    state_shape: tuple[int, ...] = ()

    def require(self, instructions: Iterable[str]) -> None:
        """Nothing is required."""

    def fit(self, seen: Iterable[Features]) -> Tensor | None:
        """Nothing is learned."""
        return None


@dataclass(frozen=True)
class Mean(Source):
    """The published map: the mean over tokens, heads and layers; see `saliency`."""

    label = "mean"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored."""
        return saliency(features.attention, features.rows)


MEAN = Mean()


@dataclass(frozen=True)
class ActionRows(Source):
    """The mean map of the action tokens' rows: where the policy looks when it acts.

    They are live in every layer, since the action head reads them (`docs/method.md`), but they see the robot state and
    the words only through the prefix. Not in the published method.
    """

    label = "actions"

    @property
    def rows(self) -> Rows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The action tokens'."""
        return "actions"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored. `features` must hold the rows that `rows` names."""
        return saliency(features.attention, features.rows)


@dataclass(frozen=True)
class SinkRemoved(Source):
    """What a patch gets beyond the least that any word gives it, head by head::

        A[n] = mean over l, h of ( mean over t of a[l, h, t -> n]  -  min over t of a[l, h, t -> n] )

    A visual attention sink is a patch that every text token looks at, whatever it says (Kang et al., "See What You Are
    Told", arXiv 2503.03321; high-norm registers in vision towers, Darcet et al., arXiv 2309.16588). They find sinks by
    massive activations in fixed hidden dimensions of one pretrained model; here the very symptom is removed, from
    attention alone: the part that all words have in common. It also removes what all words rightly look at.
    """

    label = "sinks"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored.

        Raises:
            ValueError: as `saliency`, or with fewer than two tokens that count.
        """
        attention, rows = present(features.attention, features.rows)
        if bool((rows.sum(1) < 2).any()):
            raise ValueError("an instruction of one token has no part of its own: sinks cannot be told from it")
        least = attention.masked_fill(~rows[:, None, None, :, None], torch.inf).amin(3)
        return (per_head(features) - least).clamp_min(0).mean(dim=(1, 2))  # rounding may leave less than nothing
