"""What a training measures on held-out samples while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.method.decoder import MAEReconstructor
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.randomness import generator
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


@torch.no_grad()
def head_errors(
    policy: Policy,
    samples: Samples,
    device: torch.device,
    reconstruction: Reconstruction,
    mean: Callable[[], Float[torch.Tensor, "n q"]],
    count: int = WATCHED,
) -> dict[str, float]:
    """What the head scores on up to `count` even samples under the arm's masks, and a picture that knows nothing.

    Masks follow the attention of `policy` itself, also in an arm with a teacher.

    Args:
        mean: gives the pixels of the mean training picture.

    Returns:
        Mean squared errors of the masked pixels: ``held_out_reconstruction_loss`` and ``mean_picture_loss``, which is
        the same for every frame. Empty where they do not compare: for crops, heads that draw from noise or predict
        normalised pixels, samples without boxes that the masks need.
    """
    head, rows = policy.reconstruction_head, reconstruction.follows and reconstruction.follows.attention_rows
    if reconstruction.mask is None or not isinstance(head, MAEReconstructor) or head.config.norm_pixels:
        return {}
    if reconstruction.mask.needs_gaze and samples.annotation is None:
        return {}
    same = mean()
    policy.eval()
    errors = []
    for number, part in enumerate(np.array_split(spread_indices(len(samples), count), max(1, count // 32))):
        batch, draws = to_device(samples.batch(part), device, blind=False), generator(0, "head errors", number)
        features = policy.features(batch, attention=rows)
        _, mask = reconstruction.choose_patches(features, batch.gaze, draws, 1.0)
        hidden = mask if reconstruction.mask_at == "input" else None
        patches = features.patches if hidden is None else policy.features(batch, hidden=hidden).patches
        target = head.target(batch.images)
        errors.append((float(head.loss(patches, mask, target, draws)), float((target - same)[mask].square().mean())))
    policy.train()
    found = np.mean(errors, axis=0)
    return {"held_out_reconstruction_loss": float(found[0]), "mean_picture_loss": float(found[1])}


def save_looks(folder: Path, step: int, maps: np.ndarray) -> None:
    """Keep what `looks` gave in ``looks/<step>.npy``."""
    path = folder / LOOKS / f"{step:06d}.npy"
    path.parent.mkdir(exist_ok=True)
    with explain_disk_errors(path), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, maps, allow_pickle=False)
