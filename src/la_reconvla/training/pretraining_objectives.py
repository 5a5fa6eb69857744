"""What pretraining minimises over pictures and sentences: how words come to point before the policy acts.

`Contrast` trains the very attention logits that the saliency is made of. FILIP (arXiv 2111.07783) scores a sentence
against a picture by the best patch of each word; here the score comes from the language model's queries and keys::

    z[i, j] = max over patches p of  mean over words, heads and layers of  q_i . k_jp / sqrt(d)

and a binary cross-entropy asks whether sentence i is true of picture j, for all pairs of a batch. Sentences and
pictures pass through the model in random pairs: tokens have read a picture, and patches a sentence, that say nothing
about which pairs are true, so that only what a patch shows can decide.
`Captioning` and `MaskedWords` are the usual objectives, for comparison; they train the attention indirectly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.backbones.attention_probe import QueryProbe
from la_reconvla.backbones.paligemma import UNK, PaliGemmaBackbone
from la_reconvla.data.captions import TRUE, UNSURE, Caption


@dataclass(eq=False)
class CaptionBatch:
    """Pictures, sentences, and which sentence is true of which picture.

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

    def to(self, device: torch.device | str) -> CaptionBatch:
        """The same with its tensors on another device."""
        return CaptionBatch(self.images.to(device), self.captions, self.truth.to(device))


class Biases(nn.Module):
    """A scale and a threshold for the scores of each layer and of all together; float [layers + 1].

    They start at 5 and -2. The scale decides how large the logits must grow, and so how sharp the attention becomes:
    with 20, words differ by amounts that the softmax hardly shows.
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

    def word_head(self, backbone: PaliGemmaBackbone) -> Biases:
        """Scales and thresholds."""
        return Biases(len(backbone.saliency_layers))

    def loss(
        self, backbone: PaliGemmaBackbone, word_head: Biases, batch: CaptionBatch, generator: torch.Generator
    ) -> Tensor:
        """Binary cross-entropy over pairs; true and false ones weigh the same, unsure ones nothing."""
        order = torch.randperm(len(batch.captions), generator=generator)
        truth = batch.truth[order.to(batch.truth.device)]
        maps = pair_logits(backbone, batch.images, [batch.texts[i] for i in order])  # [l b b n]
        maps = torch.cat([maps.mean(0, keepdim=True), maps])
        scores = maps.amax(-1) * word_head.scale[:, None, None] + word_head.bias[:, None, None]
        true, false = truth == TRUE, truth < UNSURE
        weight = true / true.sum().clamp_min(1) + false / false.sum().clamp_min(1)
        losses = F.binary_cross_entropy_with_logits(scores, truth.expand_as(scores), reduction="none")
        per_layer = (losses * weight).sum((1, 2)) / 2
        return per_layer[0] + self.each_layer * per_layer[1:].mean()


class _Words:
    """Objectives that predict words."""

    def word_head(self, backbone: PaliGemmaBackbone) -> nn.Linear:
        """Words from states."""
        return nn.Linear(backbone.width, backbone.tokenizer.get_vocab_size())


@dataclass(frozen=True)
class Captioning(_Words):
    """Predict each word of a true caption from the picture and the words before it (as CapPa, arXiv 2306.07915)."""

    label = "captioning"

    def loss(
        self, backbone: PaliGemmaBackbone, word_head: nn.Linear, batch: CaptionBatch, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy over the words of captions that are true of the picture of their number; the text is causal."""
        tokens = backbone.encode(batch.texts)
        states = text_states(backbone, batch.images, tokens.ids, tokens.present, causal=True)
        wanted = tokens.token_mask[:, 1:] & _describing(batch)[:, None]
        logits = word_head(states[:, :-1])[wanted]
        return F.cross_entropy(logits, tokens.ids[:, 1:][wanted])


@dataclass(frozen=True)
class MaskedWords(_Words):
    """Predict masked words of a true caption from the picture and the other words (BERT, arXiv 1810.04805)."""

    share: float = 0.3
    label = "masked-words"

    def loss(
        self, backbone: PaliGemmaBackbone, word_head: nn.Linear, batch: CaptionBatch, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy over the masked words, at least one per batch."""
        tokens = backbone.encode(batch.texts)
        drawn = torch.rand(tokens.ids.shape, generator=generator).to(tokens.ids.device)
        candidates = tokens.token_mask & _describing(batch)[:, None]
        masked = candidates & ((drawn < self.share) | (drawn == drawn[candidates].min()))
        ids = tokens.ids.masked_fill(masked, UNK)
        states = text_states(backbone, batch.images, ids, tokens.present, causal=False)
        return F.cross_entropy(word_head(states[masked]), tokens.ids[masked])


def _describing(batch: CaptionBatch) -> Bool[Tensor, " b"]:
    """Which sentences are true of the picture of their number; all, if none is."""
    true = batch.truth.diagonal() == TRUE
    return true if bool(true.any()) else torch.ones_like(true)


def text_states(
    backbone: PaliGemmaBackbone, images, ids, present, *, causal: bool, **options
) -> Float[Tensor, "b t d"]:
    """Final states at the text positions; all positions read the image, and text reads text fully or causally."""
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

    i = j are the logits that the model's attention takes the softmax of, but for the average.
    """
    tokens, (rows, columns) = backbone.encode(texts), backbone.grid
    n = rows * columns
    probe = QueryProbe()
    text_states(backbone, images, tokens.ids, tokens.present, causal=False, probe=probe)
    share = tokens.token_mask / tokens.token_mask.sum(1, keepdim=True)
    maps = []
    for layer in backbone.saliency_layers:
        query, key = probe.projections[layer]
        words = torch.einsum("bhte,bt->bhe", query[:, :, n:], share.to(query.dtype))
        words = words.unflatten(1, (key.shape[1], -1)).mean(2)  # heads of one group share their keys
        maps.append(torch.einsum("ige,jgpe->ijp", words, key[:, :, :n]) / key.shape[1] / math.sqrt(key.shape[-1]))
    return torch.stack(maps)


OBJECTIVES = {objective.label: objective for objective in (Contrast(), Captioning(), MaskedWords())}
