"""What a reconstruction head can draw of a picture beside all its pixels, as numbers patch by patch, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from la_reconvla.method.pixels import patchify, signed


def unsigned(pixels: Float[Tensor, "*s"]) -> UInt8[Tensor, "*s"]:
    """The inverse of `method.pixels.signed`; values outside [-1, 1] are clipped."""
    return ((pixels.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def unpatchify(patches: Float[Tensor, "b n q"], grid: tuple[int, int], patch: int) -> UInt8[Tensor, "b 3 H W"]:
    """The inverse of `method.pixels.patchify`; values outside [-1, 1] are clipped."""
    layout = "b (gh gw) (ph pw ch) -> b ch (gh ph) (gw pw)"
    return rearrange(unsigned(patches), layout, gh=grid[0], gw=grid[1], ph=patch, pw=patch)


class Codec(Protocol):
    """Pictures to numbers, patch by patch, and back."""

    @property
    def width(self) -> int:
        """Numbers of a patch, q."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether the numbers are in [-1, 1]."""
        ...

    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]: ...

    def decode(self, target: Float[Tensor, "b n q"]) -> Float[Tensor, "b n r"]:
        """All pixels of every patch, as `method.pixels.patchify` gives them."""
        ...


class Target(Protocol):
    """What is drawn: a frozen dataclass."""

    def codec(self, grid: tuple[int, int], patch: int) -> Codec:
        """For pictures of this grid of patches."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``pixels``."""
        ...


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
    """Pictures of `grid` patches of `patch` px to `side` x `side` x 3 numbers per patch, and back."""

    grid: tuple[int, int]
    patch: int
    side: int
    bounded = True

    @property
    def width(self) -> int:
        """Numbers of a patch, q."""
        return 3 * self.side**2

    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """As `patchify`, after averaging."""
        if self.side == self.patch:
            return patchify(images, self.patch)
        size = self.side * self.grid[0], self.side * self.grid[1]
        small = F.adaptive_avg_pool2d(signed(images), size)
        return rearrange(small, "b ch (gh ph) (gw pw) -> b (gh gw) (ph pw ch)", ph=self.side, pw=self.side)

    def decode(self, target: Float[Tensor, "b n q"]) -> Float[Tensor, "b n r"]:
        """All pixels of a patch, in [-1, 1]; what was averaged comes back blurred."""
        picture = rearrange(target, "b (r c) (s t ch) -> b ch (r s) (c t)", r=self.grid[0], s=self.side, t=self.side)
        size = tuple(self.patch * length for length in self.grid)
        picture = F.interpolate(picture, size, mode="bilinear") if self.side != self.patch else picture
        return rearrange(picture, "b ch (r s) (c t) -> b (r c) (s t ch)", s=self.patch, t=self.patch)
