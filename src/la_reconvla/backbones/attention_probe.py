"""Attention rows beside the fused kernel.

`output_attentions=True` gives nothing on a fused (SDPA) model, and the eager implementation pays for the whole
matrix in every layer. The saliency needs a few rows (the instruction's tokens) of a few layers (the last three). So the
model keeps its fused kernel, and for those layers only this module computes the softmax of those rows, from the very
q and k, after the rotary embedding, that the kernel gets.

The probe travels as a keyword argument through the model's forward: nothing is stored on the model, and two models or
two threads do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "sdpa_with_rows"


@dataclass
class AttentionProbe:
    """Asks for the attention weights of some rows over some columns in some layers, in one forward pass.

    The first record of a layer stays: gradient checkpointing runs the layer once more in the backward pass.

    Attributes:
        layers: indices of the decoder layers to read.
        rows: slice of query positions (the instruction's tokens).
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


def attention_rows(
    query: Float[Tensor, "b h s e"],
    key: Float[Tensor, "b g s e"],
    mask: Tensor | None,
    scaling: float,
    rows: slice,
    columns: slice,
    causal: bool = False,
) -> Float[Tensor, "b h t n"]:
    """softmax(q k^T * scaling + mask) for `rows`, then `columns`; float32. g < h means grouped queries.

    `mask` is bool (True = may attend) or additive, [b 1 s s], as SDPA takes it. `causal` counts where SDPA counts it:
    without a mask and with more than one query.
    """
    picked = query[:, :, rows]
    b, h, t, e = picked.shape
    groups = key.shape[1]
    grouped = picked.reshape(b, groups, h // groups * t, e)
    logits = (grouped @ key.transpose(-1, -2)).view(b, h, t, -1).float() * scaling
    if mask is None and causal and query.shape[2] > 1:
        now, seen = (torch.arange(part.shape[2], device=query.device) for part in (query, key))
        logits = logits.masked_fill(seen > now[rows, None], -torch.inf)
    elif mask is not None:
        part = mask[:, :, rows]
        logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part.float()
    return logits.softmax(-1)[..., columns]


def sdpa_with_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    probe: AttentionProbe | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The library's own SDPA forward; a probe passed with the call also reads its rows in its layers."""
    layer: Any = module.layer_idx
    if probe is not None and layer in probe.layers and layer not in probe.weights:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        causal: Any = kwargs.get("is_causal")
        if causal is None:  # the library's own order: the call, the module, True
            causal = getattr(module, "is_causal", True)
        with torch.no_grad():
            probe.weights[layer] = attention_rows(
                query, key, attention_mask, scaling, probe.rows, probe.columns, causal
            )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, sdpa_with_rows)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
