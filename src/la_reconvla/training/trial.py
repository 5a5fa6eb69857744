"""Acting once on what a training will be given, before it begins."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.contracts import PolicyInput
from la_reconvla.method.policy import Policy
from la_reconvla.robot import proprio_width


@torch.no_grad()
def dry_run(policy: Policy, given: BackboneConfig, instructions: Iterable[str]) -> None:
    """Act once on every instruction, so that one that is too long is refused before long work.

    Args:
        policy: the policy.
        given: what its backbone was made from.
        instructions: texts.

    Raises:
        UserError: from the backbone.
    """
    distinct, patch = sorted(set(instructions)), policy.backbone.patch_size
    rows, columns = policy.backbone.grid
    images = torch.zeros(len(distinct), 3, rows * patch, columns * patch, dtype=torch.uint8)
    device = next(policy.parameters()).device
    wrist = images if given.wrist else None
    width = proprio_width(given.proprio)
    proprio = torch.zeros(len(distinct), width, device=device) if width else None
    training = policy.training
    policy.eval()  # checkpointing, which only training does, and a cache of keys exclude each other
    policy.act(PolicyInput(images.to(device), distinct, None if wrist is None else wrist.to(device), proprio))
    policy.train(training)
