"""What a training refuses before it begins."""

from __future__ import annotations

import torch

from la_reconvla.conditions import Condition
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.training.process_group import ProcessGroup, Shards
from la_reconvla.training.train_config import TrainConfig


def require_fit(condition: Condition, config: TrainConfig, samples: Samples) -> None:
    """Raise a `UserError` for too few samples, and for boxes that the arm must not have or lacks."""
    if len(samples) < config.batch_size:
        raise UserError(f"{len(samples)} samples are fewer than one batch of {config.batch_size}: collect more")
    if condition.annotation_free != (samples.annotation is None):
        raise UserError(
            f"{condition.id} is told nothing of the target: train it on samples without boxes"
            if condition.annotation_free
            else f"{condition.id} must be told where the target is: give boxes, Samples.annotated(annotator('masks'))"
        )


def require_divisible(
    group: ProcessGroup, condition: Condition, config: TrainConfig, dtype: torch.dtype, quantized: bool
) -> None:
    """Raise a `UserError` for what these processes cannot train as one process would."""
    micro_batch = config.batch_size // config.accumulate
    if micro_batch % group.size:
        raise UserError(
            f"{group.size} processes do not divide a micro-batch of {micro_batch} samples: change --batch-size, "
            "--accumulate or --processes"
        )
    if group.size > 1 and condition.head_start:
        raise UserError(f"{condition.id} trains its head before the policy, which several processes cannot: use one")
    if not isinstance(group, Shards):
        return
    learned = condition.learned_saliency
    refused = {
        "Muon, which needs whole matrices": config.optimizer == "muon",
        "fp16, whose scale each process would choose by its shards: give --dtype bf16 or fp32": dtype == torch.float16,
        "weights in 4 bits": quantized,
        "a moving average of the weights (--ema)": config.ema,
        f"the teacher of {condition.id}": learned is not None and learned.decay is not None,
    }
    if found := [what for what, there in refused.items() if there]:
        raise UserError(f"weights in shards cannot have {'; '.join(found)}. Leave --sharded out")
