"""Teach a small PaliGemma words from captions, and hands from demonstrations, before any study begins.

From captions alone its attention comes to mean something before it acts. With demonstrations too, of tasks that no
study tests, it is a base policy, what pretraining is to OpenVLA and ReconVLA: `L = L_action + w L_words`, without
reconstruction, so that it favours no arm.

`Contrast` trains the very attention logits that the saliency is made of. FILIP (arXiv 2111.07783) scores a sentence
against a picture by the best patch of each word; here the score comes from the language model's own queries and keys::

    z[i, j] = max over patches p of  mean over words, heads and layers of  q_i . k_jp / sqrt(d)

and a binary cross-entropy asks whether sentence i is true of picture j, for all pairs of a batch. Sentences and
pictures pass through the model in random pairs: tokens have seen a picture, and patches a sentence, that say nothing
about which pairs are true, so that only what a patch shows can decide.
`Captioning` and `MaskedWords` are the usual objectives, for comparison; they train the attention indirectly.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.backbones.attention_probe import QueryProbe
from la_reconvla.backbones.paligemma import UNK, PaliGemmaBackbone, SmallPaliGemma, whiten_patches
from la_reconvla.checkpoint import WEIGHTS as POLICY
from la_reconvla.checkpoint import (
    PolicyConfig,
    load_start,
    load_tensors,
    save_tensors,
    start_bins,
    start_demonstrations,
)
from la_reconvla.conditions import C1
from la_reconvla.data.captions import NAMES, TRUE, UNSURE, WORDINGS, Caption, Captioner
from la_reconvla.data.hdf5 import open_demonstrations, same_kind
from la_reconvla.data.relabel import Relabeller
from la_reconvla.data.samples import Samples, batch_indices, shifted, spread_indices
from la_reconvla.data.scenes import Scenes
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.optimizers import OptimizerName, Optimizers, optimizers_for
from la_reconvla.randomness import derive, generator, seeded
from la_reconvla.storage import claim, locked
from la_reconvla.train import (
    STATE,
    JsonLines,
    Ticker,
    drop_state,
    half,
    held_out_loss,
    pick_device,
    pick_precision,
    scheduled,
)

STUDIED = (  # tasks that studies test, so that nothing is to be learnt of them before
    *(f"libero_spatial/{task}" for task in (0, 1, 2)),
    *(f"libero_object/{task}" for task in (7, 8, 9)),
    *(f"libero_goal/{task}" for task in (6, 8)),
)
WEIGHTS, CONFIG = "backbone.safetensors", "pretrain.json"
OWN = 0.5  # share of captions that are drawn for their own picture; the others come from another of its arena
HELD_OUT = 0.04  # share of each task's scenes; the curve of the action loss needs few
WHITENED = 512  # scenes that the patch embedding starts from
MIXING = re.compile(r"\.(out_proj|o_proj)\.")  # what attention adds to the states of both towers


# ---------------------------------------------------------------- objectives


@dataclass(eq=False)
class Told:
    """One batch.

    Attributes:
        images: uint8 [b 3 H W].
        captions: b sentences; about half are drawn for the picture of their number, the others may be false of it.
        truth: float [b b], FALSE, UNSURE or TRUE: is caption i true of picture j?
    """

    images: UInt8[Tensor, "b 3 H W"]
    captions: list[Caption]
    truth: Float[Tensor, "b b"]

    @property
    def texts(self) -> list[str]:
        """The sentences."""
        return [caption.text for caption in self.captions]

    def to(self, device: torch.device | str) -> Told:
        """The same with its tensors on another device."""
        return Told(self.images.to(device), self.captions, self.truth.to(device))


class Objective(Protocol):
    """What pretraining minimises; a frozen dataclass, so that it is a value."""

    def head(self, backbone: PaliGemmaBackbone) -> nn.Module:
        """Parameters that only pretraining needs."""
        ...

    def loss(self, backbone: PaliGemmaBackbone, head: Any, told: Told, generator: torch.Generator) -> Tensor:
        """One number."""
        ...


class Biases(nn.Module):
    """A scale and a threshold for the scores of each layer and of all together; float [layers + 1].

    They start at 5 and -2. The scale decides how large the logits must grow, and so how sharp the attention becomes:
    with 20, words are told apart by differences that the softmax hardly shows.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((layers + 1,), 5.0))
        self.bias = nn.Parameter(torch.full((layers + 1,), -2.0))


