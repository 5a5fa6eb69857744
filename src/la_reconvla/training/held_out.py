"""What a training measures on held-out samples while it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.storage import atomic_write, explain_disk_errors
from la_reconvla.training.gradient import to_device

LOOKS, WATCHED = "looks", 64  # folder, and on how many held-out samples a training is watched


@torch.no_grad()
def held_out_loss(policy: Policy, samples: Samples, device: torch.device, blind: bool, count: int = 256) -> float:
    """Action loss on up to `count` evenly spaced held-out samples."""
    policy.eval()
    chosen = spread_indices(len(samples), count)
    values, weights = [], []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        batch = to_device(samples.batch(part), device, blind)
        values.append(losses(policy, batch, None, torch.Generator()).action.item())
        weights.append(len(part))
    policy.train()
    return float(np.average(values, weights=weights))


@torch.no_grad()
def looks(policy: Policy, samples: Samples, device: torch.device, blind: bool) -> np.ndarray:
    """Where `policy` looks on `WATCHED` evenly spaced samples: float32 [m n].

    The mean map, whatever the arm's mask follows, so that arms compare. How it changes from check to check is measured
    from these files, see `la_reconvla.analysis.attention_overlap`.
    """
    policy.eval()
    parts = np.array_split(spread_indices(len(samples), WATCHED), max(1, WATCHED // 32))
    batches = (to_device(samples.batch(part), device, blind) for part in parts)
    maps = [policy.look(batch.inputs) for batch in batches]
    policy.train()
    return torch.cat(maps).float().cpu().numpy()


def save_looks(folder: Path, step: int, maps: np.ndarray) -> None:
    """Keep what `looks` gave in ``looks/<step>.npy``."""
    path = folder / LOOKS / f"{step:06d}.npy"
    path.parent.mkdir(exist_ok=True)
    with explain_disk_errors(path), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, maps, allow_pickle=False)
