"""Instructions -> tokens, with the place of each token in its instruction. All families share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from tokenizers import Tokenizer
from torch import Tensor

from la_reconvla.errors import UserError


@dataclass(frozen=True, eq=False)
class Tokens:
    """Instructions as a model takes them, padded on the right.

    Attributes:
        ids: int64 [b t]: what comes before, the instruction, what comes after, padding.
        rows: bool [b t], True for the instruction's own tokens.
        spans: int64 [b t 2], first and last-plus-one character of each token in its instruction; -1 where `rows` is
            False.
        present: bool [b t], False for padding.
    """

    ids: Int64[Tensor, "b t"]
    rows: Bool[Tensor, "b t"]
    spans: Int64[Tensor, "b t 2"]
    present: Bool[Tensor, "b t"]

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        return Tokens(*(getattr(self, name).to(device) for name in ("ids", "rows", "spans", "present")))


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
    encodings = tokenizer.encode_batch(list(instructions), add_special_tokens=False)
    for text, encoding in zip(instructions, encodings, strict=True):
        if not encoding.ids or not text.strip():
            raise UserError("an instruction is empty: say what the robot should do")
        if len(encoding.ids) > max_tokens:
            raise UserError(
                f"the instruction has {len(encoding.ids)} tokens, the context holds {max_tokens}: shorten it or "
                f"train with a larger max_tokens ('{text[:60]}...')"
            )
    shape = len(encodings), len(before) + max(len(encoding.ids) for encoding in encodings) + len(after)
    ids = torch.full(shape, pad, dtype=torch.long)
    rows, present = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    spans = torch.full((*shape, 2), -1, dtype=torch.long)
    for i, encoding in enumerate(encodings):
        sequence = [*before, *encoding.ids, *after]
        own = slice(len(before), len(before) + len(encoding.ids))
        ids[i, : len(sequence)] = torch.tensor(sequence)
        present[i, : len(sequence)] = True
        rows[i, own] = True
        spans[i, own] = torch.tensor(encoding.offsets)
    return Tokens(ids, rows, spans, present)
