"""A backbone of your own in this package's policy: trained, saved, loaded again.

The method asks three things of a backbone: patch states and action states read *after* the language has entered, and
the attention of the words over the patches. A frozen dataclass says how large it is; registered, it is named in
``config.json`` by its import path, and `load_policy` reads it wherever this module has been imported.
"""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from la_reconvla import Features, MAEDecoder, condition, load_policy, register
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.robot import Proprioception
from la_reconvla.sim import toy
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.loop import TrainConfig, train


@register
@dataclass(frozen=True)
class MyBackboneConfig:
    """What `la_reconvla.backbones.shared.BackboneConfig` names. Neither robot state nor a second camera here."""

    width: int = 32
    patch: int = 8
    image_size: int = 32
    chunk: int = 1
    proprio: Proprioception = "none"
    wrist: bool = False
    saliency_layers: int = 1
    max_tokens: int = 32

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch, self.image_size // self.patch

    def build(self) -> MyBackbone:
        """The backbone with fresh weights."""
        return MyBackbone(self)


class MyBackbone(nn.Module):
    """Words look at patches, patches listen to words, action queries read the patches."""

    def __init__(self, config: MyBackboneConfig):
        super().__init__()
        self.width, self.patch_size, self.grid = config.width, config.patch, config.grid
        self.embed = nn.Conv2d(3, self.width, self.patch_size, self.patch_size)
        self.words = nn.Embedding(1000, self.width, padding_idx=0)
        self.words_look = nn.MultiheadAttention(self.width, 4, batch_first=True)
        self.patches_listen = nn.MultiheadAttention(self.width, 4, batch_first=True)
        self.act = nn.MultiheadAttention(self.width, 4, batch_first=True)
        self.queries = nn.Parameter(torch.randn(config.chunk, self.width))

    def forward(
        self, inputs: PolicyInput, *, attention: str | None = None, hidden: torch.Tensor | None = None
    ) -> Features:
        """See `la_reconvla.contracts.Backbone`."""
        pixels = inputs.images / 127.5 - 1.0
        if hidden is not None:  # mask_at="input": these pixels must not enter
            p = self.patch_size
            cover = hidden.view(-1, 1, *self.grid).repeat_interleave(p, 2).repeat_interleave(p, 3)
            pixels = pixels.masked_fill(cover, 0.0)
        texts = [text.split() for text in inputs.instructions]
        numbers = [torch.tensor([1 + zlib.crc32(word.encode()) % 999 for word in text]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(numbers, batch_first=True).to(pixels.device)
        token_mask = ids > 0  # the instruction's own words; padding never counts

        patches, words = self.embed(pixels).flatten(2).mT, self.words(ids)
        seen, weights = self.words_look(words, patches, patches, average_attn_weights=False)
        words = words + seen
        patches = patches + self.patches_listen(patches, words, words, key_padding_mask=~token_mask)[0]
        queries = self.queries.expand(len(patches), -1, -1)
        share = token_mask / token_mask.sum(1, keepdim=True)
        return Features(
            patches=patches,
            action_states=self.act(queries, patches, patches)[0],
            instruction_state=torch.einsum("bt,btd->bd", share, words),
            attention=weights[:, None] if attention else None,  # [b l h t n], here of one layer
            token_mask=token_mask if attention else None,
            grid=self.grid,
        )


def main(folder: Path, steps: int = 6) -> Path:
    """Train C4 with this backbone on a small toy in `folder`, load it and act; the run's folder."""
    demonstrations = folder / "demonstrations"
    toy.demonstrations(demonstrations, episodes=8, boards=4, errors=0.0)
    training, held_out = (
        Samples(part, MyBackboneConfig.image_size, MyBackboneConfig.chunk)
        for part in open_demonstrations(demonstrations).divide(0.25)
    )
    arm = condition("C4").with_reconstruction_head(MAEDecoder(depth=1, width=32, attention_heads=4))
    config = PolicyConfig.trained_on(arm, training, seed=0, backbone=MyBackboneConfig())
    schedule = TrainConfig(steps=steps, batch_size=8, warmup=2, log_every=1, check_every=steps, device="cpu")
    run = train(arm, config, schedule, training, held_out, folder / "run")

    policy, read = load_policy(run)
    batch = training.batch([0, 1])
    print(
        f"{run} holds a {type(read.backbone).__name__}; its first action is {policy.act(batch.inputs)[0, 0].tolist()}"
    )
    return run


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
