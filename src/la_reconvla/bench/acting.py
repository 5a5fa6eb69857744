"""Acting: one chunk of actions from one picture, in one pass or token by token, also by a recording."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from la_reconvla.backbones.continuing import Continuing
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.bench.sizes import BINS, Compute, Size, drawn
from la_reconvla.bench.timing import Work
from la_reconvla.contracts import Batch
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName, TokenHead
from la_reconvla.randomness import seeded
from la_reconvla.training.acting import TOLERANCE, Actor, decoded, in_one_pass, tensors_of

FAST = ", fast"  # at the end of a row's name


class NotRecordedError(Exception):
    """There is no fast path here; the message tells why."""


@dataclass(frozen=True)
class Act:
    """One chunk of actions from one picture.

    Attributes:
        arm: whose way of acting it is.
        chunk: actions.
        decoding: all in one pass, or token by token.
        side: rows and columns of image tokens; None for the backbone's.
        fast: by a recording of the policy, see `la_reconvla.training.acting`.
    """

    arm: str
    chunk: int
    decoding: DecodingName = "parallel"
    side: int | None = None
    fast: bool = False

    @property
    def id(self) -> str:
        """Arm, decoding, chunk, and what is not the backbone's."""
        tokens = f", {self.side**2} tokens" if self.side else ""
        return f"{self.arm}, {self.decoding}, chunk {self.chunk}{tokens}{FAST if self.fast else ''}"

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
        batch = drawn(policy.backbone, 1, compute)
        act = Actor(policy) if self.fast else policy.act

        def work() -> Any:
            return act(batch.inputs)

        if isinstance(act, Actor):
            work()
            if act.records() != 1:  # it would go on by `Policy.act`, and this row would time that
                raise NotRecordedError(unrecorded(policy, batch))
        return work


def unrecorded(policy: Policy, batch: Batch) -> str:
    """Why `Actor` has no recording of `policy`: it keeps the reason to itself, so what it tried is tried again."""
    kind = decoded if isinstance(policy.action_head, TokenHead) else in_one_pass
    try:
        kind(policy, batch.inputs)(*tensors_of(batch.inputs).values())
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"its actions differ by more than {TOLERANCE}"


EQUAL = tuple(
    (Act("C4", chunk), Act("ReconVLA", chunk, "autoregressive"))
    for chunk in (5, 1, 8)  # ReconVLA's, LA-ReconVLA's published one, ours
)
"""Equal images, of the backbone's number of tokens, and equal chunks: what is left is how actions are decoded."""
PUBLISHED = (Act("C4", 8, side=16), Act("C4", 1, side=16), Act("ReconVLA", 5, "autoregressive", side=27))
"""The published numbers of tokens: 256 of one picture and one pass (for our chunk, and for the published one of one
action) against 729 of two views in one picture and 35 one after the other.

Neither C4 nor the ReconVLA arm reconstructs when it acts."""
PLAIN = (*itertools.chain(*EQUAL), *PUBLISHED)
CONTROL = (*PLAIN, *(replace(case, fast=True) for case in PLAIN))
