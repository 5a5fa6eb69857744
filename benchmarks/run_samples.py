"""The samples that a run was trained on and those that it was not, as its policy takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.training.checkpoint import PolicyConfig


def divided(config: PolicyConfig, demonstrations: Path, held_out: float) -> tuple[Samples, Samples]:
    """Training and held-out samples of this folder, divided as a study divides it."""
    backbone: Any = config.backbone
    shown = {"wrist": backbone.wrist, "proprio": backbone.proprio, "inputs": config.inputs}
    parts = open_demonstrations(demonstrations).divide(held_out)
    training, rest = (Samples(part, backbone.image_size, backbone.chunk, **shown) for part in parts)
    return training, rest
