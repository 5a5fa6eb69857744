"""Actions as a sample: a small network turns noise into a chunk, given what the backbone made of picture and words.

Where one picture allows two ways, an expectation over bins lies between them; a sample is one of them::

    a    the chunk, each dimension from its least to its largest training value as [-1, 1], a gripper -1 or 1
    e    noise from a standard normal distribution

    diffusion    x_t = sqrt(k_t) a + sqrt(1 - k_t) e    f(x_t, t, states) = e        t = 0 ... 99, uniform
    flow         x_t = t e + (1 - t) a                  f(x_t, t, states) = e - a    t = 0.999 Beta(1.5, 1) + 0.001

    loss = | f - what it should be |^2                  at one t per sample, over the steps that exist

Diffusion is Diffusion Policy's (arXiv 2303.04137): k_t falls as a cosine squared, and DDIM (arXiv 2010.02502) draws in
10 of the 100 steps. Flow is pi0's (arXiv 2410.24164): 10 steps of Euler's method from t = 1 to 0. The network is the
`method.variants.dit.DiT` of reconstruction, over the steps of a chunk in place of patches, with as many parameters as
the head of bins has. The backbone runs once, the network once a step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from la_reconvla.contracts import Backbone, Batch, Features, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.variants.dit import DiT

DEPTH, ATTENTION_HEADS = 2, 4
TIMESTEPS = 100  # of diffusion
FINE = 1000  # flow's t in [0, 1] enters the network, whose waves are made for numbers of steps, as t FINE

Network = Callable[[Float[Tensor, "b c a"], Float[Tensor, " b"]], Float[Tensor, "b c a"]]
"""Noised actions and their level to a prediction, for states that it knows."""


class DenoisingHead(nn.Module):
    """States at the action positions and noise -> a chunk of actions.

    Like `ActionHead` it also reads the instruction's own final states, averaged, so that the text rows of the last
    layer get a gradient from the action loss.

    Args:
        width: of the backbone.
        bins: their edges are -1 and 1 here.
        chunk: actions in a chunk.
        steps: of drawing a chunk.

    Attributes:
        shape: of a sample's noise, (c, a).
    """

    still: Tensor

    def __init__(self, width: int, bins: ActionBins, chunk: int, steps: int):
        super().__init__()
        self.shape, self.steps = (chunk, len(bins.space)), steps
        self.from_instruction = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.network = DiT(DEPTH, equal_width(width, bins, chunk), ATTENTION_HEADS, self.shape[1], width, (1, chunk))
        still = torch.randn(self.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("still", still, persistent=False)  # the noise of who gives none

    def teacher_forcing(self, bins: ActionBins, actions: Float[Tensor, "b c a"]) -> None:
        """Nothing: the backbone does not read the true actions, the network reads them noised."""

    def loss(self, features: Features, bins: ActionBins, batch: Batch, noise: torch.Generator) -> Float[Tensor, ""]:
        """L_action: mean squared error over the dimensions and the steps that exist; ValueError without any.

        Noise comes from the CPU's generator `noise`, so that every device draws the same.
        """
        if not bool(batch.valid.any()):
            raise ValueError("no valid action in the batch")
        actions = scaled(bins, batch.actions.float())
        e = torch.randn(actions.shape, generator=noise).to(actions.device)
        x, level, wanted = self.noised(actions, e, torch.rand(len(e), generator=noise).to(actions.device))
        wrong = (self.predict(x, level, self.states(features)) - wanted).square().mean(-1)
        return wrong[batch.valid].mean()

    def act(self, backbone: Backbone, bins: ActionBins, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """Actions in the robot's units, drawn from `inputs.noise`, or from the same noise in every call."""
        states = self.states(backbone(inputs))
        noise = self.still.expand(len(states), -1, -1) if inputs.noise is None else inputs.noise
        return unscaled(bins, self.drawn(lambda x, level: self.predict(x, level, states), noise.float()))

    def states(self, features: Features) -> Float[Tensor, "b c d"]:
        """What the network is conditioned on."""
        return self.norm(features.action_states + self.from_instruction(features.instruction_state)[:, None])

    def predict(
        self, x: Float[Tensor, "b c a"], level: Float[Tensor, " b"], states: Float[Tensor, "b c d"]
    ) -> Float[Tensor, "b c a"]:
        """What the network says of noised actions, in float32."""
        return self.network(x, level, states, None).float()

    def noised(
        self, actions: Float[Tensor, "b c a"], e: Float[Tensor, "b c a"], share: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c a"], Float[Tensor, " b"], Float[Tensor, "b c a"]]:
        """Noised actions, the level that the network is told, and what it should answer.

        `share` is uniform in [0, 1) and becomes t by the inverse of its distribution function.
        """
        raise NotImplementedError

    def drawn(self, network: Network, x: Float[Tensor, "b c a"]) -> Float[Tensor, "b c a"]:
        """Scaled actions, from the noise `x`."""
        raise NotImplementedError


class DiffusionHead(DenoisingHead):
    """The head that is told to find the noise; `steps` at most `TIMESTEPS`."""

    kept: Tensor

    def __init__(self, width: int, bins: ActionBins, chunk: int, steps: int = 10):
        if not 1 <= steps <= TIMESTEPS:
            raise UserError(f"diffusion draws in 1 to {TIMESTEPS} steps, not {steps}")
        super().__init__(width, bins, chunk, steps)
        # Imported here: it takes seconds, which no other decoding should wait for.
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        # Trailing: the first step is taken where there is nothing but noise, however few steps there are.
        options = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
        self.sampler: Any = DDIMScheduler(TIMESTEPS, **options)  # pyright: ignore[reportArgumentType]
        self.sampler.set_timesteps(steps)
        self.register_buffer("kept", self.sampler.alphas_cumprod.clone(), persistent=False)  # k_t

    def noised(
        self, actions: Float[Tensor, "b c a"], e: Float[Tensor, "b c a"], share: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c a"], Float[Tensor, " b"], Float[Tensor, "b c a"]]:
        """See `DenoisingHead`."""
        t = (share * TIMESTEPS).long()
        k = self.kept.float()[t, None, None]
        return k.sqrt() * actions + (1 - k).sqrt() * e, t.float(), e

    def drawn(self, network: Network, x: Float[Tensor, "b c a"]) -> Float[Tensor, "b c a"]:
        """See `DenoisingHead`; by DDIM, each guess of the actions kept within [-1, 1]."""
        for t in self.sampler.timesteps.tolist():
            level = torch.full((len(x),), float(t), device=x.device)
            x = self.sampler.step(network(x, level), t, x, return_dict=False)[0]
        return x


class FlowHead(DenoisingHead):
    """The head that is told the way from the actions to the noise."""

    def __init__(self, width: int, bins: ActionBins, chunk: int, steps: int = 10):
        if steps < 1:
            raise UserError(f"flow draws in at least 1 step, not {steps}")
        super().__init__(width, bins, chunk, steps)

    def noised(
        self, actions: Float[Tensor, "b c a"], e: Float[Tensor, "b c a"], share: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c a"], Float[Tensor, " b"], Float[Tensor, "b c a"]]:
        """See `DenoisingHead`; Beta(1.5, 1) has the distribution function t^1.5."""
        t = 0.999 * share ** (1 / 1.5) + 0.001
        return t[:, None, None] * e + (1 - t[:, None, None]) * actions, t * FINE, e - actions

    def drawn(self, network: Network, x: Float[Tensor, "b c a"]) -> Float[Tensor, "b c a"]:
        """See `DenoisingHead`; by Euler's method."""
        for step in range(self.steps, 0, -1):
            level = torch.full((len(x),), FINE * step / self.steps, device=x.device)
            x = x - network(x, level) / self.steps
        return x


def scaled(bins: ActionBins, actions: Float[Tensor, "... a"]) -> Float[Tensor, "... a"]:
    """Actions with the outer edges of `bins` at -1 and 1; binary ones are exactly -1 or 1."""
    low, high = (torch.tensor(edges, device=actions.device) for edges in (bins.low, bins.high))
    return bins.either(2 * (actions - low) / (high - low) - 1, actions > 0)


def unscaled(bins: ActionBins, x: Float[Tensor, "... a"]) -> Float[Tensor, "... a"]:
    """Actions in the robot's units, none beyond the outer edges; binary ones are exactly -1 or 1."""
    low, high = (torch.tensor(edges, device=x.device) for edges in (bins.low, bins.high))
    return bins.either(low + (high - low) * (x.clamp(-1, 1) + 1) / 2, x > 0)


def equal_width(width: int, bins: ActionBins, chunk: int) -> int:
    """The network's width at which its head has most nearly the parameters of the head of bins."""

    def parameters(own: int) -> int:
        with torch.device("meta"):
            return _count(DiT(DEPTH, own, ATTENTION_HEADS, len(bins.space), width, (1, chunk)))

    with torch.device("meta"):
        of_bins = _count(ActionHead(width, bins).logits)  # both have the rest
    widths = range(math.lcm(4, ATTENTION_HEADS), 8192, math.lcm(4, ATTENTION_HEADS))
    above = bisect.bisect_left(widths, of_bins, key=parameters)
    near = widths[max(above - 1, 0) : above + 1]
    return min(near, key=lambda own: abs(parameters(own) - of_bins))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
