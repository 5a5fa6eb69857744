"""Teach a small PaliGemma words from captions, and hands from demonstrations, before any study begins.

From captions alone its attention comes to mean something before it acts. With demonstrations too, of tasks that no
study tests, it is a base policy, what pretraining is to OpenVLA and ReconVLA: `L = L_action + w L_words`, without
reconstruction, so that it favours no arm. `L_words` is one of `la_reconvla.training.pretraining_objectives`.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from la_reconvla import kinds
from la_reconvla.backbones.paligemma import PaliGemmaBackbone, SmallPaliGemma
from la_reconvla.conditions import C1
from la_reconvla.data.captions import NAMES, WORDINGS, Captioner
from la_reconvla.data.relabel import Relabeller
from la_reconvla.data.samples import Samples, batch_indices, shifted
from la_reconvla.data.scenes import Scenes
from la_reconvla.errors import UserError
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.progress import Ticker
from la_reconvla.randomness import derive, generator, seeded
from la_reconvla.storage import claim, locked
from la_reconvla.training.checkpoint import WEIGHTS as POLICY
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.devices import pick_device, pick_precision
from la_reconvla.training.gradient import half
from la_reconvla.training.held_out import held_out_loss
from la_reconvla.training.optimizers import Optimizers, optimizers_for
from la_reconvla.training.options import PretrainOptions
from la_reconvla.training.parts import scheduled
from la_reconvla.training.pretraining_data import pictures, relabeller_of, whiten
from la_reconvla.training.pretraining_objectives import CaptionBatch, Captioning, Contrast, MaskedWords
from la_reconvla.training.run_state import STATE, drop_state
from la_reconvla.training.start_weights import StartWeights, bins_of
from la_reconvla.training.tensors import load_tensors, save_tensors
from la_reconvla.training.trackers import JsonLines

WEIGHTS, CONFIG = "backbone.safetensors", "pretrain.json"
OF_THE_PICTURE = 0.5  # share of captions that are drawn for the picture of their number; the others for another one
MIXING = re.compile(r"\.(out_proj|o_proj)\.")  # what attention adds to the states of both towers


@dataclass(frozen=True)
class PretrainConfig(PretrainOptions):
    """How to pretrain: what a user chooses, and the rest.

    Attributes:
        backbone: size of the backbone.
        objective: what is minimised.
        warmup: steps of the warm-up.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        damping: what attention adds to the states of both towers starts at this share of its usual size (as in ReZero,
            arXiv 2003.04887). With tokens that mix fully from the start, any patch can carry the answer, and the best
            one is on the background (docs/log.md).
        alone: share of the steps in which things are only named.
        curriculum: share of the steps after that over which relations and requests come in.
        shift: pictures of demonstrations are shifted at random by up to this many pixels.
        relabel: share of the demonstrations' samples that are told another true sentence, see
            `la_reconvla.data.relabel`.
        precision: of the forward pass; ``auto`` is bf16 on a GPU that has it and fp32 elsewhere.
        log_every: steps between lines of ``metrics.jsonl``.
        check_every: steps between measurements of the held-out action loss.
        save_every: steps between saved states.
    """

    backbone: SmallPaliGemma = field(default_factory=lambda: SmallPaliGemma(mlp=2))
    objective: Contrast | Captioning | MaskedWords = field(default_factory=Contrast)
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    damping: float = 0.1
    alone: float = 0.2
    curriculum: float = 0.2
    shift: int = 4
    relabel: float = 0.5
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = 50
    check_every: int = 500
    save_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch_size", "demonstration_batch", "threads", "log_every", "check_every", "save_every"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")

    def identity(self, scenes: Scenes, samples: Samples | None, dtype: torch.dtype) -> dict[str, Any]:
        """What decides the weights that come out; `dtype` is that of the forward pass."""
        free = {"threads", "device", "log_every", "check_every", "save_every"}
        if samples is None:
            free |= {"demonstration_batch", "words_weight", "shift", "relabel"}
        deciding = {name: value for name, value in kinds.to_json(self).items() if name not in free}
        data = {"scenes": len(scenes), "scenes_hash": scenes.hash, "precision": str(dtype)}
        return deciding | data | ({} if samples is None else {"demonstrations": samples.demonstrations.hash})

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        return scheduled(step, self.steps, self.warmup, self.learning_rate)


def caption_batch(captioner: Captioner, config: PretrainConfig, step: int) -> CaptionBatch:
    """The batch of one step; a function of the seed and the step."""
    rng = np.random.default_rng(derive(config.seed, "captions", step))
    scenes = captioner.scenes
    related = (step - config.alone * config.steps) / max(1, config.curriculum * config.steps)
    plain = rng.random(config.batch_size) >= related
    arena = captioner.arenas[rng.choice(len(captioner.arenas), p=captioner.shares)]
    chosen = rng.choice(arena, size=config.batch_size)
    captions = []
    for index, alone in zip(chosen, plain, strict=True):
        caption = None
        while caption is None:
            about = int(index if rng.random() < OF_THE_PICTURE else rng.choice(arena))
            wordings = NAMES if alone else WORDINGS
            caption = captioner.caption(rng, about, relations=not alone, wordings=wordings)
        captions.append(caption)
    truth = torch.from_numpy(np.stack([caption.truth(scenes, chosen) for caption in captions])).float()
    return CaptionBatch(pictures(scenes.images[chosen]), captions, truth)


@dataclass(frozen=True, eq=False)
class Data:
    """What one pretraining learns from, pictures of demonstrations on its device.

    Attributes:
        captioner: of the scenes.
        samples: demonstrations to act like; None for words alone.
        held_out: of other scenes, for the curve of the held-out action loss.
        relabeller: other sentences for the demonstrations.
    """

    captioner: Captioner
    samples: Samples | None
    held_out: Samples | None
    relabeller: Relabeller | None

    @classmethod
    def on(cls, device: torch.device, scenes: Scenes, samples: Samples | None, held_out: Samples | None) -> Data:
        """The data of a training on `device`."""
        relabeller = None if samples is None else relabeller_of(samples)
        if samples is not None and device.type != "cpu":
            samples, held_out = samples.to(device), held_out and held_out.to(device)
        return cls(Captioner(scenes), samples, held_out, relabeller)


class Learner(nn.Module):
    """What pretraining trains: the backbone, what only its objective needs and, with demonstrations, an action head.

    Args:
        config: of the pretraining.
        start: initial weights; None for random ones.
        scenes: the training split.
        samples: demonstrations; None for words alone.
    """

    def __init__(self, config: PretrainConfig, start: StartWeights | None, scenes: Scenes, samples: Samples | None):
        super().__init__()
        with seeded(config.seed, "weights"):
            self.backbone: Any = config.backbone.build()
            self.word_head: Any = config.objective.word_head(self.backbone)
            policy = None if samples is None else Policy(self.backbone, bins_of(start, samples))
        self.action_head = None if policy is None else policy.action_head
        self.acting = (policy,)  # in a tuple, so that its backbone is not registered twice
        if start is None:
            whiten(self.backbone, scenes)
            _damp(self.backbone, config.damping)
        else:
            start.load_into(self.backbone, self.action_head)

    @property
    def policy(self) -> Policy | None:
        """Backbone and action head; None for words alone."""
        return self.acting[0]


def pretrain(
    scenes: Scenes,
    config: PretrainConfig,
    folder: Path,
    ticker: Ticker | None = None,
    samples: Samples | None = None,
    held_out: Samples | None = None,
) -> Path:
    """Train, or resume an interrupted run. Returns the file of weights: `SmallPaliGemma.weights`.

    With demonstrations the file holds the action queries and the action head too, and `folder` is also a run: a policy
    that can be evaluated on tasks that it was not trained on.

    Args:
        scenes: the training split.
        config: what is trained and how.
        folder: where weights and curves go.
        ticker: advanced with every step.
        samples: demonstrations to act like; None for words alone.
        held_out: of other scenes, for the curve of the held-out action loss.

    Raises:
        UserError: for scenes of another size, a folder of another configuration, or a loss that is not finite.
    """
    if scenes.images.shape[1] != config.backbone.image_size:
        raise UserError(
            f"the scenes are {scenes.images.shape[1]} pixels wide, the backbone takes {config.backbone.image_size}: "
            "render them at that --image-size"
        )
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    dtype = torch.float32 if dtype == torch.float16 else dtype  # nothing here scales a loss
    torch.set_num_threads(config.threads)
    with locked(folder):
        claim(
            folder / CONFIG,
            config.identity(scenes, samples, dtype),
            functools.partial(kinds.with_defaults, value=config),
        )
        if (folder / WEIGHTS).exists():
            drop_state(folder)  # a kill may have come between the two
            return folder / WEIGHTS
        start = StartWeights.of(config.backbone)
        learner = Learner(config, start, scenes, samples).to(device).train()
        data = Data.on(device, scenes, samples, held_out)
        _train(config, learner, data, folder, dtype, ticker)
        _finish(folder, config, learner, samples, start)
        drop_state(folder)
    return folder / WEIGHTS


def _train(
    config: PretrainConfig, learner: Learner, data: Data, folder: Path, dtype: torch.dtype, ticker: Ticker | None
) -> None:
    """All steps that are left."""
    device = learner.backbone.queries.device
    optimizer = optimizers_for(learner, config.learning_rate, config.weight_decay, config.optimizer)
    first = _resume(folder / STATE, learner, optimizer)
    lines = JsonLines(folder, first)
    if ticker:
        ticker.advance(first, before=True)
    clock, counted = time.perf_counter(), 0
    for step in range(first, config.steps):
        optimizer.schedule(functools.partial(scheduled, step, config.steps, config.warmup))
        with half(dtype, device.type):
            values = _losses(config, learner, data, step)
        loss = values["loss"]
        done, counted = step + 1, counted + 1
        logged = done % config.log_every == 0 or done == config.steps
        saved = done % config.save_every == 0 and done < config.steps
        # A GPU is asked for a number only where one is kept: each question waits for all that it has to do.
        if (device.type == "cpu" or logged or saved) and not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        if logged:
            batch_size = config.batch_size if data.samples is None else config.demonstration_batch
            line = {name: value.item() for name, value in values.items()}
            line |= {"gradient_norm": float(norm), "learning_rate": config.rate(step)}
            line["samples_per_second"] = counted * batch_size / (time.perf_counter() - clock)
            checked = done % config.check_every == 0 or done == config.steps
            if learner.policy is not None and data.held_out and checked:
                line["held_out_action_loss"] = held_out_loss(learner.policy, data.held_out, device, False)
            lines.log(line, done)
            clock, counted = time.perf_counter(), 0
        if saved:
            _save(folder / STATE, learner, optimizer, done)
        if ticker:
            ticker.advance(1, note=f"loss {loss.item():.3f}" if logged else None)


def _losses(config: PretrainConfig, learner: Learner, data: Data, step: int) -> dict[str, Tensor]:
    """All losses of one step; ``loss`` is what is minimised."""
    captions = caption_batch(data.captioner, config, step).to(learner.backbone.queries.device)
    draws = generator(config.seed, "cover", step)
    words = config.objective.loss(learner.backbone, learner.word_head, captions, draws)
    if learner.policy is None or data.samples is None or data.relabeller is None:
        return {"loss": words}
    indices = batch_indices(derive(config.seed, "data"), step, config.demonstration_batch, len(data.samples))
    batch = shifted(data.samples.batch(indices), config.shift, generator(config.seed, "shift", step))
    rng = np.random.default_rng(derive(config.seed, "relabel", step))
    for row, number in enumerate(data.samples.episode_of(indices)):
        if rng.random() < config.relabel and (sentence := data.relabeller.sentence(rng, int(number))) is not None:
            batch.instructions[row] = sentence
    action = losses(learner.policy, batch, None, generator(config.seed, "mask", step)).action
    return {"loss": action + config.words_weight * words, "action_loss": action, "words_loss": words}


@torch.no_grad()
def _damp(backbone: PaliGemmaBackbone, share: float) -> None:
    for name, parameter in backbone.model.named_parameters():
        if MIXING.search(name):
            parameter.mul_(share)


def _finish(
    folder: Path, config: PretrainConfig, learner: Learner, samples: Samples | None, start: StartWeights | None
) -> None:
    """Write the weights that trainings start from and, with demonstrations, the run that acts."""
    backbone, policy = learner.backbone, learner.policy
    tensors = {f"model.{name}": _halved(tensor) for name, tensor in backbone.model.state_dict().items()}
    made = replace(config.backbone, weights=None, weights_hash=None)  # what it began with may be gone when it is read
    metadata: dict[str, Any] = {"backbone": kinds.to_json(made), "steps": config.steps}
    metadata["began_with"] = config.backbone.weights_hash
    before = None if start is None else start.demonstrations
    if before is not None:
        metadata["demonstrations"] = before
    if policy is not None and samples is not None:
        tensors |= {"queries": backbone.queries.detach()}
        tensors |= {f"action_head.{name}": _halved(tensor) for name, tensor in policy.action_head.state_dict().items()}
        metadata["bins"] = kinds.to_json(policy.bins)
        metadata["demonstrations"] = _demonstrations(samples, before)
        run = PolicyConfig.trained_on(C1, samples, seed=config.seed, backbone=made, bins=policy.bins)
        run.save(folder)
        save_tensors(folder / POLICY, dict(policy.state_dict()), steps=config.steps)
    save_tensors(folder / WEIGHTS, tensors, **metadata)


def _demonstrations(samples: Samples, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """See `StartWeights.demonstrations`; `before` is the value of the start weights."""
    shown, known = samples.demonstrations, before or {"tasks": (), "instructions": ()}
    tasks = {(e.suite, e.task) for e in shown.episodes if e.suite is not None and e.task is not None}
    return {
        "hash": shown.hash,
        "episodes": len(shown.episodes),
        "quality": shown.quality,
        "image_size": shown.image_size,
        "tasks": sorted(tasks | {(suite, task) for suite, task in known["tasks"]}),
        "instructions": sorted({e.instruction for e in shown.episodes} | set(known["instructions"])),
    }


def _halved(tensor: Tensor) -> Tensor:
    """In half precision, unless a value is too large for it, as those of patches that hardly vary may be."""
    return halved if bool((halved := tensor.half()).isfinite().all()) else tensor


def _save(path: Path, module: nn.Module, optimizer: Optimizers, step: int) -> None:
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    save_tensors(path, tensors | optimizer.tensors(), step=step)


def _resume(path: Path, module: nn.Module, optimizer: Optimizers) -> int:
    if not path.exists():
        return 0
    tensors, metadata = load_tensors(path)
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    optimizer.load(tensors)
    return int(metadata["step"])
