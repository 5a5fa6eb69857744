"""One visible training loop. It can be killed at any moment: the same command goes on and ends at the same bits."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from la_reconvla.checkpoint import (
    WEIGHTS,
    PolicyConfig,
    dry_run,
    kept,
    load_tensors,
    restore,
    save_tensors,
    weights_hash,
)
from la_reconvla.conditions import Condition
from la_reconvla.contracts import Backbone, Batch, SaliencySource, Tracker
from la_reconvla.data.samples import Samples, batch_indices, greyed, shifted, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.teacher import averaged, follow, teacher_of
from la_reconvla.optimizers import OptimizerName, optimizers_for
from la_reconvla.processes import keep_memory
from la_reconvla.randomness import derive, generator, seeded
from la_reconvla.storage import append_jsonl, atomic_write, claim, explain_disk_errors, read_jsonl, require_free_space

METRICS, SCHEDULE, STATE = "metrics.jsonl", "train.json", "state/latest.safetensors"
SMALL_FILES = 20_000_000  # bytes of configuration and curves, generously
LOOKS, WATCHED = "looks", 64  # folder, and on how many held-out samples a training is watched
WHITENED = 256  # training images that the patch embedding starts from


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the same for every arm.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step.
        accumulate: micro-batches that a step's samples are divided into, one after the other; the gradient is the same.
        learning_rate: peak of the schedule (linear warm-up, then cosine to a hundredth).
        optimizer: ``adamw``, or ``muon`` for the matrices of the backbone, at five times that rate.
        warmup: steps of the warm-up.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        shift: training pictures are moved by up to so many pixels at random, see `data.samples.shifted`; 0 for none.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling); ``auto`` takes what the device does well.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads; results are bit-identical only for equal numbers of them.
        log_every: steps between lines of ``metrics.jsonl``.
        save_every: steps between saved states.
        check_every: steps between looks at held-out samples.
    """

    steps: int = 2000
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 7e-4
    optimizer: OptimizerName = "adamw"
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    shift: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    threads: int = 1
    log_every: int = 10
    save_every: int = 200
    check_every: int = 200

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "threads", "log_every", "save_every", "check_every"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate {self.accumulate} does not divide the batch of {self.batch_size}")
        if self.shift < 0:
            raise UserError(f"shift must not be negative: {self.shift}")

    @property
    def identity(self) -> dict[str, object]:
        """What decides the weights that come out; where it runs and how often it reports may change."""
        free = ("device", "threads", "log_every", "save_every", "check_every")
        return {key: value for key, value in asdict(self).items() if key not in free}

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        return scheduled(step, self.steps, self.warmup, self.learning_rate)


class Ticker(Protocol):
    """Where progress is reported."""

    def advance(self, steps: float = 1, note: str | None = None) -> None: ...


def pick_device(name: str) -> torch.device:
    """The device of this name; ``auto`` takes a GPU if there is one.

    Raises:
        UserError: if it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' is not usable here ({error}): use --device cpu") from error


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. ``auto``: bf16 on a GPU that has it, else fp16 on a GPU, else fp32."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def to_device(batch: Batch, device: torch.device, blind: bool) -> Batch:
    """The batch on `device`; a blind arm's images are replaced by grey before anything can see them."""
    batch = replace(batch, **{key: value.to(device) for key, value in vars(batch).items() if isinstance(value, Tensor)})
    return greyed(batch) if blind else batch


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, float, float]]:
    """Equal parts of a batch, each with its share of the samples and its share of the action steps that exist."""
    size = len(batch.instructions) // count
    for first in range(0, len(batch.instructions), size):
        own = {name: value[first : first + size] for name, value in vars(batch).items() if value is not None}
        part = replace(batch, **own)
        yield part, size / len(batch.instructions), float(part.valid.sum() / batch.valid.sum())


