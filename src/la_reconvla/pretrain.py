"""Teach a small PaliGemma words from captions alone, so that its attention means something before it acts.

`Contrast` trains the very attention logits that the saliency is made of. FILIP (arXiv 2111.07783) scores a sentence
against a picture by the best patch of each word; here the score comes from the language model's own queries and keys::

    z[i, j] = max over patches p of  mean over words, heads and layers of  q_i . k_jp / sqrt(d)

and a binary cross-entropy asks whether sentence i is true of picture j, for all pairs of a batch. Sentences and
pictures pass through the model in random pairs: tokens have seen a picture, and patches a sentence, that say nothing
about which pairs are true, so that only what a patch shows can decide.
`Captioning` and `MaskedWords` are the usual objectives, for comparison; they train the attention indirectly.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.backbones.attention_probe import QueryProbe
from la_reconvla.backbones.paligemma import UNK, PaliGemmaBackbone, SmallPaliGemma, whiten_patches
from la_reconvla.checkpoint import load_tensors, save_tensors
from la_reconvla.data.captions import NAMES, TRUE, UNSURE, WORDINGS, Caption, Captioner
from la_reconvla.data.samples import spread_indices
from la_reconvla.data.scenes import Scenes
from la_reconvla.errors import UserError
from la_reconvla.randomness import derive, generator, seeded
from la_reconvla.storage import claim, locked
from la_reconvla.train import (
    STATE,
    JsonLines,
    Ticker,
    drop_state,
    load_optimizer,
    optimizer_for,
    optimizer_tensors,
    scheduled,
)

WEIGHTS, CONFIG = "backbone.safetensors", "pretrain.json"
OWN = 0.5  # share of captions that are drawn for their own picture; the others come from another of its arena
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
        truth = told.truth[order]
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
        warmup: steps of the warm-up.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        threads: CPU threads.
        damping: what attention adds to the states of both towers starts at this share of its usual size (as in ReZero,
            arXiv 2003.04887). With tokens that mix fully from the start, any patch can carry the answer, and the best
            one is on the background (docs/log.md).
        alone: share of the steps in which things are only named.
        curriculum: share of the steps after that over which relations and requests come in.
        seed: of weights, pictures and sentences.
        log_every: steps between lines of ``metrics.jsonl``.
        save_every: steps between saved states.
    """

    backbone: SmallPaliGemma = field(default_factory=lambda: SmallPaliGemma(mlp=2))
    objective: Contrast | Captioning | MaskedWords = field(default_factory=Contrast)
    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    damping: float = 0.1
    alone: float = 0.2
    curriculum: float = 0.2
    threads: int = 1
    seed: int = 0
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch_size", "threads", "log_every", "save_every"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1, not {value}")

    def identity(self, scenes: Scenes) -> dict[str, Any]:
        """What decides the weights that come out."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("threads", "log_every", "save_every")}
        return {**kept, "objective": repr(self.objective), "scenes": len(scenes), "scenes_hash": scenes.hash}

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
) -> Path:
    """Train, or go on where a killed run stopped. Returns the file of weights: `SmallPaliGemma.weights`.

    Args:
        scenes: the training split.
        config: what is trained and how.
        folder: where weights and curves go.
        ticker: told of every step.

    Raises:
        UserError: for scenes of another size, a folder of another configuration, or a loss that is not finite.
    """
    if scenes.images.shape[1] != config.backbone.image_size:
        raise UserError(
            f"the scenes are {scenes.images.shape[1]} pixels wide, the backbone takes {config.backbone.image_size}: "
            "render them at that --image-size"
        )
    torch.set_num_threads(config.threads)
    with locked(folder):
        claim(folder / CONFIG, config.identity(scenes))
        if (folder / WEIGHTS).exists():
            drop_state(folder)  # a kill may have come between the two
            return folder / WEIGHTS
        with seeded(config.seed, "weights"):
            backbone = config.backbone.build()
            head: Any = config.objective.head(backbone)
        whiten(backbone, scenes)
        both = nn.ModuleDict({"backbone": backbone, "head": head}).train()
        with torch.no_grad():
            for name, parameter in backbone.model.named_parameters():
                if MIXING.search(name):
                    parameter.mul_(config.damping)
        optimizer = optimizer_for(both, config.learning_rate, config.weight_decay)
        first = _resume(folder / STATE, both, optimizer)
        lines = JsonLines(folder, first)
        if ticker:
            ticker.advance(first)
        captioner, clock = Captioner(scenes), time.perf_counter()
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            told = tell(captioner, config, step)
            loss = config.objective.loss(backbone, head, told, generator(config.seed, "cover", step))
            if not math.isfinite(value := loss.item()):
                raise UserError(f"the loss is {value} at step {step}: lower the learning rate")
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(both.parameters(), config.clip))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % config.log_every == 0:
                rate = config.log_every * config.batch_size / (time.perf_counter() - clock)
                lines.log({"loss": value, "gradient_norm": norm, "samples_per_second": rate}, done)
                clock = time.perf_counter()
            if done % config.save_every == 0 and done < config.steps:
                _save(folder / STATE, both, optimizer, done)
            if ticker:
                ticker.advance(1, note=f"loss {value:.3f}")
        kept = {f"model.{name}": _halved(tensor) for name, tensor in backbone.model.state_dict().items()}
        save_tensors(folder / WEIGHTS, kept, backbone=asdict(config.backbone), steps=config.steps)
        drop_state(folder)
    return folder / WEIGHTS


def _halved(tensor: Tensor) -> Tensor:
    """In half precision, unless a value is too large for it, as those of patches that hardly vary may be."""
    return half if bool((half := tensor.half()).isfinite().all()) else tensor


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    save_tensors(path, tensors | optimizer_tensors(optimizer), step=step)


def _resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    tensors, metadata = load_tensors(path)
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    load_optimizer(optimizer, tensors)
    return int(metadata["step"])


OBJECTIVES = {objective.label: objective for objective in (Contrast(), Captioning(), MaskedWords())}
