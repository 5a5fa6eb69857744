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

import torch

from la_reconvla.contracts import Backbone, Batch, Losses, MaskSource, Moment, SaliencySource
from la_reconvla.method.actions import action_loss
from la_reconvla.method.decoder import MAEDecoder, patchify
from la_reconvla.method.mask import AttentionMask
from la_reconvla.method.saliency import Mean

if TYPE_CHECKING:
    from la_reconvla.method.policy import Policy


@dataclass(frozen=True)
class Reconstruction:
    """What an arm adds to the action loss.

    Attributes:
        mask: which patches to reconstruct.
        head: the decoder's configuration; its `build` makes the trainable module.
        weight: lambda.
        mask_at: where the masked pixels are removed, see the module's drawing.
        saliency: which part of the attention the mask follows.
    """

    mask: MaskSource = field(default_factory=AttentionMask)
    head: MAEDecoder = field(default_factory=MAEDecoder)
    weight: float = 0.5
    mask_at: Literal["decoder", "input"] = "decoder"
    saliency: SaliencySource = field(default_factory=Mean)

    def __post_init__(self):
        if any(part.rows != self.saliency.rows for part in self.mask.parts):
            raise ValueError("the mask's parts and the saliency must read the same rows: one pass gives only one kind")


def losses(
    policy: Policy,
    batch: Batch,
    reconstruction: Reconstruction | None,
    generator: torch.Generator,
    step: int = 0,
    teacher: Backbone | None = None,
) -> Losses:
    """All terms of the objective for one batch.

    Args:
        policy: the policy; `policy.reconstructor` must exist if `reconstruction` is given.
        batch: training samples.
        reconstruction: None for the action loss alone (C1).
        generator: the stream of masks and noise, on the CPU.
        step: optimizer step, for masks that change while training goes on.
        teacher: the moving average that `reconstruction.saliency` reads if it has a `decay`.

    Raises:
        ValueError: if the reconstructor or the teacher is missing.
    """
    looks = reconstruction is not None and reconstruction.mask.needs_attention
    source = reconstruction.saliency if reconstruction is not None and looks else None
    own = source is not None and source.decay is None
    features = policy.features(batch, attention=source.rows if source is not None and own else None)
    logits = policy.head(features.actions, features.instruction)
    action = action_loss(logits, policy.bins.targets(batch.actions), batch.valid)
    if reconstruction is None:
        return Losses(total=action, action=action)

    if policy.reconstructor is None:
        raise ValueError("the policy was built without a reconstructor")
    scores, parts = None, ()
    if source is not None:
        seen = features
        if not own:
            if teacher is None:
                raise ValueError(f"the saliency '{source.label}' reads a teacher, but none was given")
            with torch.no_grad():
                seen = policy.features(batch, attention=source.rows, teacher=teacher)
        scores = source(seen, policy.saliency_state)
        parts = tuple(part(seen, policy.saliency_state) for part in reconstruction.mask.parts)
    shape = (features.patches.shape[0], features.patches.shape[1])
    moment = Moment(step, features.grid, parts)
    mask = reconstruction.mask(scores, shape, generator, moment).to(features.patches.device)
    patches = features.patches
    if reconstruction.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    target = patchify(batch.images, policy.backbone.patch_size)
    recon = policy.reconstructor.loss(patches, mask, target, generator)
    channel = None if scores is None else features.channel
    return Losses(action + reconstruction.weight * recon, action, recon, scores, mask, channel)
