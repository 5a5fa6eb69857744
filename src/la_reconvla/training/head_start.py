"""A reconstruction head that learns alone before the policy does.

From random weights a short training spends itself on what all pictures have in common: after the 400 steps of the
preset ``small`` the published arms reconstruct worse than the mean of the training pictures would
(``benchmarks/reconstruction.py``), so that their gradient says nothing of the scene. Here the head first learns from
features that stand still, by the masks of its own arm; nothing else of the policy changes, and no action is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from la_reconvla.contracts import Backbone, Batch
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.randomness import generator, seeded
from la_reconvla.training.optimizers import BETAS
from la_reconvla.training.parts import scheduled

RATE, WARMUP, CLIP = 2e-3, 30, 1.0  # of AdamW: a small network from random weights takes more than a policy does


def learn_head(
    policy: Policy,
    reconstruction: Reconstruction,
    steps: int,
    seed: int,
    batch: Callable[[int], Batch],
    teacher: Backbone | None = None,
    done: Callable[[int, float], None] | None = None,
) -> float:
    """Train the reconstruction head of `policy` alone, by AdamW with a cosine schedule.

    Args:
        policy: on its device; all of it but the head stays to the bit.
        reconstruction: what the arm reconstructs.
        steps: of the optimizer.
        seed: of masks and noise, which come from streams of this stage.
        batch: gives the batch of a step, counted from 0.
        teacher: as in `la_reconvla.method.objective.losses`.
        done: called after each step with its number and loss.

    Returns:
        The mean reconstruction loss of the last tenth of the steps.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    head: Any = policy.reconstruction_head
    ours = {id(p) for p in head.parameters()}
    still = [p for p in policy.parameters() if p.requires_grad and id(p) not in ours]
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=BETAS, weight_decay=0.01)
    last: list[float] = []
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = scheduled(step, steps, WARMUP, RATE)
            draws, noise = generator(seed, "head mask", step), generator(seed, "head noise", step)
            with seeded(seed, f"head dropout/{step}"):
                loss = losses(policy, batch(step), reconstruction, draws, 0.0, teacher, noise).reconstruction
            if loss is None or not torch.isfinite(loss):
                raise FloatingPointError(f"the reconstruction loss is {loss}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP)
            optimizer.step()
            last = [*last, loss.item()][-max(1, steps // 10) :]
            if done:
                done(step, last[-1])
    finally:
        for parameter in still:
            parameter.requires_grad_(True)
        policy.zero_grad(set_to_none=True)
    return sum(last) / len(last)
