"""The options of the command pretrain, and of tracking. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

ServiceName = Literal["wandb", "trackio"]
"""Tracking services that a training can report to."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Several processes that train one policy, on one machine or many (docs/scale.md).

    Attributes:
        launch: accelerate divides each batch among the processes that its launcher starts.
        processes: how many to start on this machine; by default as `accelerate config` says, or one on each GPU.
        sharded: divide the weights too (FSDP2), for a backbone that no GPU holds; by default each has all (DDP).
    """

    launch: Annotated[Literal["accelerate"] | None, arg(help_behavior_hint="(optional)")] = None
    processes: int = 0
    sharded: bool = False


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