def scheduled(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine to a hundredth of it; `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    condition: Condition,
    policy_config: PolicyConfig,
    config: TrainConfig,
    samples: Samples,
    held_out: Samples | None,
    folder: Path,
    ticker: Ticker | None = None,
) -> Path:
    """Train one arm with one seed, or go on where a killed run stopped.

    Args:
        condition: the arm.
        policy_config: what is trained; its `seed` fixes weights, batches and masks.
        config: how it is trained.
        samples: training samples.
        held_out: samples of other episodes, for the curve of the held-out action loss.
        folder: run folder; ``model.safetensors`` appears in it when training is complete.
        ticker: told of every step.

    Returns:
        `folder`.

    Raises:
        UserError: for a folder of another configuration, boxes that the arm must not have or lacks, too few samples,
            too little space, a full disk, or a loss or gradient that is not finite; the weights that come of one are
            never saved.
    """
    if len(samples) < config.batch_size:
        raise UserError(f"{len(samples)} samples are fewer than one batch of {config.batch_size}: collect more")
    if condition.annotation_free != (samples.annotation is None):
        raise UserError(
            f"{condition.id} is told nothing of the target: train it on samples without boxes"
            if condition.annotation_free
            else f"{condition.id} must be told where the target is: give boxes, Samples.told(annotator('masks'))"
        )
    device, seed = pick_device(config.device), policy_config.seed
    dtype = pick_precision(config.precision, device)
    keep_memory()
    torch.set_num_threads(config.threads)  # before the first sum: the bits that the whitening gives depend on it
    some = spread_indices(len(samples), WHITENED)
    policy = policy_config.start(None if condition.blind else samples.batch(some).images).to(device).train()
    told = [e.instruction for part in (samples, held_out) if part for e in part.demonstrations.episodes]
    dry_run(policy, told)
    source = condition.saliency
    if source:
        source.require(told)
    averages = source is not None and source.decay is not None
    _require_space(folder, policy, averages)
    policy_config.save(folder)
    # repr, because the fields of two kinds of mask may be equal
    arm = {"precision": str(dtype), "reconstruction": repr(condition.reconstruction)}
    if samples.annotation is not None:
        arm["annotation"] = samples.annotation
    claim(folder / SCHEDULE, {**config.identity, **arm})
    if (folder / WEIGHTS).exists():
        drop_state(folder)  # a kill may have come between the two
        return folder
    start_hash = {"backbone": weights_hash(policy, "backbone"), "head": weights_hash(policy, "head")}
    optimizer = optimizers_for(policy, config.learning_rate, config.weight_decay, config.optimizer)
    halves = (dtype, getattr(policy.backbone, "compute", None))
    scaler = torch.amp.GradScaler(device.type, enabled=torch.float16 in halves)
    backbone: Any = policy.backbone
    teacher: Any = teacher_of(backbone) if averages else None
    first, seen = _resume(folder, policy, optimizer, scaler, teacher)
    trackers: tuple[Tracker, ...] = (JsonLines(folder, first), TensorBoard(folder, first))
    clock, counted = time.perf_counter(), 0
    if first == 0:
        counts = {"parameters": sum(p.numel() for p in policy.parameters())}
        if frozen := sum(p.numel() for p in policy.parameters() if not p.requires_grad):
            counts["frozen"] = frozen
        for tracker in trackers:
            tracker.log({**counts, "start": start_hash}, 0)
        if held_out is not None:
            save_looks(folder, 0, policy, held_out, device, condition.blind)
    if ticker:
        ticker.advance(first)

    for step in range(first, config.steps):
        indices = batch_indices(derive(seed, "data"), step, config.batch_size, len(samples))
        seen = hashlib.sha256(bytes.fromhex(seen) + indices.astype(np.int64).tobytes()).hexdigest()
        batch = samples.batch(indices)
        if config.shift:
            batch = shifted(batch, config.shift, generator(seed, "shift", step))
        batch = to_device(batch, device, condition.blind)
        optimizer.schedule(functools.partial(scheduled, step, config.steps, config.warmup))
        if source and source.refresh and step % source.refresh == 0:
            with half(dtype, device.type):
                choose(policy, source, samples, config.batch_size, device, condition.blind, teacher)
        try:
            with seeded(seed, f"dropout/{step}"):
                draws, noise = generator(seed, "mask", step), generator(seed, "noise", step)
                values = backward(
                    policy, batch, condition, config.accumulate, draws, scaler, dtype, step, teacher, noise
                )
        except FloatingPointError as error:
            raise _diverged(str(error), step) from error
        optimizer.unscale(scaler)
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.clip))
        if not (math.isfinite(norm) or scaler.is_enabled()):  # with loss scaling that is usual, and the step is skipped
            raise _diverged(f"the norm of the gradient is {norm}", step)
        if math.isfinite(norm):  # of two optimizers a scaler would skip only the one that overflowed
            optimizer.step(scaler)
        scaler.update()
        optimizer.zero_grad()
        if teacher is not None and source and source.decay is not None:
            follow(teacher, backbone, source.decay)
        counted += config.batch_size

        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            values |= {
                "gradient_norm": norm,
                "learning_rate": config.rate(step),
                "samples_per_second": counted / (time.perf_counter() - clock),
            }
            if held_out is not None and (done % config.check_every == 0 or done == config.steps):
                values["held_out_action_loss"] = held_out_loss(policy, held_out, device, condition.blind)
                save_looks(folder, done, policy, held_out, device, condition.blind)
            for tracker in trackers:
                tracker.log({**values, "batches": seen[:16]}, done)
            clock, counted = time.perf_counter(), 0
        if done % config.save_every == 0 and done < config.steps:
            _save_state(folder, policy, optimizer, scaler, teacher, done, seen)
        if ticker:
            ticker.advance(1, note=f"{condition.id} seed {seed}: loss {values['action_loss']:.3f}")

    for tracker in trackers:
        tracker.close()
    save_tensors(folder / WEIGHTS, kept(policy), steps=config.steps, batches=seen[:16])
    drop_state(folder)
    return folder


def half(dtype: torch.dtype, device: str) -> Any:
    """Autocast to `dtype`, or nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def backward(
    policy: Policy,
    batch: Batch,
    condition: Condition,
    parts: int,
    draws: torch.Generator,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    step: int = 0,
    teacher: Backbone | None = None,
    noise: torch.Generator | None = None,
) -> dict[str, Any]:
    """Add the gradient of one batch, taken in `parts` micro-batches, to the parameters; what to log of it.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    device = batch.images.device.type
    values: dict[str, Any] = {"loss": 0.0, "action_loss": 0.0}
    for part, of_samples, of_steps in micro_batches(batch, parts):
        with half(dtype, device):
            loss = losses(policy, part, condition.reconstruction, draws, step, teacher, noise)
            # Every term is a mean over samples but the action loss, which is a mean over the steps that exist.
            total = of_samples * loss.total + (of_steps - of_samples) * loss.action
        if not math.isfinite(value := total.item()):
            raise FloatingPointError(f"the loss is {value}")
        scaler.scale(total).backward()
        values["loss"] += value
        values["action_loss"] += of_steps * loss.action.item()
        if loss.reconstruction is not None:
            known = values.get("reconstruction_loss", 0.0)
            values["reconstruction_loss"] = known + of_samples * loss.reconstruction.item()
        if loss.channel is not None:
            values["attention_channel"] = loss.channel
    return values


def choose(
    policy: Policy,
    source: SaliencySource,
    samples: Samples,
    batch_size: int,
    device: torch.device,
    blind: bool = False,
    teacher: Backbone | None = None,
) -> None:
    """Let `source` learn from evenly spaced training frames and today's weights: a resumed run learns the same."""
    indices = spread_indices(len(samples), source.frames)
    parts = np.array_split(indices, -(-len(indices) // batch_size))
    policy.fit(source, (to_device(samples.batch(part), device, blind) for part in parts), teacher)


@torch.no_grad()
def held_out_loss(policy: Policy, samples: Samples, device: torch.device, blind: bool, count: int = 256) -> float:
    """Action loss on up to `count` evenly spaced held-out samples."""
    policy.eval()
    chosen = spread_indices(len(samples), count)
    values, weights = [], []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        batch = to_device(samples.batch(part), device, blind)
        values.append(losses(policy, batch, None, torch.Generator()).action.item())
        weights.append(len(part))
    policy.train()
    return float(np.average(values, weights=weights))


@torch.no_grad()
def save_looks(folder: Path, step: int, policy: Policy, samples: Samples, device: torch.device, blind: bool) -> None:
    """Keep where `policy` looks on `WATCHED` evenly spaced samples: float32 [m n] in ``looks/<step>.npy``.

    The mean map, whatever the arm's mask follows, so that arms compare. How it changes from check to check is measured
    from these files, see `la_reconvla.study.grounding`.
    """
    policy.eval()
    parts = np.array_split(spread_indices(len(samples), WATCHED), max(1, WATCHED // 32))
    batches = (to_device(samples.batch(part), device, blind) for part in parts)
    looks = [policy.look(batch.images, batch.instructions, batch.wrist, batch.proprio) for batch in batches]
    policy.train()
    path = folder / LOOKS / f"{step:06d}.npy"
    path.parent.mkdir(exist_ok=True)
    with explain_disk_errors(path), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, torch.cat(looks).float().cpu().numpy(), allow_pickle=False)


class JsonLines:
    """``metrics.jsonl``: the truth. Lines after `first`, left by a killed run, are dropped."""

    def __init__(self, folder: Path, first: int):
        self.path = folder / METRICS
        kept = [line for line in read_jsonl(self.path) if first and line["step"] <= first]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Append one line."""
        append_jsonl(self.path, {"step": step, **values})

    def close(self) -> None:
        """Nothing is buffered."""


class TensorBoard:
    """The numbers among the values, for TensorBoard."""

    def __init__(self, folder: Path, first: int):
        self.folder = folder / "tensorboard"
        with explain_disk_errors(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=first + 1)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Add each number."""
        with explain_disk_errors(self.folder):
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        with explain_disk_errors(self.folder):
            self.board.close()


def _diverged(reason: str, step: int) -> UserError:
    return UserError(f"{reason} at step {step}: lower the learning rate or check the data")


def _require_space(folder: Path, policy: Policy, averages: bool) -> None:
    """A state is the weights, two moments and perhaps an average of each; the next is complete before the last goes."""
    if (folder / WEIGHTS).exists():
        return
    weights = sum(tensor.nbytes for tensor in kept(policy).values())
    states = 1 if (folder / STATE).exists() else 2
    require_free_space(folder, states * (3 + averages) * weights + SMALL_FILES)


def drop_state(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree((folder / STATE).parent, ignore_errors=True)


def _save_state(folder, policy, optimizer, scaler, teacher, step: int, seen: str) -> None:
    tensors = {f"policy.{name}": value for name, value in kept(policy).items()}
    if teacher is not None:
        tensors |= {f"teacher.{name}": mine for name, (mine, _) in averaged(teacher, policy.backbone).items()}
    tensors |= optimizer.tensors()
    save_tensors(folder / STATE, tensors, step=step, seen=seen, scaler=scaler.state_dict())


def _resume(folder, policy, optimizer, scaler, teacher) -> tuple[int, str]:
    """(first step to do, running hash of the batches seen); (0, empty hash) for a fresh run."""
    path = folder / STATE
    if not path.exists():
        return 0, ""
    tensors, metadata = load_tensors(path)
    weights = {k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")}
    restore(policy, weights, path)
    if teacher is not None:
        with torch.no_grad():
            for name, (mine, _) in averaged(teacher, policy.backbone).items():
                mine.copy_(tensors[f"teacher.{name}"])
    optimizer.load(tensors)
    if metadata["scaler"]:
        scaler.load_state_dict(metadata["scaler"])
    return int(metadata["step"]), str(metadata["seen"])
