"""Step 1: attention -> one score per patch. Where to look is a value: a saliency source, a frozen dataclass.

===================== ==================================================== ===================================
source                which part of the attention                          from
===================== ==================================================== ===================================
`Mean` (default)      all layers, heads and words of the instruction       the published method
`ContentWords`        the words that name things                           ours
`LocalisationHeads`   a few heads, chosen on training frames, no labels    arXiv 2503.06287
`SinkRemoved`         what not every word looks at                         arXiv 2503.03321
`ActionRows`          the action tokens instead of the words               ours (the other live rows)
`EMATeacher`          of a moving average of the weights                   arXiv 1703.01780, 2203.12719
===================== ==================================================== ===================================

All are detached: the mask follows the attention, no gradient flows through the choice. A source never sees a mask, a
box or a name of what it should find. What it has learned from frames (`fit`) is an explicit argument, `state`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.ndimage import label as connected
from torch import Tensor

from la_reconvla.contracts import Features, Rows, SaliencySource
from la_reconvla.errors import UserError

ABOVE = 2.0  # a patch belongs to a blob of a head's map from so many times the map's mean
NOT_CHOSEN = -1
DETERMINERS = {"a", "an", "the", "this", "that", "both", "all", "it", "its", "them", "they", "which", "is", "are"}
PREPOSITIONS = {
    *("and", "of", "on", "onto", "in", "into", "inside", "to", "at", "from", "by", "with", "for", "up", "down"),
    *("next", "near", "beside", "between", "under", "below", "above", "over", "behind", "off", "out"),
}
VERBS = {"pick", "place", "put", "take", "grab", "grasp", "lift", "move", "push", "pull", "set", "bring", "stack"}
VERBS |= {"open", "close", "turn", "drop", "lay", "leave", "then"}
STOP_WORDS = frozenset(DETERMINERS | PREPOSITIONS | VERBS)
"""Words that name no thing and no property of one: articles, pronouns, prepositions, verbs of handling."""
PLACING = re.compile(r"\b(place|put|set|move|push|stack|bring|drop|lay|leave)\b", re.IGNORECASE)
TOWARDS = re.compile(r"(?<!next )(?<!close )\b(onto|on|into|inside|in|to|under|at)\b", re.IGNORECASE)


def saliency(attention: Float[Tensor, "b l h t n"] | None, rows: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b n"]:
    """Average the attention that the instruction pays to each image patch.

    Args:
        attention: attention weights of t text rows over n image patches, for l layers and h heads.
        rows: True for the instruction's own tokens. Padding, the begin-of-sequence token and the closing newline are
            False: the latter two are attention sinks that look alike under every instruction.

    Returns:
        float32 [b n], detached. It sums to the share of its attention that the instruction spends on the image,
        at most 1.

    Raises:
        ValueError: if there is no attention, or a sample has no counted row; a mask made of nothing must never pass
            silently.
    """
    attention, rows = _present(attention, rows)
    per_row = attention.mean(dim=(1, 2))  # [b t n]
    counted = per_row.masked_fill(~rows[..., None], 0.0)  # not a product: a padding row may be NaN
    return counted.sum(1) / rows.sum(1, keepdim=True)


def per_head(features: Features) -> Float[Tensor, "b l h n"]:
    """Attention of each head, averaged over the rows that count; float32, detached.

    Raises:
        ValueError: as `saliency`.
    """
    attention, rows = _present(features.attention, features.rows)
    counted = attention.masked_fill(~rows[:, None, None, :, None], 0.0)
    return counted.sum(3) / rows.sum(1)[:, None, None, None]


def _present(attention: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    if attention is None or rows is None:
        raise ValueError("the backbone returned no attention: ask it for the probe's rows")
    if not bool(rows.any(dim=1).all()):
        raise ValueError("an instruction has no token that counts: saliency would be made of nothing")
    return attention.detach().float(), rows


class Source:
    """What most sources share: they read the instruction's rows, learn nothing and take any instruction."""

    rows: Rows = "instruction"
    decay: float | None = None
    refresh: int | None = None
    frames: int = 0
    state_shape: tuple[int, ...] = ()

    def require(self, instructions: Iterable[str]) -> None:
        """Nothing is required."""

    def fit(self, seen: Iterable[Features]) -> Tensor | None:
        """Nothing is learned."""
        return None