@dataclass(frozen=True)
class Contrast:
    """See the module's equation.

    Attributes:
        each_layer: weight of the same loss taken on every layer alone, beside the one on their mean.
    """

    each_layer: float = 1.0
    label = "contrast"

    def head(self, backbone: PaliGemmaBackbone) -> Biases:
        """Scales and thresholds."""
        return Biases(len(backbone.saliency_layers))

    def loss(self, backbone: PaliGemmaBackbone, head: Biases, told: Told, generator: torch.Generator) -> Tensor:
        """Binary cross-entropy over pairs; true and false ones weigh the same, unsure ones nothing."""
        order = torch.randperm(len(told.captions), generator=generator)
        truth = told.truth[order.to(told.truth.device)]
        maps = pair_logits(backbone, told.images, [told.texts[i] for i in order])  # [l b b n]
        maps = torch.cat([maps.mean(0, keepdim=True), maps])
        scores = maps.amax(-1) * head.scale[:, None, None] + head.bias[:, None, None]
        true, false = truth == TRUE, truth < UNSURE
        weight = true / true.sum().clamp_min(1) + false / false.sum().clamp_min(1)
        losses = F.binary_cross_entropy_with_logits(scores, truth.expand_as(scores), reduction="none")
        per_layer = (losses * weight).sum((1, 2)) / 2
        return per_layer[0] + self.each_layer * per_layer[1:].mean()


@dataclass(frozen=True)
class Captioning:
    """Predict each word of a true caption from the picture and the words before it (as CapPa, arXiv 2306.07915)."""

    label = "captioning"

    def head(self, backbone: PaliGemmaBackbone) -> nn.Linear:
        """Words from states."""
        return nn.Linear(backbone.width, backbone.tokenizer.get_vocab_size())

    def loss(self, backbone: PaliGemmaBackbone, head: nn.Linear, told: Told, generator: torch.Generator) -> Tensor:
        """Cross-entropy over the words of captions that are true of their own picture; the text is causal."""
        tokens = backbone.encode(told.texts)
        states = _states(backbone, told.images, tokens.ids, tokens.present, causal=True)
        wanted = tokens.rows[:, 1:] & _own_truth(told)[:, None]
        logits = head(states[:, :-1])[wanted]
        return F.cross_entropy(logits, tokens.ids[:, 1:][wanted])


@dataclass(frozen=True)
class MaskedWords:
    """Predict covered words of a true caption from the picture and the other words (BERT, arXiv 1810.04805)."""

    share: float = 0.3
    label = "masked-words"

    def head(self, backbone: PaliGemmaBackbone) -> nn.Linear:
        """Words from states."""
        return nn.Linear(backbone.width, backbone.tokenizer.get_vocab_size())

    def loss(self, backbone: PaliGemmaBackbone, head: nn.Linear, told: Told, generator: torch.Generator) -> Tensor:
        """Cross-entropy over the covered words, at least one a batch."""
        tokens = backbone.encode(told.texts)
        drawn = torch.rand(tokens.ids.shape, generator=generator).to(tokens.ids.device)
        mine = tokens.rows & _own_truth(told)[:, None]
        covered = mine & ((drawn < self.share) | (drawn == drawn[mine].min()))
        ids = tokens.ids.masked_fill(covered, UNK)
        states = _states(backbone, told.images, ids, tokens.present, causal=False)
        return F.cross_entropy(head(states[covered]), tokens.ids[covered])


def _own_truth(told: Told) -> Bool[Tensor, " b"]:
    own = told.truth.diagonal() == TRUE
    return own if bool(own.any()) else torch.ones_like(own)


