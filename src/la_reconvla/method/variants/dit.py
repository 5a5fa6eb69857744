"""The network of all diffusion heads: a transformer whose blocks are conditioned, token by token, on what to draw.

::

    tokens     x x x x x x    a noised picture, patch by patch
    +          0 1 2 3 4 5    positions
    condition  s s s s s s    of *each token*: embedding of the noise level + linear(the backbone's state there). Each
                              block scales, shifts and gates that token by it, and by nothing at first: adaLN-Zero of
                              DiT (Peebles and Xie, arXiv 2212.09748), which conditions all tokens alike

Under a mask it plays the game of the MAE decoder. A masked token's state is replaced by one learned vector; a visible
one has a state but nothing is drawn there::

    tokens     . . x . x .
    condition  s s M s M s
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from la_reconvla.method.decoder import position_table
from la_reconvla.method.pixels import at

WAVES = 256  # sines and cosines of the noise level


class DiT(nn.Module):
    """A noised picture, a noise level and the backbone's states to one prediction per patch.

    Args:
        depth: number of blocks.
        width: hidden size; must be divisible by 4 and by `attention_heads`.
        attention_heads: of each block.
        target_width: numbers per patch, q.
        backbone_width: size of the backbone's states, d.
        grid: rows and columns of tokens.
    """

    positions: Tensor

    def __init__(
        self,
        depth: int,
        width: int,
        attention_heads: int,
        target_width: int,
        backbone_width: int,
        grid: tuple[int, int],
    ):
        super().__init__()
        # Imported here: it takes seconds, which no other arm should wait for.
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.enter = nn.Linear(target_width, width)
        self.register_buffer("positions", position_table(grid, width), persistent=False)
        self.waves = Timesteps(WAVES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.level = TimestepEmbedding(WAVES, width)
        self.state = nn.Linear(backbone_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, attention_heads) for _ in range(depth))
        self.norm, self.modulation = nn.LayerNorm(width, 1e-6, elementwise_affine=False), nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, target_width)
        _silence(self.modulation)
        _silence(self.leave)

    def forward(
        self,
        noised: Float[Tensor, "b n q"],
        t: Num[Tensor, " b"],
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        masked_only: bool = False,
    ) -> Float[Tensor, "b n q"]:
        """A prediction for all patches; with `masked_only` for those under the mask, [b k q].

        Where `mask` is True nothing of `patches` is read, elsewhere none of `noised`.
        Without a mask, for a picture that is not the policy's own, everything is read.
        """
        dtype = patches.dtype
        state, tokens = self.state(patches), self.enter(noised.to(dtype))
        if mask is not None:
            state = torch.where(mask[..., None], self.mask_token.to(state.dtype), state)
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
        condition = nn.functional.silu(state + self.level(self.waves(t).to(dtype))[:, None])
        tokens = tokens + self.positions.to(tokens.dtype)
        *first, last = self.blocks
        for block in first:
            tokens = block(tokens, condition)
        tokens = last(tokens, condition, mask if masked_only else None)
        if mask is not None and masked_only:
            condition = at(condition, mask)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.leave(self.norm(tokens) * (1 + scale) + shift)


class Block(nn.Module):
    """A transformer block; the condition scales, shifts and gates its attention and its MLP for each token."""

    def __init__(self, width: int, attention_heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, attention_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        _silence(self.modulation)

    def forward(
        self, x: Float[Tensor, "b n w"], condition: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """`condition` is after its activation. With a mask it answers there only, [b k w], but reads all."""
        shift, scale, *later = self.modulation(condition).chunk(6, dim=-1)
        y = asked = self.norms[0](x) * (1 + scale) + shift
        if mask is not None:
            asked, x, *later = (at(part, mask) for part in (y, x, *later))
        gate, shift_2, scale_2, gate_2 = later
        x = x + gate * self.attention(asked, y, y, need_weights=False)[0]
        return x + gate_2 * self.mlp(self.norms[1](x) * (1 + scale_2) + shift_2)


def _silence(layer: nn.Linear) -> None:
    """Start at zero: at first a block changes nothing, and zero is predicted."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
