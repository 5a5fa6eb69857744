"""Step 3: the MAE decoder (He et al., arXiv 2111.06377): visible patch tokens -> pixels of the masked ones, one pass.

::

    tokens   v v M v M v      v  the backbone's final state of a visible patch, projected
      +      0 1 2 3 4 5      M  one learned vector, the same at every masked position
    positions                 The positions are what lets two masked patches differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.method.pixels import at, equally_many, patchify


def position_table(grid: tuple[int, int], width: int) -> Float[Tensor, "n d"]:
    """Fixed sine-cosine embedding of each patch's row and column, as in MAE's appendix A."""
    if width % 4:
        raise ValueError(f"decoder width must be divisible by 4 for two-dimensional positions, got {width}")
    frequency = 10_000.0 ** -(torch.arange(width // 4) / (width / 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, column)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


@dataclass(frozen=True)
class MAEDecoder:
    """The decoder's size, as published: 4 layers, width 256, 8 heads. `norm_pixels`: MAE's per-patch normalisation."""

    depth: int = 4
    width: int = 256
    attention_heads: int = 8
    norm_pixels: bool = False
    label = "mae"

    def build(self, backbone_width: int, grid: tuple[int, int], patch: int) -> MAEReconstructor:
        return MAEReconstructor(self, backbone_width, grid, patch)


class MAEReconstructor(nn.Module):
    """Predicts the pixels of masked patches from the backbone's states at the visible ones."""

    positions: Tensor

    def __init__(self, config: MAEDecoder, backbone_width: int, grid: tuple[int, int], patch: int):
        super().__init__()
        self.config, self.patch = config, patch
        self.target_width = 3 * patch**2
        self.enter = nn.Linear(backbone_width, config.width)
        self.mask_token = nn.Parameter(torch.randn(config.width) * 0.02)
        self.register_buffer("positions", position_table(grid, config.width), persistent=False)
        self.blocks = nn.Sequential(*(_block(config) for _ in range(config.depth)), nn.LayerNorm(config.width))
        self.leave = nn.Linear(config.width, self.target_width)

    def target(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """All pixels of each patch, see `patchify`."""
        return patchify(images, self.patch)

    def decode(
        self, patches: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, masked_only: bool = False
    ) -> Float[Tensor, "b n w"]:
        """Decoder states at all positions. Where `mask` is True nothing of `patches` is read; without one all is.

        With `masked_only` at the masked positions alone, [b k w]. The last block answers only there: it still reads all
        positions, but its output there is not used.
        """
        tokens = self.enter(patches)
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(patches.dtype), tokens)
        tokens = tokens + self.positions.to(tokens.dtype)
        if mask is None or not masked_only:
            return self.blocks(tokens)
        return self.blocks[-1](_answer(self.blocks[-2], self.blocks[:-2](tokens), mask))

    def loss(
        self,
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        target: Float[Tensor, "b n q"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Mean squared pixel error over the masked patches and nothing else (MAE, arXiv 2111.06377): the mean over
        masked n, and all q, of ``(prediction[n, q] - target[n, q]) ** 2``.

        Without a mask, for a target that is not the policy's own picture, over all. `generator` is unused: one pass
        needs no noise. Pixels are in [-1, 1], or of zero mean and unit variance in each patch with ``norm_pixels``.
        """
        if mask is None:
            states, wanted = self.decode(patches, mask), target
        elif equally_many(mask):
            states, wanted = self.decode(patches, mask, masked_only=True).flatten(0, 1), target[mask]
        else:
            states, wanted = self.decode(patches, mask)[mask], target[mask]
        if self.config.norm_pixels:
            mean, deviation = _statistics(wanted)
            wanted = (wanted - mean) / deviation
        return (self.leave(states).float() - wanted).square().mean()

    @torch.no_grad()
    def picture(
        self, patches: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, target: Float[Tensor, "b n q"]
    ) -> Float[Tensor, "b n q"]:
        """Predicted pixels at every position, in [-1, 1]; only those under the mask were ever trained.

        With ``norm_pixels`` a prediction knows neither brightness nor contrast of its patch. As in MAE's pictures, both
        are taken from `target`; without, `target` is not read.
        """
        predicted = self.leave(self.decode(patches, mask)).float()
        mean, deviation = _statistics(target) if self.config.norm_pixels else (0.0, 1.0)
        return predicted * deviation + mean


def _answer(block: Any, tokens: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b k w"]:
    """What a pre-norm `torch.nn.TransformerEncoderLayer` without dropout gives at the masked positions."""
    normed = block.norm1(tokens)
    states = at(tokens, mask) + block.self_attn(at(normed, mask), normed, normed, need_weights=False)[0]
    return states + block.linear2(block.activation(block.linear1(block.norm2(states))))


def _statistics(patches: Float[Tensor, "*b q"]) -> tuple[Float[Tensor, "*b 1"], Float[Tensor, "*b 1"]]:
    """Mean and standard deviation of each patch's pixels; a patch of one colour has a deviation above zero."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _block(config: MAEDecoder) -> nn.Module:
    """One pre-norm transformer block, as in MAE."""
    shape = config.width, config.attention_heads, 4 * config.width
    return nn.TransformerEncoderLayer(*shape, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
