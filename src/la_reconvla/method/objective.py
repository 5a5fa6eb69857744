"""Step 4: ``L = L_action + lambda * L_recon``.

Where pixels are removed decides what the reconstruction can mean::

    mask_at="decoder" (published)    image ---> backbone ---> patches --(mask)--> decoder
                                     One pass. The visible patches' states have already seen the masked pixels, so
                                     part of the answer leaks to the decoder.

    mask_at="input" (leak-free)      image ---> backbone ---> actions, saliency
                                     image --(mask)--> backbone ---> patches --(mask)--> decoder
                                     Two passes. No bit of a masked patch enters the vision tower of the second; the
                                     action loss still sees the whole image, as acting does.

    a crop (ReconVLA)                image ---> backbone ---> patches ---> head ---> the crop, stretched over a picture
                                     One pass. No patch is hidden: the head reads all states and draws all of the crop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from la_reconvla.contracts import Backbone, Batch, Losses
from la_reconvla.method.actions import action_loss
from la_reconvla.method.reconstruction import Reconstruction

if TYPE_CHECKING:
    from la_reconvla.method.policy import Policy


def losses(
    policy: Policy,
    batch: Batch,
    reconstruction: Reconstruction | None,
    generator: torch.Generator,
    step: int = 0,
    teacher: Backbone | None = None,
    noise: torch.Generator | None = None,
) -> Losses:
    """All terms of the objective for one batch.

    Args:
        policy: the policy; `policy.reconstructor` must exist if `reconstruction` is given.
        batch: training samples.
        reconstruction: None for the action loss alone (C1).
        generator: the stream of masks and crops, on the CPU.
        step: optimizer step, for masks that change while training goes on.
        teacher: the moving average that `reconstruction.saliency` reads if it has a `decay`.
        noise: the stream of a head that draws noise; by default `generator`.

    Raises:
        ValueError: if the reconstructor, the teacher or the target's boxes are missing.
    """
    source = reconstruction.follows if reconstruction is not None else None
    own = source is not None and source.decay is None
    features = policy.features(batch, attention=source.rows if source is not None and own else None)
    logits = policy.head(features.actions, features.instruction)
    action = action_loss(logits, policy.bins, batch.actions, batch.valid)
    if reconstruction is None:
        return Losses(total=action, action=action)
    if policy.reconstructor is None:
        raise ValueError("the policy was built without a reconstructor")

    seen, patches = features, features.patches
    if source is not None and not own:
        if teacher is None:
            raise ValueError(f"the saliency '{source.label}' reads a teacher, but none was given")
        with torch.no_grad():
            seen = policy.features(batch, attention=source.rows, teacher=teacher)
    scores, mask = reconstruction.cover(seen, policy.saliency_state, batch.gaze, generator, step)
    if reconstruction.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    target = policy.reconstructor.target(reconstruction.picture(batch, generator))
    recon = policy.reconstructor.loss(patches, mask, target, noise or generator)
    channel = None if scores is None else features.channel
    return Losses(action + reconstruction.weight * recon, action, recon, scores, mask, channel)
