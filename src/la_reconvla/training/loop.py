"""One visible training loop. It can be killed at any moment: the same command resumes it and ends bit-identical."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from la_reconvla import kinds
from la_reconvla.conditions import Condition
from la_reconvla.contracts import Batch
from la_reconvla.data.samples import Samples, batch_indices, shifted, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.pixels import patchify
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.learned import LearnedSource, fit_saliency
from la_reconvla.method.variants.teacher import averaged, averaged_decay, follow, teacher_of
from la_reconvla.processes import keep_memory
from la_reconvla.progress import Ticker
from la_reconvla.randomness import derive, generator, seeded
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept, restore, weights_hash
from la_reconvla.training.devices import pick_device, pick_precision
from la_reconvla.training.gradient import backward, half, to_device
from la_reconvla.training.head_start import learn_head
from la_reconvla.training.held_out import head_errors, held_out_loss, looks, save_looks
from la_reconvla.training.optimizers import Optimizers, optimizers_for
from la_reconvla.training.parts import claim_part, scheduled
from la_reconvla.training.process_group import ALONE, ProcessGroup
from la_reconvla.training.requirements import require_divisible, require_fit
from la_reconvla.training.run_state import STATE, finished, require_room
from la_reconvla.training.tensors import load_tensors, named_as, save_tensors
from la_reconvla.training.trackers import JsonLines, Service, TensorBoard, Tracker, require_service
from la_reconvla.training.train_config import TrainConfig
from la_reconvla.training.trial import dry_run

SCHEDULE = "train.json"
T = TypeVar("T")
WHITENED = 256  # training images that the patch embedding starts from, and that the mean picture is of


def train(
    condition: Condition,
    policy_config: PolicyConfig,
    config: TrainConfig,
    samples: Samples,
    held_out: Samples | None,
    folder: Path,
    ticker: Ticker | None = None,
    group: ProcessGroup = ALONE,
) -> Path:
    """Train one arm with one seed, resume an interrupted run, or train the next part of a finished one.

    Args:
        condition: the arm.
        policy_config: what is trained; its `seed` fixes weights, batches and masks.
        config: how it is trained.
        samples: training samples.
        held_out: samples of other episodes, for the curve of the held-out action loss.
        folder: run folder; ``model.safetensors`` of these steps appears in it when training is complete.
        ticker: advanced by every step.
        group: the processes that train it together; every one of them makes this call.

    Returns:
        `folder`.

    Raises:
        UserError: for a folder of another configuration, boxes that the arm must not have or lacks, too few samples,
            too little space, a full disk, or a loss or gradient that is not finite; the weights that come of one are
            never saved.
    """
    require_fit(condition, config, samples)
    require_service(config.track)
    device, seed = group.device or pick_device(config.device), policy_config.seed
    dtype = pick_precision(config.precision, device)
    quantized = getattr(policy_config.backbone, "quantize", None) is not None
    require_divisible(group, condition, config, dtype, quantized)
    keep_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what asks for no device, as kernels of libraries do, gets this one
    torch.set_num_threads(config.threads)  # before the first sum: the bits that the whitening gives depend on it
    some = spread_indices(len(samples), WHITENED)
    policy = policy_config.start(None if condition.blind else samples.batch(some).images).to(device).train()
    instructions = [e.instruction for part in (samples, held_out) if part for e in part.demonstrations.episodes]
    dry_run(policy, policy_config.backbone, instructions)
    if condition.saliency:
        condition.saliency.require(instructions)
    done = finished(folder, config.steps)
    if not done:
        averages = (_decay(condition) is not None) + config.ema
        require_room(folder, kept(policy), averages, going_on=bool(config.earlier))
    policy_config.save(folder)
    arm = {"precision": str(dtype), "reconstruction": kinds.to_json(condition.reconstruction)}
    if condition.head_start:
        arm["head_start"] = condition.head_start
    if samples.annotation is not None:
        arm["annotation"] = samples.annotation
    names = [] if held_out is None else [e.name for e in held_out.demonstrations.episodes]
    share = round(len(names) / (len(names) + len(samples.demonstrations.episodes)), 4)
    kept_back = {"share": share, "episodes": names}
    defaults = functools.partial(_with_defaults, config, condition)
    before = config.before and {**config.before.identity, **arm}
    claim_part(folder / SCHEDULE, {**config.identity, **arm}, before, defaults, held_out=kept_back)
    if done:
        return folder
    Training(condition, config, seed, samples, held_out, folder, policy, device, dtype, group).run(ticker)
    group.wait()  # until the weights are on the disk
    return folder


def _with_defaults(config: TrainConfig, condition: Condition, schedule: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``train.json``, with defaults for fields that are newer than the file."""
    arm = kinds.with_defaults(schedule.get("reconstruction"), condition.reconstruction)
    return {**kinds.with_defaults(schedule, config), "reconstruction": arm}


