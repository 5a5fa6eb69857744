"""Masks that hang together: one region of the image, or one for the target and one for the destination."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from la_reconvla.method.mask import MaskContext, MaskSource, checked, masked_count
from la_reconvla.method.saliency import SaliencySource
from la_reconvla.method.variants.content_words import DestinationWords, TargetWords


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
    scores: Float[Tensor, "b n"],
    k: Int64[Tensor, " b"],
    grid: tuple[int, int],
    taken: Bool[Tensor, "b n"] | None = None,
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
class RegionMask(MaskSource):
    """One connected region of exactly ``ceil(fraction * n)`` patches, grown from the highest patch (`grow`).

    A scattered mask is filled in from the neighbours of each patch; of a region the inside must be known. Hence the
    blocks of BEiT (arXiv 2106.08254) and I-JEPA (arXiv 2301.08243), which are rectangles at random places. Here the
    region follows the saliency, and its shape is free, so that the number of patches stays exact.
    """

    fraction: float = 0.25
    needs_attention = True
    label = "region"

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        """As `AttentionMask`.

        Raises:
            ValueError: without saliency or grid.
            FloatingPointError: if it is not finite.
        """
        scores = checked(context.saliency)
        k = torch.full((len(scores),), masked_count(self.fraction, context.shape[1]), device=scores.device)
        return grow(scores, k, _grid(context))


@dataclass(frozen=True)
class TwoRegionMask(MaskSource):
    """One region where the words of the target look and one where those of the destination look (`RegionMask`).

    The target's has ``ceil(k / 2)`` patches, the destination's the others, grown from what the first left free;
    together they are exactly k. Where the instruction names no destination the target's region has all k patches: such
    an instruction has one thing to look at. How words are divided: `method.variants.content_words.destination_at`.

    Attributes:
        fraction: share of the patches masked.
        sources: of the two maps.
    """

    fraction: float = 0.25
    sources: tuple[SaliencySource, ...] = (TargetWords(), DestinationWords())  # pyright: ignore[reportIncompatibleVariableOverride]
    needs_attention = True
    label = "two regions"

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        """The saliency is not used.

        Raises:
            ValueError: without the two maps or the grid.
            FloatingPointError: if the target's map is not finite, or the destination's only in part.
        """
        if len(context.maps) != 2:
            raise ValueError(f"the mask '{self.label}' needs the maps of both sources, got {len(context.maps)}")
        target, destination = checked(context.maps[0]), context.maps[1]
        named = ~destination.isnan().all(1)
        destination = checked(destination.masked_fill(~named[:, None], 0.0))
        k = masked_count(self.fraction, context.shape[1])
        first = torch.where(named, -(-k // 2), k)
        one = grow(target, first, _grid(context))
        return one | grow(destination, k - first, _grid(context), taken=one)


def _grid(context: MaskContext) -> tuple[int, int]:
    if context.grid is None:
        raise ValueError("a region needs the patches' grid: pass a context with it")
    return context.grid
