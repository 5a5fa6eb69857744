"""The values that cross the rooms of this package: numpy on the simulator's side, torch where something learns.

Axes, everywhere in the package (all letters: docs/conventions.md)::

    b batch   n patches   t text tokens   l layers   h attention heads   d width   k masked patches   q target's width
    c actions in a chunk   a action dimensions   p proprioception   r pixels of a patch   H W image rows, columns
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AttentionRows = Literal["instruction", "actions"]  # the tokens whose attention over the image patches is asked for
Channel = Literal["language", "image_self_attention"]  # where an attention map came from; the second is a fallback


@dataclass(frozen=True, eq=False)
class Observation:
    """Current cameras and joints. Images are upright in LIBERO's public convention (turned by 180 degrees)."""

    image: UInt8[np.ndarray, "H W 3"]
    instruction: str
    wrist: UInt8[np.ndarray, "H W 3"] | None = None
    proprio: Float[np.ndarray, " p"] | None = None


@dataclass(frozen=True, eq=False)
class PolicyInput:
    """What a policy is given, in training as in acting.

    Attributes:
        images: uint8 [b 3 H W], the agentview camera at the policy's own size.
        instructions: b strings.
        wrist: uint8 [b 3 H W], the second camera, or None.
        proprio: float32 [b p], the robot's own state, or None.
        noise: float32 [b c a], what an action head that denoises begins with; None for the same in every call.
    """

    images: UInt8[Tensor, "b 3 H W"]
    instructions: list[str]
    wrist: UInt8[Tensor, "b 3 H W"] | None = None
    proprio: Float[Tensor, "b p"] | None = None
    noise: Float[Tensor, "b c a"] | None = None


@dataclass(eq=False)
class Batch:
    """Training samples: a policy's input and its labels. Everything that a loss may use is a field.

    Attributes:
        images, instructions, wrist, proprio: see `PolicyInput`.
        actions: float32 [b c a] in the robot's units, clean labels.
        valid: bool [b c], False where a chunk runs past the end of its episode.
        gaze: float32 [b 4] or None: box of the annotated target as fractions of the picture (left, top, right, bottom),
            in [0, 1], public convention. Only arms that declare annotation receive it.
    """

    images: UInt8[Tensor, "b 3 H W"]
    instructions: list[str]
    actions: Float[Tensor, "b c a"]
    valid: Bool[Tensor, "b c"]
    wrist: UInt8[Tensor, "b 3 H W"] | None = None
    proprio: Float[Tensor, "b p"] | None = None
    gaze: Float[Tensor, "b 4"] | None = None

    @property
    def inputs(self) -> PolicyInput:
        """What the policy is given of it: no label and no box."""
        return PolicyInput(self.images, self.instructions, self.wrist, self.proprio)


@dataclass(eq=False)
class Features:
    """What a backbone returns.

    Attributes:
        patches: float [b n d], final hidden states at the image positions, *after* the language model.
        action_states: float [b c d], final hidden states at the action positions.
        instruction_state: float [b d], final hidden states at the instruction's words, averaged.
        attention: float [b l h t n] or None when no probe was asked for: what the instruction's tokens, the action
            tokens or the image tokens (see `channel`) pay to each image patch, one entry per probed layer.
        token_mask: bool [b t], which of these tokens count; padding and special tokens are False.
        spans: int [b t 2], the characters of its instruction that each token is made of, -1 where it is made of
            none; None where the tokens are not the instruction's.
        grid: rows and columns of the patch grid; n = rows x columns.
        channel: ``language``, or the named fallback of a backbone without language-to-image attention.
        texts: the instructions, which `spans` points into. `Policy` fills in this and the next; a backbone need not.
        saliency_state: what the arm's saliency source has learned from training frames, if it learns.
    """

    patches: Float[Tensor, "b n d"]
    action_states: Float[Tensor, "b c d"]
    instruction_state: Float[Tensor, "b d"]
    attention: Float[Tensor, "b l h t n"] | None
    token_mask: Bool[Tensor, "b t"] | None
    grid: tuple[int, int]
    spans: Int64[Tensor, "b t 2"] | None = None
    channel: Channel = "language"
    texts: list[str] | None = None
    saliency_state: Tensor | None = None


@dataclass(eq=False)
class Losses:
    """`total` = `action` + weight x `reconstruction`; the rest is kept for pictures, metrics and the log."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None = None
    saliency: Float[Tensor, "b n"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    channel: Channel | None = None  # whose attention `saliency` is; None where nothing asked


class Backbone(Protocol):
    """A vision-language model that answers at action positions and can show its attention."""

    width: int
    patch_size: int
    grid: tuple[int, int]

    def __call__(
        self, inputs: PolicyInput, *, attention: AttentionRows | None = None, hidden: Bool[Tensor, "b n"] | None = None
    ) -> Features:
        """`attention` asks for rows of the probe; `hidden` patches' pixels, or a share (float), go before the tower.

        Raises:
            UserError: for images, robot state or instructions that it was not built for.
        """
        ...


class Reconstructor(Protocol):
    """A training-only reconstruction head: it predicts what is under the mask, or without one a picture of its own.

    `target` is what it predicts of pictures, patch by patch, `target_width` how many numbers per patch.
    """

    @property
    def target_width(self) -> int: ...

    def target(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]: ...

    def loss(
        self,
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        target: Float[Tensor, "b n q"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]: ...

    def picture(
        self, patches: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, target: Float[Tensor, "b n q"]
    ) -> Float[Tensor, "b n r"]:
        """Predicted pixels of every patch in [-1, 1], for people to look at; statistics may be taken from `target`."""
        ...
