"""A learned budget of visible patches: exact, by the action loss alone, and it finds the patch that matters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import BINS, TINY, random_batch, untrained
from la_reconvla.analysis.results import Arm
from la_reconvla.backbones.shared import HALF, Geometry
from la_reconvla.conditions import C1, C4, S2, Condition, nearest
from la_reconvla.contracts import Batch, Features, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.method.variants.budget import Budget, BudgetedPolicy, GateScores, straight_through
from la_reconvla.randomness import generator, seeded
from la_reconvla.study.heldout import measure_sources
from la_reconvla.study.presets import PRESETS
from la_reconvla.study.requirements import require_heads
from la_reconvla.training.acting import Actor

TEXT, STEPS = "push the red tile", 160
BOTH = (TEXT, "push the blue tile")


# ---------------------------------------------------------------- a toy in which one patch determines the action


class Tiles(nn.Module):
    """A backbone in which no patch sees another: each meets the words, and the action reads a sum of all."""

    width, patch_size, grid = 32, 8, (4, 4)

    def __init__(self, texts: tuple[str, ...] = (TEXT,)) -> None:
        super().__init__()
        self.texts, self.pixels, self.words = texts, nn.Linear(3 * 64, 32), nn.Embedding(len(texts), 32)
        self.mix, self.act = nn.Sequential(nn.GELU(), nn.Linear(32, 32)), nn.Sequential(nn.GELU(), nn.Linear(32, 32))

    def forward(self, inputs: PolicyInput, *, attention=None, hidden=None) -> Features:
        shown = HALF(inputs.images, Geometry(32, 8), hidden, torch.float32)
        told = self.words(torch.tensor([self.texts.index(text) for text in inputs.instructions]))
        cut = shown.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        patches = self.mix(self.pixels(cut) + told[:, None])
        return Features(patches, self.act(patches).sum(1)[:, None], told, None, None, self.grid)


def tiles(b: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Grey tiles and a red one; the shade of that, as it is in green, is the action, those of others mean nothing."""
    draw = torch.Generator().manual_seed(seed)
    shades, where = torch.rand(b, 16, generator=draw), torch.randint(16, (b,), generator=draw)
    colours, rows = (shades * 255)[:, None].repeat(1, 3, 1), torch.arange(b)
    colours[rows, 0, where], colours[rows, 2, where] = 255.0, 0.0
    images = colours.view(b, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).round().to(torch.uint8)
    actions = (shades[rows, where] * 2 - 1)[:, None, None].expand(b, 1, 7).clone()
    return Batch(images, [TEXT] * b, actions, torch.ones(b, 1, dtype=torch.bool)), where


