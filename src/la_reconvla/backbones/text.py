"""Instructions -> tokens, with the place of each token in its instruction. All families share it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from la_reconvla.errors import UserError


@dataclass(frozen=True, eq=False)
class Tokens:
    """Instructions as a model takes them, padded on the right.

    Attributes:
        ids: int64 [b t]: what comes before, the instruction, what comes after, padding.
        token_mask: bool [b t], True for the instruction's own tokens.
        spans: int64 [b t 2], first and last-plus-one character of each token in its instruction; -1 where `token_mask`
            is False.
        present: bool [b t], False for padding.
    """

    ids: Int64[Tensor, "b t"]
    token_mask: Bool[Tensor, "b t"]
    spans: Int64[Tensor, "b t 2"]
    present: Bool[Tensor, "b t"]

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        return Tokens(*(getattr(self, name).to(device) for name in ("ids", "token_mask", "spans", "present")))


def encode(
    tokenizer: Tokenizer,
    instructions: Sequence[str],
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    pad: int = 0,
    max_tokens: int,
) -> Tokens:
    """Encode each instruction between the tokens `before` and `after`.

    Raises:
        UserError: if an instruction is empty or longer than `max_tokens`.
    """
    texts = list(dict.fromkeys(instructions))  # a batch has few different instructions
    encodings = [_encoding(tokenizer, text) for text in texts]
    for text, encoding in zip(texts, encodings, strict=True):
        if not encoding.ids or not text.strip():
            raise UserError("an instruction is empty: say what the robot should do")
        if len(encoding.ids) > max_tokens:
            raise UserError(
                f"the instruction has {len(encoding.ids)} tokens, the context holds {max_tokens}: shorten it or "
                f"train with a larger max_tokens ('{text[:60]}...')"
            )
    longest = max(len(encoding.ids) for encoding in encodings)
    first, last = len(before), len(after)
    lines = []
    for encoding in encodings:
        own, rest = len(encoding.ids), longest - len(encoding.ids)
        lines.append(
            (
                [*before, *encoding.ids, *after, *[pad] * rest],
                [*[False] * first, *[True] * own, *[False] * (last + rest)],
                [*[(-1, -1)] * first, *encoding.offsets, *[(-1, -1)] * (last + rest)],
                [*[True] * (first + own + last), *[False] * rest],
            )
        )
    which = torch.tensor([texts.index(text) for text in instructions])
    return Tokens(*(torch.tensor(column)[which] for column in zip(*lines, strict=True)))


@functools.lru_cache(maxsize=4096)
def _encoding(tokenizer: Tokenizer, text: str) -> Encoding:
    """A training uses the same few instructions in every step: each is encoded once."""
    return tokenizer.encode(text, add_special_tokens=False)
