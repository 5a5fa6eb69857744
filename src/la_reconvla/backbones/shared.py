"""What the backbones of all families do alike: pixels, the robot's state, action queries, checks of what comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from einops import repeat
from jaxtyping import Bool, Float, UInt8
from tokenizers import Tokenizer
from torch import Tensor, nn

from la_reconvla.backbones.text import Tokens
from la_reconvla.contracts import Backbone, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.robot import Proprioception, proprio_width


class BackboneConfig(Protocol):
    """What a backbone is and what it is given: a frozen dataclass, saved with the policy.

    Attributes:
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token; a number is the width of another robot's whole state.
        wrist: a second camera as a second block of image tokens.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: maximum length of an instruction in tokens.
    """

    @property
    def chunk(self) -> int: ...
    @property
    def proprio(self) -> Proprioception: ...
    @property
    def wrist(self) -> bool: ...
    @property
    def saliency_layers(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        ...

    def build(self) -> Backbone:
        """The backbone with its starting weights."""
        ...


class Geometry(NamedTuple):
    """The square picture that a model takes, and the part of it that one image token of its language model covers.

    Attributes:
        image_size: side in pixels.
        patch: side of one image token in pixels; larger than the vision tower's own patch where tokens are merged.
    """

    image_size: int
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.image_size // self.patch, self.image_size // self.patch


@dataclass(frozen=True)
class Normalisation:
    """Of a vision tower's pixels: (pixel / 255 - mean) / std for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        geometry: Geometry,
        hidden: Bool[Tensor, "b n"] | Float[Tensor, "b n"] | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "b 3 H W"]:
        """What the tower gets; the pixels of `hidden` patches are mid-grey, whatever they were.

        A number instead of a truth value is the share of mid-grey in a patch, with a gradient; 0 and 1 are exact.
        """
        pixels = images.to(dtype) / 255
        if hidden is not None:
            p, rows = geometry.patch, geometry.grid[0]
            cover = repeat(hidden, "b (r c) -> b 1 (r p) (c q)", r=rows, p=p, q=p)
            if cover.dtype == torch.bool:
                pixels = pixels.masked_fill(cover, 0.5)
            else:
                pixels = pixels * (1 - cover.to(dtype)) + 0.5 * cover.to(dtype)
        mean, std = (pixels.new_tensor(part).view(1, 3, 1, 1) for part in (self.mean, self.std))
        return (pixels - mean) / std


HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # SigLIP and the models built on it
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP, Qwen-VL, Llama


def last_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """The last `count` of `layers`.

    Raises:
        UserError: if there are not so many.
    """
    if not 1 <= count <= len(layers):
        raise UserError(f"saliency_layers must be 1 to {len(layers)}, got {count}")
    return tuple(layers[len(layers) - count :])


def tower_of(model: Any) -> Any:
    """What a vision tower does itself: until 5.5 the library wraps it in a model that holds nothing else."""
    return getattr(model, "vision_model", model)


class Wrapped(nn.Module):
    """The part of a backbone that does not depend on its family.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        config: the options that are not the model's own.
        width: hidden size of what the backbone returns.
        geometry: of its pictures.
    """

    def __init__(self, tokenizer: Tokenizer, config: BackboneConfig, width: int, geometry: Geometry):
        super().__init__()
        if geometry.image_size % geometry.patch:
            raise UserError(
                f"an image of {geometry.image_size} px has no whole number of image tokens of {geometry.patch} px"
            )
        self.tokenizer, self.config = tokenizer, config
        self.width, self.geometry = width, geometry
        self.patch_size: int = geometry.patch
        self.grid: tuple[int, int] = geometry.grid
        self.queries = nn.Parameter(torch.randn(config.chunk, width))
        proprio = proprio_width(config.proprio)
        self.state = nn.Linear(proprio, width) if proprio else None

    def suffix(
        self, inputs: PolicyInput, dtype: torch.dtype, following: Float[Tensor, "b s d"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """Robot state, if any, the action queries, and action tokens that are known already, if any."""
        blocks: list[Tensor] = [repeat(self.queries, "c d -> b c d", b=len(inputs.images))]
        if self.state is not None and inputs.proprio is not None:
            blocks.insert(0, self.state(inputs.proprio.to(self.queries.dtype))[:, None])
        if following is not None:
            blocks.append(following)
        return torch.cat([block.to(dtype) for block in blocks], dim=1)

    def answers(self, following: Float[Tensor, "b s d"] | None) -> int:
        """How many of the last positions are read as actions: the queries and what follows them."""
        return self.config.chunk + (0 if following is None else following.shape[1])

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """See `la_reconvla.method.variants.autoregressive.SequentialBackbone`.

        Raises:
            UserError: from a backbone that is not one.
        """
        raise UserError(
            "this kind of backbone cannot decode actions token by token: take PaliGemma, SmolVLM, Idefics3, LLaVA or "
            "Qwen2.5-VL, or --decoding parallel"
        )

    def markers(self, *tokens: str) -> list[int]:
        """Numbers of the special tokens among `tokens` that this tokenizer has."""
        found = (self.tokenizer.token_to_id(token) for token in tokens)
        return [number for number in found if number is not None]

    def check(self, inputs: PolicyInput) -> None:
        """Refuse what this backbone was not built for.

        Raises:
            UserError: if the image has another size, or camera or robot state are missing or not expected.
        """
        size = self.geometry.image_size
        for name, picture in (("image", inputs.images), ("wrist image", inputs.wrist)):
            if picture is not None and (tuple(picture.shape[1:]) != (3, size, size) or picture.dtype != torch.uint8):
                raise UserError(
                    f"the {name} must be uint8 [b 3 {size} {size}], got {picture.dtype} {list(picture.shape)}"
                )
        if (inputs.wrist is not None) != self.config.wrist:
            raise UserError(f"this backbone was built with wrist={self.config.wrist}")
        width = proprio_width(self.config.proprio)
        if (0 if inputs.proprio is None else inputs.proprio.shape[1]) != width:
            raise UserError(f"this backbone was built with proprio='{self.config.proprio}' ({width} numbers)")


def average(tokens: Tokens, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    """Mean of the states at the instruction's own tokens."""
    share = (tokens.token_mask / tokens.token_mask.sum(1, keepdim=True)).to(states.dtype)
    return torch.einsum("bt,btd->bd", share, states)
