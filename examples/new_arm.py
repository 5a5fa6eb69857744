"""An arm that is new in kind: it reconstructs what the words look at *least*, and its lambda falls while it trains.

A mask source and a lambda are frozen dataclasses, so that the arm is one value; nothing else knows of it. Both may
depend on the share of the training that is done. A study compares an arm that no file of hypotheses names with its
nearest ones, by what they are. Here it trains beside them on a toy.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from la_reconvla import Condition, MAEDecoder, Reconstruction, add_condition
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import ARMS, nearest
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.method.mask import MaskContext, MaskSource, checked, masked_count, top
from la_reconvla.sim import toy
from la_reconvla.storage import read_jsonl
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.loop import TrainConfig, train


@dataclass(frozen=True)
class LowestAttention(MaskSource):
    """The patches that the instruction looks at least."""

    fraction: float = 0.25
    needs_attention = True
    label = "lowest attention"

    def __call__(self, context: MaskContext) -> torch.Tensor:
        """True = reconstruct, bool [b n]."""
        return top(-checked(context.saliency), masked_count(self.fraction, context.shape[1]))


@dataclass(frozen=True)
class Annealed:
    """Lambda, on a straight line from `start` to `end` over the training."""

    start: float = 1.0
    end: float = 0.0
    label = "annealed"

    def __call__(self, progress: float) -> float:
        """Lambda where this share of the training is done."""
        return self.start + (self.end - self.start) * progress


LOWEST = add_condition(
    Condition("C4-lowest", "lowest attention, lambda annealed", Reconstruction(LowestAttention(), weight=Annealed()))
)
BACKBONE = SmallPaliGemma(
    image_size=32, patch=8, width=32, vision_layers=1, language_layers=3, attention_heads=4, kv_heads=2, chunk=1
)


def main(folder: Path, steps: int = 4) -> dict[str, list[dict]]:
    """Train it and its nearest arms from equal weights on equal batches; what each logged."""
    toy.demonstrations(folder / "demonstrations", episodes=8, boards=4, errors=0.0)
    training = Samples(open_demonstrations(folder / "demonstrations"), BACKBONE.image_size, BACKBONE.chunk)
    schedule = TrainConfig(steps=steps, batch_size=8, warmup=1, log_every=1, device="cpu")
    others = nearest(LOWEST, ARMS)
    print("a study compares", LOWEST.id, "with", *(arm.id for arm in others))
    found = {}
    for known in (LOWEST, *others):
        arm = known.with_reconstruction_head(MAEDecoder(depth=1, width=32, attention_heads=4))
        config = PolicyConfig.trained_on(arm, training, seed=0, backbone=BACKBONE)
        found[arm.id] = read_jsonl(train(arm, config, schedule, training, None, folder / arm.id) / "metrics.jsonl")
        print(arm.id, [round(line["loss"], 3) for line in found[arm.id] if "loss" in line])
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
