"""Step 1: attention -> one score per patch.

``A = mean over layers, heads and the instruction's tokens of attention(token -> patch)``, detached: the mask follows
the attention, no gradient flows through the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from torch import Tensor


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
    if attention is None or rows is None:
        raise ValueError("the backbone returned no attention: ask it for the probe's rows")
    if not bool(rows.any(dim=1).all()):
        raise ValueError("an instruction has no token that counts: saliency would be made of nothing")
    per_row = attention.detach().float().mean(dim=(1, 2))  # [b t n]
    counted = per_row.masked_fill(~rows[..., None], 0.0)  # not a product: a padding row may be NaN
    return counted.sum(1) / rows.sum(1, keepdim=True)
