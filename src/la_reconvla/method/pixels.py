"""What a head reconstructs, as rows of numbers, one row a patch: pixels. Rows are in row-major order of the patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


def patchify(images: UInt8[Tensor, "b 3 H W"], patch: int) -> Float[Tensor, "b n q"]:
    """Pixels of each patch in row-major order, scaled to [-1, 1] as the vision tower sees them; q = 3 patch^2."""
    patches = rearrange(images, "b ch (gh ph) (gw pw) -> b (gh gw) (ph pw ch)", ph=patch, pw=patch)
    return patches.float() / 127.5 - 1.0


def equally_many(mask: Bool[Tensor, "b n"]) -> bool:
    """Whether every sample has as many masked positions as the first, as from all mask sources."""
    counts = mask.sum(1)
    return bool((counts == counts[:1]).all())


def at(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b k w"]:
    """The states under the mask, in order; every sample has equally many (`equally_many`)."""
    places = mask.flatten().nonzero()[:, 0]
    return states.flatten(0, 1).index_select(0, places).unflatten(0, (len(mask), -1))


def unpatchify(patches: Float[Tensor, "b n q"], grid: tuple[int, int], patch: int) -> UInt8[Tensor, "b 3 H W"]:
    """The inverse of `patchify`; values outside [-1, 1] are clipped."""
    pixels = ((patches.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "b (gh gw) (ph pw ch) -> b ch (gh ph) (gw pw)", gh=grid[0], gw=grid[1], ph=patch, pw=patch)


@dataclass(frozen=True)
class Pixels:
    """Pixels in [-1, 1] as a target. `side`: so many a side of each patch, averaged from its own; None for all."""

    side: int | None = None
    label = "pixels"

    def codec(self, grid: tuple[int, int], patch: int) -> PixelCodec:
        """The pair of maps for pictures of this grid and patch size."""
        return PixelCodec(grid, patch, self.side or patch)


@dataclass(frozen=True)
class PixelCodec:
    """Pictures of `grid` patches of `patch` px to rows of `side` x `side` x 3 numbers a patch, and back."""

    grid: tuple[int, int]
    patch: int
    side: int
    bounded = True

    @property
    def width(self) -> int:
        """Numbers a row, q."""
        return 3 * self.side**2

    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """As `patchify`, after averaging."""
        if self.side == self.patch:
            return patchify(images, self.patch)
        size = self.side * self.grid[0], self.side * self.grid[1]
        small = F.adaptive_avg_pool2d(images.float() / 127.5 - 1.0, size)
        return rearrange(small, "b ch (gh ph) (gw pw) -> b (gh gw) (ph pw ch)", ph=self.side, pw=self.side)

    def decode(self, rows: Float[Tensor, "b n q"]) -> Float[Tensor, "b n p"]:
        """Rows of all pixels of a patch, in [-1, 1]; what was averaged comes back blurred."""
        picture = rearrange(rows, "b (r c) (s t ch) -> b ch (r s) (c t)", r=self.grid[0], s=self.side, t=self.side)
        size = tuple(self.patch * length for length in self.grid)
        picture = F.interpolate(picture, size, mode="bilinear") if self.side != self.patch else picture
        return rearrange(picture, "b ch (r s) (c t) -> b (r c) (s t ch)", s=self.patch, t=self.patch)
