"""The options of the command pretrain. Light: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What a user chooses of a pretraining's schedule.

    Attributes:
        steps: optimizer steps.
        batch_size: pictures with sentences per step.
        demonstration_batch: samples of demonstrations per step, where there are demonstrations.
        words_weight: of the loss over pictures and sentences beside the action loss, where there are demonstrations. A
            weight of 1 lets its gradient, several times larger, decide where Muon goes: the action loss hardly falls.
        learning_rate: peak of the schedule (linear warm-up, then cosine to a hundredth).
        optimizer: adamw, or muon for the backbone's matrices.
        device: auto, cpu or cuda; on a GPU all pictures of demonstrations are kept there.
        seed: of weights, pictures and sentences.
        threads: of the processor.
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
