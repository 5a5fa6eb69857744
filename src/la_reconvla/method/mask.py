"""Step 2: score -> which patches to reconstruct. True = reconstruct (hidden), everywhere in this package.

A mask source is a frozen dataclass, so that a condition of the experiment is a value. Each picks *exactly*
``ceil(fraction * n)`` patches in every sample: arms differ in where they mask, never in how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from la_reconvla.contracts import START, Moment, SaliencySource
from la_reconvla.method.saliency import DestinationWords, TargetWords


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


def _checked(saliency: Float[Tensor, "b n"] | None) -> Float[Tensor, "b n"]:
    if saliency is None:
        raise ValueError("the attention mask needs saliency, but the backbone returned no attention")
    if not torch.isfinite(saliency).all():
        raise FloatingPointError("the saliency is not finite: the attention has overflowed or the weights diverged")
    return saliency


class Whole:
    """A mask that is made of one map."""

    parts: tuple[SaliencySource, ...] = ()


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
        return top(_checked(saliency), masked_count(self.fraction, shape[1]))


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


# ---------------------------------------------------------------- regions


def neighbours(chosen: Bool[Tensor, "b n"], grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """True at the patches that share a side with a chosen one (chosen ones may be among them)."""
    cells = chosen.view(-1, *grid)
    near = torch.zeros_like(cells)
    near[:, 1:] |= cells[:, :-1]
    near[:, :-1] |= cells[:, 1:]
    near[:, :, 1:] |= cells[:, :, :-1]
    near[:, :, :-1] |= cells[:, :, 1:]
    return near.flatten(1)


def grow(
    scores: Float[Tensor, "b n"], k: Int64[Tensor, "b"], grid: tuple[int, int], taken: Bool[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b n"]:
    """A connected region of exactly k patches: the highest, then again and again the highest beside the region.

    Args:
        scores: finite.
        k: patches of each sample, at most those that are not `taken`.
        grid: rows and columns.
        taken: patches that the region may not have. Only where they shut it in does it go on at another place.
    """
    free = torch.ones_like(scores, dtype=torch.bool) if taken is None else ~taken
    region = torch.zeros_like(free)
    for size in range(int(k.max())):
        beside = neighbours(region, grid) & free & ~region
        allowed = torch.where(beside.any(1, keepdim=True), beside, free & ~region)
        best = scores.masked_fill(~allowed, -torch.inf).argmax(1, keepdim=True)
        region |= torch.zeros_like(region).scatter(1, best, True) & (size < k)[:, None]
    return region


@dataclass(frozen=True)
class RegionMask(Whole):
    """One connected region of exactly ``ceil(fraction * n)`` patches, grown from the highest patch (`grow`).

    A scattered mask is filled in from the neighbours of each patch; of a region the inside must be known. Hence the
    blocks of BEiT (arXiv 2106.08254) and I-JEPA (arXiv 2301.08243), which are rectangles at random places. Here the
    region follows the saliency, and its shape is free, so that the number of patches stays exact.
    """

    fraction: float = 0.25
    needs_attention = True
    label = "region"

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """As `AttentionMask`; `moment` must tell the grid.

        Raises:
            ValueError: without saliency or grid.
            FloatingPointError: if it is not finite.
        """
        scores = _checked(saliency)
        return grow(scores, _counts(masked_count(self.fraction, shape[1]), scores), _grid(moment))


@dataclass(frozen=True)
class TwoRegionMask:
    """One region where the words of the target look and one where those of the destination look (`RegionMask`).

    The target's has ``ceil(k / 2)`` patches, the destination's the others, grown from what the first left free;
    together they are exactly k. Where the instruction names no destination the target's region has all k patches: such
    an instruction has one thing to look at. How the words are told apart: `la_reconvla.method.saliency.destination_at`.

    Attributes:
        fraction: share of the patches masked.
        parts: sources of the two maps.
    """

    fraction: float = 0.25
    parts: tuple[SaliencySource, ...] = (TargetWords(), DestinationWords())
    needs_attention = True
    label = "two regions"

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """`saliency` is not used: `moment` brings the maps of both parts.

        Raises:
            ValueError: without the two maps or the grid.
            FloatingPointError: if the target's map is not finite, or the destination's only in part.
        """
        if len(moment.parts) != 2:
            raise ValueError(f"the mask '{self.label}' needs the maps of both parts, got {len(moment.parts)}")
        target, destination = _checked(moment.parts[0]), moment.parts[1]
        named = ~destination.isnan().all(1)
        destination = _checked(destination.masked_fill(~named[:, None], 0.0))
        k = masked_count(self.fraction, shape[1])
        first = torch.where(named, -(-k // 2), k)
        one = grow(target, first, _grid(moment))
        return one | grow(destination, k - first, _grid(moment), taken=one)


@dataclass(frozen=True)
class WarmUp:
    """A random mask for the first `steps`, then `mask`: at first attention follows nothing that was learned.

    During the warm-up the very same patches are masked as by `RandomMask` of the same fraction, seed and step, so that
    an arm and the random one are one arm until then.

    Attributes:
        mask: what follows.
        steps: optimizer steps before it does.
    """

    mask: AttentionMask | RegionMask | TwoRegionMask = AttentionMask()
    steps: int = 200
    label = "warm-up"

    @property
    def needs_attention(self) -> bool:
        """As `mask`, also before it is followed."""
        return self.mask.needs_attention

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


def _counts(k: int, like: Tensor) -> Int64[Tensor, "b"]:
    return torch.full((like.shape[0],), k, device=like.device)


def _grid(moment: Moment) -> tuple[int, int]:
    if moment.grid is None:
        raise ValueError("a region needs the patches' grid: pass a moment that tells it")
    return moment.grid
