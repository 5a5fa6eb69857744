"""Step 4: ``L = L_action + lambda * L_recon``.

Where pixels are removed decides what the reconstruction can mean::

    mask_at="decoder" (published)    image ---> backbone ---> patches --(mask)--> decoder
                                     One pass. The visible patches' states have already seen the masked pixels, so
                                     part of the answer leaks to the decoder.

    mask_at="input" (leak-free)      image ---> backbone ---> actions, saliency
                                     image --(mask)--> backbone ---> patches --(mask)--> decoder
                                     Two passes. No bit of a masked patch enters the vision tower of the second; the
                                     action loss still sees the whole image, as acting does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from la_reconvla.contracts import Batch, Losses, MaskSource
from la_reconvla.method.actions import action_loss
from la_reconvla.method.decoder import MAEDecoder, patchify
from la_reconvla.method.mask import AttentionMask
from la_reconvla.method.saliency import saliency

if TYPE_CHECKING:
    import torch

    from la_reconvla.method.policy import Policy


@dataclass(frozen=True)
class Reconstruction:
    """What an arm adds to the action loss.

    Attributes:
        mask: which patches to reconstruct.
        head: the decoder's configuration; its `build` makes the trainable module.
        weight: lambda.
        mask_at: where the masked pixels are removed, see the module's drawing.
    """

    mask: MaskSource = field(default_factory=AttentionMask)
    head: MAEDecoder = field(default_factory=MAEDecoder)
    weight: float = 0.5
    mask_at: Literal["decoder", "input"] = "decoder"


def losses(policy: Policy, batch: Batch, reconstruction: Reconstruction | None, generator: torch.Generator) -> Losses:
    """All terms of the objective for one batch.

    Args:
        policy: the policy; `policy.reconstructor` must exist if `reconstruction` is given.
        batch: training samples.
        reconstruction: None for the action loss alone (C1).
        generator: the stream of masks and noise, on the CPU.
    """
    needs_attention = reconstruction is not None and reconstruction.mask.needs_attention
    features = policy.features(batch, attention="instruction" if needs_attention else None)
    logits = policy.head(features.actions, features.instruction)
    action = action_loss(logits, policy.bins.targets(batch.actions), batch.valid)
    if reconstruction is None:
        return Losses(total=action, action=action)

    if policy.reconstructor is None:
        raise ValueError("the policy was built without a reconstructor")
    scores = None if features.attention is None else saliency(features.attention, features.rows)
    shape = (features.patches.shape[0], features.patches.shape[1])
    mask = reconstruction.mask(scores, shape, generator).to(features.patches.device)
    patches = features.patches
    if reconstruction.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    target = patchify(batch.images, policy.backbone.patch_size)
    recon = policy.reconstructor.loss(patches, mask, target, generator)
    channel = None if scores is None else features.channel
    return Losses(action + reconstruction.weight * recon, action, recon, scores, mask, channel)