def _states(backbone: PaliGemmaBackbone, images, ids, present, *, causal: bool, **options) -> Float[Tensor, "b t d"]:
    """Final states at the text positions; the image is seen by all, the text by itself or causally."""
    patches = backbone.images(images, None)
    b, n = patches.shape[:2]
    attention = torch.cat([torch.ones(b, n, dtype=torch.long, device=ids.device), present.long()], 1)
    kinds = torch.zeros_like(attention)
    if causal:
        kinds[:, n:] = 1
    out = backbone.model(
        inputs_embeds=torch.cat([patches, backbone.model.get_input_embeddings()(ids)], 1),
        attention_mask=attention,
        position_ids=attention.cumsum(1),
        token_type_ids=kinds,
        use_cache=False,
        **options,
    )
    return out.last_hidden_state[:, n:]


def pair_logits(
    backbone: PaliGemmaBackbone, images: UInt8[Tensor, "b 3 H W"], texts: list[str]
) -> Float[Tensor, "l b b n"]:
    """Attention logits of sentence i over the patches of picture j, averaged over words and heads, with gradient.

    i = j are the logits that the model's own attention takes the softmax of, but for the average.
    """
    tokens, (rows, columns) = backbone.encode(texts), backbone.grid
    n = rows * columns
    probe = QueryProbe()
    _states(backbone, images, tokens.ids, tokens.present, causal=False, probe=probe)
    share = tokens.rows / tokens.rows.sum(1, keepdim=True)
    maps = []
    for layer in backbone.saliency_layers:
        query, key = probe.seen[layer]
        words = torch.einsum("bhte,bt->bhe", query[:, :, n:], share.to(query.dtype))
        words = words.unflatten(1, (key.shape[1], -1)).mean(2)  # heads of one group share their keys
        maps.append(torch.einsum("ige,jgpe->ijp", words, key[:, :, :n]) / key.shape[1] / math.sqrt(key.shape[-1]))
    return torch.stack(maps)


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class PretrainConfig:
    """How to pretrain.

    Attributes:
        backbone: size of the backbone.
        objective: what is minimised.
        steps: optimizer steps.
        batch_size: pictures a step.
        learning_rate: peak of the schedule (linear warm-up, then cosine to a hundredth).
        optimizer: ``adamw``, or ``muon`` for the backbone's matrices, see `la_reconvla.optimizers`.
        warmup: steps of the warm-up.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        threads: CPU threads.
        damping: what attention adds to the states of both towers starts at this share of its usual size (as in ReZero,
            arXiv 2003.04887). With tokens that mix fully from the start, any patch can carry the answer, and the best
            one is on the background (docs/log.md).
        alone: share of the steps in which things are only named.
        curriculum: share of the steps after that over which relations and requests come in.
        demonstration_batch: samples of demonstrations a step, where there are demonstrations.
        words_weight: weight of the objective beside the action loss, where there are demonstrations. At 1 its gradient,
            which is several times larger, decides where Muon goes, and the action loss hardly falls.
        shift: pictures of demonstrations are moved by up to so many pixels at random.
        relabel: share of the demonstrations' samples that are told another true sentence, see
            `la_reconvla.data.relabel`.
        device: ``auto``, ``cpu`` or ``cuda``; on a GPU all pictures of demonstrations are kept there.
        precision: of the forward pass; ``auto`` is bf16 on a GPU that has it and fp32 elsewhere.
        seed: of weights, pictures and sentences.
        log_every: steps between lines of ``metrics.jsonl``.
        check_every: steps between measurements of the held-out action loss.
        save_every: steps between saved states.
    """

    backbone: SmallPaliGemma = field(default_factory=lambda: SmallPaliGemma(mlp=2))
    objective: Contrast | Captioning | MaskedWords = field(default_factory=Contrast)
    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: OptimizerName = "adamw"
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    damping: float = 0.1
    alone: float = 0.2
    curriculum: float = 0.2
    demonstration_batch: int = 64
    words_weight: float = 0.1
    shift: int = 4
    relabel: float = 0.5
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 1
    seed: int = 0
    log_every: int = 50
    check_every: int = 500
    save_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch_size", "demonstration_batch", "threads", "log_every", "check_every", "save_every"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")

    def identity(self, scenes: Scenes, samples: Samples | None, dtype: torch.dtype) -> dict[str, Any]:
        """What decides the weights that come out; `dtype` is that of the forward pass."""
        free = ("threads", "device", "log_every", "check_every", "save_every")
        own = () if samples else ("demonstration_batch", "words_weight", "shift", "relabel")
        kept = {k: v for k, v in asdict(self).items() if k not in (*free, *own)}
        data = {} if samples is None else {"demonstrations": samples.demonstrations.hash}
        facts = {"scenes": len(scenes), "scenes_hash": scenes.hash, "precision": str(dtype), **data}
        return {**kept, "objective": repr(self.objective), **facts}

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        return scheduled(step, self.steps, self.warmup, self.learning_rate)


