"""What a reconstruction head costs: its parameters, and its operations in one training step, counted and not timed."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from la_reconvla.analysis.measures import HeadCost
from la_reconvla.conditions import Condition
from la_reconvla.method.mask import masked_count


def head_cost(condition: Condition, width: int, grid: tuple[int, int], patch: int) -> HeadCost | None:
    """Cost of the arm's head on a backbone of this width, grid and patch size; None for an arm without one."""
    extra = condition.reconstruction
    if extra is None:
        return None
    head, n = extra.reconstruction_head.build(width, grid, patch), grid[0] * grid[1]
    states = torch.zeros(1, n, width, requires_grad=True)
    mask = None if extra.mask is None else (torch.arange(n) < masked_count(0.25, n))[None]
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # of the fused kernels of a CPU the counter knows nothing
        head.loss(states, mask, torch.zeros(1, n, head.target_width), torch.Generator()).backward()
    return HeadCost(sum(p.numel() for p in head.parameters()), counter.get_total_flops())
