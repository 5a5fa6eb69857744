"""A budget of visible patches that the action loss alone learns: the rest is hidden, and nothing is reconstructed.

The mechanism opposite to reconstruction, after *See Less* of S2 (Wu, Matsushima and Ota, arXiv 2606.02735)::

    image ---> backbone ---> patches ---> gate ---> scores ---> the k patches of the budget
    image --(all others grey)--> backbone ---> actions, saliency          in training and when acting

Published: an explicit budget on the policy's visual tokens; soft masks of what is kept, learned from action prediction
alone without any region or mask annotation; the same interface in training and acting. Ours, for what we know of S2 is
its abstract, introduction and project page, which give no size, relaxation or schedule:

- The budget is exact: k patches, as many as other arms mask, not a soft mask of any mass. Training passes a gradient
  straight through the choice (Bengio et al., arXiv 1308.3432).
- What is hidden are pixels, before the vision tower, so that no visible patch has read them. S2 masks tokens.
- The gate reads the states that a first pass over the whole picture has of the patches, which have met the words, and
  no gradient goes back through it. What is hidden can reach the policy as *which* patches are visible.
- Scores have mean 0 and variance 1 over the patches of a picture: larger ones would end the learning of the choice.
- The budget shrinks from all patches, so that there is something to learn the choice from.
- One camera: the wrist's is never hidden. S2 gives each camera a budget.
- Not here: S2's other half, *Specify More*, which rewrites the instructions with a language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from la_reconvla.contracts import AttentionRows, Backbone, Batch, Features, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.mask import checked, masked_count
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN, SaliencySource


@dataclass(frozen=True)
class Budget:
    """How much of the picture the policy may see, and the size of the gate that chooses.

    Attributes:
        visible: share of the patches that stay visible; by default those that other arms mask.
        shrinking: share of the training in which the budget falls to that, in a straight line from all patches.
        width: hidden units of the gate.
    """

    visible: float = 0.25
    shrinking: float = 0.5
    width: int = 64
    label = "all but a learned budget"

    def __post_init__(self):
        if not (0 < self.visible < 1 and 0 <= self.shrinking < 1 and self.width > 0):
            raise ValueError("visible must lie in (0, 1), shrinking in [0, 1), and width be at least 1")

    @property
    def fraction(self) -> float:
        """Share of the patches that is hidden in the end, as masks have it."""
        return 1 - self.visible

    @property
    def saliency(self) -> SaliencySource:
        """The map that it chooses by."""
        return GateScores()

    def count(self, n: int, progress: float) -> int:
        """Visible patches of `n` where this share of the training is done."""
        share = self.visible if progress >= self.shrinking else 1 - self.fraction * progress / self.shrinking
        return n if share == 1 else masked_count(share, n)

    def require(self, decoding: str) -> None:
        """Raise a `UserError` if actions are decoded in a way that cannot hide patches."""
        if decoding == "autoregressive":
            raise UserError(
                "a learned budget hides patches in one pass of the backbone, and autoregressive decoding has several: "
                "take another --decoding, or leave the arm out"
            )


@dataclass(eq=False)
class BudgetedFeatures(Features):
    """Features of a picture that shows its budget alone.

    Attributes:
        scores: float32 [b n], of the gate.
        visible: bool [b n], True = in the budget.
    """

    scores: Float[Tensor, "b n"] | None = None
    visible: Bool[Tensor, "b n"] | None = None


@dataclass(frozen=True)
class GateScores(SaliencySource):
    """The gate's scores as a map: their softmax over the patches. It reads no attention."""

    label = "gate"

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """Raises ValueError for features of a policy without a gate."""
        if not isinstance(features, BudgetedFeatures):
            raise ValueError("this policy has no gate: its arm must have a budget")
        return checked(features.scores).detach().softmax(-1)


def straight_through(scores: Float[Tensor, "b n"], k: int) -> Float[Tensor, "b n"]:
    """1 at the k highest scores of each sample and else 0, exactly; with the gradient of a soft step between them.

    The step is a logistic function of how far a score is from the middle between the last one in and the first one out.
    """
    edge = scores.detach().topk(min(k + 1, scores.shape[1]), dim=1).values[:, -2:].mean(1, keepdim=True)
    soft = (scores - edge).sigmoid()
    chosen = torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)  # a bool cannot be recorded
    return chosen + (soft - soft.detach())


class BudgetedPolicy(Policy):
    """A policy that sees the patches of its budget, whatever it does.

    Args:
        policy: whose parts it takes.
        budget: how much it sees.
    """

    def __init__(self, policy: Policy, budget: Budget):
        super().__init__(policy.backbone, policy.bins, action_head=policy.action_head)
        self.budget = budget
        self.gate = nn.Sequential(
            nn.LayerNorm(policy.backbone.width),
            nn.Linear(policy.backbone.width, budget.width),
            nn.GELU(),
            nn.Linear(budget.width, 1),
        )

    def see(
        self, inputs: PolicyInput, attention: AttentionRows | None = None, progress: float = 1.0
    ) -> BudgetedFeatures:
        """The features of a picture in which all is grey but the budget of this share of the training."""
        states = self.backbone(inputs).patches.detach()
        scores = nn.functional.layer_norm(self.gate(states).squeeze(-1).float(), states.shape[1:2])
        keep = straight_through(scores, self.budget.count(scores.shape[1], progress))
        visible = keep > 0.5
        # Where nothing is learned patches are hidden or not: a share of a patch is for its gradient alone.
        hidden: Any = 1 - keep if keep.requires_grad else ~visible
        features = self._named(self.backbone(inputs, attention=attention, hidden=hidden), inputs)
        return BudgetedFeatures(**vars(features), scores=scores, visible=visible)

    def features(
        self,
        batch: Batch,
        *,
        attention: AttentionRows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        teacher: Backbone | None = None,
        progress: float = 1.0,
    ) -> Features:
        """See `Policy.features`. The budget shrinks in training alone.

        Raises:
            ValueError: for a teacher or patches to hide, which are for arms that reconstruct.
        """
        if hidden is not None or teacher is not None:
            raise ValueError("a policy with a budget neither hides other patches nor reads a teacher")
        return self.see(batch.inputs, attention, progress if self.training else 1.0)

    @torch.no_grad()
    def act(self, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """See `Policy.act`: two passes of the backbone."""
        return self.action_head.act(self.see, self.bins, inputs)

    @torch.no_grad()
    def look(self, inputs: PolicyInput, source: SaliencySource = MEAN) -> Float[Tensor, "b n"]:
        """See `Policy.look`."""
        return source(self.see(inputs, source.attention_rows))
