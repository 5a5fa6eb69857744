"""The policy: backbone + action head. A reconstructor may hang beside them in training; `act` never sees it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.contracts import Backbone, Batch, Features, Reconstructor, Rows, SaliencySource
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.autoregressive import TokenHead
from la_reconvla.method.saliency import MEAN, NOT_CHOSEN


class Policy(nn.Module):
    """Composes the method's steps.

    Args:
        backbone: a module that satisfies `la_reconvla.contracts.Backbone`.
        bins: how actions become bins and back.
        reconstructor: the training-only head, or None. Deleting it changes no bit of `act`.
        state_shape: shape of what the arm's saliency source learns from frames (`SaliencySource.state_shape`), which is
            kept with the weights as `saliency_state`; () for nothing.
        head: the action head, see `la_reconvla.method.autoregressive.Decoding`; None for the parallel one.
    """

    saliency_state: Tensor | None

    backbone: Backbone
    reconstructor: Reconstructor | None

    def __init__(
        self,
        backbone: Backbone,
        bins: ActionBins,
        reconstructor: Reconstructor | None = None,
        state_shape: tuple[int, ...] = (),
        head: ActionHead | TokenHead | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.bins = bins
        self.head = ActionHead(backbone.width, bins.count) if head is None else head
        self.reconstructor = reconstructor
        empty = torch.full(state_shape, NOT_CHOSEN) if state_shape else None
        self.register_buffer("saliency_state", empty)

    def features(
        self,
        batch: Batch,
        *,
        attention: Rows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        teacher: Backbone | None = None,
    ) -> Features:
        """The features of a batch from the backbone, or from its `teacher`; see `la_reconvla.contracts.Backbone`.

        An autoregressive head shows the true actions to all passes but those that only reconstruct.
        """
        told = None if hidden is not None else self.head.told(self.bins, batch.actions)
        features = (self.backbone if teacher is None else teacher)(
            batch.images,
            batch.instructions,
            attention=attention,
            hidden=hidden,
            wrist=batch.wrist,
            proprio=batch.proprio,
            **({} if told is None else {"following": told}),
        )
        features.texts = batch.instructions
        return features

    @torch.no_grad()
    def fit(self, source: SaliencySource, batches: Iterable[Batch], teacher: Backbone | None = None) -> None:
        """Let `source` learn from the attention on training frames; the result replaces `saliency_state`.

        Raises:
            UserError: from the source.
        """
        state = source.fit(self.features(batch, attention=source.rows, teacher=teacher) for batch in batches)
        if self.saliency_state is not None and state is not None:
            self.saliency_state.copy_(state)

    @torch.no_grad()
    def act(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b c 7"]:
        """One chunk of actions a sample, in the environment's units: no decoder, no attention rows."""
        return self.head.act(self.backbone, self.bins, images, instructions, wrist=wrist, proprio=proprio)

    @torch.no_grad()
    def look(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
        source: SaliencySource = MEAN,
    ) -> Float[Tensor, "b n"]:
        """Where the policy looks by `source`: the saliency that an attention mask is made of."""
        features = self.backbone(images, instructions, attention=source.rows, wrist=wrist, proprio=proprio)
        features.texts = instructions
        return source(features, self.saliency_state)
