"""The typed boundary between the rooms of this package.

Nothing here computes. The simulator side is numpy, the learning side is torch; a value crosses from one to the
other only as an `Observation` (one moment, for acting) or a `Batch` (many moments, for training).

Axes, everywhere in the package::

    b batch   n patches   t text tokens   l layers   h heads   d width   k masked patches
    c actions in a chunk   a action dimensions (7)   p proprioception   H W image rows, columns
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ACTION_DIM = 7  # OSC_POSE: three translations, three rotations, gripper; each in [-1, 1]
Proprioception = Literal["none", "gripper", "all"]  # nothing, the width between the fingers (m), or all eight:
PROPRIO_WIDTH: dict[Proprioception, int] = {"none": 0, "gripper": 1, "all": 8}  # position, axis-angle, two fingers
GRIPPER_OPEN, GRIPPER_CLOSED = -1.0, 1.0

Quality = Literal["official", "fast"]  # `fast`: no reflections, shadows or multisampling
PlacementKind = Literal["official", "wide"]
Split = Literal["train", "test"]
Rows = Literal["instruction", "actions"]  # whose attention over the image patches is asked for
Channel = Literal["language", "image_self_attention"]  # where an attention map came from; the second is a fallback


# ---------------------------------------------------------------- acting: one moment, numpy


@dataclass(frozen=True, eq=False)
class Start:
    """One initial state of one task: everything that an episode needs to be repeated exactly.

    Attributes:
        suite: LIBERO suite, for example ``libero_spatial``.
        task: index of the task in its suite.
        placement: ``official`` (LIBERO's own initial states) or ``wide`` (ours, see `la_reconvla.sim.placements`).
        split: which seeds a wide placement was drawn from; official states are in a split only by agreement.
        index: number of this state within (task, placement, split); for official states LIBERO's own number.
        seed: given to the simulator before its hard reset; fixes the pose of the furniture.
        state: flattened MuJoCo state to set after the reset.
        instruction: what the robot is told; true of `target` in this state.
        target: instance that must be moved, for example ``akita_black_bowl_1``.
        destination: instance (or fixture region) it must end up on or in.
    """

    suite: str
    task: int
    placement: PlacementKind
    split: Split
    index: int
    seed: int
    state: Float[np.ndarray, " s"]
    instruction: str
    target: str
    destination: str

    @property
    def id(self) -> str:
        """Name of this start, unique among all suites, tasks, placements and splits."""
        return f"{self.suite}/{self.task}/{self.placement}/{self.split}/{self.index}"


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy sees at one moment. Images are upright in LIBERO's public convention (turned by 180 degrees)."""

    image: UInt8[np.ndarray, "H W 3"]
    instruction: str
    wrist: UInt8[np.ndarray, "H W 3"] | None = None
    proprio: Float[np.ndarray, " p"] | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `Env.step` reports of the control steps that it really took (it stops at success or at the step limit)."""

    steps: int
    success: bool
    done: bool


@dataclass(frozen=True, eq=False)
class Pose:
    """A body's pose in the world: position in metres, orientation as a quaternion in xyzw order."""

    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


@runtime_checkable
class Env(Protocol):
    """A simulator that renders only when it is asked to."""

    def reset(self, start: Start) -> None:
        """Hard reset to `start`, objects settled."""
        ...

    def step(self, chunk: Float[np.ndarray, "c 7"]) -> Outcome:
        """Execute the actions of `chunk` in order until success, the step limit or the end of the chunk."""
        ...

    def observe(self) -> Observation:
        """Render the cameras now."""
        ...

    def masks(self, names: tuple[str, ...]) -> dict[str, Bool[np.ndarray, "H W"]]:
        """Where each named instance is visible in the image that `observe` would return now."""
        ...

    def poses(self) -> dict[str, Pose]:
        """Privileged: poses of all instances and of the gripper (``gripper``)."""
        ...

    def close(self) -> None: ...


class RolloutPolicy(Protocol):
    """Anything that can be rolled out: a trained policy, the scripted expert, a floor."""

    name: str

    def reset(self, start: Start, env: Env) -> None:
        """A new episode begins. Only privileged policies (the expert, blind replay) may look at `start` or `env`."""
        ...

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """The next chunk of actions. `observation` is None when `sees` is False, so that nothing is rendered."""
        ...

    @property
    def sees(self) -> bool:
        """Whether `act` needs an observation."""
        ...


# ---------------------------------------------------------------- learning: many moments, torch


@dataclass(eq=False)
class Batch:
    """Training samples. Everything that a loss may use is a field; what an arm must not see is None.

    Attributes:
        images: uint8 [b 3 H W], the agentview camera at the policy's own size.
        instructions: b strings.
        actions: float32 [b c 7] in the environment's units, clean labels.
        valid: bool [b c], False where a chunk runs past the end of its episode.
        wrist: uint8 [b 3 H W] or None.
        proprio: float32 [b p] or None.
        gaze: float32 [b 4] or None: box of the annotated target as fractions of the picture (left, top, right, bottom),
            in [0, 1], public convention. Only arms that declare annotation receive it.
    """

    images: UInt8[Tensor, "b 3 H W"]
    instructions: list[str]
    actions: Float[Tensor, "b c 7"]
    valid: Bool[Tensor, "b c"]
    wrist: UInt8[Tensor, "b 3 H W"] | None = None
    proprio: Float[Tensor, "b p"] | None = None
    gaze: Float[Tensor, "b 4"] | None = None


@dataclass(eq=False)
class Features:
    """What a backbone returns.

    Attributes:
        patches: float [b n d], final hidden states at the image positions, *after* the language model.
        actions: float [b c d], final hidden states at the action positions.
        instruction: float [b d], final hidden states at the instruction's words, averaged.
        attention: float [b l h t n] or None when no probe was asked for: rows of the instruction's tokens, of the
            action tokens, or of the image tokens (see `channel`) over the image patches, one entry per probed layer.
        rows: bool [b t], which rows of `attention` count; padding and special tokens are False.
        spans: int [b t 2], the characters of its instruction that each row's token stands for, -1 where it stands for
            none; None where the rows are not the instruction's.
        grid: rows and columns of the patch grid; n = rows x columns.
        channel: ``language``, or the named fallback of a backbone without language-to-image attention.
        texts: the instructions, which `spans` points into. `Policy.features` fills it in; a backbone need not.
    """

    patches: Float[Tensor, "b n d"]
    actions: Float[Tensor, "b c d"]
    instruction: Float[Tensor, "b d"]
    attention: Float[Tensor, "b l h t n"] | None
    rows: Bool[Tensor, "b t"] | None
    grid: tuple[int, int]
    spans: Int64[Tensor, "b t 2"] | None = None
    channel: Channel = "language"
    texts: list[str] | None = None


@dataclass(eq=False)
class Losses:
    """`total` = `action` + weight x `reconstruction`; the rest is kept for pictures, metrics and the log."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None = None
    saliency: Float[Tensor, "b n"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    channel: Channel | None = None  # whose attention `saliency` is; None where nothing asked


class SaliencySource(Protocol):
    """Makes one score per patch of a backbone's attention. Implementations are frozen dataclasses."""

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """float32 [b n], not negative, detached. `state` is what `fit` returned; most sources have none."""
        ...

    def require(self, instructions: Iterable[str]) -> None:
        """Refuse, before long work, instructions that the source can make nothing of (`UserError`)."""
        ...

    def fit(self, seen: Iterable[Features]) -> Tensor | None:
        """Learn from the attention on training frames, never from labels; the result has `state_shape`."""
        ...

    @property
    def rows(self) -> Rows:
        """What to ask of the backbone."""
        ...

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what `fit` returns (int64); () for a source that learns nothing."""
        ...

    @property
    def refresh(self) -> int | None:
        """`fit` is done before the first step and every so many steps; None for never."""
        ...

    @property
    def frames(self) -> int:
        """How many training frames `fit` is shown."""
        ...

    @property
    def decay(self) -> float | None:
        """Decay of the moving average of weights whose attention is read; None for the weights that train."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``mean``."""
        ...


@dataclass(frozen=True, eq=False)
class Moment:
    """What a mask source may know beside the saliency.

    Attributes:
        step: optimizer step, counted from 0.
        grid: rows and columns of the patches; None where only their number is known.
        parts: one map [b n] for each of the mask's `parts`; NaN in samples whose instruction has no such words.
        gaze: the batch's boxes, which it has for arms that declare annotation only.
    """

    step: int = 0
    grid: tuple[int, int] | None = None
    parts: tuple[Float[Tensor, "b n"], ...] = ()
    gaze: Float[Tensor, "b 4"] | None = None


START = Moment()


class MaskSource(Protocol):
    """Chooses the patches to reconstruct. Implementations are frozen dataclasses, so that a condition is a value."""

    def __call__(
        self,
        saliency: Float[Tensor, "b n"] | None,
        shape: tuple[int, int],
        generator: torch.Generator,
        moment: Moment = START,
    ) -> Bool[Tensor, "b n"]:
        """True = reconstruct. `shape` is (b, n)."""
        ...

    @property
    def parts(self) -> tuple[SaliencySource, ...]:
        """Sources of further maps that the mask is made of."""
        ...

    @property
    def needs_attention(self) -> bool:
        """Whether `saliency` must be given."""
        ...

    @property
    def needs_gaze(self) -> bool:
        """Whether the target's boxes must be given: then the arm counts as annotated."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``random``."""
        ...


class CropSource(Protocol):
    """Chooses the part of the picture to reconstruct as a picture of its own; see `MaskSource`."""

    def __call__(self, gaze: Float[Tensor, "b 4"] | None, b: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
        """Boxes (left, top, right, bottom) as fractions of the picture. `gaze`: the target's, if they are known."""
        ...

    @property
    def needs_gaze(self) -> bool:
        """As of a `MaskSource`."""
        ...

    @property
    def label(self) -> str:
        """For tables, for example ``gaze crop``."""
        ...


class Codec(Protocol):
    """Pictures to rows of numbers, one row a patch, and back."""

    @property
    def width(self) -> int:
        """Numbers a row, q."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether the numbers lie in [-1, 1]."""
        ...

    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]: ...

    def decode(self, rows: Float[Tensor, "b n q"]) -> Float[Tensor, "b n p"]:
        """All pixels of every patch, as `method.pixels.patchify` gives them."""
        ...


class Target(Protocol):
    """What a head draws of a picture: a frozen dataclass."""

    def codec(self, grid: tuple[int, int], patch: int) -> Codec:
        """For pictures of this grid of patches."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``pixels``."""
        ...


class HeadConfig(Protocol):
    """Kind and size of a reconstructor: a frozen dataclass."""

    def build(self, backbone_width: int, grid: tuple[int, int], patch: int) -> Any:
        """The `Reconstructor`, a trainable module."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``mae``."""
        ...


class Reconstructor(Protocol):
    """A training-only head that predicts what is under the mask, or without a mask a picture of its own."""

    @property
    def rows(self) -> int:
        """Numbers of a target's row, q."""
        ...

    def target(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """What is to be predicted of these pictures, one row a patch."""
        ...

    def loss(
        self,
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        target: Float[Tensor, "b n q"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]: ...

    def picture(
        self, patches: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, target: Float[Tensor, "b n q"]
    ) -> Float[Tensor, "b n p"]:
        """Predicted pixels of every patch in [-1, 1], for people to look at.

        A head that predicts something relative to `target`'s own statistics undoes that with them.
        """
        ...


class BackboneConfig(Protocol):
    """What a backbone is and what it is given: a frozen dataclass, saved with the policy.

    Attributes:
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token.
        wrist: a second camera as a second block of image tokens.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: longest instruction in tokens.
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


class Backbone(Protocol):
    """A vision-language model that answers at action positions and can show its attention."""

    width: int
    patch_size: int
    grid: tuple[int, int]

    def __call__(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        *,
        attention: Rows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> Features:
        """`hidden` patches' pixels are removed before the vision tower; `attention` asks for rows of the probe."""
        ...


Step = Callable[["Tensor"], "Tensor"]
"""Puts one more token, an embedding [b d], behind a sequence and returns its final hidden state [b d]."""


@runtime_checkable
class SequentialBackbone(Protocol):
    """A `Backbone` that can also go on behind its queries, token by token. Only autoregressive decoding asks for it."""

    def __call__(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        *,
        attention: Rows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
        following: Float[Tensor, "b s d"] | None = None,
    ) -> Features:
        """As a backbone's; the embeddings `following` stand behind the queries and see only what is before them.

        `Features.actions` is then [b c+s d]: the states of the queries and of what follows.
        """
        ...

    def begin(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        *,
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> tuple[Features, Step]:
        """The features, and what takes the tokens that follow, one by one, without computing the rest again."""
        ...

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """Table of token embeddings, and the factor by which a row is multiplied when it enters the model.

        Raises:
            UserError: if this backbone is none after all.
        """
        ...


class Tracker(Protocol):
    """Receives what is measured while training."""

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...
