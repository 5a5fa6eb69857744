"""Saliency sources that learn: from the attention on training frames, or by reading a moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from la_reconvla.contracts import Backbone, Batch, Features
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import SaliencySource

NOT_LEARNED = -1  # what a state holds before `fit`


class LearnedSource(SaliencySource):
    """A source that is trained beside the policy. What `fit` returned it reads from `Features.saliency_state`.

    Attributes:
        state_shape: of what `fit` returns (int64); () for a source that only reads averaged weights.
        refresh: `fit` is done before the first step and every so many steps; None for never.
        frames: how many training frames `fit` is given.
        decay: of the moving average of weights whose attention is read; None for the weights that train.
    """

    state_shape: tuple[int, ...] = ()
    refresh: int | None = None
    frames: int = 0
    decay: float | None = None

    def fit(self, batches: Iterable[Features]) -> Tensor | None:
        """Learn from the attention on training frames, never from labels."""
        return None


def unlearned(shape: tuple[int, ...]) -> Tensor | None:
    """The state of this shape before `LearnedSource.fit`; None for ()."""
    return torch.full(shape, NOT_LEARNED) if shape else None


@torch.no_grad()
def fit_saliency(
    policy: Policy, source: LearnedSource, batches: Iterable[Batch], teacher: Backbone | None = None
) -> None:
    """Let `source` learn from the attention on training frames; the result replaces `Policy.saliency_state`.

    Raises:
        UserError: from the source.
    """
    rows = source.attention_rows
    state = source.fit(policy.features(batch, attention=rows, teacher=teacher) for batch in batches)
    if policy.saliency_state is not None and state is not None:
        policy.saliency_state.copy_(state)
