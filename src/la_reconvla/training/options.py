"""The options of the command pretrain, and of tracking. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ServiceName = Literal["wandb", "trackio"]
"""Tracking services that a training can report to."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What a user chooses of a pretraining's schedule.

    Attributes:
        steps: optimizer steps.
        batch_size: captioned images per step.
        demonstration_batch: demonstration samples per step, if there are demonstrations.
        words_weight: weight of the caption loss relative to the action loss, if there are demonstrations. At 1 its
            gradient, several times larger, dominates Muon's update and the action loss hardly falls.
        learning_rate: peak learning rate (linear warm-up, then cosine decay to a hundredth).
        optimizer: adamw, or muon for the backbone's matrices.
        device: auto, cpu or cuda; a GPU keeps all demonstration images in its memory.
        seed: random seed of weights, images and captions.
        threads: CPU threads.
    """

    steps: int = 5000
    batch_size: int = 32
    demonstration_batch: int = 64
    words_weight: float = 0.1
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    device: str = "auto"
    seed: int = 0
    threads: int = 1