@dataclass(frozen=True)
class Mean(Source):
    """The published map: the mean over tokens, heads and layers; see `saliency`."""

    label = "mean"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored."""
        return saliency(features.attention, features.rows)


MEAN = Mean()


@dataclass(frozen=True)
class ActionRows(Source):
    """The mean map of the action tokens' rows: where the policy looks when it acts.

    They are live in every layer, since the action head reads them (`docs/method.md`), but they see the robot state and
    the words only through the prefix. Not in the published method.
    """

    label = "actions"

    @property
    def rows(self) -> Rows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The action tokens'."""
        return "actions"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored. `features` must hold the rows that `rows` names."""
        return saliency(features.attention, features.rows)


# ---------------------------------------------------------------- words


def content_words(text: str) -> list[tuple[int, int]]:
    """First and last-plus-one character of each word that is not one of `STOP_WORDS`."""
    words = re.finditer(r"[^\W_]+(?:['-][^\W_]+)*", text)
    return [word.span() for word in words if word.group().lower() not in STOP_WORDS]


def destination_at(text: str) -> int:
    """First character after the words that lead to the destination; the length of the text where there is none.

    The last verb of placing, then the first preposition of direction after it: in "pick up the bowl on the stove and
    place it on the plate" what follows "place it on". "next to" and "close to" tell where something is, not where it
    goes. A rule for LIBERO's sentences, not a parser: what stands after the destination counts as destination.
    """
    verbs = list(PLACING.finditer(text))
    found = TOWARDS.search(text, verbs[-1].end()) if verbs else None
    return found.end() if found else len(text)


@dataclass(frozen=True)
class ContentWords(Source):
    """The mean map of the words that name things, their colours and places; `STOP_WORDS` do not count.

    The published mean counts "the" as much as "bowl". Verbs of handling are left out because they name nothing that
    could be found in the picture. Relations ("next to") go with the prepositions; the things that they relate stay.
    """

    label = "words"

    def words(self, text: str) -> list[tuple[int, int]]:
        """Spans of the words that count in this instruction."""
        return content_words(text)

    def require(self, instructions: Iterable[str]) -> None:
        """Every instruction must name something.

        Raises:
            UserError: for one that does not.
        """
        for text in instructions:
            if not self.words(text):
                raise UserError(f"the instruction '{text}' has no word for the map '{self.label}': reword it")

    def chosen(self, features: Features) -> Bool[Tensor, "b t"]:
        """Rows whose token shares a character with a word that counts.

        Raises:
            ValueError: if the features do not say where their tokens stand, or in what text.
        """
        if features.spans is None or features.texts is None or features.rows is None:
            raise ValueError("words need the rows of an instruction: features with spans and texts (Policy.features)")
        chosen = torch.zeros_like(features.rows)
        first, end = features.spans.unbind(-1)
        for i, text in enumerate(features.texts):
            for start, stop in self.words(text):
                chosen[i] |= (first[i] < stop) & (end[i] > start)
        return chosen & features.rows

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored.

        Raises:
            ValueError: as `saliency`; an instruction without a word that counts never falls back to all of them.
        """
        return saliency(features.attention, self.chosen(features))


@dataclass(frozen=True)
class TargetWords(ContentWords):
    """Content words before the destination (`destination_at`): the thing to move, and where it stands."""

    label = "target"

    def words(self, text: str) -> list[tuple[int, int]]:
        """Spans of the words that count in this instruction."""
        return [span for span in content_words(text) if span[0] < destination_at(text)]


