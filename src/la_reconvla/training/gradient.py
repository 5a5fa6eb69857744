"""The gradient of one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from la_reconvla.conditions import Condition
from la_reconvla.contracts import Backbone, Batch, Losses
from la_reconvla.data.samples import greyed
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.training.process_group import ALONE, ProcessGroup


def to_device(batch: Batch, device: torch.device, blind: bool) -> Batch:
    """The batch on `device`; a blind arm's images are replaced by grey before anything can see them."""
    batch = replace(batch, **{key: value.to(device) for key, value in vars(batch).items() if isinstance(value, Tensor)})
    return greyed(batch) if blind else batch


def micro_batches(batch: Batch, count: int, group: ProcessGroup = ALONE) -> Iterator[tuple[Batch, float, float]]:
    """The rows of this process of `count` equal parts of a batch.

    Each with its share of the samples and of the action steps that exist, both of those of the whole batch.
    """
    size = len(batch.instructions) // count
    rows = group.rows(size)
    for first in range(0, len(batch.instructions), size):
        here = slice(first + rows.start, first + rows.stop)
        own = {name: value[here] for name, value in vars(batch).items() if value is not None}
        part = replace(batch, **own)
        yield part, len(part.instructions) / len(batch.instructions), float(part.valid.sum() / batch.valid.sum())


def half(dtype: torch.dtype, device: str) -> Any:
    """Autocast to `dtype`, or nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def backward(
    policy: Policy,
    batch: Batch,
    condition: Condition,
    accumulate: int,
    draws: torch.Generator,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    progress: float = 0.0,
    teacher: Backbone | None = None,
    noise: torch.Generator | None = None,
    action_noise: torch.Generator | None = None,
    group: ProcessGroup = ALONE,
) -> dict[str, Any]:
    """Add the gradient of one batch, taken in `accumulate` micro-batches, to the parameters; what to log of it.

    `batch` and what is logged are those of all processes of `group`.

    Raises:
        FloatingPointError: if a loss is not finite.
        ValueError: if the arm's mask follows a teacher, but there is none.
    """
    learned = condition.learned_saliency
    if learned is not None and learned.decay is not None and teacher is None:
        raise ValueError(f"the saliency '{learned.label}' reads a teacher, but none was given")
    device = batch.images.device.type
    values: dict[str, Any] = {"loss": 0.0, "action_loss": 0.0}
    for part, of_samples, of_steps in micro_batches(batch, accumulate, group):
        terms = part, condition.reconstruction, draws, progress, teacher, noise, action_noise
        with half(dtype, device), group.draws():
            total, loss = group.run(policy, _weighted, of_samples, of_steps, *terms)
        recon = 0.0 if loss.reconstruction is None else of_samples * loss.reconstruction.item()
        value, action, recon = group.reduce([total.item(), of_steps * loss.action.item(), recon])
        if not math.isfinite(value):  # of all processes: one that stops alone leaves the others waiting
            raise FloatingPointError(f"the loss is {value}")
        scaler.scale(group.size * total).backward()  # gradients of several processes are averaged
        values["loss"] += value
        values["action_loss"] += action
        if loss.reconstruction is not None:
            values["reconstruction_loss"] = values.get("reconstruction_loss", 0.0) + recon
        if loss.channel is not None:
            values["attention_channel"] = loss.channel
    return values


def _weighted(policy: Policy, of_samples: float, of_steps: float, *terms: Any) -> tuple[Tensor, Losses]:
    """What a part of a batch adds to the loss of all of it, and its terms."""
    loss = losses(policy, *terms)
    # Every term is a mean over samples but the action loss, which is a mean over the steps that exist.
    return of_samples * loss.total + (of_steps - of_samples) * loss.action, loss
