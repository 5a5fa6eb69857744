"""Actions as tokens, one after the other (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246): a chunk is a c words.

The bins are the last entries of the vocabulary, as in both papers; here they have a table of their own, which starts
from those rows, so that a frozen or quantised vocabulary needs no gradient. It is input embedding and output weight
alike, and decoding chooses among its entries only, greedily::

    [ prefix ] [ query ] [ a_1 ] [ a_2 ] ... [ a_ac-1 ]        training: all positions at once, the true tokens as input
                  |        |       |             |
                 a_1      a_2     a_3           a_ac           acting: each token is the input of the next position
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from la_reconvla.contracts import AttentionRows, Backbone, Batch, Features, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead, action_loss
from la_reconvla.method.variants.action_diffusion import DenoisingHead, DiffusionHead, FlowHead

OUTER = 0.01, 0.99  # quantiles of the actions, as OpenVLA's bins have them
Step = Callable[[Tensor], Tensor]
"""Puts one more token, an embedding [b d], behind a sequence and returns its final hidden state [b d]."""


@runtime_checkable
class SequentialBackbone(Protocol):
    """A `Backbone` that can also go on behind its queries, token by token."""

    def __call__(
        self,
        inputs: PolicyInput,
        *,
        attention: AttentionRows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        following: Float[Tensor, "b s d"] | None = None,
    ) -> Features:
        """As a backbone's; the embeddings `following` come behind the queries and see only what is before them.

        `Features.action_states` is then [b c+s d]: the states of the queries and of what follows.
        """
        ...

    def begin(self, inputs: PolicyInput) -> tuple[Features, Step]:
        """The features, and what takes the tokens that follow, one by one, without computing the rest again."""
        ...

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """Table of token embeddings, and the factor by which a row is multiplied when it enters the model.

        Raises:
            UserError: if this backbone is none after all.
        """
        ...


class TokenHead(nn.Module):
    """Hidden state at a position -> logits of the token that comes next.

    Like `ActionHead` it also reads the instruction's own final states, averaged, so that the text rows of the last
    layer get a gradient from the action loss.

    Args:
        backbone: whose vocabulary the table starts from.
        bins: how actions become tokens.
        chunk: actions in a chunk.

    Raises:
        UserError: if the backbone cannot decode token by token.
    """

    def __init__(self, backbone: Backbone, bins: ActionBins, chunk: int):
        super().__init__()
        self.count, self.shape, width = bins.count, (chunk, len(bins.space)), backbone.width
        self.from_instruction = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.table = nn.Parameter(torch.randn(self.count, width) / math.sqrt(width))
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

    def teacher_forcing(self, bins: ActionBins, actions: Float[Tensor, "b c a"]) -> Float[Tensor, "b s d"]:
        """The embeddings of all tokens of the true chunk but the last, s = a c - 1.

        Steps past the end of an episode are tokens too, those of their padding; the loss leaves them out.
        """
        return self.embed(bins.labels(actions).round().long().flatten(1)[:, :-1])

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... d"]:
        """The tokens as the language model takes them."""
        return self.table[tokens] * self.scale

    def forward(self, features: Features) -> Float[Tensor, "b c a v"]:
        """Logits in float32 of all tokens, from the states at the query and at every token but the last."""
        return self.next(features.action_states, features.instruction_state[:, None]).unflatten(1, self.shape)

    def loss(self, features: Features, bins: ActionBins, batch: Batch, noise: torch.Generator) -> Float[Tensor, ""]:
        """As that of `ActionHead`."""
        return action_loss(self(features), bins, batch.actions, batch.valid)

    def next(self, states: Float[Tensor, "... d"], instruction_state: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Logits in float32 of the token that follows each state."""
        return (self.norm(states + self.from_instruction(instruction_state)) @ self.table.T).float()

    def act(self, backbone: Any, bins: ActionBins, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """Greedy decoding. The prefix is computed once."""
        return bin_values(bins, self.decode(backbone, inputs))

    def decode(self, backbone: Any, inputs: PolicyInput) -> Int64[Tensor, "b c a"]:
        """The likeliest token at each position, given those before it."""
        features, step = backbone.begin(inputs)
        state, tokens = features.action_states[:, -1], []
        while True:
            tokens.append(self.next(state, features.instruction_state).argmax(-1))
            if len(tokens) == math.prod(self.shape):
                return torch.stack(tokens, dim=1).unflatten(1, self.shape)
            state = step(self.embed(tokens[-1]))


def bin_values(bins: ActionBins, tokens: Int64[Tensor, "... a"]) -> Float[Tensor, "... a"]:
    """Centre of each bin in the robot's units; binary dimensions are exactly -1 or 1."""
    dimensions = torch.arange(len(bins.space), device=tokens.device)
    return bins.either(bins.centers(tokens.device)[dimensions, tokens], tokens >= bins.count // 2)


class Decoding(Protocol):
    """How actions come out of a backbone: as a value.

    Attributes:
        reach: the two quantiles of the training actions that `ActionBins` lie between.
    """

    @property
    def reach(self) -> tuple[float, float]: ...

    def given(self, config: Any) -> Any:
        """What the backbone is built from: `config` with as many queries as are needed."""
        ...

    def action_head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> ActionHead | TokenHead | DenoisingHead:
        """The action head with fresh weights.

        Raises:
            UserError: if the backbone cannot decode in this way.
        """
        ...


@dataclass(frozen=True)
class Parallel:
    """One query for each step of the chunk, everything in one pass (OpenVLA-OFT, arXiv 2502.19645)."""

    reach = OUTER

    def given(self, config: Any) -> Any:
        """As it is."""
        return config

    def action_head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> ActionHead:
        """See `Decoding`."""
        return ActionHead(backbone.width, bins)


@dataclass(frozen=True)
class Autoregressive:
    """One query, behind which a c tokens follow, each given the ones before it."""

    reach = OUTER

    def given(self, config: Any) -> Any:
        """With one query."""
        return replace(config, chunk=1)

    def action_head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> TokenHead:
        """See `Decoding`."""
        return TokenHead(backbone, bins, chunk)


@dataclass(frozen=True)
class Denoised:
    """One query for each step of the chunk; given their states, the head turns noise into actions in `steps` steps."""

    kind: type[DenoisingHead]
    steps: int = 10
    reach = (0.0, 1.0)

    def given(self, config: Any) -> Any:
        """As it is."""
        return config

    def action_head(self, backbone: Backbone, bins: ActionBins, chunk: int) -> DenoisingHead:
        """See `Decoding`."""
        return self.kind(backbone.width, bins, chunk, self.steps)


DecodingName = Literal["parallel", "autoregressive", "diffusion", "flow"]
DECODINGS: dict[DecodingName, Decoding] = {
    "parallel": Parallel(),
    "autoregressive": Autoregressive(),
    "diffusion": Denoised(DiffusionHead),
    "flow": Denoised(FlowHead),
}
