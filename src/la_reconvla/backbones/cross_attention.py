"""Explicit cross-attention: Llama 3.2 Vision (Mllama, arXiv 2407.21783, section 7).

Text is one sequence, the image is another, and some layers of the language model do nothing but look from the first to
the second. Their rows are the map: no image token competes with words in them, and each row sums to one over the
image's class token and patches::

    [ image token ] [ bos ] [ instruction ] [ padding ] | [ patches n ] [ state ] [ queries c ]   causal self-attention
                    `attention`                           `patches`              `action_states`
          |              |                                     |                     |
          +--------------+----- cross-attention layers --------+---------------------+---> [ class ] [ image n ] ...

The image's own states never pass the language model: in them, the instruction could not matter to a reconstruction. So
each patch's state is *also* appended behind the instruction as a token, and what it has become at the end, having heard
the words and looked at the image, is `Features.patches`. That costs n more tokens, and a pretrained model has to learn
them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor

from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe
from la_reconvla.backbones.shared import CLIP, BackboneConfig, Geometry, Wrapped, average, last_layers
from la_reconvla.backbones.text import encode
from la_reconvla.contracts import AttentionRows, Features, PolicyInput


class MllamaBackbone(Wrapped):
    """`contracts.Backbone` on `MllamaForConditionalGeneration`; `saliency_layers` counts cross-attention layers.

    The picture is one tile; the tower's other tiles are empty and masked, and do not enter the language model.

    Args:
        model: the transformers model, of any size.
        tokenizer: a `tokenizers.Tokenizer`.
        config: the options that are not the model's own.
    """

    pixels = CLIP

    def __init__(self, model: Any, tokenizer: Tokenizer, config: BackboneConfig):
        text = model.config.text_config
        super().__init__(tokenizer, config, text.hidden_size, self.geometry_of(model.config))
        self.saliency_layers = last_layers(text.cross_attention_layers, config.saliency_layers)
        del model.lm_head
        self.model: Any = model.model
        self.model.language_model.set_attn_implementation(IMPLEMENTATION)

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """One tile."""
        vision = architecture.vision_config
        return Geometry(vision.image_size, vision.patch_size)

    def see(self, pictures: Float[Tensor, "b i 3 H W"]) -> Float[Tensor, "b i m d"]:
        """Projected states of i pictures: the class token, then n patches."""
        tiles = self.model.vision_model.config.max_num_tiles
        given = torch.zeros(*pictures.shape[:2], tiles, *pictures.shape[2:]).to(pictures)
        given[:, :, 0] = pictures
        first = torch.zeros(*given.shape[:3], dtype=torch.long, device=given.device)
        first[:, :, 0] = 1
        ratio = torch.ones(*given.shape[:2], dtype=torch.long, device=given.device)  # number 1: one tile, 1 x 1
        out = self.model.vision_model(pixel_values=given, aspect_ratio_ids=ratio, aspect_ratio_mask=first)
        return self.model.multi_modal_projector(out.last_hidden_state[:, :, 0])

    def forward(
        self, inputs: PolicyInput, *, attention: AttentionRows | None = None, hidden: Bool[Tensor, "b n"] | None = None
    ) -> Features:
        """See `la_reconvla.contracts.Backbone` and the drawing above.

        Raises:
            UserError: if the image has another size, camera or robot state are missing or not expected, or an
                instruction is empty or too long.
        """
        self.check(inputs)
        device = inputs.images.device
        language, b, dtype = self.model.language_model, len(inputs.images), self.queries.dtype
        before = [*self.markers("<|image|>"), *self.tokenizer.encode("").ids]
        tokens = encode(self.tokenizer, inputs.instructions, before=before, max_tokens=self.config.max_tokens)
        tokens = tokens.to(device)

        pictures = [self.pixels(inputs.images, self.geometry, hidden, dtype)]
        if inputs.wrist is not None:
            pictures.append(self.pixels(inputs.wrist, self.geometry, None, dtype))
        states = self.see(torch.stack(pictures, dim=1))
        words = language.get_input_embeddings()(tokens.ids)
        patches = states[:, 0, 1:].to(words.dtype)
        t, n = words.shape[1], patches.shape[1]
        embeddings = torch.cat([words, patches, self.suffix(inputs, words.dtype)], dim=1)
        s = embeddings.shape[1]
        present = torch.ones(b, s, dtype=torch.long, device=device)
        present[:, :t] = tokens.present
        acting = slice(s - self.config.chunk, s)

        rows = slice(0, t) if attention == "instruction" else acting
        probe = AttentionProbe(self.saliency_layers, rows, slice(1, 1 + n)) if attention else None
        keys = states.flatten(1, 2).to(words.dtype)
        out = language(
            inputs_embeds=embeddings,
            attention_mask=present,
            position_ids=(present.cumsum(1) - 1).clamp_min(0),
            cross_attention_states=keys,
            # without a mask the library's fused kernel would take the look at the image for causal attention
            cross_attention_mask=keys.new_zeros(b, 1, s, keys.shape[1]),
            use_cache=False,
            **({"probe": probe} if probe else {}),
        ).last_hidden_state
        own = attention == "instruction"
        return Features(
            patches=out[:, t : t + n],
            action_states=out[:, acting],
            instruction_state=average(tokens, out[:, :t]),
            attention=probe.stacked() if probe else None,
            token_mask=(tokens.token_mask if own else present[:, acting] > 0) if probe else None,
            spans=tokens.spans if own else None,
            grid=self.grid,
        )