def _decay(condition: Condition) -> float | None:
    """Of the moving average of weights that the arm's saliency reads; None where it reads those that train."""
    return condition.learned_saliency.decay if condition.learned_saliency else None


@dataclass(eq=False)
class Training:
    """One arm in training: what its steps share.

    Attributes:
        teacher: the moving average of the backbone that the arm's saliency reads; None for other arms.
        average: the moving average of the policy; None without `TrainConfig.ema`.
        batches: running hash of the samples' numbers, step by step.
    """

    condition: Condition
    config: TrainConfig
    seed: int
    samples: Samples
    held_out: Samples | None
    folder: Path
    policy: Policy
    device: torch.device
    dtype: torch.dtype
    group: ProcessGroup = ALONE
    hashes: dict[str, str] = field(init=False)
    optimizer: Optimizers = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    teacher: Any = field(init=False)
    average: Any = field(init=False)
    batches: str = ""

    def __post_init__(self):
        config, backbone = self.config, self.policy.backbone
        halves = self.dtype, getattr(backbone, "compute", None)
        parts = () if (self.folder / STATE).exists() else ("backbone", "action_head")
        self.hashes = {part: weights_hash(self.policy, part) for part in parts}
        self.group.wrap(self.policy)
        self.optimizer = optimizers_for(self.policy, config.learning_rate, config.weight_decay, config.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=torch.float16 in halves)
        module: Any = backbone
        self.teacher = None if _decay(self.condition) is None else teacher_of(module)
        self.average = teacher_of(self.policy) if config.ema else None

    def run(self, ticker: Ticker | None) -> None:
        """All steps that are left, and the weights on disk."""
        config, first = self.config, self.resume()
        trackers: list[Tracker] = []
        if config.track and self.group.is_main:  # first: it reads what a killed run logged
            described = {"condition": self.condition.id, "seed": self.seed, **config.identity}
            trackers.append(Service(config.track, self.folder, described))
        if self.group.is_main:
            trackers += [JsonLines(self.folder, first), TensorBoard(self.folder, first)]
        clock, counted = time.perf_counter(), 0
        if first == 0:
            begun = self.start() | self.start_head(ticker)
            for tracker in trackers:
                tracker.log(begun, 0)
            self.check(0)
            clock = time.perf_counter()
        if ticker:
            ticker.advance(first, before=True)
        for step in range(first, config.steps):
            values, done = self.step(step), step + 1
            counted += config.batch_size
            if done % config.log_every == 0 or done == config.steps:
                values["samples_per_second"] = counted / (time.perf_counter() - clock)
                if done % config.check_every == 0 or done == config.steps:
                    values |= self.check(done)
                values |= {"part": 1 + len(config.earlier), "samples": done * config.batch_size}
                for tracker in trackers:
                    tracker.log({**values, "batches": self.batches[:16]}, done)
                clock, counted = time.perf_counter(), 0
            if done % config.save_every == 0 and done < config.steps:
                self.save(done)
            if ticker:
                ticker.advance(1, note=f"{self.condition.id} seed {self.seed}: loss {values['action_loss']:.3f}")
        for tracker in trackers:
            tracker.close()
        self.save(config.steps)  # before the weights: a finished run can go on
        self.write(WEIGHTS, self.trained(), steps=config.steps, batches=self.batches[:16])

    def start(self) -> dict[str, Any]:
        """What is logged before the first step: numbers of parameters, and hashes of the weights."""
        parameters = list(self.policy.parameters())
        counts = {"parameters": sum(p.numel() for p in parameters)}
        if frozen := sum(p.numel() for p in parameters if not p.requires_grad):
            counts["frozen"] = frozen
        several = {"processes": self.group.size} if self.group.size > 1 else {}
        return {**counts, **several, "start": self.hashes}

    def start_head(self, ticker: Ticker | None) -> dict[str, float]:
        """Let the reconstruction head learn alone, where the arm says so; what to log of it."""
        arm, seed = self.condition, self.seed
        if not arm.head_start or arm.reconstruction is None:
            return {}

        def done(step: int, loss: float) -> None:
            if ticker and step % self.config.log_every == 0:
                ticker.advance(0, note=f"{arm.id} seed {seed}: head alone {step}/{arm.head_start}, loss {loss:.3f}")

        def batch(step: int) -> Batch:
            return self.drawn(step, derive(seed, "head data"), "head shift")[0]

        if (learned := arm.learned_saliency) is not None and learned.refresh:
            self.learn(learned)
        of_them = len(self.samples) // self.config.batch_size
        try:
            loss = learn_head(self.policy, arm.reconstruction, arm.head_start, seed, batch, of_them, self.teacher, done)
        except FloatingPointError as error:
            raise _diverged(str(error), 0) from error
        return {"head_start": arm.head_start, "head_start_loss": loss}

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; what to log of it.

        Raises:
            UserError: if the loss or the gradient is not finite.
        """
        config, learned = self.config, self.condition.learned_saliency
        batch = self.batch(step)
        part = step - config.begun, config.steps - config.begun, config.warmup
        self.optimizer.schedule(functools.partial(scheduled, *part))
        if learned is not None and learned.refresh and step % learned.refresh == 0:
            self.learn(learned)
        try:
            rank = f"/{self.group.rank}" * (not self.group.is_main)
            with seeded(self.seed, f"dropout/{step}{rank}"):
                draws, *noises = (generator(self.seed, name, step) for name in ("mask", "noise", "action noise"))
                arguments = self.policy, batch, self.condition, config.accumulate, draws, self.scaler, self.dtype
                values = backward(*arguments, config.progress(step), self.teacher, *noises, group=self.group)
        except FloatingPointError as error:
            raise _diverged(str(error), step) from error
        norm = self.update(step)
        if (decay := _decay(self.condition)) is not None:
            follow(self.teacher, self.policy.backbone, decay)  # pyright: ignore[reportArgumentType] (a module)
        if self.average is not None:
            follow(self.average, self.policy, averaged_decay(step))
        return {**values, "gradient_norm": norm, "learning_rate": config.rate(step)}

    def batch(self, step: int) -> Batch:
        """The samples of this step, shifted, on the device; adds their numbers to `batches`."""
        batch, indices = self.drawn(step, derive(self.seed, "data"), "shift")
        self.batches = hashlib.sha256(bytes.fromhex(self.batches) + indices.astype(np.int64).tobytes()).hexdigest()
        return batch

    def drawn(self, step: int, order: int, shift: str) -> tuple[Batch, np.ndarray]:
        """The samples of a step in the order of this seed, shifted by this stream, on the device; and their numbers."""
        indices = batch_indices(order, step, self.config.batch_size, len(self.samples))
        batch = self.samples.batch(indices)
        if self.config.shift:
            batch = shifted(batch, self.config.shift, generator(self.seed, shift, step))
        return to_device(batch, self.device, self.condition.blind), indices

    def update(self, step: int) -> float:
        """Put the gradients into the weights; the norm that they had."""
        self.optimizer.unscale(self.scaler)
        clipped = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip)
        norm = float(self.group.full({"norm": clipped})["norm"])
        if not (math.isfinite(norm) or self.scaler.is_enabled()):  # with loss scaling that is usual: it skips the step
            raise _diverged(f"the norm of the gradient is {norm}", step)
        if math.isfinite(norm):  # of two optimizers a scaler would skip only the one that overflowed
            self.optimizer.step(self.scaler)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def learn(self, source: LearnedSource) -> None:
        """Let `source` learn from evenly spaced training frames and today's weights: a resumed run learns the same."""
        indices = spread_indices(len(self.samples), source.frames)
        parts = np.array_split(indices, -(-len(indices) // self.config.batch_size))
        batches = (to_device(self.samples.batch(part), self.device, self.condition.blind) for part in parts)
        with torch.no_grad(), half(self.dtype, self.device.type):
            self.group.run(self.policy, fit_saliency, source, batches, self.teacher)

    def check(self, done: int) -> dict[str, float]:
        """Where the policy looks on held-out samples, as a file, and after the first step its action loss there."""
        if self.held_out is None:
            return {}
        shown = self.held_out, self.device, self.condition.blind
        with torch.no_grad():
            values = {"held_out_action_loss": self.measure(held_out_loss, *shown)} if done else {}
            maps = self.measure(looks, *shown)
            if done and (extra := self.condition.reconstruction) is not None:
                arguments = self.held_out, self.device, extra, lambda: self.mean_picture
                values |= self.group.run(self.policy, head_errors, *arguments)  # an average has learned no saliency
        if self.group.is_main:
            save_looks(self.folder, done, maps)
        return values

    @functools.cached_property
    def mean_picture(self) -> torch.Tensor:
        """Of evenly spaced training samples, as patches [n q]."""
        images = self.samples.batch(spread_indices(len(self.samples), WHITENED)).images
        return patchify(images, self.policy.backbone.patch_size).mean(0).to(self.device)

    def measure(self, function: Callable[..., T], *arguments: Any) -> T:
        """A function of the policy that acts in the end."""
        return (
            self.group.run(self.policy, function, *arguments)
            if self.average is None
            else function(self.average, *arguments)
        )

    def trained(self) -> dict[str, torch.Tensor]:
        """The weights that come out: where there is an average, those that it averages are its own."""
        own = {} if self.average is None else averaged(self.average, self.policy)
        return kept(self.policy) | {name: mine for name, (mine, _) in own.items()}

    def averages(self) -> dict[str, torch.Tensor]:
        """All moving averages by their names in a saved state."""
        backbone: Any = self.policy.backbone
        pairs = {"teacher": (self.teacher, backbone), "average": (self.average, self.policy)}
        found = {kind: averaged(*pair) for kind, pair in pairs.items() if pair[0] is not None}
        return {f"{kind}.{name}": mine for kind, own in found.items() for name, (mine, _) in own.items()}

    def save(self, done: int) -> None:
        """Keep what a resumed run needs."""
        tensors = {f"policy.{name}": value for name, value in kept(self.policy).items()}
        tensors |= self.averages()
        tensors |= self.optimizer.tensors()
        self.write(STATE, tensors, step=done, seen=self.batches, scaler=self.scaler.state_dict())

    def write(self, name: str, tensors: dict[str, torch.Tensor], **about: Any) -> None:
        """Save tensors of all processes, by the main one."""
        tensors = self.group.full(tensors)
        if self.group.is_main:
            save_tensors(self.folder / name, tensors, **about)

    def resume(self) -> int:
        """Take up what `save` kept; the first step to do, 0 for a fresh run."""
        path = self.folder / STATE
        if not path.exists():
            return 0
        tensors, metadata = load_tensors(path)
        weights = {k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")}
        own = kept(self.policy)
        restore(self.policy, {k: self.group.like(v, own.get(k, v)) for k, v in named_as(weights, own).items()}, path)
        if averages := self.averages():
            tensors = named_as(tensors, averages)
            for name, mine in averages.items():
                mine.copy_(tensors[name])
        self.optimizer.load(tensors, self.group.like)
        if metadata["scaler"]:
            self.scaler.load_state_dict(metadata["scaler"])
        self.batches = str(metadata["seen"])
        return int(metadata["step"])


def _diverged(reason: str, step: int) -> UserError:
    return UserError(f"{reason} at step {step}: lower the learning rate or check the data")