def pictures(images: UInt8[np.ndarray, "b H W 3"]) -> UInt8[Tensor, "b 3 H W"]:
    """Pictures of scenes as backbones take them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def whiten(backbone: PaliGemmaBackbone, scenes: Scenes) -> None:
    """Fit a random patch embedding to some of these scenes, see `whiten_patches`; other stems stay as they are."""
    if backbone.whitens:
        whiten_patches(backbone, pictures(scenes.images[spread_indices(len(scenes), WHITENED)]))


def tell(captioner: Captioner, config: PretrainConfig, step: int) -> Told:
    """The batch of one step; a function of the seed and the step."""
    rng = np.random.default_rng(derive(config.seed, "captions", step))
    scenes = captioner.scenes
    told = (step - config.alone * config.steps) / max(1, config.curriculum * config.steps)
    plain = rng.random(config.batch_size) >= told
    arena = captioner.arenas[rng.choice(len(captioner.arenas), p=captioner.shares)]
    chosen = rng.choice(arena, size=config.batch_size)
    captions = []
    for index, alone in zip(chosen, plain, strict=True):
        caption = None
        while caption is None:
            about = int(index if rng.random() < OWN else rng.choice(arena))
            wordings = NAMES if alone else WORDINGS
            caption = captioner.caption(rng, about, relations=not alone, wordings=wordings)
        captions.append(caption)
    truth = torch.from_numpy(np.stack([caption.truth(scenes, chosen) for caption in captions])).float()
    return Told(pictures(scenes.images[chosen]), captions, truth)


def pretrain(
    scenes: Scenes,
    config: PretrainConfig,
    folder: Path,
    ticker: Ticker | None = None,
    samples: Samples | None = None,
    held_out: Samples | None = None,
) -> Path:
    """Train, or go on where a killed run stopped. Returns the file of weights: `SmallPaliGemma.weights`.

    With demonstrations the file holds the action queries and the action head too, and `folder` is also a run: a policy
    that can be evaluated on tasks that it has not seen.

    Args:
        scenes: the training split.
        config: what is trained and how.
        folder: where weights and curves go.
        ticker: told of every step.
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
        claim(folder / CONFIG, config.identity(scenes, samples, dtype))
        if (folder / WEIGHTS).exists():
            drop_state(folder)  # a kill may have come between the two
            return folder / WEIGHTS
        with seeded(config.seed, "weights"):
            backbone = config.backbone.build()
            head: Any = config.objective.head(backbone)
            policy = None if samples is None else Policy(backbone, _bins(config, samples))
        if config.backbone.weights is None:
            whiten(backbone, scenes)
            _damp(backbone, config.damping)
        else:
            load_start(backbone, config.backbone, None if policy is None else policy.head)
        parts = {"backbone": backbone, "head": head} | ({} if policy is None else {"actions": policy.head})
        both = nn.ModuleDict(parts).to(device).train()
        optimizer = optimizers_for(both, config.learning_rate, config.weight_decay, config.optimizer)
        first = _resume(folder / STATE, both, optimizer)
        lines = JsonLines(folder, first)
        if ticker:
            ticker.advance(first)
        if samples is not None and device.type != "cpu":
            samples, held_out = samples.to(device), held_out and held_out.to(device)
        captioner, relabeller = Captioner(scenes), None if samples is None else relabeller_of(samples)
        clock, counted = time.perf_counter(), 0
        for step in range(first, config.steps):
            optimizer.schedule(functools.partial(scheduled, step, config.steps, config.warmup))
            with half(dtype, device.type):
                values = _values(config, captioner, backbone, head, policy, samples, relabeller, step)
            loss = values["loss"]
            done, counted = step + 1, counted + 1
            logged = done % config.log_every == 0 or done == config.steps
            saved = done % config.save_every == 0 and done < config.steps
            # A GPU is asked for a number only where one is kept: each question waits for all that it has to do.
            if (device.type == "cpu" or logged or saved) and not math.isfinite(loss.item()):
                raise UserError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            loss.backward()
            norm = nn.utils.clip_grad_norm_(both.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            if logged:
                seen = config.batch_size if samples is None else config.demonstration_batch
                line = {name: value.item() for name, value in values.items()}
                line |= {"gradient_norm": float(norm), "learning_rate": config.rate(step)}
                line["samples_per_second"] = counted * seen / (time.perf_counter() - clock)
                if policy is not None and held_out and (done % config.check_every == 0 or done == config.steps):
                    line["held_out_action_loss"] = held_out_loss(policy, held_out, device, False)
                lines.log(line, done)
                clock, counted = time.perf_counter(), 0
            if saved:
                _save(folder / STATE, both, optimizer, done)
            if ticker:
                ticker.advance(1, note=f"loss {loss.item():.3f}" if logged else None)
        _finish(folder, config, backbone, policy, samples)
        drop_state(folder)
    return folder / WEIGHTS


def base_samples(
    folders: Sequence[Path], backbone: SmallPaliGemma, without: Collection[str] = ()
) -> tuple[Samples, Samples]:
    """Training and held-out samples of the demonstrations in all `folders`.

    Args:
        folders: what the command collect wrote.
        backbone: what they are for.
        without: instructions whose episodes are left out. A wide scene is shown with two targets, and the second may be
            what a held-out task asks for.

    Raises:
        UserError: as `open_demonstrations`, if the folders differ in how their pictures were made, or nothing is left.
    """
    episodes = [episode for folder in folders for episode in open_demonstrations(folder).episodes]
    kept = [episode for episode in episodes if episode.instruction not in without]
    if not kept:
        raise UserError("all demonstrations are of held-out instructions: collect other tasks, or hold out less")
    training, held_out = same_kind(kept, "the demonstrations").divide(HELD_OUT)
    size, chunk = backbone.image_size, backbone.chunk
    return Samples(training, size, chunk), Samples(held_out, size, chunk)


def relabeller_of(samples: Samples) -> Relabeller:
    """Of the scenes that the demonstrations begin with; their numbers are those of the episodes."""
    from la_reconvla.sim.tasks import positions_in

    episodes = samples.demonstrations.episodes
    places = [positions_in(e.suite, e.task, e.states()[0]) if e.suite and e.task is not None else {} for e in episodes]
    instances = tuple(sorted({name for scene in places for name in scene}))
    nowhere = np.full(2, np.nan, np.float32)
    positions = np.array([[scene.get(name, nowhere) for name in instances] for scene in places], np.float32)
    positions = positions.reshape(len(episodes), len(instances), 2)
    return Relabeller(instances, positions, [e.target or "" for e in episodes], [e.destination or "" for e in episodes])


def instructions_of(tasks: Sequence[str]) -> frozenset[str]:
    """What LIBERO's own instruction of each task says; tasks are named ``suite/task``.

    Raises:
        UserError: for a name of another form, or an unknown suite or task.
    """
    from la_reconvla.sim.tasks import load_task

    result = set()
    for name in tasks:
        suite, _, task = name.partition("/")
        if not task.isdecimal():
            raise UserError(f"'{name}' names no task: write suite/task, for example {STUDIED[0]}")
        result.add(load_task(suite, int(task)).instruction)
    return frozenset(result)


def _bins(config: PretrainConfig, samples: Samples) -> ActionBins:
    known = start_bins(config.backbone, ActionBins.spread)
    return known or ActionBins.from_quantiles(*samples.quantiles())


@torch.no_grad()
def _damp(backbone: PaliGemmaBackbone, share: float) -> None:
    for name, parameter in backbone.model.named_parameters():
        if MIXING.search(name):
            parameter.mul_(share)


def _values(
    config: PretrainConfig,
    captioner: Captioner,
    backbone: PaliGemmaBackbone,
    head: Any,
    policy: Policy | None,
    samples: Samples | None,
    relabeller: Relabeller | None,
    step: int,
) -> dict[str, Tensor]:
    """All losses of one step; ``loss`` is what is minimised."""
    told = tell(captioner, config, step).to(backbone.queries.device)
    words = config.objective.loss(backbone, head, told, generator(config.seed, "cover", step))
    if policy is None or samples is None or relabeller is None:
        return {"loss": words}
    indices = batch_indices(derive(config.seed, "data"), step, config.demonstration_batch, len(samples))
    batch = shifted(samples.batch(indices), config.shift, generator(config.seed, "shift", step))
    rng = np.random.default_rng(derive(config.seed, "relabel", step))
    for row, number in enumerate(samples.episode_of(indices)):
        if rng.random() < config.relabel and (sentence := relabeller.sentence(rng, int(number))) is not None:
            batch.instructions[row] = sentence
    action = losses(policy, batch, None, generator(config.seed, "mask", step)).action
    return {"loss": action + config.words_weight * words, "action_loss": action, "words_loss": words}


def _finish(
    folder: Path, config: PretrainConfig, backbone: PaliGemmaBackbone, policy: Policy | None, samples: Samples | None
) -> None:
    """Write the weights that trainings start from and, with demonstrations, the run that acts."""
    kept = {f"model.{name}": _halved(tensor) for name, tensor in backbone.model.state_dict().items()}
    own = replace(config.backbone, weights=None, weights_hash=None)  # what it began with may be gone when it is read
    facts: dict[str, Any] = {"backbone": asdict(own), "steps": config.steps, "began_with": config.backbone.weights_hash}
    if (before := start_demonstrations(config.backbone)) is not None:
        facts["demonstrations"] = before
    if policy is not None and samples is not None:
        kept |= {"queries": backbone.queries.detach()}
        kept |= {f"head.{name}": _halved(tensor) for name, tensor in policy.head.state_dict().items()}
        shown = samples.demonstrations
        facts["bins"] = {"low": policy.bins.low, "high": policy.bins.high}
        known = before or {"tasks": (), "instructions": ()}
        tasks = {(e.suite, e.task) for e in shown.episodes if e.suite is not None and e.task is not None}
        facts["demonstrations"] = {
            "hash": shown.hash,
            "episodes": len(shown.episodes),
            "quality": shown.quality,
            "image_size": shown.image_size,
            "tasks": sorted(tasks | {(suite, task) for suite, task in known["tasks"]}),
            "instructions": sorted({e.instruction for e in shown.episodes} | set(known["instructions"])),
        }
        run = PolicyConfig.of(
            C1,
            seed=config.seed,
            backbone=own,
            bins=policy.bins,
            quality=shown.quality,
            image_size=shown.image_size,
            data_hash=shown.hash,
            train_starts=shown.starts,
        )
        run.save(folder)
        save_tensors(folder / POLICY, dict(policy.state_dict()), steps=config.steps)
    save_tensors(folder / WEIGHTS, kept, **facts)


def _halved(tensor: Tensor) -> Tensor:
    """In half precision, unless a value is too large for it, as those of patches that hardly vary may be."""
    return half if bool((half := tensor.half()).isfinite().all()) else tensor


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


OBJECTIVES = {objective.label: objective for objective in (Contrast(), Captioning(), MaskedWords())}
