"""A training in parts: one that is finished goes on, each part with a warm-up and a cosine of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_reconvla.storage import claim, read_json, write_json

SHARE = 10  # the warm-up of a later part is at most this part of its steps


@dataclass(frozen=True)
class Part:
    """A part of a training that has ended.

    Attributes:
        steps: its optimizer steps.
        learning_rate: its peak.
        warmup: steps of its warm-up.
    """

    steps: int
    learning_rate: float
    warmup: int


def scheduled(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine to a hundredth of it; `step` counts from 0, in its own part."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def claim_part(
    path: Path,
    identity: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    with_defaults: Callable[[dict[str, Any]], Mapping[str, Any]],
    **once: Any,
) -> None:
    """Claim ``train.json`` for a training, or for the next part of the one that it describes.

    Args:
        path: the file.
        identity: what decides the results, with this part.
        before: the same without this part; None for a first part.
        with_defaults: see `la_reconvla.storage.claim`.
        **once: what is written beside it the first time.

    Raises:
        UserError: if the folder holds a run of another configuration.
    """
    if before is not None and path.exists() and read_json(path).get("steps") == before["steps"]:
        write_json(path, {**claim(path, before, with_defaults), **identity})
    claim(path, identity, with_defaults, **once)
