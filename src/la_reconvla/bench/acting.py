"""Acting: one chunk of actions from one picture, in one pass, token by token or from noise, also by a recording."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from la_reconvla.backbones.continuing import Continuing
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.bench.sizes import BINS, Compute, Size, drawn
from la_reconvla.bench.timing import Work
from la_reconvla.contracts import PolicyInput
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName
from la_reconvla.randomness import generator, seeded
from la_reconvla.training.acting import TOLERANCE, Actor, recorded, recording, tensors_of, with_noise, with_tensors

FAST = ", fast"  # at the end of a row's name
OURS = 8  # actions in a chunk


class NotRecordedError(Exception):
    """There is no fast path here; the message tells why."""


@dataclass(frozen=True)
class BackboneAlone:
    """What of a chunk the backbone takes: its one pass without a head behind it.

    Attributes:
        fast: by a recording.
    """

    fast: bool

    @property
    def id(self) -> str:
        """Name among what is timed; it has no row of its own."""
        return f"backbone alone{FAST if self.fast else ''}"

    def build(self, size: Size, compute: Compute) -> Work:
        """See `Case`."""
        policy = Act("C4", OURS).policy(size, compute)
        inputs = drawn(policy.backbone, 1, compute).inputs
        given = tuple(tensors_of(inputs).values())

        def states(*tensors: Any) -> tuple[Any, Any]:
            features = policy.backbone(with_tensors(inputs, tensors))
            return features.action_states, features.instruction_state

        run: Callable[..., Any] = states
        if self.fast:
            try:
                run = recorded(states, given)
            except Exception as error:
                raise NotRecordedError(_reason(error)) from error
        run = torch.inference_mode()(run)
        for _ in range(2):  # the interpreter settles in its first calls
            run(*given)
        return lambda: run(*given)


@dataclass(frozen=True)
class Act:
    """One chunk of actions from one picture.

    Attributes:
        arm: whose way of acting it is.
        chunk: actions.
        decoding: all in one pass, token by token, or from noise.
        side: rows and columns of image tokens; None for the backbone's.
        fast: by a recording of the policy, see `la_reconvla.training.acting`.
        steps: from noise to actions, where it denoises.
    """

    arm: str
    chunk: int
    decoding: DecodingName = "parallel"
    side: int | None = None
    fast: bool = False
    steps: int | None = None

    @property
    def id(self) -> str:
        """Arm, decoding, chunk, and what is not the backbone's."""
        tokens = f", {self.side**2} tokens" if self.side else ""
        steps = f" in {self.steps}" if self.steps else ""
        return f"{self.arm}, {self.decoding}{steps}, chunk {self.chunk}{tokens}{FAST if self.fast else ''}"

    @property
    def backbone(self) -> BackboneAlone | None:
        """Its first part, where the head is all of the rest; for our chunk and the backbone's own picture."""
        apart = self.chunk == OURS and self.side is None and self.decoding != "autoregressive"
        return BackboneAlone(self.fast) if apart else None

    def fits(self, size: Size) -> bool:
        """Whether the family of `size` has a form that acts so."""
        backbone = size.backbone
        if isinstance(backbone, SmallPaliGemma):
            return True
        family = backbone.family.backbone
        if self.decoding == "autoregressive" and not (isinstance(family, type) and issubclass(family, Continuing)):
            return False
        return self.side is None or family.geometry_of(size.architecture(self.side), backbone).grid == (self.side,) * 2

    def policy(self, size: Size, compute: Compute) -> Policy:
        """What acts, with random weights."""
        size, decoding = size.acting(self.chunk), DECODINGS[self.decoding]
        if self.steps:
            decoding = replace(decoding, steps=self.steps)  # pyright: ignore
        with seeded(0, "weights"):
            backbone = replace(size, backbone=decoding.given(size.backbone)).build(compute, self.side)
            policy = (
                Policy(backbone, BINS, action_head=decoding.action_head(backbone, BINS, self.chunk))
                .to(compute.device)
                .eval()
            )
        return policy if isinstance(size.backbone, Pretrained) else policy.to(compute.dtype)

    def build(self, size: Size, compute: Compute) -> Work:
        """See `Case`."""
        policy = self.policy(size, compute)
        inputs = with_noise(policy, drawn(policy.backbone, 1, compute).inputs, [generator(0, "bench")])
        act = Actor(policy) if self.fast else policy.act

        def work() -> Any:
            return act(inputs)

        if isinstance(act, Actor):
            work()
            if act.records() != 1:  # it would go on by `Policy.act`, and this row would time that
                raise NotRecordedError(unrecorded(policy, inputs))
        return work


def unrecorded(policy: Policy, inputs: PolicyInput) -> str:
    """Why `Actor` has no recording of `policy`: it keeps the reason to itself, so what it tried is tried again."""
    try:
        recording(policy, inputs)(*tensors_of(inputs).values())
    except Exception as error:
        return _reason(error)
    return f"its actions differ by more than {TOLERANCE}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


EQUAL = tuple(
    (Act("C4", chunk), Act("ReconVLA", chunk, "autoregressive"))
    for chunk in (5, 1, OURS)  # ReconVLA's, LA-ReconVLA's published one, ours
)
"""Equal images, of the backbone's number of tokens, and equal chunks: what is left is how actions are decoded."""
PUBLISHED = (Act("C4", OURS, side=16), Act("C4", 1, side=16), Act("ReconVLA", 5, "autoregressive", side=27))
"""The published numbers of tokens: 256 of one picture and one pass (for our chunk, and for the published one of one
action) against 729 of two views in one picture and 35 one after the other.

Neither C4 nor the ReconVLA arm reconstructs when it acts."""
DENOISED = tuple(
    Act("C4", OURS, decoding, steps=steps) for decoding in ("diffusion", "flow") for steps in (1, 4, 10, 100)
)
"""The same chunk from noise, in more and more steps; the backbone runs once in each."""
PLAIN = (*itertools.chain(*EQUAL), *PUBLISHED, *DENOISED)
CONTROL = (*PLAIN, *(replace(case, fast=True) for case in PLAIN))
