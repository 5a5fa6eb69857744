"""PaliGemma (arXiv 2407.07726) at any size behind the `Backbone` protocol: one class, one code path.

The sequence, and who attends to whom (prefix-LM: the prefix is bidirectional, the suffix causal)::

    [ image n ] [ bos ] [ instruction ] [ newline ] [ padding ] | [ proprioception ] [ action queries c ]
    |<------------- prefix: all see all ------------>|  nobody   |<- suffix: sees prefix and its own past ->|

The prefix never sees the suffix, so saliency and patch features do not depend on robot state or on the queries. The
image patches do see the instruction. All actions of a chunk are decoded in one pass from the queries; or there is one
query, and action tokens follow it, each of which sees the ones before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.utils import logging as transformers_logging

from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe
from la_reconvla.backbones.continuing import Continuing, Memory
from la_reconvla.backbones.shared import HALF, BackboneConfig, Geometry, average, last_layers, tower_of
from la_reconvla.backbones.stems import StemName, build_stem, check_stem
from la_reconvla.backbones.text import Tokens, encode
from la_reconvla.backbones.windows import window_masks
from la_reconvla.contracts import AttentionRows, Features, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import position_table
from la_reconvla.method.pixels import signed
from la_reconvla.robot import Proprioception

TOKENIZER = Path(__file__).with_name("tokenizer.json")
PAD, EOS, BOS, UNK, IMAGE = range(5)


@dataclass(frozen=True)
class SmallPaliGemma:
    """A PaliGemma of any size; the same class as the published one.

    Attributes:
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels; must divide `image_size`.
        width: hidden size of both towers.
        vision_layers: SigLIP layers.
        language_layers: Gemma layers.
        attention_heads: of both towers; must divide `width`.
        kv_heads: key-value heads of the language model (grouped queries).
        mlp: hidden size of the feed-forward layers over `width`.
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token; off by default, as published.
        wrist: a second camera as a second block of image tokens; off by default.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: maximum length of an instruction in tokens.
        weights: what training starts from: a name in `la_reconvla.backbones.packaged`, a file written by
            ``la-reconvla pretrain``, or None for random ones.
        weights_hash: hash of that file; filled in by `la_reconvla.training.start_weights.pinned`.
        stem: what makes image tokens of pixels, see `la_reconvla.backbones.stems`; one linear map of a patch, as
            published, by default.
        freeze_vision: vision tower and projector stay as `weights` has them; a gradient passes them to the pixels.
    """

    image_size: int = 112
    patch: int = 16
    width: int = 128
    vision_layers: int = 3
    language_layers: int = 3
    attention_heads: int = 4
    kv_heads: int = 2
    mlp: int = 4
    chunk: int = 8
    proprio: Proprioception = "none"
    wrist: bool = False
    saliency_layers: int = 3
    max_tokens: int = 40
    weights: str | None = None
    weights_hash: str | None = None
    stem: StemName = "patch"
    freeze_vision: bool = False

    def __post_init__(self):
        if self.image_size % self.patch:
            raise UserError(f"patch {self.patch} does not divide the image size {self.image_size}")
        if self.width % self.attention_heads or self.attention_heads % self.kv_heads:
            raise UserError(
                f"width {self.width}, attention_heads {self.attention_heads} and kv_heads {self.kv_heads} must divide "
                "in turn"
            )
        if self.width % 4:
            raise UserError(f"width {self.width} must be divisible by 4: it places a patch's row and column")
        if not 1 <= self.saliency_layers <= self.language_layers:
            raise UserError(f"saliency_layers must be 1 to {self.language_layers}, got {self.saliency_layers}")
        if self.chunk < 1:
            raise UserError(f"chunk must be at least 1, got {self.chunk}")
        check_stem(self.stem, self.patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch, self.image_size // self.patch

    @property
    def architecture(self) -> dict[str, int | str]:
        """What decides the names and shapes of the model's weights, and what its positions mean."""
        shapes = ("image_size", "patch", "width", "vision_layers", "language_layers", "attention_heads")
        shapes += ("kv_heads", "mlp", "stem")
        return {name: getattr(self, name) for name in shapes}

    def build(self) -> PaliGemmaBackbone:
        """The backbone with fresh weights from torch's global generator (see `randomness.seeded`)."""
        tokenizer = Tokenizer.from_file(str(TOKENIZER))
        config: Any = PaliGemmaConfig(
            vision_config=SiglipVisionConfig(
                image_size=self.image_size,
                patch_size=self.patch,
                hidden_size=self.width,
                intermediate_size=self.mlp * self.width,
                num_hidden_layers=self.vision_layers,
                num_attention_heads=self.attention_heads,
                vision_use_head=False,  # pyright: ignore[reportCallIssue] (unknown to the last release for Python 3.10)
            ).to_dict(),
            text_config=GemmaConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=self.width,
                intermediate_size=self.mlp * self.width,
                num_hidden_layers=self.language_layers,
                num_attention_heads=self.attention_heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.width // self.attention_heads,
                pad_token_id=PAD,
                eos_token_id=EOS,
                bos_token_id=BOS,
            ).to_dict(),
            image_token_index=IMAGE,  # the configuration's name for image_token_id
            projection_dim=self.width,
            hidden_size=self.width,
        )
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # a small vocabulary makes the library warn about its own defaults
        try:
            model = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        finally:
            transformers_logging.set_verbosity(level)
        scale_by_fan_in(model)
        if (stem := build_stem(self.stem, self.patch, self.width)) is not None:
            embeddings = tower_of(model.model.vision_tower).embeddings
            embeddings.patch_embedding = stem
        if self.freeze_vision:
            for seeing in (model.model.vision_tower, model.model.multi_modal_projector):
                seeing.requires_grad_(False)
        return PaliGemmaBackbone(model, tokenizer, self)


