"""Going on behind a sequence, one token at a time, as autoregressive decoding does.

The sequence is run once and leaves its keys and values in a cache; each further token is one row that attends to them
and to its own past. Padding inside the sequence stays masked and counts in no position, so that the answers are those
of one pass over sequence and tokens together (a test).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from la_reconvla.backbones.shared import Wrapped
from la_reconvla.backbones.windows import window_masks
from la_reconvla.contracts import Features, PolicyInput
from la_reconvla.method.variants.autoregressive import Step


class Memory:
    """What a forward pass leaves behind for the tokens that follow it; itself the `Step` that takes them.

    The cache keeps every token in every layer: where a layer has a window, the mask holds it.

    Args:
        language: the language model.
    """

    def __init__(self, language: Any):
        self.language, self.cache = language, DynamicCache()

    def over(self, present: Tensor, positions: Tensor) -> dict[str, Any]:
        """Arguments that make the model remember; `present` [b s] and `positions` [... b s] are of the sequence."""
        self.present, self.position = present, positions[..., -1:]
        return {"past_key_values": self.cache, "use_cache": True}

    def __call__(self, token: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Final hidden state of one more token."""
        self.present = torch.cat([self.present, torch.ones_like(self.present[:, :1])], dim=1)
        self.position = self.position + 1
        masks = window_masks(self.language.config, self.present, 1)
        return self.language(
            inputs_embeds=token[:, None],
            attention_mask=self.present if masks is None else masks,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]


class Continuing(Wrapped):
    """A backbone whose `forward` takes `following` and `memory`: it satisfies `autoregressive.SequentialBackbone`."""

    @property
    def language(self) -> Any:
        """The language model."""
        raise NotImplementedError

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """See `la_reconvla.method.variants.autoregressive.SequentialBackbone`."""
        table = self.language.get_input_embeddings()
        return table.weight, float(getattr(table, "scalar_embed_scale", 1.0))

    def begin(self, inputs: PolicyInput) -> tuple[Features, Step]:
        """See `la_reconvla.method.variants.autoregressive.SequentialBackbone`."""
        memory = Memory(self.language)
        return self(inputs, memory=memory), memory
