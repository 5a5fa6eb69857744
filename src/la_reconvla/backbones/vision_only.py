"""A vision tower alone (SigLIP, arXiv 2303.15343): the named fallback of backbones without language-to-image attention.

Such a model has no attention from words to the image. What it has is the attention that its image tokens pay to one
another, which finds salient things and cannot know which of them the instruction names: the map is the same under every
instruction. Therefore `Features.channel` is ``image_self_attention`` instead of ``language``, and logs, results and
report repeat it.

The words enter through two small attention layers behind the tower, with weights of their own: the patches listen to
the words (so that a reconstruction can depend on them), and the action queries look at patches and words.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor, nn

from la_reconvla.backbones.attention_probe import attention_weights
from la_reconvla.backbones.shared import HALF, BackboneConfig, Geometry, Wrapped, average, last_layers, tower_of
from la_reconvla.backbones.text import encode
from la_reconvla.contracts import AttentionRows, Features, PolicyInput


class VisionOnlyBackbone(Wrapped):
    """`contracts.Backbone` on `SiglipVisionModel`.

    Args:
        model: the transformers model, of any size.
        tokenizer: a `tokenizers.Tokenizer`; its words get embeddings of their own.
        config: the options that are not the model's own.
    """

    pixels = HALF

    def __init__(self, model: Any, tokenizer: Tokenizer, config: BackboneConfig):
        vision = model.config
        super().__init__(tokenizer, config, vision.hidden_size, self.geometry_of(vision))
        self.saliency_layers = last_layers(range(vision.num_hidden_layers), config.saliency_layers)
        self.model: Any = tower_of(model)
        self.model.use_head, self.model.head = False, None  # one vector for the whole image: nothing here reads it
        attention_heads = vision.num_attention_heads
        self.words = nn.Embedding(tokenizer.get_vocab_size(), self.width)
        self.listen = nn.MultiheadAttention(self.width, attention_heads, batch_first=True)
        self.act = nn.MultiheadAttention(self.width, attention_heads, batch_first=True)

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """From the tower's configuration, or from the one that holds it."""
        vision = getattr(architecture, "vision_config", architecture)
        return Geometry(vision.image_size, vision.patch_size)

    def see(
        self, pixels: Float[Tensor, "b 3 H W"], layers: tuple[int, ...] = ()
    ) -> tuple[Float[Tensor, "b n d"], list[Float[Tensor, "b h n n"]]]:
        """Image tokens, and the attention among them in `layers`.

        SigLIP's layers pass nothing on to the kernel, so that no probe gets there. The rows are computed from a layer's
        input instead, which costs its two projections once more.
        """
        hidden, maps = self.model.embeddings(pixels), []
        for index, layer in enumerate(self.model.encoder.layers):
            if index in layers:
                with torch.no_grad():
                    maps.append(_self_attention(layer, hidden))
            hidden = layer(hidden, None)
        return self.model.post_layernorm(hidden), maps

    def forward(
        self, inputs: PolicyInput, *, attention: AttentionRows | None = None, hidden: Bool[Tensor, "b n"] | None = None
    ) -> Features:
        """See `la_reconvla.contracts.Backbone`. Rows of either kind are answered by those of the image tokens.

        Raises:
            UserError: if the image has another size, camera or robot state are missing or not expected, or an
                instruction is empty or too long.
        """
        self.check(inputs)
        dtype, device = self.queries.dtype, inputs.images.device
        tokens = encode(self.tokenizer, inputs.instructions, max_tokens=self.config.max_tokens).to(device)
        words = self.words(tokens.ids)
        layers = self.saliency_layers if attention else ()
        patches, maps = self.see(self.pixels(inputs.images, self.geometry, hidden, dtype), layers)
        padding = ~tokens.present
        patches = patches + self.listen(patches, words, words, key_padding_mask=padding, need_weights=False)[0]
        scene = [patches, words]
        if inputs.wrist is not None:
            scene.insert(1, self.see(self.pixels(inputs.wrist, self.geometry, None, dtype))[0])
        suffix = self.suffix(inputs, patches.dtype)
        chunk = self.config.chunk
        scene.insert(1, suffix[:, :-chunk])  # the robot's state, if any
        every = torch.cat(scene, dim=1)
        blocked = padding.new_zeros(every.shape[:2])
        blocked[:, every.shape[1] - words.shape[1] :] = padding
        queries = suffix[:, -chunk:]
        states = queries + self.act(queries, every, every, key_padding_mask=blocked, need_weights=False)[0]
        return Features(
            patches=patches,
            action_states=states,
            instruction_state=average(tokens, words),
            attention=torch.stack(maps, dim=1) if attention else None,
            token_mask=torch.ones(patches.shape[:2], dtype=torch.bool, device=device) if attention else None,
            grid=self.grid,
            channel="image_self_attention",
        )


def _self_attention(layer: Any, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n n"]:
    """What `layer` will compute from `hidden`, all rows."""
    attend = layer.self_attn
    normed = layer.layer_norm1(hidden)
    b, n, _ = hidden.shape
    query, key = (
        project(normed).view(b, n, attend.num_heads, attend.head_dim).transpose(1, 2)
        for project in (attend.q_proj, attend.k_proj)
    )
    return attention_weights(query, key, None, attend.scale)
