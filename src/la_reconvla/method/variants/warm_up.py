"""A mask that is random until attention has learned something."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from la_reconvla.method.mask import AttentionMask, MaskContext, MaskSource, RandomMask
from la_reconvla.method.saliency import SaliencySource
from la_reconvla.method.variants.regions import RegionMask, TwoRegionMask


@dataclass(frozen=True)
class WarmUp(MaskSource):
    """A random mask for the first `share` of the training, then `mask`: before, attention follows nothing learned.

    During the warm-up the very same patches are masked as by `RandomMask` of the same fraction, seed and step, so that
    an arm and the random one are one arm until then.

    Attributes:
        mask: what follows.
        share: of the training, before it does.
    """

    mask: AttentionMask | RegionMask | TwoRegionMask = field(default_factory=AttentionMask)
    share: float = 0.25
    label = "warm-up"

    @property
    def needs_attention(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `mask`, also before it is followed."""
        return self.mask.needs_attention

    @property
    def needs_gaze(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `mask`."""
        return self.mask.needs_gaze

    @property
    def sources(self) -> tuple[SaliencySource, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `mask`."""
        return self.mask.sources

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        """Random or not, by the progress of `context`."""
        now = RandomMask(self.mask.fraction) if context.progress < self.share else self.mask
        return now(context)
