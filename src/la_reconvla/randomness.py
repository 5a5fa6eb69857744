"""Separate, named random streams derived from one seed.

Two conditions with one seed share every stream whose name they share: they see the same batches in the same order and
start from the same weights, whatever else they draw. A stream is a pure function of (seed, name, step), so that a
resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def derive(seed: int, name: str, step: int = 0) -> int:
    """A 63-bit seed for stream `name` at `step`; SHA-256, so that neighbouring seeds give unrelated streams."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, step: int = 0) -> torch.Generator:
    """A CPU generator for stream `name` at `step`. CPU on every device, so that GPU and CPU runs draw alike."""
    import torch

    return torch.Generator().manual_seed(derive(seed, name, step))


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Inside, torch's global CPU generator is stream `name`; outside it is as before. For weight initialisation."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, name))
        yield
