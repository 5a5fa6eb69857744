"""Actions as 7 x 256 bins, decoded in parallel (RT-2's bins, OpenVLA's quantile edges, OpenVLA-OFT's parallel chunks).

Six dimensions are continuous: 256 uniform bins between the 1st and 99th percentile of the demonstrations. The gripper
is two-valued: its label is the first or the last bin, and its decision is which half of the bins holds more mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from la_reconvla.contracts import ACTION_DIM, Backbone, PolicyInput

GRIPPER = ACTION_DIM - 1
REACH = 6  # standard deviations; beyond are 2e-9 of the labels


@dataclass(frozen=True)
class ActionBins:
    """Edges of the bins and how labels and decisions are made; saved with the policy.

    Attributes:
        low: 1st percentile of each dimension of the training actions (7 numbers; the gripper's are -1 and 1).
        high: 99th percentile of each dimension.
        count: bins per dimension.
        spread: standard deviation, in bins, of the soft labels; 0 gives the published one-hot labels.
        decision: ``expectation`` over the bins (the default, smoother in closed loop) or ``argmax`` (published).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    count: int = 256
    spread: float = 4.0
    decision: Literal["expectation", "argmax"] = "expectation"

    def __post_init__(self):
        if len(self.low) != ACTION_DIM or len(self.high) != ACTION_DIM:
            raise ValueError(f"action bins need {ACTION_DIM} lower and upper edges")
        if any(not lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise ValueError(f"each lower edge must be below its upper edge, got {self.low} and {self.high}")

    @classmethod
    def from_quantiles(cls, low, high, **options) -> ActionBins:
        """Bins over [low, high], arrays [7]; a dimension that never moves gets a narrow range around its value."""
        pairs = [(float(lo), float(hi)) for lo, hi in zip(low, high, strict=True)]
        pairs = [(lo, hi) if hi - lo > 1e-3 else (lo - 5e-4, hi + 5e-4) for lo, hi in pairs]
        pairs[GRIPPER] = (-1.0, 1.0)
        return cls(tuple(lo for lo, _ in pairs), tuple(hi for _, hi in pairs), **options)

    def centers(self, device: torch.device | str = "cpu") -> Float[Tensor, "a v"]:
        """Value of each bin, float32 [7 count]."""
        low, high = (torch.tensor(edges, device=device)[:, None] for edges in (self.low, self.high))
        middle = (torch.arange(self.count, device=device) + 0.5) / self.count
        return low + (high - low) * middle

    def labels(self, actions: Float[Tensor, "... 7"]) -> Float[Tensor, "... 7"]:
        """Position of each action on its axis of bins, as a real number of bins in [0, count - 1]."""
        low, high = (torch.tensor(edges, device=actions.device) for edges in (self.low, self.high))
        place = ((actions - low) / (high - low) * self.count - 0.5).clamp(0, self.count - 1)
        gripper = torch.where(actions[..., GRIPPER] > 0, self.count - 1.0, 0.0)
        return torch.cat([place[..., :GRIPPER], gripper[..., None]], dim=-1)

    def window(self, actions: Float[Tensor, "... 7"]) -> tuple[Int64[Tensor, "... 7 w"], Float[Tensor, "... 7 w"]]:
        """The bins that a label touches, and the share of the label that each has; shares of a label sum to one.

        A label is a softmax over all bins of a Gaussian, cut off at `REACH`, and one-hot for the gripper or without
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
        shares[..., GRIPPER, :] = bins[..., GRIPPER, :] == place[..., GRIPPER, None]
        return bins, shares

    def decide(self, logits: Float[Tensor, "b c 7 v"]) -> Float[Tensor, "b c 7"]:
        """Actions in the environment's units; the gripper is exactly -1 (open) or 1 (closed)."""
        mass = logits.float().softmax(-1)
        centers = self.centers(logits.device)
        if self.decision == "argmax":
            values = centers.expand_as(mass).gather(-1, mass.argmax(-1, keepdim=True))[..., 0]
        else:
            values = (mass * centers).sum(-1)
        gripper = torch.where(mass[..., GRIPPER, self.count // 2 :].sum(-1) > 0.5, 1.0, -1.0)  # closed, open
        return torch.cat([values[..., :GRIPPER], gripper[..., None]], dim=-1)


class ActionHead(nn.Module):
    """Hidden states at the action positions -> logits over bins, all actions of a chunk at once.

    It also reads the instruction's own final states, averaged. Without that, nothing downstream reads the text rows of
    the last layer: they would get no gradient from the action loss, and a third of the saliency would be noise.
    """

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count = count
        self.from_instruction = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, ACTION_DIM * count)
        nn.init.normal_(self.logits.weight, std=0.02)
        nn.init.zeros_(self.logits.bias)

    def forward(
        self, action_states: Float[Tensor, "b c d"], instruction_state: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c 7 v"]:
        """Logits in float32, all dimensions and all steps of the chunk in one pass."""
        hidden = self.norm(action_states + self.from_instruction(instruction_state)[:, None])
        return self.logits(hidden).float().unflatten(-1, (ACTION_DIM, self.count))

    def teacher_forcing(self, bins: ActionBins, actions: Float[Tensor, "b c 7"]) -> None:
        """Nothing: in training the backbone does not read the true actions."""

    def act(self, backbone: Backbone, bins: ActionBins, inputs: PolicyInput) -> Float[Tensor, "b c 7"]:
        """Actions in the environment's units, from one pass of the backbone."""
        features = backbone(inputs)
        return bins.decide(self(features.action_states, features.instruction_state))


def action_loss(
    logits: Float[Tensor, "b c 7 v"], bins: ActionBins, actions: Float[Tensor, "b c 7"], valid: Bool[Tensor, "b c"]
) -> Float[Tensor, ""]:
    """L_action: cross-entropy, averaged over the 7 dimensions and the `valid` steps; ValueError without any."""
    if not bool(valid.any()):
        raise ValueError("no valid action in the batch")
    touched, shares = bins.window(actions)
    per_step = -(logits.log_softmax(-1).gather(-1, touched) * shares).sum(-1).mean(-1)
    return per_step[valid].mean()
