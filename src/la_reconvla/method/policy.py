"""The policy: backbone + action head. A reconstruction head may hang beside them in training; `act` never reads it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from la_reconvla.contracts import AttentionRows, Backbone, Batch, Features, PolicyInput, Reconstructor
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.saliency import MEAN, SaliencySource


class Policy(nn.Module):
    """Composes the method's steps.

    Args:
        backbone: a module that satisfies `la_reconvla.contracts.Backbone`.
        bins: how actions become bins and back.
        reconstruction_head: the training-only head, or None. Deleting it changes no bit of `act`.
        saliency_state: what the arm's saliency source learns from frames, kept with the weights; None for nothing.
        action_head: None for `ActionHead`; another has its methods.
    """

    backbone: Backbone
    action_head: Any
    saliency_state: Tensor | None
    reconstruction_head: Reconstructor | None

    def __init__(
        self,
        backbone: Backbone,
        bins: ActionBins,
        reconstruction_head: Reconstructor | None = None,
        saliency_state: Tensor | None = None,
        action_head: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.bins = bins
        self.action_head = ActionHead(backbone.width, bins) if action_head is None else action_head
        self.reconstruction_head = reconstruction_head
        self.register_buffer("saliency_state", saliency_state)

    def features(
        self,
        batch: Batch,
        *,
        attention: AttentionRows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        teacher: Backbone | None = None,
        progress: float = 1.0,
    ) -> Features:
        """Of a batch, by the backbone or its `teacher`; `progress` is for policies that learn to see less.

        A head that decodes token by token gives the true actions to all passes but those that only reconstruct.
        """
        backbone = self.backbone if teacher is None else teacher
        forced = None if hidden is not None else self.action_head.teacher_forcing(self.bins, batch.actions)
        more = {} if forced is None else {"following": forced}
        return self._named(backbone(batch.inputs, attention=attention, hidden=hidden, **more), batch.inputs)

    @torch.no_grad()
    def act(self, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """One chunk of actions per sample, in the robot's units: no decoder, no attention rows."""
        return self.action_head.act(self.backbone, self.bins, inputs)

    @torch.no_grad()
    def look(self, inputs: PolicyInput, source: SaliencySource = MEAN) -> Float[Tensor, "b n"]:
        """Where the policy looks by `source`: the saliency that an attention mask is made of."""
        return source(self._named(self.backbone(inputs, attention=source.attention_rows), inputs))

    def _named(self, features: Features, inputs: PolicyInput) -> Features:
        features.texts, features.saliency_state = inputs.instructions, self.saliency_state
        return features
