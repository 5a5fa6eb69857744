"""Vision stems: what turns pixels into the tokens that a vision tower reads, one token a patch.

The stem of the published PaliGemma is one linear map of a patch, which tells edges and colours apart only as far as one
layer can. A few strided convolutions in its place learn faster and see small things better from little data (Xiao et
al. 2021, arXiv 2106.14881).

All stems put the centre of a token's receptive field at the centre of its patch, to half a pixel: the convolutions
before the last one are centred on the even pixels, the last one on the odd ones, half a patch further. Otherwise what
the words look at would lie half a patch off.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from la_reconvla.errors import UserError, unknown

StemName = Literal["patch", "conv"]
STEMS: tuple[StemName, ...] = ("patch", "conv")
CHANNELS = (24, 48, 96, 128)  # of the convolutions; more of them keep the last number
GROUPS = 8  # of channels that are normalised together
GELU_POWER = 0.4252  # mean square of GELU(x) for a standard normal x


def check_stem(name: StemName, patch: int) -> None:
    """Refuse what `build_stem` cannot build, before anything is built.

    Raises:
        UserError: if there is no stem of this name, or it cannot make patches of this side.
    """
    if name not in STEMS:
        raise unknown("stem", name, STEMS)
    if name == "conv" and (patch < 2 or patch & (patch - 1)):
        raise UserError(
            f"the stem 'conv' halves the picture again and again, so a patch must be a power of two, not {patch}: take "
            "a patch of 8, 16 or 32, or the stem 'patch'"
        )


def build_stem(name: StemName, patch: int, width: int) -> Stem | None:
    """The module of this name, None for 'patch', which is the library's own.

    Args:
        name: of the stem.
        patch: side of a patch in pixels.
        width: length of a token.

    Raises:
        UserError: as `check_stem`.
    """
    check_stem(name, patch)
    return ConvStem(patch, width) if name == "conv" else None


class Stem(nn.Module):
    """Strided convolutions, then a normalised 1x1 convolution to the tokens, in place of SigLIP's patch embedding.

    Args:
        patch: side of a patch in pixels.
        width: length of a token.
    """

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.patch, self.width = patch, width
        self.leave: nn.Conv2d

    @property
    def weight(self) -> Tensor:
        """The last weight; the library asks it for the dtype that it gives pixels in."""
        return self.leave.weight

    def maps(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The last maps before the tokens."""
        raise NotImplementedError

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Pixels in [-1, 1] -> tokens of `width` numbers, one for each patch."""
        return self.leave(self.maps(pixels))


class ConvStem(Stem):
    """Convolutions of stride 2, as many as halve a patch to one token: four for 16 pixels, three for 8, five for 32.

    The first has a kernel of 5x5, the others of 3x3, and each is followed by GroupNorm and GELU; a 1x1 convolution
    makes the tokens. All weights are drawn from torch's global generator, with a standard deviation that lets tokens
    start near unit variance.

    Neighbours overlap. The convolutions of one token read a square of two patches and a pixel in side around the
    centre of its patch (33 pixels for a patch of 16), and GroupNorm adds to it mean and variance of the whole picture,
    one pair for each of eight groups of channels. So with ``mask_at="decoder"`` the token of a visible patch has seen
    pixels of its masked neighbours, as it would by the tower's attention anyhow. With ``mask_at="input"`` hidden pixels
    are grey before they come here, and nothing of them is left to mix.

    Args:
        patch: side of a patch in pixels, a power of two.
        width: length of a token.

    Raises:
        UserError: if `patch` is not a power of two.
    """

    def __init__(self, patch: int, width: int):
        check_stem("conv", patch)
        super().__init__(patch, width)
        count, before, layers = patch.bit_length() - 1, 3, []
        for i in range(count):
            channels, kernel, last = CHANNELS[min(i, len(CHANNELS) - 1)], 3 if i else 5, i == count - 1
            reach = kernel // 2
            shifted = (reach - 1, reach, reach - 1, reach)  # left, right, top, bottom: one to the right, one down
            layers += [
                *([nn.ZeroPad2d(shifted)] if last else []),
                nn.Conv2d(before, channels, kernel, 2, 0 if last else reach, bias=False),
                nn.GroupNorm(GROUPS, channels),
                nn.GELU(),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.leave = nn.Conv2d(before, width, 1)
        scale_to_gelu(self)

    def maps(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The last maps before the tokens."""
        return self.layers(pixels)


@torch.no_grad()
def scale_to_gelu(module: nn.Module) -> None:
    """Redraw convolutions with standard deviation 1/sqrt(fan-in x mean square of what comes in), biases zero.

    What comes in is taken to be GELU of numbers of unit variance. The first convolution gets pixels instead; GroupNorm
    takes the difference away.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=1 / math.sqrt(GELU_POWER * part.weight[0].numel()))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