@torch.no_grad()
def scale_by_fan_in(model: PaliGemmaForConditionalGeneration) -> None:
    """Redraw all weights with standard deviation 1/sqrt(fan-in).

    The library's fixed 0.02 assumes widths of thousands: at width 128 the signal shrinks by four in every layer and the
    policy barely learns. Embeddings get unit variance after Gemma's own scaling by sqrt(width). Positions start as
    MAE's sine-cosine table at unit variance: neighbours are alike, so what is learnt at one place holds at the next.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))
    embeddings = tower_of(model.model.vision_tower).embeddings
    side = embeddings.image_size // embeddings.patch_size
    embeddings.position_embedding.weight.copy_(
        math.sqrt(2) * position_table((side, side), embeddings.position_embedding.embedding_dim)
    )


@torch.no_grad()
def whiten_patches(backbone: PaliGemmaBackbone, images: UInt8[Tensor, "m 3 H W"]) -> None:
    """Start the patch embedding from the statistics of the training images (Coates and Ng, 2012).

    Most of a patch is what it shows in every image: the table, the light. An embedding of random filters passes that on
    and nearly drowns what differs. Here the filters are the principal components of the patches, each scaled to
    unit variance and turned by a random rotation, and the position embedding takes away the mean of its position.

    Args:
        backbone: with fresh weights; its patch embedding and position embedding are changed in place. Only where
            `PaliGemmaBackbone.whitens`.
        images: some training images.
    """
    embeddings = tower_of(backbone.model.vision_tower).embeddings
    weight: Tensor = embeddings.patch_embedding.weight
    p, width = backbone.patch_size, weight.shape[0]
    patches = rearrange(signed(images), "m c (r p) (s q) -> m (r s) (c p q)", p=p, q=p)
    mean = patches.mean(0)
    centred = (patches - mean).flatten(0, 1)
    variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    kept = min(width, len(variances))
    variances, components = variances[-kept:].clamp_min(0), components[:, -kept:]
    floor = 1e-3  # added to all variances, as a share of the largest, so that noise is not blown up
    scale = (variances + floor * variances[-1].clamp_min(1e-6)).rsqrt() * math.sqrt(width / kept)
    rotation = torch.linalg.qr(weight.flatten(1)[:, :kept]).Q
    filters = rotation @ (components * scale).T
    weight.copy_(filters.view_as(weight))
    embeddings.position_embedding.weight.sub_(mean @ filters.T)


class PaliGemmaBackbone(Continuing):
    """`contracts.Backbone` on `PaliGemmaForConditionalGeneration`: PaliGemma, and PaliGemma 2 with Gemma 2 inside.

    Args:
        model: the transformers model, of any size.
        tokenizer: a `tokenizers.Tokenizer`.
        config: the options that are not the model's own.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration, tokenizer: Tokenizer, config: BackboneConfig):
        text: Any = model.config.text_config
        super().__init__(tokenizer, config, text.hidden_size, self.geometry_of(model.config))
        self.saliency_layers = last_layers(range(text.num_hidden_layers), config.saliency_layers)
        del model.lm_head  # actions have their own head; tied weights stay in the embedding
        model.model.language_model.set_attn_implementation(IMPLEMENTATION)
        self.model = model.model

    @staticmethod
    def geometry_of(architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """Size of the picture and of an image token, from the library's configuration."""
        return Geometry(architecture.vision_config.image_size, architecture.vision_config.patch_size)

    @property
    def whitens(self) -> bool:
        """Whether the stem is one linear map of a patch, which `whiten_patches` can fit to training images."""
        return isinstance(tower_of(self.model.vision_tower).embeddings.patch_embedding, nn.Conv2d)

    @property
    def language(self) -> Any:
        """The language model."""
        return self.model.language_model

    def encode(self, instructions: list[str]) -> Tokens:
        """Tokens of bos, instruction, newline, padding.

        Raises:
            UserError: if an instruction is empty or longer than `max_tokens`.
        """
        newline = self.tokenizer.encode("\n", add_special_tokens=False).ids
        return encode(
            self.tokenizer,
            instructions,
            before=[BOS],
            after=newline,
            pad=PAD,
            max_tokens=self.config.max_tokens,
        ).to(self.queries.device)

    def images(self, images: UInt8[Tensor, "b 3 H W"], hidden: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n d"]:
        """Projected image tokens; the pixels of `hidden` patches are replaced by mid-grey *before* the tower."""
        pixels = HALF(images, self.geometry, hidden, self.queries.dtype)
        features: Any = self.model.get_image_features(pixels)  # pyright: ignore[reportArgumentType] (there, too)
        return features.pooler_output

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
            UserError: if the image has another size, or camera or robot state are missing or not expected.
        """
        self.check(inputs)
        b, n = inputs.images.shape[0], self.grid[0] * self.grid[1]
        tokens = self.encode(inputs.instructions)
        blocks = [self.images(inputs.images, hidden)]
        if inputs.wrist is not None:
            blocks.append(self.images(inputs.wrist, None))
        first = sum(block.shape[1] for block in blocks)  # position of the text
        blocks.append(self.model.get_input_embeddings()(tokens.ids))
        prefix = first + tokens.ids.shape[1]
        blocks.append(self.suffix(inputs, blocks[0].dtype, following))
        embeddings = torch.cat(blocks, dim=1)

        length = embeddings.shape[1]
        suffix = (torch.arange(length, device=embeddings.device) >= prefix).long().expand(b, -1)
        ones = torch.ones(b, length, dtype=torch.long, device=embeddings.device)
        present = torch.cat([ones[:, :first], tokens.present.long(), ones[:, prefix:]], dim=1)
        acting = slice(length - self.answers(following), length)
        queries = slice(acting.start, acting.start + self.config.chunk)  # not the true actions behind them
        asked = {"instruction": slice(first, prefix), "actions": queries}
        probe = AttentionProbe(self.saliency_layers, asked[attention], slice(0, n)) if attention else None
        positions = present.cumsum(1)  # PaliGemma counts from 1; padding does not count
        masks: Any = window_masks(self.language.config, present, length, prefix)
        model, seen = self.language, {"attention_mask": masks}
        if masks is None:
            model, seen = self.model, {"attention_mask": present, "token_type_ids": suffix}
        out = model(
            inputs_embeds=embeddings,
            position_ids=positions,
            **seen,
            **(memory.over(present, positions) if memory else {"use_cache": False}),
            **({"probe": probe} if probe else {}),
        ).last_hidden_state
        own = attention == "instruction"
        token_mask, spans = (tokens.token_mask, tokens.spans) if own else (suffix[:, queries] > 0, None)
        return Features(
            patches=out[:, :n],
            action_states=out[:, acting],
            instruction_state=average(tokens, out[:, first:prefix]),
            attention=probe.stacked() if probe else None,
            token_mask=token_mask if probe else None,
            spans=spans if probe else None,
            grid=self.grid,
        )
