"""Saliency head by head, and what is left of it without the sinks of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from la_reconvla.contracts import Features
from la_reconvla.method.saliency import SaliencySource, present


def per_head(features: Features) -> Float[Tensor, "b l h n"]:
    """Attention of each head, averaged over the tokens that count; float32, detached.

    Raises:
        ValueError: as `la_reconvla.method.saliency.saliency`.
    """
    attention, token_mask = present(features.attention, features.token_mask)
    counted = attention.masked_fill(~token_mask[:, None, None, :, None], 0.0)
    return counted.sum(3) / token_mask.sum(1)[:, None, None, None]


@dataclass(frozen=True)
class SinkRemoved(SaliencySource):
    """What a patch gets beyond the least that any word gives it, head by head::

        A[n] = mean over l, h of ( mean over t of a[l, h, t -> n]  -  min over t of a[l, h, t -> n] )

    A visual attention sink is a patch all text tokens attend to, whatever they mean (Kang et al., "See What You Are
    Told", arXiv 2503.03321; high-norm registers in vision towers, Darcet et al., arXiv 2309.16588). They find sinks by
    massive activations in fixed hidden dimensions of one pretrained model; here the very symptom is removed, from
    attention alone: the part that all words have in common. It also removes what all words rightly look at.
    """

    label = "sinks"

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """The scores.

        Raises:
            ValueError: as `saliency`, or with fewer than two tokens that count.
        """
        attention, token_mask = present(features.attention, features.token_mask)
        if bool((token_mask.sum(1) < 2).any()):
            raise ValueError("an instruction of one token has no part of its own: sinks cannot be told from it")
        least = attention.masked_fill(~token_mask[:, None, None, :, None], torch.inf).amin(3)
        return (per_head(features) - least).clamp_min(0).mean(dim=(1, 2))  # rounding may leave less than nothing