@dataclass(frozen=True)
class DestinationWords(ContentWords):
    """Content words after `destination_at`. NaN in samples without any, so that nobody takes them for a map."""

    label = "destination"

    def words(self, text: str) -> list[tuple[int, int]]:
        """Spans of the words that count in this instruction."""
        return [span for span in content_words(text) if span[0] >= destination_at(text)]

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored."""
        chosen = self.chosen(features)
        named = chosen.any(dim=1, keepdim=True)
        rows = torch.where(named, chosen, features.rows) if features.rows is not None else chosen
        return saliency(features.attention, rows).masked_fill(~named, torch.nan)


# ---------------------------------------------------------------- sinks


@dataclass(frozen=True)
class SinkRemoved(Source):
    """What a patch gets beyond the least that any word gives it, head by head::

        A[n] = mean over l, h of ( mean over t of a[l, h, t -> n]  -  min over t of a[l, h, t -> n] )

    A visual attention sink is a patch that every text token looks at, whatever it says (Kang et al., "See What You Are
    Told", arXiv 2503.03321; high-norm registers in vision towers, Darcet et al., arXiv 2309.16588). They find sinks by
    massive activations in fixed hidden dimensions of one pretrained model; here the very symptom is removed, from
    attention alone: the part that all words have in common. It also removes what all words rightly look at.

    A one-token instruction has nothing but its common part, which is an error.
    """

    label = "sinks"

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`state` is ignored.

        Raises:
            ValueError: as `saliency`, or with fewer than two tokens that count.
        """
        attention, rows = _present(features.attention, features.rows)
        if bool((rows.sum(1) < 2).any()):
            raise ValueError("an instruction of one token has no part of its own: sinks cannot be told from it")
        least = attention.masked_fill(~rows[:, None, None, :, None], torch.inf).amin(3)
        return (per_head(features) - least).clamp_min(0).mean(dim=(1, 2))  # rounding may leave less than nothing


# ---------------------------------------------------------------- localisation heads


def elbow(values: Float[np.ndarray, "m"]) -> float:
    """The value at the elbow of the sorted curve: the point farthest from the line between its ends."""
    curve = np.sort(values)
    return float(curve[np.abs(curve - np.linspace(curve[0], curve[-1], len(curve))).argmax()])


def spatial_entropy(maps: Float[np.ndarray, "*m r c"]) -> Float[np.ndarray, "*m"]:
    """Entropy (nats) of how a map's mass is shared among its blobs; 0 for a single one, infinite for none.

    A blob is a set of 8-connected patches above `ABOVE` times the map's mean; its share is its excess over that.
    """
    found = np.full(maps.shape[:-2], np.inf)
    for at in np.ndindex(*found.shape):
        excess = np.maximum(maps[at] - ABOVE * maps[at].mean(), 0.0)
        labelled: Any = connected(excess > 0, structure=np.ones((3, 3)))
        blobs, count = labelled
        if count:
            share = np.bincount(blobs.ravel(), excess.ravel())[1:] / excess.sum()
            found[at] = -(share * np.log(share)).sum()
    return found


@dataclass(frozen=True)
class LocalisationHeads(Source):
    """The mean map of a few heads that look at the image, and at one place of it (Kang et al., arXiv 2503.06287).

    `fit` chooses them on training frames without labels:

    1. Heads whose attention to the image, summed over patches and averaged over frames, reaches the elbow of the sorted
       curve over all heads (at least `count` heads stay).
    2. In each frame the `count` of these with the lowest spatial entropy get a vote.
    3. The `count` heads with most votes; of equal ones, that with the lower mean rank of entropy, then the first.

    Departures: the rows are the instruction's, averaged, not the last token's; the pool is the layers that the probe
    reads; maps are not smoothed (a grid here may be 4 x 4); and since weights train, the choice is made anew every
    `refresh` steps. It is kept with the policy, as pairs (layer among those read, head).

    Attributes:
        count: heads chosen; the paper finds that 3 suffice.
        frames: training frames that they are chosen on.
        refresh: steps between choices.
    """

    count: int = 3
    frames: int = 64  # pyright: ignore[reportIncompatibleVariableOverride]
    refresh: int = 100  # pyright: ignore[reportIncompatibleVariableOverride]
    label = "heads"

    def __post_init__(self):
        if min(self.count, self.frames, self.refresh) < 1:
            raise ValueError("count, frames and refresh must be at least 1")

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A pair for each head."""
        return (self.count, 2)

    def fit(self, seen: Iterable[Features]) -> Int64[Tensor, "m 2"]:
        """Pairs (index among the layers read, head), the most voted first.

        Raises:
            UserError: if there are fewer heads than are to be chosen.
        """
        parts: list[np.ndarray] = []
        for features in seen:
            parts.append(per_head(features).reshape(-1, *_lh(features), *features.grid).cpu().numpy())
        maps = np.concatenate(parts)  # [b l h r c]
        b, layers, heads = maps.shape[:3]
        maps = maps.reshape(b, layers * heads, *maps.shape[3:])
        if self.count > layers * heads:
            raise UserError(f"{self.count} heads cannot be chosen of {layers * heads}: ask for fewer")
        total = maps.sum(axis=(2, 3)).mean(0)
        pool = np.flatnonzero(total >= min(elbow(total), np.sort(total)[-self.count]))
        rank = spatial_entropy(maps[:, pool]).argsort(axis=1, kind="stable").argsort(axis=1)
        votes = (rank < self.count).sum(0)
        best = pool[np.lexsort((pool, rank.mean(0), -votes))[: self.count]]
        return torch.from_numpy(np.stack(np.divmod(best, heads), axis=1)).long()

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """Mean of the heads in `state`.

        Raises:
            ValueError: as `saliency`, or before heads were chosen: never the mean of all in their place.
        """
        if state is None or bool((state == NOT_CHOSEN).any()):
            raise ValueError("no heads were chosen: fit this source on training frames first")
        layer, head = state.to(device="cpu").unbind(-1)
        return per_head(features)[:, layer, head].mean(1)


def _lh(features: Features) -> tuple[int, int]:
    attention, _ = _present(features.attention, features.rows)
    return attention.shape[1], attention.shape[2]


# ---------------------------------------------------------------- a teacher's attention


@dataclass(frozen=True)
class EMATeacher(Source):
    """`source` read from a moving average of the backbone's weights instead of the weights that train.

    ``teacher = decay * teacher + (1 - decay) * backbone`` after each step (mean teacher, Tarvainen and Valpola, arXiv
    1703.01780), as masks follow a teacher's attention in AttMask (Kakogeorgiou et al., arXiv 2203.12719). The mask
    then does not chase its own last step. The teacher exists in training alone; a trained policy's map of this source
    is `source` on its own weights, and that is what is measured.

    Attributes:
        decay: 0.99 averages over the last hundred steps; the papers' 0.996 and more suit longer trainings than ours.
        source: what is read from the teacher.
    """

    decay: float = 0.99  # pyright: ignore[reportIncompatibleVariableOverride]
    source: SaliencySource = MEAN
    label = "teacher"

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")
        if self.source.decay is not None:
            raise ValueError("a teacher has no teacher of its own")

    @property
    def rows(self) -> Rows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return self.source.rows

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return self.source.state_shape

    @property
    def refresh(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return self.source.refresh

    @property
    def frames(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return self.source.frames

    def require(self, instructions: Iterable[str]) -> None:
        """As `source`."""
        self.source.require(instructions)

    def fit(self, seen: Iterable[Features]) -> Tensor | None:
        """As `source`."""
        return self.source.fit(seen)

    def __call__(self, features: Features, state: Tensor | None = None) -> Float[Tensor, "b n"]:
        """`source` of `features`, which the caller has from the teacher."""
        return self.source(features, state)


def teacher_of(backbone: torch.nn.Module) -> torch.nn.Module:
    """A copy that no gradient reaches. What does not train in the backbone is shared, not copied: it never differs."""
    shared = {id(p): p for p in backbone.parameters() if not p.requires_grad}
    return copy.deepcopy(backbone, shared).requires_grad_(False).eval()


def averaged(teacher: torch.nn.Module, backbone: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters of which the teacher has its own: its own and the backbone's."""
    theirs = dict(backbone.named_parameters())
    return {name: (mine, theirs[name]) for name, mine in teacher.named_parameters() if mine is not theirs[name]}


def follow(teacher: torch.nn.Module, backbone: torch.nn.Module, decay: float) -> None:
    """One step of the moving average, in place."""
    with torch.no_grad():
        for mine, theirs in averaged(teacher, backbone).values():
            mine.lerp_(theirs, 1.0 - decay)
