"""Actions as a x 256 bins, decoded in parallel (RT-2's bins, OpenVLA's quantile edges, OpenVLA-OFT's parallel chunks).

Continuous dimensions: 256 uniform bins between the 1st and 99th percentile of the demonstrations. Binary ones, as a
gripper: the label is the first or the last bin, and the decision is which half of the bins holds more mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from la_reconvla.contracts import Backbone, Batch, Features, PolicyInput
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace

REACH = 6  # standard deviations; beyond are 2e-9 of the labels


@dataclass(frozen=True)
class ActionBins:
    """Edges of the bins and how labels and decisions are made; saved with the policy.

    Attributes:
        low: 1st percentile of each dimension of the training actions (a numbers; -1 and 1 where binary), or another.
        high: 99th percentile of each dimension, or another: which, the decoding says.
        count: bins per dimension.
        spread: standard deviation, in bins, of the soft labels; 0 gives the published one-hot labels.
        decision: ``expectation`` over the bins (the default, smoother in closed loop) or ``argmax`` (published).
        space: what the dimensions are, and so how many.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    count: int = 256
    spread: float = 4.0
    decision: Literal["expectation", "argmax"] = "expectation"
    space: ActionSpace = LIBERO_ACTIONS

    def __post_init__(self):
        if not len(self.low) == len(self.high) == len(self.space):
            raise ValueError(f"action bins need {len(self.space)} lower and upper edges")
        if any(not lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise ValueError(f"each lower edge must be below its upper edge, got {self.low} and {self.high}")

    @classmethod
    def from_quantiles(cls, low, high, space: ActionSpace = LIBERO_ACTIONS, **options) -> ActionBins:
        """Bins over [low, high], arrays [a]; a dimension that never moves gets a narrow range around its value."""
        pairs = [(lo, hi) if hi - lo > 1e-3 else (lo - 5e-4, hi + 5e-4) for lo, hi in zip(low, high, strict=True)]
        pairs = [(-1.0, 1.0) if place in space.binary else pair for place, pair in enumerate(pairs)]
        return cls(tuple(float(lo) for lo, _ in pairs), tuple(float(hi) for _, hi in pairs), space=space, **options)

    def centers(self, device: torch.device | str = "cpu") -> Float[Tensor, "a v"]:
        """Value of each bin, float32 [a count]."""
        low, high = (torch.tensor(edges, device=device)[:, None] for edges in (self.low, self.high))
        middle = (torch.arange(self.count, device=device) + 0.5) / self.count
        return low + (high - low) * middle

    def labels(self, actions: Float[Tensor, "... a"]) -> Float[Tensor, "... a"]:
        """Position of each action on its axis of bins, as a real number of bins in [0, count - 1]."""
        low, high = (torch.tensor(edges, device=actions.device) for edges in (self.low, self.high))
        place = ((actions - low) / (high - low) * self.count - 0.5).clamp(0, self.count - 1)
        return self.either(place, actions > 0, 0.0, self.count - 1.0)

    def either(self, values: Tensor, upper: Tensor, low: float = -1.0, high: float = 1.0) -> Float[Tensor, "... a"]:
        """`values` where continuous; where binary, `high` if `upper` (bool [... a]) and else `low`."""
        binary = torch.tensor([kind == "binary" for kind in self.space.kinds], device=values.device)
        return torch.where(binary, torch.where(upper, high, low), values)

    def window(self, actions: Float[Tensor, "... a"]) -> tuple[Int64[Tensor, "... a w"], Float[Tensor, "... a w"]]:
        """The bins that a label touches, and the share of the label that each has; shares of a label sum to one.

        A label is a softmax over all bins of a Gaussian, cut off at `REACH`, and one-hot where binary or without
        `spread`. At the ends of the axis the window is moved inwards.
        """
        place = self.labels(actions)
        reach = math.ceil(REACH * self.spread)
        size = min(2 * reach + 1, self.count)
        first = (place.round() - reach).clamp_(0, self.count - size)
        steps = torch.arange(size, device=actions.device)
        away = (steps.to(place.dtype) - (place - first)[..., None]).div_(self.spread or 1.0)
        shares = away.square_().mul_(-0.5).softmax(-1)
        bins = first.long()[..., None] + steps
        for binary in self.space.binary:
            shares[..., binary, :] = bins[..., binary, :] == place[..., binary, None]
        return bins, shares

    def decide(self, logits: Float[Tensor, "b c a v"]) -> Float[Tensor, "b c a"]:
        """Actions in the robot's units; binary ones are exactly -1 or 1 (a gripper: open or closed)."""
        mass, centers = logits.float().softmax(-1), self.centers(logits.device)
        if self.decision == "argmax":
            values = centers.expand_as(mass).gather(-1, mass.argmax(-1, keepdim=True))[..., 0]
        else:
            values = (mass * centers).sum(-1)
        return self.either(values, mass[..., self.count // 2 :].sum(-1) > 0.5)


class ActionHead(nn.Module):
    """Hidden states at the action positions -> logits over bins, all actions of a chunk at once.

    It also reads the instruction's own final states, averaged. Without that, nothing downstream reads the text rows of
    the last layer: they would get no gradient from the action loss, and a third of the saliency would be noise.
    """

    def __init__(self, width: int, bins: ActionBins):
        super().__init__()
        self.shape = len(bins.space), bins.count
        self.from_instruction = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, math.prod(self.shape))
        nn.init.normal_(self.logits.weight, std=0.02)
        nn.init.zeros_(self.logits.bias)

    def forward(self, features: Features) -> Float[Tensor, "b c a v"]:
        """Logits in float32, all dimensions and all steps of the chunk in one pass."""
        hidden = self.norm(features.action_states + self.from_instruction(features.instruction_state)[:, None])
        return self.logits(hidden).float().unflatten(-1, self.shape)

    def teacher_forcing(self, bins: ActionBins, actions: Float[Tensor, "b c a"]) -> None:
        """Nothing: in training the backbone does not read the true actions."""

    def act(self, backbone: Backbone, bins: ActionBins, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """Actions in the robot's units, from one pass of the backbone."""
        return bins.decide(self(backbone(inputs)))

    def loss(self, features: Features, bins: ActionBins, batch: Batch, noise: torch.Generator) -> Float[Tensor, ""]:
        """L_action of a batch; `noise` is for heads that draw some."""
        return action_loss(self(features), bins, batch.actions, batch.valid)


def action_loss(
    logits: Float[Tensor, "b c a v"], bins: ActionBins, actions: Float[Tensor, "b c a"], valid: Bool[Tensor, "b c"]
) -> Float[Tensor, ""]:
    """L_action: cross-entropy, averaged over the dimensions and the `valid` steps; ValueError without any."""
    if not bool(valid.any()):
        raise ValueError("no valid action in the batch")
    touched, shares = bins.window(actions)
    per_step = -(logits.log_softmax(-1).gather(-1, touched) * shares).sum(-1).mean(-1)
    return per_step[valid].mean()
