"""How a policy is trained, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from la_reconvla import kinds
from la_reconvla.errors import UserError
from la_reconvla.training.optimizers import OptimizerName
from la_reconvla.training.options import ServiceName
from la_reconvla.training.parts import Part, scheduled


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the same for every arm.

    Attributes:
        steps: optimizer steps, of all parts together.
        batch_size: samples per step.
        accumulate: micro-batches that a step's samples are divided into, one after the other; the gradient is the same.
        learning_rate: peak learning rate (linear warm-up, then cosine decay to a hundredth).
        optimizer: ``adamw``, or ``muon`` for the matrices of the backbone, at five times that rate.
        warmup: steps of the warm-up.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        ema: keep a moving average of the weights, which is what acts in the end, see `averaged_decay`.
        shift: random shift of training pictures, up to this many pixels, see `data.samples.shifted`; 0 for none.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling); ``auto`` takes what the device does well.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads; results are bit-identical only for equal numbers of them.
        log_every: steps between lines of ``metrics.jsonl``.
        save_every: steps between saved states.
        check_every: steps between looks at held-out samples.
        track: service that gets the lines of ``metrics.jsonl`` too.
        earlier: parts that have ended, where a finished training goes on; `learning_rate` and `warmup` are of the last.
    """

    steps: int = 2000
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 7e-4
    optimizer: OptimizerName = "adamw"
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: bool = False
    shift: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    threads: int = 1
    log_every: int = 10
    save_every: int = 200
    check_every: int = 200
    track: ServiceName | None = None
    earlier: tuple[Part, ...] = ()

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "threads", "log_every", "save_every", "check_every"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate {self.accumulate} does not divide the batch of {self.batch_size}")
        if self.shift < 0:
            raise UserError(f"shift must not be negative: {self.shift}")
        if self.steps <= self.begun:
            raise UserError(f"{self.begun} steps are done: steps must be more than that, not {self.steps}")

    @property
    def identity(self) -> dict[str, object]:
        """What decides the weights that come out; where it runs and how often it reports may change."""
        free = ("device", "threads", "log_every", "save_every", "check_every", "track")
        return {key: value for key, value in kinds.to_json(self).items() if key not in free}

    @property
    def begun(self) -> int:
        """Step at which the last part begins."""
        return sum(part.steps for part in self.earlier)

    @property
    def before(self) -> TrainConfig | None:
        """The same without the last part; None for a training of one part."""
        if not self.earlier:
            return None
        *parts, last = self.earlier
        own = {"learning_rate": last.learning_rate, "warmup": last.warmup}
        return replace(self, steps=self.begun, earlier=tuple(parts), **own)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0, in the last part."""
        return scheduled(step - self.begun, self.steps - self.begun, self.warmup, self.learning_rate)

    def progress(self, step: int) -> float:
        """Share of the training that is done; what an arm changes with it ends with the first part, and stays."""
        return min(1.0, step / (self.earlier[0].steps if self.earlier else self.steps))
