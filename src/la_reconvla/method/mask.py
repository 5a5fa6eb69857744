"""Step 2: score -> which patches to reconstruct. True = reconstruct (hidden), everywhere in this package.

A mask source is a frozen dataclass, so that a condition of the experiment is a value. Each picks *exactly*
``ceil(fraction * n)`` patches in every sample: arms differ in where they mask, never in how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from la_reconvla.contracts import START, MaskSource, Moment, SaliencySource


def masked_count(fraction: float, n: int) -> int:
    """``ceil(fraction * n)``: 49 of 196, 64 of 256, 13 of 49.

    Raises:
        ValueError: if `fraction` is not strictly between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction of masked patches must be between 0 and 1, got {fraction}")
    return math.ceil(fraction * n - 1e-9)  # the epsilon keeps 0.07 * 100 = 7.000000000000001 at 7


def top(scores: Float[Tensor, "b n"], k: int) -> Bool[Tensor, "b n"]:
    """True at the k highest scores of each sample; of equal scores any may win, their number is exact."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k, dim=1).indices, True)


def checked(saliency: Float[Tensor, "b n"] | None) -> Float[Tensor, "b n"]:
    """The saliency, if there is one and it is finite."""
    if saliency is None:
        raise ValueError("the attention mask needs saliency, but the backbone returned no attention")
    if not torch.isfinite(saliency).all():
        raise FloatingPointError("the saliency is not finite: the attention has overflowed or the weights diverged")
    return saliency


class Whole:
    """A mask that is made of one map."""

    parts: tuple[SaliencySource, ...] = ()
    needs_gaze = False


@dataclass(frozen=True)
class AttentionMask(Whole):
    """The patches that the instruction looks at most: top `fraction` of the saliency."""

    fraction: float = 0.25
    needs_attention = True
    label = "attention"

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """An attention arm never degrades to something else in silence.

        Raises:
            ValueError: without saliency.
            FloatingPointError: if it is not finite.
        """
        return top(checked(saliency), masked_count(self.fraction, shape[1]))


@dataclass(frozen=True)
class RandomMask(Whole):
    """A uniformly random `fraction` of the patches, drawn on the CPU so that every device masks the same ones."""

    fraction: float = 0.25
    needs_attention = False
    label = "random"

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """`saliency` is ignored; it may still be present because every arm logs its attention."""
        mask = top(torch.rand(shape, generator=generator), masked_count(self.fraction, shape[1]))
        return mask if saliency is None else mask.to(saliency.device)


class FollowsAttention(MaskSource, Protocol):
    """A mask source that masks a `fraction` of the patches."""

    @property
    def fraction(self) -> float: ...


@dataclass(frozen=True)
class WarmUp:
    """A random mask for the first `steps`, then `mask`: at first attention follows nothing that was learned.

    During the warm-up the very same patches are masked as by `RandomMask` of the same fraction, seed and step, so that
    an arm and the random one are one arm until then.

    Attributes:
        mask: what follows.
        steps: optimizer steps before it does.
    """

    mask: FollowsAttention = AttentionMask()
    steps: int = 200
    label = "warm-up"

    @property
    def needs_attention(self) -> bool:
        """As `mask`, also before it is followed."""
        return self.mask.needs_attention

    @property
    def needs_gaze(self) -> bool:
        """As `mask`."""
        return self.mask.needs_gaze

    @property
    def parts(self) -> tuple[SaliencySource, ...]:
        """As `mask`."""
        return self.mask.parts

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """`moment` tells the step."""
        now = RandomMask(self.mask.fraction) if moment.step < self.steps else self.mask
        return now(saliency, shape, generator, moment)
