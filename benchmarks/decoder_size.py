"""What does a smaller or sparser decoder cost in pixels, and what does it save in a step?

    python benchmarks/decoder_size.py runs/small/C1/seed0 --demonstrations runs/small/demonstrations

Decoders of several sizes learn alone, as `la_reconvla.training.head_start` trains them, from the same features of the
backbone that the run began with and under the same masks: the arms' (C2 random, C4 by attention). Their mean squared
pixel error is of held-out frames, beside that of the mean training picture. A decoder of one layer is a sparse one: it
answers at the masked patches alone, and no visible patch is decoded.

Times are CPU time of one thread: of the action loss forward and backward, which is the step of C1 without its
optimizer, and of what each decoder adds, in turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from run_samples import divided

from la_reconvla.conditions import condition
from la_reconvla.data.samples import batch_indices, spread_indices
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.objective import losses
from la_reconvla.method.pixels import patchify
from la_reconvla.method.policy import Policy
from la_reconvla.randomness import derive, generator
from la_reconvla.text_table import TextTable
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.head_start import learn_head
from la_reconvla.training.held_out import head_errors

SIZES = ((4, 256), (1, 256), (2, 128), (1, 128), (1, 64), (1, 32))  # layers and width; the first is published
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    run: Annotated[Path, tyro.conf.Positional]
    demonstrations: Path
    arms: tuple[str, ...] = ("C2", "C4")
    steps: int = 1000
    batch: int = 32
    frames: int = 512
    rounds: int = 20
    held_out: float = 0.15


class Measurement:
    """A run's configuration with its data, and decoders in the place of its head."""

    def __init__(self, options: Options):
        self.options, self.config = options, PolicyConfig.load(options.run)
        self.samples, self.rest = divided(self.config, options.demonstrations, options.held_out)
        self.some = self.samples.batch(spread_indices(len(self.samples), 256)).images

    def policy(self, arm: str, decoder: MAEDecoder) -> tuple[Policy, Any]:
        """As the arm starts, with this decoder; and what it reconstructs."""
        chosen = condition(arm)
        assert chosen.reconstruction is not None
        config = replace(self.config, condition=arm, reconstruction_head=decoder)
        return config.start(self.some), replace(chosen.reconstruction, reconstruction_head=decoder)

    def batch(self, step: int) -> Any:
        """Of the samples that a training of this seed draws."""
        order = derive(self.config.seed, "head data")
        return self.samples.batch(batch_indices(order, step, self.options.batch, len(self.samples)))

    def errors(self, arm: str, decoder: MAEDecoder) -> dict[str, float]:
        """Pixel errors after the decoder has learned."""
        policy, extra = self.policy(arm, decoder)
        distinct = len(self.samples) // self.options.batch
        learn_head(policy, extra, self.options.steps, self.config.seed, self.batch, distinct)
        mean = patchify(self.some, policy.backbone.patch_size).mean(0)
        return head_errors(policy, self.rest, CPU, extra, lambda: mean, self.options.frames)

    def times(self, heads: list[Any]) -> tuple[float, list[float]]:
        """Median milliseconds of CPU time: C1's step, and what each head adds to it."""
        batch = self.batch(0)
        policy, extra = self.policy("C4", heads[0].config)
        rows = extra.follows.attention_rows
        with torch.no_grad():
            features = policy.features(batch, attention=rows)
            mask = extra.choose_patches(features, batch.gaze, generator(0, "mask"), 0.0)[1]
        target = heads[0].target(batch.images)

        def act() -> None:
            losses(policy, batch, None, torch.Generator()).action.backward()

        def reconstruct(head: Any) -> None:
            patches = features.patches.detach().requires_grad_()
            head.loss(patches, mask, target, torch.Generator()).backward()

        works = [act, *(lambda head=head: reconstruct(head) for head in heads)]
        found: list[list[float]] = [[] for _ in works]
        for number in range(self.options.rounds + 2):
            for work, times in zip(works, found, strict=True):
                began = time.process_time()
                work()
                if number >= 2:  # the first allocate
                    times.append(1000 * (time.process_time() - began))
        first, *rest = (median(times) for times in found)
        return first, rest


def main() -> None:
    """A row for each decoder."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    measured = Measurement(options)
    decoders = tuple(MAEDecoder(depth, width, max(1, width // 32)) for depth, width in SIZES)
    heads: list[Any] = [measured.policy("C4", decoder)[0].reconstruction_head for decoder in decoders]
    step, added = measured.times(heads)
    rows = []
    for decoder, head, more in zip(decoders, heads, added, strict=True):
        count = sum(parameter.numel() for parameter in head.parameters())
        found = [measured.errors(arm, decoder) for arm in options.arms]
        errors = [f"{each['held_out_reconstruction_loss']:.4f} ({each['mean_picture_loss']:.4f})" for each in found]
        rows.append((f"{decoder.depth} x {decoder.width}", f"{count:,}", f"{more:.1f}", f"{more / step:.2f}", *errors))
        print(rows[-1], flush=True)
    header = ("decoder", "parameters", "ms a step", "of C1's", *(f"{arm} (mean picture)" for arm in options.arms))
    title = f"Decoders after {options.steps} steps alone; C1's step of {options.batch} samples: {step:.0f} ms"
    print(TextTable(title, header, rows).markdown())


if __name__ == "__main__":
    main()
