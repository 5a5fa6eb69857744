"""The policy: backbone + action head. A reconstructor may hang beside them in training; `act` never sees it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.contracts import Backbone, Batch, Features, Reconstructor, Rows
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.saliency import saliency


class Policy(nn.Module):
    """Composes the method's steps.

    Args:
        backbone: a module that satisfies `la_reconvla.contracts.Backbone`.
        bins: how actions become bins and back.
        reconstructor: the training-only head, or None. Deleting it changes no bit of `act`.
    """

    backbone: Backbone
    reconstructor: Reconstructor | None

    def __init__(self, backbone: Backbone, bins: ActionBins, reconstructor: Reconstructor | None = None):
        super().__init__()
        self.backbone = backbone
        self.bins = bins
        self.head = ActionHead(backbone.width, bins.count)
        self.reconstructor = reconstructor

    def features(
        self, batch: Batch, *, attention: Rows | None = None, hidden: Bool[Tensor, "b n"] | None = None
    ) -> Features:
        """The backbone's features of a batch; see `la_reconvla.contracts.Backbone`."""
        return self.backbone(
            batch.images,
            batch.instructions,
            attention=attention,
            hidden=hidden,
            wrist=batch.wrist,
            proprio=batch.proprio,
        )

    @torch.no_grad()
    def act(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b c 7"]:
        """One chunk of actions a sample, in the environment's units: one pass, no decoder, no attention rows."""
        features = self.backbone(images, instructions, wrist=wrist, proprio=proprio)
        return self.bins.decide(self.head(features.actions, features.instruction))

    @torch.no_grad()
    def look(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Where the instruction looks: the saliency that the attention mask is made of."""
        features = self.backbone(images, instructions, attention="instruction", wrist=wrist, proprio=proprio)
        return saliency(features.attention, features.rows)
