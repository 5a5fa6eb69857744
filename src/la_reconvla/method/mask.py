"""Step 2: score -> which patches to reconstruct. True = reconstruct (hidden), everywhere in this package.

Each source, a frozen dataclass, picks *exactly* ``ceil(fraction * n)`` patches: arms differ in where, not in how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from la_reconvla.method.saliency import SaliencySource


def masked_count(fraction: float, n: int) -> int:
    """``ceil(fraction * n)``: 49 of 196, 64 of 256, 13 of 49. ValueError unless 0 < `fraction` < 1."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction of masked patches must be between 0 and 1, got {fraction}")
    return math.ceil(fraction * n - 1e-9)  # the epsilon keeps 0.07 * 100 = 7.000000000000001 at 7


def top(scores: Float[Tensor, "b n"], k: int) -> Bool[Tensor, "b n"]:
    """True at the k highest scores of each sample; of equal scores any may win, their number is exact."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k, dim=1).indices, True)


def checked(saliency: Float[Tensor, "b n"] | None) -> Float[Tensor, "b n"]:
    """The saliency, if there is one and it is finite; a mask never degrades to something else in silence."""
    if saliency is None:
        raise ValueError("this mask needs saliency and got none: its class must say needs_attention = True")
    if not torch.isfinite(saliency).all():
        raise FloatingPointError("the saliency is not finite: the attention has overflowed or the weights diverged")
    return saliency


@dataclass(frozen=True, eq=False)
class MaskContext:
    """What a mask may know.

    Attributes:
        shape: (b, n).
        generator: the stream of masks, on the CPU so that every device masks the same patches.
        saliency: of the arm's `SaliencySource`; None where it reads no attention.
        grid: rows and columns of the patches; None where only their number is known.
        progress: share of the training that is done, in [0, 1].
        maps: one for each of the mask's `sources`; NaN in samples whose instruction has no such words.
        boxes: the target's (`Batch.gaze`), for arms that declare annotation only.
    """

    shape: tuple[int, int]
    generator: torch.Generator
    saliency: Float[Tensor, "b n"] | None = None
    grid: tuple[int, int] | None = None
    progress: float = 0.0
    maps: tuple[Float[Tensor, "b n"], ...] = ()
    boxes: Float[Tensor, "b 4"] | None = None


class MaskSource:
    """Chooses the patches to reconstruct."""

    label: str  # for tables, for example ``random``
    needs_attention = False  # whether there must be a saliency
    needs_gaze = False  # whether there must be boxes of the target: then the arm counts as annotated
    sources: tuple[SaliencySource, ...] = ()  # of further maps that the mask is made of

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        """True = reconstruct. Raises ValueError if the context lacks what the mask needs."""
        raise NotImplementedError

    def pick(self, context: MaskContext, count: bool) -> Bool[Tensor, "b n"]:
        """The mask. Raises ValueError if it is none; with `count`, which waits for a GPU, also for unequal counts."""
        mask, (b, n) = self(context), context.shape
        if mask.shape != (b, n) or mask.dtype != torch.bool or (count and not 0 < (m := mask.sum(1)).min() == m.max()):
            raise ValueError(f"{type(self).__name__} must give bool [{b} {n}], equally many in each sample")
        return mask


@dataclass(frozen=True)
class AttentionMask(MaskSource):
    """The patches that the instruction looks at most: top `fraction` of the saliency. Without one it raises."""

    fraction: float = 0.25
    needs_attention = True
    label = "attention"

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        return top(checked(context.saliency), masked_count(self.fraction, context.shape[1]))


@dataclass(frozen=True)
class RandomMask(MaskSource):
    """A uniformly random `fraction` of the patches. The saliency is ignored."""

    fraction: float = 0.25
    label = "random"

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        scores = torch.rand(context.shape, generator=context.generator)
        return top(scores, masked_count(self.fraction, context.shape[1]))
