"""Step 4: ``L = L_action + lambda * L_recon``.

Where pixels are removed decides what the reconstruction can mean::

    mask_at="decoder" (published)    image ---> backbone ---> patches --(mask)--> decoder
                                     One pass. The visible patches' states have already read the masked pixels, so
                                     part of the answer leaks to the decoder.

    mask_at="input" (leak-free)      image ---> backbone ---> actions, saliency
                                     image --(mask)--> backbone ---> patches --(mask)--> decoder
                                     Two passes. No bit of a masked patch enters the vision tower of the second; the
                                     action loss still reads the full image, as acting does.

    a crop (ReconVLA)                image ---> backbone ---> patches ---> head ---> the crop. No patch is hidden.
"""

from __future__ import annotations

import torch

from la_reconvla.contracts import Backbone, Batch, Losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction


def losses(
    policy: Policy,
    batch: Batch,
    reconstruction: Reconstruction | None,
    generator: torch.Generator,
    progress: float = 0.0,
    teacher: Backbone | None = None,
    noise: torch.Generator | None = None,
    action_noise: torch.Generator | None = None,
) -> Losses:
    """All terms of the objective for one batch.

    Args:
        policy: it must have a `reconstruction_head` if `reconstruction` is given.
        reconstruction: None for the action loss alone (C1).
        generator: the stream of masks and crops, on the CPU.
        progress: share of the training that is done, for masks and weights that change while it goes on.
        teacher: other weights whose attention the mask follows; None for those that train.
        noise, action_noise: streams of a reconstruction head and an action head that draw some; else `generator`.

    Raises:
        ValueError: if the reconstruction head or the target's boxes are missing.
    """
    rows = source.attention_rows if reconstruction and (source := reconstruction.follows) else None
    features = policy.features(batch, attention=rows if teacher is None else None, progress=progress)
    action = policy.action_head.loss(features, policy.bins, batch, action_noise or generator)
    if reconstruction is None:
        return Losses(total=action, action=action)
    if policy.reconstruction_head is None:
        raise ValueError("the policy was built without a reconstruction head")

    looking, patches = features, features.patches
    if teacher is not None:
        with torch.no_grad():
            looking = policy.features(batch, attention=rows, teacher=teacher)
    scores, mask = reconstruction.choose_patches(looking, batch.gaze, generator, progress)
    if reconstruction.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    target = policy.reconstruction_head.target(reconstruction.picture(batch, generator))
    recon = policy.reconstruction_head.loss(patches, mask, target, noise or generator)
    channel = None if scores is None else features.channel
    return Losses(action + reconstruction.weight_at(progress) * recon, action, recon, scores, mask, channel)
