"""Pictures as patches. Patches are in row-major order, pixels in [-1, 1]."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


def signed(pixels: UInt8[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """0 ... 255 as float32 in [-1, 1], the scale of every target and of SigLIP."""
    return pixels.float() / 127.5 - 1.0


def patchify(images: UInt8[Tensor, "b 3 H W"], patch: int) -> Float[Tensor, "b n q"]:
    """Pixels of each patch; q = 3 patch^2."""
    return signed(rearrange(images, "b ch (gh ph) (gw pw) -> b (gh gw) (ph pw ch)", ph=patch, pw=patch))


def equally_many(mask: Bool[Tensor, "b n"]) -> bool:
    """Whether every sample has as many masked positions as the first, as from all mask sources."""
    counts = mask.sum(1)
    return bool((counts == counts[:1]).all())


def at(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b k w"]:
    """The states under the mask, in order; every sample has equally many (`equally_many`)."""
    places = mask.flatten().nonzero()[:, 0]
    return states.flatten(0, 1).index_select(0, places).unflatten(0, (len(mask), -1))
