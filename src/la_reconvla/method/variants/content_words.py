"""Saliency of some of the instruction's words: those that name things, the target, the destination."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from la_reconvla.contracts import Features
from la_reconvla.errors import UserError
from la_reconvla.method.saliency import SaliencySource, saliency

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


def content_words(text: str) -> list[tuple[int, int]]:
    """First and last-plus-one character of each word that is not one of `STOP_WORDS`."""
    words = re.finditer(r"[^\W_]+(?:['-][^\W_]+)*", text)
    return [word.span() for word in words if word.group().lower() not in STOP_WORDS]


def destination_at(text: str) -> int:
    """First character after the words that lead to the destination; the length of the text where there is none.

    The last verb of placing, then the first preposition of direction after it: in "pick up the bowl on the stove and
    place it on the plate" what follows "place it on". "next to" and "close to" tell where something is, not where it
    goes. A rule for LIBERO's sentences, not a parser: words after the destination count as destination.
    """
    verbs = list(PLACING.finditer(text))
    found = TOWARDS.search(text, verbs[-1].end()) if verbs else None
    return found.end() if found else len(text)


@dataclass(frozen=True)
class ContentWords(SaliencySource):
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
        """Tokens that share a character with a word that counts.

        Raises:
            ValueError: if the features lack the positions of their tokens in the texts.
        """
        if features.spans is None or features.texts is None or features.token_mask is None:
            raise ValueError("words need the tokens of an instruction: features with spans and texts (Policy.features)")
        chosen = torch.zeros_like(features.token_mask)
        first, end = features.spans.unbind(-1)
        for i, text in enumerate(features.texts):
            for start, stop in self.words(text):
                chosen[i] |= (first[i] < stop) & (end[i] > start)
        return chosen & features.token_mask

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """The scores.

        Raises:
            ValueError: as `saliency`; an instruction without a word that counts never falls back to all of them.
        """
        return saliency(features.attention, self.chosen(features))


@dataclass(frozen=True)
class TargetWords(ContentWords):
    """Content words before the destination (`destination_at`): the object to move, and its place."""

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

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """The scores, or NaN."""
        chosen = self.chosen(features)
        named = chosen.any(dim=1, keepdim=True)
        token_mask = torch.where(named, chosen, features.token_mask) if features.token_mask is not None else chosen
        return saliency(features.attention, token_mask).masked_fill(~named, torch.nan)
