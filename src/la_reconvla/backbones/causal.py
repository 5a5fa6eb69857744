"""Causal vision-language models: SmolVLM and Idefics3, LLaVA, Qwen2.5-VL.

In a causal model a token attends only to what precedes it. An image before its instruction does not depend on it: patch
states carry no language, and to reconstruct from them would train nothing that the words could change. An instruction
before its image never sees it: its rows over the image are zero, and there is no map. So the instruction appears on
both sides::

    [ bos ] [ instruction ] [ padding ] [ image n ] [ wrist n ] [ instruction ] [ padding ] | [ state ] [ queries c ]
            heard by the patches                                sees the image: `attention`, `instruction_state`

The patches come after the first copy, so their states know the words. The saliency reads the second copy, which sees
the image (rows "instruction"), or the action queries (rows "actions"). The second copy's rows of the last layer are
read by the action head through `Features.instruction_state`. Only the language model is called, with embeddings:
padding is masked wherever it is and does not count in positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer
from torch import Tensor

from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe
from la_reconvla.backbones.continuing import Continuing, Memory
from la_reconvla.backbones.shared import CLIP, HALF, BackboneConfig, Geometry, Normalisation, average, last_layers
from la_reconvla.backbones.text import encode
from la_reconvla.backbones.windows import window_masks
from la_reconvla.contracts import AttentionRows, Features, PolicyInput


class Blocks:
    """Blocks of embeddings, one after the other, and which of them are no padding."""

    def __init__(self, first: Float[Tensor, "b t d"], present: Bool[Tensor, "b t"]):
        self.dtype, self._embeddings, self._present = first.dtype, [first], [present]

    def add(self, block: Float[Tensor, "b t d"], present: Bool[Tensor, "b t"] | None = None) -> slice:
        """Append a block, which without `present` has no padding; its positions."""
        start = sum(part.shape[1] for part in self._embeddings)
        self._embeddings.append(block.to(self.dtype))
        every = torch.ones(block.shape[:2], dtype=torch.bool, device=block.device)
        self._present.append(every if present is None else present)
        return slice(start, start + block.shape[1])

    def joined(self) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        """All of them."""
        return torch.cat(self._embeddings, dim=1), torch.cat(self._present, dim=1)


class CausalBackbone(Continuing):
    """`contracts.Backbone` on a causal vision-language model; one subclass a family.

    Args:
        model: a transformers model for conditional generation, of any size.
        tokenizer: a `tokenizers.Tokenizer`.
        config: the options that are not the model's own.
    """

    pixels: Normalisation = HALF
    opening: ClassVar[tuple[str, ...]] = ()  # special tokens before an image, where the tokenizer has them
    closing: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, tokenizer: Tokenizer, config: BackboneConfig):
        text = model.config.get_text_config()
        super().__init__(tokenizer, config, text.hidden_size, self.geometry_of(model.config, config))
        self.saliency_layers = last_layers(range(text.num_hidden_layers), config.saliency_layers)
        del model.lm_head  # actions have their own head; tied weights stay in the embedding
        self.model: Any = model.model
        self.language.set_attn_implementation(IMPLEMENTATION)

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """Size of the picture and of an image token, from the library's configuration."""
        vision = architecture.vision_config
        return Geometry(vision.image_size, vision.patch_size)

    @property
    def language(self) -> Any:
        """The language model."""
        return self.model.language_model

    def see(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """Image tokens, as the language model takes them, row by row."""
        raise NotImplementedError

    def positions(self, present: Bool[Tensor, "b s"], images: list[slice]) -> Int64[Tensor, "..."]:
        """Position of each token; padding does not count."""
        return (present.cumsum(1) - 1).clamp_min(0)

    def forward(
        self,
        inputs: PolicyInput,
        *,
        attention: AttentionRows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        following: Float[Tensor, "b s d"] | None = None,
        memory: Memory | None = None,
    ) -> Features:
        """See `contracts.Backbone`, `method.variants.autoregressive.SequentialBackbone` and the drawing above.

        `memory` is filled for `begin`.

        Raises:
            UserError: if the image has another size, camera or robot state are missing or not expected, or an
                instruction is empty or too long.
        """
        self.check(inputs)
        device, embed = inputs.images.device, self.language.get_input_embeddings()
        bos = self.tokenizer.encode("").ids  # what this tokenizer puts before every text
        before, again = (
            encode(self.tokenizer, inputs.instructions, before=start, max_tokens=self.config.max_tokens).to(device)
            for start in (bos, [])
        )
        sequence = Blocks(embed(before.ids), before.present)
        pictures = self._add_pictures(sequence, inputs, hidden)
        words = sequence.add(embed(again.ids), again.present)
        end = sequence.add(self.suffix(inputs, sequence.dtype, following)).stop
        acting = slice(end - self.answers(following), end)

        queries = slice(acting.start, acting.start + self.config.chunk)  # not the true actions behind them
        own = attention == "instruction"
        probe = AttentionProbe(self.saliency_layers, words if own else queries, pictures[0]) if attention else None
        embeddings, present = sequence.joined()
        positions = self.positions(present, pictures)
        masks = window_masks(self.language.config, present, present.shape[1])
        out = self.language(
            inputs_embeds=embeddings,
            attention_mask=present.long() if masks is None else masks,
            position_ids=positions,
            **(memory.over(present.long(), positions) if memory else {"use_cache": False}),
            **({"probe": probe} if probe else {}),
        ).last_hidden_state
        return Features(
            patches=out[:, pictures[0]],
            action_states=out[:, acting],
            instruction_state=average(again, out[:, words]),
            attention=probe.stacked() if probe else None,
            token_mask=(again.token_mask if own else present[:, queries]) if probe else None,
            spans=again.spans if own else None,
            grid=self.grid,
        )

    def _add_pictures(self, sequence: Blocks, inputs: PolicyInput, hidden: Bool[Tensor, "b n"] | None) -> list[slice]:
        """Append both cameras, each between its markers; positions of their image tokens."""
        b, device, places = len(inputs.images), inputs.images.device, []
        for picture, masked in ((inputs.images, hidden), (inputs.wrist, None)):
            if picture is not None:
                sequence.add(self._special(self.opening, b, device))
                pixels = self.pixels(picture, self.geometry, masked, self.queries.dtype)
                places.append(sequence.add(self.see(pixels)))
                sequence.add(self._special(self.closing, b, device))
        return places

    def _special(self, tokens: tuple[str, ...], b: int, device: torch.device) -> Float[Tensor, "b s d"]:
        ids = torch.tensor(self.markers(*tokens), dtype=torch.long, device=device)
        return repeat(self.language.get_input_embeddings()(ids), "s d -> b s d", b=b)


class SmolVLMBackbone(CausalBackbone):
    """SmolVLM (arXiv 2504.05299) and Idefics3 (2408.12637): `scale_factor` squared patches make one image token.

    The picture enters whole, as their "global" image, without the tiles of a larger one.
    """

    opening = ("<fake_token_around_image>", "<global-img>")
    closing = ("<fake_token_around_image>",)

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """Merged patches."""
        vision = architecture.vision_config
        return Geometry(vision.image_size, vision.patch_size * architecture.scale_factor)

    @property
    def language(self) -> Any:
        """The language model."""
        return self.model.text_model

    def see(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """Without `get_image_features`, which drops pictures whose pixels are all mid-grey."""
        return self.model.connector(self.model.vision_model(pixel_values=pixels).last_hidden_state)


class LlavaBackbone(CausalBackbone):
    """LLaVA (arXiv 2304.08485, 2310.03744) with CLIP or SigLIP as its tower."""

    def __init__(self, model: Any, tokenizer: Tokenizer, config: BackboneConfig):
        super().__init__(model, tokenizer, config)
        self.pixels = HALF if "siglip" in model.config.vision_config.model_type else CLIP

    def see(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """The projected layer that the configuration names."""
        return torch.stack(list(self.model.get_image_features(pixels).pooler_output))


class Qwen2VLBackbone(CausalBackbone):
    """Qwen2.5-VL (arXiv 2502.13923): pictures of any size, merged patches, positions in time, rows and columns.

    The picture's size is `config.image_size`, 448 px (16 x 16 image tokens) by default.
    """

    pixels = CLIP
    opening = ("<|vision_start|>",)
    closing = ("<|vision_end|>",)
    IMAGE_SIZE = 448

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """Merged patches of a picture whose size is free."""
        vision = architecture.vision_config
        size = Qwen2VLBackbone.IMAGE_SIZE if config is None else config.image_size
        return Geometry(size, vision.patch_size * vision.spatial_merge_size)

    def see(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """Patches in the order of the merger: block by block, each a still film of `temporal_patch_size` frames."""
        vision: Any = self.model.visual
        p, m, frames = vision.patch_size, vision.spatial_merge_size, vision.config.temporal_patch_size
        patches = rearrange(pixels, "b c (r i p) (s j q) -> (b r s i j) c p q", p=p, q=p, i=m, j=m)
        patches = repeat(patches, "k c p q -> k (c t p q)", t=frames)
        b, side = len(pixels), self.geometry.image_size // p
        sizes = torch.tensor([[1, side, side]] * b, device=pixels.device)
        return vision(patches, grid_thw=sizes).pooler_output.view(b, -1, self.width)

    def positions(self, present: Bool[Tensor, "b s"], images: list[slice]) -> Int64[Tensor, "3 b s"]:
        """Text counts up in all three; an image is constant in time and spreads over rows and columns."""
        rows, columns = self.grid
        steps = present.long().expand(3, -1, -1).clone()
        for place in images:
            steps[:, :, place] = 0
            steps[:, :, place.stop - 1] = max(rows, columns)  # what follows starts behind the longer side
        counted = steps.cumsum(2)
        positions = counted - 1
        cells = torch.arange(rows * columns, device=present.device)
        inside = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns])
        for place in images:
            start = counted[:, :, place.start - 1, None] if place.start else 0
            positions[:, :, place] = start + inside[:, None]
        return positions.clamp_min(0)
