"""Attention rows beside the fused kernel.

`output_attentions=True` gives nothing on a fused (SDPA) model, and the eager implementation pays for the whole
matrix in every layer. The saliency needs a few rows (the instruction's tokens) of a few layers (the last three). So the
model keeps its fused kernel, and for those layers only this module computes the softmax of those rows, from the very
q and k, after the rotary embedding, that the kernel gets.

Gemma 2 squashes its logits (softcap * tanh(logits / softcap)), which no fused kernel of PyTorch does without
compilation: the library refuses it under SDPA and falls back to eager attention. Such layers run
`softcapped_attention` here, which computes the same and keeps no matrix for the backward pass.

The probe travels as a keyword argument through the model's forward: nothing is stored on the model, and two models or
two threads do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "fused_with_rows"  # with "sdpa" in its name the library would not let Gemma 2 have it
BLOCK = 256  # queries that `softcapped_attention` handles at once


@dataclass
class AttentionProbe:
    """Asks for the attention weights of some rows over some columns in some layers, in one forward pass.

    The first record of a layer stays: gradient checkpointing runs the layer once more in the backward pass.

    Attributes:
        layers: indices of the decoder layers to read.
        rows: slice of query positions (tokens of the instruction, or of the actions).
        columns: slice of key positions (the image patches).
        weights: after the forward pass, layer -> float32 [b h rows columns], detached.
    """

    layers: tuple[int, ...]
    rows: slice
    columns: slice
    weights: dict[int, Float[Tensor, "b h t n"]] = field(default_factory=dict)

    def stacked(self) -> Float[Tensor, "b l h t n"]:
        """All layers asked for, in order.

        Raises:
            RuntimeError: if a layer never reported, which means that the model does not run `IMPLEMENTATION`.
        """
        missing = [layer for layer in self.layers if layer not in self.weights]
        if missing:
            raise RuntimeError(
                f"layers {missing} reported no attention: load the model with attn_implementation='{IMPLEMENTATION}'"
            )
        return torch.stack([self.weights[layer] for layer in self.layers], dim=1)

    def see(
        self,
        layer: int,
        query: Float[Tensor, "b h s e"],
        key: Float[Tensor, "b g s e"],
        mask: Tensor | None,
        scaling: float,
        causal: bool,
        softcap: float | None,
    ) -> None:
        """Called in every layer with what its kernel gets."""
        if layer in self.layers and layer not in self.weights:
            with torch.no_grad():
                self.weights[layer] = attention_rows(
                    query, key, mask, scaling, self.rows, self.columns, causal, softcap
                )


@dataclass
class QueryProbe:
    """Keeps queries and keys themselves, with their gradient.

    Attributes:
        projections: after the forward pass, layer -> (query [b h s e], key [b g s e]), both after the rotary embedding.
    """

    projections: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def see(self, layer: int, query: Tensor, key: Tensor, *_: Any) -> None:
        """As `AttentionProbe.see`."""
        self.projections[layer] = (query, key)


def attention_weights(
    query: Float[Tensor, "b h t e"],
    key: Float[Tensor, "b g s e"],
    allowed: Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Float[Tensor, "b h t s"]:
    """softmax(cap(q k^T * scaling) + mask) in float32; g < h means grouped queries.

    `allowed` is bool (True = may attend) or additive, and broadcasts to [b h t s]. A row that may attend to nothing
    comes out uniform, as in the library's eager attention.
    """
    b, h, t, e = query.shape
    groups = key.shape[1]
    grouped = query.reshape(b, groups, h // groups * t, e)
    logits = (grouped @ key.transpose(-1, -2)).view(b, h, t, -1).float() * scaling
    if softcap is not None:  # Gemma 2 (arXiv 2408.00118), section 2
        logits = torch.tanh(logits / softcap) * softcap
    if allowed is not None:
        lowest = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~allowed, lowest) if allowed.dtype == torch.bool else logits + allowed.float()
    return logits.softmax(-1)


def _allowed(mask: Tensor | None, causal: bool, rows: slice, shape: tuple[int, int], device: Any) -> Tensor | None:
    """The rows of the mask. `causal` counts where SDPA counts it: without a mask and with more than one query.

    `shape` is the number of queries and of keys.
    """
    if mask is not None:
        return mask[:, :, rows]
    if causal and shape[0] > 1:
        now, seen = (torch.arange(count, device=device) for count in shape)
        return seen <= now[rows, None]
    return None


def attention_rows(
    query: Float[Tensor, "b h s e"],
    key: Float[Tensor, "b g s e"],
    mask: Tensor | None,
    scaling: float,
    rows: slice,
    columns: slice,
    causal: bool = False,
    softcap: float | None = None,
) -> Float[Tensor, "b h t n"]:
    """The attention weights of `rows` over `columns`, float32; see `attention_weights`.

    `mask` is [b 1 s s] as SDPA takes it; windows and padding are in it.
    """
    allowed = _allowed(mask, causal, rows, (query.shape[2], key.shape[2]), query.device)
    return attention_weights(query[:, :, rows], key, allowed, scaling, softcap)[..., columns]


def softcapped_attention(
    query: Float[Tensor, "b h s e"],
    key: Float[Tensor, "b g s e"],
    value: Float[Tensor, "b g s e"],
    mask: Tensor | None,
    scaling: float,
    softcap: float,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b s h e"]:
    """Attention with squashed logits, `BLOCK` queries at a time, computed once more in the backward pass.

    So the memory that it keeps grows with the sequence, not with its square.
    """
    b, h, s, _ = query.shape
    groups, keys = key.shape[1:3]

    def block(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        allowed = _allowed(mask, causal, rows, (s, keys), query.device)
        weights = attention_weights(query, key, allowed, scaling, softcap).to(value.dtype)
        weights = nn.functional.dropout(weights, dropout, training=dropout > 0)
        return (weights.view(b, groups, -1, keys) @ value).view(b, h, -1, value.shape[-1])

    parts = []
    for start in range(0, s, BLOCK):
        rows = slice(start, min(start + BLOCK, s))
        given = query[:, :, rows], key, value, rows
        kept = torch.is_grad_enabled() and any(part.requires_grad for part in given[:3])
        again: Any = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=dropout > 0) if kept else None
        parts.append(again if kept else block(*given))
    return torch.cat(parts, dim=2).transpose(1, 2)


def sdpa_with_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    probe: AttentionProbe | QueryProbe | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The library's own SDPA forward, or `softcapped_attention`; a probe passed along sees queries and keys."""
    layer: Any = module.layer_idx
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    softcap: float | None = kwargs.pop("softcap", None)
    causal: Any = kwargs.get("is_causal")
    if causal is None:  # the library's own order: the call, the module, True
        causal = getattr(module, "is_causal", True)
    if probe is not None:
        probe.see(layer, query, key, attention_mask, scaling, causal, softcap)
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dropout = kwargs.get("dropout", 0.0)
    return softcapped_attention(query, key, value, attention_mask, scaling, softcap, causal, dropout), None


AttentionInterface.register(IMPLEMENTATION, sdpa_with_rows)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
