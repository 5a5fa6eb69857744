"""Actions as tokens, one after the other (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246): a chunk is 7 c words.

The bins are the last entries of the vocabulary, as in both papers; here they have a table of their own, which starts
from those rows, so that a frozen or quantised vocabulary needs no gradient. It is input embedding and output weight
alike, and decoding chooses among its entries only, greedily::

    [ prefix ] [ query ] [ a_1 ] [ a_2 ] ... [ a_7c-1 ]        training: all positions at once, the true tokens as input
                  |        |       |             |
                 a_1      a_2     a_3           a_7c           acting: each token is the input of the next position
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from la_reconvla.contracts import ACTION_DIM, Backbone, BackboneConfig, SequentialBackbone
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead


class TokenHead(nn.Module):
    """Hidden state at a position -> logits of the token that comes next.

    Like `ActionHead` it also reads the instruction's own final states, averaged, so that the text rows of the last
    layer get a gradient from the action loss.

    Args:
        backbone: whose vocabulary the table starts from.
        count: bins.
        chunk: actions in a chunk.

    Raises:
        UserError: if the backbone cannot decode token by token.
    """

    def __init__(self, backbone: Backbone, count: int, chunk: int):
        super().__init__()
        self.count, self.chunk, width = count, chunk, backbone.width
        self.from_instruction = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.table = nn.Parameter(torch.randn(count, width) / math.sqrt(width))
        self.adopt(backbone)

    @torch.no_grad()
    def adopt(self, backbone: Backbone) -> None:
        """Start from the last rows of the backbone's vocabulary; a vocabulary with no rows to spare leaves them random.

        Raises:
            UserError: if the backbone cannot decode token by token.
        """
        if not isinstance(backbone, SequentialBackbone):
            raise UserError("this backbone cannot decode actions token by token: take --decoding parallel")
        rows, self.scale = backbone.vocabulary()
        if len(rows) > self.count:
            self.table.copy_(rows[-self.count :])

    def told(self, bins: ActionBins, actions: Float[Tensor, "b c 7"]) -> Float[Tensor, "b s d"]:
        """Teacher forcing: the embeddings of all tokens of the true chunk but the last, s = 7 c - 1.

        Steps past the end of an episode are tokens too, those of their padding; the loss leaves them out.
        """
        return self.embed(bins.labels(actions).round().long().flatten(1)[:, :-1])

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... d"]:
        """The tokens as the language model takes them."""
        return self.table[tokens] * self.scale

    def forward(self, states: Float[Tensor, "b s d"], instruction: Float[Tensor, "b d"]) -> Float[Tensor, "b c 7 v"]:
        """Logits in float32 of all tokens, from the states at the query and at every token but the last; s = 7 c."""
        return self.next(states, instruction[:, None]).unflatten(1, (self.chunk, ACTION_DIM))

    def next(self, states: Float[Tensor, "... d"], instruction: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Logits in float32 of the token that follows each state."""
        return (self.norm(states + self.from_instruction(instruction)) @ self.table.T).float()

    def act(self, backbone: Any, bins: ActionBins, *seen: Any, **more: Any) -> Float[Tensor, "b c 7"]:
        """Greedy decoding; arguments as of the backbone. The prefix is computed once."""
        return bins.values(self.decode(backbone, *seen, **more))

    def decode(self, backbone: Any, *seen: Any, **more: Any) -> Int64[Tensor, "b c 7"]:
        """The likeliest token at each position, given those before it."""
        features, step = backbone.begin(*seen, **more)
        state, tokens = features.actions[:, -1], []
        while True:
            tokens.append(self.next(state, features.instruction).argmax(-1))
            if len(tokens) == self.chunk * ACTION_DIM:
                return torch.stack(tokens, dim=1).unflatten(1, (self.chunk, ACTION_DIM))
            state = step(self.embed(tokens[-1]))


class Decoding(Protocol):
    """How actions come out of a backbone: as a value."""

    def given(self, config: Any) -> Any:
        """What the backbone is built from: `config` with as many queries as are needed."""
        ...

    def head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> ActionHead | TokenHead:
        """The action head with fresh weights.

        Raises:
            UserError: if the backbone cannot decode in this way.
        """
        ...


@dataclass(frozen=True)
class Parallel:
    """One query a step of the chunk, everything in one pass (OpenVLA-OFT, arXiv 2502.19645)."""

    def given(self, config: BackboneConfig) -> BackboneConfig:
        """As it is."""
        return config

    def head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> ActionHead:
        """See `Decoding`."""
        return ActionHead(backbone.width, bins.count)


@dataclass(frozen=True)
class Autoregressive:
    """One query, behind which 7 c tokens follow, each given the ones before it."""

    def given(self, config: Any) -> Any:
        """With one query."""
        return replace(config, chunk=1)

    def head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> TokenHead:
        """See `Decoding`."""
        return TokenHead(backbone, bins.count, chunk)


DecodingName = Literal["parallel", "autoregressive"]
DECODINGS: dict[DecodingName, Decoding] = {"parallel": Parallel(), "autoregressive": Autoregressive()}
