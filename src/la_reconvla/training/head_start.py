"""A reconstruction head that learns alone before the policy does.

From random weights a short training spends itself on what all pictures have in common: after the 400 steps of the
preset ``small`` the published arms reconstruct no better than the mean of the training pictures would
(``benchmarks/reconstruction.py``), so that their gradient says nothing of the scene. Here the head first learns from
features that stand still, by the masks of its own arm; nothing else of the policy changes, and no action is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from la_reconvla.contracts import Backbone, Batch, Features
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.randomness import generator
from la_reconvla.training.optimizers import BETAS
from la_reconvla.training.parts import scheduled

RATE, WARMUP, CLIP = 2e-3, 30, 1.0  # of AdamW: a small network from random weights takes more than a policy does
KEPT_BYTES = 1_000_000_000  # of features and pictures: each batch is computed once, and no more than these are used


def learn_head(
    policy: Policy,
    reconstruction: Reconstruction,
    steps: int,
    seed: int,
    batch: Callable[[int], Batch],
    distinct: int,
    teacher: Backbone | None = None,
    done: Callable[[int, float], None] | None = None,
) -> float:
    """Train the reconstruction head of `policy` alone, by AdamW with a cosine schedule.

    Args:
        policy: on its device; all of it but the head stays to the bit.
        reconstruction: what the arm reconstructs.
        steps: of the optimizer.
        seed: of masks and noise, which come from streams of this stage.
        batch: gives the batch of this number, from 0.
        distinct: how many batches there are; they return in the same order, each time under other masks.
        teacher: as in `la_reconvla.method.objective.losses`.
        done: called after each step with its number and loss.

    Returns:
        The mean reconstruction loss of the last tenth of the steps.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    head: Any = policy.reconstruction_head
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=BETAS, weight_decay=0.01)
    kept: list[tuple[Features, Batch]] = []
    last: list[float] = []
    training = policy.training
    policy.eval()  # no dropout: what is kept would keep its draws
    for step in range(steps):
        number = step % distinct
        if number == len(kept):
            kept.append(_seen(policy, reconstruction, batch(number), teacher))
            distinct = min(distinct, max(1, KEPT_BYTES // _bytes(*kept[0])))
        features, shown = kept[number]
        for group in optimizer.param_groups:
            group["lr"] = scheduled(step, steps, WARMUP, RATE)
        draws, noise = generator(seed, "head mask", step), generator(seed, "head noise", step)
        _, mask = reconstruction.choose_patches(features, shown.gaze, draws, 0.0)
        target = head.target(reconstruction.picture(shown, draws))
        loss = head.loss(features.patches, mask, target, noise)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the reconstruction loss is {loss}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP)
        optimizer.step()
        last = [*last, loss.item()][-max(1, steps // 10) :]
        if done:
            done(step, last[-1])
    policy.train(training).zero_grad(set_to_none=True)
    return sum(last) / len(last)


@torch.no_grad()
def _seen(
    policy: Policy, reconstruction: Reconstruction, batch: Batch, teacher: Backbone | None
) -> tuple[Features, Batch]:
    """What the backbone makes of a batch, with the attention that the masks follow; and of the batch what they need."""
    rows = source.attention_rows if (source := reconstruction.follows) else None
    features = policy.features(batch, attention=rows if teacher is None else None)
    if teacher is not None:
        looking = policy.features(batch, attention=rows, teacher=teacher)
        features = replace(looking, patches=features.patches)
    return features, replace(batch, wrist=None)


def _bytes(features: Features, batch: Batch) -> int:
    """Of what all arms keep of one batch, so that all learn from as many; attention comes on top."""
    return features.patches.nbytes + batch.images.nbytes
