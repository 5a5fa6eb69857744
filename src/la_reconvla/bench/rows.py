"""What the bench measured, as typed rows: one class for each kind of row, each a line of ``bench.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from la_reconvla import kinds

Section = Literal["control", "training", "picture", "limit", "data"]
SECTIONS: tuple[Section, ...] = ("control", "training", "picture", "limit", "data")


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A row of any kind.

    Attributes:
        backbone: a preset, an id on the hub or a folder; None for the simulator.
        case: what was measured.
        section: of the bench.
        unit: of the times, or of what is measured instead.
    """

    backbone: str | None
    case: str
    section: Section
    unit: str

    def to_json(self) -> dict[str, Any]:
        """All fields, and the class under ``kind``."""
        return kinds.to_json(self)


@dataclass(frozen=True, kw_only=True)
class TimedRow(BenchRow):
    """Statistics over the rounds.

    Attributes:
        median: of all rounds, in `unit`.
        p5: 5th percentile.
        p95: 95th percentile.
        n: rounds.
    """

    median: float
    p5: float
    p95: float
    n: int


@dataclass(frozen=True, kw_only=True)
class ControlRow(TimedRow):
    """Milliseconds a chunk of actions.

    Attributes:
        arm: whose way of acting it is.
        chunk: actions.
        decoding: all in one pass, token by token, or from noise.
        fast: by a recording.
        image_tokens: where they are not the backbone's number.
        hertz: actions per second if all of a chunk are executed.
        steps: from noise to actions, where it denoises.
        backbone_ms: what of it the backbone alone takes, where that was timed.
        head_ms: what it takes more than the backbone alone, the median over the rounds.
    """

    section: Section = "control"
    unit: str = "ms"
    arm: str
    chunk: int
    decoding: str
    fast: bool
    image_tokens: int | None
    hertz: float
    steps: int | None = None
    backbone_ms: float | None = None
    head_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class NotRecordedRow(BenchRow):
    """An arm that has no fast path here; `reason` tells why."""

    section: Section = "control"
    unit: str = "not recorded"
    reason: str


@dataclass(frozen=True, kw_only=True)
class LimitRow(BenchRow):
    """What the machine needs at least for the products of a chunk, beside what it takes.

    Attributes:
        median: milliseconds that it takes.
        bound: milliseconds that the products need at least.
        ratio: the first over the second.
        fast: milliseconds by a recording, which has the same products; None without one.
        fast_ratio: that over the bound.
        operations: of all products.
        bytes: of all products.
    """

    section: Section = "limit"
    unit: str = "ms"
    median: float
    bound: float
    ratio: float
    fast: float | None
    fast_ratio: float | None
    operations: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TrainRow(TimedRow):
    """Milliseconds a training step.

    Attributes:
        group: of the arms that took turns.
        reconstruction_head: its kind and size.
        batch: samples.
        memory_mb: see `la_reconvla.bench.train_steps.MEMORY`.
        over_c1: how long it is beside a step of the group's first arm, which reconstructs nothing.
    """

    section: Section = "training"
    unit: str = "ms"
    group: str
    reconstruction_head: str
    batch: int
    memory_mb: float
    over_c1: float


@dataclass(frozen=True, kw_only=True)
class ExtraRow(BenchRow):
    """What one arm's step takes more than another's.

    Attributes:
        arm: the longer.
        without: the other.
        median: milliseconds more.
        ratio: of the steps.
        n: rounds.
    """

    section: Section = "training"
    unit: str = "ms more"
    arm: str
    without: str
    median: float
    ratio: float
    n: int


@dataclass(frozen=True, kw_only=True)
class ShareRow(BenchRow):
    """What the MAE decoder adds to C1's step, over what the diffusion head adds.

    Attributes:
        arm: with the MAE decoder.
        diffusion_arm: the same with the diffusion head.
        mae_ms: milliseconds that the first adds.
        diffusion_ms: milliseconds that the second adds.
        share: the first over the second; None where the second is below the noise.
        at_most_a_fifth: whether it is what is said of it.
        n: rounds.
    """

    section: Section = "training"
    unit: str = "of the added time"
    arm: str
    diffusion_arm: str
    mae_ms: float
    diffusion_ms: float
    share: float | None
    at_most_a_fifth: bool | None
    n: int


@dataclass(frozen=True, kw_only=True)
class PictureRow(TimedRow):
    """Milliseconds a picture.

    Attributes:
        steps: denoising steps; None for one pass.
        with_backbone: the backbone's pass counts too.
        over_mae: beside the MAE decoder's one pass.
    """

    section: Section = "picture"
    unit: str = "ms"
    steps: int | None
    with_backbone: bool
    over_mae: float


@dataclass(frozen=True, kw_only=True)
class LoaderRow(BenchRow):
    """Samples per second that the loader gives, and that an arm's training takes.

    Attributes:
        loaded: by the loader.
        needed: by training.
        ratio: the first over the second.
        n: rounds.
    """

    section: Section = "data"
    unit: str = "samples/s"
    loaded: float
    needed: float
    ratio: float
    n: int


@dataclass(frozen=True, kw_only=True)
class SimulatorRow(TimedRow):
    """Episodes per minute of the scripted expert, in one process."""

    backbone: None = None
    case: str = "episodes of the scripted expert"
    section: Section = "data"
    unit: str = "episodes/min"
