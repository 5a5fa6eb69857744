"""The opposite of the method's mask: a control for what hiding *any* chosen quarter of the image does."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from la_reconvla.method.mask import MaskContext, MaskSource, checked, masked_count, top


@dataclass(frozen=True)
class InvertedMask(MaskSource):
    """The patches that the instruction looks at least: lowest `fraction` of the saliency. Without one it raises.

    It shares no patch with `AttentionMask` of the same fraction, at most one half. A random mask shares a quarter.
    """

    fraction: float = 0.25
    needs_attention = True
    label = "inverted attention"

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        return top(-checked(context.saliency), masked_count(self.fraction, context.shape[1]))
