"""Training: one optimizer step of an arm, its time and its memory, and which arms differ in what."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from la_reconvla.bench.sizes import BINS, Compute, Size, drawn
from la_reconvla.bench.timing import Kept, Work
from la_reconvla.conditions import C1, C2, CONDITIONS, D2, Condition
from la_reconvla.contracts import Batch
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import ReconstructorConfig
from la_reconvla.method.variants.budget import BudgetedPolicy
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.learned import unlearned
from la_reconvla.randomness import generator, seeded
from la_reconvla.study.presets import COARSE
from la_reconvla.training.gradient import backward
from la_reconvla.training.optimizers import OptimizerName, optimizers_for

BATCH = 16  # samples of a training step
CLIP = 1.0  # largest norm of the gradient, as in training


@dataclass(frozen=True)
class TrainStep:
    """One optimizer step of an arm: forward, backward, clipping and the size's optimizer.

    Attributes:
        condition: the arm.
        batch: samples.
        heads: reconstruction heads, as published, say; empty for those of the preset.
    """

    condition: Condition
    batch: int = BATCH
    heads: tuple[ReconstructorConfig, ...] = ()

    @property
    def id(self) -> str:
        """The arm, and what is not the preset's."""
        head = ", published head" if self.heads else ""
        return f"{self.condition.id}{head}{f', {self.batch} samples' if self.batch != BATCH else ''}"

    def sized(self, size: Size) -> Condition:
        """The arm with the head that it is measured with."""
        return self.condition.with_reconstruction_head(*(self.heads or (size.decoder, size.denoiser)))

    def head_size(self, size: Size, backbone: Any) -> int:
        """Weights of that head on a backbone, which may be without numbers."""
        reconstruction = self.sized(size).reconstruction
        if reconstruction is None:
            return 0
        with torch.device("meta"):
            head: Any = reconstruction.reconstruction_head.build(backbone.width, backbone.grid, backbone.patch_size)
        return sum(p.numel() for p in head.parameters())

    def ready(self, size: Size, compute: Compute) -> OneBatchTraining:
        """Everything that a step needs."""
        condition = self.sized(size)
        with seeded(0, "weights"):
            backbone, learned = size.build(compute), condition.learned_saliency
            policy = Policy(backbone, BINS, saliency_state=unlearned(learned.state_shape if learned else ()))
            if condition.reconstruction is not None:
                head = condition.reconstruction.reconstruction_head
                policy.reconstruction_head = head.build(backbone.width, backbone.grid, backbone.patch_size)
            if condition.budget is not None:
                policy = BudgetedPolicy(policy, condition.budget)
        policy.to(compute.device).train()
        batch = drawn(backbone, self.batch, compute)
        if not condition.annotation_free:
            batch.gaze = torch.tensor([[0.25, 0.25, 0.5, 0.5]], device=compute.device).repeat(self.batch, 1)
        return OneBatchTraining(condition, policy, batch, compute, size.optimizer)

    def build(self, size: Size, compute: Compute) -> Work:
        """See `Case`."""
        return self.ready(size, compute).step


class OneBatchTraining:
    """An arm in training, on one batch again and again, as `la_reconvla.training.loop.train` has its steps."""

    def __init__(self, condition: Condition, policy: Policy, batch: Batch, compute: Compute, optimizer: OptimizerName):
        self.condition, self.policy, self.batch, self.compute = condition, policy, batch, compute
        self.optimizer = optimizers_for(policy, 1e-5, 0.01, optimizer)
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16)
        self.numbers = itertools.count()

    def reconstruction_head(self) -> str:
        """Kind and size of the reconstruction head, in words."""
        head: Any = self.policy.reconstruction_head
        if head is None:
            return "no head"
        size = f"{head.config.label} {head.config.depth} x {head.config.width}"
        if isinstance(head.config, Denoiser):
            return f"{size}, r = {head.config.repeats}, {head.codec.width} numbers per token"
        return size

    def gradient(self) -> None:
        """Forward and backward pass."""
        number = next(self.numbers)
        draws, noise = generator(0, "mask", number), generator(0, "noise", number)
        parts = self.policy, self.batch, self.condition, 1, draws, self.scaler, self.compute.dtype
        backward(*parts, progress=1.0, noise=noise)  # what changes while it trains is as at the end

    def step(self) -> None:
        """One optimizer step."""
        self.gradient()
        self.optimizer.unscale(self.scaler)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self.optimizer.step(self.scaler)
        self.scaler.update()
        self.optimizer.zero_grad()

    def memory(self) -> float:
        """Bytes of weights, moments and gradients, and of what a step needs beside them; see `MEMORY`."""
        gradients = sum(p.nbytes for p in self.policy.parameters() if p.requires_grad)
        moments = self.optimizer.moments
        weights = sum(p.nbytes for p in self.policy.parameters())
        if self.compute.device.type == "cuda":
            self.step()  # the moments are there from now on
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            torch.cuda.synchronize()
            return weights + moments + torch.cuda.max_memory_allocated() - before
        with Kept(self.policy).watch() as kept:
            self.gradient()
        self.optimizer.zero_grad()
        return weights + moments + gradients + kept.bytes


MEMORY = {
    "cuda": "weights, moments and the peak of a step (max_memory_allocated)",
    "cpu": "weights, moments, gradients and what is saved for the backward pass",
}
ARMS = ("C1", "C2", "C4", "A1", "R1", "C4-input")
FEW = 4  # samples of a step of the published diffusion head, which takes half a minute on one core with `small`
PUBLISHED_HEADS = (MAEDecoder(), Denoiser(target=COARSE))  # 48 numbers per token in the place of a latent's 64
GROUPS = {
    "preset's heads": tuple(TrainStep(CONDITIONS[arm]) for arm in ARMS),
    "published heads": (TrainStep(C1, FEW), TrainStep(C2, FEW, PUBLISHED_HEADS), TrainStep(D2, FEW, PUBLISHED_HEADS)),
}
"""Steps that take turns; the first of each group reconstructs nothing.

They are apart because a group's slowest step decides how many rounds fit into its time."""
PAID = (
    ("random mask and {arm}", "C2", "C1"),
    ("attention's rows and mask instead of a random one", "C4", "C2"),
    ("{arm} instead of {without}", "A1", "C4"),
    ("crop and {arm}", "R1", "C1"),
    ("a second pass that keeps masked pixels out", "C4-input", "C4"),
    ("random mask and {arm}", GROUPS["published heads"][1].id, GROUPS["published heads"][0].id),
    ("{arm} instead of {without}", GROUPS["published heads"][2].id, GROUPS["published heads"][1].id),
)
"""What an arm has and another has not; in braces the heads of both."""
SHARES = (("C4", "A1"), (GROUPS["published heads"][1].id, GROUPS["published heads"][2].id))
"""Arms that differ in the head alone. It is said that the MAE decoder adds at most a fifth of the diffusion head's."""
FIFTH = 0.2