def two_tiles(b: int, seed: int) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Grey tiles, a red and a blue one; the shade of that which the instruction names is the action.

    Returns:
        The batch, where the red and the blue tile are [b 2], and which of them is named [b].
    """
    draw, rows = torch.Generator().manual_seed(seed), torch.arange(b)
    shades, where = torch.rand(b, 16, generator=draw), torch.rand(b, 16, generator=draw).topk(2, dim=1).indices
    named, colours = torch.randint(2, (b,), generator=draw), (shades * 255)[:, None].repeat(1, 3, 1)
    for tile, (high, low) in enumerate(((0, 2), (2, 0))):
        colours[rows, high, where[:, tile]], colours[rows, low, where[:, tile]] = 255.0, 0.0
    images = colours.view(b, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).round().to(torch.uint8)
    actions = (shades[rows, where[rows, named]] * 2 - 1)[:, None, None].expand(b, 1, 7).clone()
    valid = torch.ones(b, 1, dtype=torch.bool)
    return Batch(images, [BOTH[which] for which in named.tolist()], actions, valid), where, named


def toy_policy(budget: Budget, texts: tuple[str, ...] = (TEXT,), seed: int = 0) -> BudgetedPolicy:
    with seeded(seed, "toy"):
        return BudgetedPolicy(Policy(Tiles(texts), BINS), budget)


@pytest.mark.slow
def test_it_keeps_the_one_patch_that_determines_the_action():
    """From a gate that puts it last."""
    policy, (unseen, where) = toy_policy(Budget()), tiles(200, seed=1000)
    with torch.no_grad():
        policy.gate[3].weight.neg_()

    @torch.no_grad()
    def kept() -> float:
        found: Any = policy.eval().features(unseen)
        return float(found.visible[torch.arange(200), where].float().mean())

    before, steps = kept(), STEPS
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for step in range(steps):
        batch, _ = tiles(32, seed=step)
        losses(policy.train(), batch, None, torch.Generator(), step / steps).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before < 0.1, "chance is 0.25"
    assert kept() > 0.95


@pytest.mark.slow
def test_it_keeps_the_patch_that_the_instruction_names():
    """Two tiles are alike but for the words; the same pictures under the other words show that they decide."""
    policy, (unseen, where, named) = toy_policy(Budget(), BOTH, seed=1), two_tiles(200, seed=10**6)
    others = replace(unseen, instructions=[BOTH[1 - which] for which in named.tolist()])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(900):  # the budget has its size since step 750
        batch, *_ = two_tiles(32, seed=10**5 + step)
        losses(policy.train(), batch, None, torch.Generator(), step / 1500).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def kept(batch: Batch, tile: torch.Tensor) -> float:
        found: Any = policy.eval().features(batch)
        return float(found.visible[torch.arange(200), where[torch.arange(200), tile]].float().mean())

    for batch, asked in ((unseen, named), (others, 1 - named)):
        assert kept(batch, asked) > 0.95
        assert kept(batch, 1 - asked) < 0.1, "chance is 0.25 for each"


# ---------------------------------------------------------------- the budget


@given(n=st.integers(2, 40), share=st.floats(0.05, 0.95), progress=st.floats(0, 1))
def test_the_budget_is_exact_and_straight_through(n, share, progress):
    budget = Budget(visible=share, shrinking=0.5)
    k = budget.count(n, progress)
    assert k == min(n, math.ceil(round(n * max(share, 1 - (1 - share) * progress / 0.5), 9)))
    scores = torch.randn(3, n, generator=generator(0, "scores"), requires_grad=True)
    keep = straight_through(scores, k)
    assert set(keep.unique().tolist()) <= {0.0, 1.0}
    assert keep.sum(1).tolist() == [k] * 3
    keep.sum().backward()
    ordered = -np.sort(-scores.detach().numpy(), axis=1)
    edge = ordered[:, max(0, min(k, n - 1) - 1) : min(k, n - 1) + 1].mean(1, keepdims=True)
    soft = 1 / (1 + np.exp(edge - scores.detach().numpy()))
    np.testing.assert_allclose(scores.grad, soft * (1 - soft), rtol=1e-4)


def test_what_is_outside_the_budget_changes_nothing_but_the_choice():
    """Whatever stands in hidden patches, the second pass gives the same numbers, in training and in acting."""
    policy = untrained(S2).build().eval()
    batch = random_batch()
    found = policy.features(batch)
    assert found.visible.sum(1).tolist() == [4] * 3
    other = replace(batch, images=255 - batch.images)
    cover = (~found.visible).view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(batch, images=torch.where(cover, other.images, batch.images))
    plain = policy.backbone(batch.inputs, hidden=~found.visible)
    torch.testing.assert_close(
        policy.backbone(changed.inputs, hidden=~found.visible).action_states, plain.action_states
    )
    torch.testing.assert_close(found.action_states, plain.action_states, rtol=0, atol=0)
    head = policy.action_head(plain)
    torch.testing.assert_close(policy.act(batch.inputs), policy.bins.decide(head))


@pytest.mark.parametrize("freeze_vision", [False, True])
def test_the_gate_learns_from_the_action_loss_and_the_budget_shrinks_in_training_alone(freeze_vision):
    """Its gradient comes through the pixels, also through a tower that does not train."""
    policy = untrained(S2, replace(TINY, freeze_vision=freeze_vision)).build().train()
    assert policy.reconstruction_head is None
    found = losses(policy, random_batch(), S2.reconstruction, generator(0, "mask"), progress=0.25)
    assert torch.equal(found.total, found.action)
    assert found.reconstruction is None
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.gate.parameters())
    assert policy.gate[1].weight.grad.abs().sum() > 0
    assert policy.features(random_batch(), progress=0.25).visible.sum(1).tolist() == [10] * 3
    assert policy.features(random_batch(), progress=0.0).visible.all()
    assert policy.eval().features(random_batch(), progress=0.0).visible.sum(1).tolist() == [4] * 3


def test_its_map_is_the_softmax_of_the_gate_and_is_measured_as_others_are():
    policy, batch = untrained(S2).build().eval(), random_batch()
    scores = policy.features(batch).scores.detach().double().numpy()
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(policy.look(batch.inputs, GateScores()), expected, rtol=1e-5)
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-5)
    coverage = np.zeros((3, 3, 16))
    coverage[:, :, 5] = 1.0
    found = measure_sources(policy, batch, None, coverage, (MEAN, S2.saliency))
    assert [one.label if hasattr(one, "label") else one for one in found] == [MEAN.label, "gate"]
    with pytest.raises(ValueError, match="has no gate"):
        untrained(C1).build().look(batch.inputs, GateScores())


def test_it_starts_from_the_weights_of_other_arms():
    one, two = (untrained(arm).build().state_dict() for arm in (C1, S2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name.partition(".")[0] for name in two.keys() - one.keys()} == {"gate"}


@pytest.mark.parametrize("decoding", ["parallel", "diffusion", "flow"])
def test_the_fast_path_acts_alike(decoding: Any):
    policy = untrained(S2, decoding=decoding).build().eval()
    with torch.no_grad():
        for seed, p in enumerate(policy.parameters()):  # a head that denoises says nothing at first
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    actor = Actor(policy)
    for seed in range(3):
        given_now = random_batch(seed=seed).inputs
        torch.testing.assert_close(actor(given_now), policy.act(given_now), rtol=0, atol=1e-4)
    assert actor.records() == 1


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="take another --decoding"):
        untrained(S2, decoding="autoregressive").build()
    with pytest.raises(UserError, match="take another --decoding"):
        require_heads(PRESETS["smoke"].changed(decoding="autoregressive"), [S2])
    with pytest.raises(ValueError, match="either reconstructs"):
        Condition("both", "both", C4.reconstruction, budget=Budget())
    with pytest.raises(ValueError, match="visible must lie"):
        Budget(visible=1.0)
    with pytest.raises(ValueError, match="neither hides"):
        untrained(S2).build().features(random_batch(), hidden=torch.zeros(3, 16, dtype=torch.bool))


def test_a_study_compares_it_with_the_arm_that_sees_all():
    assert nearest(S2, (C1, C4))[0] is C1
    arm = Arm.of(S2)
    assert (arm.mask, arm.fraction, arm.saliency, arm.mask_at) == ("all but a learned budget", 0.75, "gate", "input")
    assert S2.annotation_free
